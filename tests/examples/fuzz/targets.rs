//! Every reader of bytes that come from outside, as a function that must end well whatever it is given.
//!
//! Each gives a number for how the bytes were understood: inputs that are understood in a new way are kept and changed
//! further. What it promises beyond not failing it asserts.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::io::Cursor;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use agent::capture::Reader;
use agent::config::{Config, Overlay};
use agent::{control, probe, replay};
use fleet_server::enrolment::Token;
use fleet_server::ingest::Message;
use fleet_server::mqtt::codec;
use fleet_server::names::{DeviceId, GroupId};
use fleet_server::rollouts::Plan;
use fleet_server::store::{ChannelConfig, Matcher};
use fleet_server::updates::UpdatePlan;
use fleet_server::{pki, web};
use models::bundle::{self, Keyring, Manifest, SigningKey};
use models::detect::Detectors;
use models::orders::{self, Done};
use models::program::ProgramId;
use models::program_file;
use models::sequence::GramTable;
use models::wire::{self, Downlink, Errand, Leaf, Order, Request, SignedOrder, UplinkFrame};
use models::{feed, nearest::Prototypes};
use rustls::pki_types::CertificateDer;

use crate::seeds;

/// A reader.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// How the bytes were understood.
    pub(crate) run: fn(&[u8]) -> u64,
    /// Some that are good.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// What it knows.
    pub(crate) words: &'static [&'static [u8]],
}

/// All of them.
pub(crate) const TARGETS: [Target; 13] = [
    Target { name: "dns", run: dns, seeds: seeds::dns, words: &[] },
    Target { name: "kernel_records", run: kernel_records, seeds: seeds::kernel_records, words: &[] },
    Target { name: "captures", run: captures, seeds: seeds::captures, words: &[] },
    Target { name: "uplink", run: uplink, seeds: seeds::uplink, words: &[] },
    Target { name: "downlink", run: downlink, seeds: seeds::downlink, words: &[] },
    Target { name: "bundles", run: bundles, seeds: seeds::bundles, words: &[b"BGB1"] },
    Target { name: "bundle_parts", run: bundle_parts, seeds: seeds::bundle_parts, words: &[] },
    Target {
        name: "onnx",
        run: onnx,
        seeds: seeds::onnx,
        words: &[b"Gemm", b"MatMul", b"LSTM", b"Reshape", b"Constant"],
    },
    Target {
        name: "configuration",
        run: configuration,
        seeds: seeds::configuration,
        words: seeds::CONFIGURATION,
    },
    Target { name: "control_socket", run: control_socket, seeds: seeds::control_socket, words: seeds::JSON },
    Target {
        name: "mqtt",
        run: mqtt,
        seeds: seeds::mqtt,
        words: &[b"MQTT", b"bg/v1/", b"bg-feed/v1/", b"/up", b"+", b"#"],
    },
    Target { name: "api_bodies", run: api_bodies, seeds: seeds::api_bodies, words: seeds::JSON },
    Target { name: "enrolment", run: enrolment, seeds: seeds::enrolment, words: &[] },
];

