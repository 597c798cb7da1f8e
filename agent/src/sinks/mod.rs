//! Alerts to whoever wants them on this gateway or near it, beside the fleet: syslog, a file, a program, a web address.
//!
//! Each sink has a queue and a thread of its own, so that one that hangs delays neither another one, nor the judging,
//! nor the outbox. What waits is in memory: a sink sees each alert at least once while the agent runs.

mod exec;
mod file;
mod syslog;
mod webhook;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use models::wire::Alert;
use serde::{Deserialize, Serialize};

use crate::backoff::jittered;
use crate::clock;
use crate::config::{SinkKind, SinkOptions};
use crate::confine;
use crate::explanations::{Named, alert_id};

const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// What waits when the agent ends may take this long.
const END_WITHIN: Duration = Duration::from_secs(2);

/// An alert as every sink gets it.
#[derive(Debug)]
struct Item {
    id: String,
    device: String,
    alert: Alert,
    /// One line, without its end.
    json: String,
}

impl Item {
    fn new(device: &str, alert: &Alert) -> Self {
        let json = serde_json::to_string(&Named::of_device(device, alert));
        Self {
            id: alert_id(alert),
            device: device.to_owned(),
            alert: alert.clone(),
            json: json.expect("an alert has a JSON form"),
        }
    }
}

/// Why an alert was not taken.
#[derive(Debug)]
enum Failure {
    /// It may be taken when it is offered again.
    Later(String),
    /// It will not be taken.
    Never(String),
}

trait Deliver: Send {
    fn deliver(&mut self, item: &Item) -> Result<(), Failure>;
}

/// How one sink is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkState {
    /// As configured.
    pub name: String,
    /// Alerts that it took.
    pub delivered: u64,
    /// Alerts that wait for it.
    pub waiting: u64,
    /// Alerts that made room for others. What waits when a sink is taken out of the configuration is said in the log.
    pub dropped: u64,
    /// Alerts that it refused for good.
    pub failed: u64,
    /// Why the last try failed; `None` after one that did not.
    pub problem: Option<String>,
}

/// All sinks of this agent.
#[derive(Debug, Default)]
pub struct Sinks {
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    options: SinkOptions,
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    delivered: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Arc<Item>>,
    /// The thread has one more in its hands.
    in_hand: bool,
    ended: bool,
    problem: Option<String>,
}

impl Sinks {
    /// Starts what is new and ends what is gone; one that is as it was goes on with what waits.
    ///
    /// # Errors
    /// When a thread cannot be started; the others run.
    pub fn apply(&mut self, wanted: &[SinkOptions]) -> std::io::Result<()> {
        let (keep, gone) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|running| wanted.contains(&running.options));
        self.running = keep;
        end(gone);
        let mut failed = Ok(());
        for options in wanted {
            if self.running.iter().any(|running| running.options == *options) {
                continue;
            }
            match Running::start(options) {
                Ok(running) => self.running.push(running),
                Err(error) => failed = Err(error),
            }
        }
        failed
    }

    /// Gives an alert to every sink that wants it; never waits for one.
    ///
    /// # Panics
    /// Never: numbers and texts have a JSON form.
    pub fn tell(&self, device: &str, alert: &Alert) {
        if self.running.is_empty() {
            return;
        }
        let item = Arc::new(Item::new(device, alert));
        for running in self.running.iter().filter(|running| alert.severity >= running.options.severity) {
            running.queue.add(&item, running.options.queue_max as usize);
        }
    }

    /// How each is.
    #[must_use]
    pub fn states(&self) -> Vec<SinkState> {
        self.running.iter().map(Running::state).collect()
    }

    /// Ends them all; what waits may take two seconds.
    pub fn stop(&mut self) {
        end(std::mem::take(&mut self.running));
    }
}

fn end(all: Vec<Running>) {
    all.iter().for_each(|running| running.queue.end());
    let until_ns = clock::boot_ns() + clock::nanoseconds(END_WITHIN);
    for running in all {
        while !running.thread.is_finished() && clock::boot_ns() < until_ns {
            thread::sleep(Duration::from_millis(10));
        }
        let state = running.state();
        if state.waiting > 0 {
            log::warn!("sink {}: {} alerts waited for it when it ended", state.name, state.waiting);
        }
    }
}

