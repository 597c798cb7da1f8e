//! A file with everything that was judged, so that it can be judged again: events, windows, identities, baselines.
//!
//! ```text
//! "BGC6" | entry ...          entry = length u32 LE | CRC-32 u32 LE | postcard(Entry)
//! ```
//! The first entry is [`Entry::Begin`], the last one [`Entry::End`]. A file without the last was cut short; what is
//! whole in it can be replayed. Times are `CLOCK_BOOTTIME` and wall clock, as the pipeline was given them.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::path::{Path, PathBuf};

use models::program::ProgramId;
use models::schema::SCHEMA_ID;
use serde::{Deserialize, Serialize};

use crate::clock::Now;
use crate::config::Config;
use crate::pipeline::{Input, Known};
use crate::processes::Identity;
use crate::vitals;

const MAGIC: [u8; 4] = *b"BGC6";
/// The longest entry: windows of every process, each some 500 bytes and up to 2048 grams.
const ENTRY_MAX: usize = 64 * 1024 * 1024;
/// Kept free for the last entry.
const END_BYTES: u64 = 64;

/// Where a capture comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Version of the agent.
    pub agent: String,
    /// The kernel's release.
    pub kernel: String,
    /// Machine architecture.
    pub arch: String,
    /// [`SCHEMA_ID`] of the vectors.
    pub schema: u32,
}

/// One entry.
#[derive(Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "entries live for one call")]
pub enum Entry {
    /// The first one.
    Begin {
        /// Where it comes from.
        origin: Origin,
        /// How the agent was configured.
        config: Config,
        /// Start of the first epoch, `CLOCK_BOOTTIME` nanoseconds.
        opened_ns: u64,
        /// Layers that did not see everything.
        degraded: Vec<String>,
    },
    /// Layers that do not see everything from now on.
    Degraded(Vec<String>),
    /// A baseline was used from now on.
    Switch {
        /// For which program.
        program: ProgramId,
        /// Which.
        generation: u64,
        /// The kernel's number of its table.
        table: Option<u16>,
    },
    /// The pipeline took one input.
    Step {
        /// When.
        now: Now,
        /// What.
        input: Input,
        /// What it was told about processes meanwhile, in order.
        answers: Vec<Identity>,
    },
    /// The last one.
    End {
        /// Entries before it.
        entries: u64,
        /// It ended because the file had its full size.
        full: bool,
    },
    /// A program's baseline was used no longer.
    Forget(ProgramId),
    /// What was known when recording began.
    Known(Known),
}

/// Borrowed twin of [`Entry`], in the same order.
#[derive(Serialize)]
enum Writing<'a> {
    Begin { origin: Origin, config: &'a Config, opened_ns: u64, degraded: &'a [String] },
    Degraded(&'a [String]),
    Switch { program: &'a ProgramId, generation: u64, table: Option<u16> },
    Step { now: Now, input: &'a Input, answers: &'a [Identity] },
    End { entries: u64, full: bool },
    Forget(&'a ProgramId),
    Known(&'a Known),
}

/// Why a capture was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file.
    #[error("using {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Nothing is overwritten.
    #[error("{0} is there already: name another file, or remove it first")]
    Exists(PathBuf),
    /// Its size is used up.
    #[error("{0} has its full size; record with a larger --max, or for a shorter time")]
    Full(PathBuf),
    /// An entry that cannot be one.
    #[error("an entry cannot be written")]
    Entry(#[source] postcard::Error),
    /// Another file.
    #[error("{0} is no capture of this version: it does not begin with `BGC6`")]
    Magic(PathBuf),
    /// Damaged.
    #[error("{path} is damaged after {entries} entries; those before it were replayed")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Whole entries before.
        entries: u64,
    },
    /// Vectors of another schema.
    #[error(
        "made with feature schema {0:#010x}, this build has {SCHEMA_ID:#010x}: replay it with the agent that made it"
    )]
    Schema(u32),
}

/// Writes a capture.
#[derive(Debug)]
pub struct Writer {
    out: BufWriter<File>,
    path: PathBuf,
    bytes: u64,
    max: u64,
    entries: u64,
}

