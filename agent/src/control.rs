//! The socket on which `behaveguard status`, `alerts`, `explain` and `whitelist` ask the running agent.
//!
//! One request, one answer, both a line of JSON: `{"command":"status"}` gives a [`Status`], `{"command":"alerts"}` a
//! list of alerts, oldest first, `{"command":"explain","alert":"ID"}` or `"pid":N` an [`Explained`] as `Ok`, or as `Err`
//! why there is none, the `whitelist_` commands the [`Entry`] that they are about in the same way,
//! `{"command":"release","id":N}` a [`Contained`], and `{"command":"quarantine","for_s":N}`, or with `null` to end it, what
//! came of it in words. The socket is
//! `<state>/control.sock`, for its owner and root only; who changes something is written down with their user id.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use models::chain::chain;
use models::orders;
use models::wire::{Alert, Errand, Heartbeat};
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::confine::{self, Confinement};
use crate::contain::Contained;
use crate::explanations::{ALERTS_MAX, Explained, Explanations, alert_id};
use crate::outbox::{Outbox, OutboxError};
use crate::pipeline::PromiseState;
use crate::quarantine::Held;
use crate::sinks::SinkState;
use crate::uplink::{LANES, News};
use crate::whitelist::{Entry, Wanted, Whitelist};

/// The longest request, in bytes.
const REQUEST_MAX: u64 = 64 * 1024;
const TIMEOUT: Duration = Duration::from_secs(5);

/// A question to the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How it is.
    Status,
    /// What it found lately.
    Alerts,
    /// Why a verdict has its score: of the alert when it is named, else the last one on the process.
    Explain {
        /// As `behaveguard alerts` names it.
        alert: Option<String>,
        /// Process id.
        pid: Option<u32>,
    },
    /// What the operator expects.
    WhitelistList,
    /// Expects more.
    WhitelistAdd {
        /// What.
        wanted: Wanted,
    },
    /// Expects less.
    WhitelistRemove {
        /// Which entry.
        id: u32,
    },
    /// Undoes a containment.
    Release {
        /// Which.
        id: u32,
    },
    /// Cuts the device off from everything but its fleet, or ends that.
    Quarantine {
        /// For how long; `None` to end it.
        for_s: Option<u32>,
    },
}

/// What the answers come from.
#[derive(Clone)]
pub struct Sources {
    /// What the service last wrote into it.
    pub status: Arc<Mutex<Status>>,
    /// The newest alerts.
    pub outboxes: [Arc<dyn Outbox>; LANES],
    /// Of what was judged lately.
    pub explanations: Arc<Mutex<Explanations>>,
    /// What the operator expects.
    pub whitelist: Arc<Mutex<Whitelist>>,
    /// Where the service is told what to do.
    pub news: async_channel::Sender<News>,
}

/// How the agent is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// The device's name in the fleet.
    pub device: String,
    /// Where its fleet is; `None` where it belongs to none.
    pub fleet: Option<String>,
    /// The fleet listens.
    pub online: bool,
    /// Percent of the windows of programs that are learned which the fleet is given.
    #[serde(default)]
    pub samples: u32,
    /// Which verdicts are sent; `None` when it is every one from MEDIUM on.
    pub alert_budget: Option<BudgetState>,
    /// How well the baselines keep their promise; at most as many as the heartbeat names programs.
    pub promises: Vec<PromiseState>,
    /// Who is told of alerts beside the fleet.
    pub sinks: Vec<SinkState>,
    /// What the agent gave up when it had started.
    pub confinement: Confinement,
    /// Programs that are contained, oldest first.
    #[serde(default)]
    pub contained: Vec<Contained>,
    /// The device reaches its fleet only.
    #[serde(default)]
    pub quarantined: Option<Held>,
    /// What is left out so that the CPU budget holds; `None` when nothing is.
    #[serde(default)]
    pub shed: Option<String>,
    /// What became of the last SIGHUP; `None` before the first.
    pub reloaded: Option<Reloaded>,
    /// What the fleet is told too.
    pub heartbeat: Heartbeat,
}

/// What became of reading the configuration again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// Keys whose new values are used only after a restart.
    pub needs_restart: Vec<String>,
    /// Why nothing was changed.
    pub refused: Option<String>,
}

/// An alert budget and what follows from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BudgetState {
    /// As the operator wrote it.
    pub budget: String,
    /// What the statistics say is sent when its p-value is at most this.
    pub p_max: f64,
}

