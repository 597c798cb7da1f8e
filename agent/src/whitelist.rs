//! What the operator knows to be right although it is new: [`Entry`]s that take something away from the verdict on a
//! program, and leave everything else of it to be told.
//!
//! They lie in `<state>/whitelist.json`, written whole before they are in force.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use models::novelty::{Kind, trait_hex, trait_id};
use models::program::{NO_UNIT, ProgramId};
use serde::{Deserialize, Serialize};

use crate::config::glob;
use crate::explanations::Explained;
use crate::files;

/// Entries at most; one more is refused, unless an expired one makes room.
pub const ENTRIES_MAX: usize = 256;
/// Acts of one entry at most.
pub const ACTS_MAX: usize = 64;
/// The longest reason, in bytes.
pub const REASON_MAX: usize = 500;
/// The longest program, unit or act's words, in bytes.
const TEXT_MAX: usize = 4096;
/// Larger than any that the limits allow.
const BYTES_MAX: u64 = 32 << 20;

/// A thing that a program may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Act {
    /// Its kind and value, as baselines hold it.
    #[serde(with = "trait_hex")]
    pub trait_id: u64,
    /// In words.
    pub text: String,
}

impl Act {
    /// From what an operator writes: `NAME=VALUE`, where `NAME` is the evidence's in alerts.
    ///
    /// # Errors
    /// When there is no such act; the text says which there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("must be like first_sensitive_file=/etc/shadow")?;
        let kind = Kind::named(name).ok_or_else(|| {
            let names: Vec<&str> = Kind::all().map(Kind::name).collect();
            format!("no act is named {name:?}; there are: {}", names.join(", "))
        })?;
        if value.is_empty() {
            return Err(format!("{name} of what? e.g. {name}=VALUE"));
        }
        Ok(Self { trait_id: trait_id(kind, value), text: text.to_owned() })
    }
}

/// What is taken away from a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// These acts are no news.
    Acts(Vec<Act>),
    /// What the detectors say of its windows is worth nothing; its acts are told.
    Statistics,
    /// Nothing is told.
    Everything,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The executable; `*` stands for any characters.
    pub program: String,
    /// Only in this unit, and [`NO_UNIT`] for none; `*` stands for any characters.
    pub unit: String,
    /// Only of this script, where the executable is an interpreter.
    pub script: Option<String>,
    /// What is taken away.
    pub what: What,
    /// Why, for whoever reads it in a year.
    pub reason: String,
    /// Seconds since 1970; `None` until it is removed.
    pub expires_unix_s: Option<u64>,
}

/// One that is in force, or was until it expired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts up; never used twice.
    pub id: u32,
    /// What was asked for.
    #[serde(flatten)]
    pub wanted: Wanted,
    /// Who asked.
    pub added_by_uid: u32,
    /// When, in seconds since 1970.
    pub added_unix_s: u64,
}

impl Entry {
    /// No longer in force.
    #[must_use]
    pub fn has_expired(&self, unix_s: u64) -> bool {
        self.wanted.expires_unix_s.is_some_and(|end| end <= unix_s)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wanted { program, unit, script, what, reason, .. } = &self.wanted;
        write!(f, "entry {}: {program}", self.id)?;
        match &**unit {
            "*" => {}
            NO_UNIT => f.write_str(" without a unit")?,
            unit => write!(f, " in {unit}")?,
        }
        if let Some(script) = script {
            write!(f, " ({script})")?;
        }
        match what {
            What::Acts(acts) => {
                let acts: Vec<&str> = acts.iter().map(|act| &*act.text).collect();
                write!(f, ": {}", acts.join(", "))?;
            }
            What::Statistics => f.write_str(": what the detectors say")?,
            What::Everything => f.write_str(": everything")?,
        }
        write!(f, "; because {reason}")
    }
}

