//! Another program file for agents: fetched and started on the fleet's word, a few devices first; one that does not come back is left
//! by the device itself, and goes no further.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agent::enroll::Identity;
use models::bundle::sha256;
use models::program::hex;
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::browser::Browser;
use tests::fleet::Fleet;
use tests::process::binary;
use tests::{Failed, wait_for};

use crate::dashboard::{check_accessibility, go, keep_picture};
use crate::needs_root;

/// Starts an agent again that has ended, as systemd does.
fn tend(agents: &mut [Agent]) -> Result<(), Failed> {
    agents.iter_mut().try_for_each(|agent| if agent.check().is_err() { agent.run() } else { Ok(()) })
}

/// The program that an agent runs.
fn program(agent: &Agent) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", agent.id().unwrap_or(0))).unwrap_or_default()
}

/// Signs a program file and brings it to the server.
fn offered(fleet: &Fleet, key: &Path, file: &Path, version: &str) {
    let mut sign = Command::new(binary("behaveguard-fleet").unwrap());
    let signed =
        sign.args(["build", "sign", "--version", version, "--key"]).args([key, file]).output().unwrap();
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    fleet.command(&["build", "add", file.to_str().unwrap()]).unwrap();
}

fn begun(fleet: &Fleet, version: &str, group: &str, percent: u32) -> String {
    let plan = json!({ "canary_percent": percent, "wait_s": 10 });
    let asked = json!({ "version": version, "group": group, "plan": plan });
    // Its devices may not have been heard yet.
    let made = wait_for("devices to update", Duration::from_secs(40), || {
        let (status, made) = fleet.post("updates", &asked)?;
        assert!(matches!(status, 201 | 409), "{made}");
        Ok((status == 201).then_some(made))
    });
    format!("updates/{}", made.unwrap()["id"])
}

fn wait_for_stage(fleet: &Fleet, agents: &mut [Agent], update: &str, stage: &str) -> Value {
    let reached = wait_for(stage, Duration::from_secs(240), || {
        tend(agents)?;
        let page = fleet.get(update)?;
        Ok((page["update"]["stage"] == stage).then_some(page))
    });
    reached.unwrap_or_else(|error| {
        let logs: Vec<String> = agents.iter().map(Agent::log).collect();
        panic!("{error}: {}\n{}", fleet.get(update).unwrap(), logs.join("\n---\n"))
    })
}

/// Where it believes the fleet's web address to be nobody listens.
fn keep_from_https(agent: &Agent) {
    let path = agent.state().join("identity.json");
    let mut identity: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    identity["url"] = json!("https://127.0.0.1:1");
    fs::write(path, identity.to_string()).unwrap();
}

/// What a device is answered that asks for a file, or for a range of it: status, which range that is, and the bytes.
fn fetched(
    fleet: &Fleet,
    agent: &Agent,
    sha256: [u8; 32],
    range: Option<&str>,
) -> (u16, Option<String>, Vec<u8>) {
    let identity = Identity::load(&agent.state()).unwrap();
    let client = identity.web(&agent.state(), Duration::from_secs(60)).unwrap();
    let mut asked = client.get(format!("{}/api/v1/files/{}", fleet.url().unwrap(), hex(&sha256)));
    if let Some(range) = range {
        asked = asked.header("Range", range);
    }
    let mut answer = asked.call().unwrap();
    let told = answer.headers().get("Content-Range").map(|told| told.to_str().unwrap().to_owned());
    let body = answer.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap();
    (answer.status().as_u16(), told, body)
}

/// A file that was given to a device, and any range of it, and no other.
fn check_ranges(fleet: &Fleet, agent: &Agent, file: &[u8], other: &[u8]) {
    let fetch = |range| fetched(fleet, agent, sha256(file), range);
    let size = file.len();
    let (status, told, body) = fetch(None);
    assert_eq!((status, told, body == file), (200, None, true));
    // Over the border of what is kept together.
    let (status, told, body) = fetch(Some("bytes=65000-400000"));
    assert_eq!((status, told), (206, Some(format!("bytes 65000-400000/{size}"))));
    assert!(body == file[65000..=400_000]);
    let (status, told, _) = fetch(Some(&format!("bytes={size}-")));
    assert_eq!((status, told), (416, Some(format!("bytes */{size}"))));
    assert_eq!(fetched(fleet, agent, sha256(other), None).0, 404, "the server has it, and did not give it");
    let hash = hex(&sha256(file));
    assert_eq!(fleet.file(&format!("files/{hash}")).unwrap().0, 401, "a token is no certificate");
}

