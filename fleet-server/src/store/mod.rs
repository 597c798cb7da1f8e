//! SQLite behind a writing, a reading and a searching thread: jobs in, group commits, replies after the commit.
//!
//! A job is a closure over the connection. The writer takes everything that waits (at most [`GROUP_MAX`]), runs each
//! job in its own savepoint, commits once, and only then answers: an answer means that the data survives a power cut.
//! Devices and the dashboard's short questions go to the reading thread; what may take long goes to the searching
//! thread, where it is given up after [`SEARCH_MAX`], so that no question of a person holds up a device.

mod alerts;
mod audit;
mod baselines;
mod bundles;
mod channels;
mod devices;
mod events;
mod evidence;
mod find;
mod frames;
mod incidents;
mod overview;
mod read;
mod rollouts;
mod schema;
mod suppressions;
mod tokens;
mod users;
mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::counters::{Counter, Counters};

pub use alerts::{StoredAlert, WorkState, alert, newest_alert};
pub use audit::{AuditRow, Change, audit, put_audit};
pub use baselines::{
    BASELINES_MAX, BaselineRow, NewBaseline, Removed, Scope, baseline, baselines, offer_of, put_baseline,
    remove_baseline, windows_of_many,
};
pub use bundles::{
    StoredWindows, has_windows, newest_offers, put_bundle, put_report, training_candidates, windows_of,
};
pub use channels::{
    CHANNELS_MAX, Channel, ChannelConfig, Channels, Format, Notice, add_channel, channel, channels,
    delivered, due, failed, load_channels, remove_channel,
};
pub use devices::{Known, admitted, group_of, known, put_heartbeat, renewed, revoke, seen, set_group};
pub use events::{
    StoredEvent, TWINS, events, newest_event, put_heard, put_noticed, put_release, put_silent, releases,
};
pub use evidence::{Rarity, rarity};
pub use find::{AlertFilter, FACETS_OVER, Facet, Facets, Page, facets, find_alerts};
pub use frames::{
    FrameOutcome, Intake, Limits, Rejected, WindowsOutcome, acks, put_frame, put_gone, put_rejected,
};
pub use incidents::{IncidentRow, incident, incidents};
pub use overview::{Overview, Suspect, overview};
pub use read::{DeviceRow, TrainingRow, chunk, count_rejected, device, devices, training};
pub use rollouts::{
    NotBegun, RolloutDevice, RolloutRow, UNDER_WAY_MAX, begin_rollout, pause_rollout, put_reason, put_stage,
    rollout, rollout_devices, rollout_facts, rollouts, rollouts_under_way, set_pinned, take_backs,
};
pub use suppressions::{
    Matcher, PREVIEWED, RULES_MAX, Rule, Rules, add_rule, load_rules, preview, remove_rule, rules,
};
pub use tokens::{Enrol, NewToken, TokenRow, add_token, drop_token, enrol, tokens};
pub use users::{
    ApiTokenRow, Changed, UserRow, add_api_token, add_user, principal, remove_api_token, remove_user,
    set_role, token_used, users,
};
pub use work::{BULK_MAX, Comment, Work, Worked, comments, work, work_on_incident};

/// Jobs of one commit at most.
pub const GROUP_MAX: usize = 4096;

/// How long a search may take.
pub const SEARCH_MAX: Duration = Duration::from_secs(5);

/// Memory for the pages that the writing thread works on, in KiB.
const WRITER_CACHE_KIB: i64 = 64 * 1024;

/// Pages of 4 KiB in the write-ahead log before it is copied into the database.
const CHECKPOINT_PAGES: i64 = 8192;

/// Jobs that may wait; the next caller waits for a place.
const QUEUE_MAX: usize = 8192;

type Reply = Box<dyn FnOnce(bool) + Send>;
type Job = Box<dyn FnOnce(&Connection) -> (bool, Reply) + Send>;