fn class(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// How a message begins, without what it names.
fn told(error: &impl ToString) -> String {
    let is_named = |c: char| c.is_ascii_digit() || c == '`' || c == '"';
    error.to_string().chars().take_while(|c| !is_named(*c)).take(24).collect()
}

fn kernel_records(bytes: &[u8]) -> u64 {
    match probe::decode(bytes) {
        Ok(event) => class((0, std::mem::discriminant(&event.kind), event.comm.len())),
        Err(error) => class((1, told(&error))),
    }
}

/// An entry's checksum is made right: who writes a capture can do that too. What it says is judged as a capture is.
fn captures(bytes: &[u8]) -> u64 {
    let mut file = seeds::CAPTURE_MAGIC.to_vec();
    file.extend(seeds::capture_begin());
    let entries = bytes.chunks(4096).take(4);
    let n = entries.len() as u64;
    entries.for_each(|entry| file.extend(seeds::capture_entry(entry)));
    file.extend(seeds::capture_end(1 + n));
    let mut out = 0;
    let reader = Reader::of(Cursor::new(file), Path::new("capture")).expect("it begins as one");
    let done = replay::replay_from(reader, &[], &mut |_| out += 1);
    class((done.map(|summary| format!("{:?}", summary.counters)).map_err(|error| told(&error)), out))
}

fn uplink(bytes: &[u8]) -> u64 {
    let named = |leaf| match Message::read(leaf, bytes.to_vec()) {
        Message::Frame(frame) => {
            let again = wire::encode(&frame).expect("what was read can be written");
            assert_eq!(wire::decode::<UplinkFrame>(&again).ok().map(|frame| frame.seq), Some(frame.seq));
            class(("frame", std::mem::discriminant(&frame.body), again.len() / 16))
        }
        Message::Rejected(rejected) => class(("rejected", told(&rejected.reason), rejected.number.is_some())),
        Message::Gone { from, to, .. } => {
            assert!(from <= to && from > 0);
            class("gone")
        }
        Message::Chunk { len, .. } => {
            assert!(len as usize <= wire::CHUNK_MAX);
            class("chunk")
        }
        Message::Part(part) => {
            assert!(part.data.len() <= wire::CHUNK_MAX);
            class(("part", part.data.is_empty()))
        }
        Message::Heartbeat { links, .. } => class(("heartbeat", links > 0)),
        Message::Report(report) => class(("report", report.refused.is_some())),
    };
    class((named(Leaf::Up), named(Leaf::Req)))
}

static KEY: LazyLock<SigningKey> =
    LazyLock::new(|| SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).expect("a key"));
static KEYS: LazyLock<Keyring> = LazyLock::new(|| Keyring([KEY.public()].into_iter().collect()));

fn downlink(bytes: &[u8]) -> u64 {
    let message = match wire::decode::<Downlink>(bytes) {
        Ok(message) => message,
        Err(error) => return class(told(&error)),
    };
    let order = if let Downlink::Order(signed) = &message {
        // Whoever has no key cannot make one that is carried out; what one could hold is read all the same.
        assert!(orders::open("gw", signed, &KEYS, &Done::default()).is_err());
        let SignedOrder { order, .. } = signed;
        let order = wire::decode::<Order>(order).ok();
        if let Some(Order { errand: Errand::Update(signed), .. }) = &order {
            assert!(program_file::open(signed, &KEYS).is_err());
            let file = program_file::read(signed).map(|file| file.check()).map_err(|error| told(&error));
            return class(("update", file.is_ok(), file.err()));
        }
        order.map(|order| std::mem::discriminant(&order.errand))
    } else {
        None
    };
    class((std::mem::discriminant(&message), order))
}

fn bundles(bytes: &[u8]) -> u64 {
    match bundle::open(bytes, &seeds::BUNDLE_KEYS) {
        // Nothing opens but what was signed.
        Ok(verified) => {
            assert_eq!(verified.manifest(), seeds::BUNDLE.manifest());
            class("opened")
        }
        Err(error) => class(std::mem::discriminant(&error)),
    }
}

fn bundle_parts(bytes: &[u8]) -> u64 {
    let table = GramTable::from_bytes(bytes).map(|table| {
        assert!(table.entries().is_sorted_by(|a, b| a.0 < b.0));
        table.entries().len()
    });
    class((table, Prototypes::from_bytes(bytes).map(|prototypes| prototypes.len())))
}

/// Panics of the library that reads graphs, which end an agent twice at most; see `agent::trials`.
pub(crate) static GUARDED: AtomicU64 = AtomicU64::new(0);

/// A message to port 53, as a program gave it.
fn dns(bytes: &[u8]) -> u64 {
    let Some(question) = agent_ebpf::dns::question(bytes) else { return 0 };
    let (name, domain) = (question.name(), question.domain());
    assert!(name.ends_with(domain) && name.bytes().all(|byte| byte.is_ascii_graphic()), "{name}");
    assert!(
        question.entropy.is_finite() && question.entropy >= 0.0 && question.longest_label <= 63,
        "{name}"
    );
    class((name.len() / 16, domain.len() / 8, question.longest_label / 8, question.over_tcp))
}