/// Why the agent was not asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no agent runs with the state folder {0}: start it with `behaveguard run`")]
    NotRunning(PathBuf),
    /// The socket may not be used.
    #[error("the agent in {0} answers its owner only: try as root")]
    NotAllowed(PathBuf),
    /// The socket.
    #[error("using the control socket {path}")]
    Socket {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// It does not do it, and this is why.
    #[error("{0}")]
    Refused(String),
    /// The answer makes no sense.
    #[error("the running agent is of another version; restart it")]
    Answer(#[source] serde_json::Error),
}

/// Answers on a thread of its own.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(state: &Path, sources: Sources) -> Result<(), ControlError> {
    let path = state.join("control.sock");
    let failed = |source| ControlError::Socket { path: path.clone(), source };
    // The state folder is locked, so a socket that is there is left over.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let writes = state.to_owned();
    let answering = move || {
        confine::thread_or_not(&[&writes]);
        // One at a time: each is short, and a client that says nothing is cut off.
        for stream in listener.incoming() {
            if let Err(error) = stream.and_then(|stream| answer(stream, &sources)) {
                log::debug!("a control request: {error}");
            }
        }
    };
    thread::Builder::new().name("control".into()).spawn(answering).map_err(failed)?;
    Ok(())
}

fn answer(stream: UnixStream, sources: &Sources) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let peer = socket_peercred(&stream)?.uid;
    if !peer.is_root() && peer != geteuid() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user id {peer:?} asked")));
    }
    let peer = peer.as_raw();
    let mut line = String::new();
    BufReader::new((&stream).take(REQUEST_MAX)).read_line(&mut line)?;
    let mut answer = match serde_json::from_str::<Request>(&line) {
        Ok(Request::Status) => {
            serde_json::to_vec(&*sources.status.lock().unwrap_or_else(PoisonError::into_inner))
        }
        Ok(Request::Alerts) => serde_json::to_vec(&recent(sources).map_err(io::Error::other)?),
        Ok(Request::Explain { alert, pid }) => serde_json::to_vec(&explain(sources, alert.as_deref(), pid)),
        Ok(Request::WhitelistList) => serde_json::to_vec(whitelist(sources).entries()),
        Ok(Request::WhitelistAdd { wanted }) => {
            let added = whitelist(sources).add(wanted, peer, clock::now().unix_ms / 1000);
            if let Ok(entry) = &added {
                log::warn!("whitelist: user id {peer} added {entry}");
            }
            serde_json::to_vec(&added.map_err(|error| chain(&error)))
        }
        Ok(Request::WhitelistRemove { id }) => {
            let removed = whitelist(sources).remove(id);
            if let Ok(entry) = &removed {
                log::warn!("whitelist: user id {peer} removed {entry}");
            }
            serde_json::to_vec(&removed.map_err(|error| chain(&error)))
        }
        Ok(Request::Release { id }) => serde_json::to_vec(&release_as(sources, id, peer)),
        Ok(Request::Quarantine { for_s }) => serde_json::to_vec(&quarantine_as(sources, for_s, peer)),
        Err(error) => serde_json::to_vec(&serde_json::json!({ "error": error.to_string() })),
    }?;
    answer.push(b'\n');
    (&stream).write_all(&answer)
}

fn whitelist(sources: &Sources) -> MutexGuard<'_, Whitelist> {
    sources.whitelist.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The newest alerts of both outboxes.
fn recent(sources: &Sources) -> Result<Vec<Alert>, OutboxError> {
    let mut alerts = Vec::new();
    for outbox in &sources.outboxes {
        alerts.extend(outbox.recent()?);
    }
    alerts.sort_by_key(|alert| alert.unix_ms);
    Ok(alerts)
}

fn release_as(sources: &Sources, id: u32, peer: u32) -> Result<Contained, String> {
    asked(sources, "see `behaveguard contain list`", |answer| News::Release {
        containment: id,
        by: format!("user id {peer}"),
        answer: Some(answer),
    })
}

fn quarantine_as(sources: &Sources, for_s: Option<u32>, peer: u32) -> Result<String, String> {
    if let Some(for_s) = for_s {
        orders::check(&Errand::Quarantine { for_s }).map_err(|error| chain(&error))?;
    }
    let by = format!("user id {peer}");
    asked(sources, "see `behaveguard status`", |answer| News::Quarantine { for_s, by, answer })
}