/// A store that could not be opened or did not do a job.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Opening or preparing the database.
    #[error("opening the database {path}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: rusqlite::Error,
    },
    /// The database was made by a newer server.
    #[error("the database {path} has schema {found}, this server knows {known}; start a newer server")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its `user_version`.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Starting the thread.
    #[error("starting the store's thread")]
    Thread(#[source] std::io::Error),
    /// The job itself failed; nothing of it is kept.
    #[error("a query failed")]
    Query(#[from] rusqlite::Error),
    /// Stored bytes cannot be read back.
    #[error("a stored row is damaged")]
    Damaged(#[source] postcard::Error),
    /// The commit failed; nothing of the group is kept.
    #[error("the commit failed; is the disk full?")]
    NotCommitted,
    /// The device may not send any more.
    #[error("the device was revoked")]
    Revoked,
    /// A search took longer than [`SEARCH_MAX`].
    #[error("the search took too long")]
    TooLong,
    /// The store has stopped.
    #[error("the store has stopped")]
    Stopped,
}

/// A way to give the store jobs. Cheap to clone; the threads end with the last clone.
#[derive(Clone, Debug)]
pub struct Store {
    write: mpsc::Sender<Job>,
    read: mpsc::Sender<Job>,
    search: mpsc::Sender<Job>,
}

/// An answer that comes after the commit.
#[derive(Debug)]
pub struct Pending<T>(oneshot::Receiver<Result<T, StoreError>>);

impl<T> Pending<T> {
    /// Waits for the commit.
    ///
    /// # Errors
    /// When the job or the commit failed.
    pub async fn done(self) -> Result<T, StoreError> {
        self.0.await.unwrap_or(Err(StoreError::Stopped))
    }
}

/// The store's threads, to wait for at the end.
#[derive(Debug)]
pub struct Threads([JoinHandle<()>; 3]);

impl Threads {
    /// Waits until everything is written. Drop every [`Store`] first.
    pub fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                log::error!("a thread of the store panicked");
            }
        }
    }
}

impl Store {
    /// Opens `<dir>/fleet.db`, brings its schema up to date, loads the counters and starts the threads.
    ///
    /// # Errors
    /// When the database cannot be opened or is newer than this server.
    pub fn open(dir: &Path, counters: Arc<Counters>) -> Result<(Self, Threads), StoreError> {
        let path = dir.join("fleet.db");
        let writer = open(&path)?;
        // All inner pages of the indexes stay in memory, and a checkpoint writes a page once that changed many times.
        let written = writer
            .pragma_update(None, "cache_size", -WRITER_CACHE_KIB)
            .and_then(|()| writer.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES));
        written.map_err(|source| StoreError::Open { path: path.clone(), source })?;
        schema::migrate(&writer, &path)?;
        schema::load_counters(&writer, &counters)?;
        let reader = || -> Result<Connection, StoreError> {
            let reader = open(&path)?;
            reader.pragma_update(None, "query_only", true)?;
            Ok(reader)
        };
        let (reader, searcher) = (reader()?, reader()?);
        let (write, write_jobs) = mpsc::channel(QUEUE_MAX);
        let (read, read_jobs) = mpsc::channel(QUEUE_MAX);
        let (search, search_jobs) = mpsc::channel(QUEUE_MAX);
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(body).map_err(StoreError::Thread)
        };
        let threads = [
            spawn("store-write", Box::new(move || write_loop(&writer, write_jobs, &counters)))?,
            spawn("store-read", Box::new(move || read_loop(&reader, read_jobs)))?,
            spawn("store-search", Box::new(move || search_loop(&searcher, search_jobs)))?,
        ];
        Ok((Self { write, read, search }, Threads(threads)))
    }

    /// Hands over a writing job and waits for its commit.
    ///
    /// # Errors
    /// When the job or the commit failed.
    pub async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.submit(job).await?.done().await
    }

    /// Hands over a writing job; jobs of one caller run in the order of submission.
    ///
    /// # Errors
    /// [`StoreError::Stopped`].
    pub async fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<Pending<T>, StoreError> {
        let (job, pending) = boxed(job);
        self.write.send(job).await.map_err(|_| StoreError::Stopped)?;
        Ok(pending)
    }

    /// Runs a query on the reading thread: it sees everything that was answered before.
    ///
    /// # Errors
    /// When the query failed.
    pub async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, pending) = boxed(job);
        self.read.send(job).await.map_err(|_| StoreError::Stopped)?;
        pending.done().await
    }
}

