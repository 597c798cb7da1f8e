//! `behaveguard train`: watches for a while and makes baselines on the gateway itself, by the fleet's own trainer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use models::bundle::{BUNDLE_MAX, SigningKey, sha256};
use models::program::ProgramId;
use models::train::{self, BLOCK, Progress, Reservoir, TrainError, TrainOptions};
use models::wire::{Alert, TrainingWindow, TrainingWindows};

use crate::clock;
use crate::config::{Config, Pattern};
use crate::pipeline::{Counters, Output};
use crate::probe::{Probe, ProbeError};
use crate::watch::Watch;

/// Blocks of [`BLOCK`] neighbouring windows kept per program; of more, every hour keeps the same chance.
const BLOCKS_MAX: usize = 40;
/// Traits kept of one program's windows that were left out. A further one is news when it comes again.
const TRAITS_MAX: usize = 16_384;
/// How long a baseline is valid, as the fleet's by default.
const VALID_DAYS: u64 = 365;
/// Records wait at most this long in their rings.
const POLL: Duration = Duration::from_millis(50);
/// How often it is told what is collected.
const TELL_EVERY_NS: u64 = 10_000_000_000;

/// Why nothing was collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The kernel part.
    #[error("starting the kernel part")]
    Probe(#[from] ProbeError),
    /// Signals.
    #[error("waiting for signals")]
    Signals(#[source] std::io::Error),
}

/// Why a program has no baseline.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// It cannot be learned from what was collected.
    #[error(transparent)]
    Fit(#[from] TrainError),
    /// No device would take it.
    #[error("its bundle of {0} bytes is over the limit of {BUNDLE_MAX}")]
    TooLarge(usize),
}

/// Windows of every program, bounded.
#[derive(Default)]
pub struct Collected {
    programs: BTreeMap<String, Sample>,
    /// Ended by SIGINT or SIGTERM before its time.
    pub interrupted: bool,
    /// What was not used, and why.
    pub counters: Counters,
}

/// Windows of one program: all, or a sample of blocks in which every hour of a long time has the same chance.
struct Sample {
    id: ProgramId,
    blocks: Reservoir<(u64, Vec<TrainingWindow>)>,
    filling: Vec<TrainingWindow>,
    n_blocks: u64,
    seen: usize,
    /// What was done in blocks that were left out.
    left_out: BTreeSet<u64>,
    /// Acts of such blocks for which there was no room.
    refused: u64,
}

impl Sample {
    fn new(id: ProgramId) -> Self {
        let seed = seed_of(&id);
        let blocks = Reservoir::new(BLOCKS_MAX, seed);
        Self { id, blocks, filling: Vec::new(), n_blocks: 0, seen: 0, left_out: BTreeSet::new(), refused: 0 }
    }

    fn add(&mut self, windows: Vec<TrainingWindow>) {
        self.seen += windows.len();
        for window in windows {
            self.filling.push(window);
            if self.filling.len() >= BLOCK {
                self.end_block();
            }
        }
    }

    fn end_block(&mut self) {
        let block = (self.n_blocks, std::mem::take(&mut self.filling));
        self.n_blocks += 1;
        let left_out = self.blocks.push(block).into_iter().flat_map(|(_, windows)| windows);
        for id in left_out.flat_map(|window| window.traits) {
            if self.left_out.len() < TRAITS_MAX {
                self.left_out.insert(id);
            } else if !self.left_out.contains(&id) {
                self.refused += 1;
            }
        }
    }

    /// In time order. Where blocks were left out, no run reaches from one into the next, and what was done in them is in the
    /// first window.
    fn into_windows(mut self) -> Vec<TrainingWindow> {
        if !self.filling.is_empty() {
            self.end_block();
        }
        if self.refused > 0 {
            log::warn!("{}: {} acts in windows that were left out are not learned", self.id, self.refused);
        }
        let whole = self.n_blocks <= BLOCKS_MAX as u64;
        let blocks = self.blocks.into_items().into_iter();
        let mut windows: Vec<TrainingWindow> = blocks
            .flat_map(|(at, block)| {
                block.into_iter().map(move |mut window| {
                    if !whole {
                        window.run = window.run.rotate_left(32) ^ at;
                    }
                    window
                })
            })
            .collect();
        if let Some(first) = windows.first_mut() {
            self.left_out.extend(first.traits.drain(..));
            first.traits.extend(self.left_out);
        }
        windows
    }
}

impl Collected {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { programs: BTreeMap::new(), interrupted: false, counters: Counters::default() }
    }

    /// Windows in time order.
    pub fn add(&mut self, TrainingWindows { program, windows }: TrainingWindows) {
        self.programs.entry(program.key()).or_insert_with(|| Sample::new(program)).add(windows);
    }

    /// Programs and how many of their windows came by.
    pub fn seen(&self) -> impl Iterator<Item = (&ProgramId, usize)> {
        self.programs.values().map(|sample| (&sample.id, sample.seen))
    }

    /// Each program with its windows, oldest first.
    pub fn into_programs(self) -> impl Iterator<Item = (ProgramId, Vec<TrainingWindow>)> {
        self.programs.into_values().map(|sample| (sample.id.clone(), sample.into_windows()))
    }
}

