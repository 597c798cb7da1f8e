//! Everything that a database holds to a file, and back into another: from SQLite to PostgreSQL, and the other way.
//!
//! The file is [`MAGIC`], then parts, each as its length (`u32`, little-endian) and its postcard bytes, and at the end the SHA-256
//! of all that is before it. Tables come in the order of [`TABLES`], rows in that of their keys.

use std::io::{self, Read, Write};

use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use serde::{Deserialize, Serialize};

use super::sql::{self, Cell, Connection, Dialect, params};
use super::{StoreError, uint, words};

const MAGIC: &[u8; 8] = b"BGFLEET1";

/// Rows of one part.
const ROWS: u32 = 500;

/// The largest part: a baseline is some megabytes.
const PART_MAX: u32 = 1 << 30;

/// What is moved. Of the words of alerts each database makes an index of its own.
const TABLES: [Table; 38] = [
    by_key("devices", "id"),
    by_key("certificates", "serial"),
    by_key("heartbeats", "device"),
    by_key("acks", "device, epoch"),
    by_key("ahead", "device, epoch, seq"),
    by_id("alerts"),
    by_id("alarmed"),
    by_id("comments"),
    by_key("evidence", "print, device"),
    by_id("incidents"),
    by_key("incident_devices", "incident, device"),
    by_id("suppressions"),
    by_key("programs", "device, key"),
    by_id("windows"),
    by_key("bundles", "device, key, generation"),
    by_id("rejected"),
    by_key("counters", "name"),
    by_id("events"),
    by_key("releases", "device, containment"),
    by_key("tokens", "hash"),
    by_key("users", "name"),
    by_key("api_tokens", "hash"),
    by_id("audit"),
    by_id("channels"),
    by_id("notices"),
    by_id("baselines"),
    by_id("rollouts"),
    by_key("rollout_devices", "rollout, device"),
    by_key("take_backs", "device, key, generation"),
    by_key("pins", "device, key"),
    by_id("orders"),
    by_id("group_configs"),
    by_key("captures", "id"),
    by_key("capture_parts", "capture, at"),
    by_id("builds"),
    by_key("build_parts", "build, at"),
    by_id("updates"),
    by_key("update_devices", "update_id, device"),
];

struct Table {
    name: &'static str,
    /// The order of its rows.
    key: &'static str,
    /// Whether that is a number that the database gives.
    has_id: bool,
}

const fn by_key(name: &'static str, key: &'static str) -> Table {
    Table { name, key, has_id: false }
}

const fn by_id(name: &'static str) -> Table {
    Table { name, key: "id", has_id: true }
}

#[derive(Serialize, Deserialize)]
enum Part<'a> {
    /// The rows that follow are of this table.
    Table { name: String, columns: Vec<String> },
    /// Some of them.
    Rows(Vec<Vec<Cell<'a>>>),
    /// There is no more; so many rows in all.
    End(u64),
}

/// Why data was not moved.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The file.
    #[error("the file")]
    File(#[from] io::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is no such file, or was cut off or changed.
    #[error("this is no export of a fleet server's data, or it is damaged")]
    Damaged,
    /// It was written by a newer server.
    #[error("the export has the table {0}, which this server does not know: use a newer one")]
    Newer(String),
    /// Data of two fleets would be mixed.
    #[error("the database holds data already: import into an empty one")]
    NotEmpty,
}

