//! `cargo xtask vm`: boots Debian kernels in QEMU and runs the kernel tests and the agent inside.
//!
//! ```text
//! kernels (Debian's archive) ─┐
//! build (agent, its tests) ───┼─► image (initramfs) ─► boot (QEMU) ─► console ─► results
//! init.sh ────────────────────┘
//! ```

mod boot;
mod build;
mod console;
mod debian;
mod delivery;
mod image;
mod kernels;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use crate::{
    suite::Totals,
    tools::{self, Need, ToolError},
};
use boot::Machine;
use build::Built;
use console::Console;
pub(crate) use debian::run_packages;
pub(crate) use delivery::deliver;
use image::Image;
pub(crate) use kernels::{Arch, Kernel};

/// Why kernels could not be booted.
#[derive(Debug)]
pub(crate) enum VmError {
    /// A tool is missing or failed.
    Tool(ToolError),
    /// A file could not be read or written.
    File(PathBuf, io::Error),
    /// The archive has no such kernel.
    NoImage(String),
    /// Nobody knows this kernel.
    Unknown(String),
    /// The package does not do what it should.
    NotDelivered(String),
    /// The packages do not do what they should; the machine printed why.
    Packages,
    /// cargo did not say where the programs are.
    NotBuilt,
}

impl fmt::Display for VmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tool(error) => error.fmt(f),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::NoImage(package) => write!(f, "Debian's archive has no kernel behind {package}"),
            Self::Unknown(what) => write!(f, "no such kernel: {what}; there are {}", known()),
            Self::NotDelivered(what) => write!(f, "the package delivered no alert: {what}"),
            Self::Packages => {
                f.write_str("the packages do not do what they should: see what the machine printed")
            }
            Self::NotBuilt => f.write_str("cargo did not say where the agent and its kernel tests are"),
        }
    }
}

impl std::error::Error for VmError {}

impl From<ToolError> for VmError {
    fn from(error: ToolError) -> Self {
        Self::Tool(error)
    }
}

fn known() -> String {
    let names = kernels::all().into_iter().map(|kernel| format!("{} {}", kernel.arch.name(), kernel.version));
    names.collect::<Vec<_>>().join(", ")
}

/// Unpacks kernels, and takes debugging information off programs.
const NEEDS: &[Need] = &[
    Need { file: "dpkg", packages: &["dpkg"], why: "unpacks kernels" },
    Need { file: "strip", packages: &["binutils"], why: "makes programs small enough for an initramfs" },
    Need { file: "ldd", packages: &["libc-bin"], why: "finds the libraries of a program" },
    Need {
        file: "/usr/share/keyrings/debian-archive-keyring.gpg",
        packages: &["debian-archive-keyring"],
        why: "checks what other Debian suites say",
    },
];

/// The two that every run of the suite boots: the oldest that the agent is for, and the other processor without
/// trampolines.
pub(crate) const USUAL: [Kernel; 2] =
    [Kernel { arch: Arch::X86_64, version: "5.10" }, Kernel { arch: Arch::Aarch64, version: "6.1" }];

/// What runs in each machine, as `init.sh` names it.
const PARTS: [&str; 3] = ["doctor", "tests", "agent"];

/// Where a package puts its configuration, from the root.
const CONFIG_FOLDER: &str = "etc/behaveguard";

/// The agent's configuration in a machine.
const CONFIG: &str = "state = \"/tmp/state\"\nwindow = \"1s\"\nheartbeat = \"2s\"\n";

/// The kernels that a command line means: with `all` every one, else those of these processors and versions, else the
/// usual ones.
///
/// # Errors
///
/// When there is no such kernel.
pub(crate) fn choose(arch: Option<&str>, versions: &[String], all: bool) -> Result<Vec<Kernel>, VmError> {
    let unknown = |what: &str| VmError::Unknown(what.to_owned());
    let arch = arch.map(|name| Arch::of(name).ok_or_else(|| unknown(name))).transpose()?;
    if versions.is_empty() {
        let kernels = if all || arch.is_some() { kernels::all() } else { USUAL.to_vec() };
        return Ok(kernels
            .into_iter()
            .filter(|kernel| arch.is_none_or(|arch| arch == kernel.arch))
            .collect());
    }
    let archs = arch.map_or(vec![Arch::X86_64, Arch::Aarch64], |arch| vec![arch]);
    let pairs = archs.iter().flat_map(|arch| versions.iter().map(move |version| (*arch, version)));
    pairs.map(|(arch, version)| kernels::named(arch, version).ok_or_else(|| unknown(version))).collect()
}