/// Patterns for a program as people name it: `nginx` is any executable or unit of that name.
#[must_use]
pub fn patterns(process: &str) -> Vec<Pattern> {
    if process.contains(['/', '*']) {
        return vec![Pattern(process.into())];
    }
    [format!("*/{process}"), process.to_owned(), format!("{process}.service")].map(Pattern).into()
}

/// Watches for `time` and keeps the windows of every program that the configuration watches. No baseline is used, so
/// all of them count as being learned; windows in which something was not seen are left out.
///
/// # Errors
/// When the kernel part does not start.
pub fn collect(
    config: &Config,
    time: Duration,
    tell: &mut dyn FnMut(Duration, &Collected),
) -> Result<Collected, CollectError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(CollectError::Signals)?;
    }
    let mut watch = Watch::new(config, Probe::load(&config.probe(std::process::id()))?);
    let end_ns = clock::boot_ns().saturating_add(clock::nanoseconds(time));
    let mut told_ns = 0;
    let mut collected = Collected::new();
    let mut out = Vec::new();
    loop {
        let now_ns = clock::boot_ns();
        collected.interrupted = stop.load(Relaxed);
        watch.take_events(u64::MAX, &mut out);
        if now_ns >= watch.probe().epoch().1.saturating_add(clock::nanoseconds(config.window)) {
            watch.close(&mut out);
        }
        for output in out.drain(..) {
            if let Output::Train(windows) = output {
                collected.add(windows);
            }
        }
        collected.counters = *watch.pipeline().counters();
        // The last window is left out when it is not a whole one: it would be the odd one.
        if collected.interrupted || now_ns >= end_ns {
            return Ok(collected);
        }
        if now_ns.saturating_sub(told_ns) >= TELL_EVERY_NS {
            told_ns = now_ns;
            tell(Duration::from_nanos(end_ns - now_ns), &collected);
        }
        std::thread::sleep(POLL);
    }
}

/// Leaves out the windows of a program that reach into the time of an alert about it, or into the `quiet` time after it in
/// which a repeat would not have been told. Gives how many there were.
pub fn leave_out_alerts(
    program: &ProgramId,
    windows: &mut Vec<TrainingWindow>,
    alerts: &[Alert],
    config: &Config,
) -> usize {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let window_ms = ms(config.window);
    let after_ms = window_ms.max(config.policy.dedup_ns / 1_000_000);
    let of_it: Vec<u64> =
        alerts.iter().filter(|alert| alert.program == *program).map(|alert| alert.unix_ms).collect();
    let before = windows.len();
    windows.retain(|window| {
        let near =
            |at: &u64| (at.saturating_sub(window_ms)..=at.saturating_add(after_ms)).contains(&window.unix_ms);
        !of_it.iter().any(near)
    });
    before - windows.len()
}

