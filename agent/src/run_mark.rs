//! What a run of the agent leaves behind for the next one: whether it was asked to end, and by which configuration and
//! program file it ran.
//!
//! `<state>/run.json`. Whoever can write it is root and can do worse; that a run ended is told by the fleet too, which misses
//! the heartbeats.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use models::wire::EventKind;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::config::{Config, QuarantineRule, UpdateRule};
use crate::files;
use crate::vitals;

/// An agent that is started again and again tells of it once in this time.
const TELL_EVERY_MS: u64 = 60_000;

/// The file of the run that goes on.
#[derive(Debug)]
pub struct RunMark {
    path: PathBuf,
    mark: Mark,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Mark {
    boot_id: String,
    pid: u32,
    version: String,
    /// SHA-256 of the program file.
    program: String,
    started_unix_ms: u64,
    /// It was asked to end, and ended.
    ended: bool,
    /// `None` when another version wrote one that is not understood.
    #[serde(default, deserialize_with = "understood")]
    config: Option<Config>,
    /// What the configuration holds beside, and captures do not.
    #[serde(default)]
    quarantine: QuarantineRule,
    #[serde(default)]
    update: UpdateRule,
    /// Of what else it holds: it may name secrets.
    sinks: String,
    /// When an unexpected end was last told, and how many were not since.
    told_unix_ms: u64,
    untold: u32,
}

/// What the last run left to be told.
pub type Found = Vec<(EventKind, String)>;

impl RunMark {
    /// Begins a run, and says what is odd about the last one.
    #[must_use]
    pub fn begin(state: &Path, config: &Config) -> (Self, Found) {
        let now_ms = clock::now().unix_ms;
        let mut found = Found::new();
        let path = state.join("run.json");
        let mut mark = Mark {
            boot_id: vitals::boot_id(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            program: program_hash().unwrap_or_default(),
            started_unix_ms: now_ms,
            ended: false,
            config: Some(config.clone()),
            quarantine: config.quarantine.clone(),
            update: config.update.clone(),
            sinks: sinks_hash(config),
            told_unix_ms: 0,
            untold: 0,
        };
        match fs::read(&path) {
            Ok(raw) => match serde_json::from_slice::<Mark>(&raw) {
                Ok(before) => compare(&before, &mut mark, &mut found),
                Err(error) => {
                    log::error!(
                        "{} is damaged ({error}): how the last run ended is not known",
                        path.display()
                    );
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::error!("{} cannot be read: {error}", path.display()),
        }
        let run = Self { path, mark };
        run.write();
        (run, found)
    }

    /// It goes on by this configuration.
    pub fn configured(&mut self, config: &Config) {
        self.mark.config = Some(config.clone());
        self.mark.quarantine = config.quarantine.clone();
        self.mark.update = config.update.clone();
        self.mark.sinks = sinks_hash(config);
        self.write();
    }

    /// SHA-256 of the program file that runs, in hexadecimal; empty when it cannot be read.
    #[must_use]
    pub fn program_file(&self) -> &str {
        &self.mark.program
    }

    /// It ends because it was asked to.
    pub fn end(mut self) {
        self.mark.ended = true;
        self.write();
    }

    fn write(&self) {
        let written = serde_json::to_vec(&self.mark).map_err(io::Error::other);
        if let Err(error) = written.and_then(|json| files::write_private(&self.path, &json)) {
            log::error!("{}: {error}; how this run ends may be told wrongly", self.path.display());
        }
    }
}

fn compare(before: &Mark, now: &mut Mark, found: &mut Found) {
    (now.told_unix_ms, now.untold) = (before.told_unix_ms, before.untold);
    if !before.ended {
        // A clock that was set back must not keep it quiet.
        if now.started_unix_ms.abs_diff(before.told_unix_ms) < TELL_EVERY_MS {
            now.untold += 1;
        } else {
            let more = match before.untold {
                0 => String::new(),
                n => format!(", and so did {n} runs before it"),
            };
            found.push(if before.boot_id == now.boot_id {
                let text = format!(
                    "the agent's last run (process {}) ended without being asked to: it was killed, or it crashed{more}",
                    before.pid
                );
                (EventKind::Killed, text)
            } else {
                let text =
                    format!("the machine went down without stopping the agent: power loss, or a reset{more}");
                (EventKind::MachineEnded, text)
            });
            (now.told_unix_ms, now.untold) = (now.started_unix_ms, 0);
        }
    }
    if before.program != now.program && !now.program.is_empty() {
        let text = if before.version == now.version {
            format!(
                "the agent's program file is another than in its last run, of the same version {}",
                now.version
            )
        } else {
            format!("the agent was version {} in its last run and is {} now", before.version, now.version)
        };
        found.push((EventKind::AgentReplaced, text));
    }
    if let (Some(config), Some(running)) = (&before.config, &now.config) {
        let (quarantine, update) = (before.quarantine.clone(), before.update.clone());
        let config = Config { quarantine, update, ..config.clone() };
        found.extend(changed(&config, running, before.sinks != now.sinks));
    }
}

/// What is told of a configuration that is another than before; `None` when it is the same.
#[must_use]
pub fn change(before: &Config, now: &Config) -> Option<(EventKind, String)> {
    changed(before, now, before.sinks != now.sinks)
}

fn changed(before: &Config, now: &Config, sinks: bool) -> Option<(EventKind, String)> {
    let mut keys = before.differing(now);
    keys.extend((before.contain != now.contain).then(|| "contain".to_owned()));
    keys.extend(sinks.then(|| "sink".to_owned()));
    let text = format!("the configuration was changed: {}", keys.join(", "));
    (!keys.is_empty()).then_some((EventKind::ConfigurationChanged, text))
}

/// A configuration of this version; what another one wrote is none.
fn understood<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Config>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).ok())
}

fn sinks_hash(config: &Config) -> String {
    HEXLOWER.encode(digest(&SHA256, format!("{:?}", config.sinks).as_bytes()).as_ref())
}

/// Of the file that this process runs, also when it was replaced or removed since.
fn program_hash() -> io::Result<String> {
    Ok(HEXLOWER.encode(&files::sha256_of(Path::new("/proc/self/exe"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(found: &Found) -> Vec<EventKind> {
        found.iter().map(|(kind, _)| *kind).collect()
    }

    #[test]
    fn the_next_run_knows_how_the_last_one_ended_and_what_was_changed() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::default();
        let (run, found) = RunMark::begin(dir.path(), &config);
        assert!(found.is_empty(), "{found:?}");
        run.end();
        let (run, found) = RunMark::begin(dir.path(), &config);
        assert!(found.is_empty(), "it was asked to end: {found:?}");
        drop(run);
        let other = Config::parse("lolbins = [\"rclone\"]\n[[sink]]\nkind = \"syslog\"\n").unwrap();
        let (_, found) = RunMark::begin(dir.path(), &other);
        assert_eq!(kinds(&found), [EventKind::Killed, EventKind::ConfigurationChanged]);
        assert!(found[1].1.ends_with("lolbins, sink"), "{}", found[1].1);
        let (_, found) = RunMark::begin(dir.path(), &other);
        assert!(found.is_empty(), "the next within a minute is counted: {found:?}");
        let path = dir.path().join("run.json");
        let mut mark: Mark = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(mark.untold, 1);
        mark.told_unix_ms = 0;
        mark.boot_id = "another".into();
        mark.program = "another".into();
        fs::write(&path, serde_json::to_vec(&mark).unwrap()).unwrap();
        let (_, found) = RunMark::begin(dir.path(), &other);
        assert_eq!(kinds(&found), [EventKind::MachineEnded, EventKind::AgentReplaced]);
        assert!(found[0].1.ends_with("so did 1 runs before it"), "{}", found[0].1);
    }

    #[test]
    fn a_mark_of_another_version_or_a_damaged_one_is_no_reason_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::default();
        drop(RunMark::begin(dir.path(), &config));
        let path = dir.path().join("run.json");
        let mut mark: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        mark["config"] = serde_json::json!({ "windows": 3 });
        fs::write(&path, mark.to_string()).unwrap();
        assert_eq!(kinds(&RunMark::begin(dir.path(), &config).1), [EventKind::Killed]);
        fs::write(&path, "{").unwrap();
        assert!(RunMark::begin(dir.path(), &config).1.is_empty());
    }
}
