//! Compresses the kernel's programs: as they are, they would be a twentieth of the agent, which reads them once when it starts.

use std::path::Path;
use std::{env, fs, io};

/// The committed object; `cargo xtask ebpf` rebuilds it.
const OBJECT: &str = "../agent-ebpf/prebuilt/behaveguard.bpf.o";
/// The smallest result; it takes a tenth of a second.
const LEVEL: u8 = 10;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed={OBJECT}");
    let folder = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?;
    let compressed = miniz_oxide::deflate::compress_to_vec(&fs::read(OBJECT)?, LEVEL);
    fs::write(Path::new(&folder).join("behaveguard.bpf.o.deflate"), compressed)
}
