//! A fleet whose devices are behind a broker of others.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use models::feed::{self, FeedAlert};
use models::wire;
use rumqttc::{Packet, QoS};
use tests::broker::{Broker, Kind};
use tests::fleet::Fleet;
use tests::story::Story;
use tests::{free_port, wait_for};

use crate::device::{Device, alert, enroll};

const WINDOWS: u32 = 40;

/// Waits until the server has come to its broker so often.
fn at_broker(fleet: &Fleet, times: u64) {
    wait_for("the server at its broker", Duration::from_secs(20), || {
        Ok((fleet.counter("broker_connected")? == times).then_some(()))
    })
    .unwrap();
}

#[test]
fn an_agent_behind_mosquitto_learns_and_alarms_once_although_broker_and_server_are_killed() {
    crate::needs_root();
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::new(Kind::Mosquitto, &dir.path().join("broker")).unwrap();
    let mut story = Story::start_with(dir.path(), WINDOWS, "", &broker.config()).unwrap();
    broker.start(&story.fleet).unwrap();
    story.learn(WINDOWS, |_| {}).unwrap_or_else(|error| panic!("{error}\n{}", story.agent.log()));
    assert_eq!(story.fleet.get("health").unwrap()["devices_online"], 1);
    broker.kill().unwrap();
    story.gateway.attack().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    broker.restart().unwrap();
    story.delivered().unwrap_or_else(|error| panic!("{error}\n{}", story.agent.log()));
    // While the server is away the broker takes messages that nobody listens for: the agent sends them again.
    story
        .attack_during_outage(Duration::from_secs(1))
        .unwrap_or_else(|error| panic!("{error}\n{}", story.agent.log()));
    assert_eq!(story.fleet.counter("broker_overflow").unwrap(), 0);
    story.stop().unwrap();
}

#[test]
fn mosquitto_keeps_devices_apart_and_tells_a_listener_with_a_password() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::new(Kind::Mosquitto, &dir.path().join("broker")).unwrap();
    let fleet = Fleet::start_with(&dir.path().join("fleet"), 1000, &broker.config()).unwrap();
    broker.start(&fleet).unwrap();
    at_broker(&fleet, 1);
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let (other_identity, other_tls) = enroll(dir.path(), &fleet, "gw-b");
    let device = Device::connect(&identity, tls.clone());
    device.welcome().unwrap();
    device.listen();
    let other = Device::connect(&other_identity, other_tls.clone());
    other.welcome().unwrap();
    for filter in ["bg/v1/gw-a/down", "bg/v1/gw-a/up", "#"] {
        other.client.subscribe(filter, QoS::AtLeastOnce).unwrap();
    }
    other.publish_as("gw-a", &alert(1, "a lie"));
    device.publish_as("gw-a", &alert(1, "the truth"));
    device.acknowledged(1).unwrap();
    let alerts = fleet.alerts("gw-a").unwrap();
    assert!(alerts.len() == 1 && alerts[0]["summary"] == "the truth", "{alerts:?}");
    other.publish_as("gw-b", &alert(1, "its own"));
    wait_for("the other's own alert", Duration::from_secs(10), || {
        Ok(fleet.alerts("gw-b").ok().filter(|all| !all.is_empty()))
    })
    .unwrap();

    // As docs/mqtt.md says: programs of others get a listener of their own, with passwords instead of certificates.
    broker.kill().unwrap();
    let port = free_port().unwrap();
    let at = broker.dir().display().to_string();
    let passwords = format!("{at}/passwords");
    let made = Command::new("mosquitto_passwd").args(["-b", "-c", &passwords, "siem", "a secret"]).status();
    assert!(made.unwrap().success());
    broker
        .add(
            "mosquitto.conf",
            &format!("listener {port}\ncafile {at}/ca.pem\ncertfile {at}/broker.pem\nkeyfile {at}/broker.key\npassword_file {passwords}\n"),
        )
        .unwrap();
    broker.add("mosquitto.acl", "user siem\ntopic read bg-feed/v1/#\n").unwrap();
    broker.restart().unwrap();
    // The listener that devices use is there before this one.
    wait_for("the listener for others", Duration::from_secs(10), || {
        Ok(TcpStream::connect(("127.0.0.1", port)).ok())
    })
    .unwrap();
    let mut login = identity.clone();
    (login.device, login.port) = ("siem".into(), port);
    let siem = Device::connect_as(&login, tls.clone(), Some(("siem", "a secret")));
    siem.welcome().unwrap();
    siem.client.subscribe("bg-feed/v1/alert/#", QoS::AtLeastOnce).unwrap();
    siem.next(|packet| matches!(packet, Packet::SubAck(_)).then_some(())).unwrap();
    let revoked_tls = tls.clone();
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    device.listen();
    at_broker(&fleet, 2);
    device.publish_as("gw-a", &alert(2, "for others"));
    let (topic, told) = siem
        .next(|packet| match packet {
            Packet::Publish(publish) => {
                Some((publish.topic, wire::decode::<FeedAlert>(&publish.payload).unwrap()))
            }
            _ => None,
        })
        .unwrap();
    assert_eq!(topic, feed::topic(feed::Kind::Alert, "default", "gw-a", "critical"));
    assert_eq!((told.device.as_str(), told.alert.summary.as_str()), ("gw-a", "for others"));

    // Nothing of a revoked device is taken any more, although the broker lets it stay.
    fleet.command(&["device", "revoke", "gw-a"]).unwrap();
    device.publish_as("gw-a", &alert(3, "too late"));
    wait_for("the refusal", Duration::from_secs(10), || {
        Ok((fleet.counter("mqtt_not_enrolled")? == 1).then_some(()))
    })
    .unwrap();
    assert_eq!(fleet.alerts("gw-a").unwrap().len(), 2);

    // With the list of the revoked the broker turns it away itself, and nobody else.
    let (status, list) = fleet.file("crl.pem").unwrap();
    assert_eq!(status, 200);
    std::fs::write(broker.dir().join("crl.pem"), list).unwrap();
    let config = broker.dir().join("mosquitto.conf");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("# crlfile"));
    std::fs::write(&config, text.replace("# crlfile", "crlfile")).unwrap();
    broker.kill().unwrap();
    broker.restart().unwrap();
    assert!(Device::connect(&identity, revoked_tls).welcome().is_err());
    Device::connect(&other_identity, other_tls).welcome().unwrap();
}

#[test]
fn behind_nats_every_alert_is_stored_once_although_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::new(Kind::Nats, &dir.path().join("broker")).unwrap();
    let fleet = Fleet::start_with(&dir.path().join("fleet"), 1000, &broker.config()).unwrap();
    broker.start(&fleet).unwrap();
    at_broker(&fleet, 1);
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let device = Device::connect(&identity, tls.clone());
    device.welcome().unwrap();
    device.listen();
    for seq in 1..=100 {
        device.publish_as("gw-a", &alert(seq, "one of many"));
    }
    device.acknowledged(100).unwrap();
    broker.kill().unwrap();
    broker.restart().unwrap();
    at_broker(&fleet, 2);
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    device.listen();
    for seq in 50..=150 {
        device.publish_as("gw-a", &alert(seq, "one of many"));
    }
    device.acknowledged(150).unwrap();
    assert_eq!(fleet.alerts("gw-a").unwrap().len(), 150);
    assert_eq!(fleet.get("health").unwrap()["devices_online"], 1);
}
