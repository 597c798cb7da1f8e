//! A database behind a writing, a reading and a searching thread: jobs in, group commits, replies after the commit.
//!
//! A job is a closure over the connection. The writer takes everything that waits (at most [`GROUP_MAX`]), runs each
//! job in its own savepoint, commits once, and only then answers: an answer means that the data survives a power cut.
//! Devices and the dashboard's short questions go to the reading thread; what may take long goes to the searching
//! thread, where it is given up after [`SEARCH_MAX`], so that no question of a person holds up a device.

mod alarmed;
mod alerts;
mod audit;
mod baselines;
mod bundles;
mod captures;
mod certificates;
mod channels;
mod database;
mod devices;
mod events;
mod evidence;
mod find;
mod frames;
mod incidents;
mod orders;
mod overview;
mod passfile;
mod read;
mod retention;
mod rollouts;
mod schema;
mod sql;
mod suppressions;
#[cfg(test)]
mod testing;
mod threads;
mod tokens;
mod transfer;
mod updates;
mod users;
mod words;
mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::counters::Counters;
use database::Purpose;

pub use alarmed::{Alarmed, alarmed};
pub use alerts::{StoredAlert, WorkState, alert, newest_alert};
pub use audit::{AuditRow, Change, audit, put_audit};
pub use baselines::{
    BASELINES_MAX, BaselineRow, NewBaseline, Removed, Scope, baseline, baselines, offer_of, put_baseline,
    remove_baseline, windows_of_many,
};
pub use bundles::{
    StoredWindows, has_windows, newest_offers, put_bundle, put_report, training_candidates, windows_of,
};
pub use captures::{CapturePart, CaptureRow, capture, drop_capture, put_part};
pub use certificates::{Withdrawn, withdrawn};
pub use channels::{
    CHANNELS_MAX, Channel, ChannelConfig, Channels, Format, MailConfig, Notice, add_channel, channel,
    channels, delivered, due, failed, load_channels, remove_channel,
};
pub use database::Database;
pub use devices::{
    Known, admitted, group_of, known, put_heartbeat, renewed, revoke, seen, set_group, set_tags,
};
pub use events::{
    GRAVE_LEARNED, Noticed, StoredEvent, TWINS, events, newest_event, put_heard, put_noticed, put_release,
    put_silent, releases,
};
pub use evidence::{Rarity, rarity};
pub use find::{AlertFilter, FACETS_OVER, Facet, Facets, Page, facets, find_alerts};
pub use frames::{
    FrameOutcome, Intake, Limits, Rejected, WindowsOutcome, acks, put_frame, put_gone, put_rejected,
};
pub use incidents::{IncidentRow, incident, incidents};
pub use orders::{
    Answered, ConfigurationRow, NotRelearned, OrderRow, Spread, cancel_order, configurations, newest_order,
    order, orders, orders_after, orders_waiting, put_configuration, put_configuration_over, put_order,
    put_relearn, spread,
};
pub use overview::{Overview, Suspect, overview};
pub use read::{DeviceRow, TrainingRow, chunk, count_rejected, device, devices, file_size, training};
pub use retention::drop_older;
pub use rollouts::{
    NotBegun, RolloutDevice, RolloutRow, UNDER_WAY_MAX, begin_rollout, pause_rollout, put_reason, put_stage,
    rollout, rollout_devices, rollout_facts, rollouts, rollouts_under_way, set_pinned, take_backs,
};
pub use sql::Connection;
pub use suppressions::{
    Matcher, PREVIEWED, RULES_MAX, Rule, Rules, add_rule, load_rules, preview, remove_rule, rules,
};
pub use tokens::{Enrol, NewToken, TokenRow, add_token, drop_token, enrol, tokens};
pub use transfer::{TransferError, compact, export, import, size};
pub use updates::{
    BUILDS_MAX, Build, NotUpdated, UpdateRow, add_build, begin_update, builds, give, members, pause_update,
    put_update_stage, remove_build, targets, update, updates, updates_under_way,
};
pub use users::{
    ApiTokenRow, Changed, UserRow, add_api_token, add_user, end_session, principal, remove_api_token,
    remove_user, set_role, sign_in, token_used, users,
};
pub use words::index_new;
pub use work::{BULK_MAX, Comment, Work, Worked, comments, work, work_on_incident};

/// Jobs of one commit at most.
pub const GROUP_MAX: usize = 4096;

/// How long a search may take.
pub const SEARCH_MAX: Duration = Duration::from_secs(5);

