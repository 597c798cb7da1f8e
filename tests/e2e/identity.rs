//! How a device gets its identity, keeps it, and loses it.

use std::path::Path;
use std::process::Command;

use rumqttc::Packet;
use tests::fleet::Fleet;
use tests::process::binary;

use crate::device::{Device, alert, enroll};

/// Runs `behaveguard enroll` with a token, in a state folder of this name.
fn enroll_with(dir: &Path, token: &str, device: &str, folder: &str) -> (bool, String) {
    let file = dir.join("token");
    std::fs::write(&file, token).unwrap();
    let mut command = Command::new(binary("behaveguard").unwrap());
    command.args(["enroll", "--device", device, "--token"]).arg(&file);
    let output = command.arg("--state").arg(dir.join(folder)).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_token_for_a_device_is_good_once_and_for_that_device_only() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let token = fleet.enrolment_token("gw-a").unwrap();
    let (done, why) = enroll_with(dir.path(), &token, "gw-b", "b");
    assert!(!done && why.contains("no such token for this device"), "{why}");
    let (done, why) = enroll_with(dir.path(), &token, "gw-a", "a");
    assert!(done, "{why}");
    let (done, why) = enroll_with(dir.path(), &token, "gw-a", "again");
    assert!(!done && why.contains("the token is used up"), "{why}");
    assert!(why.contains("make a new token"), "{why}");
}

#[test]
fn a_token_for_a_group_enrols_as_many_as_it_says_and_replaces_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let token =
        fleet.command(&["token", "create", "--group", "pumps", "--uses", "2", "--expires", "24h"]).unwrap();
    let try_as = |device: &str, folder: &str| enroll_with(dir.path(), &token, device, folder);
    assert!(try_as("gw-a", "a").0);
    let (done, why) = try_as("gw-a", "stranger");
    assert!(!done && why.contains("there is a device of this name") && why.contains("--device"), "{why}");
    assert!(try_as("gw-b", "b").0);
    let (done, why) = try_as("gw-c", "c");
    assert!(!done && why.contains("the token is used up"), "{why}");
    let devices = fleet.get("devices").unwrap();
    let groups: Vec<_> = devices["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|device| device["group"].as_str().unwrap())
        .collect();
    assert_eq!(groups, ["pumps", "pumps"]);
    let listed = fleet.command(&["token", "list"]).unwrap();
    assert!(listed.contains("group pumps") && listed.contains("2 of 2 used"), "{listed}");
    // A deleted one is worth nothing, whatever was left of it.
    let token = fleet.command(&["token", "create", "--uses", "9"]).unwrap();
    let listed = fleet.command(&["token", "list"]).unwrap();
    let id = listed.lines().find(|line| line.contains("0 of 9")).unwrap().split(' ').next().unwrap();
    fleet.command(&["token", "delete", id]).unwrap();
    let (done, why) = enroll_with(dir.path(), &token, "gw-c", "c");
    assert!(!done && why.contains("no such token"), "{why}");
}

#[test]
fn an_enrolment_whose_answer_was_lost_is_repeated_with_the_same_token() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let token = fleet.enrolment_token("gw-a").unwrap();
    assert!(enroll_with(dir.path(), &token, "gw-a", "a").0);
    // As after a crash between the answer and the writing: the key of the enrolment is there, and no identity.
    let state = dir.path().join("a");
    std::fs::rename(state.join("device.key"), state.join("enrol.key")).unwrap();
    std::fs::remove_file(state.join("identity.json")).unwrap();
    let (done, why) = enroll_with(dir.path(), &token, "gw-a", "a");
    assert!(done, "{why}");
    assert!(!state.join("enrol.key").exists());
}

