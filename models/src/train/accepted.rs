//! Windows that alarmed and that people found to be false alarms: the next baseline takes what they show for normal.
//!
//! What was done in them is known from then on. Of their vectors the newest one calibrates: a calibration window like it says how
//! often such windows come, so it is no longer beyond all that was seen. The others fit the models, as any window does.

use std::borrow::Cow;

use crate::features;
use crate::wire::TrainingWindow;

/// The accepted ones are at most one of so many windows, so that a verdict of people moves a baseline and does not become it.
const ONE_OF: usize = 10;

/// All windows in the order in which they are split: accepted ones first, the newest of them last.
pub(super) fn merged<'a>(
    windows: &'a [TrainingWindow],
    accepted: &[TrainingWindow],
) -> Cow<'a, [TrainingWindow]> {
    // One without values was too short to be compared with whole windows; one of another schema is of no use.
    let usable = |window: &&TrainingWindow| {
        !window.vector.is_empty() && features::from_sparse(&window.vector).is_some()
    };
    let usable: Vec<&TrainingWindow> = accepted.iter().filter(usable).collect();
    let kept = &usable[usable.len().saturating_sub(windows.len() / ONE_OF)..];
    let Some((newest, others)) = kept.split_last() else { return Cow::Borrowed(windows) };
    // None of them follows another, or is followed by what was learned.
    let alone = |at: usize, window: &TrainingWindow| TrainingWindow {
        run: (window.run ^ window.unix_ms).rotate_left(32) ^ !(at as u64),
        ..window.clone()
    };
    let mut all = Vec::with_capacity(windows.len() + kept.len());
    all.extend(others.iter().enumerate().map(|(at, window)| alone(at, window)));
    all.extend_from_slice(windows);
    all.push(alone(others.len(), newest));
    Cow::Owned(all)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{normal_windows, quick};
    use super::super::{TrainOptions, Trained, fit};
    use super::*;

    fn odd(unix_ms: u64) -> TrainingWindow {
        TrainingWindow { unix_ms, run: 1, vector: vec![(59, 0.6)], traits: vec![], grams: vec![] }
    }

    #[test]
    fn the_newest_accepted_window_calibrates_and_the_others_fit() {
        let windows = normal_windows(60);
        assert!(matches!(merged(&windows, &[]), Cow::Borrowed(_)));
        let all = merged(&windows, &[odd(1), odd(2), odd(3)]);
        let times: Vec<u64> = all.iter().filter(|w| w.vector[0].0 == 59).map(|w| w.unix_ms).collect();
        assert_eq!((all.len(), times), (63, vec![1, 2, 3]));
        assert_eq!((all[0].unix_ms, all[62].unix_ms), (1, 3));
        let runs = [0, 1, 62].map(|at| all[at].run);
        assert!(runs[0] != runs[1] && runs[1] != runs[2] && !runs.contains(&1), "{runs:?}");
    }

    #[test]
    fn accepted_windows_are_few_among_many_and_bad_ones_are_left_out() {
        let windows = normal_windows(60);
        let many: Vec<_> = (0..50).map(odd).collect();
        let all = merged(&windows, &many);
        assert_eq!((all.len(), all[0].unix_ms, all[65].unix_ms), (66, 44, 49));
        let bad = [
            TrainingWindow { vector: vec![(500, 0.5)], ..odd(1) },
            TrainingWindow { vector: vec![], ..odd(2) },
        ];
        assert_eq!(merged(&windows, &bad).len(), 60);
    }

    #[test]
    fn a_false_alarm_is_known_and_within_what_calibrates() {
        let windows = normal_windows(60);
        let trait_id = crate::novelty::trait_id(crate::novelty::Kind::Sensitive, "/etc/shadow");
        let odd = TrainingWindow {
            unix_ms: 99,
            run: 7,
            vector: vec![(59, 0.6), (425, 0.2)],
            traits: vec![trait_id],
            grams: vec![],
        };
        let largest = |trained: &Trained| trained.calibration.fused.iter().copied().fold(f32::MIN, f32::max);
        let before = fit(&windows, &quick(), &mut |_| {}).unwrap();
        let options = TrainOptions { accepted: vec![odd.clone(), odd], ..quick() };
        let after = fit(&windows, &options, &mut |_| {}).unwrap();
        assert!(!before.traits.contains(&trait_id) && after.traits.contains(&trait_id));
        let (below, above) = (largest(&before), largest(&after));
        assert!(above > 3.0 * below.max(1.0), "{below} {above}");
        assert_eq!(after.facts.windows.iter().sum::<u32>(), 62);
    }
}
