//! What the tasks need from the machine: says what is missing and why, then installs it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

/// Why a tool could not be used.
#[derive(Debug)]
pub(crate) enum ToolError {
    /// A command could not be started.
    Start(String, io::Error),
    /// A command failed.
    Failed(String, ExitStatus),
    /// A file that was named cannot be read.
    Read(PathBuf, io::Error),
    /// A Debian package is missing and there is no apt-get or no root to install it.
    CannotInstall(String),
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(command, error) => write!(f, "starting `{command}`: {error}"),
            Self::Read(file, error) => write!(f, "reading {}: {error}", file.display()),
            Self::Failed(command, status) => write!(f, "`{command}` ended with {status}"),
            Self::CannotInstall(packages) => {
                write!(
                    f,
                    "{packages} must be installed: run as root on Debian, or install by hand and try again"
                )
            }
        }
    }
}

impl std::error::Error for ToolError {}

/// One thing that must be on the machine.
pub(crate) struct Need {
    /// A file that says it is there: an absolute path, or a command's name looked up in `PATH`.
    pub(crate) file: &'static str,
    /// The Debian packages that bring it.
    pub(crate) packages: &'static [&'static str],
    /// What it is for.
    pub(crate) why: &'static str,
}

/// To compile the workspace: C and assembly in ring and SQLite.
pub(crate) const BUILD: &[Need] =
    &[Need { file: "cc", packages: &["gcc", "libc6-dev"], why: "compiles ring and SQLite, and links" }];

/// Mounts the kernel's tracepoints where nobody has: systemd does, in a container or a small machine nobody may have. Whoever needs
/// them says what is missing.
pub(crate) fn mount_tracefs() {
    if !Path::new("/sys/kernel/tracing/events").exists() {
        println!("mounting tracefs: classic tracepoints need it");
        let mut mount = Command::new("mount");
        if let Err(error) = run(mount.args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"])) {
            println!("{error}");
        }
    }
}

/// Installs what is missing of `needs`.
///
/// # Errors
///
/// When something is missing and cannot be installed.
pub(crate) fn install<'a>(needs: impl IntoIterator<Item = &'a Need>) -> Result<(), ToolError> {
    let missing: Vec<_> = needs.into_iter().filter(|need| find(need.file).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        println!("installing {}: {}", need.packages.join(" "), need.why);
    }
    let packages: Vec<_> = missing.iter().flat_map(|need| need.packages).copied().collect();
    if find("apt-get").is_none() {
        return Err(ToolError::CannotInstall(packages.join(" ")));
    }
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // A machine that was just installed has no package lists yet.
    run(apt().args(["update", "--quiet"]))?;
    run(apt().args(["install", "--quiet", "--yes", "--no-install-recommends"]).args(&packages))
        .map_err(|_| ToolError::CannotInstall(packages.join(" ")))
}

/// Runs a command to its end.
///
/// # Errors
///
/// When it does not start, or fails.
pub(crate) fn run(command: &mut Command) -> Result<(), ToolError> {
    let text = words(command);
    let status = command.status().map_err(|e| ToolError::Start(text.clone(), e))?;
    if status.success() { Ok(()) } else { Err(ToolError::Failed(text, status)) }
}

/// Runs a command to its end and gives what it said.
///
/// # Errors
///
/// When it does not start, or fails.
pub(crate) fn output(command: &mut Command) -> Result<String, ToolError> {
    let text = words(command);
    let started = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = started.map_err(|e| ToolError::Start(text.clone(), e))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(ToolError::Failed(text, output.status))
    }
}

/// The command as one would type it.
pub(crate) fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Where a file or command is.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    if name.starts_with('/') {
        return Path::new(name).exists().then(|| PathBuf::from(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The same cargo that runs this task, for what runs here. Clippy compiles our own crates where it is installed: the lints
/// then come with the build, instead of reading everything a second time.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut cargo = plain_cargo(root);
    if let Some(clippy) = toolchain_program("clippy-driver") {
        cargo.env("RUSTC_WORKSPACE_WRAPPER", clippy);
    }
    cargo
}

/// The same cargo that runs this task, for what is shipped or runs elsewhere.
pub(crate) fn plain_cargo(root: &Path) -> Command {
    unknowing(&PathBuf::from(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())), root)
}

/// A program that does not know that cargo started this task: what `cargo run` tells it about itself would otherwise be news
/// to ring's build script, and ring and all that needs it would be compiled again.
pub(crate) fn unknowing(program: &Path, root: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// The same command with less of the processors.
pub(crate) fn niced(niceness: u8, command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", &niceness.to_string()]).arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        nice.current_dir(dir);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    nice
}

/// Where builds go.
pub(crate) fn target(root: &Path) -> PathBuf {
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// What builds, tests and the demo all build with, so that each finds the others' work done.
pub(crate) const FEATURES: [&str; 2] = ["--features", "agent/sled,models/infer,models/train"];

/// Whether the toolchain in use can build for `triple`, as rustup's can where the target was added.
pub(crate) fn toolchain_has(triple: &str) -> bool {
    sysroot().is_some_and(|sysroot| sysroot.join("lib/rustlib").join(triple).join("lib").exists())
}

/// A program of the toolchain in use, if it is there. Rustup puts every name into `PATH`, also of what is not installed.
pub(crate) fn toolchain_program(name: &str) -> Option<PathBuf> {
    sysroot().map(|sysroot| sysroot.join("bin").join(name)).filter(|file| file.exists())
}

/// Where the toolchain in use is.
fn sysroot() -> Option<PathBuf> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
