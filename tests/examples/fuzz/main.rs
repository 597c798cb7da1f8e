//! `cargo xtask fuzz`: every reader of bytes that come from outside is given bytes that nobody would send.
//!
//! On a stable compiler, so without coverage: what a reader made of an input is a number, and an input with a new number is kept
//! and changed further. An input that makes a reader panic, or takes it more than two seconds, is kept in `target/fuzz/`; the
//! process's memory may grow by [`GROWTH_MAX`] at most. Committed corpora are in `tests/fuzz/corpus/<target>/`.
//!
//! Last line: one JSON object, `{target: {executions, crashes, …}}`. `guarded` counts panics of the library that reads graphs, after
//! which an agent goes on without that graph.

mod mutate;
mod seeds;
mod targets;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use agent::config::parse_duration;
use clap::Parser;
use serde_json::{Value, json};

use targets::{TARGETS, Target};

/// No input may make readers hold more than that, in bytes.
const GROWTH_MAX: u64 = 512 << 20;
/// No input may take longer, of a processor's time.
const SLOW: Duration = Duration::from_secs(2);
/// However soon the time is over, each target gets so many inputs: one may take nearly as long as [`SLOW`].
const INPUTS_MIN: u64 = 50;
/// How often a run tells how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Inputs kept of one target; one more takes the place of any.
const KEPT_MAX: usize = 4096;

/// Gives readers bytes that nobody would send.
#[derive(Debug, Parser)]
struct Arguments {
    /// For how long each target runs, e.g. 60s.
    #[arg(long, value_parser = |text: &str| parse_duration(text).ok_or("a time such as 60s or 5m"))]
    time: Option<Duration>,
    /// Each target ends after so many inputs.
    #[arg(long, default_value_t = u64::MAX)]
    executions: u64,
    /// Only this one.
    #[arg(long)]
    target: Option<String>,
    /// Runs one file, e.g. one that made a reader panic.
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
    /// Another one each time unless it is given.
    #[arg(long)]
    seed: Option<u64>,
    /// Writes what was kept into the committed corpora, at most so many files each.
    #[arg(long)]
    keep: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let chosen = |target: &&Target| arguments.target.as_ref().is_none_or(|name| name == target.name);
    let targets: Vec<&Target> = TARGETS.iter().filter(chosen).collect();
    if targets.is_empty() {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("there is no such target; there are {}", names.join(", "));
        return ExitCode::from(64);
    }
    if let Some(input) = &arguments.input {
        let bytes = fs::read(input).expect("the file can be read");
        println!("{:x}", (targets[0].run)(&bytes));
        return ExitCode::SUCCESS;
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    std::panic::set_hook(Box::new(|_| {}));
    let mut results: BTreeMap<&str, Value> = BTreeMap::new();
    let mut bad = 0;
    for target in targets {
        let found = run(target, &arguments, seed);
        bad += found.crashes + found.slow;
        println!(
            "{}: {} inputs, {} kept, {} crashes, {} slow",
            target.name, found.executions, found.kept, found.crashes, found.slow
        );
        results.insert(
            target.name,
            json!({
                "executions": found.executions, "crashes": found.crashes, "slow": found.slow, "kept": found.kept,
                "guarded": targets::GUARDED.swap(0, Ordering::Relaxed),
            }),
        );
    }
    println!("{}", json!(results));
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Found {
    executions: u64,
    crashes: u64,
    slow: u64,
    kept: usize,
}

#[expect(clippy::disallowed_methods, reason = "how long it runs is real time")]
fn run(target: &Target, arguments: &Arguments, seed: u64) -> Found {
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = corpus(target);
    let mut kept = (target.seeds)();
    kept.extend(files(&folder));
    let seeds = kept.len();
    let mut found = Found::default();
    let mut known = HashSet::new();
    for input in &kept {
        known.extend(one(target, input, &mut found));
    }
    let before = resident();
    let begun = Instant::now();
    let time = arguments.time.unwrap_or(Duration::from_secs(10));
    let is_counted = arguments.executions < u64::MAX && arguments.time.is_none();
    let mut told = Duration::ZERO;
    let mut input = Vec::new();
    while found.executions < arguments.executions
        && (is_counted || begun.elapsed() < time || found.executions < INPUTS_MIN)
    {
        input.clone_from(&kept[random.usize(..kept.len())]);
        mutate::mutate(&mut input, &kept, target.words, &mut random);
        let Some(class) = one(target, &input, &mut found) else { continue };
        if known.insert(class) {
            if kept.len() < KEPT_MAX {
                kept.push(input.clone());
            } else {
                let at = random.usize(seeds..KEPT_MAX);
                kept[at].clone_from(&input);
            }
        }
        if begun.elapsed().saturating_sub(told) > TOLD_EVERY {
            told = begun.elapsed();
            println!("{}: {} inputs so far, {} crashes", target.name, found.executions, found.crashes);
        }
        if found.executions.is_multiple_of(4096) && resident().saturating_sub(before) > GROWTH_MAX {
            println!("{}: the readers hold more than {} MiB", target.name, GROWTH_MAX >> 20);
            found.crashes += 1;
            break;
        }
    }
    found.kept = kept.len() - seeds;
    if let Some(most) = arguments.keep {
        fs::create_dir_all(&folder).expect("a folder");
        for input in kept[seeds..].iter().take(most) {
            fs::write(folder.join(name(input)), input).expect("a file");
        }
    }
    found
}

/// Runs a reader once; how it understood the input, unless it failed.
fn one(target: &Target, input: &[u8], found: &mut Found) -> Option<u64> {
    found.executions += 1;
    let begun = cpu();
    let done = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let is_slow = cpu().saturating_sub(begun) > SLOW;
    if done.is_err() || is_slow {
        let counter = if is_slow { &mut found.slow } else { &mut found.crashes };
        *counter += 1;
        let what = if is_slow { "slow" } else { "crash" };
        let path = root().join("target/fuzz").join(format!("{}-{what}-{}", target.name, name(input)));
        let _ = fs::create_dir_all(root().join("target/fuzz"));
        if fs::write(&path, input).is_ok() {
            println!("{}: {what}: {}", target.name, path.display());
        }
    }
    done.ok()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn corpus(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name)
}

fn files(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().filter_map(|path| fs::read(path).ok()).collect()
}

fn name(input: &[u8]) -> String {
    models::bundle::sha256(input)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What this thread has computed: other programs do not count.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn resident() -> u64 {
    agent::vitals::rss_bytes()
}
