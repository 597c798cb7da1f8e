//! Commands on program files of the agent: made trustworthy by whoever builds them, and brought into a server's folder.

use std::error::Error;
use std::path::{Path, PathBuf};

use fleet_server::access::LOCAL;
use fleet_server::cli::BuildCommand;
use fleet_server::files::write_private;
use fleet_server::{clock, store};
use models::bundle::{SigningKey, sha256};
use models::program::hex;
use models::program_file::{self, ProgramFile, SIZE_MAX};
use models::wire::SignedProgramFile;
use zeroize::Zeroizing;

use crate::commands::{change, found, open};

type Done = Result<(), Box<dyn Error>>;

pub(crate) fn run(command: BuildCommand) -> Done {
    match command {
        BuildCommand::Key { out } => key(&out),
        BuildCommand::Sign { key, version, file } => sign(&key, version, &file),
        BuildCommand::Add { state, file } => add(&state, &file),
        BuildCommand::List { state } => {
            for build in store::builds(&open(&state)?)? {
                let ProgramFile { version, arch, size, sha256 } = &build.file;
                println!("{}  version {version}  {arch}  {} KiB  {}", build.id, size / 1024, hex(sha256));
            }
            Ok(())
        }
        BuildCommand::Remove { state, id } => {
            let there = change(&state, "build.delete", &id.to_string(), "", |c| store::remove_build(c, id))?;
            found(
                there,
                &format!(
                    "there is no program file {id} that no update is under way to; see behaveguard-fleet build list"
                ),
            )
        }
    }
}

fn key(out: &Path) -> Done {
    if out.exists() {
        return Err(
            format!("{} is there already; remove it first, or give another name", out.display()).into()
        );
    }
    let pkcs8 = Zeroizing::new(SigningKey::generate_pkcs8());
    let key = SigningKey::from_pkcs8(&pkcs8).ok_or("the key that was made cannot be used")?;
    write_private(out, &pkcs8).map_err(|error| format!("{}: {error}", out.display()))?;
    println!("[update]\nkeys = [\"{}\"]", hex(&key.public().0));
    eprintln!(
        "the key is in {}: keep it where programs are built, and put `keys` below `[update]` of the devices' own configuration",
        out.display()
    );
    Ok(())
}

/// The processor that an ELF file is for, as the kernel calls it.
fn arch_of(bytes: &[u8]) -> Option<&'static str> {
    // e_ident, then e_type, then e_machine; see elf(5).
    match (bytes.get(..6)?, bytes.get(18..20)?) {
        (b"\x7fELF\x02\x01", [0x3e, 0]) => Some("x86_64"),
        (b"\x7fELF\x02\x01", [0xb7, 0]) => Some("aarch64"),
        _ => None,
    }
}

/// Where the word of whoever made a file is: beside it.
fn signature_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

fn read(file: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    Ok(std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?)
}

fn sign(key: &Path, version: String, file: &Path) -> Done {
    let pkcs8 = Zeroizing::new(read(key)?);
    let key = SigningKey::from_pkcs8(&pkcs8)
        .ok_or_else(|| format!("{} is no key of `behaveguard-fleet build key`", key.display()))?;
    let bytes = read(file)?;
    let arch =
        arch_of(&bytes).ok_or_else(|| format!("{} is no program for x86_64 or aarch64", file.display()))?;
    let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let program = ProgramFile { version, arch: arch.to_owned(), sha256: sha256(&bytes), size };
    program.check()?;
    let signed = postcard::to_stdvec(&program.sign(&key))?;
    let out = signature_of(file);
    std::fs::write(&out, signed).map_err(|error| format!("{}: {error}", out.display()))?;
    println!("version {} for {arch}, signed in {}", program.version, out.display());
    Ok(())
}

fn add(state: &Path, file: &Path) -> Done {
    let size = std::fs::metadata(file).map_err(|error| format!("{}: {error}", file.display()))?.len();
    if size > u64::from(SIZE_MAX) {
        return Err(format!("{} has {size} bytes, {SIZE_MAX} at most may be", file.display()).into());
    }
    let (bytes, signature) = (read(file)?, signature_of(file));
    let damaged = || format!("{} is no signature of `behaveguard-fleet build sign`", signature.display());
    if !signature.exists() {
        let signature = signature.display();
        return Err(
            format!("there is no {signature}: sign it first, with `behaveguard-fleet build sign`").into()
        );
    }
    let signed: SignedProgramFile = postcard::from_bytes(&read(&signature)?).map_err(|_| damaged())?;
    let program = program_file::read(&signed).map_err(|_| damaged())?;
    if program.sha256 != sha256(&bytes) {
        return Err(format!("{} is another file than the one that was signed", file.display()).into());
    }
    let target = format!("version {} for {}", program.version, program.arch);
    let id = change(state, "build.add", &target, &hex(&program.sha256), |c| {
        store::add_build(c, (&program, &signed), &bytes, LOCAL, clock::unix_ms())
    })?;
    let id = id.ok_or_else(|| {
        format!("it is there already, or {} others are; see behaveguard-fleet build list", store::BUILDS_MAX)
    })?;
    println!("{id}  {target}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_from_other_files_and_by_its_processor() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(arch_of(&own), Some(std::env::consts::ARCH));
        for bad in [&b""[..], b"\x7fELF", b"#!/bin/sh\nexit 0 # longer than a head", &own[1..]] {
            assert_eq!(arch_of(bad), None);
        }
    }
}