impl Writer {
    /// Makes a new file of at most `max` bytes, for its owner only.
    ///
    /// # Errors
    /// When it is there already, or cannot be made.
    pub fn create(path: &Path, max: u64) -> Result<Self, CaptureError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let failed = |source| CaptureError::File { path: path.to_owned(), source };
        let made = File::options().write(true).create_new(true).mode(0o600).open(path);
        let file = made.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => CaptureError::Exists(path.to_owned()),
            _ => failed(source),
        })?;
        let mut out = BufWriter::new(file);
        out.write_all(&MAGIC).map_err(failed)?;
        Ok(Self { out, path: path.to_owned(), bytes: MAGIC.len() as u64, max, entries: 0 })
    }

    pub(crate) fn begin(
        &mut self,
        config: &Config,
        opened_ns: u64,
        degraded: &[String],
    ) -> Result<(), CaptureError> {
        let origin = Origin {
            agent: env!("CARGO_PKG_VERSION").into(),
            kernel: vitals::kernel(),
            arch: std::env::consts::ARCH.into(),
            schema: SCHEMA_ID,
        };
        self.add(&Writing::Begin { origin, config, opened_ns, degraded })
    }

    pub(crate) fn known(&mut self, known: &Known) -> Result<(), CaptureError> {
        self.add(&Writing::Known(known))
    }

    pub(crate) fn degraded(&mut self, layers: &[String]) -> Result<(), CaptureError> {
        self.add(&Writing::Degraded(layers))
    }

    pub(crate) fn switch(
        &mut self,
        program: &ProgramId,
        generation: u64,
        table: Option<u16>,
    ) -> Result<(), CaptureError> {
        self.add(&Writing::Switch { program, generation, table })
    }

    pub(crate) fn forget(&mut self, program: &ProgramId) -> Result<(), CaptureError> {
        self.add(&Writing::Forget(program))
    }

    pub(crate) fn step(&mut self, now: Now, input: &Input, answers: &[Identity]) -> Result<(), CaptureError> {
        self.add(&Writing::Step { now, input, answers })
    }

    /// Ends the file; gives its size.
    ///
    /// # Errors
    /// When it cannot be written to its end.
    pub fn finish(mut self) -> Result<u64, CaptureError> {
        self.end(false)?;
        Ok(self.bytes)
    }

    fn add(&mut self, entry: &Writing<'_>) -> Result<(), CaptureError> {
        let bytes = postcard::to_allocvec(entry).map_err(CaptureError::Entry)?;
        if self.bytes + bytes.len() as u64 + 8 + END_BYTES > self.max {
            self.end(true)?;
            return Err(CaptureError::Full(self.path.clone()));
        }
        self.put(&bytes)
    }

    fn end(&mut self, full: bool) -> Result<(), CaptureError> {
        let end = Writing::End { entries: self.entries, full };
        let bytes = postcard::to_allocvec(&end).map_err(CaptureError::Entry)?;
        self.put(&bytes)?;
        let path = self.path.clone();
        let synced = self.out.flush().and_then(|()| self.out.get_ref().sync_all());
        synced.map_err(|source| CaptureError::File { path, source })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), CaptureError> {
        let failed = |source| CaptureError::File { path: self.path.clone(), source };
        let len = u32::try_from(bytes.len()).map_err(|_| CaptureError::Full(self.path.clone()))?;
        let mut put = |part: &[u8]| self.out.write_all(part).map_err(failed);
        put(&len.to_le_bytes())?;
        put(&crc32fast::hash(bytes).to_le_bytes())?;
        put(bytes)?;
        self.bytes += bytes.len() as u64 + 8;
        self.entries += 1;
        Ok(())
    }
}

/// Reads a capture, entry by entry.
pub struct Reader<R = File> {
    file: BufReader<R>,
    path: PathBuf,
    entries: u64,
    ended: bool,
}

impl Reader {
    /// Opens a capture.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let file = File::open(path).map_err(|source| CaptureError::File { path: path.to_owned(), source })?;
        Self::of(file, path)
    }
}

