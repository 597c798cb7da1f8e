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
    wait_for("the next generation", Duration::from_secs(120), || {
        story.agent.check()?;
        Ok((story.agent.status()?["heartbeat"]["programs"][0]["generation"] == 3).then_some(()))
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
