//! Packages in use: installed in a fresh Debian, started, upgraded, removed and purged.

use std::{fs, path::PathBuf, process::Command};

use super::{DistError, Release, archive::shell, at};
use crate::tools::{self, Need};

const NEEDS: &[Need] = &[
    Need { file: "/usr/sbin/debootstrap", packages: &["debootstrap"], why: "makes the Debian to install in" },
    Need { file: "unshare", packages: &["util-linux"], why: "gives it namespaces of its own" },
    Need { file: "/usr/sbin/ip", packages: &["iproute2"], why: "gives it a loopback address" },
];

/// Installs, starts and purges these packages.
pub(super) fn run(release: &Release<'_>, packages: &[PathBuf]) -> Result<(), DistError> {
    if packages.is_empty() {
        return Err(DistError::Check("no target's packages are for this processor".to_owned()));
    }
    tools::install(NEEDS)?;
    let folder = release.out.join("check");
    let (fresh, root) = (folder.join("debian"), folder.join("root"));
    if !fresh.join("usr/bin/setpriv").exists() {
        let _ = fs::remove_dir_all(&fresh);
        at(&folder, fs::create_dir_all(&folder))?;
        let codename =
            tools::output(Command::new("sh").args(["-c", ". /etc/os-release; echo $VERSION_CODENAME"]))?;
        let mut debootstrap = Command::new("/usr/sbin/debootstrap");
        debootstrap.args(["--variant=minbase", "--include=systemd", codename.trim()]).arg(&fresh);
        // The mirror of this machine, where one is configured for apt.
        debootstrap.args(mirror());
        tools::run(&mut debootstrap)?;
    }
    let _ = fs::remove_dir_all(&root);
    tools::run(Command::new("cp").arg("-a").arg(&fresh).arg(&root))?;
    let inside = root.join("packages");
    at(&inside, fs::create_dir_all(&inside))?;
    for package in packages {
        let to = inside.join(package.file_name().unwrap_or_default());
        at(package, fs::copy(package, to))?;
    }
    at(&root, fs::write(root.join("packages/check.sh"), include_bytes!("check.sh")))?;
    println!("installing {} packages in a fresh Debian", packages.len());
    let script =
        format!("/usr/sbin/ip link set lo up && exec chroot {} /bin/sh /packages/check.sh", shell(&root));
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child"]);
    tools::run(unshare.args(["--", "sh", "-ec", &script]))?;
    at(&root, fs::remove_dir_all(&root))
}

/// Where apt takes Debian from, by its sources; nothing when they do not say.
fn mirror() -> Option<String> {
    let folders = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let text =
        folders.iter().find_map(|file| fs::read_to_string(file).ok().filter(|text| text.contains("://")))?;
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(str::split_whitespace)
        .find(|word| word.starts_with("http://") || word.starts_with("https://"))
        .map(str::to_owned)
}
