//! Baselines of a group: rolled out to a few first, taken back by the server itself when they are bad, and by hand.

use std::path::Path;
use std::time::Duration;

use models::bundle::{self, Keyring, Manifest, SigningKey};
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::browser::Browser;
use tests::fleet::Fleet;
use tests::gateway::Gateway;
use tests::wait_for;

use crate::dashboard::{check_accessibility, go, keep_picture};
use crate::needs_root;

/// Shortest that a stage may last.
const WAIT_S: u32 = 10;
/// Calibrated with this, a baseline alarms with every window: it promises far too much.
const ALWAYS: f32 = -1000.0;
/// With this it never does, whatever else the machine has to do meanwhile.
const NEVER: f32 = 1000.0;

/// Two gateways and, later, a third, all with the same program.
struct Group {
    fleet: Fleet,
    agents: Vec<Agent>,
    gateway: Gateway,
    key: String,
}

impl Group {
    /// The first program of a device's last heartbeat, as (state, generation).
    fn uses(&mut self, n: usize) -> (String, u64) {
        self.agents[n].check().unwrap();
        let Ok(status) = self.agents[n].status() else { return Default::default() };
        let program = &status["heartbeat"]["programs"][0];
        (
            program["state"].as_str().unwrap_or_default().to_owned(),
            program["generation"].as_u64().unwrap_or(0),
        )
    }

    fn wait_until_uses(&mut self, n: usize, state: &str, generation: u64) {
        let what = format!("{state} {generation} on device {n}");
        let reached = wait_for(&what, Duration::from_secs(300), || {
            Ok((self.uses(n) == (state.to_owned(), generation)).then_some(()))
        });
        reached.unwrap_or_else(|error| panic!("{error}: {:?}\n{}", self.uses(n), self.agents[n].log()));
    }

    /// Trains a baseline of the group; gives its id.
    fn train(&self, generation: u64) -> u64 {
        let asked = json!({ "group": "default", "program_key": self.key });
        assert_eq!(self.fleet.post("training", &asked).unwrap().0, 202);
        wait_for("the group's baseline", Duration::from_secs(240), || {
            let list = self.fleet.get("baselines")?;
            let failed = list["training"].to_string();
            assert!(!failed.contains("\"failed\""), "{failed}");
            let made =
                list["baselines"].as_array().unwrap().iter().find(|one| one["generation"] == generation);
            Ok(made.map(|one| one["id"].as_u64().unwrap()))
        })
        .unwrap()
    }

    fn roll_out(&self, baseline: u64) -> u64 {
        let plan = json!({ "canary_percent": 50, "wait_s": WAIT_S });
        let asked = json!({ "baseline": baseline, "plan": plan });
        let (status, begun) = self.fleet.post("rollouts", &asked).unwrap();
        assert_eq!(status, 201, "{begun}");
        begun["id"].as_u64().unwrap()
    }

    fn wait_for_stage(&mut self, id: u64, stage: &str) -> Value {
        let reached = wait_for(stage, Duration::from_secs(240), || {
            let page = self.fleet.get(&format!("rollouts/{id}"))?;
            Ok((page["rollout"]["stage"] == stage).then_some(page))
        });
        reached.unwrap_or_else(|error| panic!("{error}: {:?}", self.fleet.get(&format!("rollouts/{id}"))))
    }

    /// A request of the owner; gives its status.
    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> u16 {
        let token = self.fleet.token().unwrap();
        self.fleet.send(method, path, body, &token).unwrap().0
    }

    /// The audit log about rollouts, the oldest first, as (who, action).
    fn audit(&self) -> Vec<(String, String)> {
        let list = self.fleet.get("audit?limit=1000").unwrap();
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
        let entries = list["audit"].as_array().unwrap().iter().rev();
        let about = entries.filter(|entry| entry["action"].as_str().unwrap().starts_with("rollout."));
        about.map(|entry| (text(entry, "who"), text(entry, "action"))).collect()
    }
}

