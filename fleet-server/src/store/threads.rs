//! The threads that work on a database: one writes, one reads, one searches.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc;

use super::database::{Database, Purpose};
use super::sql::Connection;
use super::{GROUP_MAX, Job, Reply, SEARCH_MAX, StoreError, schema, words};
use crate::clock;
use crate::counters::{Counter, Counters};

/// Between two attempts to reach a server that is gone.
const RETRY: Duration = Duration::from_secs(1);

/// Held by the one server that leads, as long as its session lasts.
const LEAD: &str = "SELECT pg_try_advisory_lock(4845873003)";

/// A connection that is made anew when its server was gone.
pub(super) struct Kept {
    database: Database,
    connection: Connection,
    purpose: Purpose,
}

impl Kept {
    pub(super) fn new(database: Database, connection: Connection, purpose: Purpose) -> Self {
        Self { database, connection, purpose }
    }

    /// The connection, and whether it is another one than before. While the server is gone every job fails, so nothing is
    /// acknowledged, and whoever sent it sends it again.
    fn get(&mut self) -> (&Connection, bool) {
        let mut is_new = false;
        if self.connection.as_postgres().is_some_and(super::sql::Session::is_closed) {
            match self.database.open(self.purpose) {
                Ok(connection) => {
                    log::info!("the database {} is there again", self.database.place());
                    (self.connection, is_new) = (connection, true);
                }
                Err(error) => {
                    let (place, why) = (self.database.place(), models::chain::chain(&error));
                    log::error!("the database {place} is gone: {why}");
                    std::thread::sleep(RETRY);
                }
            }
        }
        (&self.connection, is_new)
    }
}

pub(super) fn write(mut kept: Kept, mut jobs: mpsc::Receiver<Job>, counters: &Counters, leads: &AtomicBool) {
    let mut saved = schema::Saved::of(counters);
    while let Some(first) = jobs.blocking_recv() {
        let (connection, is_new) = kept.get();
        if connection.as_postgres().is_some() {
            lead(connection, is_new, leads);
        }
        let before = saved.clone();
        let mut replies = Vec::new();
        let began = connection.begin();
        let mut next = Some(first);
        while let Some(job) = next {
            replies.push(in_savepoint(connection, job));
            next = if replies.len() < GROUP_MAX { jobs.try_recv().ok() } else { None };
        }
        let committed = began
            .map_err(StoreError::from)
            .and_then(|()| words::index_new(connection))
            .and_then(|()| Ok(schema::save_counters(connection, counters, &mut saved)?))
            .and_then(|()| Ok(connection.commit()?));
        if let Err(error) = &committed {
            counters.bump(Counter::CommitsFailed);
            log::error!("committing {} jobs: {}", replies.len(), models::chain::chain(error));
            // Without a transaction there is nothing to roll back, and that is fine.
            let _ = connection.roll_back();
            saved = before;
        }
        for reply in replies {
            reply(committed.is_ok());
        }
    }
    let connection = &kept.connection;
    let last = connection
        .begin()
        .and_then(|()| schema::save_counters(connection, counters, &mut saved))
        .and_then(|()| connection.commit())
        .and_then(|()| match connection.as_sqlite() {
            Some(sqlite) => Ok(sqlite.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?),
            None => Ok(()),
        });
    if let Err(error) = last {
        log::error!("saving the counters at the end: {error}");
    }
}

/// Becomes the server that leads, if no other is.
fn lead(connection: &Connection, is_new: bool, leads: &AtomicBool) {
    if is_new {
        leads.store(false, Relaxed);
    }
    if leads.load(Relaxed) {
        return;
    }
    match connection.query_row(LEAD, [], |row| row.get(0)) {
        Ok(true) => {
            leads.store(true, Relaxed);
            log::info!("this server leads: it trains, rolls out and notifies");
        }
        Ok(false) => {}
        Err(error) => log::error!("asking which server leads: {error}"),
    }
}

/// One job's failure must not take the others of its group with it.
fn in_savepoint(connection: &Connection, job: Job) -> Reply {
    if let Err(error) = connection.repeat("SAVEPOINT job") {
        log::error!("starting a job: {error}");
        return Box::new(move |_| drop(job));
    }
    let (good, reply) = job(connection);
    let back = if good { Ok(()) } else { connection.repeat("ROLLBACK TO job") };
    match back.and_then(|()| connection.repeat("RELEASE job")) {
        Ok(()) => reply,
        Err(error) => {
            log::error!("ending a job: {error}");
            Box::new(move |_| reply(false))
        }
    }
}

pub(super) fn read(mut kept: Kept, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.blocking_recv() {
        let (_, reply) = job(kept.get().0);
        reply(true);
    }
}

pub(super) fn search(mut kept: Kept, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.blocking_recv() {
        let (connection, _) = kept.get();
        if let Some(sqlite) = connection.as_sqlite() {
            let until_ms = clock::unix_ms() + SEARCH_MAX.as_millis() as u64;
            // Asked every some 10,000 steps of its virtual machine, which is well below a millisecond.
            if let Err(error) = sqlite.progress_handler(10_000, Some(move || clock::unix_ms() > until_ms)) {
                log::error!("limiting a search: {error}");
            }
        }
        let (_, reply) = job(connection);
        reply(true);
    }
}
