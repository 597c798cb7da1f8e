//! A device that is cut off from everything but its fleet: in network namespaces of its own, and a cgroup namespace, whose root is
//! all that its agent can act on.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::browser::Browser;
use tests::cgroup::Group;
use tests::fleet::Fleet;
use tests::wait_for;

use crate::dashboard::{go, keep_picture};
use crate::needs_root;

const DEVICE: &str = "gw";
/// The fleet, and the device.
const FLEET: &str = "192.0.2.2";
/// A machine that nobody allowed, and one that the operator did.
const OTHER: &str = "192.0.2.9";
const ALLOWED: &str = "198.51.100.7";
const CONFIG: &str = "watch = [\"/nothing\"]\nwindow = \"1s\"\nheartbeat = \"2s\"\n";

/// Where the device is: a network with one cable to this thread's network, and a control group.
struct Place {
    group: Group,
    /// Keeps its network.
    there: Child,
    /// Keeps this thread's.
    here: Child,
}

impl Place {
    fn new() -> Self {
        let group = Group::make(&format!("bg-quarantine-{}.slice", std::process::id())).unwrap();
        let place = Self { group, there: network(), here: network() };
        // This thread's children, and what it connects to, are there from here on.
        let here = File::open(network_of(&place.here)).unwrap();
        move_into_link_name_space(here.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let here = format!(
            "ip link set lo up && ip link add f0 type veth peer name d0 netns {} && ip addr add {FLEET}/24 dev f0 && \
             ip addr add fd00::2/64 dev f0 nodad && ip link set f0 up",
            place.there.id()
        );
        let there = "ip link set lo up && ip addr add 192.0.2.1/24 dev d0 && ip addr add fd00::1/64 dev d0 nodad && \
                     ip link set d0 up && ip route add default via 192.0.2.2";
        assert!(Command::new("sh").args(["-c", &here]).status().unwrap().success());
        assert!(place.inside("sh", &["-c", there]).status().unwrap().success());
        place
    }

    /// What stands before a program and its arguments for it to run there.
    fn before(&self, inside: &[&str]) -> Vec<String> {
        let enters = format!("--net={}", network_of(&self.there));
        let words = ["/bin/sh", "-c", &self.group.script(), "nsenter", &enters];
        words.iter().chain(inside).map(|word| (*word).to_owned()).collect()
    }

    fn inside(&self, program: &str, arguments: &[&str]) -> Command {
        let words = self.before(&[program]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(arguments);
        command
    }

    /// Sends a datagram; whether the kernel let it pass.
    fn sends(&self, to: &str, port: u16) -> bool {
        let script = format!("echo x > /dev/udp/{to}/{port}");
        let output = self.inside("bash", &["-c", &script]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("not permitted"), "{to} {port}: {said}");
        output.status.success()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for holder in [&mut self.there, &mut self.here] {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

/// A process in a network of its own.
fn network() -> Child {
    let mut command = Command::new("unshare");
    let holder = command.args(["--net", "sleep", "infinity"]).stdin(Stdio::null()).spawn().unwrap();
    wait_for("a network", Duration::from_secs(10), || {
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        Ok(fs::read_link(network_of(&holder)).is_ok_and(|theirs| theirs != own).then_some(()))
    })
    .unwrap();
    holder
}

fn network_of(process: &Child) -> String {
    format!("/proc/{}/ns/net", process.id())
}

/// Gives an order, and waits for what the device says.
fn order(fleet: &Fleet, agent: &Agent, order: &Value) -> Value {
    let (status, made) = fleet.post(&format!("devices/{DEVICE}/orders"), &json!({ "order": order })).unwrap();
    assert_eq!(status, 202, "{made}");
    let answered = wait_for("an answer", Duration::from_secs(40), || {
        let row = fleet.get(&format!("devices/{DEVICE}/orders/{}", made["id"])).unwrap();
        Ok((row["state"] != "waiting").then_some(row))
    });
    answered.unwrap_or_else(|error| panic!("{error}\n{}", agent.log()))
}

fn event(fleet: &Fleet, agent: &Agent, kind: &str, text: &str) -> Value {
    let found = wait_for(kind, Duration::from_secs(40), || {
        let events = fleet.events(DEVICE).unwrap_or_default();
        let fits = |event: &Value| event["kind"] == kind && event["text"].as_str().unwrap().contains(text);
        Ok(events.into_iter().find(fits))
    });
    found.unwrap_or_else(|error| panic!("{error}: {:#?}\n{}", fleet.events(DEVICE), agent.log()))
}

#[test]
fn a_quarantined_device_reaches_its_fleet_only_until_somebody_or_its_time_ends_it() {
    needs_root();
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    let config = format!("public_host = \"{FLEET}\"\n");
    let mut fleet = Fleet::start_on(&dir.path().join("fleet"), 1000, &config, "0.0.0.0").unwrap();
    let mut agent = Agent::alone(&dir.path().join("gw"), CONFIG).unwrap();
    let hierarchy = "mount -t cgroup2 none /sys/fs/cgroup && exec \"$0\" \"$@\"";
    agent.before = place.before(&["unshare", "--cgroup", "--mount", "sh", "-c", hierarchy]);
    agent.enroll_in(&fleet, DEVICE).unwrap();
    agent.run().unwrap();

    // Only where the device's own file says so.
    let quarantine = json!({ "kind": "quarantine", "for_s": 3600 });
    let refused = order(&fleet, &agent, &quarantine);
    assert_eq!(refused["state"], "refused");
    assert!(refused["answer"].as_str().unwrap().contains("`quarantine.allowed`"), "{refused}");
    assert!(place.sends(OTHER, 9));

    agent.stop().unwrap();
    let allowed =
        format!("{CONFIG}[quarantine]\nallowed = true\nreachable = [\"198.51.100.0/24\", \"fd00::2\"]\n");
    agent.configure(&allowed).unwrap();
    agent.run().unwrap();
    let done = order(&fleet, &agent, &quarantine);
    assert_eq!(done["state"], "done", "{done}");
    event(&fleet, &agent, "quarantined", "by the fleet for 3600 s");
    let mqtt: u16 = fleet.mqtt().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let is_cut_off = || {
        let sent = [(OTHER, 9), (OTHER, mqtt), (OTHER, 53), (FLEET, 9), ("fd00::9", 9)]
            .map(|(to, port)| place.sends(to, port));
        assert_eq!(sent, [false; 5]);
        let sent = [(FLEET, mqtt), (ALLOWED, 9), ("127.0.0.1", 9), ("fd00::2", 9)]
            .map(|(to, port)| place.sends(to, port));
        assert_eq!(sent, [true; 4]);
    };
    is_cut_off();
    // Neighbours are found as before.
    wait_for("the neighbour", Duration::from_secs(5), || {
        let shown = place.inside("ip", &["-6", "neigh", "show", "fd00::2"]).output().unwrap();
        Ok(String::from_utf8_lossy(&shown.stdout).contains("lladdr").then_some(()))
    })
    .unwrap();

    // It holds after the agent was killed and started again, which still finds its fleet.
    agent.kill().unwrap();
    assert!(place.sends(OTHER, 9), "it ends with the agent");
    agent.run().unwrap();
    event(&fleet, &agent, "killed", "");
    is_cut_off();
    let beat = wait_for("a heartbeat", Duration::from_secs(20), || {
        let device = fleet.get(&format!("devices/{DEVICE}"))?;
        let left = device["heartbeat"]["counters"]["quarantine_left_s"].as_u64();
        Ok(left.filter(|left| *left > 0))
    });
    assert!(beat.unwrap() <= 3600);
    let status = agent.command(&["status"]).unwrap();
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("quarantined by the fleet: only the fleet is reached"), "{status}");

    let browser = Browser::start(&dir.path().join("browser"), 1280, 1000).unwrap();
    browser.open(&format!("{}/#token={}", fleet.url().unwrap(), fleet.token().unwrap())).unwrap();
    browser.wait("document.getElementById('link').textContent === 'live'").unwrap();
    let said =
        "/reaches its fleet only, for [0-9]+ min more/.test(document.getElementById('page').textContent)";
    go(&browser, "#/devices/gw", DEVICE, said);
    keep_picture(&browser, "quarantined");
    assert!(browser.complaints().unwrap().is_empty());
    drop(browser);

    // The operator's networks change without a restart.
    agent.configure(&allowed.replace("198.51.100.0/24", "192.0.2.0/24")).unwrap();
    agent.signal(Signal::HUP).unwrap();
    wait_for("the other networks", Duration::from_secs(20), || {
        Ok((place.sends(OTHER, 9) && !place.sends(ALLOWED, 9)).then_some(()))
    })
    .unwrap();

    let done = order(&fleet, &agent, &json!({ "kind": "end_quarantine" }));
    assert_eq!(done["state"], "done", "{done}");
    event(&fleet, &agent, "quarantine_ended", "ended by the fleet");
    assert!(place.sends(ALLOWED, 9));

    // By whoever is on the device, and by time.
    let begun = agent.command(&["quarantine", "begin", "--for", "4s"]).unwrap();
    assert!(begun.status.success(), "{begun:?}");
    event(&fleet, &agent, "quarantined", "by user id 0 for 4 s");
    assert!(!place.sends(ALLOWED, 9));
    event(&fleet, &agent, "quarantine_ended", "its time is up");
    assert!(place.sends(ALLOWED, 9));
    let ended = agent.command(&["quarantine", "end"]).unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stdout).trim(), "it was not quarantined");
    agent.stop().unwrap();
    fleet.stop().unwrap();
}
