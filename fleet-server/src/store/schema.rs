//! Tables, their version, and the counters' rows.

use std::path::Path;

use rusqlite::{Connection, params};

use super::{StoreError, int, uint};
use crate::counters::{Counter, Counters};

/// The `user_version` this server writes.
const VERSION: u32 = 3;

/// `acks` holds the highest number without a gap below it; `ahead` what was stored beyond it.
const V1: &str = "
CREATE TABLE devices(
    id TEXT PRIMARY KEY, certificate BLOB NOT NULL, enrolled_ms INTEGER NOT NULL, seen_ms INTEGER NOT NULL DEFAULT 0,
    alerts INTEGER NOT NULL DEFAULT 0, heartbeat BLOB, heartbeat_ms INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE tickets(
    hash BLOB PRIMARY KEY, device TEXT NOT NULL, expires_s INTEGER NOT NULL, used_ms INTEGER
) WITHOUT ROWID;
CREATE TABLE acks(
    device TEXT NOT NULL, epoch INTEGER NOT NULL, acked INTEGER NOT NULL, touched_ms INTEGER NOT NULL,
    PRIMARY KEY(device, epoch)
) WITHOUT ROWID;
CREATE TABLE ahead(
    device TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(device, epoch, seq)
) WITHOUT ROWID;
CREATE TABLE alerts(
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
    received_ms INTEGER NOT NULL, body BLOB NOT NULL, UNIQUE(device, epoch, seq)
);
CREATE INDEX alerts_by_device ON alerts(device, id);
CREATE TABLE programs(
    device TEXT NOT NULL, key TEXT NOT NULL, program BLOB NOT NULL, total INTEGER NOT NULL DEFAULT 0,
    generation INTEGER NOT NULL DEFAULT 0, trained_s INTEGER NOT NULL DEFAULT 0,
    reported_generation INTEGER NOT NULL DEFAULT 0, refused TEXT, PRIMARY KEY(device, key)
) WITHOUT ROWID;
CREATE TABLE windows(
    id INTEGER PRIMARY KEY, device TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL
);
CREATE INDEX windows_by_program ON windows(device, key, id);
CREATE TABLE bundles(
    device TEXT NOT NULL, key TEXT NOT NULL, generation INTEGER NOT NULL, sha256 BLOB NOT NULL,
    size INTEGER NOT NULL, created_ms INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY(device, key, generation)
);
CREATE INDEX bundles_by_hash ON bundles(sha256, device);
CREATE TABLE rejected(
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, received_ms INTEGER NOT NULL, topic TEXT NOT NULL,
    reason TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
";

/// What happens to agents. Those that a device told have its number; those that the server noticed have none.
const V2: &str = "
CREATE TABLE events(
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, epoch INTEGER, seq INTEGER, received_ms INTEGER NOT NULL,
    unix_ms INTEGER NOT NULL, kind TEXT NOT NULL, program BLOB, containment INTEGER, text TEXT NOT NULL,
    UNIQUE(device, epoch, seq)
);
CREATE INDEX events_by_device ON events(device, id);
CREATE TABLE releases(
    device TEXT NOT NULL, containment INTEGER NOT NULL, asked_ms INTEGER NOT NULL, PRIMARY KEY(device, containment)
) WITHOUT ROWID;
ALTER TABLE devices ADD COLUMN silent_ms INTEGER NOT NULL DEFAULT 0;
";

/// Groups, keys and revocation of devices; tokens for many devices; users; who did what. A device of before has no
/// key here and is enrolled again.
const V3: &str = "
ALTER TABLE devices ADD COLUMN key BLOB;
ALTER TABLE devices ADD COLUMN grp TEXT NOT NULL DEFAULT 'default';
ALTER TABLE devices ADD COLUMN ends_s INTEGER NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN revoked_ms INTEGER NOT NULL DEFAULT 0;
CREATE INDEX devices_by_group ON devices(grp, id);
CREATE TABLE tokens(
    hash BLOB PRIMARY KEY, grp TEXT NOT NULL, device TEXT, uses INTEGER NOT NULL, used INTEGER NOT NULL DEFAULT 0,
    expires_s INTEGER NOT NULL, by TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO tokens(hash, grp, device, uses, used, expires_s, by)
    SELECT hash, 'default', device, 1, used_ms IS NOT NULL, expires_s, 'local' FROM tickets;
DROP TABLE tickets;
CREATE TABLE users(name TEXT PRIMARY KEY, role TEXT NOT NULL, created_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE api_tokens(
    hash BLOB PRIMARY KEY, user TEXT NOT NULL REFERENCES users(name), label TEXT NOT NULL, created_ms INTEGER NOT NULL,
    expires_s INTEGER, used_ms INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX api_tokens_by_user ON api_tokens(user);
CREATE TABLE audit(
    id INTEGER PRIMARY KEY AUTOINCREMENT, unix_ms INTEGER NOT NULL, who TEXT NOT NULL, source TEXT NOT NULL,
    action TEXT NOT NULL, target TEXT NOT NULL, detail TEXT NOT NULL
);
";

/// The steps from each version to the next.
const STEPS: [&str; VERSION as usize] = [V1, V2, V3];

/// Brings an older or empty database to [`VERSION`], in one transaction.
pub(super) fn migrate(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let opened = |source| StoreError::Open { path: path.into(), source };
    connection.execute_batch("BEGIN IMMEDIATE").map_err(opened)?;
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(opened)?;
    let Some(steps) = STEPS.get(found as usize..) else {
        let _ = connection.execute_batch("ROLLBACK");
        return Err(StoreError::Newer { path: path.into(), found, known: VERSION });
    };
    let result = steps.iter().try_for_each(|step| connection.execute_batch(step));
    let result = result.and_then(|()| connection.pragma_update(None, "user_version", VERSION));
    result.and_then(|()| connection.execute_batch("COMMIT")).map_err(opened)
}

pub(super) fn load_counters(connection: &Connection, counters: &Counters) -> Result<(), StoreError> {
    let mut query = connection.prepare("SELECT value FROM counters WHERE name = ?")?;
    for counter in Counter::ALL {
        let mut rows = query.query([counter.name()])?;
        if let Some(row) = rows.next()? {
            counters.add(*counter, uint(row.get(0)?));
        }
    }
    Ok(())
}

/// The values the table has.
pub(super) struct Saved(Vec<u64>);

impl Saved {
    pub(super) fn of(counters: &Counters) -> Self {
        Self(counters.all().map(|(_, value)| value).collect())
    }

    /// Nothing is known about the table: every value is written again.
    pub(super) fn nothing() -> Self {
        Self(vec![u64::MAX; Counter::ALL.len()])
    }
}

pub(super) fn save_counters(
    connection: &Connection,
    counters: &Counters,
    saved: &mut Saved,
) -> Result<(), rusqlite::Error> {
    for ((name, value), saved) in counters.all().zip(&mut saved.0) {
        if *saved != value {
            let mut write = connection.prepare_cached("INSERT OR REPLACE INTO counters VALUES (?, ?)")?;
            write.execute(params![name, int(value)])?;
            *saved = value;
        }
    }
    Ok(())
}
