//! What it takes to judge one window with the detectors of a bundle, beside ONNX Runtime on the same graphs.
//!
//! `infer [PYTHON]` trains on made-up windows of some forty calls, seals and loads the bundle as fleet and device do, and
//! takes the best of many rounds. With a Python that has `onnxruntime`, each round also times its runtime, one thread, in
//! turn with ours. `cargo xtask bench infer` runs it. The last line is JSON, microseconds; `null` is what was not
//! measured.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use models::bundle::{self, Keyring, SigningKey, Verified};
use models::detect::{Detectors, LSTM_PART, VAE_PART};
use models::features::{self, Vector};
use models::program::ProgramId;
use models::schema::{FEATURES, SEQUENCE, SYSCALL_SLOTS};
use models::train::{self, TrainOptions};
use models::wire::TrainingWindow;

const ROUNDS: usize = 5;
/// Enough that the prototypes are full.
const WINDOWS: usize = 1000;
/// Times a call before and after the best is kept.
const CALLS: u32 = 200;
const REPEATS: usize = 10;

/// Loaded at a time to see what one takes.
const PROGRAMS: usize = 50;

const ONNX_RUNTIME: &str = include_str!("onnxruntime.py");

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let python = std::env::args().nth(1);
    let vectors = vectors();
    let bundle = learned(&vectors)?;
    let detectors = Detectors::load(&bundle)?;
    let sequence: [&Vector; SEQUENCE] = core::array::from_fn(|at| &vectors[at]);
    let last = sequence[SEQUENCE - 1];
    let folder = std::env::temp_dir().join(format!("behaveguard-infer-{}", std::process::id()));
    if python.is_some() {
        write(&folder, &bundle, &sequence)?;
    }
    let mut best = [f64::INFINITY; 4];
    let mut peer = [None::<f64>; 2];
    for _ in 0..ROUNDS {
        let ours = [
            micros(|| detectors.vae(last).map(|output| output.score)),
            micros(|| detectors.lstm(&sequence).map(|output| output.map(|output| output.score))),
            micros(|| detectors.distances(last).map(|distances| distances.nearest.score)),
            micros(|| detectors.all(last, &sequence).len()),
        ];
        best.iter_mut().zip(ours).for_each(|(best, found)| *best = best.min(found));
        if let Some(python) = &python {
            let found = onnx_runtime(python, &folder)?;
            for (peer, found) in peer.iter_mut().zip(found) {
                *peer = Some(peer.map_or(found, |best| best.min(found)));
            }
        }
    }
    if python.is_some() {
        std::fs::remove_dir_all(&folder)?;
    } else {
        println!("no Python with onnxruntime was given: only ours is measured");
    }
    let before = resident_bytes();
    let many: Vec<Detectors> = (0..PROGRAMS).map(|_| Detectors::load(&bundle)).collect::<Result<_, _>>()?;
    let resident = resident_bytes().saturating_sub(before) / many.len() as u64;
    drop(many);
    let [vae, lstm, distances, window] = best;
    let load = micros_once(|| Detectors::load(&bundle).map(|detectors| detectors.weight_bytes()));
    println!("{:<28}{:>10}{:>16}", "best of many, us", "ours", "ONNX Runtime");
    for (name, ours, peer) in [("VAE", vae, peer[0]), ("LSTM, ten windows", lstm, peer[1])] {
        println!("{name:<28}{ours:>10.1}{:>16}", peer.map_or("-".to_owned(), |peer| format!("{peer:.1}")));
    }
    println!("{:<28}{distances:>10.1}\n{:<28}{window:>10.1}", "prototypes", "window, all detectors");
    println!("{:<28}{load:>10.1}\n{:<28}{:>10}", "loading", "weights, bytes", detectors.weight_bytes());
    println!("{:<28}{resident:>10}", "resident each, of 50, bytes");
    let json = |value: Option<f64>| value.map_or("null".to_owned(), |value| format!("{value:.2}"));
    println!(
        "{{\"vae_us\":{vae:.2},\"lstm_us\":{lstm:.2},\"window_us\":{window:.2},\"ort_vae_us\":{},\"ort_lstm_us\":{},\
         \"distances_us\":{distances:.2},\"load_us\":{load:.0},\"weight_bytes\":{},\"resident_bytes\":{resident}}}",
        json(peer[0]),
        json(peer[1]),
        detectors.weight_bytes()
    );
    Ok(())
}

/// Windows of a service with three kinds of work, some forty calls each.
fn vectors() -> Vec<Vector> {
    let mut random = fastrand::Rng::with_seed(0x5eed);
    let window = |_| {
        let mut vector = [0.0; FEATURES];
        let work = random.usize(..3);
        for at in 0..40 {
            vector[(at * 7 + work * 3) % SYSCALL_SLOTS] = random.f32() / 40.0;
        }
        for at in 0..30 {
            vector[SYSCALL_SLOTS + (at * 3 + work) % 50] = random.f32() / 30.0;
        }
        vector
    };
    (0..WINDOWS).map(window).collect()
}

/// Trains, seals and opens.
fn learned(vectors: &[Vector]) -> Result<Verified, Failure> {
    let window = |vector: &Vector| TrainingWindow {
        unix_ms: 0,
        run: 1,
        vector: features::to_sparse(vector),
        traits: vec![],
        grams: vec![],
    };
    let windows: Vec<TrainingWindow> = vectors.iter().map(window).collect();
    let options = TrainOptions { vae_steps: 300, lstm_steps: 30, ..TrainOptions::default() };
    let trained = train::fit(&windows, &options, &mut |_| {})?;
    let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).ok_or("no signing key")?;
    let keys = Keyring([key.public()].into_iter().collect());
    let program = ProgramId { unit: "-".into(), exe: "/infer".into(), script: None };
    Ok(bundle::open(&trained.seal(program, 1, 0..u64::MAX, &key), &keys)?)
}

/// The graphs and their input, for another runtime.
fn write(folder: &Path, bundle: &Verified, sequence: &[&Vector; SEQUENCE]) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)?;
    for part in [VAE_PART, LSTM_PART] {
        std::fs::write(folder.join(part), bundle.part(part).ok_or("the bundle lacks a graph")?)?;
    }
    let bytes: Vec<u8> =
        sequence.iter().flat_map(|vector| vector.iter()).flat_map(|v| v.to_le_bytes()).collect();
    Ok(std::fs::write(folder.join("input.f32"), bytes)?)
}

/// VAE and LSTM, microseconds.
fn onnx_runtime(python: &str, folder: &Path) -> Result<[f64; 2], Failure> {
    let output = Command::new(python).args(["-c", ONNX_RUNTIME]).arg(folder).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match found[..] {
        [vae, lstm] => Ok([vae, lstm]),
        _ => Err(format!("{python} gave {text:?}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Of this process; 0 where `/proc` does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0) * 1024
}

/// The best mean of some repeats.
fn micros<T>(mut call: impl FnMut() -> T) -> f64 {
    let mean =
        |_| micros_once(|| (0..CALLS).for_each(|_| drop(std::hint::black_box(call())))) / f64::from(CALLS);
    (0..REPEATS).map(mean).fold(f64::INFINITY, f64::min)
}

#[allow(clippy::disallowed_methods, reason = "this measures real time")]
fn micros_once<T>(call: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    std::hint::black_box(call());
    start.elapsed().as_secs_f64() * 1e6
}