impl<R: Read> Reader<R> {
    /// Reads a capture from anywhere; errors name this path.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn of(source: R, path: &Path) -> Result<Self, CaptureError> {
        let failed = |source| CaptureError::File { path: path.to_owned(), source };
        let mut file = BufReader::new(source);
        let mut magic = [0; MAGIC.len()];
        match file.read_exact(&mut magic) {
            Ok(()) if magic == MAGIC => {}
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(failed(error)),
            _ => return Err(CaptureError::Magic(path.to_owned())),
        }
        Ok(Self { file, path: path.to_owned(), entries: 0, ended: false })
    }

    /// The next entry; `None` after the last one.
    ///
    /// # Errors
    /// When the file is damaged or was cut short here.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, CaptureError> {
        if self.ended {
            return Ok(None);
        }
        let entry = self.whole().ok_or_else(|| self.damaged())?;
        if let Entry::End { entries, .. } = entry {
            if entries != self.entries {
                return Err(self.damaged());
            }
            self.ended = true;
        }
        self.entries += 1;
        Ok(Some(entry))
    }

    fn whole(&mut self) -> Option<Entry> {
        let mut head = [0; 8];
        self.file.read_exact(&mut head).ok()?;
        let len = u32::from_le_bytes(*head.first_chunk()?) as usize;
        let crc = u32::from_le_bytes(*head.last_chunk()?);
        if len > ENTRY_MAX {
            return None;
        }
        // What is really there, so that a damaged length asks for no memory.
        let mut bytes = Vec::new();
        self.file.by_ref().take(len as u64).read_to_end(&mut bytes).ok()?;
        if bytes.len() != len || crc32fast::hash(&bytes) != crc {
            return None;
        }
        postcard::from_bytes(&bytes).ok()
    }

    fn damaged(&self) -> CaptureError {
        CaptureError::Damaged { path: self.path.clone(), entries: self.entries }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use models::event::{Comm, Event, EventKind, PathText, SyscallWindow};

    use super::*;

    fn write(path: &Path, max: u64) -> Result<u64, CaptureError> {
        let mut writer = Writer::create(path, max)?;
        writer.begin(&Config::default(), 7, &["dns".into()])?;
        let kind =
            EventKind::Open { path: PathText::try_from("/etc/shadow").unwrap(), flags: 0, sensitive: true };
        let event = Event { boot_ns: 9, tgid: 5, tid: 5, uid: 0, comm: Comm::new(), kind };
        writer.step(Now { boot_ns: 10, unix_ms: 11 }, &Input::Event(event), &[Identity::Gone])?;
        let syscalls = vec![SyscallWindow::empty(5, 1)];
        writer.step(Now::default(), &Input::Close { closed_ns: 12, syscalls }, &[])?;
        writer.finish()
    }

    fn read(path: &Path) -> (Vec<Entry>, Option<CaptureError>) {
        let mut reader = match Reader::open(path) {
            Ok(reader) => reader,
            Err(error) => return (Vec::new(), Some(error)),
        };
        let mut entries = Vec::new();
        loop {
            match reader.next_entry() {
                Ok(Some(entry)) => entries.push(entry),
                Ok(None) => return (entries, None),
                Err(error) => return (entries, Some(error)),
            }
        }
    }

    #[test]
    fn what_was_written_is_read_and_every_cut_keeps_the_whole_entries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capture");
        let size = write(&path, 1 << 20).unwrap();
        let (entries, error) = read(&path);
        assert!(error.is_none(), "{error:?}");
        assert_eq!((entries.len(), fs::metadata(&path).unwrap().len()), (4, size));
        assert!(matches!(&entries[1], Entry::Step { input: Input::Event(event), .. } if event.tgid == 5));
        assert!(matches!(entries[3], Entry::End { entries: 3, full: false }));
        let bytes = fs::read(&path).unwrap();
        let cut = dir.path().join("cut");
        for at in 0..bytes.len() {
            fs::write(&cut, &bytes[..at]).unwrap();
            let (whole, error) = read(&cut);
            assert!(error.is_some() && whole.len() < 4, "cut at {at}");
        }
        for at in 4..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            fs::write(&cut, &flipped).unwrap();
            assert!(read(&cut).1.is_some(), "flipped at {at}");
        }
    }

    #[test]
    fn a_full_file_ends_in_order_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capture");
        let refused = write(&path, 400).unwrap_err();
        assert!(refused.to_string().contains("larger --max"), "{refused}");
        let (entries, error) = read(&path);
        assert!(error.is_none(), "{error:?}");
        assert!(matches!(entries.last(), Some(Entry::End { full: true, .. })));
        assert!(fs::metadata(&path).unwrap().len() <= 400);
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten_and_another_is_no_capture() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capture");
        fs::write(&path, "notes").unwrap();
        assert!(matches!(Writer::create(&path, 1000), Err(CaptureError::Exists(_))));
        assert!(matches!(read(&path).1, Some(CaptureError::Magic(_))));
    }
}
