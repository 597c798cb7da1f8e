//! The agent's own probe and pipeline in this process, with everything that they say at hand.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use agent::capture::Writer;
use agent::clock;
use agent::config::Config;
use agent::pipeline::{Baseline, Output};
use agent::probe::Probe;
use agent::train::Collected;
use agent::watch::Watch;
use models::budget::AlertBudget;
use models::bundle::{self, Keyring, SigningKey};
use models::train::{self, TrainOptions};
use models::wire::Alert;
use tests::Failed;

use crate::STANDS_FOR;

/// As often as the agent looks for urgent records when none wakes it.
const POLL: Duration = Duration::from_millis(5);
/// Windows learned from, taken from the whole time of learning.
const LEARNED_MAX: usize = 1000;
/// Fewer teach nothing.
const WINDOWS_MIN: usize = 60;
const CAPTURE_MAX: u64 = 4 << 30;

/// An alert and when it came.
pub(crate) struct Seen {
    pub(crate) alert: Alert,
    pub(crate) boot_ns: u64,
}

pub(crate) struct Eye {
    watch: Watch,
    window: Duration,
    alerts: Vec<Seen>,
    training: Collected,
    key: SigningKey,
    /// Where the capture and the bundles go.
    folder: Option<PathBuf>,
    stop: Arc<AtomicBool>,
}

impl Eye {
    /// Watches from now on. No verdict is folded into an earlier one, for each variant counts.
    pub(crate) fn open(window: Duration, folder: Option<&Path>) -> Result<Self, Failed> {
        let failed = |error: &dyn std::error::Error| Failed(models::chain::chain(error));
        let mut config = Config { window, programs_max: 4096, ..Config::default() };
        config.policy.dedup_ns = 0;
        config.policy.per_minute = u32::MAX / 2;
        // A window stands for a longer one, so a day of them is shorter too.
        config.alert_budget = config.alert_budget.map(|budget| {
            let alerts = f64::from(budget.alerts) * STANDS_FOR.as_secs_f64() / window.as_secs_f64();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred")]
            AlertBudget { alerts: alerts as u32, ..budget }
        });
        let probe = Probe::load(&config.probe(std::process::id())).map_err(|error| failed(&error))?;
        let mut watch = Watch::new(&config, probe);
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder).map_err(|error| Failed::new(folder.display(), error))?;
            let writer =
                Writer::create(&folder.join("live.bgc"), CAPTURE_MAX).map_err(|error| failed(&error))?;
            watch.record(writer).map_err(|error| failed(&error))?;
        }
        let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8())
            .ok_or_else(|| Failed("no signing key".into()))?;
        let folder = folder.map(Path::to_owned);
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|error| failed(&error))?;
        }
        Ok(Self { watch, window, alerts: Vec::new(), training: Collected::new(), key, folder, stop })
    }

    /// Lets so much time pass.
    pub(crate) fn watch_for(&mut self, time: Duration) -> Result<(), Failed> {
        let end_ns = clock::boot_ns() + clock::nanoseconds(time);
        self.watch_until(|| Ok(clock::boot_ns() >= end_ns))
    }

    /// Watches until something is so.
    pub(crate) fn watch_until(
        &mut self,
        mut done: impl FnMut() -> Result<bool, Failed>,
    ) -> Result<(), Failed> {
        while !done()? {
            if self.stop.load(Relaxed) {
                return Err(Failed("interrupted".into()));
            }
            self.look();
            std::thread::sleep(POLL);
        }
        self.look();
        Ok(())
    }

    fn look(&mut self) {
        let mut out = Vec::new();
        self.watch.take_events(u64::MAX, &mut out);
        let now_ns = clock::boot_ns();
        if now_ns >= self.watch.probe().epoch().1 + clock::nanoseconds(self.window) {
            self.watch.close(&mut out);
        }
        for output in out {
            match output {
                Output::Alert(alert) => self.alerts.push(Seen { alert: *alert, boot_ns: clock::boot_ns() }),
                Output::Train(windows) => self.training.add(windows),
                Output::Alarmed(_) | Output::Follow(_) | Output::Unfollow(_) => {}
            }
        }
    }

    /// Trains and uses a baseline for each program of these units that was seen often enough; how many, and of how many
    /// there was too little.
    pub(crate) fn learn(&mut self, units: &[String]) -> Result<(usize, usize), Failed> {
        let (mut learned, mut few) = (0, 0);
        for (program, windows) in std::mem::take(&mut self.training).into_programs() {
            if !units.contains(&program.unit) {
                continue;
            }
            if self.stop.load(Relaxed) {
                return Err(Failed("interrupted".into()));
            }
            if windows.len() < WINDOWS_MIN {
                few += 1;
                continue;
            }
            let options = TrainOptions { windows_max: LEARNED_MAX, ..TrainOptions::default() };
            // Training takes seconds, and the kernel's rings do not wait.
            let fitted = std::thread::scope(|scope| {
                let fitting = scope.spawn(|| train::fit(&windows, &options, &mut |_| {}));
                while !fitting.is_finished() {
                    self.look();
                    std::thread::sleep(POLL);
                }
                fitting.join()
            });
            let fitted = fitted.map_err(|_| Failed("training panicked".into()))?;
            let fitted = fitted.map_err(|error| Failed::new(format!("training {program}"), error))?;
            let raw = fitted.seal(program.clone(), 1, 0..u64::MAX, &self.key);
            if let Some(folder) = &self.folder {
                let file = folder.join(format!("{}.bgb", program.key()));
                std::fs::write(&file, &raw).map_err(|error| Failed::new(file.display(), error))?;
            }
            let keys = Keyring([self.key.public()].into_iter().collect());
            let verified = bundle::open(&raw, &keys).map_err(|error| Failed::new("the bundle", error))?;
            let baseline = Baseline::load(&verified).map_err(|error| Failed::new("the baseline", error))?;
            self.watch.switch(&verified, baseline).map_err(|error| Failed::new("the baseline", error))?;
            eprintln!("  {program}: {} windows", windows.len());
            learned += 1;
        }
        Ok((learned, few))
    }

    /// Everything that may be why something was not said: what was dropped, left out, or could not be told.
    pub(crate) fn left_out(&self) -> Result<Vec<(String, u64)>, Failed> {
        let kernel = self.watch.probe().counters().map_err(|error| Failed(models::chain::chain(&error)))?;
        let judged = self.watch.pipeline().counters().list().map(|(name, n)| (name.to_owned(), n));
        let usual = ["_seen", "_submitted", "_received"];
        let counters = kernel.list().into_iter().chain(judged);
        let tells =
            |name: &str| !name.starts_with("windows_") && !usual.iter().any(|suffix| name.ends_with(suffix));
        Ok(counters.filter(|(name, _)| tells(name)).collect())
    }

    /// What was said since the last time.
    pub(crate) fn take_alerts(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.alerts)
    }

    /// Ends the capture.
    pub(crate) fn finish(mut self) -> Result<(), Failed> {
        let Some(folder) = &self.folder else { return Ok(()) };
        match self.watch.stop_recording() {
            Some(Ok(bytes)) => {
                let key = models::program::hex(&self.key.public().0);
                eprintln!(
                    "{} MiB: behaveguard replay {1}/live.bgc --key {key} $(printf -- '--bundle %s ' {1}/*.bgb)",
                    bytes >> 20,
                    folder.display()
                );
                Ok(())
            }
            Some(Err(error)) => Err(Failed::new("the capture", error)),
            None => Err(Failed("the capture was full before the end".into())),
        }
    }
}
