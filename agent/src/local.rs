//! Baselines that this device made itself, beside those of its fleet.
//!
//! `<state>/local/` holds `key`, made at first use, and one `<program key>.bgb` per program. They count up by themselves and
//! never touch the generations of [`crate::baselines`], so the fleet's rollback protection stays as it is. The key
//! is trusted for this folder only: what the fleet offers must be signed by the fleet. Where the fleet has ever made
//! a baseline for a program, the device's own is not used.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use models::bundle::{self, Keyring, SigningKey, Verified};
use models::program::ProgramId;

use crate::baselines::Baselines;
use crate::files;

/// Why a baseline of this device cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A file or folder.
    #[error("using {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The key.
    #[error("{0} is no key: remove it with the baselines beside it, and train again")]
    Key(PathBuf),
}

/// The folder of a device's own baselines.
pub struct Local {
    dir: PathBuf,
    key: SigningKey,
}

impl Local {
    /// Opens the folder; makes it and its key at first use.
    ///
    /// # Errors
    /// When it cannot be made, or the key is damaged.
    pub fn create(state: &Path) -> Result<Self, LocalError> {
        if let Some(local) = Self::open(state)? {
            return Ok(local);
        }
        let dir = state.join("local");
        let path = dir.join("key");
        let failed = |source| LocalError::File { path: path.clone(), source };
        files::make_private_dir(&dir).map_err(failed)?;
        files::write_private(&path, &SigningKey::generate_pkcs8()).map_err(failed)?;
        Self::open(state)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
    }

    /// Opens the folder; `None` when this device never made a baseline.
    ///
    /// # Errors
    /// When the key cannot be read.
    pub fn open(state: &Path) -> Result<Option<Self>, LocalError> {
        let dir = state.join("local");
        let path = dir.join("key");
        match fs::read(&path) {
            Ok(bytes) => {
                let key = SigningKey::from_pkcs8(&bytes).ok_or(LocalError::Key(path))?;
                Ok(Some(Self { dir, key }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LocalError::File { path, source }),
        }
    }

    /// Signs what this device makes.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The generation that follows those this device made for a program.
    #[must_use]
    pub fn next_generation(&self, program: &ProgramId) -> u64 {
        let made = self.read(&self.file(program)).map_or(0, |verified| verified.manifest().generation);
        made + 1
    }

    /// Keeps a bundle for the next start of the agent.
    ///
    /// # Errors
    /// When it cannot be written; the one before stays.
    pub fn store(&self, program: &ProgramId, raw: &[u8]) -> Result<(), LocalError> {
        let path = self.file(program);
        files::write_private(&path, raw).map_err(|source| LocalError::File { path, source })
    }

    /// Hands out those of programs that the fleet never made one for, one at a time. Damaged and expired ones are logged and
    /// left out.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn active(
        &self,
        fleet: &Baselines,
        now_unix_s: u64,
        each: &mut dyn FnMut(Verified),
    ) -> Result<(), LocalError> {
        let failed = |source| LocalError::File { path: self.dir.clone(), source };
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_none_or(|extension| extension != "bgb") {
                continue;
            }
            let Some(verified) = self.read(&path) else { continue };
            let manifest = verified.manifest();
            if path != self.file(&manifest.program) {
                log::error!("{} is for another program and not used", path.display());
            } else if fleet.highest(&manifest.program) > 0 {
                log::info!("{}: the fleet's baseline is used, not this device's own", manifest.program);
            } else if manifest.expires_unix_s <= now_unix_s {
                log::error!("{} has expired and is not used; train again", path.display());
            } else {
                each(verified);
            }
        }
        Ok(())
    }

    /// What this device made for a program; `None` when there is none, or it is damaged.
    #[must_use]
    pub fn of(&self, program: &ProgramId) -> Option<Verified> {
        self.read(&self.file(program))
    }

    fn file(&self, program: &ProgramId) -> PathBuf {
        self.dir.join(format!("{}.bgb", program.key()))
    }

