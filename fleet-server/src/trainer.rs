//! Stored windows to a signed bundle, on a thread of its own, one program at a time.
//!
//! A program is trained when it has enough windows and no bundle yet, or when an operator asks. A failed training is
//! tried again after a quarter more windows.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use models::bundle::sha256;
use models::train::{self, TrainOptions, Trained};
use models::wire::{Downlink, TrainingWindow};
use tokio::runtime::Handle;

use crate::clock;
use crate::counters::{Counter, Counters};
use crate::hub::Event;
use crate::names::DeviceId;
use crate::server::Shared;
use crate::store::{self, StoreError};

/// Trainings that may wait. One more is put off until that program's next windows arrive.
const QUEUE_MAX: usize = 256;

/// Programs whose state is remembered; when it is full, finished ones are forgotten.
const STATES_MAX: usize = 10_000;

/// Something that fits models; `models::train` in the server, something quick in tests.
pub trait Fit: Send + 'static {
    /// Fits all models of one program.
    ///
    /// # Errors
    /// A sentence for people that says why the windows do not do.
    fn fit(&mut self, samples: &[TrainingWindow], seed: u64, now_unix_s: u64) -> Result<Trained, String>;
}

/// Fits with `models::train`.
#[derive(Clone, Debug, Default)]
pub struct Training;

impl Fit for Training {
    fn fit(&mut self, samples: &[TrainingWindow], seed: u64, now_unix_s: u64) -> Result<Trained, String> {
        let options = TrainOptions { seed, now_unix_s, ..TrainOptions::default() };
        let mut told = 0.0;
        let trained = train::fit(samples, &options, &mut |progress| {
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
    /// The bundle could not be offered.
    #[error("the bundle of {0} bytes is over the limit for devices")]
    TooLarge(usize),
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

type Key = (DeviceId, String);

/// A way to ask for trainings.
#[derive(Debug)]
pub struct Trainer {
    queue: SyncSender<Key>,
    states: Arc<Mutex<HashMap<Key, State>>>,
    learn_windows: u64,
    counters: Arc<Counters>,
}

/// What the thread needs.
pub(crate) struct Work {
    jobs: Receiver<Key>,
    states: Arc<Mutex<HashMap<Key, State>>>,
}

impl Trainer {
    pub(crate) fn new(learn_windows: u32, counters: Arc<Counters>) -> (Self, Work) {
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let states = Arc::<Mutex<HashMap<Key, State>>>::default();
        let work = Work { jobs, states: Arc::clone(&states) };
        (Self { queue, states, learn_windows: u64::from(learn_windows), counters }, work)
    }

    /// Trains the program's first bundle when it has enough windows.
    pub fn consider(&self, device: &DeviceId, key: &str, total: u64, generation: u64) {
        if generation > 0 || total < self.learn_windows {
            return;
        }
        if let Some(State::Failed { at_total, .. }) = self.state(device, key)
            && total < at_total + (self.learn_windows / 4).max(1)
        {
            return;
        }
        self.request(device, key);
    }

    /// Trains now, also when there is a bundle already; `false` when the queue is full.
    pub fn request(&self, device: &DeviceId, key: &str) -> bool {
        let mut states = lock(&self.states);
        let at = (device.clone(), key.to_string());
        if matches!(states.get(&at), Some(State::Queued | State::Training)) {
            return true;
        }
        if states.len() >= STATES_MAX {
            states.retain(|_, state| matches!(state, State::Queued | State::Training));
        }
        match self.queue.try_send(at.clone()) {
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
    pub fn state(&self, device: &DeviceId, key: &str) -> Option<State> {
        lock(&self.states).get(&(device.clone(), key.to_string())).cloned()
    }
}

/// Starts the thread. It ends when `shared` is gone.
pub(crate) fn spawn(
    work: Work,
    shared: Weak<Shared>,
    runtime: Handle,
    mut fit: Box<dyn Fit>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("trainer".into()).spawn(move || {
        while let Ok((device, key)) = work.jobs.recv() {
            let Some(shared) = shared.upgrade() else { return };
            let at = (device.clone(), key.clone());
            lock(&work.states).insert(at.clone(), State::Training);
            shared.hub.tell(Event::Training(device.clone()));
            let result = train_one(&shared, &runtime, fit.as_mut(), &device, &key);
            let mut states = lock(&work.states);
            match result {
                Ok(()) => {
                    shared.counters.bump(Counter::TrainingsDone);
                    states.remove(&at);
                }
                Err((at_total, error)) => {
                    shared.counters.bump(Counter::TrainingsFailed);
                    log::error!("training {key} of device {device}: {error}");
                    states.insert(at, State::Failed { at_total, reason: error.to_string() });
                }
            }
            drop(states);
            shared.hub.tell(Event::Training(device));
        }
    })
}

fn train_one(
    shared: &Shared,
    runtime: &Handle,
    fit: &mut dyn Fit,
    device: &DeviceId,
    key: &str,
) -> Result<(), (u64, TrainerError)> {
    let (owner, wanted) = (device.clone(), key.to_string());
    let stored = runtime
        .block_on(shared.store.read(move |c| store::windows_of(c, &owner, &wanted)))
        .map_err(|error| (0, error.into()))?
        .ok_or((0, TrainerError::Unknown))?;
    let total = stored.total;
    let now_unix_s = clock::unix_s();
    let generation = stored.generation + 1;
    // Same program, same generation, same windows: the same bundle.
    let mut seed = [0; 8];
    seed.copy_from_slice(&sha256(format!("{device} {key} {generation}").as_bytes())[..8]);
    log::info!("training {} of device {device} with {} windows", stored.program, stored.windows.len());
    let fitted = fit
        .fit(&stored.windows, u64::from_le_bytes(seed), now_unix_s)
        .map_err(|reason| (total, TrainerError::Fit(reason)))?;
    // A device's clock may be a little behind.
    let valid = now_unix_s.saturating_sub(60)..now_unix_s + u64::from(shared.config.bundle_days) * 86_400;
    let bytes = fitted.seal(stored.program.clone(), generation, valid, shared.pki.signing());
    if bytes.len() > models::bundle::BUNDLE_MAX {
        return Err((total, TrainerError::TooLarge(bytes.len())));
    }
    let (owner, program, size) = (device.clone(), stored.program.clone(), bytes.len());
    let put = move |c: &_| store::put_bundle(c, &owner, &program, generation, &bytes, clock::unix_ms());
    let offer = runtime.block_on(shared.store.write(put)).map_err(|error| (total, error.into()))?;
    log::info!("generation {generation} for {} of device {device}: {size} bytes", stored.program);
    shared.hub.send(device, &Downlink::Offer(offer));
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one map operation, so a panic elsewhere leaves the map whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