#[test]
fn agents_are_replaced_in_stages_and_one_that_does_not_come_back_goes_no_further() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let key = dir.path().join("builder.key");
    // A name alone is a file of the folder that one is in.
    let mut made = Command::new(binary("behaveguard-fleet").unwrap());
    let made = made.args(["build", "key", "--out", "builder.key"]).current_dir(&dir).output().unwrap();
    let trust = String::from_utf8(made.stdout).unwrap();
    assert!(made.status.success() && key.exists(), "{}", String::from_utf8_lossy(&made.stderr));
    let common = "watch = [\"/nothing\"]\nwindow = \"1s\"\nheartbeat = \"2s\"\n";
    let mut agents: Vec<Agent> = ["gw-a", "gw-b", "gw-c"]
        .iter()
        .map(|name| {
            // The third one's own file trusts nobody.
            let config = if *name == "gw-c" { common.to_owned() } else { format!("{common}{trust}") };
            let mut agent = Agent::enroll_with(&dir.path().join(name), &config, &fleet, name).unwrap();
            if *name == "gw-b" {
                keep_from_https(&agent);
            }
            agent.environment.push(("INVOCATION_ID".into(), "a supervisor".into()));
            agent.run().unwrap();
            agent
        })
        .collect();
    fleet.command(&["device", "group", "gw-c", "office"]).unwrap();
    for name in ["gw-a", "gw-b", "gw-c"] {
        wait_for("a heartbeat", Duration::from_secs(40), || {
            tend(&mut agents)?;
            Ok((!fleet.get(&format!("devices/{name}"))?["heartbeat"].is_null()).then_some(()))
        })
        .unwrap();
    }

    // The same program, but for a byte behind its end that nobody reads.
    let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
    fs::copy(binary("behaveguard").unwrap(), &good).unwrap();
    assert!(Command::new("strip").arg(&good).status().unwrap().success());
    let mut bytes = fs::read(&good).unwrap();
    bytes.push(0);
    fs::write(&good, &bytes).unwrap();
    offered(&fleet, &key, &good, "99.1");
    fs::copy("/bin/false", &bad).unwrap();
    offered(&fleet, &key, &bad, "99.2");
    assert_eq!(fleet.post("updates", &json!({ "version": "98.0" })).unwrap().0, 404);

    let refused = begun(&fleet, "99.1", "office", 100);
    let page = wait_for_stage(&fleet, &mut agents, &refused, "stopped");
    assert!(page["update"]["reason"].as_str().unwrap().contains("trusts nobody"), "{page}");

    let first = begun(&fleet, "99.1", "default", 1);
    let page = wait_for_stage(&fleet, &mut agents, &first, "done");
    assert_eq!(page["devices"]["runs"], 2, "{page}");
    let members = page["members"].as_array().unwrap();
    assert_eq!(members.iter().filter(|member| member["canary"] == true).count(), 1, "one first: {page}");
    for agent in &agents[..2] {
        assert_eq!(program(agent), fs::canonicalize(agent.state()).unwrap().join("agent/program"));
    }
    let log = |agent: &Agent| agent.log();
    assert!(log(&agents[1]).contains("files of the fleet come over MQTT"), "{}", log(&agents[1]));
    assert!(!log(&agents[0]).contains("files of the fleet come over MQTT"), "{}", log(&agents[0]));
    check_ranges(&fleet, &agents[0], &bytes, &fs::read(&bad).unwrap());
    fleet.command(&["device", "revoke", "gw-c"]).unwrap();
    assert_eq!(fetched(&fleet, &agents[2], sha256(&bytes), None).0, 403);
    for device in ["gw-a", "gw-b"] {
        let told = wait_for("the event", Duration::from_secs(20), || {
            Ok(fleet.events(device)?.into_iter().find(|event| event["kind"] == "updated"))
        });
        assert!(told.unwrap()["text"].to_string().contains("version 99.1"));
    }

    // One that ends at once is left, and the other device is not given it.
    let second = begun(&fleet, "99.2", "default", 1);
    let page = wait_for_stage(&fleet, &mut agents, &second, "stopped");
    assert!(page["update"]["reason"].as_str().unwrap().contains("did not come back"), "{page}");
    assert_eq!((&page["devices"]["given"], &page["devices"]["failed"]), (&json!(1), &json!(1)), "{page}");
    let victim = page["members"][0]["device"].as_str().unwrap();
    let (hit, spared) = if victim == "gw-a" { (0, 1) } else { (1, 0) };
    assert_eq!(program(&agents[hit]), fs::canonicalize(binary("behaveguard").unwrap()).unwrap());
    assert!(program(&agents[spared]).ends_with("agent/program"));
    let audit = fleet.get("audit?limit=100").unwrap().to_string();
    for act in ["build.add", "update.begin", "update.everyone", "update.done", "update.stopped"] {
        assert!(audit.contains(act), "{act}: {audit}");
    }

    // Taken back, the package's program runs again.
    let token = fleet.token().unwrap();
    let act = json!({ "action": "take_back" });
    assert_eq!(fleet.send("PATCH", &first, Some(&act), &token).unwrap().0, 204);
    let own = fs::canonicalize(binary("behaveguard").unwrap()).unwrap();
    wait_for("the package's program", Duration::from_secs(60), || {
        tend(&mut agents)?;
        Ok((program(&agents[spared]) == own).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agents[spared].log()));

    let browser = Browser::start(&dir.path().join("browser"), 1280, 900).unwrap();
    browser.open(&format!("{}/#token={token}", fleet.url().unwrap())).unwrap();
    browser.wait("document.getElementById('link').textContent === 'live'").unwrap();
    go(&browser, "#/updates", "Updates", "document.querySelectorAll('#page tbody tr').length === 5");
    keep_picture(&browser, "updates");
    go(&browser, &format!("#/{first}"), "Update", "document.body.innerText.includes('taken back')");
    keep_picture(&browser, "update");
    check_accessibility(&browser, &[("#/updates", "Updates"), (&format!("#/{second}"), "Update")]);
    assert!(browser.complaints().unwrap().is_empty(), "{:?}", browser.complaints());
}