    /// A bundle of this device's key; `None` when there is none, or it is damaged.
    fn read(&self, path: &Path) -> Option<Verified> {
        let raw = fs::read(path).ok()?;
        let keys = Keyring([self.key.public()].into_iter().collect());
        match bundle::open(&raw, &keys) {
            Ok(verified) => Some(verified),
            Err(error) => {
                log::error!("{} is not used: {error}; train again", path.display());
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use models::bundle::{Manifest, seal};

    use super::*;

    fn program(name: &str) -> ProgramId {
        ProgramId { unit: "-".into(), exe: format!("/usr/bin/{name}"), script: None }
    }

    fn bundle(program: &ProgramId, generation: u64, key: &SigningKey) -> Vec<u8> {
        seal(Manifest::new(program.clone(), generation, 0..1000), vec![("vae.onnx".into(), vec![1; 64])], key)
    }

    fn names(local: &Local, fleet: &Baselines, now_unix_s: u64) -> Vec<String> {
        let mut names = Vec::new();
        let each = &mut |verified: Verified| names.push(verified.manifest().program.exe.clone());
        local.active(fleet, now_unix_s, each).unwrap();
        names
    }

    #[test]
    fn the_fleets_baseline_wins_and_its_generations_are_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let fleets = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
        let trusted = || Keyring([fleets.public()].into_iter().collect());
        let mut fleet = Baselines::open(dir.path(), trusted(), &mut |_| {}).unwrap();
        let (gw, other) = (program("gw"), program("other"));
        let local = Local::create(dir.path()).unwrap();
        for program in [&gw, &other] {
            assert_eq!(local.next_generation(program), 1);
            local.store(program, &bundle(program, 1, local.key())).unwrap();
        }
        local.store(&gw, &bundle(&gw, 2, local.key())).unwrap();
        assert_eq!(local.next_generation(&gw), 3);
        assert_eq!(names(&local, &fleet, 10).len(), 2);

        // What this device signed is not taken from the fleet; the fleet's first generation is.
        assert!(fleet.check(&gw, &bundle(&gw, 7, local.key()), 10).is_err());
        let raw = bundle(&gw, 1, &fleets);
        let verified = fleet.check(&gw, &raw, 10).unwrap();
        fleet.store(&verified, &raw).unwrap();
        assert_eq!(names(&local, &fleet, 10), ["/usr/bin/other"]);
        assert!(fleet.check(&gw, &raw, 10).is_err(), "rollback protection is as it was");
        let mut active = 0;
        Baselines::open(dir.path(), trusted(), &mut |_| active += 1).unwrap();
        assert_eq!(active, 1);
    }

    #[test]
    fn the_key_is_made_once_for_its_owner_and_other_files_are_not_used() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Local::open(dir.path()).unwrap().is_none());
        let local = Local::create(dir.path()).unwrap();
        let again = Local::create(dir.path()).unwrap();
        assert_eq!(local.key().public(), again.key().public());
        let mode = fs::metadata(dir.path().join("local/key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let fleet = Baselines::open(dir.path(), Keyring::default(), &mut |_| {}).unwrap();
        let stranger = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
        let gw = program("gw");
        local.store(&gw, &bundle(&gw, 1, &stranger)).unwrap();
        assert!(names(&local, &fleet, 10).is_empty(), "signed by another");
        local.store(&gw, &bundle(&program("other"), 1, local.key())).unwrap();
        assert!(names(&local, &fleet, 10).is_empty(), "renamed");
        local.store(&gw, &bundle(&gw, 1, local.key())).unwrap();
        assert_eq!(names(&local, &fleet, 10).len(), 1);
        assert!(names(&local, &fleet, 1000).is_empty(), "expired");
        fs::write(dir.path().join("local/key"), b"no key").unwrap();
        assert!(matches!(Local::open(dir.path()), Err(LocalError::Key(_))));
    }
}
