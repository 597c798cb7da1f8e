//! Program files that the fleet gave this agent to run in place of its package's.
//!
//! The package's program starts first, always. It hands over to `<state>/agent/program` when that is there, is what somebody of
//! `update.keys` signed, and comes back: linked to the fleet, with a window ended. What was started [`STARTS_MAX`] times in a row and
//! did not, or gave up by itself after [`PROOF`], is not started again, and the fleet is told why. A newer package wins.
//!
//! ```text
//! <state>/agent/part      what is being fetched        <state>/agent/wanted   what it is to become
//! <state>/agent/program   what is run                  <state>/agent/trial    what it is, and how it did
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use models::bundle::Keyring;
use models::program_file::{self, ProgramFile, is_older};
use models::wire::SignedProgramFile;
use serde::{Deserialize, Serialize};

use crate::files;

/// Starts in a row after which a program that did not come back is left.
pub const STARTS_MAX: u32 = 3;

/// For how long a program may run without having come back.
pub const PROOF: Duration = Duration::from_secs(300);

/// In the environment of a program that was handed over to.
const HANDED_OVER: &str = "BG_HANDED_OVER";

/// Whether this process was handed over to by its package's program, which takes over again when this one ends badly.
#[must_use]
pub fn was_handed_over() -> bool {
    std::env::var_os(HANDED_OVER).is_some()
}

/// What is known of the program in the folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Trial {
    signed: SignedProgramFile,
    version: String,
    /// Since it came back last.
    starts: u32,
    /// It came back once.
    proven: bool,
    /// Why it is not started.
    failed: Option<String>,
    /// The fleet was told of what became of it.
    told: bool,
}

/// The folder.
#[derive(Clone, Debug)]
pub struct Updates(PathBuf);

/// What is to be told of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It runs, and came back.
    Runs(String),
    /// It is not used.
    Failed(String),
}