/// The service does it, between its windows.
fn asked<T>(
    sources: &Sources,
    see: &str,
    news: impl FnOnce(SyncSender<Result<T, String>>) -> News,
) -> Result<T, String> {
    let (answer, done) = mpsc::sync_channel(1);
    let asked = sources.news.try_send(news(answer));
    asked.map_err(|_| "the agent is busy or ends: try again".to_owned())?;
    done.recv_timeout(TIMEOUT).map_err(|_| format!("the agent did not answer in time: {see}"))?
}

fn explain(sources: &Sources, alert: Option<&str>, pid: Option<u32>) -> Result<Explained, String> {
    let kept = sources.explanations.lock().unwrap_or_else(PoisonError::into_inner);
    match (alert, pid) {
        (Some(id), _) => kept.alert(id).cloned().ok_or_else(|| {
            let recent = recent(sources).unwrap_or_default();
            if recent.iter().any(|alert| alert_id(alert) == id) {
                format!(
                    "alert {id} is not explained any more: the last {ALERTS_MAX} since the agent started are; \
                     `behaveguard alerts --json` still has its reasons"
                )
            } else {
                format!("no recent alert has the id {id}: `behaveguard alerts` names them")
            }
        }),
        (None, Some(pid)) => kept.process(pid).cloned().ok_or_else(|| {
            format!(
                "process {pid} was not judged lately: it is not watched, its program is still learned, or its first \
                 window is not over; `behaveguard status` names the programs"
            )
        }),
        (None, None) => Err("name an alert or a process".into()),
    }
}

/// Asks the running agent how it is.
///
/// # Errors
/// When none runs or it may not be asked.
pub fn status(state: &Path) -> Result<Status, ControlError> {
    serde_json::from_str(&ask(state, &Request::Status)?).map_err(ControlError::Answer)
}

/// Asks the running agent what it found lately.
///
/// # Errors
/// When none runs or it may not be asked.
pub fn alerts(state: &Path) -> Result<Vec<Alert>, ControlError> {
    serde_json::from_str(&ask(state, &Request::Alerts)?).map_err(ControlError::Answer)
}

/// Asks the running agent why an alert, or a process's last verdict, has its score.
///
/// # Errors
/// When none runs, it may not be asked, or it does not know.
pub fn explanation(state: &Path, alert: Option<String>, pid: Option<u32>) -> Result<Explained, ControlError> {
    let answer = ask(state, &Request::Explain { alert, pid })?;
    let answer: Result<Explained, String> = serde_json::from_str(&answer).map_err(ControlError::Answer)?;
    answer.map_err(ControlError::Refused)
}

/// What the operator expects, oldest first.
///
/// # Errors
/// When none runs or it may not be asked.
pub fn whitelisted(state: &Path) -> Result<Vec<Entry>, ControlError> {
    serde_json::from_str(&ask(state, &Request::WhitelistList)?).map_err(ControlError::Answer)
}

/// Has the running agent add to its whitelist, or take from it, and gives the entry.
///
/// # Errors
/// When none runs, it may not be asked, or it refuses.
pub fn change_whitelist(state: &Path, change: &Request) -> Result<Entry, ControlError> {
    let answer: Result<Entry, String> =
        serde_json::from_str(&ask(state, change)?).map_err(ControlError::Answer)?;
    answer.map_err(ControlError::Refused)
}

/// Has the running agent undo a containment, and gives it.
///
/// # Errors
/// When none runs, it may not be asked, or it refuses.
pub fn release(state: &Path, id: u32) -> Result<Contained, ControlError> {
    let answer: Result<Contained, String> =
        serde_json::from_str(&ask(state, &Request::Release { id })?).map_err(ControlError::Answer)?;
    answer.map_err(ControlError::Refused)
}

/// Has the running agent cut the device off from everything but its fleet, or end that; gives what came of it.
///
/// # Errors
/// When none runs, it may not be asked, or it refuses.
pub fn quarantine(state: &Path, for_s: Option<u32>) -> Result<String, ControlError> {
    let answer: Result<String, String> =
        serde_json::from_str(&ask(state, &Request::Quarantine { for_s })?).map_err(ControlError::Answer)?;
    answer.map_err(ControlError::Refused)
}

fn ask(state: &Path, request: &Request) -> Result<String, ControlError> {
    let path = state.join("control.sock");
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NotRunning(state.into()),
        io::ErrorKind::PermissionDenied => ControlError::NotAllowed(state.into()),
        _ => ControlError::Socket { path: path.clone(), source },
    };
    let mut stream = UnixStream::connect(&path).map_err(failed)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    let mut line = serde_json::to_string(request).map_err(ControlError::Answer)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    Ok(answer)
}
