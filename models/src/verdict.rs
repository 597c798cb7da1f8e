//! A window, detector outputs and a baseline to a score with its reasons in plain words.

use crate::bundle::Manifest;
use crate::features::Vector;
use crate::novelty::{self, Kind};
use crate::schema::{self, FEATURES, Layer, NAMED, NAMED_BASE};
use crate::sequence::{self, GramWindow};
use crate::window::Window;
use crate::wire::{DetectorScore, Reason};

/// Reasons an explanation holds at most.
pub const REASONS_MAX: usize = 8;
const FEATURES_SHOWN: usize = 4;
/// From this robust z of the surprisal on, the order of calls is a reason.
const ORDER_Z: f32 = 3.0;

/// One detector's raw output on a window.
#[derive(Clone, Debug)]
pub struct Raw<'a> {
    /// As in [`crate::calibration::weight`].
    pub name: &'static str,
    /// Not negative; larger is odder.
    pub score: f32,
    /// Per feature, not normalised; empty when the detector does not look at features.
    pub contributions: &'a [f32],
}

/// A score and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// 0 to 100.
    pub score: f32,
    /// Robust z of every detector that spoke, and last `novelty` with its decades of evidence.
    pub detectors: Vec<DetectorScore>,
    /// Most telling first.
    pub reasons: Vec<Reason>,
    /// ATT&CK ids, most telling first, no repeats.
    pub techniques: Vec<String>,
    /// One plain sentence.
    pub summary: String,
    /// Names program-independent cause, for deduplication.
    pub cause: u64,
}

/// Judges a window. `vector` and `raw` are empty for a decisive event that cannot wait for the window's end.
#[must_use]
pub fn judge(window: &Window, vector: Option<&Vector>, raw: &[Raw<'_>], baseline: &Manifest) -> Verdict {
    let mut fresh: Vec<(u64, Kind)> = window
        .traits()
        .into_iter()
        .filter(|id| baseline.traits.binary_search(id).is_err())
        .filter_map(|id| Kind::of(id).map(|kind| (id, kind)))
        .collect();
    fresh.sort_by(|a, b| b.1.points().total_cmp(&a.1.points()));
    let calibration = &baseline.calibration;
    let kinds: Vec<Kind> = fresh.iter().map(|(_, kind)| *kind).collect();
    let decades = calibration.news.decades(&kinds);
    let outputs: Vec<(&str, f32)> = raw.iter().map(|raw| (raw.name, raw.score)).collect();
    let score = calibration.score(calibration.fuse(&outputs), decades);

    let mut detectors: Vec<DetectorScore> = raw
        .iter()
        .filter_map(|raw| {
            let detector = calibration.detectors.iter().find(|detector| detector.name == raw.name)?;
            Some(DetectorScore { name: raw.name.to_owned(), z: detector.z(raw.score) })
        })
        .collect();
    detectors.push(DetectorScore { name: "novelty".to_owned(), z: decades });

    let mut techniques = Vec::new();
    let mut reasons = Vec::new();
    for (id, kind) in fresh.iter().take(REASONS_MAX - FEATURES_SHOWN) {
        let text = kind.sentence(window.text(*id).unwrap_or("something"));
        reasons.push(Reason {
            layer: kind.layer().as_str().into(),
            name: kind.name().into(),
            text,
            share: 1.0,
        });
        remember(&mut techniques, kind.technique());
    }
    let order = detectors.iter().any(|detector| detector.name == "surprisal" && detector.z >= ORDER_Z);
    if let Some(grams) = window.syscalls.grams.as_ref().filter(|_| order) {
        reasons.push(order_reason(grams));
    }
    if let Some(vector) = vector {
        for (index, share) in top(raw) {
            let feature = (index >= NAMED_BASE).then(|| NAMED[index - NAMED_BASE]);
            let usual = baseline.training.means.iter().find(|(at, _)| usize::from(*at) == index);
            let text = feature_sentence(index, vector[index], usual.map_or(0.0, |(_, mean)| *mean));
            let layer = schema::layer(index).as_str().into();
            reasons.push(Reason { layer, name: schema::name(index), text, share });
            if let Some(feature) = feature.filter(|_| share >= 0.05) {
                remember(&mut techniques, feature.technique);
            }
        }
    }
    let summary = reasons.first().map_or_else(|| "nothing unusual".to_owned(), |reason| reason.text.clone());
    let cause = fresh.first().map_or_else(
        || novelty::trait_id(Kind::Syscall, reasons.first().map_or("", |reason| &reason.name)),
        |(id, _)| *id,
    );
    Verdict { score, detectors, reasons, techniques, summary, cause }
}

fn order_reason(grams: &GramWindow) -> Reason {
    let share = |n: u64| format!("{n} of {} calls", grams.sums.calls);
    // A thread's first calls make short ones, which say less.
    let example =
        grams.strange.iter().rev().map(|gram| sequence::symbols(*gram)).max_by_key(|calls| calls.len());
    let text = match example {
        Some(calls) => {
            let names: Vec<&str> = calls.iter().map(|call| name_of(*call)).collect();
            format!(
                "{} came in an order never seen while it was learned, e.g. {}",
                share(grams.sums.misses),
                names.join(", ")
            )
        }
        None => format!("{} in an order rarely seen while it was learned", share(grams.sums.calls)),
    };
    Reason { layer: Layer::Syscall.as_str().into(), name: "call_order".into(), text, share: 1.0 }
}

fn name_of(call: sequence::Symbol) -> &'static str {
    if usize::from(call) < schema::SYSCALL_SLOTS {
        crate::syscalls::name(usize::from(call))
    } else {
        "another"
    }
}

