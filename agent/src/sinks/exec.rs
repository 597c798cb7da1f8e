//! A program for each alert, which it reads from standard input.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::{Deliver, Failure, Item};
use crate::clock;

/// Exit code of a program that wants to be started again for this alert, from sysexits(3).
const TRY_AGAIN: i32 = 75;
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(super) struct Exec {
    command: Vec<String>,
    timeout: Duration,
}

impl Exec {
    pub(super) fn new(command: Vec<String>, timeout: Duration) -> Self {
        Self { command, timeout }
    }

    fn start(&self, item: &Item) -> Result<Child, Failure> {
        let (program, arguments) =
            self.command.split_first().ok_or_else(|| Failure::Never("no command".into()))?;
        let alert = &item.alert;
        Command::new(program)
            .args(arguments)
            .env("ALERT_ID", &item.id)
            .env("ALERT_SEVERITY", alert.severity.as_str())
            .env("ALERT_SCORE", format!("{:.0}", alert.score))
            .env("ALERT_PROGRAM", alert.program.to_string())
            .env("ALERT_PID", alert.pid.to_string())
            .env("ALERT_SUMMARY", &alert.summary)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // It and its children can be killed as one.
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::Later(format!("starting {program}: {error}")))
    }

    fn wait(&self, child: &mut Child) -> Result<ExitStatus, Failure> {
        let until_ns = clock::boot_ns() + clock::nanoseconds(self.timeout);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if clock::boot_ns() < until_ns => thread::sleep(LOOK_EVERY),
                Ok(None) => break,
                Err(error) => return Err(Failure::Never(error.to_string())),
            }
        }
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = child.wait();
        Err(Failure::Never(format!("it did not end within {:?} and was killed", self.timeout)))
    }
}

impl Deliver for Exec {
    fn deliver(&mut self, item: &Item) -> Result<(), Failure> {
        let mut child = self.start(item)?;
        // A program that does not read must not hold this thread up.
        let json = format!("{}\n", item.json);
        if let Some(mut stdin) = child.stdin.take() {
            let _ = thread::Builder::new()
                .name("sink input".into())
                .spawn(move || stdin.write_all(json.as_bytes()));
        }
        let status = self.wait(&mut child)?;
        match status.code() {
            Some(0) => Ok(()),
            Some(TRY_AGAIN) => Err(Failure::Later("it asked to be tried again".into())),
            _ => Err(Failure::Never(format!("{} ended with {status}", self.command[0]))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::item;
    use super::*;
    use models::policy::Severity;

    fn exec(script: &str, timeout: Duration) -> Exec {
        Exec::new(vec!["/bin/sh".into(), "-c".into(), script.into()], timeout)
    }

    #[test]
    fn a_program_reads_the_alert_and_its_end_decides() {
        let dir = tempfile::tempdir().unwrap();
        let (read, item) = (dir.path().join("read"), item(Severity::High, "a shell"));
        let script = format!("cat > {0}; echo $ALERT_SEVERITY >> {0}", read.display());
        let second = Duration::from_secs(10);
        exec(&script, second).deliver(&item).unwrap();
        let told = std::fs::read_to_string(&read).unwrap();
        let (json, severity) = told.split_once('\n').unwrap();
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!((&json["device"], &json["summary"]), (&"gw-1".into(), &"a shell".into()));
        assert_eq!((json["id"].as_str(), severity), (Some(&*item.id), "HIGH\n"));
        assert!(matches!(exec("exit 75", second).deliver(&item), Err(Failure::Later(_))));
        assert!(matches!(exec("exit 1", second).deliver(&item), Err(Failure::Never(_))));
        let missing = Exec::new(vec!["/no/such/program".into()], second).deliver(&item);
        assert!(matches!(missing, Err(Failure::Later(reason)) if reason.contains("/no/such/program")));
    }

    #[test]
    fn one_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", pid.display());
        let killed = exec(&script, Duration::from_millis(500)).deliver(&item(Severity::High, "x"));
        assert!(matches!(killed, Err(Failure::Never(reason)) if reason.contains("was killed")));
        let child = std::fs::read_to_string(pid).unwrap();
        // A signal takes its time to arrive; a killed child is at worst a zombie of whoever inherits it.
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        let gone = |state: &str| state.is_empty() || state.contains(") Z ");
        for _ in 0..100 {
            if gone(&state()) {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        assert!(gone(&state()), "{}", state());
    }
}
