//! A gateway without a fleet: its baseline is made there, and its alerts go to sinks.

use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tests::agent::Agent;
use tests::gateway::Gateway;
use tests::process::binary;
use tests::{Failed, wait_for};

use crate::needs_root;

#[test]
fn a_program_learned_on_the_gateway_is_judged_by_that_and_an_attack_is_told() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let program = Gateway::executable(&dir.path().join("gateway"));
    let lines = dir.path().join("alerts.json");
    let config = format!(
        "watch = [{program:?}]\nwindow = \"1s\"\n[alerts]\ndedup = \"0s\"\n[[sink]]\nkind = \"file\"\npath = {lines:?}\n"
    );
    let mut agent = Agent::alone(&dir.path().join("agent"), &config).unwrap();
    let mut gateway = Gateway::start(&dir.path().join("gateway")).unwrap();
    let name = program.to_string_lossy().into_owned();
    let train = |arguments: &[&str]| {
        let output = agent.command(&[&["train"], arguments].concat()).unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };

    let (good, text) = train(&["--duration", "3s", "--process", &name]);
    assert!(!good && text.contains("too few to learn from") && text.contains("collect for longer"), "{text}");

    // Ctrl-C ends it at once, and says what there was.
    let child = Command::new(binary("behaveguard").unwrap())
        .arg("--config")
        .arg(dir.path().join("agent/agent.toml"))
        .args(["train", "--duration", "10m", "--process", &name])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(5));
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("windows collected") && text.contains("interrupted"), "{text}");

    let (good, text) = train(&["--duration", "75s", "--process", &name]);
    assert!(good && text.contains("own generation 1"), "{text}");
    for told in ["left: ", "learning ", "at most"] {
        assert!(text.contains(told), "{told} is missing: {text}");
    }

    agent.run().unwrap();
    let program = wait_for("the agent's own baseline", Duration::from_secs(30), || {
        agent.check()?;
        let Ok(status) = agent.status() else { return Ok(None) };
        let program = status["heartbeat"]["programs"][0].clone();
        Ok((program["generation"] == 1).then_some(program))
    })
    .unwrap();
    assert_eq!(program["state"], "ACTIVE", "{program}");
    is_confined(&agent);
    let syslog = UdpSocket::bind("127.0.0.1:0").unwrap();
    syslog.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    read_again(&agent, &config, &syslog);

    std::thread::sleep(Duration::from_secs(3));
    gateway.attack().unwrap();
    let shadow =
        |alert: &Value| alert["generation"] == 1 && alert["techniques"].to_string().contains("T1003.008");
    wait_for("the alert", Duration::from_secs(20), || {
        agent.check()?;
        Ok(agent.alerts()?.into_iter().find(shadow))
    })
    .unwrap();
    let told = wait_for("the line", Duration::from_secs(20), || {
        let text = std::fs::read_to_string(&lines).unwrap_or_default();
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).find(shadow))
    })
    .unwrap();
    let id = format!("id=\"{}\"", told["id"].as_str().unwrap());
    // Odd numbers of a busy machine may have been told before.
    let message = wait_for("the message", Duration::from_secs(20), || {
        let mut message = [0; 4096];
        let n = syslog.recv(&mut message).map_err(|error| Failed::new("the log server", error))?;
        let message = String::from_utf8_lossy(&message[..n]).into_owned();
        Ok(message.contains(&id).then_some(message))
    });
    assert!(message.unwrap().starts_with("<8"));
    // The status is that of the last window's end.
    let status = wait_for("the sink's count", Duration::from_secs(10), || {
        let status = agent.status()?;
        let sinks = status["sinks"].as_array().cloned().unwrap_or_default();
        let took = |sink: &Value| sink["name"] == "syslog" && sink["delivered"].as_u64() >= Some(1);
        Ok(sinks.iter().any(took).then_some(status))
    })
    .unwrap();
    assert!(status["fleet"].is_null(), "{status}");
    agent.configure(&config).unwrap();
    expect_it(&mut agent, &mut gateway, told["id"].as_str().unwrap());
    agent.stop().unwrap();
}

