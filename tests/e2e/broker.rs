//! Who may connect to the fleet's MQTT endpoint, who may say what, and what an acknowledgement is worth.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{Packet, QoS, SubscribeReasonCode};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tests::fleet::Fleet;
use tests::wait_for;

use crate::device::{Device, alert, enroll};

#[test]
fn a_device_that_publishes_as_another_is_cut_off_and_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    enroll(dir.path(), &fleet, "gw-b");
    let device = Device::connect(&identity, tls.clone());
    device.welcome().unwrap();
    device.publish_as("gw-b", &alert(1, "a lie"));
    let ended = device.next(|packet| matches!(packet, Packet::PubAck(_)).then_some(()));
    assert!(ended.is_err(), "a message under another's name was acknowledged");
    wait_for("the server's word", Duration::from_secs(20), || {
        Ok((fleet.counter("forbidden_publish")? == 1).then_some(()))
    })
    .unwrap();
    assert!(fleet.alerts("gw-b").unwrap().is_empty());

    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    device.publish_as("gw-a", &alert(1, "the truth"));
    device.next(|packet| matches!(packet, Packet::PubAck(_)).then_some(())).unwrap();
    assert_eq!(fleet.alerts("gw-a").unwrap().len(), 1);
}

#[test]
fn a_device_cannot_listen_to_another_or_to_all() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    for (filter, allowed) in
        [("bg/v1/gw-b/down", false), ("#", false), ("bg/v1/+/down", false), ("bg/v1/gw-a/down", true)]
    {
        device.client.subscribe(filter, QoS::AtLeastOnce).unwrap();
        let codes = device.next(|packet| match packet {
            Packet::SubAck(ack) => Some(ack.return_codes),
            _ => None,
        });
        let refused = codes.unwrap() == [SubscribeReasonCode::Failure];
        assert_eq!(refused, !allowed, "{filter}");
    }
}

#[test]
fn without_a_certificate_of_this_fleet_there_is_no_connection() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let other = Fleet::start(&dir.path().join("other"), 60).unwrap();
    let (identity, good) = enroll(dir.path(), &fleet, "gw-a");
    let (_, foreign) = enroll(&dir.path().join("foreign"), &other, "gw-a");

    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(fleet.state().join("ca.pem")).unwrap();
    roots.add(ca).unwrap();
    let builder = || {
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
    };
    let none = Device::connect(&identity, builder().with_no_client_auth()).welcome();
    assert!(none.is_err(), "a device without a certificate was welcome");
    // The foreign device trusts the foreign fleet only: it must also trust this one to get as far as its certificate.
    let foreign = builder().with_client_cert_resolver(foreign.client_auth_cert_resolver.clone());
    let foreign = Device::connect(&identity, foreign).welcome();
    assert!(foreign.is_err(), "a device of another fleet was welcome");
    Device::connect(&identity, good.clone()).welcome().unwrap();

    // Enrolled again, a device has a new certificate, and the old one is worth nothing.
    enroll(&dir.path().join("again"), &fleet, "gw-a");
    assert!(Device::connect(&identity, good).welcome().is_err(), "a replaced certificate was welcome");
    // That one, and the one that showed nothing at all.
    tests::wait_for("the count", Duration::from_secs(10), || {
        Ok((fleet.counter("mqtt_not_enrolled")? == 2).then_some(()))
    })
    .unwrap();
}

#[test]
fn what_was_acknowledged_survives_a_kill_and_is_kept_once() {
    const ALERTS: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    for round in 0..2 {
        let device = Device::connect(&identity, tls.clone());
        device.welcome().unwrap();
        device.listen();
        for seq in 1..=ALERTS {
            device.publish_as("gw-a", &alert(seq, "again"));
        }
        device.acknowledged(ALERTS).unwrap();
        fleet.kill().unwrap();
        fleet.restart().unwrap();
        assert_eq!(fleet.alerts("gw-a").unwrap().len() as u64, ALERTS, "round {round}");
    }
}

#[test]
fn silent_connections_do_not_keep_others_out() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let silent: Vec<_> =
        (0..100).map(|_| TcpStream::connect((identity.host.as_str(), identity.port)).unwrap()).collect();
    Device::connect(&identity, tls).welcome().unwrap();
    wait_for("the end of the silent ones", Duration::from_secs(30), || {
        Ok((fleet.counter("mqtt_handshake_failed")? >= silent.len() as u64).then_some(()))
    })
    .unwrap();
}
