//! One alert a line, as JSON, in files that are exchanged by size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{Deliver, Failure, Item};

pub(super) struct JsonLines {
    path: PathBuf,
    size_max: u64,
    files_max: u32,
    file: Option<File>,
}

impl JsonLines {
    pub(super) fn new(path: PathBuf, size_max: u64, files_max: u32) -> Self {
        Self { path, size_max, files_max, file: None }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let mut file = match self.file.take().filter(|file| is_at(file, &self.path)) {
            Some(file) => file,
            None => self.open()?,
        };
        let mut size = file.metadata()?.len();
        if size > 0 && size + line.len() as u64 > self.size_max {
            self.rotate()?;
            file = self.open()?;
            size = file.metadata()?.len();
        }
        // A line cut by a full disk is taken back, so that the next one is whole.
        if let Err(error) = file.write_all(line.as_bytes()) {
            let _ = file.set_len(size);
            return Err(error);
        }
        self.file = Some(file);
        Ok(())
    }

    fn open(&self) -> io::Result<File> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)
    }

    /// `PATH` becomes `PATH.1`, `PATH.1` becomes `PATH.2`, and the last one goes.
    fn rotate(&self) -> io::Result<()> {
        let nth = |n: u32| PathBuf::from(format!("{}.{n}", self.path.display()));
        if self.files_max == 1 {
            return fs::remove_file(&self.path);
        }
        for n in (1..self.files_max - 1).rev() {
            match fs::rename(nth(n), nth(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, nth(1))
    }
}

/// Nobody took the file away from its path.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

impl Deliver for JsonLines {
    fn deliver(&mut self, item: &Item) -> Result<(), Failure> {
        self.write(&format!("{}\n", item.json))
            .map_err(|error| Failure::Later(format!("writing {}: {error}", self.path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_exchanged_by_size_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log/alerts.json");
        let mut lines = JsonLines::new(path.clone(), 25, 3);
        for n in 0..8 {
            lines.write(&format!("{n:09}\n")).unwrap();
        }
        let read = |suffix: &str| fs::read_to_string(format!("{}{suffix}", path.display()));
        assert_eq!(read("").unwrap(), "000000006\n000000007\n");
        assert_eq!(read(".1").unwrap(), "000000004\n000000005\n");
        assert_eq!(read(".2").unwrap(), "000000002\n000000003\n");
        assert!(read(".3").is_err(), "three are kept");
        // One longer than a file stands alone.
        lines.write("a line that is longer than that\n").unwrap();
        assert_eq!(read("").unwrap(), "a line that is longer than that\n");
    }

    #[test]
    fn a_file_that_was_taken_away_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alerts.json");
        let mut lines = JsonLines::new(path.clone(), 1 << 20, 3);
        lines.write("1\n").unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        lines.write("2\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "2\n");
    }
}
