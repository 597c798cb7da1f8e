//! A program's traces to every detector's raw output on its calibration and test traces.
//!
//! A trace is scored as a process window is: VAE, distances, repertoire and pairs from its calls as a whole, `order`, by the kernel's
//! table, and `surprisal` as means over its distinct 6-grams, 6-gram novelty and `markov`, the surprisal of one call, as
//! means over its calls. Means and not maxima, because the product's window has no fixed number of calls and a maximum grows with
//! their number. The LSTM sees the trace in windows of 100 calls, 50 apart, and gives
//! its mean over those that have nine before them.
//!
//! As in training for a device, what counts calls ([`Counted`]) is calibrated by what it learned from the other traces,
//! and then learns those that calibrate too; the networks do not.

use models::bundle::{self, Keyring, SigningKey};
use models::detect::Detectors;
use models::features::{self, Vector};
use models::nearest::Prototypes;
use models::pairs::PairSets;
use models::program::ProgramId;
use models::schema::SEQUENCE;
use models::sequence::{self, GramTable, ORDER, Symbol};
use models::surprisal::{ORDER_MAX, Surprisal};
use models::train::original::Original;
use models::train::{self, TrainOptions};
use models::wire::TrainingWindow;

use crate::corpus::{Program, Trace};

/// Short windows that train the LSTM at most, of learning and of calibration traces.
const SHORT_MAX: [usize; 2] = [12_000, 4_000];
const SEED: u64 = 0x5eed;

/// One detector's raw outputs; `None` where it had nothing to say.
pub(crate) struct Raw {
    /// Its name.
    pub(crate) name: &'static str,
    /// On the calibration traces.
    pub(crate) calibrate: Vec<Option<f32>>,
    /// On the test traces.
    pub(crate) test: Vec<Option<f32>>,
}

/// What counts calls, their order, or which of them were made.
struct Counted {
    table: GramTable,
    long: Surprisal,
    pairs: PairSets,
    prototypes: Prototypes,
}

impl Counted {
    fn fit<'a>(traces: impl Iterator<Item = &'a Trace> + Clone) -> Self {
        let learned: Vec<&[Symbol]> = traces.clone().map(|trace| &trace.symbols[..]).collect();
        Self {
            table: GramTable::build(&Surprisal::fit(&learned, ORDER - 1), &learned),
            long: Surprisal::fit(&learned, ORDER_MAX),
            pairs: PairSets::fit(&learned),
            prototypes: Prototypes::fit(traces.map(Trace::whole)),
        }
    }

    fn outputs(&self, trace: &Trace) -> [(&'static str, Option<f32>); 7] {
        let sums = self.table.sums(&trace.symbols);
        let kinds = sequence::summed(sequence::grams(&trace.symbols).map(|gram| (gram, 1)).collect());
        let distances = self.prototypes.score(&trace.whole());
        [
            ("ngram", sums.novelty()),
            ("order", self.table.kinds_of(&kinds).bits()),
            ("surprisal", self.long.mean_bits_of_kinds(&trace.symbols)),
            ("markov", self.long.mean_bits(&trace.symbols)),
            ("pairs", self.pairs.score(&trace.symbols)),
            ("nearest", distances.as_ref().map(|found| found.nearest.score)),
            ("repertoire", distances.as_ref().map(|found| found.repertoire.score)),
        ]
    }
}

/// Outputs of what counts: on the calibration traces before it learned these, on the test traces after.
fn counted(program: &Program) -> Vec<Raw> {
    let on = |traces: &[Trace], counted: &Counted| -> Vec<_> {
        // A window without a call is not judged.
        let judged = |trace: &Trace| {
            counted.outputs(trace).map(|(name, score)| (name, score.filter(|_| !trace.symbols.is_empty())))
        };
        traces.iter().map(judged).collect()
    };
    let calibrate = on(&program.calibrate, &Counted::fit(program.fit.iter()));
    let test = on(&program.test, &Counted::fit(program.fit.iter().chain(&program.calibrate)));
    let raw = |at: usize| Raw {
        name: calibrate[0][at].0,
        calibrate: calibrate.iter().map(|outputs| outputs[at].1).collect(),
        test: test.iter().map(|outputs| outputs[at].1).collect(),
    };
    (0..calibrate[0].len()).map(raw).collect()
}