impl Store {
    /// Runs a query that may take long on the searching thread.
    ///
    /// # Errors
    /// [`StoreError::TooLong`] after [`SEARCH_MAX`], or when the query failed.
    pub async fn search<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, pending) = boxed(job);
        self.search.send(job).await.map_err(|_| StoreError::Stopped)?;
        match pending.done().await {
            Err(StoreError::Query(error))
                if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) =>
            {
                Err(StoreError::TooLong)
            }
            done => done,
        }
    }
}

/// Opens the database of a state folder for one job outside the server, e.g. the `token` command.
///
/// # Errors
/// When it cannot be opened.
pub fn open_alone(dir: &Path) -> Result<Connection, StoreError> {
    let path = dir.join("fleet.db");
    let connection = open(&path)?;
    schema::migrate(&connection, &path)?;
    Ok(connection)
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let prepare = || {
        let connection = Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    };
    prepare().map_err(|source| StoreError::Open { path: path.into(), source })
}

fn boxed<T: Send + 'static>(
    job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
) -> (Job, Pending<T>) {
    let (reply, pending) = oneshot::channel();
    let job: Job = Box::new(move |connection| {
        let result = job(connection);
        let good = result.is_ok();
        let answer: Reply = Box::new(move |committed| {
            let result = if committed || result.is_err() { result } else { Err(StoreError::NotCommitted) };
            // A caller that went away needs no answer.
            let _ = reply.send(result);
        });
        (good, answer)
    });
    (job, Pending(pending))
}

fn write_loop(connection: &Connection, mut jobs: mpsc::Receiver<Job>, counters: &Counters) {
    let mut saved = schema::Saved::of(counters);
    while let Some(first) = jobs.blocking_recv() {
        let mut replies = Vec::new();
        let began = connection.execute_batch("BEGIN IMMEDIATE");
        let mut next = Some(first);
        while let Some(job) = next {
            replies.push(in_savepoint(connection, job));
            next = if replies.len() < GROUP_MAX { jobs.try_recv().ok() } else { None };
        }
        let committed = began
            .and_then(|()| schema::save_counters(connection, counters, &mut saved))
            .and_then(|()| connection.execute_batch("COMMIT"));
        if let Err(error) = &committed {
            counters.bump(Counter::CommitsFailed);
            log::error!("committing {} jobs: {error}", replies.len());
            // Without a transaction there is nothing to roll back, and that is fine.
            let _ = connection.execute_batch("ROLLBACK");
            saved = schema::Saved::nothing();
        }
        for reply in replies {
            reply(committed.is_ok());
        }
    }
    let last = connection
        .execute_batch("BEGIN IMMEDIATE")
        .and_then(|()| schema::save_counters(connection, counters, &mut saved))
        .and_then(|()| connection.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)"));
    if let Err(error) = last {
        log::error!("saving the counters at the end: {error}");
    }
}

/// One job's failure must not take the others of its group with it.
fn in_savepoint(connection: &Connection, job: Job) -> Reply {
    if let Err(error) = connection.execute_batch("SAVEPOINT job") {
        log::error!("starting a job: {error}");
        return Box::new(move |_| drop(job));
    }
    let (good, reply) = job(connection);
    let end = if good { "RELEASE job" } else { "ROLLBACK TO job; RELEASE job" };
    match connection.execute_batch(end) {
        Ok(()) => reply,
        Err(error) => {
            log::error!("ending a job: {error}");
            Box::new(move |_| reply(false))
        }
    }
}

fn read_loop(connection: &Connection, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.blocking_recv() {
        let (_, reply) = job(connection);
        reply(true);
    }
}

fn search_loop(connection: &Connection, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.blocking_recv() {
        let until_ms = clock::unix_ms() + SEARCH_MAX.as_millis() as u64;
        // Asked every some 10,000 steps of its virtual machine, which is well below a millisecond.
        if let Err(error) = connection.progress_handler(10_000, Some(move || clock::unix_ms() > until_ms)) {
            log::error!("limiting a search: {error}");
        }
        let (_, reply) = job(connection);
        reply(true);
    }
}

/// SQLite's integers are signed; the bits are what counts.
fn bits(value: u64) -> i64 {
    i64::from_ne_bytes(value.to_ne_bytes())
}

fn from_bits(value: i64) -> u64 {
    u64::from_ne_bytes(value.to_ne_bytes())
}

/// A count or time that is never negative and stays far below 2^63.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