#[test]
fn a_revoked_device_is_cut_off_at_once_and_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let mut other = {
        let (identity, tls) = enroll(dir.path(), &fleet, "gw-b");
        Device::connect(&identity, tls)
    };
    other.welcome().unwrap();
    let device = Device::connect(&identity, tls.clone());
    device.welcome().unwrap();
    device.publish_as("gw-a", &alert(1, "before"));
    device.next(|packet| matches!(packet, Packet::PubAck(_)).then_some(())).unwrap();

    // By a command beside the server, which knows nothing of it until the next packet comes.
    fleet.command(&["device", "revoke", "gw-a"]).unwrap();
    device.publish_as("gw-a", &alert(2, "after"));
    let ended = device.next(|packet| matches!(packet, Packet::PubAck(_)).then_some(()));
    assert!(ended.is_err(), "a message of a revoked device was acknowledged");
    assert_eq!(fleet.alerts("gw-a").unwrap().len(), 1);
    assert!(Device::connect(&identity, tls).welcome().is_err(), "a revoked device was welcome");
    assert_eq!(fleet.get("devices/gw-a").unwrap()["state"], "revoked");

    // By the API: without any packet.
    let (status, _) = fleet.send("POST", "devices/gw-b/revoke", None, &fleet.token().unwrap()).unwrap();
    assert_eq!(status, 204);
    let ended = other.next(|packet| matches!(packet, Packet::PubAck(_)).then_some(()));
    assert!(ended.is_err());

    // A key that was revoked is not renewed; a token for that device makes it one again.
    let mut revoked = identity;
    let error = revoked.renew(&dir.path().join("gw-a/state")).unwrap_err().to_string();
    assert!(error.contains("the device was revoked") && error.contains("token create"), "{error}");
    let (identity, tls) = enroll(&dir.path().join("new"), &fleet, "gw-a");
    other = Device::connect(&identity, tls);
    other.welcome().unwrap();
}

#[test]
fn who_does_not_hold_the_devices_key_cannot_renew_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (mut identity, _) = enroll(dir.path(), &fleet, "gw-a");
    let (mut stranger, _) = enroll(dir.path(), &fleet, "gw-b");
    let state = |name: &str| dir.path().join(name).join("state");
    identity.renew(&state("gw-a")).unwrap();
    stranger.device = "gw-a".into();
    let error = stranger.renew(&state("gw-b")).unwrap_err().to_string();
    assert!(error.contains("no device of this name is enrolled with this key"), "{error}");
    Device::connect(&identity, identity.tls(&state("gw-a")).unwrap()).welcome().unwrap();
    assert_eq!((fleet.counter("renewed").unwrap(), fleet.counter("renew_refused").unwrap()), (1, 1));
}

#[test]
fn a_server_that_was_only_prepared_makes_tokens_for_an_address_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("fleet").to_string_lossy().into_owned();
    let run = |arguments: &[&str]| {
        let output = Command::new(binary("behaveguard-fleet").unwrap()).args(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), text.concat())
    };
    let (code, text) = run(&["token", "create", "--state", &state]);
    assert!(code == Some(1) && text.contains("start it, or give --url"), "{text}");
    let nowhere = dir.path().join("file/fleet").to_string_lossy().into_owned();
    std::fs::write(dir.path().join("file"), "").unwrap();
    for command in [&["init"][..], &["user", "list"]] {
        let (code, text) = run(&[command, &["--state", &nowhere]].concat());
        assert!(code == Some(1) && text.contains(&nowhere) && text.contains("Not a directory"), "{text}");
    }
    let (code, text) = run(&["init", "--state", &state]);
    assert!(code == Some(0) && text.contains("SHA-256 of ca.pem"), "{text}");
    let (code, text) = run(&["token", "create", "--state", &state, "--url", "http://fleet"]);
    assert!(code == Some(1) && text.contains("must be like https://"), "{text}");
    let (code, text) = run(&["token", "create", "--state", &state, "--url", "https://fleet.example:8443"]);
    assert_eq!(code, Some(0), "{text}");
    let token = fleet_server::enrolment::Token::decode(&text).unwrap();
    assert_eq!(token.url, "https://fleet.example:8443");
    let (code, text) = run(&["token", "create", "--state", &state, "--uses", "0"]);
    assert_eq!(code, Some(64), "{text}");
    let (code, text) = run(&["device", "revoke", "--state", &state, "gw-a"]);
    assert!(code == Some(1) && text.contains("there is no device gw-a"), "{text}");
}
