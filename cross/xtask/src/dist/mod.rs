//! `cargo xtask dist`: what users install. Static binaries on Debian without Docker, archives, Debian packages, a bill of
//! materials and checksums, the same bytes from any folder.

mod archive;
mod build;
mod deb;
mod sbom;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::tools::{self, ToolError};
use crate::vm;
use build::Triple;

/// Why there is nothing to install.
#[derive(Debug)]
pub(crate) enum DistError {
    /// No such target.
    Target(String),
    /// A tool.
    Tool(ToolError),
    /// A file.
    File(PathBuf, io::Error),
    /// What cargo says of the packages makes no sense.
    Metadata(String),
    /// Something to build with or to check is not there.
    Check(&'static str),
    /// A binary above its limit.
    TooLarge { file: PathBuf, bytes: u64, limit: u64 },
    /// A package of another processor.
    Vm(vm::VmError),
}

impl fmt::Display for DistError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(name) => {
                let known: Vec<_> = Triple::all().map(Triple::name).collect();
                write!(f, "no target is named {name}; there are: {}", known.join(", "))
            }
            Self::Tool(error) => error.fmt(f),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Metadata(text) => write!(f, "reading the packages of the lock file: {text}"),
            Self::TooLarge { file, bytes, limit } => {
                write!(f, "{} has {bytes} bytes, more than the {limit} it may have", file.display())
            }
            Self::Vm(error) => error.fmt(f),
            Self::Check(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for DistError {}

impl From<vm::VmError> for DistError {
    fn from(error: vm::VmError) -> Self {
        Self::Vm(error)
    }
}

impl From<ToolError> for DistError {
    fn from(error: ToolError) -> Self {
        Self::Tool(error)
    }
}

/// Gives an error its file.
fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, DistError> {
    result.map_err(|error| DistError::File(path.to_owned(), error))
}

/// What all parts of a release have in common.
struct Release<'a> {
    root: &'a Path,
    /// Where it goes.
    out: PathBuf,
    version: &'static str,
    /// Seconds since 1970 that every file in it bears: those of the last commit.
    epoch: String,
}

/// Builds everything for these targets, or for all of them; with `check`, installs and runs what runs here.
///
/// # Errors
///
/// When something cannot be built, or a package does not do what it should.
pub(crate) fn run(root: &Path, targets: &[String], check: bool) -> Result<(), DistError> {
    let named = |name: &String| Triple::named(name).ok_or_else(|| DistError::Target(name.clone()));
    let triples: Vec<Triple> = if targets.is_empty() {
        Triple::all().collect()
    } else {
        targets.iter().map(named).collect::<Result<_, _>>()?
    };
    let out = tools::target(root).join("dist");
    let release = Release { root, out, version: env!("CARGO_PKG_VERSION"), epoch: epoch(root) };
    at(&release.out, std::fs::create_dir_all(&release.out))?;
    let mut made = Vec::new();
    let (mut packages, mut foreign) = (Vec::new(), Vec::new());
    for triple in triples {
        let binaries = build::release(root, triple)?;
        let stage = archive::stage(&release, triple, &binaries)?;
        made.push(archive::pack(&release, triple)?);
        made.push(sbom::write(&release, triple)?);
        if triple.is_static() {
            let both = deb::build(&release, triple, &stage)?;
            if triple.is_native() {
                packages.extend(both.clone());
            } else if triple.name().starts_with("aarch64") {
                foreign.extend(both.first().cloned());
            }
            made.extend(both);
        }
    }
    let sums = archive::sums(&release, &made)?;
    for file in made.iter().chain([&sums]) {
        let size = at(file, file.metadata())?.len();
        println!("{:>10} {}", size, file.display());
    }
    if check {
        if packages.is_empty() && foreign.is_empty() {
            return Err(DistError::Check("none of these targets has packages that run here"));
        }
        if !packages.is_empty() {
            vm::run_packages(root, &packages, include_bytes!("check.sh"))?;
        }
        for package in &foreign {
            vm::deliver(root, package)?;
        }
    }
    Ok(())
}

/// Builds the static agent and fleet server for this processor, and gives where they are.
///
/// # Errors
///
/// When they cannot be built.
pub(crate) fn for_this_machine(root: &Path) -> Result<[PathBuf; 2], DistError> {
    let native = Triple::all().find(|triple| triple.is_static() && triple.is_native());
    let native = native.ok_or_else(|| DistError::Target(std::env::consts::ARCH.to_owned()))?;
    let binaries = build::release(root, native)?;
    Ok([binaries.agent, binaries.fleet])
}

/// That of the last commit, or a fixed one where there is no repository.
fn epoch(root: &Path) -> String {
    let output = Command::new("git").current_dir(root).args(["log", "-1", "--format=%ct"]).output();
    let said = output.ok().filter(|output| output.status.success());
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    said.filter(|text| !text.is_empty()).unwrap_or_else(|| "1767225600".to_owned())
}
