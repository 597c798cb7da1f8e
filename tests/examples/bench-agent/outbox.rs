//! Alerts that waited, on their way to the fleet when the link is back.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use agent::outbox::{Kept, LogOutbox, Outbox as _};
use models::policy::Severity;
use models::program::ProgramId;
use models::wire::{Alert, DetectorScore, Reason, Uplink};
use tests::Failed;
use tests::agent::Agent;
use tests::fleet::Fleet;

/// Room for all of them.
const ROOM: u64 = 128 << 20;

pub(crate) struct Replay {
    /// Of the outbox on disk.
    pub(crate) bytes: u64,
    /// Stored by the fleet.
    pub(crate) per_s: f64,
}

/// Fills an outbox with `waiting` alerts while there is no link, then lets it go.
pub(crate) fn replay(dir: &Path, waiting: u64) -> Result<Replay, Failed> {
    let failed = |error: &dyn std::fmt::Display| Failed::new("filling the outbox", error);
    let fleet = Fleet::start(&dir.join("fleet"), 10_000)?;
    let config = "watch = [\"/nothing\"]\noutbox_max = \"128MiB\"\n";
    let mut agent = Agent::enroll_with(&dir.join("agent"), config, &fleet, "replay")?;
    eprintln!("filling an outbox with {waiting} alerts");
    let outbox = LogOutbox::open(&agent.state(), ROOM).map_err(|error| failed(&error))?;
    for n in 0..waiting {
        match outbox.put(Uplink::Alert(alert(n))).map_err(|error| failed(&error))? {
            Kept::As(_) => {}
            kept => return Err(failed(&format!("alert {n} was {kept:?}"))),
        }
    }
    drop(outbox);
    let bytes = size(&agent.state().join("outbox"));
    agent.run()?;
    let stored = || fleet.counter("frames_stored");
    let (mut begun, mut first) = (None, 0);
    let started = SystemTime::now();
    let per_s = loop {
        agent.check()?;
        let n = stored()?;
        if n > 0 && begun.is_none() {
            (begun, first) = (Some(SystemTime::now()), n);
        }
        if let Some(begun) = begun.filter(|_| n >= waiting) {
            let passed = begun.elapsed().unwrap_or_default().as_secs_f64();
            break (n - first) as f64 / passed.max(f64::MIN_POSITIVE);
        }
        if started.elapsed().unwrap_or_default() > Duration::from_secs(600) {
            return Err(Failed(format!("{n} of {waiting} alerts were stored within 600 s")));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    agent.stop()?;
    let twice = fleet.counter("frames_duplicate")?;
    // What happened to the agent is stored beside them.
    let alerts = fleet.get("devices/replay")?["alerts"].as_u64().unwrap_or(0);
    if alerts != waiting {
        return Err(Failed(format!("{alerts} of {waiting} alerts are stored, {twice} came twice")));
    }
    Ok(Replay { bytes, per_s })
}

/// As an attack gives them.
fn alert(n: u64) -> Alert {
    let reason = |name: &str, text: &str| Reason {
        layer: "file".into(),
        name: name.into(),
        text: text.into(),
        share: 1.0,
    };
    Alert {
        unix_ms: 1_700_000_000_000 + n,
        program: ProgramId { unit: "pump.service".into(), exe: "/usr/bin/pump".into(), script: None },
        pid: 2231,
        comm: "pump".into(),
        score: 100.0,
        severity: Severity::Critical,
        techniques: ["T1003.008", "T1059", "T1571"].map(str::to_owned).into(),
        summary:
            "opened the sensitive file /etc/shadow and started a shell (/bin/sh), each for the first time"
                .into(),
        reasons: vec![
            reason("first_sensitive_file", "opened the sensitive file /etc/shadow; it never did before"),
            reason("first_shell", "started a shell (/bin/sh); it never did before"),
            reason("first_port", "connected to 127.0.0.1 port 4444; it never used this port before"),
        ],
        generation: 1,
        detectors: ["vae", "lstm", "nearest", "novelty"]
            .map(|name| DetectorScore { name: name.into(), z: 3.5 })
            .into(),
        suppressed_before: 0,
        degraded: vec![],
    }
}

fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
}