/// Runs all detectors of the product, and those that are only compared.
pub(crate) fn run(program: &Program) -> (Vec<Raw>, Raw) {
    let score = |name: &'static str, f: &mut dyn FnMut(&Trace) -> Option<f32>| {
        // A window without a call is not judged.
        let mut one = |trace: &Trace| if trace.symbols.is_empty() { None } else { f(trace) };
        Raw {
            name,
            calibrate: program.calibrate.iter().map(&mut one).collect(),
            test: program.test.iter().map(&mut one).collect(),
        }
    };
    let mut raws = counted(program);
    match fit_whole(program) {
        Ok(detectors) => {
            raws.push(score("vae", &mut |trace| detectors.vae(&trace.whole()).ok().map(|out| out.score)));
        }
        Err(reason) => eprintln!("  no VAE: {reason}"),
    }
    match fit_short(program) {
        Ok(detectors) => raws.push(score("lstm", &mut |trace| sequences(&detectors, trace))),
        Err(reason) => eprintln!("  no LSTM: {reason}"),
    }
    // The dearest part: as many windows as the LSTM of ours gets.
    let mut windows = 0;
    let runs = program.fit.iter().map(Trace::windows).take_while(|run| {
        windows += run.len();
        windows <= SHORT_MAX[0] || windows == run.len()
    });
    let runs: Vec<Vec<Vector>> = runs.collect();
    let mut original = Original::fit(&runs, SEED);
    let original = score("original", &mut |trace| {
        let scores = original.as_mut()?.scores(&trace.windows());
        Some(scores.iter().sum::<f32>() / scores.len() as f32)
    });
    (raws, original)
}

fn fit_whole(program: &Program) -> Result<Detectors, String> {
    let traces = program.fit.iter().chain(&program.calibrate);
    let windows = traces.enumerate().map(|(run, trace)| window(run, &trace.whole())).collect();
    let n = program.fit.len();
    fit(windows, TrainOptions { split: Some([n - n / 5, n / 5]), lstm_steps: 0, ..options() })
}

fn fit_short(program: &Program) -> Result<Detectors, String> {
    let mut windows = Vec::new();
    let mut ends = [0; 2];
    for (part, (traces, most)) in [&program.fit, &program.calibrate].into_iter().zip(SHORT_MAX).enumerate() {
        let most = windows.len() + most;
        for trace in traces {
            let run = windows.len();
            windows.extend(trace.windows().iter().map(|vector| window(run, vector)));
            if windows.len() >= most {
                windows.truncate(most);
                break;
            }
        }
        ends[part] = windows.len();
    }
    let held = ends[0] / 5;
    fit(windows, TrainOptions { split: Some([ends[0] - held, held]), vae_steps: 50, ..options() })
}

fn options() -> TrainOptions {
    TrainOptions { seed: SEED, ..TrainOptions::default() }
}

fn window(run: usize, vector: &Vector) -> TrainingWindow {
    TrainingWindow {
        unix_ms: 0,
        run: run as u64,
        vector: features::to_sparse(vector),
        traits: vec![],
        grams: vec![],
    }
}

/// Trains, seals, opens and loads, as fleet and device do between them.
fn fit(windows: Vec<TrainingWindow>, options: TrainOptions) -> Result<Detectors, String> {
    let trained = train::fit(&windows, &options, &mut |_| {}).map_err(|e| e.to_string())?;
    let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).ok_or("no signing key")?;
    let program = ProgramId { unit: "-".into(), exe: "/eval".into(), script: None };
    let keys = Keyring([key.public()].into_iter().collect());
    let bundle =
        bundle::open(&trained.seal(program, 1, 0..u64::MAX, &key), &keys).map_err(|e| e.to_string())?;
    Detectors::load(&bundle).map_err(|e| e.to_string())
}

fn sequences(detectors: &Detectors, trace: &Trace) -> Option<f32> {
    let windows = trace.windows();
    let scores: Vec<f32> = windows
        .windows(SEQUENCE)
        .filter_map(|run| {
            let run: [&Vector; SEQUENCE] = core::array::from_fn(|at| &run[at]);
            detectors.lstm(&run).ok()?.map(|out| out.score)
        })
        .collect();
    (!scores.is_empty()).then(|| scores.iter().sum::<f32>() / scores.len() as f32)
}
