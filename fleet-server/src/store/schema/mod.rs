//! Tables, their version, and the counters' rows.

mod postgres;
mod sqlite;

use super::sql::{self, Connection, Dialect, params};
use super::{StoreError, int, uint};
use crate::counters::{Counter, Counters};

/// The version of the tables that this server writes.
const VERSION: u32 = 13;

/// Brings an older or empty database to [`VERSION`], in one transaction.
pub(super) fn migrate(connection: &Connection, place: &str) -> Result<(), StoreError> {
    match connection.dialect() {
        Dialect::Sqlite => sqlite::migrate(connection, place),
        Dialect::Postgres => postgres::migrate(connection, place),
    }
}

pub(super) fn load_counters(connection: &Connection, counters: &Counters) -> Result<(), StoreError> {
    let mut query = connection.prepare_cached("SELECT value FROM counters WHERE name = ?")?;
    for counter in Counter::ALL {
        let mut rows = query.query([counter.name()])?;
        if let Some(row) = rows.next()? {
            counters.add(*counter, uint(row.get(0)?));
        }
    }
    Ok(())
}

/// What of the counters is in the table.
#[derive(Clone)]
pub(super) struct Saved(Vec<u64>);

impl Saved {
    pub(super) fn of(counters: &Counters) -> Self {
        Self(counters.all().map(|(_, value)| value).collect())
    }
}

pub(super) fn save_counters(
    connection: &Connection,
    counters: &Counters,
    saved: &mut Saved,
) -> sql::Result<()> {
    for ((name, value), saved) in counters.all().zip(&mut saved.0) {
        if *saved != value {
            // Added, because another server may have counted meanwhile.
            let mut write = connection.prepare_cached(
                "INSERT INTO counters VALUES (?1, ?2) ON CONFLICT(name) DO UPDATE SET value = counters.value + ?2",
            )?;
            write.execute(params![name, int(value) - int(*saved)])?;
            *saved = value;
        }
    }
    Ok(())
}
