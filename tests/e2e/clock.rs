//! A clock that jumps by years, and certificates that expire: what the agent says, and that nothing is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleet_server::names::DeviceId;
use fleet_server::pki::Pki;
use rcgen::{CertificateParams, KeyPair};
use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::gateway::Gateway;
use tests::story::counter;
use tests::{Failed, wait_for};

use crate::needs_root;

/// A wall clock that is as much ahead or behind as a file says; the clock of intervals is as it is.
struct FakeClock(PathBuf);

impl FakeClock {
    fn new(file: PathBuf) -> Self {
        let clock = Self(file);
        clock.set("+0");
        clock
    }

    fn set(&self, offset: &str) {
        let new = self.0.with_extension("new");
        fs::write(&new, offset).unwrap();
        fs::rename(&new, &self.0).unwrap();
    }

    fn environment(&self) -> Vec<(String, String)> {
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
        assert!(Path::new(&library).exists(), "{library}");
        let file = self.0.to_string_lossy().into_owned();
        [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }
}

const DEVICE: &str = "gw-clock";

fn says(agent: &Agent, words: &str) {
    let said = wait_for(words, Duration::from_secs(60), || Ok(agent.log().contains(words).then_some(())));
    said.unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
}

fn trained(agent: &Agent) -> u64 {
    counter(&agent.status().unwrap(), "windows_trained")
}

#[test]
fn a_clock_that_jumps_by_years_is_told_and_loses_nothing() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let watch = Gateway::executable(&dir.path().join("gateway"));
    let mut agent = Agent::enroll(&dir.path().join("agent"), &watch, &fleet, DEVICE).unwrap();
    let clock = FakeClock::new(dir.path().join("clock"));
    agent.environment = clock.environment();
    agent.run().unwrap();
    let gateway = Gateway::start(&dir.path().join("gateway")).unwrap();
    wait_for("windows", Duration::from_secs(40), || Ok(fleet.windows_collected().filter(|n| *n > 2)))
        .unwrap();
    for (offset, way) in [("+7300d", "forward by 6307"), ("-14600d", "back by 18921")] {
        clock.set(offset);
        says(&agent, &format!("the wall clock was set {way}"));
        // The link that is there goes on; a new one finds no certificate good.
        fleet.kill().unwrap();
        fleet.restart().unwrap();
        let before = agent.log().len();
        let words = "is this device's clock right?";
        let said = wait_for(words, Duration::from_secs(60), || {
            Ok(agent.log().get(before..).is_some_and(|log| log.contains(words)).then_some(()))
        });
        said.unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
        let least = trained(&agent) + 2;
        wait_for("windows", Duration::from_secs(30), || Ok((trained(&agent) > least).then_some(()))).unwrap();
    }
    clock.set("+0");
    drop(gateway);
    let all = wait_for("delivery of everything", Duration::from_secs(240), || {
        let Ok(status) = agent.status() else { return Ok(None) };
        let waits = status["heartbeat"]["outbox_waiting"] != 0;
        let sent = counter(&status, "windows_trained");
        Ok(fleet.windows_collected().filter(|there| !waits && *there >= sent).map(|there| (there, sent)))
    });
    let (there, sent) = all.unwrap_or_else(|error: Failed| panic!("{error}\n{}", agent.log()));
    assert_eq!(there, sent, "each once");
    let events = fleet.events(DEVICE).unwrap();
    assert_eq!(events.iter().filter(|event| event["kind"] == "clock_set").count(), 3, "{events:?}");
    let end = agent.status().unwrap();
    for lost in ["unwritten_dropped", "outbox_dropped", "outbox_bypassed"] {
        assert_eq!(counter(&end, lost), 0, "{lost}");
    }
    agent.stop().unwrap();
}

/// Puts a certificate in place of the device's that was good until five years ago.
fn expire(agent: &Agent, fleet: &Fleet) {
    let key = fs::read_to_string(agent.state().join("device.key")).unwrap();
    let key = KeyPair::from_pem(&key).unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let pki = Pki::open(fleet.state(), &[], now_unix_s).unwrap();
    let device = DeviceId::parse(DEVICE).unwrap();
    let life = Duration::from_secs(365 * 86_400);
    let signed = pki.sign_device(&device, &request, now_unix_s - 6 * 365 * 86_400, life).unwrap();
    fs::write(agent.state().join("device.pem"), &signed.pem).unwrap();
}

#[test]
fn a_device_whose_certificate_has_expired_renews_it_by_itself_and_delivers_everything() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let watch = Gateway::executable(&dir.path().join("gateway"));
    let mut agent = Agent::enroll(&dir.path().join("agent"), &watch, &fleet, DEVICE).unwrap();
    fleet.stop().unwrap();
    expire(&agent, &fleet);
    agent.run().unwrap();
    let gateway = Gateway::start(&dir.path().join("gateway")).unwrap();
    says(&agent, "no link to");
    wait_for("windows", Duration::from_secs(40), || Ok((trained(&agent) > 3).then_some(()))).unwrap();
    fleet.restart().unwrap();
    says(&agent, "this device's certificate has expired: it is being renewed");
    says(&agent, "this device's certificate was renewed");
    drop(gateway);
    let told = wait_for("the last window", Duration::from_secs(20), || {
        let before = trained(&agent);
        std::thread::sleep(Duration::from_millis(2500));
        Ok((trained(&agent) == before).then_some(before))
    });
    let told = told.unwrap();
    let there = wait_for("delivery", Duration::from_secs(60), || {
        Ok(fleet.windows_collected().filter(|there| *there >= told))
    });
    let there = there.unwrap_or_else(|error: Failed| panic!("{error}\n{}", agent.log()));
    assert_eq!(there, told, "each once");
    assert_eq!(fleet.counter("renewed").unwrap(), 1);
    agent.stop().unwrap();
}

#[test]
fn a_certificate_is_renewed_before_its_end_while_the_agent_runs() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let clock = FakeClock::new(dir.path().join("offset"));
    let mut agent = Agent::enroll(&dir.path().join("agent"), Path::new("/nothing"), &fleet, DEVICE).unwrap();
    agent.environment = clock.environment();
    let before = fs::read(agent.state().join("device.pem")).unwrap();
    agent.run().unwrap();
    says(&agent, "linked to");
    assert_eq!(fleet.counter("renewed").unwrap(), 0);
    // Two thirds of thirty days.
    clock.set("+20d");
    says(&agent, "this device's certificate was renewed");
    assert_eq!(fleet.counter("renewed").unwrap(), 1);
    assert_eq!(fleet.counter("mqtt_accepted").unwrap(), 1, "the connection stands");
    assert_ne!(fs::read(agent.state().join("device.pem")).unwrap(), before);
    agent.stop().unwrap();
    agent.run().unwrap();
    wait_for("the next connection", Duration::from_secs(20), || {
        Ok((fleet.counter("mqtt_accepted")? == 2).then_some(()))
    })
    .unwrap_or_else(|error: Failed| panic!("{error}\n{}", agent.log()));
    agent.stop().unwrap();
}
