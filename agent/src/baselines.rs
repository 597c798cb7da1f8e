//! Bundles on disk: verified, staged, then active with one rename; the one before is kept.
//!
//! `<state>/baselines/<program key>/` holds `active.bgb`, `previous.bgb`, and `highest`: the highest generation that
//! was ever active. It refuses an older bundle also after `active.bgb` was removed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use models::bundle::{self, BundleError, Expected, Keyring, Verified};
use models::chain::chain;
use models::detect::Detectors;
use models::program::ProgramId;

use crate::files;
use crate::local::Local;
use crate::pipeline::Shelf;

/// Why a bundle did not become active.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// It was refused; the active one is untouched.
    #[error("refused")]
    Refused(#[from] BundleError),
    /// There is no other one to go back to.
    #[error("there is no earlier baseline of {0}: an earlier one is kept when a new one is activated")]
    NoPrevious(String),
    /// The folder cannot be listed.
    #[error("listing {path}: it is readable by the user that the agent runs as")]
    List {
        /// Which folder.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Writing it failed; the active one is untouched.
    #[error("writing {path}")]
    File {
        /// Which file or folder.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// All baselines of this device.
#[derive(Debug)]
pub struct Baselines {
    dir: PathBuf,
    keys: Keyring,
    highest: BTreeMap<String, u64>,
}

impl Baselines {
    /// Opens the folder and hands out every active baseline that can still be read, one at a time: a bundle takes a megabyte.
    /// Damaged ones are logged. Where there is no folder there are none, and the first that is stored makes it.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn open(state: &Path, keys: Keyring, each: &mut dyn FnMut(Verified)) -> Result<Self, BaselineError> {
        let dir = state.join("baselines");
        let mut baselines = Self { dir, keys, highest: BTreeMap::new() };
        let failed = |dir: &Path, source| BaselineError::List { path: dir.to_owned(), source };
        let entries = match fs::read_dir(&baselines.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(baselines),
            entries => entries.map_err(|error| failed(&baselines.dir, error))?,
        };
        for entry in entries {
            let folder = entry.map_err(|error| failed(&baselines.dir, error))?.path();
            let Some(key) = folder.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
                continue;
            };
            let highest = fs::read_to_string(folder.join("highest")).ok();
            let highest: u64 = highest.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
            match baselines.read(&folder) {
                Ok(Some(verified)) => {
                    let generation = verified.manifest().generation;
                    baselines.highest.insert(key, highest.max(generation));
                    each(verified);
                }
                Ok(None) => {
                    baselines.highest.insert(key, highest);
                }
                Err(error) => {
                    log::error!(
                        "the baseline in {} is not used: {error}; the fleet sends it anew",
                        folder.display()
                    );
                    // One below, so that the same generation may be fetched again.
                    baselines.highest.insert(key, highest.saturating_sub(1));
                }
            }
        }
        Ok(baselines)
    }

    /// Reads the models of active baselines again: of the fleet's, and else of those that this device made. One that is not
    /// there as it was is logged.
    #[must_use]
    pub fn shelf(state: &Path, keys: Keyring) -> Shelf {
        let fleet = Self { dir: state.join("baselines"), keys, highest: BTreeMap::new() };
        let state = state.to_owned();
        Box::new(move |program, generation| {
            let folder = fleet.dir.join(program.key());
            let of_fleet = fleet.read(&folder).map_err(|error| chain(&error));
            let found = match of_fleet {
                Ok(Some(verified)) => Ok(Some(verified)),
                Ok(None) => {
                    Local::open(&state).map(|local| local?.of(program)).map_err(|error| chain(&error))
                }
                Err(error) => Err(error),
            };
            let same = |verified: &Verified| {
                (&verified.manifest().program, verified.manifest().generation) == (program, generation)
            };
            let models = found.and_then(|found| {
                let verified = found.filter(same).ok_or("it is not there as it was activated")?;
                Detectors::load(&verified).map_err(|error| chain(&error))
            });
            models.map_err(|error| log::error!("reading the models of {program} again: {error}")).ok()
        })
    }

    /// The highest generation of this program that was ever active here; 0 for none.
    #[must_use]
    pub fn highest(&self, program: &ProgramId) -> u64 {
        self.highest.get(&program.key()).copied().unwrap_or(0)
    }

    /// Verifies a bundle; changes nothing.
    ///
    /// # Errors
    /// When it is refused.
    pub fn check(&self, program: &ProgramId, raw: &[u8], now_unix_s: u64) -> Result<Verified, BaselineError> {
        let expected = Expected { program, active_generation: self.highest(program), now_unix_s };
        Ok(bundle::verify(raw, &self.keys, expected)?)
    }

    /// Makes a checked bundle, `raw`, the active one on disk.
    ///
    /// # Errors
    /// When it cannot be written; the active one is untouched then.
    pub fn store(&mut self, verified: &Verified, raw: &[u8]) -> Result<(), BaselineError> {
        let program = &verified.manifest().program;
        let key = program.key();
        let folder = self.dir.join(&key);
        let (active, staged) = (folder.join("active.bgb"), folder.join("staged.bgb"));
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| BaselineError::File { path, source }
        };
        files::make_private_dir(&folder).map_err(at(&folder))?;
        files::write_private(&staged, raw).map_err(at(&staged))?;
        match fs::rename(&active, folder.join("previous.bgb")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&active)(error)),
            _ => {}
        }
        fs::rename(&staged, &active).map_err(at(&active))?;
        files::sync_dir(&active).map_err(at(&folder))?;
        let generation = verified.manifest().generation;
        let highest = folder.join("highest");
        files::write_private(&highest, generation.to_string().as_bytes()).map_err(at(&highest))?;
        self.highest.insert(key, generation);
        Ok(())
    }

    /// There is one before the active one.
    #[must_use]
    pub fn has_previous(&self, program: &ProgramId) -> bool {
        self.dir.join(program.key()).join("previous.bgb").exists()
    }

    /// Exchanges the active bundle and the one before it; gives what is active now. The highest generation
    /// stays: what was active is not offered again, and the fleet's next one is taken.
    ///
    /// # Errors
    /// When there is none before it, it can no longer be read, or the exchange fails.
    pub fn roll_back(&mut self, program: &ProgramId) -> Result<Verified, BaselineError> {
        let folder = self.dir.join(program.key());
        let (active, previous) = (folder.join("active.bgb"), folder.join("previous.bgb"));
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| BaselineError::File { path, source }
        };
        let before = match fs::read(&previous) {
            Ok(raw) => raw,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BaselineError::NoPrevious(program.to_string()));
            }
            Err(source) => return Err(at(&previous)(source)),
        };
        let verified = bundle::open(&before, &self.keys)?;
        let now = fs::read(&active).map_err(at(&active))?;
        // A bundle is written before the other is replaced: a crash between the two leaves the new state, without a way back.
        files::write_private(&active, &before).map_err(at(&active))?;
        files::write_private(&previous, &now).map_err(at(&previous))?;
        Ok(verified)
    }

    /// Removes the active bundle, and the other one if there is one: it was rolled back before, and must not come in
    /// its place. The highest generation stays.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove(&mut self, program: &ProgramId) -> Result<(), BaselineError> {
        let folder = self.dir.join(program.key());
        for name in ["previous.bgb", "active.bgb"] {
            let path = folder.join(name);
            match fs::remove_file(&path).and_then(|()| files::sync_dir(&path)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(|source| BaselineError::File { path, source })?,
            }
        }
        Ok(())
    }

    /// The active bundle of a folder. After a crash between the two renames, the one before is active again.
    fn read(&self, folder: &Path) -> Result<Option<Verified>, BaselineError> {
        for name in ["active.bgb", "previous.bgb"] {
            let path = folder.join(name);
            match fs::read(&path) {
                Ok(raw) => return Ok(Some(bundle::open(&raw, &self.keys)?)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(BaselineError::File { path, source }),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use models::bundle::{Manifest, SigningKey, seal};

    use super::*;

    fn program() -> ProgramId {
        ProgramId { unit: "gw.service".into(), exe: "/usr/bin/gw".into(), script: None }
    }

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap()
    }

    fn bundle(generation: u64, key: &SigningKey) -> Vec<u8> {
        seal(Manifest::new(program(), generation, 0..1000), vec![("vae.onnx".into(), vec![1; 64])], key)
    }

    fn activate(baselines: &mut Baselines, raw: &[u8]) -> Result<(), BaselineError> {
        let verified = baselines.check(&program(), raw, 10)?;
        baselines.store(&verified, raw)
    }

    fn open(dir: &Path, key: &SigningKey) -> (Baselines, Vec<u64>) {
        let keys = Keyring([key.public()].into_iter().collect());
        let mut active = Vec::new();
        let baselines =
            Baselines::open(dir, keys, &mut |verified| active.push(verified.manifest().generation)).unwrap();
        (baselines, active)
    }

    #[test]
    fn each_bad_bundle_has_its_own_error_and_the_active_one_stays() {
        let (dir, mine, other) = (tempfile::tempdir().unwrap(), key(), key());
        let (mut baselines, _) = open(dir.path(), &mine);
        activate(&mut baselines, &bundle(2, &mine)).unwrap();
        let mut tampered = bundle(3, &mine);
        let middle = tampered.len() / 2;
        tampered[middle] ^= 1;
        let mut check = |raw: &[u8], expected: fn(&BundleError) -> bool| {
            let Err(BaselineError::Refused(error)) = activate(&mut baselines, raw) else {
                panic!("a bad bundle was taken")
            };
            assert!(expected(&error), "{error}");
        };
        check(&tampered, |e| matches!(e, BundleError::PartChanged(_) | BundleError::BadSignature(_)));
        check(&bundle(3, &other), |e| matches!(e, BundleError::UnknownKey(_)));
        check(&bundle(1, &mine), |e| matches!(e, BundleError::Older { offered: 1, active: 2 }));
        check(&bundle(2, &mine), |e| matches!(e, BundleError::Older { .. }));
        check(b"not a bundle", |e| matches!(e, BundleError::Malformed));
        assert_eq!(open(dir.path(), &mine).1, [2]);
    }

    #[test]
    fn an_older_bundle_is_refused_also_when_the_active_one_was_removed() {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let (mut baselines, _) = open(dir.path(), &key);
        activate(&mut baselines, &bundle(5, &key)).unwrap();
        baselines.remove(&program()).unwrap();
        let (mut baselines, active) = open(dir.path(), &key);
        assert!(active.is_empty());
        assert!(activate(&mut baselines, &bundle(4, &key)).is_err());
        assert!(activate(&mut baselines, &bundle(6, &key)).is_ok());
    }

    #[test]
    fn a_rollback_brings_the_one_before_back_and_only_a_newer_one_is_taken_then() {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let (mut baselines, _) = open(dir.path(), &key);
        activate(&mut baselines, &bundle(1, &key)).unwrap();
        let refused = baselines.roll_back(&program()).unwrap_err();
        assert!(refused.to_string().contains("no earlier baseline"), "{refused}");
        activate(&mut baselines, &bundle(2, &key)).unwrap();
        assert!(baselines.has_previous(&program()));
        let generation = |verified: Verified| verified.manifest().generation;
        assert_eq!(baselines.roll_back(&program()).map(generation).unwrap(), 1);
        let (mut baselines, active) = open(dir.path(), &key);
        assert_eq!((active, baselines.highest(&program())), (vec![1], 2));
        assert!(activate(&mut baselines, &bundle(2, &key)).is_err(), "it was rolled back");
        assert_eq!(baselines.roll_back(&program()).map(generation).unwrap(), 2, "and forth");
        assert!(activate(&mut baselines, &bundle(3, &key)).is_ok());
    }

    #[test]
    fn of_a_removed_baseline_nothing_comes_back_that_was_rolled_back_before() {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let (mut baselines, _) = open(dir.path(), &key);
        activate(&mut baselines, &bundle(1, &key)).unwrap();
        activate(&mut baselines, &bundle(2, &key)).unwrap();
        baselines.roll_back(&program()).unwrap();
        baselines.remove(&program()).unwrap();
        let (mut baselines, active) = open(dir.path(), &key);
        assert_eq!((active, baselines.highest(&program())), (vec![], 2));
        assert!(activate(&mut baselines, &bundle(2, &key)).is_err());
        assert!(activate(&mut baselines, &bundle(3, &key)).is_ok());
    }

    #[cfg(feature = "train")]
    #[test]
    fn models_are_read_again_only_as_they_were_activated() {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let (mut baselines, _) = open(dir.path(), &key);
        let trained = crate::train::tests::trained();
        for generation in [1, 2] {
            let raw = trained.clone().seal(program(), generation, 0..1000, &key);
            activate(&mut baselines, &raw).unwrap();
        }
        let mut shelf = Baselines::shelf(dir.path(), Keyring([key.public()].into_iter().collect()));
        assert!(shelf(&program(), 2).is_some_and(|models| models.bytes() > 1000));
        assert!(shelf(&program(), 1).is_none(), "another took its place");
        let other = ProgramId { exe: "/usr/bin/other".into(), ..program() };
        assert!(shelf(&other, 2).is_none());
        let path = dir.path().join("baselines").join(program().key()).join("active.bgb");
        let mut raw = fs::read(&path).unwrap();
        let middle = raw.len() / 2;
        raw[middle] ^= 1;
        fs::write(&path, raw).unwrap();
        assert!(shelf(&program(), 2).is_none(), "it was changed on disk");
    }

    #[test]
    fn looking_leaves_no_trace() {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let (_, active) = open(dir.path(), &key);
        assert!(active.is_empty() && fs::read_dir(dir.path()).unwrap().next().is_none());
        fs::write(dir.path().join("baselines"), "a file").unwrap();
        let error = Baselines::open(dir.path(), Keyring::default(), &mut |_| {}).unwrap_err().to_string();
        assert!(
            error.starts_with("listing ") && error.contains("the user that the agent runs as"),
            "{error}"
        );
    }

    #[test]
    fn a_crash_between_the_renames_brings_the_one_before_back() {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let (mut baselines, _) = open(dir.path(), &key);
        activate(&mut baselines, &bundle(1, &key)).unwrap();
        let folder = dir.path().join("baselines").join(program().key());
        fs::rename(folder.join("active.bgb"), folder.join("previous.bgb")).unwrap();
        let (mut baselines, active) = open(dir.path(), &key);
        assert_eq!(active, [1]);
        assert!(activate(&mut baselines, &bundle(2, &key)).is_ok());
    }
}
