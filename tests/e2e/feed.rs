//! Programs of others listen over MQTT with a user's token: what they are told, and what they may not do.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use agent::enroll::Identity;
use models::feed::{FeedAlert, FeedEvent};
use models::wire;
use rumqttc::{Packet, QoS, SubscribeReasonCode};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tests::fleet::Fleet;
use tests::process::{Process, binary};
use tests::wait_for;

use crate::device::{Device, alert, enroll};

/// TLS that trusts the fleet and shows no certificate.
fn listener_tls(fleet: &Fleet) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(fleet.state().join("ca.pem")).unwrap()).unwrap();
    ClientConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn listen(fleet: &Fleet, of: &Identity, user: &str, token: &str) -> Device {
    let identity = Identity { device: format!("{user}-client"), ..of.clone() };
    Device::connect_as(&identity, listener_tls(fleet), Some((user, token)))
}

/// Whether a filter is granted.
fn subscribe(listener: &Device, filter: &str) -> bool {
    listener.client.subscribe(filter, QoS::AtLeastOnce).unwrap();
    let granted = listener.next(|packet| match packet {
        Packet::SubAck(ack) => Some(!matches!(ack.return_codes[0], SubscribeReasonCode::Failure)),
        _ => None,
    });
    granted.unwrap()
}

fn told(listener: &Device) -> (String, Vec<u8>) {
    listener
        .next(|packet| match packet {
            Packet::Publish(publish) => Some((publish.topic, publish.payload.to_vec())),
            _ => None,
        })
        .unwrap()
}

fn tell(device: &Device, seq: u64, text: &str) {
    device.publish_as(&device.name, &alert(seq, text));
    device.next(|packet| matches!(packet, Packet::PubAck(_)).then_some(())).unwrap();
}

#[test]
fn a_listener_is_told_of_alerts_and_events_and_may_do_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    fleet.command(&["device", "group", "gw-a", "pumps"]).unwrap();
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    let token = fleet.command(&["user", "add", "siem"]).unwrap();

    for (user, secret) in [("siem", "guess"), ("other", &token), ("siem", "")] {
        assert!(
            listen(&fleet, &identity, user, secret).welcome().is_err(),
            "{user} with {secret:?} was welcome"
        );
    }
    let listener = listen(&fleet, &identity, "siem", &token);
    listener.welcome().unwrap();
    for refused in ["#", "bg/v1/gw-a/down", "bg/v1/+/up", "$SYS/#", "bg-feed/#"] {
        assert!(!subscribe(&listener, refused), "{refused}");
    }
    assert!(subscribe(&listener, "bg-feed/v1/alert/pumps/+/critical"));
    tell(&device, 1, "opened /etc/shadow");
    let (topic, message) = told(&listener);
    assert_eq!(topic, "bg-feed/v1/alert/pumps/gw-a/critical");
    let first: FeedAlert = wire::decode(&message).unwrap();
    assert_eq!((first.id, first.group.as_str(), first.alert.pid), (1, "pumps", 7));
    assert!(subscribe(&listener, "bg-feed/v1/alert-json/#"));
    assert!(subscribe(&listener, "bg-feed/v1/event/#"));
    tell(&device, 2, "started a shell");
    let two = [told(&listener), told(&listener)];
    assert_eq!(two[0].0, "bg-feed/v1/alert/pumps/gw-a/critical");
    let json: Value = serde_json::from_slice(&two[1].1).unwrap();
    let api = fleet.get("alerts?device=gw-a&limit=1").unwrap();
    assert_eq!(json, api["alerts"][0], "the same as the API gives");

    // What a rule hides is not told; a change by people is no new alert.
    let matcher = json!({ "exe": "/usr/bin/pump", "max_score": 99 });
    let rule = json!({ "matcher": matcher, "why": "test" });
    assert_eq!(fleet.post("suppressions", &rule).unwrap().0, 201);
    tell(&device, 3, "is hidden");
    let patch = json!({ "state": "resolved" });
    fleet.send("PATCH", "alerts/1", Some(&patch), &fleet.token().unwrap()).unwrap();
    let event = models::wire::DeviceEvent {
        unix_ms: 5,
        kind: models::wire::EventKind::Killed,
        program: None,
        containment: None,
        text: "it was killed".into(),
    };
    let frame = models::wire::UplinkFrame { epoch: 1, seq: 4, body: models::wire::Uplink::Event(event) };
    device.publish_as("gw-a", &frame);
    let (topic, message) = told(&listener);
    assert_eq!(topic, "bg-feed/v1/event/pumps/gw-a/killed", "nothing came between");
    let event: FeedEvent = wire::decode(&message).unwrap();
    assert_eq!((event.kind.as_str(), event.text.as_str()), ("killed", "it was killed"));

    // It may not say anything, and without its token it hears nothing more.
    let speaker = listen(&fleet, &identity, "siem", &token);
    speaker.welcome().unwrap();
    speaker.publish_as("gw-a", &alert(9, "a lie"));
    assert!(speaker.next(|packet| matches!(packet, Packet::PubAck(_)).then_some(())).is_err());
    assert_eq!(fleet.counter("forbidden_publish").unwrap(), 1);
    assert!(subscribe(&listener, "bg-feed/v1/event-json/#"));
    fleet.command(&["user", "remove", "siem"]).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    let frame = models::wire::UplinkFrame { seq: 5, ..frame };
    device.publish_as("gw-a", &frame);
    assert!(
        listener.next(|packet| matches!(packet, Packet::Publish(_)).then_some(())).is_err(),
        "it still listens"
    );
}

#[test]
fn the_documented_examples_print_an_alert_as_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    let token = fleet.command(&["user", "add", "siem"]).unwrap();
    let ca = fleet.state().join("ca.pem").to_string_lossy().into_owned();
    let port = identity.port.to_string();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/subscribe.py");
    let arguments = [identity.host.as_str(), &port, &ca, "siem", &token];
    let python = [&[script][..], &arguments].concat();
    let rust = binary("examples/subscribe").unwrap();
    let mut running = Vec::new();
    for (seq, program, arguments) in [(1, Path::new("/usr/bin/python3"), &python[..]), (2, &rust, &arguments)]
    {
        let log = dir.path().join(format!("{seq}.log"));
        let mut process = Process::start(program, arguments, &log, Stdio::null()).unwrap();
        let says = |process: &mut Process, words: &str| {
            wait_for(words, Duration::from_secs(20), || {
                process.check()?;
                Ok(std::fs::read_to_string(&log).unwrap_or_default().contains(words).then_some(()))
            })
            .unwrap();
        };
        says(&mut process, "listening");
        tell(&device, seq, "opened /etc/shadow");
        says(&mut process, &format!("{seq} gw-a CRITICAL opened /etc/shadow"));
        running.push(process);
    }
}