/// Where a sink writes; `None` when its programs write where they like.
fn confined_to(kind: &SinkKind) -> Option<Vec<PathBuf>> {
    match kind {
        SinkKind::Exec { .. } => None,
        SinkKind::File { path, .. } => Some(path.parent().map(Into::into).into_iter().collect()),
        SinkKind::Syslog(_) | SinkKind::Webhook { .. } => Some(Vec::new()),
    }
}

impl Running {
    fn start(options: &SinkOptions) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let mut sink: Box<dyn Deliver> = match options.kind.clone() {
            SinkKind::Syslog(address) => Box::new(syslog::Syslog::new(address)),
            SinkKind::File { path, size_max, files_max } => {
                Box::new(file::JsonLines::new(path, size_max, files_max))
            }
            SinkKind::Exec { command, timeout } => Box::new(exec::Exec::new(command, timeout)),
            SinkKind::Webhook { url, token_file, ca_file, timeout } => {
                Box::new(webhook::Webhook::new(url, token_file, ca_file, timeout))
            }
        };
        let (mine, name) = (Arc::clone(&queue), options.name.clone());
        let confined = confined_to(&options.kind);
        let work = move || {
            if let Some(writes) = confined {
                confine::thread_or_not(&writes.iter().map(PathBuf::as_path).collect::<Vec<_>>());
            }
            mine.work(&name, &mut *sink);
        };
        let thread = thread::Builder::new().name(format!("sink {}", options.name)).spawn(work)?;
        Ok(Self { options: options.clone(), queue, thread })
    }

    fn state(&self) -> SinkState {
        let (queue, state) = (&self.queue, self.queue.state());
        SinkState {
            name: self.options.name.clone(),
            delivered: queue.delivered.load(Relaxed),
            waiting: state.waiting.len() as u64 + u64::from(state.in_hand),
            dropped: queue.dropped.load(Relaxed),
            failed: queue.failed.load(Relaxed),
            problem: state.problem.clone(),
        }
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, item: &Arc<Item>, max: usize) {
        let mut state = self.state();
        state.waiting.push_back(Arc::clone(item));
        if state.waiting.len() > max {
            let severity = |at: &usize| state.waiting[*at].alert.severity;
            // Of the lowest severity the first, which is the oldest.
            let least = (0..state.waiting.len()).min_by_key(severity).unwrap_or(0);
            state.waiting.remove(least);
            self.dropped.fetch_add(1, Relaxed);
        }
        self.changed.notify_one();
    }

    fn end(&self) {
        self.state().ended = true;
        self.changed.notify_one();
    }

    /// Delivers until the end; then what waits is tried once.
    fn work(&self, name: &str, sink: &mut dyn Deliver) {
        while let Some(item) = self.next() {
            let mut wait = RETRY_MIN;
            loop {
                let problem = match sink.deliver(&item) {
                    Ok(()) => {
                        self.delivered.fetch_add(1, Relaxed);
                        None
                    }
                    Err(Failure::Never(reason)) => {
                        self.failed.fetch_add(1, Relaxed);
                        log::warn!("sink {name}: alert {} was not taken: {reason}", item.id);
                        Some((reason, false))
                    }
                    Err(Failure::Later(reason)) => Some((reason, true)),
                };
                let again = matches!(problem, Some((_, true)));
                let mut state = self.state();
                // Said when it begins and when it is over, not at every try.
                match (&state.problem, &problem) {
                    (None, Some((reason, true))) => {
                        log::error!("sink {name}: {reason}; alerts wait and are tried again");
                    }
                    (Some(_), None) => log::info!("sink {name}: alerts are taken again"),
                    _ => {}
                }
                state.problem = problem.map(|(reason, _)| reason);
                if !again {
                    state.in_hand = false;
                    break;
                }
                if state.ended {
                    return;
                }
                let ended = |state: &mut State| !state.ended;
                drop(self.changed.wait_timeout_while(state, jittered(wait), ended));
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }

    /// The next one; waits for it. `None` at the end, when none waits.
    fn next(&self) -> Option<Arc<Item>> {
        let idle = |state: &mut State| state.waiting.is_empty() && !state.ended;
        let state = self.state();
        let mut state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        let item = state.waiting.pop_front();
        state.in_hand = item.is_some();
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::policy::Severity;
    use models::program::ProgramId;

    pub(super) fn alert(severity: Severity, summary: &str) -> Alert {
        Alert {
            unix_ms: 1_700_000_000_123,
            program: ProgramId { unit: "gw.service".into(), exe: "/usr/bin/gw".into(), script: None },
            pid: 7,
            comm: "gw".into(),
            score: 91.5,
            severity,
            techniques: vec!["T1059".into()],
            summary: summary.into(),
            reasons: vec![],
            generation: 1,
            detectors: vec![],
            suppressed_before: 0,
            degraded: vec![],
        }
    }

    pub(super) fn item(severity: Severity, summary: &str) -> Item {
        Item::new("gw-1", &alert(severity, summary))
    }

    /// Takes nothing until it is told to, then gives what it took.
    struct Gate {
        open: Arc<std::sync::atomic::AtomicBool>,
        took: std::sync::mpsc::Sender<String>,
    }

    impl Deliver for Gate {
        fn deliver(&mut self, item: &Item) -> Result<(), Failure> {
            if !self.open.load(Relaxed) {
                return Err(Failure::Later("closed".into()));
            }
            if item.alert.summary == "bad" {
                return Err(Failure::Never("bad".into()));
            }
            self.took.send(item.alert.summary.clone()).unwrap();
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_gives_up_the_oldest_of_the_lowest_severity_and_counts_it() {
        let queue = Arc::new(Queue::default());
        let (took, taken) = std::sync::mpsc::channel();
        let open = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (mine, is_open) = (Arc::clone(&queue), Arc::clone(&open));
        let thread = thread::spawn(move || mine.work("gate", &mut Gate { open: is_open, took }));
        let add = |severity, summary: &str| queue.add(&Arc::new(item(severity, summary)), 3);
        add(Severity::Medium, "in hand");
        while !queue.state().in_hand {
            thread::yield_now();
        }
        add(Severity::High, "high");
        add(Severity::Medium, "older");
        add(Severity::Medium, "newer");
        add(Severity::Critical, "critical");
        add(Severity::Critical, "bad");
        assert_eq!(queue.dropped.load(Relaxed), 2, "both of MEDIUM that waited");
        assert_eq!(queue.state().problem.as_deref(), Some("closed"));
        open.store(true, Relaxed);
        queue.end();
        thread.join().unwrap();
        assert_eq!(taken.iter().collect::<Vec<_>>(), ["in hand", "high", "critical"]);
        assert_eq!((queue.delivered.load(Relaxed), queue.failed.load(Relaxed)), (3, 1));
    }

    #[test]
    fn sinks_are_exchanged_while_others_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let sink = |name: &str| SinkOptions {
            name: name.into(),
            severity: Severity::High,
            queue_max: 10,
            kind: SinkKind::File { path: dir.path().join(name), size_max: 1 << 20, files_max: 2 },
        };
        let mut sinks = Sinks::default();
        sinks.apply(&[sink("a"), sink("b")]).unwrap();
        sinks.tell("gw-1", &alert(Severity::Medium, "too small"));
        sinks.tell("gw-1", &alert(Severity::High, "first"));
        sinks.apply(&[sink("b"), sink("c")]).unwrap();
        sinks.tell("gw-1", &alert(Severity::High, "second"));
        let names: Vec<String> = sinks.states().into_iter().map(|state| state.name).collect();
        assert_eq!(names, ["b", "c"]);
        sinks.stop();
        let lines = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap().lines().count();
        assert_eq!((lines("a"), lines("b"), lines("c")), (1, 2, 1));
    }
}
