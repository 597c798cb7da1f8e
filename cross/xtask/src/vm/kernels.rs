//! Debian's kernels, and a busybox beside each, from the archive that the machine's apt uses.
//!
//! apt is given lists and a source of its own under `target/`, so nothing on the machine changes. What was fetched once
//! is not asked for again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use super::VmError;
use crate::tools;

/// A processor that is emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
    Aarch64,
}

impl Arch {
    /// As Rust calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As Debian calls it.
    pub(super) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// That of this machine; another one than the two known is emulated as if it were x86-64.
    pub(super) fn native() -> Self {
        Self::of(std::env::consts::ARCH).unwrap_or(Self::X86_64)
    }

    /// Reads the name that Rust uses.
    pub(super) fn of(name: &str) -> Option<Self> {
        [Self::X86_64, Self::Aarch64].into_iter().find(|arch| arch.name() == name)
    }
}

/// A kernel to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) arch: Arch,
    pub(crate) version: &'static str,
}

/// Versions, and the suites that carry them. `sid` moves, so it runs only when it is asked for.
const SUITES: &[(&str, &str)] =
    &[("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie"), ("sid", "sid")];

/// Every kernel that `--all` runs.
pub(super) fn all() -> Vec<Kernel> {
    let fixed = || SUITES.iter().map(|suite| suite.0).filter(|version| *version != "sid");
    [Arch::X86_64, Arch::Aarch64]
        .into_iter()
        .flat_map(|arch| fixed().map(move |version| Kernel { arch, version }))
        .collect()
}

/// The kernel of this version.
pub(super) fn named(arch: Arch, version: &str) -> Option<Kernel> {
    let known = SUITES.iter().find(|suite| suite.0 == version)?;
    Some(Kernel { arch, version: known.0 })
}

/// What was fetched of a kernel.
pub(super) struct Fetched {
    pub(super) vmlinuz: PathBuf,
    pub(super) busybox: PathBuf,
    /// [`NETWORK_MODULES`], where the kernel has them as plain files.
    pub(super) modules: PathBuf,
}

/// What gives a machine its network, in the order of loading.
pub(super) const NETWORK_MODULES: [&str; 7] = [
    "virtio.ko",
    "virtio_ring.ko",
    "virtio_mmio.ko",
    "failover.ko",
    "net_failover.ko",
    "virtio_net.ko",
    "virtio_pci.ko",
];

/// Where the archive is when the machine's apt does not say.
const ARCHIVE: &str = "http://deb.debian.org/debian";
/// Debian's own keys.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Kernel {
    fn suite(self) -> &'static str {
        SUITES.iter().find(|suite| suite.0 == self.version).map_or("sid", |suite| suite.1)
    }

    /// Fetches what is not there yet.
    pub(super) fn fetch(self, vm: &Path) -> Result<Fetched, VmError> {
        let dir = vm.join(format!("{}-{}", self.arch.name(), self.version));
        let fetched = Fetched {
            vmlinuz: dir.join("vmlinuz"),
            busybox: dir.join("busybox"),
            modules: dir.join("modules"),
        };
        if ![&fetched.vmlinuz, &fetched.busybox, &fetched.modules].iter().all(|path| path.exists()) {
            println!("fetching Debian's kernel {} for {}", self.version, self.arch.name());
            self.download(&dir, &fetched)?;
        }
        Ok(fetched)
    }

    fn download(self, dir: &Path, into: &Fetched) -> Result<(), VmError> {
        let work = dir.join("fetching");
        let _ = fs::remove_dir_all(&work);
        for folder in ["lists/partial", "archives/partial", "unpacked"] {
            make(&work.join(folder))?;
        }
        let arch = self.arch.debian();
        let source = format!("deb [arch={arch} signed-by={KEYS}] {} {} main\n", archive()?, self.suite());
        write(&work.join("sources.list"), source.as_bytes())?;
        tools::run(apt("apt-get", &work, arch).args(["update", "--quiet"]))?;
        let meta = format!("linux-image-cloud-{arch}");
        let show =
            |name: &str| output(apt("apt-cache", &work, arch).arg("show").arg(format!("{name}:{arch}")));
        let image = needed(&show(&meta)?, "linux-image-").ok_or(VmError::NoImage(meta))?;
        // Since 7 the kernel itself is a package of its own.
        let image = needed(&show(&image)?, "linux-binary-").unwrap_or(image);
        let packages = [format!("{image}:{arch}"), format!("busybox-static:{arch}")];
        tools::run(
            apt("apt-get", &work, arch).args(["download", "--quiet"]).args(packages).current_dir(&work),
        )?;
        let unpacked = work.join("unpacked");
        for package in find(&work, &|name| name.ends_with(".deb"))? {
            tools::run(Command::new("dpkg").arg("-x").arg(package).arg(&unpacked))?;
        }
        // Newer suites have /bin below /usr.
        let busybox = ["bin/busybox", "usr/bin/busybox"].map(|name| unpacked.join(name));
        let busybox = busybox.into_iter().find(|file| file.exists());
        let vmlinuz = vmlinuz_below(&unpacked)?;
        make(&into.modules)?;
        for name in NETWORK_MODULES {
            if let Some(from) = below(&unpacked, name)? {
                let to = into.modules.join(name);
                fs::rename(&from, to).map_err(|error| VmError::File(from, error))?;
            }
        }
        for (from, to) in [(busybox, &into.busybox), (vmlinuz, &into.vmlinuz)] {
            let from = from.ok_or_else(|| VmError::NoImage(image.clone()))?;
            fs::rename(&from, to).map_err(|error| VmError::File(from, error))?;
        }
        fs::remove_dir_all(&work).map_err(|error| VmError::File(work, error))
    }
}