impl Updates {
    /// Below a state folder.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self(state.join("agent"))
    }

    /// Hands over to the program in the folder, if there is one to hand over to; returns when there is none.
    pub fn launch(&self, keys: &Keyring) {
        if self.is_running() {
            return;
        }
        let Some(mut trial) = self.trial().filter(|trial| trial.failed.is_none()) else { return };
        if let Err(reason) = self.may_start(&trial, keys) {
            self.leave(trial, reason);
            return;
        }
        trial.starts += 1;
        if let Err(error) = self.write(&trial) {
            log::error!("the updated agent is not started, its start cannot be written down: {error}");
            return;
        }
        log::warn!("handing over to version {} of the agent, which the fleet gave", trial.version);
        let mut command = Command::new(self.program());
        let error = command.args(std::env::args_os().skip(1)).env(HANDED_OVER, "1").exec();
        self.leave(trial, format!("it cannot be started: {error}"));
    }

    fn may_start(&self, trial: &Trial, keys: &Keyring) -> Result<(), String> {
        let own = env!("CARGO_PKG_VERSION");
        if is_older(&trial.version, own) {
            return Err(format!("the package's version {own} is newer"));
        }
        if trial.starts >= STARTS_MAX {
            return Err(format!("it was started {STARTS_MAX} times and did not come back"));
        }
        let file = program_file::open(&trial.signed, keys).map_err(|error| error.to_string())?;
        let found = files::sha256_of(&self.program()).map_err(|error| error.to_string())?;
        if found != file.sha256 {
            return Err("its file was changed".to_owned());
        }
        // What the kernel refuses as a program, execvp(3) gives to a shell.
        let mut head = [0; 4];
        let read = File::open(self.program()).and_then(|mut program| program.read_exact(&mut head));
        if read.is_ok() && head == *b"\x7fELF" { Ok(()) } else { Err("it is no program".to_owned()) }
    }

    /// This process runs the program in the folder.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let own = std::env::current_exe().and_then(fs::canonicalize);
        matches!((own, fs::canonicalize(self.program())), (Ok(own), Ok(program)) if own == program)
    }

    /// What was not told yet: for the program itself once it came back, for the package's once it was left.
    pub fn news(&self, came_back: bool) -> Option<Outcome> {
        let mut trial = self.trial()?;
        if self.is_running() {
            if !came_back || (trial.proven && trial.starts == 0) {
                return None;
            }
            let first = !trial.proven;
            (trial.proven, trial.starts) = (true, 0);
            self.write_or_log(&trial);
            return first.then_some(Outcome::Runs(trial.version));
        }
        let reason = trial.failed.clone().filter(|_| !trial.told)?;
        trial.told = true;
        self.write_or_log(&trial);
        Some(Outcome::Failed(format!("version {}: {reason}", trial.version)))
    }

    /// The program that runs gives up, so that the package's is started.
    pub fn give_up(&self, reason: &str) {
        if let Some(trial) = self.trial() {
            self.leave(trial, reason.to_owned());
        }
    }

    /// Whether it still has to come back.
    #[must_use]
    pub fn is_trial(&self) -> bool {
        self.is_running() && self.trial().is_some_and(|trial| !trial.proven)
    }

    /// Remembers what is being fetched; what was fetched of something else is of no use.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn want(&self, signed: &SignedProgramFile) -> io::Result<()> {
        files::make_private_dir(&self.0)?;
        if self.wanted().as_ref() != Some(signed) {
            let _ = fs::remove_file(self.part());
        }
        let bytes = serde_json::to_vec(signed).map_err(io::Error::other)?;
        files::write_private(&self.0.join("wanted"), &bytes)
    }

    /// What is being fetched.
    #[must_use]
    pub fn wanted(&self) -> Option<SignedProgramFile> {
        serde_json::from_slice(&fs::read(self.0.join("wanted")).ok()?).ok()
    }

    /// Nothing is wanted any more.
    pub fn forget_wanted(&self) {
        let _ = fs::remove_file(self.0.join("wanted"));
        let _ = fs::remove_file(self.part());
    }

    /// Where it is fetched to.
    #[must_use]
    pub fn part(&self) -> PathBuf {
        self.0.join("part")
    }

    /// What was fetched is started next time.
    ///
    /// # Errors
    /// When nothing was wanted, or a file cannot be changed.
    pub fn ready(&self, file: &ProgramFile) -> io::Result<()> {
        let signed = self.wanted().ok_or_else(|| io::Error::other("nothing was asked for"))?;
        fs::set_permissions(self.part(), fs::Permissions::from_mode(0o700))?;
        // Without a trial the program is not started, whatever is in its place.
        let _ = fs::remove_file(self.0.join("trial"));
        fs::rename(self.part(), self.program())?;
        files::sync_dir(&self.program())?;
        let version = file.version.clone();
        self.write(&Trial { signed, version, starts: 0, proven: false, failed: None, told: false })?;
        self.forget_wanted();
        Ok(())
    }

    fn leave(&self, trial: Trial, reason: String) {
        log::error!("version {} of the agent, which the fleet gave, is left: {reason}", trial.version);
        self.write_or_log(&Trial { failed: Some(reason), told: false, ..trial });
        if !self.is_running() {
            let _ = fs::remove_file(self.program());
        }
    }

    fn program(&self) -> PathBuf {
        self.0.join("program")
    }

    fn trial(&self) -> Option<Trial> {
        serde_json::from_slice(&fs::read(self.0.join("trial")).ok()?).ok()
    }

    fn write(&self, trial: &Trial) -> io::Result<()> {
        let bytes = serde_json::to_vec(trial).map_err(io::Error::other)?;
        files::write_private(&self.0.join("trial"), &bytes)
    }

    fn write_or_log(&self, trial: &Trial) {
        if let Err(error) = self.write(trial) {
            log::error!("what became of an update cannot be written down: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use models::bundle::{SigningKey, sha256};

    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
        key: SigningKey,
    }

    impl Bench {
        fn new() -> Self {
            let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
            Self { dir: tempfile::tempdir().unwrap(), key }
        }

        fn updates(&self) -> Updates {
            Updates::of(self.dir.path())
        }

        fn keys(&self) -> Keyring {
            Keyring([self.key.public()].into_iter().collect())
        }

        /// Fetched, and ready to be started.
        fn given(&self, version: &str, bytes: &[u8]) {
            let file = ProgramFile {
                version: version.into(),
                arch: std::env::consts::ARCH.into(),
                sha256: sha256(bytes),
                size: u32::try_from(bytes.len()).unwrap(),
            };
            let updates = self.updates();
            updates.want(&file.sign(&self.key)).unwrap();
            fs::write(updates.part(), bytes).unwrap();
            updates.ready(&file).unwrap();
        }

        fn told(&self) -> Option<String> {
            self.updates().news(true).map(|outcome| match outcome {
                Outcome::Failed(reason) => reason,
                Outcome::Runs(version) => panic!("{version} does not run"),
            })
        }
    }

    #[test]
    fn what_cannot_be_started_is_left_once_and_for_all() {
        let bench = Bench::new();
        assert_eq!(bench.told(), None);
        bench.given("99.0", b"exit 0 # for a shell");
        bench.updates().launch(&bench.keys());
        assert_eq!(bench.told().unwrap(), "version 99.0: it is no program");
        // What the kernel refuses leaves this process as it is.
        bench.given("99.0", b"\x7fELF and nothing else");
        let program = bench.dir.path().join("agent/program");
        fs::set_permissions(program, fs::Permissions::from_mode(0o600)).unwrap();
        bench.updates().launch(&bench.keys());
        let told = bench.told().unwrap();
        assert!(told.starts_with("version 99.0: it cannot be started: "), "{told}");
        assert_eq!(bench.told(), None, "it is told once");
        bench.updates().launch(&bench.keys());
        assert!(!bench.dir.path().join("agent/program").exists());
    }

    #[test]
    fn who_does_not_come_back_or_was_changed_or_is_older_is_not_started() {
        let check = |prepare: &dyn Fn(&Bench), keys: fn(&Bench) -> Keyring, wanted: &str| {
            let bench = Bench::new();
            prepare(&bench);
            bench.updates().launch(&keys(&bench));
            let told = bench.told().unwrap();
            assert!(told.contains(wanted), "{told}");
        };
        check(&|bench| bench.given("0.0.1", b"x"), Bench::keys, "is newer");
        check(&|bench| bench.given("99.0", b"x"), |_| Keyring::default(), "not signed by a key");
        let changed = |bench: &Bench| {
            bench.given("99.0", b"x");
            fs::write(bench.dir.path().join("agent/program"), b"y").unwrap();
        };
        check(&changed, Bench::keys, "its file was changed");
        let tried = |bench: &Bench| {
            bench.given("99.0", b"x");
            let trial = bench.updates().trial().unwrap();
            bench.updates().write(&Trial { starts: STARTS_MAX, ..trial }).unwrap();
        };
        check(&tried, Bench::keys, "started 3 times and did not come back");
    }

    #[test]
    fn what_was_fetched_of_another_program_is_not_gone_on_with() {
        let bench = Bench::new();
        let file = |sha256| ProgramFile { version: "1".into(), arch: "x86_64".into(), sha256, size: 9 };
        let (first, second) = (file([1; 32]).sign(&bench.key), file([2; 32]).sign(&bench.key));
        let updates = bench.updates();
        updates.want(&first).unwrap();
        fs::write(updates.part(), b"abc").unwrap();
        updates.want(&first).unwrap();
        assert!(updates.part().exists());
        updates.want(&second).unwrap();
        assert!(!updates.part().exists() && updates.wanted() == Some(second));
        updates.forget_wanted();
        assert!(updates.wanted().is_none() && updates.ready(&file([1; 32])).is_err());
    }
}
