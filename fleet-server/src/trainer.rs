//! Stored windows to a signed bundle, on a thread of its own, one program at a time.
//!
//! A program is trained when it has enough windows and no bundle yet, or when an operator asks. A failed training is
//! tried again after a quarter more windows.

mod unfinished;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use models::bundle::sha256;
use models::novelty::Kind;
use models::train::{self, TrainOptions, Trained};
use models::wire::Downlink;
use tokio::runtime::Handle;

use self::unfinished::Unfinished;
use crate::clock;
use crate::counters::{Counter, Counters};
use crate::hub::Event;
use crate::ingest;
use crate::names::DeviceId;
use crate::server::Shared;
use crate::signer::{Signer, SignerError};
use crate::store::{
    self, BASELINES_MAX, GRAVE_LEARNED, NewBaseline, Noticed, Scope, StoreError, StoredWindows,
};

/// Trainings that may wait. One more is put off until that program's next windows arrive.
const QUEUE_MAX: usize = 256;

/// Programs whose state is remembered; when it is full, finished ones are forgotten.
const STATES_MAX: usize = 10_000;

/// Who asked for the first training of a program.
const AUTOMATIC: &str = "server";

/// Something that fits models; `models::train` in the server, something quick in tests.
pub trait Fit: Send + 'static {
    /// Fits all models of one program.
    ///
    /// # Errors
    /// A sentence for people that says why the windows do not do.
    fn fit(&mut self, stored: &StoredWindows, seed: u64, now_unix_s: u64) -> Result<Trained, String>;
}

/// Fits with `models::train`.
#[derive(Clone, Debug, Default)]
pub struct Training;

impl Fit for Training {
    fn fit(&mut self, stored: &StoredWindows, seed: u64, now_unix_s: u64) -> Result<Trained, String> {
        let accepted = stored.accepted.clone();
        let options = TrainOptions { seed, now_unix_s, accepted, ..TrainOptions::default() };
        let mut told = 0.0;
        let trained = train::fit(&stored.windows, &options, &mut |progress| {
            if progress.share >= told + 0.25 {
                told = progress.share;
                log::info!("training: {:.0} % done, at the {}", progress.share * 100.0, progress.model);
            }
        });
        trained.map_err(|error| error.to_string())
    }
}

/// Why a training gave no bundle.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// Reading windows or storing the bundle.
    #[error("the store")]
    Store(#[from] StoreError),
    /// The program has no windows here.
    #[error("no windows of this program are stored")]
    Unknown,
    /// The windows do not do.
    #[error("fitting: {0}")]
    Fit(String),
    /// It could not be signed.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The bundle could not be offered.
    #[error("the bundle of {0} bytes is over the limit for devices")]
    TooLarge(usize),
    /// It ended the server before.
    #[error(
        "it ended the server twice, and is not tried again by itself before more windows came: report this, with the server's log"
    )]
    Ended,
    /// What is being trained could not be noted.
    #[error("noting what is being trained")]
    Note(#[source] io::Error),
    /// No place for it.
    #[error("there are {BASELINES_MAX} baselines of many devices, which is as many as may be: remove some")]
    Full,
}

/// What the trainer is doing with a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Waiting for its turn.
    Queued,
    /// Being fitted.
    Training,
    /// The last try failed at so many windows.
    Failed {
        /// Windows ever stored at that time.
        at_total: u64,
        /// Why.
        reason: String,
    },
}

/// Whom a bundle is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// One device, which is offered it at once.
    Device(DeviceId),
    /// Many, to whom it is rolled out.
    Many(Scope),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => write!(f, "device {device}"),
            Self::Many(Scope::Group(group)) => write!(f, "group {group}"),
            Self::Many(Scope::Fleet) => f.write_str("the fleet"),
        }
    }
}

type Key = (Target, String);

/// A training that waits.
struct Asked {
    at: Key,
    by: String,
}

/// A way to ask for trainings.
pub struct Trainer {
    queue: SyncSender<Asked>,
    states: Arc<Mutex<HashMap<Key, State>>>,
    learn_windows: u64,
    signer: Arc<Signer>,
    counters: Arc<Counters>,
}

/// What the thread needs.
pub(crate) struct Work {
    jobs: Receiver<Asked>,
    states: Arc<Mutex<HashMap<Key, State>>>,
}

