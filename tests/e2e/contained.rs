//! What the agent does to programs that alarm, and what the fleet is told of the agent itself.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::cgroup::Group;
use tests::gateway::Gateway;
use tests::story::{DEVICE, Story};
use tests::{Failed, wait_for};

/// Sends a datagram from within a group: to loopback, or to another machine on a network of its own.
fn send(group: &Group, to: &str) -> Output {
    let script = format!(
        "ip link set lo up && ip link add v0 type veth peer name v1 && ip addr add 192.0.2.1/24 dev v0 && \
         ip link set v0 up && ip link set v1 up && echo x > /dev/udp/{to}/9"
    );
    group.command("unshare").args(["--net", "bash", "-c", &script]).output().unwrap()
}

fn event(story: &Story, kind: &str, after: u64) -> Value {
    let fits = |event: &Value| event["kind"] == kind && event["id"].as_u64() > Some(after);
    let found = wait_for(kind, Duration::from_secs(40), || {
        Ok(story.fleet.events(DEVICE).unwrap_or_default().into_iter().find(fits))
    });
    found.unwrap_or_else(|error: Failed| {
        panic!("{error}\n{:#?}\n{}", story.fleet.events(DEVICE), story.agent.log())
    })
}

fn id(event: &Value) -> u64 {
    event["id"].as_u64().unwrap()
}

fn rule(program: &Path, action: &str) -> String {
    format!("[[contain]]\nprogram = {program:?}\naction = {action:?}\n")
}

#[test]
fn an_attacked_service_is_cut_off_or_stopped_and_the_fleet_and_the_gateway_undo_it() {
    crate::needs_root();
    let dir = tempfile::tempdir().unwrap();
    let group = Group::make(&format!("bg-test-{}.service", std::process::id())).unwrap();
    let program = Gateway::executable(&dir.path().join("gateway"));
    let other = Path::new("/nothing");
    let alerts = "[alerts]\ndedup = \"0s\"\n";
    // What an agent may do is settled at its start.
    let others = format!("{}{}", rule(other, "stop"), rule(Path::new("/nothing-else"), "kill"));
    let more = format!("{alerts}{}{others}", rule(&program, "deny_egress"));
    let mut story = Story::start_with(dir.path(), 60, &more, "").unwrap();
    group.add(story.gateway.id()).unwrap();
    let started = event(&story, "started", 0);
    assert!(started["text"].as_str().unwrap().contains("version "), "{started}");
    story.learn(60, |_| {}).unwrap_or_else(|error| panic!("{error}\n{}", story.agent.log()));
    assert!(send(&group, "192.0.2.2").status.success(), "nothing is denied yet");

    story.gateway.attack().unwrap();
    let contained = event(&story, "contained", 0);
    assert!(contained["text"].as_str().unwrap().contains("deny_egress of /bg-test-"), "{contained}");
    let denied = send(&group, "192.0.2.2");
    let said = String::from_utf8_lossy(&denied.stderr).into_owned();
    assert!(!denied.status.success() && said.contains("not permitted"), "{said}");
    assert!(send(&group, "127.0.0.1").status.success(), "loopback goes on");
    let outside = Group::make(&format!("bg-other-{}.service", std::process::id())).unwrap();
    assert!(send(&outside, "192.0.2.2").status.success(), "others go on");

    // It is denied again after a restart, and what the fleet wants undone meanwhile waits for the device.
    story.agent.kill().unwrap();
    assert!(send(&group, "192.0.2.2").status.success(), "a denial ends with the agent");
    story.agent.run().unwrap();
    let killed = event(&story, "killed", id(&contained));
    wait_for("the denial", Duration::from_secs(20), || {
        Ok((!send(&group, "192.0.2.2").status.success()).then_some(()))
    })
    .unwrap();
    story.agent.stop().unwrap();
    event(&story, "stopped", id(&killed));
    let number = contained["containment"].as_u64().unwrap();
    let asked = story.fleet.post(&format!("devices/{DEVICE}/release"), &json!({ "containment": number }));
    assert_eq!(asked.unwrap().0, 202);
    story.agent.run().unwrap();
    let released = event(&story, "released", id(&killed));
    assert!(released["text"].as_str().unwrap().starts_with("the fleet released"), "{released}");
    assert!(send(&group, "192.0.2.2").status.success(), "it sends again");

    // Another rule, by SIGHUP: the process is stopped, and goes on when the gateway's operator says so.
    let ruled = |action| {
        let common = format!("watch = [{program:?}]\nwindow = \"1s\"\nheartbeat = \"2s\"\n{alerts}");
        format!("{common}{}", rule(&program, action))
    };
    story.agent.configure(&ruled("stop")).unwrap();
    story.agent.signal(Signal::HUP).unwrap();
    let changed = event(&story, "configuration_changed", id(&released));
    assert!(changed["text"].as_str().unwrap().contains("contain"), "{changed}");
    story.gateway.attack().unwrap();
    let contained = event(&story, "contained", id(&changed));
    assert!(contained["text"].as_str().unwrap().contains("stop of process"), "{contained}");
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", story.gateway.id())).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next()
    };
    assert_eq!(state(), Some('T'));
    let list = story.agent.command(&["contain", "list"]).unwrap();
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let number = contained["containment"].as_u64().unwrap().to_string();
    assert!(list.starts_with(&format!("{number}: stop of process {}", story.gateway.id())), "{list}");
    let release = story.agent.command(&["contain", "release", &number]).unwrap();
    assert!(release.status.success(), "{release:?}");
    assert_ne!(state(), Some('T'));
    let released = event(&story, "released", id(&contained));
    assert!(released["text"].as_str().unwrap().starts_with("user id 0 released"), "{released}");
    let again = story.agent.command(&["contain", "release", &number]).unwrap();
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("nothing is contained under the number"), "{said}");

    // The last rule ends it.
    story.agent.configure(&ruled("kill")).unwrap();
    story.agent.signal(Signal::HUP).unwrap();
    let changed = event(&story, "configuration_changed", id(&released));
    story.gateway.attack().unwrap();
    let contained = event(&story, "contained", id(&changed));
    assert!(contained["text"].as_str().unwrap().contains("kill of process"), "{contained}");
    wait_for("its end", Duration::from_secs(5), || Ok(story.gateway.check().err().map(|_| ()))).unwrap();
    story.stop().unwrap();
}

#[test]
fn a_silent_device_is_an_event_and_so_is_its_return() {
    crate::needs_root();
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::start_with(dir.path(), 1000, "", "silent_after_s = 6\n").unwrap();
    let started = event(&story, "started", 0);
    story.agent.kill().unwrap();
    let silent = event(&story, "silent", id(&started));
    assert!(silent["text"].as_str().unwrap().contains("no heartbeat"), "{silent}");
    std::thread::sleep(Duration::from_secs(8));
    let events = story.fleet.events(DEVICE).unwrap();
    assert_eq!(events.iter().filter(|event| event["kind"] == "silent").count(), 1, "once: {events:?}");
    story.agent.run().unwrap();
    event(&story, "heard", id(&silent));
    event(&story, "killed", id(&silent));
    story.stop().unwrap();
}
