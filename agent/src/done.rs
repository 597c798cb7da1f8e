//! Which orders of the fleet this device carried out: each is done once at most, also over a restart.

use std::io;
use std::path::{Path, PathBuf};

use models::chain::chain;
use models::orders::Done;

use crate::files;

/// The file in the state folder.
const FILE: &str = "orders.json";

/// The orders that were carried out, and where that is written down.
#[derive(Debug)]
pub struct DoneOrders {
    path: PathBuf,
    done: Done,
}

impl DoneOrders {
    /// Reads what was written down. A damaged file is told and counts as empty: each order is harmless when done twice.
    #[must_use]
    pub fn open(state: &Path) -> Self {
        let path = state.join(FILE);
        let read = match std::fs::read(&path) {
            Ok(raw) => serde_json::from_slice(&raw).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Done::default()),
            Err(error) => Err(error),
        };
        let done = read.unwrap_or_else(|error| {
            log::error!("{}: which orders were carried out is forgotten: {}", path.display(), chain(&error));
            Done::default()
        });
        Self { path, done }
    }

    /// The orders.
    #[must_use]
    pub fn done(&self) -> &Done {
        &self.done
    }

    /// Writes down that an order is carried out, before it is.
    ///
    /// # Errors
    /// When it cannot be written; it counts as carried out until a restart.
    pub fn add(&mut self, id: u64) -> io::Result<()> {
        self.done.add(id);
        files::write_private(&self.path, &serde_json::to_vec(&self.done)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_carried_out_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut orders = DoneOrders::open(dir.path());
        assert!(!orders.done().contains(5));
        orders.add(5).unwrap();
        let again = DoneOrders::open(dir.path());
        assert!(again.done().contains(5) && !again.done().contains(6));
        std::fs::write(dir.path().join(FILE), "[").unwrap();
        assert!(!DoneOrders::open(dir.path()).done().contains(5));
    }
}
