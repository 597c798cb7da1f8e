//! Debian packages of one target, made by dpkg-deb from the folder of its archive.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{DistError, Release, at, build::Triple};
use crate::tools::{self, Need};

/// One of the two packages.
struct Package {
    name: &'static str,
    unit: &'static str,
    /// From the archive's folder to where they are installed, with modes.
    files: &'static [(&'static str, &'static str, &'static str)],
    /// Kept as the operator changed them.
    configuration: &'static [&'static str],
    man: bool,
}

const PACKAGES: [Package; 2] = [
    Package {
        name: "behaveguard",
        unit: "behaveguard.service",
        files: &[
            ("bin/behaveguard", "usr/bin/behaveguard", "755"),
            ("systemd/behaveguard.service", "usr/lib/systemd/system/behaveguard.service", "644"),
            ("etc/agent.toml", "etc/behaveguard/agent.toml", "600"),
            ("completions/behaveguard", "usr/share/bash-completion/completions/behaveguard", "644"),
            ("completions/_behaveguard", "usr/share/zsh/vendor-completions/_behaveguard", "644"),
            ("completions/behaveguard.fish", "usr/share/fish/vendor_completions.d/behaveguard.fish", "644"),
        ],
        configuration: &["/etc/behaveguard/agent.toml"],
        man: true,
    },
    Package {
        name: "behaveguard-fleet",
        unit: "behaveguard-fleet.service",
        files: &[
            ("bin/behaveguard-fleet", "usr/bin/behaveguard-fleet", "755"),
            ("systemd/behaveguard-fleet.service", "usr/lib/systemd/system/behaveguard-fleet.service", "644"),
            ("etc/fleet.toml", "etc/behaveguard-fleet/fleet.toml", "644"),
        ],
        configuration: &["/etc/behaveguard-fleet/fleet.toml"],
        man: false,
    },
];

const NEEDS: &[Need] = &[Need { file: "dpkg-deb", packages: &["dpkg"], why: "makes Debian packages" }];

/// Makes both packages.
pub(super) fn build(release: &Release<'_>, triple: Triple, stage: &Path) -> Result<Vec<PathBuf>, DistError> {
    tools::install(NEEDS)?;
    PACKAGES.iter().map(|package| one(release, triple, stage, package)).collect()
}

fn one(release: &Release<'_>, triple: Triple, stage: &Path, package: &Package) -> Result<PathBuf, DistError> {
    let name = format!("{}_{}_{}", package.name, release.version, triple.debian());
    let tree = release.out.join("stage").join(&name);
    let _ = fs::remove_dir_all(&tree);
    let documents = format!("usr/share/doc/{}", package.name);
    let mut files: Vec<(PathBuf, String, &str)> =
        package.files.iter().map(|(from, to, mode)| (stage.join(from), (*to).to_owned(), *mode)).collect();
    files.push((stage.join("LICENSE"), format!("{documents}/copyright"), "644"));
    if package.man {
        files.push((stage.join("operations.md"), format!("{documents}/operations.md"), "644"));
        files.push((stage.join("LICENSE-GPL-2.0"), format!("{documents}/LICENSE-GPL-2.0"), "644"));
        let man = stage.join("man");
        for page in at(&man, fs::read_dir(&man))? {
            let page = at(&man, page)?;
            files.push((
                page.path(),
                format!("usr/share/man/man1/{}", page.file_name().to_string_lossy()),
                "644",
            ));
        }
    }
    for (from, to, mode) in files {
        let to = tree.join(to);
        let arguments = ["-D", "-m", mode].map(std::ffi::OsStr::new);
        tools::run(Command::new("install").args(arguments).arg(from).arg(to))?;
    }
    tools::run(Command::new("sh").current_dir(&tree).args([
        "-ec",
        "if [ -d usr/share/man ]; then gzip -9n usr/share/man/man1/*; fi; find . -type d -exec chmod 755 {} +; \
         chmod 700 etc/behaveguard 2>/dev/null || true",
    ]))?;
    let size = tools::output(Command::new("du").arg("-sk").arg(&tree))?;
    let size = size.split_whitespace().next().unwrap_or("0").to_owned();
    control(release, triple, package, &tree, &size)?;
    let file = release.out.join(format!("{name}.deb"));
    let mut command = Command::new("dpkg-deb");
    command.env("SOURCE_DATE_EPOCH", &release.epoch).args(["--root-owner-group", "-Zxz", "--build"]);
    tools::run(command.arg(&tree).arg(&file))?;
    Ok(file)
}

/// The package's description and its scripts.
fn control(
    release: &Release<'_>,
    triple: Triple,
    package: &Package,
    tree: &Path,
    size: &str,
) -> Result<(), DistError> {
    let templates = release.root.join("cross/packages/deb");
    let folder = tree.join("DEBIAN");
    at(&folder, fs::create_dir_all(&folder))?;
    let filled = |from: &str| {
        let text = at(&templates.join(from), fs::read_to_string(templates.join(from)))?;
        Ok::<_, DistError>(
            text.replace("@VERSION@", release.version)
                .replace("@ARCHITECTURE@", triple.debian())
                .replace("@SIZE@", size)
                .replace("@PACKAGE@", package.name)
                .replace("@UNIT@", package.unit),
        )
    };
    let write = |name: &str, text: String| at(&folder.join(name), fs::write(folder.join(name), text));
    write("control", filled(&format!("{}.control", package.name))?)?;
    write("conffiles", package.configuration.iter().map(|file| format!("{file}\n")).collect())?;
    for script in ["postinst", "prerm", "postrm"] {
        write(script, filled(script)?)?;
    }
    let script = "chmod 644 control conffiles && chmod 755 postinst prerm postrm";
    Ok(tools::run(Command::new("sh").current_dir(&folder).args(["-ec", script]))?)
}
