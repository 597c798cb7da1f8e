//! A window, detector outputs and a baseline to a score with its reasons in plain words.

use crate::attack;
use crate::bundle::Manifest;
use crate::calibration::score_of;
use crate::explain::{self, Explanation};
use crate::features::Vector;
use crate::novelty::{self, Kind};
use crate::schema::{self, FEATURES, Layer, NAMED, NAMED_BASE};
use crate::sequence::{self, GramWindow};
use crate::window::Window;
use crate::wire::{DetectorScore, Reason};

/// Reasons an explanation holds at most.
pub const REASONS_MAX: usize = 8;
const FEATURES_SHOWN: usize = 4;
/// First-time acts that the sentence names at most, and then measures.
const ACTS_TOLD: usize = 3;
const MEASURES_TOLD: usize = 2;
/// Evidence worth less is told only when there is nothing else.
const POINTS_TOLD: f32 = 4.0;
/// A measure with a smaller share of the oddity is not told.
const SHARE_TOLD: f32 = 0.1;
/// From this robust z on, the order of calls is a reason.
const ORDER_Z: f32 = 3.0;

/// One detector's raw output on a window.
#[derive(Clone, Debug)]
pub struct Raw<'a> {
    /// As in [`crate::calibration::weight`].
    pub name: &'static str,
    /// Not negative; larger is odder.
    pub score: f32,
    /// Per feature, summing up to `score`; empty when the detector does not look at features.
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
    /// Every step that led to the score.
    pub explanation: Explanation,
}

impl Verdict {
    /// The same without what the detectors are worth; what they saw stays to be read.
    #[must_use]
    pub fn by_evidence_alone(mut self) -> Self {
        let why = &mut self.explanation;
        why.statistical_decades = 0.0;
        why.p_value = 10_f64.powf(-f64::from(why.evidence_decades));
        self.score = score_of(why.evidence_decades);
        self
    }
}