/// A graph in a bundle that a stolen key signed: it loads or is refused, in bounded memory.
fn onnx(bytes: &[u8]) -> u64 {
    let program = ProgramId { unit: "u".into(), exe: "/e".into(), script: None };
    let manifest = Manifest::new(program, 1, 0..u64::MAX);
    let raw = bundle::seal(manifest, vec![("vae.onnx".into(), bytes.to_vec())], &KEY);
    let verified = bundle::open(&raw, &KEYS).expect("it is signed");
    match catch_unwind(|| Detectors::load(&verified)) {
        Ok(Ok(_)) => class("loaded"),
        Ok(Err(error)) => class(told(&error)),
        Err(_) => {
            GUARDED.fetch_add(1, Ordering::Relaxed);
            class("ended")
        }
    }
}

fn configuration(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    let overlay = Overlay { version: 1, text: text.clone().into_owned() };
    let alone = Config::parse(&text);
    let over = Config::read_with("", Some(&overlay), &[]);
    if let Ok(config) = &over {
        // Whatever a fleet says, files and programs are the device's own.
        let own = Config::default();
        assert_eq!((&config.state, &config.sinks, &config.contain), (&own.state, &own.sinks, &own.contain));
        assert_eq!((&config.quarantine, &config.redact), (&own.quarantine, &own.redact));
    }
    let fleet = fleet_server::config::Config::parse(&text);
    let names = |problems: &Vec<agent::config::Problem>| -> Vec<String> {
        problems.iter().map(|problem| problem.key.clone()).filter(|key| key.len() < 20).take(3).collect()
    };
    class((alone.as_ref().map_err(names).is_ok(), over.as_ref().map_err(names).err(), fleet.is_ok()))
}

fn control_socket(bytes: &[u8]) -> u64 {
    match serde_json::from_slice::<control::Request>(bytes) {
        Ok(request) => class(std::mem::discriminant(&request)),
        Err(error) => class(told(&error)),
    }
}

fn mqtt(bytes: &[u8]) -> u64 {
    let packet = match codec::read(bytes, 64 * 1024) {
        Ok(Some((packet, used))) => {
            assert!((2..=bytes.len()).contains(&used));
            let kind = class(std::mem::discriminant(&packet));
            if let codec::Packet::Publish { topic, qos, id, payload } = &packet {
                // What is written of it is read alike.
                let again = codec::publish(topic, (*qos > 0).then_some(*id), payload);
                let read = codec::read(&again, usize::MAX).ok().flatten();
                let topics = read.map(|(packet, _)| match packet {
                    codec::Packet::Publish { topic, .. } => topic,
                    _ => String::new(),
                });
                assert_eq!(topics.as_deref(), Some(&**topic));
            }
            kind
        }
        Ok(None) => 0,
        Err(error) => class(told(&error)),
    };
    let text = String::from_utf8_lossy(bytes);
    let device =
        wire::parse_topic(&text).map(|(name, leaf)| (DeviceId::parse(name).is_ok(), leaf == Leaf::Up));
    let is_filter = feed::is_filter(&text);
    // No filter of a listener reaches a device's topics.
    assert!(!is_filter || !feed::fits(&text, "bg/v1/gw/up"));
    class((packet, device, is_filter))
}

fn api_bodies(bytes: &[u8]) -> u64 {
    let told = |error: serde_json::Error| told(&error);
    class((
        web::read_body::<Matcher>(bytes).map(|matcher| matcher.is_narrow()).map_err(told),
        web::read_body::<ChannelConfig>(bytes).is_ok(),
        web::read_body::<Plan>(bytes).is_ok(),
        web::read_body::<UpdatePlan>(bytes).is_ok(),
    ))
}

fn enrolment(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    let certificate = CertificateDer::from(bytes);
    class((
        Token::decode(&text).is_ok(),
        DeviceId::parse(&text).is_ok(),
        GroupId::parse(&text).is_ok(),
        pki::device_of(&certificate).map_err(|error| told(&error)).ok(),
        pki::key_of(&certificate).is_ok(),
        wire::decode::<Request>(bytes).is_ok(),
    ))
}