fn remember(techniques: &mut Vec<String>, technique: &str) {
    if !technique.is_empty() && !techniques.iter().any(|known| known == technique) {
        techniques.push(technique.to_owned());
    }
}

/// The largest mean shares over the detectors.
fn top(raw: &[Raw<'_>]) -> Vec<(usize, f32)> {
    let mut shares = [0.0_f32; FEATURES];
    for raw in raw {
        let sum: f32 = raw.contributions.iter().sum::<f32>().max(f32::MIN_POSITIVE);
        for (share, contribution) in shares.iter_mut().zip(raw.contributions) {
            *share += contribution / sum;
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "a few detectors")]
    let n = raw.iter().filter(|raw| !raw.contributions.is_empty()).count().max(1) as f32;
    let mut top: Vec<(usize, f32)> = shares.iter().map(|share| share / n).enumerate().collect();
    top.sort_by(|a, b| b.1.total_cmp(&a.1));
    top.truncate(FEATURES_SHOWN);
    top.retain(|(_, share)| *share > 0.01);
    top
}

fn feature_sentence(index: usize, value: f32, usual: f32) -> String {
    if index < NAMED_BASE {
        let what = if index < schema::BIGRAM_BASE {
            format!("the system call {}", crate::syscalls::name(index))
        } else {
            format!("call pairs of group {}", index - schema::BIGRAM_BASE)
        };
        return format!(
            "{what} made up {:.1} % of the window, usually {:.1} %",
            value * 100.0,
            usual * 100.0
        );
    }
    let feature = NAMED[index - NAMED_BASE];
    let shown = |value: f32| match feature.unit {
        schema::Unit::Flag => if value >= 0.5 { "yes" } else { "no" }.to_owned(),
        schema::Unit::Share => format!("{:.0} %", value * 100.0),
        _ => {
            let saturated = if value >= 1.0 { " or more" } else { "" };
            format!("{:.1}{saturated}", value * feature.cap)
        }
    };
    format!("{}: {}, usually {}", feature.phrase, shown(value), shown(usual))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::TrainingFacts;
    use crate::calibration::Calibration;
    use crate::event::{Comm, Event, EventKind, PathText};
    use crate::program::ProgramId;

    fn baseline() -> Manifest {
        Manifest {
            schema: schema::SCHEMA_ID,
            program: ProgramId { unit: "-".into(), exe: "/x".into(), script: None },
            generation: 1,
            not_before_unix_s: 0,
            expires_unix_s: 1,
            parts: vec![],
            calibration: Calibration::default().with_fused((0..20_u8).map(|n| f32::from(n) / 10.0)),
            traits: vec![],
            training: TrainingFacts { means: vec![(0, 0.5)], ..TrainingFacts::default() },
        }
    }

    fn shadow() -> Window {
        let mut window = Window::new(1, 0);
        let path = PathText::try_from("/etc/shadow").unwrap();
        let kind = EventKind::Open { path, flags: 0, sensitive: true };
        window.add(&Event { boot_ns: 1, tgid: 1, tid: 1, uid: 0, comm: Comm::new(), kind });
        window
    }

    #[test]
    fn a_first_sensitive_file_is_high_and_named() {
        let verdict = judge(&shadow(), None, &[], &baseline());
        assert!(verdict.score >= 70.0, "{}", verdict.score);
        assert_eq!(verdict.techniques, ["T1003.008"]);
        assert!(verdict.summary.contains("/etc/shadow"), "{}", verdict.summary);
    }

    #[test]
    fn a_first_shell_is_medium_by_itself() {
        let mut window = Window::new(1, 0);
        window.program_started("/bin/sh");
        let verdict = judge(&window, None, &[], &baseline());
        assert!(verdict.score >= 40.0 && verdict.techniques == ["T1059"], "{verdict:?}");
    }

    #[test]
    fn what_was_learned_is_no_evidence() {
        let mut baseline = baseline();
        baseline.traits = shadow().traits();
        let verdict = judge(&shadow(), None, &[], &baseline);
        assert!(verdict.score < 40.0 && verdict.reasons.is_empty(), "{verdict:?}");
    }

    #[test]
    fn a_strange_order_of_calls_is_told_by_name() {
        let mut baseline = baseline();
        let usual: Vec<f32> = (0..20_u8).map(|n| 1.0 + f32::from(n) / 20.0).collect();
        let detector = crate::calibration::DetectorCalibration::fit("surprisal", 2.0, &usual);
        baseline.calibration.detectors.push(detector);
        let mut window = Window::new(1, 0);
        let gram = [0, 1, 59].iter().fold(sequence::EMPTY, |gram, call| sequence::roll(gram, *call));
        let sums = sequence::Sums { calls: 40, misses: 6, surprisal: 40 * 16 * 9 };
        window.syscalls.grams = Some(GramWindow { table: 1, sums, strange: vec![gram] });
        let raw = [Raw { name: "surprisal", score: 9.0, contributions: &[] }];
        let verdict = judge(&window, Some(&[0.0; FEATURES]), &raw, &baseline);
        assert_eq!(
            verdict.summary,
            "6 of 40 calls came in an order never seen while it was learned, e.g. read, write, execve"
        );
        let usual = [Raw { name: "surprisal", score: 1.5, contributions: &[] }];
        assert!(judge(&window, None, &usual, &baseline).reasons.is_empty());
    }

    #[test]
    fn contributions_become_sentences_with_the_usual_value() {
        let mut contributions = [0.0; FEATURES];
        contributions[0] = 3.0;
        contributions[schema::index("child_processes_spawned")] = 1.0;
        let raw = [Raw { name: "vae", score: 1.0, contributions: &contributions }];
        let mut vector = [0.0; FEATURES];
        vector[0] = 0.25;
        vector[schema::index("child_processes_spawned")] = 1.0;
        let verdict = judge(&Window::new(1, 0), Some(&vector), &raw, &baseline());
        let texts: Vec<&str> = verdict.reasons.iter().map(|reason| reason.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "the system call read made up 25.0 % of the window, usually 50.0 %",
                "child processes started: 20.0 or more, usually 0.0"
            ]
        );
        assert_eq!(verdict.techniques, ["T1059"]);
    }
}
