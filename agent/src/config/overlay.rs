//! The part of the configuration that the fleet gives: kept in the state folder, over the file and under the environment.

use std::fs;
use std::io;
use std::path::Path;

use models::orders::KEYS_OF_DEVICES;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::{Problem, parse};
use crate::files;

/// Its file in the state folder.
pub const OVERLAY_FILE: &str = "fleet-config.json";

/// What the fleet says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Counts up over the fleet.
    pub version: u64,
    /// TOML.
    pub text: String,
}

impl Overlay {
    /// What was last kept; `None` when the fleet never said anything.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(state: &Path) -> io::Result<Option<Self>> {
        match fs::read(state.join(OVERLAY_FILE)) {
            Ok(raw) => serde_json::from_slice(&raw).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps it, in place of the one before.
    ///
    /// # Errors
    /// When it cannot be written; the one before stays.
    pub fn write(&self, state: &Path) -> io::Result<()> {
        files::write_private(&state.join(OVERLAY_FILE), &serde_json::to_vec(self)?)
    }

    /// Its keys.
    ///
    /// # Errors
    /// When it is no TOML, or has a key that the fleet may not set.
    pub fn table(&self) -> Result<Table, Vec<Problem>> {
        let table = parse(&self.text)?;
        let text = "is for the device's own file: a fleet cannot set it";
        let own = KEYS_OF_DEVICES.iter().filter(|name| table.contains_key(**name));
        let problems: Vec<_> =
            own.map(|name| Problem { key: (*name).to_owned(), text: text.to_owned() }).collect();
        if problems.is_empty() { Ok(table) } else { Err(problems) }
    }
}

/// Puts every key of one table over another's, those of tables in them one by one.
pub(super) fn put_over(below: &mut Table, above: Table) {
    for (name, value) in above {
        match (below.get_mut(&name), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => put_over(below, above),
            (_, value) => drop(below.insert(name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn overlay(text: &str) -> Overlay {
        Overlay { version: 7, text: text.into() }
    }

    #[test]
    fn the_fleet_s_keys_are_over_the_file_s_and_under_the_environment_s() {
        let file = "window = \"5s\"\nheartbeat = \"9s\"\n[alerts]\nper_minute = 5\ndedup = \"60s\"\n";
        let fleet = overlay("window = \"7s\"\nprograms_max = 9\n[alerts]\nper_minute = 6\n");
        let environment = [("BEHAVEGUARD_PROGRAMS_MAX".to_owned(), "11".to_owned())];
        let config = Config::read_with(file, Some(&fleet), &environment).unwrap();
        assert_eq!((config.window.as_secs(), config.heartbeat.as_secs()), (7, 9));
        assert_eq!((config.programs_max, config.policy.per_minute), (11, 6));
        assert_eq!(config.policy.dedup_ns, 60_000_000_000, "of the same table, and not named by the fleet");
        assert_eq!(Config::read_with(file, Some(&overlay("")), &[]), Config::parse(file));
    }

    #[test]
    fn what_reaches_files_or_programs_of_the_device_is_refused() {
        for text in [
            "state = \"/\"",
            "outbox_engine = \"log\"",
            "[[sink]]\nkind = \"exec\"\ncommand = [\"/bin/sh\"]",
            "[[contain]]\nprogram = \"*\"\naction = \"kill\"",
            "contain = []",
            "redact = []",
        ] {
            let problems = Config::read_with("", Some(&overlay(text)), &[]).unwrap_err();
            assert!(problems[0].text.contains("a fleet cannot set it"), "{text}: {problems:?}");
        }
        let problems = Config::read_with("", Some(&overlay("windw = 1\nheartbeat = 3")), &[]).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(Config::read_with("", Some(&overlay("= 3")), &[]).is_err());
    }

    #[test]
    fn what_was_kept_is_read_and_a_damaged_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Overlay::read(dir.path()).unwrap(), None);
        overlay("window = \"7s\"").write(dir.path()).unwrap();
        assert_eq!(Overlay::read(dir.path()).unwrap(), Some(overlay("window = \"7s\"")));
        fs::write(dir.path().join(OVERLAY_FILE), "{").unwrap();
        assert!(Overlay::read(dir.path()).is_err());
    }
}
