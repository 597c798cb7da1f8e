//! A baseline made on the gateway itself.

use std::process::{Command, Stdio};
use std::time::Duration;

use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::gateway::Gateway;
use tests::process::binary;
use tests::wait_for;

use crate::needs_root;

/// More than the test collects: the fleet must not train.
const NEVER: u32 = 4000;

#[test]
fn a_program_learned_on_the_gateway_is_judged_by_that_and_an_attack_is_told() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::start(&dir.path().join("fleet"), NEVER).unwrap();
    let program = Gateway::executable(&dir.path().join("gateway"));
    let mut agent = Agent::enroll(&dir.path().join("agent"), &program, &fleet, "alone").unwrap();
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
    std::thread::sleep(Duration::from_secs(3));
    gateway.attack().unwrap();
    wait_for("the alert", Duration::from_secs(20), || {
        agent.check()?;
        let told = |alert: &serde_json::Value| {
            alert["generation"] == 1 && alert["techniques"].to_string().contains("T1003.008")
        };
        Ok(agent.alerts()?.into_iter().find(told))
    })
    .unwrap();
    agent.stop().unwrap();
    fleet.stop().unwrap();
}