/// Boots each kernel and adds up what passed and failed.
///
/// # Errors
///
/// When something is missing and cannot be installed or fetched, or a build fails.
pub(crate) fn run(root: &Path, kernels: &[Kernel]) -> Result<Totals, VmError> {
    tools::install(NEEDS)?;
    let mut archs: Vec<Arch> = kernels.iter().map(|kernel| kernel.arch).collect();
    archs.dedup();
    archs.iter().try_for_each(|arch| tools::install(boot::needs(*arch)))?;
    build::install(&archs)?;
    let vm = tools::target(root).join("vm");
    let (native, enrolled) = build::native(root)?;
    let state = vm.join("state");
    let _ = fs::remove_dir_all(&state);
    tools::run(Command::new(enrolled).arg(&state).args(["/bin/busybox", "/bin/gateway.sh"]))?;
    // One processor's machines run while the other's programs are built.
    let of_one = |arch: Arch| -> Result<Vec<(Kernel, Console)>, VmError> {
        let foreign;
        let built = if build::is_native(arch) {
            &native
        } else {
            foreign = build::foreign(root, arch)?;
            &foreign
        };
        let wanted = kernels.iter().filter(|kernel| kernel.arch == arch);
        wanted.map(|kernel| Ok((*kernel, one(&vm, *kernel, built, &state)?))).collect()
    };
    let ran = thread::scope(|scope| {
        let threads: Vec<_> = archs.iter().map(|arch| scope.spawn(|| of_one(*arch))).collect();
        let ran = threads.into_iter().map(|thread| thread.join().expect("nothing here panics"));
        ran.collect::<Result<Vec<_>, _>>()
    })?;
    let mut totals = Totals::default();
    let mut reports = Vec::new();
    for (kernel, console) in ran.iter().flatten() {
        let of_this = console.totals(&PARTS);
        reports.push(report(*kernel, console, &of_this));
        totals.add(&of_this);
    }
    reports.iter().for_each(|report| print!("\n{report}"));
    println!("\nkernels: {} booted, {} passed, {} failed", reports.len(), totals.passed, totals.failed);
    Ok(totals)
}

fn one(vm: &Path, kernel: Kernel, built: &Built, state: &Path) -> Result<Console, VmError> {
    let fetched = kernel.fetch(vm)?;
    let name = format!("{}-{}", kernel.arch.name(), kernel.version);
    let dir = vm.join(&name);
    let image = dir.join("initramfs");
    image_of(&dir, &fetched.busybox, built, state)?.finish(&image)?;
    println!("booting Linux {} on {}", kernel.version, kernel.arch.name());
    let mut log = String::new();
    let mut seen = |line: &str| {
        log.push_str(line);
        log.push('\n');
        if line.starts_with("test ") || line.starts_with("ok: ") {
            println!("{name}: {line}");
        }
    };
    let console = boot::boot(&Machine::new(kernel.arch, &fetched.vmlinuz, &image), &mut seen)?;
    kernels::write(&dir.join("console.log"), log.as_bytes())?;
    Ok(console)
}

fn image_of(dir: &Path, busybox: &Path, built: &Built, state: &Path) -> Result<Image, VmError> {
    let mut image = Image::default();
    image.file("init", 0o755, include_bytes!("init.sh"));
    image.copy(busybox, "bin/busybox")?;
    image.file("etc/shadow", 0o600, b"root:*:1::::::\n");
    image.file("etc/hostname", 0o644, b"vm\n");
    image.file("bin/agent.sh", 0o755, include_bytes!("agent.sh"));
    image.file("bin/gateway.sh", 0o755, include_bytes!("gateway.sh"));
    image.file("etc/behaveguard/agent.toml", 0o644, CONFIG.as_bytes());
    image.copy_all(state, "etc/behaveguard/state")?;
    for folder in ["proc", "sys", "dev", "tmp", "run/log", "var/log", "usr/bin"] {
        image.folder(folder);
    }
    for (program, to) in [(&built.agent, "behaveguard"), (&built.tests, "kernel-tests")] {
        let to_in = format!("bin/{to}");
        if built.native {
            let small = dir.join(to);
            tools::run(Command::new("strip").arg("-o").arg(&small).arg(program))?;
            image.native(&small, &to_in)?;
            fs::remove_file(&small).map_err(|error| VmError::File(small, error))?;
        } else {
            image.copy(program, &to_in)?;
        }
    }
    Ok(image)
}

/// What one kernel allowed and how the tests went, for people.
fn report(kernel: Kernel, console: &Console, totals: &Totals) -> String {
    use fmt::Write as _;
    let release = if console.release.is_empty() { "did not come up" } else { &console.release };
    let (arch, version) = (kernel.arch.name(), kernel.version);
    let Totals { passed, failed } = totals;
    let seconds = console.seconds;
    let mut text = format!("{arch} {version} ({release}): {passed} passed, {failed} failed, {seconds} s\n");
    for layer in console.layers() {
        let _ = writeln!(text, "  {:17} {}", layer.name, layer.backend);
        for failed in &layer.failed {
            let _ = writeln!(text, "  {:17} not {failed}", "");
        }
    }
    if totals.failed > 0 {
        for part in &console.parts {
            let code = part.code.map_or("did not end".to_owned(), |code| format!("exit code {code}"));
            let _ = writeln!(text, "--- {}: {code}\n{}", part.name, part.lines.join("\n"));
        }
        let _ = writeln!(text, "--- besides\n{}", console.outside.join("\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arch: Option<&str>, versions: &[&str], all: bool, expected: &[(Arch, &str)]) {
        let versions: Vec<_> = versions.iter().map(|version| (*version).to_owned()).collect();
        let chosen = choose(arch, &versions, all).expect("known");
        let chosen: Vec<_> = chosen.iter().map(|kernel| (kernel.arch, kernel.version)).collect();
        assert_eq!(chosen, expected);
    }

    #[test]
    fn kernels_are_chosen_by_processor_version_or_all_of_them() {
        use Arch::{Aarch64, X86_64};
        check(None, &[], false, &[(X86_64, "5.10"), (Aarch64, "6.1")]);
        check(Some("x86_64"), &["6.1"], false, &[(X86_64, "6.1")]);
        check(None, &["6.12"], false, &[(X86_64, "6.12"), (Aarch64, "6.12")]);
        assert_eq!(choose(None, &[], true).unwrap(), kernels::all());
        assert!(choose(Some("aarch64"), &[], false).unwrap().iter().all(|kernel| kernel.arch == Aarch64));
        assert!(choose(Some("mips"), &[], true).is_err() && choose(None, &["2.4".into()], false).is_err());
    }
}
