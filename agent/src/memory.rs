//! The file in which a pipeline's memory lies over restarts.
//!
//! ```text
//! "BGM1" | CRC-32 of the rest u32 LE | postcard(Memory)
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::files;
use crate::pipeline::Memory;

const MAGIC: [u8; 4] = *b"BGM1";
/// Larger than any that the tables allow.
const BYTES_MAX: u64 = 64 << 20;

/// The file, and which memory was written last.
#[derive(Debug)]
pub struct MemoryFile {
    path: PathBuf,
    /// Its checksum.
    written: Option<u32>,
}

impl MemoryFile {
    /// Opens the file of a state folder, and reads what is in it. A damaged one is logged and begun anew: programs that
    /// run seldom are strangers once more then.
    #[must_use]
    pub fn open(state: &Path) -> (Self, Memory) {
        let path = state.join("memory");
        let too_large = fs::metadata(&path).is_ok_and(|file| file.len() > BYTES_MAX);
        let raw = if too_large { Ok(Vec::new()) } else { fs::read(&path) };
        let memory = match raw {
            Ok(raw) => read(&raw).unwrap_or_else(|| {
                log::error!(
                    "{} is damaged: what programs without a baseline did before is forgotten",
                    path.display()
                );
                Memory::default()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    log::error!("{} cannot be read: {error}", path.display());
                }
                Memory::default()
            }
        };
        (Self { path, written: None }, memory)
    }

    /// Writes it, unless the same was written last.
    ///
    /// # Errors
    /// When it cannot be written; the one before stays.
    ///
    /// # Panics
    /// Never: numbers and texts have a postcard form.
    pub fn write(&mut self, memory: &Memory) -> io::Result<()> {
        let body = postcard::to_stdvec(memory).expect("numbers and texts have a postcard form");
        let sum = crc32fast::hash(&body);
        if self.written != Some(sum) {
            files::write_private(&self.path, &[&MAGIC[..], &sum.to_le_bytes(), &body].concat())?;
            self.written = Some(sum);
        }
        Ok(())
    }
}

fn read(raw: &[u8]) -> Option<Memory> {
    let (sum, body) = raw.strip_prefix(&MAGIC)?.split_first_chunk()?;
    let (memory, rest) = postcard::take_from_bytes(body).ok()?;
    (u32::from_le_bytes(*sum) == crc32fast::hash(body) && rest.is_empty()).then_some(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_back_and_a_damaged_one_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, nothing) = MemoryFile::open(dir.path());
        assert_eq!(nothing, Memory::default());
        let memory = Memory::of_tests();
        file.write(&memory).unwrap();
        assert_eq!(MemoryFile::open(dir.path()).1, memory);
        let path = dir.path().join("memory");
        let raw = fs::read(&path).unwrap();
        for at in [0, 5, raw.len() - 1] {
            let mut damaged = raw.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            assert_eq!(MemoryFile::open(dir.path()).1, Memory::default(), "byte {at}");
        }
        for len in 0..raw.len() {
            assert_eq!(read(&raw[..len]), None, "{len} bytes");
        }
        // The same is not written twice.
        file.write(&memory).unwrap();
        assert_ne!(fs::read(&path).unwrap(), raw);
    }
}
