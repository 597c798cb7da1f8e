//! A program file of the agent, fetched into a file one chunk after another: it may be larger than what memory there is. After a
//! restart it goes on where it was.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use models::wire::{CHUNK_MAX, Request};

use super::fetch::STALL_NS;
use crate::files;

/// What is fetched, and where to.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Of the whole file.
    pub sha256: [u8; 32],
    /// Of the whole file, bytes.
    pub size: u32,
    /// The file.
    pub path: PathBuf,
}

#[derive(Debug, Default)]
pub(super) struct Download {
    current: Option<(Wanted, File)>,
    have: u32,
    asked_ns: Option<u64>,
}

impl Download {
    /// Fetches this, and nothing else any more.
    pub(super) fn begin(&mut self, wanted: Wanted) -> io::Result<()> {
        (self.current, self.asked_ns) = (None, None);
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&wanted.path)?;
        let len = file.metadata()?.len();
        if len > u64::from(wanted.size) {
            file.set_len(0)?;
        }
        self.have = u32::try_from(file.metadata()?.len()).unwrap_or(0);
        self.current = Some((wanted, file));
        Ok(())
    }

    /// Fetches nothing any more.
    pub(super) fn end(&mut self) {
        (self.current, self.asked_ns) = (None, None);
    }

    /// What to ask for now, if nothing is on its way. The last chunk is asked for once more when all of it is there already, so
    /// that its end is noticed in one place.
    pub(super) fn next(&mut self, now_ns: u64) -> Option<Request> {
        let overdue = self.asked_ns.is_some_and(|asked| now_ns.saturating_sub(asked) > STALL_NS);
        if self.asked_ns.is_some() && !overdue {
            return None;
        }
        let (wanted, _) = self.current.as_ref()?;
        self.asked_ns = Some(now_ns);
        let len = (wanted.size - self.have).min(CHUNK_MAX as u32);
        Some(Request::Chunk { sha256: wanted.sha256, offset: self.have, len })
    }

    /// Takes a chunk: `None` while there is more to come, or when nobody waits for it; else whether all of it is there.
    pub(super) fn take(&mut self, sha256: [u8; 32], offset: u32, chunk: &[u8]) -> Option<io::Result<()>> {
        let (wanted, file) = self.current.as_mut()?;
        if wanted.sha256 != sha256 || offset != self.have {
            return None;
        }
        self.asked_ns = None;
        let left = wanted.size - self.have;
        let chunk = &chunk[..chunk.len().min(left as usize)];
        if let Err(error) = file.write_all(chunk) {
            self.end();
            return Some(Err(error));
        }
        self.have += chunk.len() as u32;
        if self.have < wanted.size && !chunk.is_empty() {
            return None;
        }
        let whole = file.sync_all().and_then(|()| files::sha256_of(&wanted.path));
        let result = whole.and_then(|found| {
            if found == wanted.sha256 {
                Ok(())
            } else {
                Err(io::Error::other("the fleet gave something else"))
            }
        });
        self.end();
        Some(result)
    }

    /// The connection is a new one: what was asked for in the old one does not come.
    pub(super) fn restart(&mut self) {
        self.asked_ns = None;
    }
}

#[cfg(test)]
mod tests {
    use models::bundle::sha256;

    use super::*;

    /// Serves until something has become of it; `lost` answers do not come.
    fn served(download: &mut Download, bytes: &[u8], mut lost: u32) -> Option<io::Result<()>> {
        for turn in 0..1000_u64 {
            let Request::Chunk { sha256, offset, len } = download.next(turn * 2 * STALL_NS)? else {
                panic!()
            };
            if lost > 0 {
                lost -= 1;
                continue;
            }
            let part = bytes.get(offset as usize..(offset + len) as usize).unwrap_or_default();
            assert!(download.take([9; 32], offset, part).is_none(), "of something else");
            if let Some(result) = download.take(sha256, offset, part) {
                return Some(result);
            }
        }
        None
    }

    #[test]
    fn a_program_file_comes_whole_also_when_it_is_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part");
        let bytes: Vec<u8> = (0..50_000_u32).map(|n| (n % 251) as u8).collect();
        let wanted = Wanted { sha256: sha256(&bytes), size: 50_000, path: path.clone() };
        let mut download = Download::default();
        assert!(download.next(0).is_none());
        download.begin(wanted.clone()).unwrap();
        let Some(Request::Chunk { offset: 0, len, .. }) = download.next(0) else { panic!() };
        assert!(download.next(1).is_none(), "it is on its way");
        assert!(download.take(wanted.sha256, 0, &bytes[..len as usize]).is_none());
        // Another run of the agent goes on.
        let mut download = Download::default();
        download.begin(wanted.clone()).unwrap();
        assert!(matches!(download.next(0), Some(Request::Chunk { offset, .. }) if offset == len));
        download.restart();
        served(&mut download, &bytes, 2).unwrap().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert!(download.next(u64::MAX).is_none(), "it is done");
        // It is whole already.
        download.begin(wanted).unwrap();
        served(&mut download, &bytes, 0).unwrap().unwrap();
    }

    #[test]
    fn other_contents_or_too_few_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = vec![1; 20_000];
        for served_bytes in [vec![2; 20_000], vec![1; 100]] {
            let path = dir.path().join("part");
            let _ = std::fs::remove_file(&path);
            let mut download = Download::default();
            download.begin(Wanted { sha256: sha256(&bytes), size: 20_000, path }).unwrap();
            assert!(served(&mut download, &served_bytes, 0).unwrap().is_err());
        }
    }
}