impl From<sql::Error> for TransferError {
    fn from(error: sql::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Writes all of it; `tell` is told of each table how many rows of how many are done. A server may run meanwhile.
///
/// # Errors
/// When the database or the file fails.
pub fn export(
    c: &Connection,
    to: &mut dyn Write,
    tell: &mut dyn FnMut(&str, u64, u64),
) -> Result<u64, TransferError> {
    // One state of everything, whatever is written meanwhile.
    c.execute_batch(match c.dialect() {
        Dialect::Sqlite => "BEGIN",
        Dialect::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ",
    })?;
    let mut out = Out { to, digest: Context::new(&SHA256) };
    out.bytes(MAGIC)?;
    let mut all = 0;
    for table in &TABLES {
        all += export_table(c, table, &mut out, tell)?;
    }
    out.part(&Part::End(all))?;
    let digest = out.digest.finish();
    out.to.write_all(digest.as_ref())?;
    out.to.flush()?;
    c.roll_back()?;
    Ok(all)
}

fn export_table(
    c: &Connection,
    table: &Table,
    out: &mut Out<'_>,
    tell: &mut dyn FnMut(&str, u64, u64),
) -> Result<u64, TransferError> {
    let Table { name, key, has_id } = table;
    let count = c.query_row(&format!("SELECT count(*) FROM {name}"), [], |row| row.get(0).map(uint))?;
    let sql = if *has_id {
        format!("SELECT * FROM {name} WHERE id > ? ORDER BY id LIMIT {ROWS}")
    } else {
        format!("SELECT * FROM {name} ORDER BY {key}")
    };
    let mut query = c.prepare_cached(&sql)?;
    // The same order of columns in both databases, and so in the file.
    let mut columns: Vec<(String, usize)> =
        query.columns().into_iter().enumerate().map(|(at, name)| (name, at)).collect();
    columns.sort();
    let at_id = columns.iter().position(|(name, _)| name == "id");
    out.part(&Part::Table {
        name: (*name).to_owned(),
        columns: columns.iter().map(|(name, _)| name.clone()).collect(),
    })?;
    let mut done = 0;
    let mut last = i64::MIN;
    loop {
        let mut rows = if *has_id { query.query([last])? } else { query.query([])? };
        let mut some = Vec::new();
        let mut came = 0;
        while let Some(row) = rows.next()? {
            let cells = columns.iter().map(|(_, at)| row.get::<Cell<'static>>(*at));
            let cells = cells.collect::<sql::Result<Vec<_>>>()?;
            if let Some(Cell::Int(id)) = at_id.map(|at| &cells[at]) {
                last = *id;
            }
            some.push(cells);
            came += 1;
            if some.len() == ROWS as usize {
                out.part(&Part::Rows(std::mem::take(&mut some)))?;
            }
        }
        if !some.is_empty() {
            out.part(&Part::Rows(some))?;
        }
        done += came;
        tell(name, done, count);
        if !has_id || came < u64::from(ROWS) {
            return Ok(done);
        }
    }
}

/// Reads a file into an empty database, all of it or nothing; gives how many rows.
///
/// # Errors
/// When the file is none or is damaged, the database has data, or fails.
pub fn import(
    c: &Connection,
    from: &mut dyn Read,
    tell: &mut dyn FnMut(&str, u64),
) -> Result<u64, TransferError> {
    c.transaction(|c| import_all(c, from, tell))
}

fn import_all(
    c: &Connection,
    from: &mut dyn Read,
    tell: &mut dyn FnMut(&str, u64),
) -> Result<u64, TransferError> {
    for table in ["devices", "alerts", "users", "audit"] {
        if c.prepare_cached(&format!("SELECT 1 FROM {table} LIMIT 1"))?.exists([])? {
            return Err(TransferError::NotEmpty);
        }
    }
    // What a server counts at its very start is no data.
    c.execute("DELETE FROM counters", [])?;
    let mut input = In { from, digest: Context::new(&SHA256) };
    if input.bytes(MAGIC.len())? != MAGIC {
        return Err(TransferError::Damaged);
    }
    let mut all = 0;
    let mut into: Option<(String, Vec<String>, String)> = None;
    let mut of_table = 0;
    loop {
        match input.part()? {
            Part::Table { name, columns } => {
                let known = TABLES.iter().any(|table| table.name == name);
                let good = |text: &str| {
                    text.bytes()
                        .all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit())
                };
                if !known || !columns.iter().all(|column| good(column)) {
                    return Err(TransferError::Newer(name));
                }
                let places = vec!["?"; columns.len()].join(", ");
                let sql = format!("INSERT INTO {name}({}) VALUES ({places})", columns.join(", "));
                into = Some((name, columns, sql));
                of_table = 0;
            }
            Part::Rows(rows) => {
                let (name, columns, sql) = into.as_ref().ok_or(TransferError::Damaged)?;
                let mut insert = c.prepare_cached(sql)?;
                for row in rows {
                    if row.len() != columns.len() {
                        return Err(TransferError::Damaged);
                    }
                    insert.execute(row)?;
                    (all, of_table) = (all + 1, of_table + 1);
                }
                if name == "alerts" {
                    words::index_new(c).map_err(|error| match error {
                        StoreError::Damaged(_) | StoreError::Query(sql::Error::Column(_)) => {
                            TransferError::Damaged
                        }
                        error => error.into(),
                    })?;
                }
                tell(name, of_table);
            }
            Part::End(rows) if rows == all => break,
            Part::End(_) => return Err(TransferError::Damaged),
        }
    }
    let digest = input.digest.clone().finish();
    if input.bytes(SHA256_OUTPUT_LEN)? != digest.as_ref() {
        return Err(TransferError::Damaged);
    }
    if c.dialect() == Dialect::Postgres {
        for Table { name, .. } in TABLES.iter().filter(|table| table.has_id) {
            // The next number that the database gives.
            let sql = format!(
                "SELECT setval(pg_get_serial_sequence('{name}', 'id'), (SELECT coalesce(max(id), 0) + 1 FROM {name}), false)"
            );
            c.query_row(&sql, [], |_| Ok(()))?;
        }
    }
    Ok(all)
}

/// Gives back to the machine's disk what dropped rows left free; a server that runs waits meanwhile.
///
/// # Errors
/// When the database fails, e.g. because the disk has no room for a second copy.
pub fn compact(c: &Connection) -> Result<(), StoreError> {
    match c.dialect() {
        Dialect::Sqlite => c.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")?,
        Dialect::Postgres => c.execute_batch("VACUUM (FULL, ANALYZE)")?,
    }
    Ok(())
}

/// How large the database is, in bytes.
///
/// # Errors
/// When the database fails.
pub fn size(c: &Connection) -> Result<u64, StoreError> {
    let sql = match c.dialect() {
        Dialect::Sqlite => "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
        Dialect::Postgres => "SELECT pg_database_size(current_database())",
    };
    Ok(c.query_row(sql, params![], |row| row.get(0)).map(uint)?)
}

struct Out<'w> {
    to: &'w mut dyn Write,
    digest: Context,
}

impl Out<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.to.write_all(bytes)
    }

    fn part(&mut self, part: &Part<'_>) -> Result<(), TransferError> {
        let bytes = postcard::to_stdvec(part).map_err(StoreError::Damaged)?;
        let len = u32::try_from(bytes.len()).map_err(|_| TransferError::Damaged)?;
        self.bytes(&len.to_le_bytes())?;
        Ok(self.bytes(&bytes)?)
    }
}

