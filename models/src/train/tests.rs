//! Of training as a whole; what one network does is tested beside it.

use super::*;

/// Counted grams of some calls.
fn order_of(calls: Vec<u16>) -> Vec<(u64, u32)> {
    let mut counts = BTreeMap::new();
    let mut gram = crate::sequence::EMPTY;
    for call in calls {
        gram = crate::sequence::roll(gram, call);
        *counts.entry(gram).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

pub(super) fn normal_windows(n: usize) -> Vec<TrainingWindow> {
    let mut random = Random::new(9);
    (0..n)
        .map(|at| {
            let share = (0.4 + 0.05 * random.normal()).clamp(0.1, 0.9);
            TrainingWindow {
                unix_ms: at as u64,
                run: 1,
                vector: vec![(0, share), (1, 1.0 - share), (425, 0.2)],
                traits: vec![crate::novelty::trait_id(crate::novelty::Kind::Syscall, "read")],
                grams: order_of([0, 1, 2].repeat(20 + at % 7)),
            }
        })
        .collect()
}

pub(super) fn quick() -> TrainOptions {
    TrainOptions { vae_steps: 150, lstm_steps: 40, ..TrainOptions::default() }
}

#[test]
fn too_few_windows_are_refused() {
    let refused = fit(&normal_windows(39), &quick(), &mut |_| {}).unwrap_err();
    assert_eq!(refused, TrainError::TooFew { found: 39 });
}

#[test]
fn a_value_outside_the_schema_is_refused_by_its_window() {
    let mut windows = normal_windows(50);
    windows[7].vector.push((500, 0.5));
    assert_eq!(fit(&windows, &quick(), &mut |_| {}).unwrap_err(), TrainError::BadWindow(7));
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let windows = normal_windows(60);
    let once = fit(&windows, &quick(), &mut |_| {}).unwrap();
    let again = fit(&windows, &quick(), &mut |_| {}).unwrap();
    assert_eq!(once.parts, again.parts);
    assert_eq!(once.facts.windows, [36, 12, 12]);
    assert_eq!(once.calibration.fused.len(), 12);
}

#[test]
fn one_long_run_among_short_ones_is_no_reason_to_learn_sequences() {
    let options = TrainOptions { vae_steps: 20, lstm_steps: 5, ..TrainOptions::default() };
    // Where it is learned, where its spread is, and where it calibrates.
    for long in [0..20, 36..48, 46..60] {
        let mut windows = normal_windows(60);
        for (at, window) in windows.iter_mut().enumerate().filter(|(at, _)| !long.contains(at)) {
            window.run = 100 + at as u64;
        }
        let trained = fit(&windows, &options, &mut |_| {}).unwrap();
        assert!(trained.parts.iter().all(|(name, _)| name != "lstm.onnx"), "{long:?}");
        assert_eq!(trained.calibration.fused.len(), 12);
    }
}

#[test]
fn sequences_never_cross_runs() {
    let mut windows = normal_windows(25);
    for window in &mut windows[12..] {
        window.run = 2;
    }
    let sequences = sequences(&windows);
    assert_eq!(sequences.len(), 3 + 4);
    assert!(sequences.iter().all(|s| windows[s[0]].run == windows[s[9]].run));
}

#[test]
fn a_program_of_short_lived_processes_is_learned_without_the_sequence_model() {
    let mut windows = normal_windows(60);
    for (at, window) in windows.iter_mut().enumerate() {
        window.run = at as u64 / 3;
    }
    let trained = fit(&windows, &quick(), &mut |_| {}).unwrap();
    let names: Vec<&str> = trained.parts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["vae.onnx", "prototypes.bin", "grams.bin"]);
    let weights: Vec<f32> = trained.calibration.detectors.iter().map(|d| d.weight).collect();
    assert_eq!(weights, ["vae", "", "nearest", "repertoire", "order"].map(weight));
}

#[test]
fn too_many_windows_are_thinned_over_the_whole_time_without_gluing_runs() {
    let windows = normal_windows(3050);
    let kept = thinned(&windows, 1000, 1);
    assert_eq!(kept, thinned(&windows, 1000, 1), "the same seed keeps the same windows");
    assert!((950..=1000).contains(&kept.len()), "{}", kept.len());
    assert!(kept.first().is_some_and(|w| w.unix_ms < 1000) && kept.last().is_some_and(|w| w.unix_ms > 2000));
    for pair in kept.windows(2) {
        let next = pair[1].unix_ms == pair[0].unix_ms + 1 && pair[1].unix_ms % BLOCK as u64 != 0;
        assert_eq!(pair[0].run == pair[1].run, next, "{} and {}", pair[0].unix_ms, pair[1].unix_ms);
    }
    assert_eq!(thinned(&windows, 3050, 1).len(), 3050);
}

#[test]
fn a_split_without_calibration_is_refused() {
    let options = TrainOptions { split: Some([30, 10]), ..quick() };
    let refused = fit(&normal_windows(40), &options, &mut |_| {}).unwrap_err();
    assert_eq!(refused, TrainError::Split { found: 40 });
}

#[test]
fn windows_without_order_are_learned_without_it() {
    let mut windows = normal_windows(60);
    windows.iter_mut().for_each(|window| window.grams.clear());
    let trained = fit(&windows, &quick(), &mut |_| {}).unwrap();
    assert!(trained.parts.iter().all(|(name, _)| name != "grams.bin"));
    assert_eq!(trained.calibration.detectors.last().map(|d| d.weight), Some(0.0));
}

#[test]
fn an_order_never_seen_is_far_beyond_calibration() {
    let trained = fit(&normal_windows(60), &quick(), &mut |_| {}).unwrap();
    let part = trained.parts.iter().find(|(name, _)| name == "grams.bin").expect("it was learned");
    let table = GramTable::from_bytes(&part.1).unwrap();
    let order = trained.calibration.detectors.iter().find(|d| d.name == "order").unwrap();
    let z = |calls: Vec<u16>| order.z(table.kinds_of(&order_of(calls)).bits().unwrap());
    let (usual, reversed) = (z([0, 1, 2].repeat(23)), z([2, 1, 0].repeat(23)));
    assert!(usual < 3.0 && reversed > 10.0, "{usual} and {reversed}");
    let diluted = z([[0, 1, 2].repeat(100_000), vec![2, 1, 0, 2, 1, 0]].concat());
    assert!(diluted > 3.0, "it came once in 300,000 calls: {diluted}");
}

#[test]
fn what_calibrates_is_learned_when_it_has_calibrated() {
    let mut windows = normal_windows(60);
    for window in &mut windows[48..] {
        (window.vector, window.grams) = (vec![(7, 0.5), (8, 0.5)], order_of([7, 8].repeat(20)));
    }
    let trained = fit(&windows, &quick(), &mut |_| {}).unwrap();
    let part = |name| &trained.parts.iter().find(|part| part.0 == name).expect("it was learned").1;
    let late = features::from_sparse(&windows[55].vector).unwrap();
    let distances = Prototypes::from_bytes(part("prototypes.bin")).unwrap().score(&late).unwrap();
    let sums = GramTable::from_bytes(part("grams.bin")).unwrap().sums_of(&windows[55].grams);
    assert!(distances.repertoire.score < 1e-6 && sums.misses == 0, "{distances:?}, {sums:?}");
    let repertoire = &trained.calibration.detectors[3];
    assert!(repertoire.z(1.0).abs() < 1e-3, "calibrated while nothing was like it: {repertoire:?}");
}

#[cfg(feature = "infer")]
#[test]
fn tract_agrees_with_the_trainer_and_an_odd_window_scores_higher() {
    use crate::bundle::Keyring;
    use crate::detect::Detectors;
    let mut windows = normal_windows(60);
    // The order of calls is looked up in the kernel.
    windows.iter_mut().for_each(|window| window.grams.clear());
    let trained = fit(&windows, &quick(), &mut |_| {}).unwrap();
    let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
    let program = ProgramId { unit: "-".into(), exe: "/x".into(), script: None };
    let calibration = trained.calibration.clone();
    let raw = trained.seal(program, 1, 0..1, &key);
    let keys = Keyring(heapless::Vec::from_slice(&[key.public()]).unwrap());
    let detectors = Detectors::load(&bundle::open(&raw, &keys).unwrap()).unwrap();

    let vector = |at: usize| features::from_sparse(&windows[at].vector).unwrap();
    let vectors: Vec<_> = (50..60).map(vector).collect();
    let sequence = core::array::from_fn(|at| &vectors[at]);
    let vae = detectors.vae(&vectors[9]).unwrap();
    let lstm = detectors.lstm(&sequence).unwrap().unwrap();
    let all = detectors.all(&vectors[9], &sequence);
    let outputs: Vec<(&str, f32)> =
        all.iter().map(|(name, output)| (*name, output.as_ref().unwrap().score)).collect();
    assert_eq!(outputs.len(), 4);
    // The calibration's largest and smallest raw scores enclose what tract gives for a calibration window.
    let fused = calibration.fuse(&outputs).unwrap();
    let nearest = calibration.fused.iter().map(|z| (z - fused).abs()).fold(f32::MAX, f32::min);
    assert!(nearest < 1e-2, "tract gives {fused}, the trainer had {:?}", calibration.fused);
    let mut odd = vectors[9];
    odd[59] = 0.6;
    assert!(detectors.vae(&odd).unwrap().score > 10.0 * vae.score);
    assert_eq!(lstm.contributions.len(), FEATURES);
}

#[test]
fn whatever_runs_and_values_come_training_ends_with_a_bundle_or_a_reason() {
    let options = TrainOptions { vae_steps: 3, lstm_steps: 2, ..TrainOptions::default() };
    let mut random = fastrand::Rng::with_seed(32);
    let (mut learned, mut with_sequences) = (0, 0);
    for _ in 0..60 {
        let (longest, slots) = (random.u64(1..30), random.u16(1..300));
        let mut run = 0;
        let mut windows = normal_windows(random.usize(35..120));
        for window in &mut windows {
            run += u64::from(random.u64(..longest) == 0);
            window.run = run;
            // Also windows in which nothing was called.
            let called = random.u16(..6);
            window.vector = (0..called).map(|_| (random.u16(..slots), random.f32())).collect();
            window.grams.retain(|_| random.bool());
        }
        if let Ok(trained) = fit(&windows, &options, &mut |_| {}) {
            learned += 1;
            with_sequences += u32::from(trained.parts.iter().any(|(name, _)| name == "lstm.onnx"));
            assert!(trained.calibration.fused.iter().all(|z| z.is_finite()));
        }
    }
    assert!(learned > 20 && with_sequences > 5, "{learned}, {with_sequences}");
}
