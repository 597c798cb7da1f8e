//! A signing key on a medium of its own: while it is taken away nobody is kept out, and what is to be signed waits.

use std::fs;
use std::time::Duration;

use models::bundle::SigningKey;
use serde_json::json;
use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::gateway::Gateway;
use tests::wait_for;

use crate::needs_root;

#[test]
fn what_is_to_be_signed_waits_while_the_key_is_away() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let (there, away) = (dir.path().join("fleet.key"), dir.path().join("away.key"));
    let config = format!("signing_key = {there:?}\n");
    let state = dir.path().join("fleet");
    fs::create_dir(&state).unwrap();
    let error = Fleet::start_with(&state, 40, &config).map(drop).unwrap_err().to_string();
    assert!(error.contains("bring it for the first start"), "{error}");
    fs::write(&there, SigningKey::generate_pkcs8()).unwrap();
    let mut fleet = Fleet::start_with(&state, 40, &config).unwrap();
    fleet.stop().unwrap();
    fs::rename(&there, &away).unwrap();
    fleet.restart().unwrap();
    assert!(!state.join("bundle.key").exists(), "no other key was made");

    let _gateway = Gateway::start(&dir.path().join("gateway")).unwrap();
    let watched = Gateway::executable(&dir.path().join("gateway"));
    let mut agent = Agent::enroll(&dir.path().join("gw"), &watched, &fleet, "gw").unwrap();
    agent.run().unwrap();
    let asked = json!({ "order": { "kind": "doctor" } });
    let (status, order) = fleet.post("devices/gw/orders", &asked).unwrap();
    assert_eq!(status, 202, "{order}");
    let order = format!("devices/gw/orders/{}", order["id"]);
    wait_for("enough windows", Duration::from_secs(120), || {
        Ok((fleet.windows_collected() >= Some(45)).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    assert_eq!(fleet.get(&order).unwrap()["state"], "waiting");
    assert_eq!(fleet.get("overview").unwrap()["signing_key"], "away");
    let program = &fleet.get("training").unwrap()["training"][0];
    assert_eq!((&program["generation"], &program["state"]), (&json!(0), &json!("collecting")), "{program}");

    // Who asks for it is told why not.
    let asked = json!({ "device": "gw", "program_key": program["program"]["key"] });
    let (status, refused) = fleet.post("training", &asked).unwrap();
    assert_eq!((status, &refused["detail"]), (503, &json!("the signing key is away")), "{refused}");

    fs::rename(&away, &there).unwrap();
    wait_for("the order's answer", Duration::from_secs(40), || {
        Ok((fleet.get(&order)?["state"] == "done").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    wait_for("a baseline", Duration::from_secs(240), || {
        Ok((agent.status()?["heartbeat"]["programs"][0]["state"] == "ACTIVE").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    assert_eq!(fleet.get("overview").unwrap()["signing_key"], "here");
    agent.stop().unwrap();
    fleet.stop().unwrap();
}
