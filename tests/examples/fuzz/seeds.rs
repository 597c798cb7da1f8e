//! Inputs that are good, from which bad ones are made.

use std::sync::LazyLock;

use agent::capture::{Entry, Origin};
use agent::clock::Now;
use agent::config::{self, Config};
use agent::pipeline::{Input, Pipeline};
use agent::probe::{self, DecodeError};
use agent::processes::{Found, Identity, Lookup, Started};
use fleet_server::enrolment::Token;
use fleet_server::mqtt::codec;
use models::bundle::{self, Keyring, Manifest, SigningKey, Verified};
use models::event::{Event, EventKind, SyscallWindow, clipped};
use models::orders;
use models::policy::Severity;
use models::program::ProgramId;
use models::program_file::ProgramFile;
use models::schema::SCHEMA_ID;
use models::train::{self, TrainOptions, WINDOWS_MIN};
use models::wire::{
    self, AlarmedWindow, Alert, Answer, BundleReport, DetectorScore, DeviceEvent, Downlink, Errand,
    Heartbeat, LogLevel, Offer, Order, Reason, Request, TrainingWindow, TrainingWindows, Uplink, UplinkFrame,
};
use serde::Serialize;
use serde_json::json;

/// What a capture begins with.
pub(crate) const CAPTURE_MAGIC: [u8; 4] = *b"BGC6";

/// Words of configurations.
pub(crate) const CONFIGURATION: &[&[u8]] = &[
    b"state = ",
    b"window = ",
    b"\"30s\"",
    b"[alerts]\n",
    b"[kernel]\n",
    b"[[sink]]\n",
    b"[[contain]]\n",
    b"kind = ",
    b"\"exec\"",
    b"thresholds = [40, 70, 90]\n",
    b"memory_budget = \"48MiB\"\n",
    b"alert_budget = ",
    b"\n",
    b"[",
    b"]",
    b"\"\"\"",
    b"[store]\n",
    b"[broker]\n",
    b"postgres = ",
    b"18446744073709551615",
    b"-1",
    b"inf",
];

/// Words of JSON.
pub(crate) const JSON: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"null",
    b"true",
    b"1e308",
    b"-0.0",
    b"5.0",
    b"\\u0000",
    b"\\ud800",
    b"\"command\":",
    b"\"status\"",
    b"\"matcher\":",
    b"\"max_score\":",
    b"\"url\":",
    b"\"format\":",
    b"18446744073709551616",
];

fn program() -> ProgramId {
    ProgramId { unit: "gw.service".into(), exe: "/usr/bin/gw".into(), script: Some("/opt/gw.py".into()) }
}

fn bytes(message: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(message).expect("it has a form")
}

/// Every kind of record, which stands behind the time, with the length at which it is one.
pub(crate) fn kernel_records() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for kind in 1..=12_u32 {
        for len in 0..16 * 1024 {
            let mut record = vec![0; len];
            record.iter_mut().skip(8).zip(kind.to_le_bytes()).for_each(|(to, from)| *to = from);
            let is_of_this_length = !matches!(probe::decode(&record), Err(DecodeError::Length { .. }));
            if is_of_this_length {
                found.push(record);
                break;
            }
        }
    }
    found
}

/// Queries over UDP and TCP.
pub(crate) fn dns() -> Vec<Vec<u8>> {
    let query = |labels: &[&str]| {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            message.push(u8::try_from(label.len()).expect("it is short"));
            message.extend(label.bytes());
        }
        message.extend([0, 0, 16, 0, 1]);
        message
    };
    let long = query(&[&"k3j2h4g5".repeat(7), "tunnel", "example"]);
    let over_tcp = [&u16::try_from(long.len()).expect("it is short").to_be_bytes()[..], &long].concat();
    vec![query(&["www", "example", "org"]), query(&[]), over_tcp]
}