impl Trainer {
    pub(crate) fn new(learn_windows: u32, signer: Arc<Signer>, counters: Arc<Counters>) -> (Self, Work) {
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let states = Arc::<Mutex<HashMap<Key, State>>>::default();
        let work = Work { jobs, states: Arc::clone(&states) };
        (Self { queue, states, learn_windows: u64::from(learn_windows), signer, counters }, work)
    }

    /// Trains the program's first bundle when it has enough windows. While the signing key is away, its next windows ask again.
    pub fn consider(&self, target: &Target, key: &str, total: u64, generation: u64) {
        if generation > 0 || total < self.learn_windows {
            return;
        }
        if let Some(State::Failed { at_total, .. }) = self.state(target, key)
            && total < at_total + (self.learn_windows / 4).max(1)
        {
            return;
        }
        if self.signer.check().is_ok() {
            self.request(target, key, AUTOMATIC);
        }
    }

    /// Trains now, also when there is a bundle already; `false` when the queue is full.
    pub fn request(&self, target: &Target, key: &str, by: &str) -> bool {
        let mut states = lock(&self.states);
        let at = (target.clone(), key.to_string());
        if matches!(states.get(&at), Some(State::Queued | State::Training)) {
            return true;
        }
        if states.len() >= STATES_MAX {
            states.retain(|_, state| matches!(state, State::Queued | State::Training));
        }
        match self.queue.try_send(Asked { at: at.clone(), by: by.to_owned() }) {
            Ok(()) => {
                states.insert(at, State::Queued);
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.counters.bump(Counter::TrainingsDeferred);
                false
            }
        }
    }

    /// What is being done with a program at the moment.
    #[must_use]
    pub fn state(&self, target: &Target, key: &str) -> Option<State> {
        lock(&self.states).get(&(target.clone(), key.to_string())).cloned()
    }

    /// What is being done for many devices, with the programs' keys.
    #[must_use]
    pub fn of_many(&self) -> Vec<(Scope, String, State)> {
        let states = lock(&self.states);
        let many = states.iter().filter_map(|((target, key), state)| match target {
            Target::Many(scope) => Some((scope.clone(), key.clone(), state.clone())),
            Target::Device(_) => None,
        });
        many.collect()
    }
}

/// Starts the thread. It ends when `shared` is gone.
pub(crate) fn spawn(
    work: Work,
    shared: Weak<Shared>,
    runtime: Handle,
    state: &Path,
    mut fit: Box<dyn Fit>,
) -> io::Result<JoinHandle<()>> {
    let unfinished = Unfinished::of(state);
    std::thread::Builder::new().name("trainer".into()).spawn(move || {
        while let Ok(Asked { at, by }) = work.jobs.recv() {
            let Some(shared) = shared.upgrade() else { return };
            let (target, key) = at.clone();
            lock(&work.states).insert(at.clone(), State::Training);
            shared.hub.tell(Event::Training(target.clone()));
            let result = train_one(&shared, &runtime, &unfinished, fit.as_mut(), (&target, &key), &by);
            let mut states = lock(&work.states);
            match result {
                Ok(()) => {
                    shared.counters.bump(Counter::TrainingsDone);
                    states.remove(&at);
                }
                Err((at_total, error)) => {
                    shared.counters.bump(Counter::TrainingsFailed);
                    log::error!("training {key} of {target}: {error}");
                    states.insert(at, State::Failed { at_total, reason: error.to_string() });
                }
            }
            drop(states);
            shared.hub.tell(Event::Training(target));
        }
    })
}

