//! Program files of the agent that devices may be given to run in place of their package's: what each is, by the word of whoever
//! made it. A fleet server hands them on and cannot make one.
//!
//! Ed25519 (RFC 8032) over `"behaveguard-program-v1\0"` and the encoded [`ProgramFile`].

use serde::{Deserialize, Serialize};

use crate::bundle::{Keyring, SigningKey};
use crate::wire::SignedProgramFile;

const CONTEXT: &[u8] = b"behaveguard-program-v1\0";

/// The largest program file, in bytes.
pub const SIZE_MAX: u32 = 128 << 20;

/// The longest version, in bytes.
pub const VERSION_MAX: usize = 32;

/// What a program file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramFile {
    /// Numbers with dots between.
    pub version: String,
    /// The processor, as the kernel calls it: `aarch64` or `x86_64`.
    pub arch: String,
    /// Of the whole file.
    pub sha256: [u8; 32],
    /// Of the whole file, bytes.
    pub size: u32,
}

/// Why a program file is not used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProgramFileError {
    /// Nobody that the device trusts made it.
    #[error("the program file is not signed by a key of `update.keys`")]
    Signature,
    /// What was signed is no description of one.
    #[error("what is signed describes no program file: {0}")]
    Malformed(&'static str),
}

impl ProgramFile {
    /// What is out of range.
    ///
    /// # Errors
    /// [`ProgramFileError::Malformed`].
    pub fn check(&self) -> Result<(), ProgramFileError> {
        let numbers = numbers(&self.version);
        if self.version.len() > VERSION_MAX || numbers.is_none() {
            Err(ProgramFileError::Malformed("the version is not numbers with dots between, such as 1.4.2"))
        } else if !(1..=SIZE_MAX).contains(&self.size) {
            Err(ProgramFileError::Malformed("it is empty, or larger than 128 MiB"))
        } else {
            Ok(())
        }
    }

    /// Signs it.
    ///
    /// # Panics
    /// Never: its types always have a postcard form.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> SignedProgramFile {
        let file = postcard::to_stdvec(self).expect("texts and numbers have a postcard form");
        let signature = key.sign(&[CONTEXT, &file].concat());
        SignedProgramFile { file, signature }
    }
}

/// What a signed program file is.
///
/// # Errors
/// When no key of `keys` signed it, or it is out of range.
pub fn open(signed: &SignedProgramFile, keys: &Keyring) -> Result<ProgramFile, ProgramFileError> {
    let message = [CONTEXT, &signed.file].concat();
    if !keys.0.iter().any(|key| key.verifies(&message, &signed.signature)) {
        return Err(ProgramFileError::Signature);
    }
    read(signed)
}

/// What it says that it is, whoever signed it.
///
/// # Errors
/// When it is out of range.
pub fn read(signed: &SignedProgramFile) -> Result<ProgramFile, ProgramFileError> {
    let malformed = |_| ProgramFileError::Malformed("it cannot be read");
    let (file, rest) = postcard::take_from_bytes::<ProgramFile>(&signed.file).map_err(malformed)?;
    if !rest.is_empty() {
        return Err(ProgramFileError::Malformed("bytes follow it"));
    }
    file.check()?;
    Ok(file)
}

/// Whether one version is older than another: by their numbers, a missing one is 0.
#[must_use]
pub fn is_older(version: &str, than: &str) -> bool {
    match (numbers(version), numbers(than)) {
        (Some(a), Some(b)) => a < b,
        // What cannot be compared is not taken for newer.
        _ => true,
    }
}

fn numbers(version: &str) -> Option<[u32; 4]> {
    let mut numbers = [0; 4];
    let mut parts = version.split('.');
    for (number, part) in numbers.iter_mut().zip(&mut parts) {
        *number = part.parse().ok().filter(|_| part.bytes().all(|byte| byte.is_ascii_digit()))?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> ProgramFile {
        ProgramFile { version: "1.4.2".into(), arch: "aarch64".into(), sha256: [7; 32], size: 9 }
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (older, newer) in [("1.9", "1.10"), ("1.4.2", "1.4.3"), ("1.4", "1.4.0.1"), ("0.1.0", "1")] {
            assert!(is_older(older, newer) && !is_older(newer, older), "{older} {newer}");
        }
        assert!(!is_older("1.4", "1.4.0"));
        for bad in ["", "1.", "1.x", "1.2.3.4.5", "-1", "+1", "99999999999"] {
            assert!(is_older(bad, "0.0.1"), "{bad}");
            assert!(ProgramFile { version: bad.into(), ..file() }.check().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_a_trusted_key_signed_is_a_program_file() {
        let key = || SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
        let (maker, other) = (key(), key());
        let keys = Keyring([maker.public()].into_iter().collect());
        let signed = file().sign(&maker);
        assert_eq!(open(&signed, &keys), Ok(file()));
        assert_eq!(open(&file().sign(&other), &keys), Err(ProgramFileError::Signature));
        assert_eq!(open(&signed, &Keyring::default()), Err(ProgramFileError::Signature));
        let mut changed = signed.clone();
        *changed.file.last_mut().unwrap() ^= 1;
        assert_eq!(open(&changed, &keys), Err(ProgramFileError::Signature));
        // A signature of another kind is none of this.
        let bare = SignedProgramFile { signature: maker.sign(&signed.file), ..signed };
        assert_eq!(open(&bare, &keys), Err(ProgramFileError::Signature));
        for bad in [ProgramFile { size: 0, ..file() }, ProgramFile { size: SIZE_MAX + 1, ..file() }] {
            assert!(matches!(open(&bad.sign(&maker), &keys), Err(ProgramFileError::Malformed(_))));
        }
    }
}
