//! What was read or written of a key is not left in memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::gateway::Gateway;
use tests::wait_for;

use crate::needs_root;

/// All that a process may write to in its memory.
fn memory_of(pid: u32) -> Vec<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let part = |line: &str| {
        let mut words = line.split(' ');
        let (from, to) = words.next()?.split_once('-')?;
        words.next().filter(|rights| rights.starts_with("rw"))?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        let mut bytes = vec![0; usize::try_from(to - from).ok()?];
        memory.read_exact_at(&mut bytes, from).ok()?;
        Some(bytes)
    };
    maps.lines().filter_map(part).collect()
}

fn holds(memory: &[Vec<u8>], wanted: &[u8]) -> bool {
    assert!(wanted.len() >= 16, "too short to be only that");
    memory.iter().any(|part| part.windows(wanted.len()).any(|window| window == wanted))
}

/// The first line of a key in PEM form, which holds the beginning of the private part.
fn line_of(path: &Path) -> Vec<u8> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().nth(1).unwrap().as_bytes().to_vec()
}

#[test]
fn no_text_of_a_key_is_left_in_the_memory_of_server_or_agent() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let watch = Gateway::executable(&dir.path().join("gateway"));
    let mut agent = Agent::enroll(&dir.path().join("agent"), &watch, &fleet, "gw-wiped").unwrap();
    agent.run().unwrap();
    wait_for("the link", Duration::from_secs(40), || {
        agent.check()?;
        Ok(agent.status().ok().filter(|status| status["online"] == true))
    })
    .unwrap();
    let server = memory_of(fleet.id().unwrap());
    assert!(holds(&server, b"-----BEGIN CERTIFICATE-----"), "nothing was read of the server's memory");
    for name in ["ca.key", "server.key"] {
        assert!(!holds(&server, &line_of(&fleet.state().join(name))), "{name} in the server's memory");
    }
    let bundle_key = fs::read(fleet.state().join("bundle.key")).unwrap();
    assert!(!holds(&server, &bundle_key), "bundle.key in the server's memory");
    let agent_memory = memory_of(agent.id().unwrap());
    let folder = agent.state();
    assert!(
        holds(&agent_memory, folder.as_os_str().as_encoded_bytes()),
        "nothing was read of the agent's memory"
    );
    assert!(!holds(&agent_memory, &line_of(&folder.join("device.key"))), "device.key in the agent's memory");
    agent.stop().unwrap();
}