/// `/boot/vmlinuz-VERSION`, or `/usr/lib/modules/VERSION/vmlinuz` since 7.
fn vmlinuz_below(unpacked: &Path) -> Result<Option<PathBuf>, VmError> {
    let (boot, modules) = (unpacked.join("boot"), unpacked.join("usr/lib/modules"));
    if boot.exists() {
        return Ok(find(&boot, &|name| name.starts_with("vmlinuz-"))?.pop());
    }
    let versions = if modules.exists() { find(&modules, &|_| true)? } else { Vec::new() };
    Ok(versions.into_iter().map(|version| version.join("vmlinuz")).find(|file| file.exists()))
}

/// The archive that the machine's own Debian packages come from.
pub(super) fn archive() -> Result<String, VmError> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI)"]);
    command.args(["Created-By: Packages", "Origin: Debian", "Label: Debian"]);
    let listed = output(&mut command)?;
    Ok(listed.lines().next().unwrap_or(ARCHIVE).trim_end_matches('/').to_owned())
}

/// An apt command with a state of its own.
fn apt(program: &str, work: &Path, arch: &str) -> Command {
    let mut command = Command::new(program);
    let own = |name: &str| work.join(name).display().to_string();
    for (key, value) in [
        ("Dir::Etc::SourceList", own("sources.list")),
        ("Dir::Etc::SourceParts", "/dev/null".to_owned()),
        ("Dir::Etc::Preferences", "/dev/null".to_owned()),
        ("Dir::Etc::PreferencesParts", "/dev/null".to_owned()),
        // What is installed on this machine must not decide what is fetched.
        ("Dir::State::Status", "/dev/null".to_owned()),
        ("Dir::State::Lists", own("lists")),
        ("Dir::Cache", own(".")),
        ("Dir::Cache::Archives", own("archives")),
        ("APT::Architectures::", arch.to_owned()),
        ("APT::Sandbox::User", String::new()),
        ("Acquire::Languages", "none".to_owned()),
        ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".to_owned()),
    ] {
        command.arg("-o").arg(format!("{key}={value}"));
    }
    command
}

/// The first package of this kind that a described one needs.
fn needed(described: &str, kind: &str) -> Option<String> {
    let depends = described.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    let mut names = depends.split(',').filter_map(|depend| depend.split_whitespace().next());
    names.find(|name| name.starts_with(kind)).map(str::to_owned)
}

fn output(command: &mut Command) -> Result<String, VmError> {
    let text = tools::words(command);
    let output = command.output().map_err(|error| tools::ToolError::Start(text.clone(), error))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(tools::ToolError::Failed(text, output.status).into())
    }
}

fn find(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>, VmError> {
    let failed = |error: io::Error| VmError::File(folder.to_owned(), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if wanted(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A file of this name anywhere in a folder.
fn below(folder: &Path, name: &str) -> Result<Option<PathBuf>, VmError> {
    for path in find(folder, &|_| true)? {
        if path.is_dir() && !path.is_symlink() {
            if let Some(found) = below(&path, name)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|own| own == name) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

pub(super) fn make(folder: &Path) -> Result<(), VmError> {
    fs::create_dir_all(folder).map_err(|error| VmError::File(folder.to_owned(), error))
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), VmError> {
    fs::write(path, bytes).map_err(|error| VmError::File(path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metapackage_names_the_image_also_when_it_needs_more() {
        let check = |depends: &str, image: Option<&str>| {
            let text = format!("Package: linux-image-cloud-amd64\nVersion: 1\nDepends: {depends}\nSize: 9\n");
            assert_eq!(needed(&text, "linux-image-").as_deref(), image, "{depends}");
        };
        check("linux-image-5.10.0-32-cloud-amd64 (= 5.10.223-1)", Some("linux-image-5.10.0-32-cloud-amd64"));
        check(
            "linux-base-cloud-amd64 (= 7), linux-image-7.2.13+deb14-cloud-amd64 (= 7)",
            Some("linux-image-7.2.13+deb14-cloud-amd64"),
        );
        check("linux-base", None);
        assert_eq!(needed("", "linux-image-"), None);
    }

    #[test]
    fn all_has_every_version_on_both_processors_but_the_one_that_moves() {
        let all = all();
        assert_eq!(all.len(), 2 * (SUITES.len() - 1));
        assert!(
            all.iter()
                .all(|kernel| kernel.version != "sid" && named(kernel.arch, kernel.version) == Some(*kernel))
        );
        assert_eq!(named(Arch::X86_64, "6"), None);
    }
}