/// An entry with its length and checksum.
pub(crate) fn capture_entry(entry: &[u8]) -> Vec<u8> {
    let len = u32::try_from(entry.len()).expect("it is short");
    [&len.to_le_bytes()[..], &crc32fast::hash(entry).to_le_bytes(), entry].concat()
}

/// The entry that every capture begins with.
pub(crate) fn capture_begin() -> Vec<u8> {
    let origin = Origin { agent: "0".into(), kernel: "6".into(), arch: "x86_64".into(), schema: SCHEMA_ID };
    let config = Config::default();
    capture_entry(&bytes(&Entry::Begin { origin, config, opened_ns: 7, degraded: vec![] }))
}

/// The entry that one ends with that has so many before it.
pub(crate) fn capture_end(entries: u64) -> Vec<u8> {
    capture_entry(&bytes(&Entry::End { entries, full: false }))
}

/// Every process is this one.
struct Everyone(Found);

impl Lookup for Everyone {
    fn identity(&mut self, _: u32, _: Option<&Started>) -> Identity {
        Identity::Program(self.0.clone())
    }
}

pub(crate) fn captures() -> Vec<Vec<u8>> {
    let event = |kind| Event { boot_ns: 9, tgid: 5, tid: 5, uid: 0, comm: clipped("gw"), kind };
    let now = Now { boot_ns: 30_000_000_000, unix_ms: 1_800_000_000_000 };
    let found = Found { program: program(), comm: "gw".into(), start_ticks: 3 };
    let open = EventKind::Open { path: clipped("/etc/shadow"), flags: 0, sensitive: true };
    let mut window = SyscallWindow::empty(5, 1);
    window.calls[3] = 60;
    window.learned = vec![(7, 2), (9, 1)];
    let mut pipeline = Pipeline::new(Config::default(), Everyone(found.clone()), 7);
    pipeline.step(now, Input::Event(event(open.clone())), &mut Vec::new());
    let step = |input| Entry::Step { now, input, answers: vec![Identity::Program(found.clone())] };
    let entries = [
        step(Input::Event(event(open))),
        step(Input::Event(event(EventKind::Exit))),
        step(Input::Close { closed_ns: 30_000_000_000, syscalls: vec![window] }),
        Entry::Degraded(vec!["dns".into()]),
        Entry::Switch { program: program(), generation: 3, table: Some(1) },
        Entry::Forget(program()),
        Entry::Known(pipeline.known()),
        Entry::End { entries: 1, full: false },
    ];
    entries.iter().map(bytes).collect()
}

pub(crate) fn uplink() -> Vec<Vec<u8>> {
    let alert = Alert {
        unix_ms: 1,
        program: program(),
        pid: 42,
        comm: "gw".into(),
        score: 91.5,
        severity: Severity::Critical,
        techniques: vec!["T1003".into()],
        summary: "opened a file".into(),
        reasons: vec![Reason { layer: "file".into(), name: "first".into(), text: "t".into(), share: 0.5 }],
        generation: 2,
        detectors: vec![DetectorScore { name: "vae".into(), z: 8.0 }],
        suppressed_before: 3,
        degraded: vec!["dns".into()],
    };
    let window = TrainingWindow {
        unix_ms: 1,
        run: 2,
        vector: vec![(0, 0.5), (426, 1.0)],
        traits: vec![1, u64::MAX],
        grams: vec![(5, 1), (6, 9)],
    };
    let event = DeviceEvent {
        unix_ms: 1,
        kind: wire::EventKind::Contained,
        program: Some(program()),
        containment: Some(3),
        text: "t".into(),
    };
    let bodies = [
        Uplink::Alert(alert),
        Uplink::Windows(TrainingWindows {
            program: program(),
            windows: vec![window.clone(), window.clone()],
        }),
        Uplink::Alarmed(AlarmedWindow { program: program(), alerts: vec![1, 900], window }),
        Uplink::Event(event),
        Uplink::Answer(Answer { id: 7, unix_ms: 1, done: true, text: "well".into() }),
    ];
    let frames = bodies.into_iter().map(|body| bytes(&UplinkFrame { epoch: 7, seq: 300, body }));
    let heartbeat = Heartbeat { counters: vec![("uplink_connected".into(), 4)], ..Heartbeat::default() };
    let requests = [
        Request::Chunk { sha256: [7; 32], offset: 9, len: 100 },
        Request::Bundle(BundleReport { program: program(), generation: 4, refused: Some("old".into()) }),
        Request::Heartbeat(heartbeat),
        Request::Gone { epoch: 7, from: 1, to: 300 },
        Request::Part { order: 9, size: 4, offset: 1, data: vec![7, 8, 9] },
    ];
    frames.chain(requests.iter().map(bytes)).collect()
}