struct In<'r> {
    from: &'r mut dyn Read,
    digest: Context,
}

impl In<'_> {
    /// Grows with what really comes, so that a wrong length takes no memory.
    fn bytes(&mut self, len: usize) -> Result<Vec<u8>, TransferError> {
        let mut bytes = Vec::new();
        (&mut *self.from).take(len as u64).read_to_end(&mut bytes)?;
        if bytes.len() < len {
            return Err(TransferError::Damaged);
        }
        self.digest.update(&bytes);
        Ok(bytes)
    }

    fn part(&mut self) -> Result<Part<'static>, TransferError> {
        let mut len = [0; 4];
        len.copy_from_slice(&self.bytes(4)?);
        let len = u32::from_le_bytes(len);
        if len > PART_MAX {
            return Err(TransferError::Damaged);
        }
        let bytes = self.bytes(len as usize)?;
        postcard::from_bytes(&bytes).map_err(|_| TransferError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use models::wire::{Uplink, UplinkFrame};

    use super::super::put_frame;
    use super::super::testing::{self, on_both};
    use super::*;
    use crate::counters::Counters;
    use crate::names::DeviceId;

    fn exported(c: &Connection) -> Vec<u8> {
        let mut bytes = Vec::new();
        export(c, &mut bytes, &mut |_, _, _| {}).unwrap();
        bytes
    }

    #[test]
    fn a_damaged_or_foreign_export_changes_nothing() {
        on_both(|empty| {
            let source = empty();
            let insert = "INSERT INTO users(name, role, created_ms) VALUES (?, 'viewer', 1)";
            for n in 0..1200 {
                source.execute(insert, [format!("user-{n:04}")]).unwrap();
            }
            let good = exported(&source);
            let target = empty();
            let mut cut = good.clone();
            cut.truncate(good.len() - 1);
            let mut changed = good.clone();
            changed[good.len() / 2] ^= 1;
            for bad in [&b"BGFLEET2"[..], b"", &cut, &changed] {
                assert!(import(&target, &mut &*bad, &mut |_, _| {}).is_err());
                assert!(!target.prepare_cached("SELECT 1 FROM users").unwrap().exists([]).unwrap());
            }
            assert_eq!(import(&target, &mut &*good, &mut |_, _| {}).unwrap(), 1200);
            assert_eq!(exported(&target), good);
            let again = import(&target, &mut &*good, &mut |_, _| {});
            assert!(matches!(again, Err(TransferError::NotEmpty)));
        });
    }

    #[test]
    fn an_alert_that_cannot_be_read_is_a_damaged_export() {
        on_both(|empty| {
            let source = empty();
            testing::join(&source, &["gw"]);
            let alert = Uplink::Alert(testing::alert("pump"));
            let frame = UplinkFrame { epoch: 1, seq: 1, body: alert };
            let device = DeviceId::parse("gw").unwrap();
            put_frame(&source, &Counters::default(), &device, &frame, 10, &testing::intake()).unwrap();
            let mut bytes = exported(&source);
            let at = bytes.windows(4).position(|text| text == b"pump").unwrap();
            bytes[at] = 0xff;
            let imported = import(&empty(), &mut &*bytes, &mut |_, _| {});
            assert!(matches!(imported, Err(TransferError::Damaged)), "{imported:?}");
        });
    }
}
