//! The folder of one target, its archive, and the checksums of everything.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    DistError, Release, at,
    build::{Binaries, Triple},
};
use crate::tools;

/// The name of what is made for a target.
pub(super) fn name(release: &Release<'_>, triple: Triple) -> String {
    format!("behaveguard-{}-{}", release.version, triple.name())
}

fn folder(release: &Release<'_>, triple: Triple) -> PathBuf {
    release.out.join("stage").join(name(release, triple))
}

/// Lays everything out as in the archive: `bin`, `systemd`, `openwrt`, `etc`, `man`, `completions`, licences.
pub(super) fn stage(
    release: &Release<'_>,
    triple: Triple,
    binaries: &Binaries,
) -> Result<PathBuf, DistError> {
    let stage = folder(release, triple);
    let _ = fs::remove_dir_all(&stage);
    for folder in ["bin", "completions", "etc", "man", "openwrt", "systemd"] {
        let folder = stage.join(folder);
        at(&folder, fs::create_dir_all(&folder))?;
    }
    let packages = release.root.join("cross/packages");
    for (from, to) in [
        (binaries.agent.clone(), "bin/behaveguard"),
        (binaries.fleet.clone(), "bin/behaveguard-fleet"),
        (packages.join("behaveguard.service"), "systemd/behaveguard.service"),
        (packages.join("behaveguard-fleet.service"), "systemd/behaveguard-fleet.service"),
        (packages.join("openwrt/behaveguard.init"), "openwrt/behaveguard.init"),
        (packages.join("fleet.toml"), "etc/fleet.toml"),
        (release.root.join("LICENSE"), "LICENSE"),
        (release.root.join("agent-ebpf/LICENSE-GPL-2.0"), "LICENSE-GPL-2.0"),
        (release.root.join("docs/operations.md"), "operations.md"),
    ] {
        at(&from, fs::copy(&from, stage.join(to)))?;
    }
    let agent = stage.join("bin/behaveguard");
    let says = |arguments: &[&str]| {
        let mut command = triple.command(&agent)?;
        command.args(arguments);
        tools::output(&mut command).map_err(DistError::from)
    };
    let man = stage.join("man");
    says(&["man", &man.to_string_lossy()])?;
    let write = |path: &str, text: String| at(&stage.join(path), fs::write(stage.join(path), text));
    write("etc/agent.toml", says(&["init", "--print"])?)?;
    for (shell, file) in [("bash", "behaveguard"), ("zsh", "_behaveguard"), ("fish", "behaveguard.fish")] {
        write(&format!("completions/{file}"), says(&["completions", shell])?)?;
    }
    modes(&stage)?;
    Ok(stage)
}

/// Modes that do not depend on who builds.
fn modes(stage: &Path) -> Result<(), DistError> {
    let script = "find . -type d -exec chmod 755 {} + && find . -type f -exec chmod 644 {} + && \
                  if [ -d bin ]; then chmod 755 bin/*; fi";
    Ok(tools::run(Command::new("sh").current_dir(stage).args(["-ec", script]))?)
}

/// Packs the folder: names sorted, no owner, the time of the last commit, so that the bytes depend on nothing else.
pub(super) fn pack(release: &Release<'_>, triple: Triple) -> Result<PathBuf, DistError> {
    let name = name(release, triple);
    let file = release.out.join(format!("{name}.tar.gz"));
    let script = format!(
        "tar --create --sort=name --format=gnu --owner=0 --group=0 --numeric-owner --mtime=@{} {name} | gzip -9n > {}",
        release.epoch,
        shell(&file)
    );
    tools::run(
        Command::new("bash").current_dir(release.out.join("stage")).args(["-eo", "pipefail", "-c", &script]),
    )?;
    Ok(file)
}

/// Quoted for a shell.
pub(super) fn shell(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
}

/// Writes `SHA256SUMS`, as `sha256sum --check` reads it.
pub(super) fn sums(release: &Release<'_>, made: &[PathBuf]) -> Result<PathBuf, DistError> {
    let file = release.out.join("SHA256SUMS");
    let mut names: Vec<_> = made.iter().filter_map(|path| path.file_name()).collect();
    names.sort_unstable();
    let mut command = Command::new("sha256sum");
    command.current_dir(&release.out).args(&names).stderr(Stdio::inherit());
    at(&file, fs::write(&file, tools::output(&mut command)?))?;
    Ok(file)
}