/// Learns one program. The same windows, generation and time give the same bytes.
///
/// # Errors
/// When the windows are too few, or the result is too large.
pub fn make(
    program: &ProgramId,
    windows: &[TrainingWindow],
    generation: u64,
    now_unix_s: u64,
    key: &SigningKey,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<u8>, MakeError> {
    let options = TrainOptions { seed: seed_of(program), now_unix_s, ..TrainOptions::default() };
    let trained = train::fit(windows, &options, progress)?;
    let valid = now_unix_s.saturating_sub(60)..now_unix_s + VALID_DAYS * 86_400;
    let bytes = trained.seal(program.clone(), generation, valid, key);
    if bytes.len() > BUNDLE_MAX { Err(MakeError::TooLarge(bytes.len())) } else { Ok(bytes) }
}

fn seed_of(program: &ProgramId) -> u64 {
    let mut seed = [0; 8];
    seed.copy_from_slice(&sha256(program.key().as_bytes())[..8]);
    u64::from_le_bytes(seed)
}

/// The file that a program's baseline is written to in a folder.
#[must_use]
pub fn file_of(dir: &std::path::Path, program: &ProgramId) -> PathBuf {
    dir.join(format!("{}.bgb", program.key()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Models of a program that does little.
    pub(crate) fn trained() -> train::Trained {
        let options = TrainOptions { vae_steps: 20, lstm_steps: 5, ..TrainOptions::default() };
        train::fit(&windows(60), &options, &mut |_| {}).unwrap()
    }

    fn program() -> ProgramId {
        ProgramId { unit: "gw.service".into(), exe: "/usr/bin/gw".into(), script: None }
    }

    fn windows(n: u64) -> Vec<TrainingWindow> {
        let window = |at: u64| {
            let share = 0.4 + 0.01 * (at % 7) as f32;
            TrainingWindow {
                unix_ms: at,
                run: 1,
                vector: vec![(0, share), (1, 1.0 - share)],
                traits: vec![],
                grams: vec![],
            }
        };
        (0..n).map(window).collect()
    }

    #[test]
    fn the_same_windows_and_time_give_the_same_bundle() {
        let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
        let make = || {
            make(&program(), &windows(models::train::WINDOWS_MIN as u64), 1, 1_000_000, &key, &mut |_| {})
                .unwrap()
        };
        assert!(make() == make());
    }

    #[test]
    fn too_few_windows_are_refused_with_how_many_are_needed() {
        let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
        let refused = make(&program(), &windows(39), 1, 0, &key, &mut |_| {}).unwrap_err();
        assert!(refused.to_string().contains("39 windows are too few"), "{refused}");
    }

    #[test]
    fn what_is_collected_is_bounded_and_in_order() {
        let mut collected = Collected::new();
        let all = windows((BLOCK * BLOCKS_MAX * 3) as u64);
        for part in all.chunks(7) {
            collected.add(TrainingWindows { program: program(), windows: part.to_vec() });
        }
        assert_eq!(collected.seen().map(|(_, n)| n).collect::<Vec<_>>(), [all.len()]);
        let (_, kept) = collected.into_programs().next().unwrap();
        assert_eq!(kept.len(), BLOCK * BLOCKS_MAX);
        assert!(kept.is_sorted_by_key(|window| window.unix_ms));
        let runs: std::collections::BTreeSet<u64> = kept.iter().map(|window| window.run).collect();
        assert_eq!(runs.len(), BLOCKS_MAX, "no run reaches over what was left out");
    }

    #[test]
    fn windows_in_the_time_of_an_alert_are_left_out() {
        let mut config = Config { window: Duration::from_millis(10), ..Config::default() };
        config.policy.dedup_ns = 20_000_000;
        let alert = |exe: &str| Alert {
            unix_ms: 50,
            program: ProgramId { exe: exe.into(), ..program() },
            pid: 1,
            comm: "gw".into(),
            score: 80.0,
            severity: models::policy::Severity::High,
            techniques: vec![],
            summary: String::new(),
            reasons: vec![],
            generation: 1,
            detectors: vec![],
            suppressed_before: 0,
            degraded: vec![],
        };
        let mut kept = windows(100);
        assert_eq!(leave_out_alerts(&program(), &mut kept, &[alert("/usr/bin/other")], &config), 0);
        assert_eq!(leave_out_alerts(&program(), &mut kept, &[alert("/usr/bin/gw")], &config), 31);
        assert!(kept.iter().all(|window| !(40..=70).contains(&window.unix_ms)));
    }

    #[test]
    fn a_short_time_is_kept_whole() {
        let mut collected = Collected::new();
        collected.add(TrainingWindows { program: program(), windows: windows(130) });
        assert_eq!(collected.into_programs().next().unwrap().1, windows(130));
    }

    #[test]
    fn a_name_fits_executables_and_units() {
        let fits = |process: &str| patterns(process).iter().any(|pattern| pattern.fits(&program()));
        assert!(fits("gw") && fits("gw.service") && fits("/usr/bin/*"));
        assert!(!fits("g") && !fits("gwx"));
    }
}