/// It gave up what it does not need, by its own word and by the kernel's.
fn is_confined(agent: &Agent) {
    let confinement = agent.status().unwrap()["confinement"].clone();
    assert_eq!(confinement["calls_refused"], true, "{confinement}");
    let kept = ["CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_BPF"];
    assert_eq!(confinement["capabilities"], serde_json::json!(kept), "{confinement}");
    let threads = std::fs::read_dir(format!("/proc/{}/task", agent.id().unwrap())).unwrap();
    let mut seen = 0;
    for thread in threads {
        let text = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.strip_prefix(":")).unwrap_or_default().trim().to_owned()
        };
        let expected = format!("{:016x}", 1_u64 << 2 | 1 << 19 | 1 << 39);
        assert_eq!((field("CapEff"), field("CapBnd")), (expected.clone(), expected), "{text}");
        assert_eq!((&*field("Seccomp"), &*field("NoNewPrivs")), ("2", "1"), "{text}");
        seen += 1;
    }
    assert!(seen >= 3, "{seen} threads");
}

/// Whitelists what an alert told of: the same is no alert then, also after a restart, until the entry is removed.
fn expect_it(agent: &mut Agent, gateway: &mut Gateway, id: &str) {
    let command = |agent: &Agent, arguments: &[&str]| {
        let output = agent.command(arguments).unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = command(agent, &["whitelist", "add", "--alert", id, "--reason", "the nightly backup"]);
    assert!(code == Some(0) && text.contains("entry 1: ") && text.contains("/etc/shadow"), "{text}");
    assert!(agent.log().contains("whitelist: user id 0 added entry 1"), "{}", agent.log());
    agent.stop().unwrap();
    agent.run().unwrap();
    wait_for("the agent", Duration::from_secs(30), || Ok(agent.status().ok())).unwrap();
    let (_, list) = command(agent, &["whitelist", "list", "--json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list[0]["id"], &list[0]["added_by_uid"]), (&1.into(), &0.into()), "{list}");
    // Its first window after a restart may be odd for other reasons.
    std::thread::sleep(Duration::from_secs(3));
    let before = agent.alerts().unwrap().len();
    gateway.attack().unwrap();
    let counted = |agent: &Agent| -> u64 {
        let status = agent.status().unwrap();
        let counters = status["heartbeat"]["counters"].as_array().cloned().unwrap_or_default();
        let of = counters.iter().find(|counter| counter[0] == "acts_whitelisted");
        of.and_then(|counter| counter[1].as_u64()).unwrap_or_default()
    };
    wait_for("the expected act", Duration::from_secs(10), || Ok((counted(agent) > 0).then_some(()))).unwrap();
    let told = agent.alerts().unwrap().split_off(before);
    let shadow = |alert: &Value| alert["summary"].to_string().contains("/etc/shadow");
    assert!(!told.iter().any(shadow), "{told:?}");

    let (code, text) = command(agent, &["whitelist", "remove", "1"]);
    assert!(code == Some(0) && text.contains("removed entry 1"), "{text}");
    let (code, text) = command(agent, &["whitelist", "remove", "1"]);
    assert!(code == Some(1) && text.contains("no entry has the number 1"), "{text}");
    gateway.attack().unwrap();
    wait_for("an alert again", Duration::from_secs(20), || {
        Ok(agent.alerts()?.split_off(before).into_iter().find(shadow))
    })
    .unwrap();
}

/// Adds a sink and changes what needs a restart, then breaks the file: what can be used is, and the rest is said.
fn read_again(agent: &Agent, config: &str, syslog: &UdpSocket) {
    let address = syslog.local_addr().unwrap();
    let more = config.replace("\"1s\"", "\"2s\"")
        + &format!("[[sink]]\nkind = \"syslog\"\naddress = \"udp://{address}\"\n");
    let reload = |config: &str, done: &dyn Fn(&Value) -> bool| {
        agent.configure(config).unwrap();
        agent.signal(Signal::HUP).unwrap();
        wait_for("the configuration", Duration::from_secs(10), || {
            let status = agent.status()?;
            Ok(done(&status["reloaded"]).then_some(status))
        })
        .unwrap()
    };
    let status = reload(&more, &|reloaded| reloaded["refused"].is_null() && !reloaded.is_null());
    assert_eq!(status["reloaded"]["needs_restart"], serde_json::json!(["window"]));
    let names = |status: &Value| -> Vec<String> {
        status["sinks"].as_array().unwrap().iter().map(|sink| sink["name"].to_string()).collect()
    };
    assert_eq!(names(&status), ["\"file\"", "\"syslog\""]);
    let status = reload("windw = 1", &|reloaded| !reloaded["refused"].is_null());
    assert!(status["reloaded"]["refused"].as_str().unwrap().contains("`windw`: not a known key"), "{status}");
    assert_eq!(names(&status).len(), 2, "the old one is in force");
}