/// Judges a window. `vector` and `raw` are empty for a decisive event that cannot wait for the window's end. The `expected`
/// traits are no news, as if the baseline held them.
#[must_use]
pub fn judge(
    window: &Window,
    vector: Option<&Vector>,
    raw: &[Raw<'_>],
    baseline: &Manifest,
    expected: &[u64],
) -> Verdict {
    let news = window.traits().iter().copied().filter(|id| baseline.traits.binary_search(id).is_err());
    let mut fresh: Vec<(u64, Kind)> = news.filter_map(|id| Kind::of(id).map(|kind| (id, kind))).collect();
    let unlearned = fresh.len();
    fresh.retain(|(id, _)| !expected.contains(id));
    // Of equal worth, what came first is the cause.
    let first = |id: u64| window.first_ns(id).unwrap_or(u64::MAX);
    fresh.sort_by(|a, b| b.1.points().total_cmp(&a.1.points()).then_with(|| first(a.0).cmp(&first(b.0))));
    let mut explanation = explain::explain(window, vector, raw, baseline, &fresh);
    explanation.whitelisted = unlearned - fresh.len();
    let decades = explanation.evidence_decades;
    let score = score_of(explanation.statistical_decades + decades);

    let spoken = explanation.detectors.iter();
    let mut detectors: Vec<DetectorScore> =
        spoken.map(|detector| DetectorScore { name: detector.name.clone(), z: detector.z }).collect();
    detectors.push(DetectorScore { name: "novelty".to_owned(), z: decades });

    let mut techniques = Vec::new();
    let mut reasons = Vec::new();
    for (id, kind) in fresh.iter().take(REASONS_MAX - FEATURES_SHOWN) {
        let mut text = kind.sentence(text(window, *id));
        if let Some(command) = window.command(*id) {
            text.push_str(&format!(" (command line: {command})"));
        }
        reasons.push(Reason {
            layer: kind.layer().as_str().into(),
            name: kind.name().into(),
            text,
            share: 1.0,
        });
    }
    for (id, kind) in fresh.iter().take(REASONS_MAX) {
        attack::techniques(*kind, text(window, *id)).into_iter().for_each(|id| remember(&mut techniques, id));
    }
    let order = detectors.iter().any(|detector| detector.name == "order" && detector.z >= ORDER_Z);
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
    let summary = sentence(window, &fresh, &reasons);
    let cause = fresh.first().map_or_else(
        || novelty::trait_id(Kind::Syscall, reasons.first().map_or("", |reason| &reason.name)),
        |(id, _)| *id,
    );
    Verdict { score, detectors, reasons, techniques, summary, cause, explanation }
}

/// The most telling reasons in one sentence: first-time acts, then what is out of measure with observed and usual value.
fn sentence(window: &Window, fresh: &[(u64, Kind)], reasons: &[Reason]) -> String {
    let acts = acts(window, fresh);
    let evidence = fresh.len().min(REASONS_MAX - FEATURES_SHOWN);
    let measures = reasons[evidence..].iter().filter(|reason| reason.share >= SHARE_TOLD);
    let mut clauses: Vec<String> = match &acts[..] {
        [] => Vec::new(),
        [(id, kind)] => vec![kind.sentence(text(window, *id))],
        [first @ .., last] => {
            // The clause behind the last semicolon says that it is new: once is enough for all.
            let act = |(id, kind): &(u64, Kind)| {
                let sentence = kind.sentence(text(window, *id));
                sentence.rsplit_once("; ").map_or(sentence.clone(), |(act, _)| act.to_owned())
            };
            let first: Vec<String> = first.iter().map(act).collect();
            vec![format!("{} and {}, each for the first time", first.join(", "), act(last))]
        }
    };
    clauses.extend(
        acts.iter().find_map(|(id, _)| window.command(*id)).map(|line| format!("command line: {line}")),
    );
    clauses.extend(measures.take(MEASURES_TOLD).map(|reason| reason.text.clone()));
    if clauses.is_empty() {
        clauses.extend(reasons.first().map(|reason| reason.text.clone()));
    }
    if clauses.is_empty() { "nothing unusual".to_owned() } else { clauses.join("; ") }
}

/// The acts worth telling: what a more telling act says already is left out.
fn acts(window: &Window, fresh: &[(u64, Kind)]) -> Vec<(u64, Kind)> {
    let has = |kind: Kind, fits: &dyn Fn(&str) -> bool| {
        fresh.iter().any(|(id, other)| *other == kind && fits(text(window, *id)))
    };
    let repeats = |id: u64, kind: Kind| {
        let value = text(window, id);
        let file = value.rsplit('/').next().unwrap_or(value);
        match kind {
            Kind::Exec => {
                has(Kind::Shell, &|shell| shell == value)
                    || has(Kind::Fileless, &|path| path == value)
                    || has(Kind::Lolbin, &|tool| file.starts_with(tool))
            }
            Kind::Port => has(Kind::Tor, &|_| true),
            _ => false,
        }
    };
    let told = fresh.iter().filter(|(id, kind)| kind.points() >= POINTS_TOLD && !repeats(*id, *kind));
    told.take(ACTS_TOLD).copied().collect()
}

fn text(window: &Window, id: u64) -> &str {
    window.text(id).unwrap_or("something")
}

fn order_reason(grams: &GramWindow) -> Reason {
    // A thread's first calls make short ones, which say less.
    let example =
        grams.strange.iter().rev().map(|gram| sequence::symbols(*gram)).max_by_key(|calls| calls.len());
    let text = match example {
        Some(calls) => {
            let names: Vec<&str> = calls.iter().map(|call| name_of(*call)).collect();
            format!(
                "{} of {} calls came in an order never seen while it was learned, e.g. {}",
                grams.sums.misses,
                grams.sums.calls,
                names.join(", ")
            )
        }
        None => "its calls came in orders that were rare while it was learned".to_owned(),
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
    let top = explain::largest(&shares, FEATURES_SHOWN).into_iter();
    top.map(|index| (index, shares[index] / n)).filter(|(_, share)| *share > 0.01).collect()
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
            calibration: Calibration::default().with_fused((0..20_u8).map(|n| f32::from(n) / 10.0)),
            training: TrainingFacts { means: vec![(0, 0.5)], ..TrainingFacts::default() },
            ..Manifest::new(ProgramId { unit: "-".into(), exe: "/x".into(), script: None }, 1, 0..1)
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
        let verdict = judge(&shadow(), None, &[], &baseline(), &[]);
        assert!(verdict.score >= 70.0, "{}", verdict.score);
        assert_eq!(verdict.techniques, ["T1003.008"]);
        assert!(verdict.summary.contains("/etc/shadow"), "{}", verdict.summary);
    }

    #[test]
    fn a_first_shell_is_medium_by_itself() {
        let mut window = Window::new(1, 0);
        window.program_started("/bin/sh", "");
        let verdict = judge(&window, None, &[], &baseline(), &[]);
        assert!(verdict.score >= 40.0 && verdict.techniques == ["T1059"], "{verdict:?}");
    }

    #[test]
    fn the_sentence_names_the_most_telling_reasons_and_no_act_twice() {
        let mut window = shadow();
        window.program_started("/bin/sh", "");
        window.program_started("/usr/bin/nc", "");
        let kind = EventKind::Connect { addr: [10, 9, 8, 7].into(), port: 4444 };
        window.add(&Event { boot_ns: 2, tgid: 1, tid: 1, uid: 0, comm: Comm::new(), kind });
        let mut contributions = [0.0; FEATURES];
        contributions[schema::index("child_processes_spawned")] = 1.0;
        let raw = [Raw { name: "vae", score: 1.0, contributions: &contributions }];
        let mut vector = [0.0; FEATURES];
        vector[schema::index("child_processes_spawned")] = 0.1;
        assert_eq!(
            judge(&window, Some(&vector), &raw, &baseline(), &[]).summary,
            "opened the sensitive file /etc/shadow, started a shell (/bin/sh) and ran the system tool nc, each for \
             the first time; child processes started: 2.0, usually 0.0"
        );
    }

    #[test]
    fn what_was_learned_is_no_evidence() {
        let mut baseline = baseline();
        baseline.traits = shadow().traits().to_vec();
        let verdict = judge(&shadow(), None, &[], &baseline, &[]);
        assert!(verdict.score < 40.0 && verdict.reasons.is_empty(), "{verdict:?}");
    }

    #[test]
    fn a_strange_order_of_calls_is_told_by_name() {
        let mut baseline = baseline();
        let usual: Vec<f32> = (0..20_u8).map(|n| 1.0 + f32::from(n) / 20.0).collect();
        let detector = crate::calibration::DetectorCalibration::fit("order", 2.0, &usual);
        baseline.calibration.detectors.push(detector);
        let mut window = Window::new(1, 0);
        let gram = [0, 1, 59].iter().fold(sequence::EMPTY, |gram, call| sequence::roll(gram, *call));
        let sums = sequence::Sums { calls: 40, misses: 6, surprisal: 40 * 16 * 9 };
        window.syscalls.grams = Some(GramWindow { table: 1, sums, kinds: sums, strange: vec![gram] });
        let raw = [Raw { name: "order", score: 9.0, contributions: &[] }];
        let verdict = judge(&window, Some(&[0.0; FEATURES]), &raw, &baseline, &[]);
        assert_eq!(
            verdict.summary,
            "6 of 40 calls came in an order never seen while it was learned, e.g. read, write, execve"
        );
        let usual = [Raw { name: "order", score: 1.5, contributions: &[] }];
        assert!(judge(&window, None, &usual, &baseline, &[]).reasons.is_empty());
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
        let verdict = judge(&Window::new(1, 0), Some(&vector), &raw, &baseline(), &[]);
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