/// Jobs that may wait; the next caller waits for a place.
const QUEUE_MAX: usize = 8192;

type Reply = Box<dyn FnOnce(bool) + Send>;
type Job = Box<dyn FnOnce(&Connection) -> (bool, Reply) + Send>;

/// A store that could not be opened or did not do a job.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Opening or preparing the database.
    #[error("opening the database {place}")]
    Open {
        /// Which file or server.
        place: String,
        /// What went wrong.
        #[source]
        source: sql::Error,
    },
    /// The database was made by a newer server.
    #[error("the database {place} has schema {found}, this server knows {known}; start a newer server")]
    Newer {
        /// Which file or server.
        place: String,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A file beside the database.
    #[error("{path}")]
    File {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// The address of a PostgreSQL server.
    #[error("the address of the PostgreSQL server")]
    Address(#[source] sql::Error),
    /// TLS to a PostgreSQL server.
    #[error("setting up TLS to the PostgreSQL server")]
    Tls(#[source] rustls::Error),
    /// The authorities that sign a PostgreSQL server's certificate.
    #[error("{0} holds no certificate in PEM form")]
    NoAuthority(PathBuf),
    /// The file with passwords of PostgreSQL servers.
    #[error("{0} holds passwords and others may read it: chmod 0600")]
    OpenPassfile(PathBuf),
    /// It has none for this one.
    #[error("{path} has no line for {of}")]
    NoPassword {
        /// The file.
        path: PathBuf,
        /// `host:port:database:user`.
        of: String,
    },
    /// Starting the thread.
    #[error("starting the store's thread")]
    Thread(#[source] std::io::Error),
    /// The job itself failed; nothing of it is kept.
    #[error("a query failed")]
    Query(#[from] sql::Error),
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
    shared: bool,
    leads: Arc<AtomicBool>,
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
    /// Opens the database, brings its schema up to date, loads the counters and starts the threads.
    ///
    /// # Errors
    /// When the database cannot be opened or is newer than this server.
    pub fn open(database: &Database, counters: Arc<Counters>) -> Result<(Self, Threads), StoreError> {
        let writer = database.open(Purpose::Write)?;
        schema::migrate(&writer, database.place())?;
        schema::load_counters(&writer, &counters)?;
        let (reader, searcher) = (database.open(Purpose::Read)?, database.open(Purpose::Search)?);
        let (write, write_jobs) = mpsc::channel(QUEUE_MAX);
        let (read, read_jobs) = mpsc::channel(QUEUE_MAX);
        let (search, search_jobs) = mpsc::channel(QUEUE_MAX);
        let leads = Arc::new(AtomicBool::new(!database.is_shared()));
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(body).map_err(StoreError::Thread)
        };
        let of = |connection, purpose| threads::Kept::new(database.clone(), connection, purpose);
        let (writer, reader) = (of(writer, Purpose::Write), of(reader, Purpose::Read));
        let searcher = of(searcher, Purpose::Search);
        let lead = Arc::clone(&leads);
        let threads = [
            spawn("store-write", Box::new(move || threads::write(writer, write_jobs, &counters, &lead)))?,
            spawn("store-read", Box::new(move || threads::read(reader, read_jobs)))?,
            spawn("store-search", Box::new(move || threads::search(searcher, search_jobs)))?,
        ];
        Ok((Self { write, read, search, shared: database.is_shared(), leads }, Threads(threads)))
    }

    /// Whether other servers may use the same database.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether this server does what one of all must do: train, roll out, notify. It is settled when something is written.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leads.load(Relaxed)
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
            Err(StoreError::Query(error)) if error.is_interrupted() => Err(StoreError::TooLong),
            done => done,
        }
    }
}

/// Opens the database of a state folder for one job outside the server, e.g. the `token` command.
///
/// # Errors
/// When it cannot be opened.
pub fn open_alone(dir: &Path) -> Result<Connection, StoreError> {
    open_database(&Database::of_folder(dir)?)
}

/// The same with one that no folder names yet.
///
/// # Errors
/// When it cannot be opened.
pub fn open_database(database: &Database) -> Result<Connection, StoreError> {
    let connection = database.open(Purpose::Write)?;
    schema::migrate(&connection, database.place())?;
    Ok(connection)
}

/// Does a job outside the server, all of it or nothing.
///
/// # Errors
/// When the job or the commit failed.
pub fn alone<T>(
    connection: &Connection,
    job: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    connection.transaction(job)
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