pub(crate) fn downlink() -> Vec<Vec<u8>> {
    let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).expect("a key");
    let order = |errand| {
        Downlink::Order(orders::sign("gw", &Order { id: 9, errand }, &key).expect("it is within the limits"))
    };
    let file =
        ProgramFile { version: "1.4.2".into(), arch: "aarch64".into(), sha256: [3; 32], size: 12 << 20 };
    let messages = [
        Downlink::Ack { epoch: 1, seq: 128 },
        Downlink::Offer(Offer { program: program(), generation: 3, sha256: [1; 32], size: 1 << 20 }),
        Downlink::Chunk { sha256: [1; 32], offset: 7, data: vec![1, 2, 3] },
        Downlink::Release { containment: 9 },
        Downlink::TakeBack { program: program(), generation: 3 },
        Downlink::Kept { order: 9, next: Some(4) },
        order(Errand::Doctor),
        order(Errand::LogLevel { level: LogLevel::Debug, for_s: 60 }),
        order(Errand::Quarantine { for_s: 60 }),
        order(Errand::EndQuarantine),
        order(Errand::Processes),
        order(Errand::Process { pid: 300 }),
        order(Errand::Update(file.sign(&key))),
        order(Errand::EndUpdate),
        order(Errand::Record { for_s: 60, bytes_max: 1 << 20 }),
        order(Errand::Relearn { program: program() }),
        order(Errand::Configure { version: 3, text: "window = \"9s\"".into() }),
    ];
    messages.iter().map(bytes).collect()
}

static SEALED: LazyLock<(Vec<u8>, Keyring)> = LazyLock::new(|| {
    let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).expect("a key");
    let parts = vec![("vae.onnx".to_owned(), vec![7; 200]), ("grams.bin".to_owned(), vec![9; 50])];
    let raw = bundle::seal(Manifest::new(program(), 3, 0..u64::MAX), parts, &key);
    (raw, Keyring([key.public()].into_iter().collect()))
});

/// Whose bundle [`BUNDLE`] is.
pub(crate) static BUNDLE_KEYS: LazyLock<Keyring> = LazyLock::new(|| SEALED.1.clone());

/// The only bundle that is signed.
pub(crate) static BUNDLE: LazyLock<Verified> =
    LazyLock::new(|| bundle::open(&SEALED.0, &SEALED.1).expect("it is signed"));

pub(crate) fn bundles() -> Vec<Vec<u8>> {
    vec![SEALED.0.clone()]
}

/// A small baseline with everything in it.
static TRAINED: LazyLock<Verified> = LazyLock::new(|| {
    let window = |at: usize| TrainingWindow {
        unix_ms: at as u64 * 1000,
        run: 1,
        vector: vec![(3, 0.1 + (at % 7) as f32 / 10.0), (9, 0.5)],
        traits: vec![at as u64 % 5],
        grams: vec![(at as u64 % 11, 3), (20, 1)],
    };
    let windows: Vec<_> = (0..2 * WINDOWS_MIN).map(window).collect();
    let options = TrainOptions { vae_steps: 100, lstm_steps: 10, ..TrainOptions::default() };
    let trained = train::fit(&windows, &options, &mut |_| {}).expect("there are enough windows");
    let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).expect("a key");
    let raw = trained.seal(program(), 1, 0..u64::MAX, &key);
    bundle::open(&raw, &Keyring([key.public()].into_iter().collect())).expect("it is signed")
});

