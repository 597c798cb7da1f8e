//! Rebuilds the committed eBPF object, so that ordinary builds need neither LLVM nor core sources.
//!
//! The same sources give the same bytes from every folder: paths are remapped and debug sections removed. What the
//! object was built from is recorded as a hash beside it, and a test recomputes that hash.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::tools::{self, Need, ToolError};

/// The object, from the repository's root.
pub(crate) const OBJECT: &str = "agent-ebpf/prebuilt/behaveguard.bpf.o";
/// The hash of what it was built from.
pub(crate) const SOURCE_HASH: &str = "agent-ebpf/prebuilt/SOURCE-HASH";

const RUSTC: &str = "/usr/bin/rustc";
const CARGO: &str = "/usr/bin/cargo";
const CORE_SOURCES: &str = "/usr/lib/rustlib/src/rust/library/core/src/lib.rs";
const LLVM: &str = "/usr/lib/llvm-22";
const TARGET: &str = "bpfel-unknown-none";
const BPF_LINKER_VERSION: &str = "0.13.0";

/// Why the object could not be rebuilt or checked.
#[derive(Debug)]
pub(crate) enum Error {
    /// A tool is missing or failed.
    Tool(ToolError),
    /// A file could not be read or written.
    File(PathBuf, io::Error),
    /// `Cargo.lock` names no `aya-ebpf`.
    NoAyaEbpf,
    /// The committed object does not come from these sources.
    Stale {
        /// What differs.
        what: &'static str,
    },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tool(error) => error.fmt(f),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::NoAyaEbpf => f.write_str("Cargo.lock names no aya-ebpf"),
            Self::Stale { what } => {
                write!(f, "{what} is stale: run `cargo xtask ebpf` and commit the result")
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<ToolError> for Error {
    fn from(error: ToolError) -> Self {
        Self::Tool(error)
    }
}

/// Builds the object. With `check`, compares it with the committed one instead of replacing it.
///
/// # Errors
///
/// When a tool is missing and cannot be installed, when the build fails, or when `check` finds a difference.
pub(crate) fn rebuild(root: &Path, check: bool) -> Result<(), Error> {
    install_missing()?;
    let object = build(root)?;
    let hash = source_hash(root)?;
    let (object_path, hash_path) = (root.join(OBJECT), root.join(SOURCE_HASH));
    if check {
        if read(&object_path)? != object {
            return Err(Error::Stale { what: OBJECT });
        }
        return check_hash(root);
    }
    if let Some(folder) = object_path.parent() {
        fs::create_dir_all(folder).map_err(|e| Error::File(folder.to_owned(), e))?;
    }
    fs::write(&object_path, &object).map_err(|e| Error::File(object_path, e))?;
    fs::write(&hash_path, format!("{hash}\n")).map_err(|e| Error::File(hash_path, e))?;
    println!("{OBJECT}: {} bytes, sources {hash}", object.len());
    Ok(())
}

/// Says whether the committed object was built from the sources beside it. Needs no tools.
///
/// # Errors
///
/// [`Error::Stale`] when it was not, [`Error::File`] when a source cannot be read.
pub(crate) fn check_hash(root: &Path) -> Result<(), Error> {
    let recorded = read(&root.join(SOURCE_HASH))?;
    let current = source_hash(root)?;
    if String::from_utf8_lossy(&recorded).trim() == current {
        Ok(())
    } else {
        Err(Error::Stale { what: OBJECT })
    }
}

/// A hash of everything that decides the object's bytes and lies in the repository.
///
/// # Errors
///
/// When a source cannot be read.
pub(crate) fn source_hash(root: &Path) -> Result<String, Error> {
    let folder = root.join("agent-ebpf");
    let mut files = vec![folder.join("Cargo.toml"), root.join("cross/xtask/src/ebpf.rs")];
    sources(&folder.join("src"), &mut files)?;
    files.sort();
    let mut hash = Fnv::default();
    for file in files {
        let name = file.strip_prefix(root).expect("every file was found under the root");
        hash.field(name.to_string_lossy().as_bytes());
        hash.field(&read(&file)?);
    }
    hash.field(aya_ebpf_version(root)?.as_bytes());
    Ok(format!("{:016x}{:016x}", hash.a, hash.b))
}

/// The packaged compiler has `core`'s sources for exactly its version, which rustup's stable cannot build for eBPF.
const NEEDS: &[Need] = &[
    Need { file: RUSTC, packages: &["rustc-web"], why: "a compiler whose core sources are packaged" },
    Need { file: CARGO, packages: &["cargo-web"], why: "the cargo of that compiler" },
    Need { file: CORE_SOURCES, packages: &["rust-web-src"], why: "core is compiled for the eBPF target" },
    Need {
        file: "/usr/lib/llvm-22/bin/llvm-objcopy",
        packages: &["llvm-22"],
        why: "removes debug sections from the object",
    },
    Need {
        file: "/usr/lib/llvm-22/include/llvm-c/Core.h",
        packages: &["llvm-22-dev", "zlib1g-dev", "libzstd-dev", "libxml2-dev", "g++"],
        why: "bpf-linker is built with it",
    },
];

fn install_missing() -> Result<(), Error> {
    tools::install(tools::BUILD)?;
    tools::install(NEEDS)?;
    if bpf_linker().is_none() {
        println!("installing bpf-linker {BPF_LINKER_VERSION}: it turns LLVM bitcode into an eBPF object");
        let path = format!("{LLVM}/bin:{}", env::var("PATH").unwrap_or_default());
        tools::run(
            Command::new("cargo")
                .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked"])
                .args(["--no-default-features", "--features", "llvm-22"])
                .env("PATH", path)
                .env("LLVM_SYS_221_PREFIX", LLVM)
                .env("LLVM_PREFIX", LLVM)
                .env_remove("CARGO_TARGET_DIR"),
        )?;
    }
    Ok(())
}

fn build(root: &Path) -> Result<Vec<u8>, Error> {
    let target_dir = tools::target(root).join("ebpf");
    let linker = bpf_linker().unwrap_or_else(|| PathBuf::from("bpf-linker"));
    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        format!("--remap-path-prefix={}=/src", root.display()),
        format!("--remap-path-prefix={}=/target", target_dir.display()),
    ];
    if let Some(home) = cargo_home() {
        flags.push(format!("--remap-path-prefix={}=/cargo", home.display()));
    }
    tools::run(
        Command::new(CARGO)
            .current_dir(root)
            .args(["build", "--release", "--package", "agent-ebpf", "--features", "programs"])
            .args(["--bin", "behaveguard-probes", "--target", TARGET, "-Zbuild-std=core", "--locked"])
            .arg("--target-dir")
            .arg(&target_dir)
            .env("RUSTC", RUSTC)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("CARGO_PROFILE_RELEASE_STRIP", "false")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTFLAGS"),
    )?;
    let built = target_dir.join(TARGET).join("release/behaveguard-probes");
    let stripped = target_dir.join("behaveguard.bpf.o");
    tools::run(
        Command::new(Path::new(LLVM).join("bin/llvm-objcopy"))
            .arg("--strip-debug")
            // Where each instruction came from is half of the object, and would only decorate the verifier's log.
            .args(["--remove-section=.BTF.ext", "--remove-section=.rel.BTF.ext"])
            .arg(&built)
            .arg(&stripped),
    )?;
    read(&stripped)
}

fn bpf_linker() -> Option<PathBuf> {
    let installed = cargo_home().map(|home| home.join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let found = installed.into_iter().chain(env::split_paths(&path)).map(|folder| folder.join("bpf-linker"));
    found.into_iter().find(|file| file.exists())
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|e| Error::File(path.to_owned(), e))
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) -> Result<(), Error> {
    let wrong = |e| Error::File(folder.to_owned(), e);
    for entry in fs::read_dir(folder).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        if path.is_dir() {
            sources(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

fn aya_ebpf_version(root: &Path) -> Result<String, Error> {
    let lock = read(&root.join("Cargo.lock"))?;
    let lock = String::from_utf8_lossy(&lock);
    let mut lines = lock.lines().skip_while(|line| *line != "name = \"aya-ebpf\"");
    lines.nth(1).map(str::to_owned).ok_or(Error::NoAyaEbpf)
}

/// Two FNV-1a sums of 64 bits with different starts: enough to notice an edit, and no dependency.
struct Fnv {
    a: u64,
    b: u64,
}

impl Default for Fnv {
    fn default() -> Self {
        Self { a: 0xcbf2_9ce4_8422_2325, b: 0x6c62_272e_07bb_0142 }
    }
}

impl Fnv {
    /// Adds a field and its length, so that moving bytes between fields changes the sum.
    fn field(&mut self, bytes: &[u8]) {
        for &byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.a = (self.a ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            self.b = (self.b ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(5);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository exists")
    }

    #[test]
    fn the_committed_object_was_built_from_these_sources() {
        if let Err(error) = check_hash(&root()) {
            panic!("{error}");
        }
    }

    #[test]
    fn a_field_boundary_changes_the_hash() {
        let sum = |fields: [&[u8]; 2]| {
            let mut hash = Fnv::default();
            fields.into_iter().for_each(|f| hash.field(f));
            (hash.a, hash.b)
        };
        assert_ne!(sum([b"ab", b"c"]), sum([b"a", b"bc"]));
    }
}