/// What is wrong with a wish.
#[derive(Debug, thiserror::Error)]
pub enum WhitelistError {
    /// It says nothing, or too much.
    #[error("{0}")]
    Bad(&'static str),
    /// The list is full.
    #[error("{ENTRIES_MAX} entries are in force: remove one first")]
    Full,
    /// No such entry.
    #[error("no entry has the number {0}: `behaveguard whitelist list` shows them")]
    Unknown(u32),
    /// The file.
    #[error("writing {path}; nothing was changed")]
    Write {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

impl Wanted {
    /// What makes an alert that was explained no alert the next time: its acts, or where it had none, its statistics.
    #[must_use]
    pub fn of(explained: &Explained, reason: String, expires_unix_s: Option<u64>) -> Self {
        let act = |evidence: &models::explain::Evidence| {
            // The clause behind the semicolon says that it was new.
            let text = evidence.text.rsplit_once("; ").map_or(&*evidence.text, |(act, _)| act);
            Act { trait_id: evidence.trait_id, text: text.to_owned() }
        };
        let acts: Vec<Act> = explained.explanation.evidence.iter().map(act).collect();
        let ProgramId { unit, exe, script } = explained.program.clone();
        let what = if acts.is_empty() { What::Statistics } else { What::Acts(acts) };
        Self { program: exe, unit, script, what, reason, expires_unix_s }
    }

    fn check(&self, unix_s: u64) -> Result<(), WhitelistError> {
        let bad = |text| Err(WhitelistError::Bad(text));
        if self.reason.trim().is_empty() || self.reason.len() > REASON_MAX {
            return bad("a reason of 500 bytes at most is needed: who reads it in a year wants to know why");
        }
        if self.program.is_empty() || self.unit.is_empty() {
            return bad("a program and a unit are needed; * stands for any");
        }
        let script = self.script.as_deref().unwrap_or_default();
        if [&*self.program, &*self.unit, script].iter().any(|text| text.len() > TEXT_MAX) {
            return bad("a program, a unit or a script of 4096 bytes at most can be named");
        }
        if self.expires_unix_s.is_some_and(|end| end <= unix_s) {
            return bad("it would be over before it began");
        }
        match &self.what {
            What::Acts(acts) if acts.is_empty() || acts.len() > ACTS_MAX => {
                bad("from 1 to 64 acts are needed")
            }
            What::Acts(acts) if acts.iter().any(|act| act.text.len() > TEXT_MAX) => {
                bad("an act of 4096 bytes at most can be named")
            }
            _ => Ok(()),
        }
    }

    fn fits(&self, program: &ProgramId) -> bool {
        glob(&self.program, &program.exe)
            && glob(&self.unit, &program.unit)
            && self.script.as_ref().is_none_or(|script| program.script.as_ref() == Some(script))
    }
}

/// What the entries for one program take away together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Traits that are no news.
    pub acts: Vec<u64>,
    /// The detectors are not heard.
    pub statistics: bool,
    /// Nothing is told.
    pub everything: bool,
}

/// All entries, and the file in which they lie.
#[derive(Debug, Default)]
pub struct Whitelist {
    /// Empty when they lie in none.
    path: PathBuf,
    kept: Kept,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    next_id: u32,
    entries: Vec<Entry>,
}

impl Whitelist {
    /// Reads that of a state folder. One that cannot be read is put aside and nothing is in force then: more is told, not
    /// less.
    #[must_use]
    pub fn open(state: &Path) -> Self {
        let path = state.join("whitelist.json");
        let too_large = fs::metadata(&path).is_ok_and(|file| file.len() > BYTES_MAX);
        let read = if too_large {
            Err(io::Error::other("it is too large"))
        } else {
            fs::read(&path).and_then(|raw| serde_json::from_slice(&raw).map_err(io::Error::other))
        };
        let kept = read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                let aside = path.with_extension("damaged");
                let _ = fs::rename(&path, &aside);
                log::error!(
                    "the whitelist cannot be read, so nothing is whitelisted: {error}; it is in {} now",
                    aside.display()
                );
            }
            Kept::default()
        });
        Self { path, kept }
    }

    /// Every entry, oldest first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.kept.entries
    }

    /// Puts one in force.
    ///
    /// # Errors
    /// When it says nothing, there is no room, or it cannot be written.
    pub fn add(&mut self, wanted: Wanted, by_uid: u32, unix_s: u64) -> Result<Entry, WhitelistError> {
        wanted.check(unix_s)?;
        let mut kept = self.kept.clone();
        if kept.entries.len() >= ENTRIES_MAX {
            kept.entries.retain(|entry| !entry.has_expired(unix_s));
        }
        if kept.entries.len() >= ENTRIES_MAX {
            return Err(WhitelistError::Full);
        }
        kept.next_id += 1;
        let entry = Entry { id: kept.next_id, wanted, added_by_uid: by_uid, added_unix_s: unix_s };
        kept.entries.push(entry.clone());
        self.keep(kept)?;
        Ok(entry)
    }

    /// Takes one back.
    ///
    /// # Errors
    /// When there is none, or that cannot be written.
    pub fn remove(&mut self, id: u32) -> Result<Entry, WhitelistError> {
        let mut kept = self.kept.clone();
        let at = kept.entries.iter().position(|entry| entry.id == id).ok_or(WhitelistError::Unknown(id))?;
        let entry = kept.entries.remove(at);
        self.keep(kept)?;
        Ok(entry)
    }

    /// What is taken away from verdicts on a program.
    #[must_use]
    pub fn of(&self, program: &ProgramId, unix_s: u64) -> Allowance {
        let mut allowance = Allowance::default();
        let in_force = self.kept.entries.iter().filter(|entry| !entry.has_expired(unix_s));
        for entry in in_force.filter(|entry| entry.wanted.fits(program)) {
            match &entry.wanted.what {
                What::Acts(acts) => allowance.acts.extend(acts.iter().map(|act| act.trait_id)),
                What::Statistics => allowance.statistics = true,
                What::Everything => allowance.everything = true,
            }
        }
        allowance
    }

    fn keep(&mut self, kept: Kept) -> Result<(), WhitelistError> {
        if !self.path.as_os_str().is_empty() {
            let failed = |source| WhitelistError::Write { path: self.path.clone(), source };
            let text = serde_json::to_vec_pretty(&kept).map_err(|error| failed(error.into()))?;
            files::write_private(&self.path, &text).map_err(failed)?;
        }
        self.kept = kept;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn wanted(program: &str, what: What) -> Wanted {
        Wanted {
            program: program.into(),
            unit: "*".into(),
            script: None,
            what,
            reason: "the nightly backup".into(),
            expires_unix_s: None,
        }
    }

    fn program(exe: &str) -> ProgramId {
        ProgramId { unit: NO_UNIT.into(), exe: exe.into(), script: None }
    }

    #[test]
    fn entries_outlive_a_restart_and_numbers_are_never_used_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = Whitelist::open(dir.path());
        let act = Act::parse("first_sensitive_file=/etc/shadow").unwrap();
        let id = act.trait_id;
        list.add(wanted("/opt/backup*", What::Acts(vec![act])), 0, NOW).unwrap();
        list.add(wanted("/opt/other", What::Statistics), 0, NOW).unwrap();
        list.remove(2).unwrap();
        let mut again = Whitelist::open(dir.path());
        assert_eq!(again.entries(), list.entries());
        assert_eq!(again.of(&program("/opt/backup.sh"), NOW).acts, [id]);
        assert_eq!(again.of(&program("/opt/x"), NOW), Allowance::default());
        assert_eq!(again.add(wanted("/x", What::Everything), 7, NOW).unwrap().id, 3);
        assert!(matches!(again.remove(2), Err(WhitelistError::Unknown(2))));
        let error = again.remove(2).unwrap_err().to_string();
        assert!(error.contains("whitelist list"), "{error}");
    }

    #[test]
    fn one_that_expired_is_shown_and_takes_nothing_away() {
        let mut list = Whitelist::default();
        let ends = Wanted { expires_unix_s: Some(NOW + 10), ..wanted("/x", What::Everything) };
        list.add(ends.clone(), 0, NOW).unwrap();
        assert!(list.of(&program("/x"), NOW + 9).everything);
        assert!(!list.of(&program("/x"), NOW + 10).everything);
        assert_eq!(list.entries().len(), 1);
        assert!(matches!(list.add(ends, 0, NOW + 10), Err(WhitelistError::Bad(_))));
    }

    #[test]
    fn a_full_list_refuses_until_one_expires() {
        let mut list = Whitelist::default();
        let ends = Wanted { expires_unix_s: Some(NOW + 10), ..wanted("/x", What::Statistics) };
        list.add(ends, 0, NOW).unwrap();
        for _ in 1..ENTRIES_MAX {
            list.add(wanted("/x", What::Statistics), 0, NOW).unwrap();
        }
        assert!(matches!(list.add(wanted("/y", What::Statistics), 0, NOW), Err(WhitelistError::Full)));
        list.add(wanted("/y", What::Statistics), 0, NOW + 10).unwrap();
        assert_eq!(list.entries().len(), ENTRIES_MAX);
    }

    #[test]
    fn a_damaged_file_is_put_aside_and_nothing_is_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("whitelist.json");
        fs::write(&path, b"{\"entries\": [").unwrap();
        let mut list = Whitelist::open(dir.path());
        assert!(list.entries().is_empty() && dir.path().join("whitelist.damaged").exists());
        list.add(wanted("/x", What::Everything), 0, NOW).unwrap();
        assert_eq!(Whitelist::open(dir.path()).entries().len(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_not_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = Whitelist::open(&dir.path().join("gone"));
        let error = list.add(wanted("/x", What::Everything), 0, NOW).unwrap_err();
        assert!(matches!(error, WhitelistError::Write { .. }));
        assert!(!list.of(&program("/x"), NOW).everything);
    }

    #[test]
    fn a_wish_that_says_nothing_is_refused_with_the_reason() {
        for (text, said) in [
            ("first_sensitive_file", "must be like"),
            ("first_tea=x", "first_sensitive_file"),
            ("first_port=", "of what"),
        ] {
            assert!(Act::parse(text).unwrap_err().contains(said), "{text}");
        }
        let mut list = Whitelist::default();
        for bad in [
            Wanted { reason: " ".into(), ..wanted("/x", What::Everything) },
            wanted("", What::Everything),
            wanted("/x", What::Acts(vec![])),
        ] {
            assert!(matches!(list.add(bad, 0, NOW), Err(WhitelistError::Bad(_))));
        }
    }
}