fn train_one(
    shared: &Shared,
    runtime: &Handle,
    unfinished: &Unfinished,
    fit: &mut dyn Fit,
    (target, key): (&Target, &str),
    by: &str,
) -> Result<(), (u64, TrainerError)> {
    let (of, wanted, max) = (target.clone(), key.to_string(), shared.config.windows_max);
    let read = move |c: &_| match &of {
        Target::Device(device) => Ok(store::windows_of(c, device, &wanted)?.map(|stored| (stored, 1))),
        Target::Many(scope) => store::windows_of_many(c, scope, &wanted, max),
    };
    let (stored, devices) = runtime
        .block_on(shared.store.search(read))
        .map_err(|error| (0, error.into()))?
        .ok_or((0, TrainerError::Unknown))?;
    // Before an hour's work is done for nothing.
    shared.signer.check().map_err(|error| (0, error.into()))?;
    let total = stored.total;
    let now_unix_s = clock::unix_s();
    let generation = stored.generation + 1;
    // Same program, same generation, same windows: the same bundle.
    let mut seed = [0; 8];
    seed.copy_from_slice(&sha256(format!("{target} {key} {generation}").as_bytes())[..8]);
    log::info!(
        "training {} of {target} with {} windows and {} of false alarms",
        stored.program,
        stored.windows.len(),
        stored.accepted.len()
    );
    match unfinished.begin(&format!("{key} of {target}")) {
        Ok(true) => {}
        Ok(false) => return Err((total, TrainerError::Ended)),
        Err(error) => return Err((total, TrainerError::Note(error))),
    }
    let fitted = fit.fit(&stored, u64::from_le_bytes(seed), now_unix_s);
    unfinished.end();
    let fitted = fitted.map_err(|reason| (total, TrainerError::Fit(reason)))?;
    let grave = grave_acts(&fitted.traits);
    if let Some(text) = &grave {
        log::warn!("generation {generation} for {} of {target}: {text}", stored.program);
    }
    // A device's clock may be a little behind.
    let valid = now_unix_s.saturating_sub(60)..now_unix_s + u64::from(shared.config.bundle_days) * 86_400;
    let sealed = shared.signer.with(|key| fitted.seal(stored.program.clone(), generation, valid, key));
    let bytes = sealed.map_err(|error| (0, error.into()))?;
    if bytes.len() > models::bundle::BUNDLE_MAX {
        return Err((total, TrainerError::TooLarge(bytes.len())));
    }
    log::info!("generation {generation} for {} of {target}: {} bytes", stored.program, bytes.len());
    let failed = |error: StoreError| (total, error.into());
    match target {
        Target::Device(device) => {
            let (owner, program) = (device.clone(), stored.program.clone());
            let (counters, events_max) = (Arc::clone(&shared.counters), shared.config.events_max);
            let put = move |c: &_| {
                let now_ms = clock::unix_ms();
                let offer = store::put_bundle(c, &owner, &program, generation, &bytes, now_ms)?;
                let grave = grave.map(|text| Noticed { kind: GRAVE_LEARNED, program: Some(program), text });
                let noted =
                    grave.map(|notice| store::put_noticed(c, &counters, &owner, notice, now_ms, events_max));
                Ok((offer, noted.transpose()?.flatten()))
            };
            let (offer, noted) = runtime.block_on(shared.store.write(put)).map_err(failed)?;
            shared.hub.send(device, &Downlink::Offer(offer));
            if let Some(event) = noted {
                ingest::tell_event(shared, event);
            }
        }
        Target::Many(scope) => {
            let windows = stored.windows.len() as u64;
            let (scope, program, by) = (scope.clone(), stored.program, by.to_owned());
            let new = NewBaseline { scope, program, generation, by, windows, devices, bytes };
            let put = move |c: &_| store::put_baseline(c, &new, clock::unix_ms());
            let made = runtime.block_on(shared.store.write(put)).map_err(failed)?;
            made.ok_or((total, TrainerError::Full))?;
        }
    }
    Ok(())
}

/// What a baseline takes for normal and would alarm at once in any other program; `None` when there is no such thing.
fn grave_acts(traits: &[u64]) -> Option<String> {
    let count = |kind: Kind| traits.iter().filter(|id| Kind::of(**id) == Some(kind)).count();
    let grave = Kind::all().filter(|kind| kind.is_decisive()).map(|kind| (kind.name(), count(kind)));
    let grave: Vec<String> = grave.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} ({n})")).collect();
    (!grave.is_empty()).then(|| {
        format!(
            "it did this while it was learned, so it is normal now: {}. If it should not, find out who was there, and learn \
             it anew",
            grave.join(", ")
        )
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one map operation, so a panic elsewhere leaves the map whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use models::novelty::trait_id;

    use super::*;

    #[test]
    fn a_baseline_that_takes_something_grave_for_normal_says_so() {
        let ordinary = [trait_id(Kind::Exec, "/bin/date"), trait_id(Kind::Port, "443")];
        assert_eq!(grave_acts(&ordinary), None);
        let opened = ["/etc/shadow", "/etc/gshadow"].map(|path| trait_id(Kind::Sensitive, path));
        let traits = [&ordinary[..], &opened, &[trait_id(Kind::Injection, "ptrace")]].concat();
        let said = grave_acts(&traits).unwrap();
        assert!(said.contains(&format!("{} (2)", Kind::Sensitive.name())), "{said}");
        assert!(said.contains(&format!("{} (1)", Kind::Injection.name())), "{said}");
    }
}
