//! The data in PostgreSQL instead of a file: the same behaviour, and several servers.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use tests::broker::{Broker, Kind};
use tests::fleet::{Fleet, ON_POSTGRES};
use tests::postgres::Postgres;
use tests::process::Process;
use tests::wait_for;

use crate::device::{Device, alert, enroll};

/// What is about the store and does not look into its file.
const OF_THE_STORE: [&str; 9] = [
    "access::",
    "alerts::",
    "broker::",
    "described::",
    "feed::",
    "gaps::",
    "identity::",
    "live::",
    "notified::",
];

#[test]
fn what_holds_for_a_file_holds_for_postgresql() {
    if std::env::var_os(ON_POSTGRES).is_some() {
        // It was started by itself.
        return;
    }
    let server = Postgres::start().unwrap();
    let tests = Command::new(std::env::current_exe().unwrap())
        .args(OF_THE_STORE)
        .env(ON_POSTGRES, server.address())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&tests.stdout);
    assert!(tests.status.success(), "{said}\n{}", String::from_utf8_lossy(&tests.stderr));
    let result = said.lines().find(|line| line.starts_with("test result: ok. ")).unwrap_or_default();
    let passed: usize = result.split_whitespace().nth(3).and_then(|n| n.parse().ok()).unwrap_or(0);
    assert!(passed >= 2 * OF_THE_STORE.len(), "{said}");
}

/// Two servers with one authority, one database and one broker.
struct Pair {
    servers: Vec<Fleet>,
    broker: Broker,
    database: Postgres,
    dir: tempfile::TempDir,
}

impl Pair {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = Postgres::start().unwrap();
        let mut broker = Broker::new(Kind::Mosquitto, &dir.path().join("broker")).unwrap();
        let config = format!("{}[store]\npostgres = {:?}\n", broker.config(), database.database().unwrap());
        let first = Fleet::start_with(&dir.path().join("first"), 1000, &config).unwrap();
        broker.start(&first).unwrap();
        // As docs/operations.md says: a further server has the first one's keys.
        let second = dir.path().join("second");
        std::fs::create_dir(&second).unwrap();
        for key in ["ca.pem", "ca.key", "bundle.key", "api.token"] {
            std::fs::copy(first.state().join(key), second.join(key)).unwrap();
        }
        let second = Fleet::start_with(&second, 1000, &config).unwrap();
        Self { servers: vec![first, second], broker, database, dir }
    }
}

/// Writes a server's live stream into a file.
fn follow(fleet: &Fleet, file: &Path) -> Process {
    let (url, token) = (fleet.url().unwrap(), fleet.token().unwrap());
    let ca = fleet.state().join("ca.pem").display().to_string();
    let (authorization, stream) = (format!("Authorization: Bearer {token}"), format!("{url}/api/v1/stream"));
    let arguments = ["--silent", "--no-buffer", "--cacert", &ca, "-H", &authorization, &stream];
    let process = Process::start("/usr/bin/curl".as_ref(), &arguments, file, Stdio::null()).unwrap();
    // It has no first word to wait for.
    std::thread::sleep(Duration::from_secs(1));
    process
}

/// Numbers of a device's alerts that a server shows, by the text that each has.
fn shown(fleet: &Fleet, device: &str) -> Vec<u64> {
    let alerts = fleet.alerts(device).unwrap_or_default();
    let mut numbers: Vec<u64> = alerts
        .iter()
        .map(|alert| alert["summary"].as_str().unwrap().rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn two_servers_share_database_and_broker_and_when_one_is_killed_there_is_no_gap() {
    const ALERTS: u64 = 600;
    let mut pair = Pair::start();
    let on = |pair: &Pair, n: usize, name: &str| pair.servers[n].counter(name).unwrap_or(0);
    wait_for("both servers at the broker", Duration::from_secs(20), || {
        Ok((on(&pair, 0, "broker_connected") > 0 && on(&pair, 1, "broker_connected") > 0).then_some(()))
    })
    .unwrap();
    let (identity, tls) = enroll(pair.dir.path(), &pair.servers[0], "gw-a");
    let mut device = Device::connect(&identity, tls.clone());
    device.welcome().unwrap();
    device.listen();
    // What one stores the other tells at once.
    let stream = pair.dir.path().join("stream");
    let follower = follow(&pair.servers[1], &stream);
    for seq in 1..=ALERTS / 3 {
        device.publish_as("gw-a", &alert(seq, &format!("number {seq}")));
    }
    device.acknowledged(ALERTS / 3).unwrap();
    let told = || std::fs::read_to_string(&stream).unwrap().matches("event: alert\n").count() as u64;
    wait_for("all of them in the stream", Duration::from_secs(10), || {
        Ok((told() == ALERTS / 3).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", told()));
    drop(follower);
    let stored = [0, 1].map(|n| on(&pair, n, "frames_stored"));
    assert!(stored.iter().all(|stored| *stored > 0), "both take their share: {stored:?}");

    // One is killed in the middle. A device that hears nothing sends again from the beginning, as the agent does.
    for seq in ALERTS / 3 + 1..=ALERTS {
        if seq == ALERTS / 2 {
            pair.servers[0].kill().unwrap();
        }
        device.publish_as("gw-a", &alert(seq, &format!("number {seq}")));
    }
    let begun = SystemTime::now();
    while shown(&pair.servers[1], "gw-a").len() < ALERTS as usize {
        assert!(begun.elapsed().unwrap() < Duration::from_secs(60), "{:?}", shown(&pair.servers[1], "gw-a"));
        drop(device);
        device = Device::connect(&identity, tls.clone());
        device.welcome().unwrap();
        device.listen();
        let there = shown(&pair.servers[1], "gw-a");
        for seq in (1..=ALERTS).filter(|seq| !there.contains(seq)) {
            device.publish_as("gw-a", &alert(seq, &format!("number {seq}")));
        }
        std::thread::sleep(Duration::from_secs(2));
    }
    let expected: Vec<u64> = (1..=ALERTS).collect();
    assert_eq!(shown(&pair.servers[1], "gw-a"), expected, "each once");
    assert_eq!(on(&pair, 1, "frames_missing"), 0);

    // It goes on where it was, and shows what came without it.
    pair.servers[0].restart().unwrap();
    assert_eq!(shown(&pair.servers[0], "gw-a"), expected);

    // Without the database nothing is acknowledged; with it, everything.
    pair.database.kill().unwrap();
    // More than the broker gives to both servers without a word of theirs.
    for _ in 0..2500 {
        device.publish_as("gw-a", &alert(ALERTS + 1, "number 601"));
    }
    std::thread::sleep(Duration::from_secs(1));
    pair.database.restart().unwrap();
    wait_for("the last alert", Duration::from_secs(40), || {
        device.publish_as("gw-a", &alert(ALERTS + 1, "number 601"));
        std::thread::sleep(Duration::from_secs(1));
        Ok((shown(&pair.servers[0], "gw-a").len() as u64 == ALERTS + 1).then_some(()))
    })
    .unwrap();
    pair.broker.kill().unwrap();
}
