//! A program file of the agent, fetched into a file one chunk after another: it may be larger than what memory there is. After a
//! restart it goes on where it was.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use super::transfer::{Piece, Taken, Transfer, Way};
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
pub(super) struct Download(Option<(Wanted, Transfer<File>)>);

impl Download {
    /// Fetches this, and nothing else any more.
    pub(super) fn begin(&mut self, wanted: Wanted) -> io::Result<()> {
        self.0 = None;
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&wanted.path)?;
        if file.metadata()?.len() > u64::from(wanted.size) {
            file.set_len(0)?;
        }
        let have = u32::try_from(file.metadata()?.len()).unwrap_or(0);
        let transfer = Transfer::new(wanted.sha256, wanted.size, have, file);
        self.0 = Some((wanted, transfer));
        Ok(())
    }

    /// Fetches nothing any more.
    pub(super) fn end(&mut self) {
        self.0 = None;
    }

    /// What to ask for now, if nothing is on its way.
    pub(super) fn next(&mut self, now_ns: u64, way: Way) -> Option<Piece> {
        self.0.as_mut()?.1.next(now_ns, way)
    }

    /// Takes a piece: `None` while there is more to come, or when nobody waits for it; else whether all of it is there.
    pub(super) fn take(&mut self, sha256: [u8; 32], offset: u32, chunk: &[u8]) -> Option<io::Result<()>> {
        let taken = self.0.as_mut()?.1.take(sha256, offset, chunk);
        if let Taken::Nothing = taken {
            return None;
        }
        let (wanted, transfer) = self.0.take()?;
        Some(match taken {
            Taken::Failed(error) => Err(error),
            _ => transfer.into_inner().sync_all().and_then(|()| is_what_was_wanted(&wanted)),
        })
    }

    /// What was asked for this way does not come.
    pub(super) fn lost(&mut self, way: Way) {
        if let Some((_, transfer)) = &mut self.0 {
            transfer.lost(way);
        }
    }
}

fn is_what_was_wanted(wanted: &Wanted) -> io::Result<()> {
    if files::sha256_of(&wanted.path)? == wanted.sha256 {
        Ok(())
    } else {
        Err(io::Error::other("the fleet gave something else"))
    }
}

#[cfg(test)]
mod tests {
    use models::bundle::sha256;

    use super::super::transfer::STALL_NS;
    use super::*;

    /// Serves until something has become of it; `lost` answers do not come.
    fn served(download: &mut Download, bytes: &[u8], mut lost: u32) -> Option<io::Result<()>> {
        for turn in 0..1000_u64 {
            let Piece { sha256, offset, len, .. } = download.next(turn * 2 * STALL_NS, Way::Mqtt)?;
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
        assert!(download.next(0, Way::Mqtt).is_none());
        download.begin(wanted.clone()).unwrap();
        let Some(Piece { offset: 0, len, .. }) = download.next(0, Way::Mqtt) else { panic!() };
        assert!(download.next(1, Way::Mqtt).is_none(), "it is on its way");
        assert!(download.take(wanted.sha256, 0, &bytes[..len as usize]).is_none());
        // Another run of the agent goes on.
        let mut download = Download::default();
        download.begin(wanted.clone()).unwrap();
        assert!(matches!(download.next(0, Way::Mqtt), Some(Piece { offset, .. }) if offset == len));
        download.lost(Way::Mqtt);
        served(&mut download, &bytes, 2).unwrap().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert!(download.next(u64::MAX, Way::Mqtt).is_none(), "it is done");
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
