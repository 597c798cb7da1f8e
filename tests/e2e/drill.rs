//! What docs/operations.md tells an operator who wants to see an alarm work, and docs/security.md of those who try to escape
//! notice.

use std::io::Write as _;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tests::agent::Agent;
use tests::cgroup::Group;
use tests::fleet::Fleet;
use tests::process::binary;
use tests::wait_for;

use crate::{enacting, needs_root};

const DEVICE: &str = "drill";
const PYTHON: &str = "/usr/bin/python3";
/// What the tool does here every day: it starts, computes and ends.
const EVERY_DAY: [&str; 2] = ["-c", "import hashlib,socket,time; time.sleep(0.6)"];
/// Windows have a second; what has not alarmed after so long does not.
const QUIET: Duration = Duration::from_secs(4);

#[test]
fn attacks_and_evasions_by_a_learned_tool_alarm_where_the_documents_say_so() {
    needs_root();
    let _turn = enacting();
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::start(&dir.path().join("fleet"), 40).unwrap();
    // Other tests use the same tool. All that is done here is done in a unit of its own.
    let unit = format!("bg-drill-{}.service", std::process::id());
    let group = Group::make(&unit).unwrap();
    let enacted = |arguments: &[&str]| enacted(&group, arguments);
    // On a busy machine numbers are odd, too, and would use up what may be told in a minute.
    let config = format!(
        "watch = [{unit:?}]\nwindow = \"1s\"\nheartbeat = \"2s\"\nsamples = 100\n[alerts]\nper_minute = 1000\n"
    );
    let mut agent = Agent::enroll_with(&dir.path().join("agent"), &config, &fleet, DEVICE).unwrap();
    agent.run().unwrap();
    group.add(agent.id().unwrap()).unwrap();
    learn_with_a_poisoner(&mut agent, &group);
    // Who was there while it was learned is normal now, and the fleet says so of what is grave.
    assert_eq!(news_of(&agent, &enacted(&["--evasive", "poisoning", "--variant", "quietly"])), [""; 0]);
    assert_eq!(
        news_of(&agent, &enacted(&["--evasive", "poisoning", "--variant", "again-and-again"])),
        [""; 0]
    );
    let grave = event(&fleet, "grave_acts_learned", "python");
    assert!(grave["text"].as_str().unwrap().contains("sensitive"), "{grave}");
    // What it never did alarms; what needs nothing new gives nothing to name.
    let attack = enacted(&["cryptomining", "--variant", "python-stratum"]);
    assert!(alert_of(&mut agent, &attack).contains("127.0.0.1 port 3333"));
    assert_eq!(news_of(&agent, &enacted(&["--evasive", "mimicry", "--variant", "nothing-new"])), [""; 0]);
    attack_the_agent(&mut agent, &fleet, &group);
    agent.stop().unwrap();
    fleet.stop().unwrap();
}

/// Learns the tool and the agent itself, with somebody beside who wants to be learned.
fn learn_with_a_poisoner(agent: &mut Agent, group: &Group) {
    let every_day = || group.command(PYTHON).args(EVERY_DAY).spawn().unwrap();
    let enacted = |arguments: &[&str]| enacted(group, arguments);
    let mut days = 0;
    wait_for("learning the tool and the agent", Duration::from_secs(300), || {
        agent.check()?;
        let mut tool = every_day();
        if days % 4 == 0 {
            enacted(&["--evasive", "poisoning", "--variant", "quietly"]);
            enacted(&["--evasive", "poisoning", "--variant", "again-and-again"]);
        }
        days += 1;
        tool.wait().unwrap();
        let Ok(status) = agent.status() else { return Ok(None) };
        let programs = status["heartbeat"]["programs"].as_array().cloned().unwrap_or_default();
        let learned = programs.iter().filter(|program| program["generation"].as_u64() > Some(0)).count();
        Ok((learned == 2).then_some(()))
    })
    .unwrap();
}

fn attack_the_agent(agent: &mut Agent, fleet: &Fleet, group: &Group) {
    let pid = agent.id().unwrap();
    let attack = |variant: &str| {
        let pid = pid.to_string();
        simulate(group, &["--evasive", "attack-on-the-agent", "--variant", variant, "--agent", &pid])
    };
    let traced = report(attack("trace"));
    let tracer = format!("process {}", traced["pid"]);
    wait_for("the alert about who traces the agent", Duration::from_secs(20), || {
        Ok(agent
            .alerts()?
            .into_iter()
            .find(|alert| alert["pid"] == pid && alert.to_string().contains(&tracer)))
    })
    .unwrap();
    // What is done while it is held up is told when it goes on. Who does it was there before: the unit of one that comes and
    // goes meanwhile nobody can be asked for.
    let mut patient = group
        .command("/bin/sh")
        .args(["-c", "read -r line && exec \"$0\" \"$@\""])
        .arg(binary("behaveguard").unwrap())
        .args(["simulate", "lateral-movement", "--variant", "python-winrm", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Known to the agent, also where others have most of the processors.
    thread::sleep(Duration::from_secs(4));
    let held_up = attack("hold-up");
    thread::sleep(Duration::from_millis(500));
    patient.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let meanwhile = report(patient);
    report(held_up);
    alert_of(agent, &meanwhile);
    // Its end is told at its next start.
    report(attack("kill"));
    wait_for("its end", Duration::from_secs(20), || Ok(agent.check().is_err().then_some(()))).unwrap();
    agent.run().unwrap();
    event(fleet, "killed", "");
}

fn simulate(group: &Group, arguments: &[&str]) -> Child {
    let mut command = group.command(binary("behaveguard").unwrap());
    command.arg("simulate").args(arguments).arg("--json").stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// The report of one variant that was done.
fn report(simulation: Child) -> Value {
    let output = simulation.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["outcome"], "done", "{report}");
    report
}

fn enacted(group: &Group, arguments: &[&str]) -> Value {
    report(simulate(group, arguments))
}

/// The alert about the acting process, as text.
fn alert_of(agent: &mut Agent, report: &Value) -> String {
    let alert = wait_for("the alert", Duration::from_secs(20), || {
        agent.check()?;
        Ok(agent.alerts()?.into_iter().find(|alert| alert["pid"] == report["pid"]))
    });
    let why = |error| {
        let counters = agent.status().map(|status| status["heartbeat"]["counters"].to_string());
        format!("{error}\n{report}\n{counters:?}\n{:?}\n{}", agent.alerts(), agent.log())
    };
    alert.unwrap_or_else(|error| panic!("{}", why(error))).to_string()
}

/// What was said to be new of the acting process, once all is judged. Its numbers may be unusual by chance, or because the
/// machine does other work, and so may a single call that no learned window happened to have.
fn news_of(agent: &Agent, report: &Value) -> Vec<String> {
    thread::sleep(QUIET);
    let alerts = agent.alerts().unwrap().into_iter().filter(|alert| alert["pid"] == report["pid"]);
    let is_new = |reason: &Value| {
        reason["name"].as_str().is_some_and(|name| name.starts_with("first_") && name != "first_syscall")
    };
    let news = alerts.filter(|alert| alert["reasons"].as_array().unwrap().iter().any(is_new));
    news.map(|alert| alert.to_string()).collect()
}

/// An event of this kind, about a program whose path holds `program`.
fn event(fleet: &Fleet, kind: &str, program: &str) -> Value {
    wait_for(kind, Duration::from_secs(40), || {
        let events = fleet.events(DEVICE).unwrap_or_default();
        Ok(events
            .into_iter()
            .find(|event| event["kind"] == kind && event["program"].to_string().contains(program)))
    })
    .unwrap()
}