pub(crate) fn bundle_parts() -> Vec<Vec<u8>> {
    ["prototypes.bin", "grams.bin"].iter().filter_map(|part| TRAINED.part(part)).map(<[u8]>::to_vec).collect()
}

pub(crate) fn onnx() -> Vec<Vec<u8>> {
    TRAINED.part("vae.onnx").map(<[u8]>::to_vec).into_iter().collect()
}

pub(crate) fn configuration() -> Vec<Vec<u8>> {
    let texts = [
        config::template(),
        "window = \"5s\"\n[alerts]\nthresholds = [40, 70, 90]\nper_minute = 3\n[kernel]\ntraces = [\"/srv/log\"]\n".into(),
        "[[sink]]\nkind = \"webhook\"\nurl = \"https://a.example/x\"\n[[contain]]\nprogram = \"*\"\naction = \"stop\"\n".into(),
        "mqtt = \"0.0.0.0:8883\"\nretain_days = 30\n[store]\npostgres = \"postgres://a:b@c/d\"\n[broker]\nexternal = \"mqtts://h:1\"\n"
            .into(),
    ];
    texts.into_iter().map(String::into_bytes).collect()
}

pub(crate) fn control_socket() -> Vec<Vec<u8>> {
    [
        json!({ "command": "status" }),
        json!({ "command": "explain", "alert": "7", "pid": null }),
        json!({ "command": "explain", "pid": 7 }),
        json!({ "command": "whitelist_add", "wanted": { "program": "*", "name": "first_sensitive_file", "why": "w" } }),
        json!({ "command": "whitelist_remove", "id": 3 }),
        json!({ "command": "release", "id": 3 }),
    ]
    .iter()
    .map(|request| request.to_string().into_bytes())
    .collect()
}

pub(crate) fn mqtt() -> Vec<Vec<u8>> {
    let connect = b"\x10\x18\x00\x04MQTT\x04\xc2\x00\x14\x00\x02gw\x00\x02me\x00\x02pw".to_vec();
    let subscribe = b"\x82\x11\x00\x01\x00\x0cbg/v1/gw/dow\x01".to_vec();
    vec![
        connect,
        subscribe,
        codec::publish("bg/v1/gw/up", Some(7), b"payload"),
        codec::publish("bg-feed/v1/alert/json/g/d/HIGH", None, b""),
        codec::puback(7),
        b"bg/v1/gw/up".to_vec(),
        b"bg-feed/v1/alert/+/#".to_vec(),
        b"\xc0\x00".to_vec(),
        b"\xe0\x00".to_vec(),
    ]
}

pub(crate) fn api_bodies() -> Vec<Vec<u8>> {
    [
        json!({ "device": "gw", "exe": "/usr/*", "unit": "*", "technique": "T1003", "max_score": 90.5, "group": "g" }),
        json!({ "url": "https://h/x", "format": "json", "severity": "HIGH", "matcher": {}, "per_minute": 20.0 }),
        json!({ "url": "smtps://h", "format": "mail", "severity": "HIGH", "per_minute": 1,
                "mail": { "from": "a@b", "to": ["c@d"], "user": "u", "password": "p" } }),
        json!({ "canary_percent": 10, "wait_s": 60, "alerts_per_device": 1.0, "unwell_percent": 20 }),
    ]
    .iter()
    .map(|body| body.to_string().into_bytes())
    .collect()
}

pub(crate) fn enrolment() -> Vec<Vec<u8>> {
    let token = Token { v: 1, url: "https://h:1".into(), secret: "s".repeat(43), ca_pem: "pem".into() };
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(rcgen::DnType::CommonName, "gw-1");
    let certificate = params.self_signed(&key).expect("it signs itself");
    vec![token.encode().into_bytes(), certificate.der().to_vec(), b"gw-1".to_vec()]
}