#[test]
fn a_bad_baseline_is_rolled_back_without_a_human_and_a_good_one_reaches_everyone() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 40).unwrap();
    let gateway = Gateway::start(&dir.path().join("gateway")).unwrap();
    let watched = Gateway::executable(&dir.path().join("gateway"));
    let join = |fleet: &Fleet, name: &str| {
        let mut agent = Agent::enroll(&dir.path().join(name), &watched, fleet, name).unwrap();
        agent.run().unwrap();
        agent
    };
    let agents = vec![join(&fleet, "gw-a"), join(&fleet, "gw-b")];
    let mut group = Group { fleet, agents, gateway, key: String::new() };
    for n in 0..2 {
        group.wait_until_uses(n, "ACTIVE", 1);
    }
    let training = group.fleet.get("training").unwrap();
    group.key = training["training"][0]["program"]["key"].as_str().unwrap().to_owned();

    let bad = group.train(2);
    recalibrate(&mut group.fleet, bad, ALWAYS);
    let id = group.roll_out(bad);
    let page = group.wait_for_stage(id, "rolled_back");
    let devices = page["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 1, "the other one never had it: {page}");
    let canary = usize::from(devices[0]["device"] == "gw-b");
    group.wait_until_uses(canary, "ACTIVE", 1);
    let told = wait_for("the device's word", Duration::from_secs(30), || {
        let page = group.fleet.get(&format!("rollouts/{id}"))?;
        Ok(page["devices"][0]["refused"].as_str().map(str::to_owned))
    });
    let told = told.unwrap();
    assert!(told.contains("generation 1 is active again"), "{told}");
    let who = format!("rollout {id}");
    let entry = |who: &str, action: &str| (who.to_owned(), action.to_owned());
    assert_eq!(group.audit(), [entry("owner", "rollout.begin"), entry(&who, "rollout.roll_back")]);
    assert_eq!(group.fleet.get("counters").unwrap()["counters"]["rollouts_rolled_back"], 1);
    let again = group.fleet.post("rollouts", &json!({ "baseline": bad })).unwrap();
    assert_eq!(again.0, 409, "{again:?}");

    shown(&group.fleet, dir.path(), id);

    // The next one is good. A device that is pinned keeps what it has; one that comes later gets what is rolled out.
    let good = group.train(3);
    recalibrate(&mut group.fleet, good, NEVER);
    let id = group.roll_out(good);
    group.wait_for_stage(id, "everyone");
    group.wait_for_stage(id, "done");
    for n in 0..2 {
        group.wait_until_uses(n, "ACTIVE", 3);
    }
    let third = join(&group.fleet, "gw-c");
    group.agents.push(third);
    group.wait_until_uses(2, "ACTIVE", 3);
    let rows = group.fleet.get("training").unwrap();
    let of_third = rows["training"].as_array().unwrap().iter().find(|row| row["device"] == "gw-c").unwrap();
    let collected = of_third["windows_collected"].as_u64().unwrap();
    assert!(collected < 30, "it need not learn first: {of_third}");
    assert_eq!(group.send("DELETE", &format!("baselines/{good}"), None), 409);

    // Taken back by hand while one device is away: it hears of it when it comes.
    group.agents[0].stop().unwrap();
    let work = json!({ "action": "roll_back" });
    assert_eq!(group.send("PATCH", &format!("rollouts/{id}"), Some(&work)), 204);
    group.wait_until_uses(1, "ACTIVE", 1);
    group.wait_until_uses(2, "LEARNING", 0);
    group.agents[0].run().unwrap();
    group.wait_until_uses(0, "ACTIVE", 1);
    let events = group.fleet.events("gw-c").unwrap();
    let event = events.iter().find(|event| event["kind"] == "baseline_rolled_back").unwrap();
    assert!(event["text"].as_str().unwrap().contains("the program is learned anew"), "{event}");
    assert_eq!(group.send("DELETE", &format!("baselines/{good}"), None), 204);
    assert_eq!(group.audit().last().unwrap(), &entry("owner", "rollout.roll_back"));
    group.gateway.check().unwrap();
}

/// The dashboard says what happened, and why.
fn shown(fleet: &Fleet, dir: &Path, id: u64) {
    let browser = Browser::start(&dir.join("browser"), 1280, 1000).unwrap();
    browser.open(&format!("{}/#token={}", fleet.url().unwrap(), fleet.token().unwrap())).unwrap();
    browser.wait("document.getElementById('link').textContent === 'live'").unwrap();
    let (list, page) = ("#/rollouts".to_owned(), format!("#/rollouts/{id}"));
    go(&browser, &list, "Rollouts", "document.querySelector('[data-stage=rolled_back]')");
    keep_picture(&browser, "rollouts");
    go(
        &browser,
        &page,
        "Rollout",
        "document.querySelector('.stages [aria-current]')?.textContent === 'rolled back'",
    );
    keep_picture(&browser, "rollout");
    go(&browser, "#/baselines", "Baselines", "document.querySelectorAll('#page table').length === 2");
    keep_picture(&browser, "baselines-made");
    check_accessibility(&browser, &[(&list, "Rollouts"), (&page, "Rollout"), ("#/baselines", "Baselines")]);
    assert!(browser.complaints().unwrap().is_empty());
}

/// Gives a stored baseline another calibration: every score of its calibration was this one.
fn recalibrate(fleet: &mut Fleet, id: u64, score: f32) {
    let id = i64::try_from(id).unwrap();
    let key = std::fs::read(fleet.state().join("bundle.key")).unwrap();
    fleet.kill().unwrap();
    let database = Connection::open(fleet.state().join("fleet.db")).unwrap();
    let bytes: Vec<u8> =
        database.query_row("SELECT body FROM baselines WHERE id = ?", [id], |row| row.get(0)).unwrap();
    let bytes = calibrated(&bytes, score, &SigningKey::from_pkcs8(&key).unwrap());
    let size = u32::try_from(bytes.len()).unwrap();
    let row = params![bundle::sha256(&bytes), size, bytes, id];
    database.execute("UPDATE baselines SET sha256 = ?, size = ?, body = ? WHERE id = ?", row).unwrap();
    drop(database);
    fleet.restart().unwrap();
}

/// A sealed bundle again, with this calibration.
fn calibrated(bytes: &[u8], score: f32, key: &SigningKey) -> Vec<u8> {
    let bundle = bundle::open(bytes, &Keyring([key.public()].into_iter().collect())).unwrap();
    let mut manifest: Manifest = bundle.manifest().clone();
    manifest.calibration.fused.fill(score);
    let parts =
        manifest.parts.iter().map(|part| (part.name.clone(), bundle.part(&part.name).unwrap().to_vec()));
    let parts = parts.collect();
    bundle::seal(manifest, parts, key)
}
