//! Bundles that a fleet server should never offer, put into its database and offered by it all the same.

use std::time::Duration;

use models::bundle::{self, Keyring, Manifest, PublicKey, SigningKey};
use rusqlite::{Connection, params};
use serde_json::json;
use tests::story::Story;
use tests::wait_for;

/// As in `models::bundle`: manifest, signatures, parts.
type Envelope = (Vec<u8>, Vec<([u8; 8], Vec<u8>)>, Vec<Vec<u8>>);

pub(crate) fn bad_ones_are_refused_and_the_next_good_one_is_used(story: &mut Story) {
    let good: Vec<u8> = database(story)
        .query_row("SELECT body FROM bundles WHERE generation = 1", [], |row| row.get(0))
        .unwrap();
    let envelope = || -> Envelope { postcard::from_bytes(&good[4..]).unwrap() };
    let sealed = |envelope: &Envelope| [b"BGB1".to_vec(), postcard::to_stdvec(envelope).unwrap()].concat();

    let mut part = good.clone();
    *part.last_mut().unwrap() ^= 1;
    let mut manifest = envelope();
    manifest.0[0] ^= 1;
    let mut unsigned = envelope();
    unsigned.1.clear();
    let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
    for (bad, reason) in [
        (part, "was changed after the bundle was signed"),
        (sealed(&manifest), "the manifest was changed after it was signed"),
        (sealed(&unsigned), "the bundle is not signed"),
        (signed_by(&key, story, &good), "which this device does not trust"),
        (good.clone(), "generation 1 is not newer than 1, which is active"),
    ] {
        story.fleet.kill().unwrap();
        offer(story, &bad);
        story.fleet.restart().unwrap();
        let row = wait_for(reason, Duration::from_secs(60), || {
            story.agent.check()?;
            let row = story.fleet.get("training")?["training"][0].clone();
            Ok(row["refused"].as_str().is_some_and(|refused| refused.contains(reason)).then_some(row))
        });
        row.unwrap();
        let program = story.agent.status().unwrap()["heartbeat"]["programs"][0].clone();
        assert_eq!((&program["state"], &program["generation"]), (&json!("ACTIVE"), &json!(1)), "{reason}");
    }

    let key = story.fleet.get("training").unwrap()["training"][0]["program"]["key"].clone();
    let asked = story.fleet.post("training", &json!({ "device": tests::story::DEVICE, "program_key": key }));
    assert_eq!(asked.unwrap().0, 202);
    wait_for("the next generation", Duration::from_secs(240), || {
        story.agent.check()?;
        Ok((story.agent.status()?["heartbeat"]["programs"][0]["generation"] == 3).then_some(()))
    })
    .unwrap();
}

/// A new one whose calibration promises far too much alarms with every window: the one before comes back by itself, and the
/// fleet is told.
pub(crate) fn one_far_above_its_promise_is_taken_back(story: &mut Story) {
    let active = story.agent.status().unwrap()["heartbeat"]["programs"][0]["generation"].as_u64().unwrap();
    let newest = "SELECT generation, body FROM bundles ORDER BY generation DESC LIMIT 1";
    let newest = database(story).query_row(newest, [], |row| Ok((row.get(0)?, row.get(1)?)));
    let (last, good): (u32, Vec<u8>) = newest.unwrap();
    let bad = last + 1;
    let pkcs8 = std::fs::read(story.fleet.state().join("bundle.key")).unwrap();
    let key = SigningKey::from_pkcs8(&pkcs8).unwrap();
    let bundle = bundle::open(&good, &Keyring([key.public()].into_iter().collect())).unwrap();
    let mut manifest = Manifest { generation: bad.into(), ..bundle.manifest().clone() };
    manifest.calibration.fused.fill(-1000.0);
    let parts =
        manifest.parts.iter().map(|part| (part.name.clone(), bundle.part(&part.name).unwrap().to_vec()));
    let bytes = bundle::seal(manifest.clone(), parts.collect(), &key);
    story.fleet.kill().unwrap();
    let size = u32::try_from(bytes.len()).unwrap();
    let database = database(story);
    let row = params![bad, bundle::sha256(&bytes), size, bytes, last];
    let insert =
        "INSERT INTO bundles SELECT device, key, ?, ?, ?, created_ms, ? FROM bundles WHERE generation = ?";
    assert_eq!(database.execute(insert, row).unwrap(), 1);
    database.execute("UPDATE programs SET generation = ?, refused = NULL", [bad]).unwrap();
    drop(database);
    story.fleet.restart().unwrap();
    let back = wait_for("the way back", Duration::from_secs(240), || {
        story.agent.check()?;
        let events = story.fleet.events(tests::story::DEVICE).unwrap_or_default();
        Ok(events.into_iter().find(|event| event["kind"] == "baseline_rolled_back"))
    });
    let back = back.unwrap_or_else(|error| panic!("{error}\n{}", story.agent.log()));
    let text = back["text"].as_str().unwrap();
    assert!(text.contains(&format!("generation {bad} was taken back, {active} is active")), "{text}");
    let program = story.agent.status().unwrap()["heartbeat"]["programs"][0].clone();
    assert_eq!((&program["state"], &program["generation"]), (&json!("ACTIVE"), &json!(active)));
    wait_for("the fleet's reason", Duration::from_secs(20), || {
        let row = story.fleet.get("training")?["training"][0].clone();
        Ok(row["refused"].as_str().filter(|why| why.contains("far above its promise")).map(drop))
    })
    .unwrap();
}

fn database(story: &Story) -> Connection {
    Connection::open(story.fleet.state().join("fleet.db")).unwrap()
}

/// Makes `bytes` what the stopped server offers next, as generation 2.
fn offer(story: &Story, bytes: &[u8]) {
    let database = database(story);
    let size = u32::try_from(bytes.len()).unwrap();
    let row = params![bundle::sha256(bytes), size, bytes];
    database.execute("UPDATE bundles SET generation = 2, sha256 = ?, size = ?, body = ?", row).unwrap();
    database.execute("UPDATE programs SET generation = 2, refused = NULL", []).unwrap();
}

/// The good bundle's contents as generation 2, signed by a stranger.
fn signed_by(key: &SigningKey, story: &Story, good: &[u8]) -> Vec<u8> {
    let identity = agent::enroll::Identity::load(&story.agent.state()).unwrap();
    let trusted: Keyring = identity.keyring().unwrap();
    assert_ne!(trusted.0[0], PublicKey(key.public().0));
    let bundle = bundle::open(good, &trusted).unwrap();
    let manifest = Manifest { generation: 2, ..bundle.manifest().clone() };
    let parts =
        manifest.parts.iter().map(|part| (part.name.clone(), bundle.part(&part.name).unwrap().to_vec()));
    bundle::seal(manifest.clone(), parts.collect(), key)
}
