//! A verdict taken apart: every step from observed values to the score, each a sum of what is shown.
//!
//! A detector's parts and its `rest` add up to its raw output. The detectors' `share`s add up to the fused z, whose
//! p-value gives decades; the evidence's decades come on top, and the sum is `-log10 p`, which the score stands for.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::attack::techniques;
use crate::bundle::Manifest;
use crate::calibration::temper;
use crate::features::Vector;
use crate::novelty::{Kind, trait_hex};
use crate::schema::{self, NAMED, NAMED_BASE, Unit};
use crate::sequence::{GramWindow, MISS, STEPS_PER_BIT};
use crate::verdict::Raw;
use crate::window::Window;

/// Parts of one detector that are named at most; all others are its `rest`.
pub const PARTS_MAX: usize = 6;
/// Traits that are named at most; further ones are counted in `evidence_more`.
pub const EVIDENCE_MAX: usize = 16;

/// Everything that led to a score.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// In the order in which they spoke; none when a decisive event was judged before the window's end.
    pub detectors: Vec<Detector>,
    /// Sum of the detectors' shares; `None` when none spoke.
    pub fused_z: Option<f32>,
    /// What the fused z is worth: `-log10` of its conformal p-value within limits, see [`crate::calibration::temper`]; 0 while
    /// the baseline is found to be STALE.
    pub statistical_decades: f32,
    /// Worth of all evidence, also of what is not named.
    pub evidence_decades: f32,
    /// What the program never did while it was learned, most telling first.
    pub evidence: Vec<Evidence>,
    /// Traits not named, because there were more than [`EVIDENCE_MAX`].
    pub evidence_more: usize,
    /// Traits that the baseline does not hold either, and the operator expects.
    pub whitelisted: usize,
    /// Of windows like those learned, the share that is at least this odd, as far as the tail can be drawn out; 0 to 1.
    pub p_value: f64,
}

/// One detector's say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detector {
    /// As in [`crate::calibration::weight`].
    pub name: String,
    /// Not negative; larger is odder.
    pub raw: f32,
    /// Robust z against the calibration windows.
    pub z: f32,
    /// Weight in the fused z.
    pub weight: f32,
    /// What it adds to the fused z.
    pub share: f32,
    /// The largest terms of `raw`.
    pub parts: Vec<Part>,
    /// The sum of all other terms of `raw`.
    pub rest: f32,
}

/// One term of a detector's raw output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// A feature of the schema, or `orders_never_seen` and `orders_learned`.
    pub name: Cow<'static, str>,
    /// Of the next three, e.g. `%` or `bytes/s`.
    pub unit: Cow<'static, str>,
    /// In this window.
    pub observed: f32,
    /// Mean over the windows learned; `None` where the baseline does not hold it.
    pub usual: Option<f32>,
    /// 99 % quantile over the windows learned.
    pub high: Option<f32>,
    /// What it adds to the detector's raw output.
    pub contribution: f32,
}

/// Something that the program never did while it was learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// e.g. `first_shell`.
    pub name: Cow<'static, str>,
    /// Its kind and value, as baselines hold it.
    #[serde(with = "trait_hex")]
    pub trait_id: u64,
    /// Plain words.
    pub text: String,
    /// The layer that saw it.
    pub layer: Cow<'static, str>,
    /// ATT&CK id; empty where none is suggested.
    pub technique: Cow<'static, str>,
    /// What it is worth; traits of one kind share what the kind is worth.
    pub decades: f32,
    /// `CLOCK_BOOTTIME` at its first event, nanoseconds; `None` for what the kernel only counted in this window.
    pub first_boot_ns: Option<u64>,
}

/// Takes a verdict apart. `fresh` are the traits that the baseline does not hold, most telling first.
pub(crate) fn explain(
    window: &Window,
    vector: Option<&Vector>,
    raw: &[Raw<'_>],
    baseline: &Manifest,
    fresh: &[(u64, Kind)],
) -> Explanation {
    let calibration = &baseline.calibration;
    let known = |raw: &Raw<'_>| calibration.detectors.iter().find(|detector| detector.name == raw.name);
    let weights: f32 = raw.iter().filter_map(known).map(|detector| detector.weight).sum();
    let one = |raw: &Raw<'_>| {
        let detector = known(raw)?;
        let (parts, rest) = match (vector, window.syscalls.grams.as_ref()) {
            (Some(vector), _) if !raw.contributions.is_empty() => feature_parts(raw, vector, baseline),
            (_, Some(grams)) if raw.name == "order" => (order_parts(grams), 0.0),
            _ => (Vec::new(), raw.score),
        };
        Some(Detector {
            name: raw.name.to_owned(),
            raw: raw.score,
            z: detector.z(raw.score),
            weight: detector.weight,
            share: if weights > 0.0 { detector.pull(raw.score) / weights } else { 0.0 },
            parts,
            rest,
        })
    };
    let outputs: Vec<(&str, f32)> = raw.iter().map(|raw| (raw.name, raw.score)).collect();
    let fused_z = calibration.fuse(&outputs);
    let kinds: Vec<Kind> = fresh.iter().map(|(_, kind)| *kind).collect();
    let worth = calibration.news.by_kind(&kinds);
    let evidence_decades = worth.iter().map(|(_, decades)| decades).sum();
    let p_fused = fused_z.map_or(1.0, |fused| calibration.p_value(fused));
    Explanation {
        detectors: raw.iter().filter_map(one).collect(),
        fused_z,
        statistical_decades: temper(p_fused, evidence_decades),
        evidence_decades,
        evidence: fresh
            .iter()
            .take(EVIDENCE_MAX)
            .map(|found| evidence(window, &kinds, &worth, *found))
            .collect(),
        evidence_more: fresh.len().saturating_sub(EVIDENCE_MAX),
        whitelisted: 0,
        p_value: p_fused * 10_f64.powf(-f64::from(evidence_decades)),
    }
}

/// A feature's value in its unit, with the unit.
pub(crate) fn in_unit(index: usize, value: f32) -> (f32, &'static str) {
    if index < NAMED_BASE {
        return (value * 100.0, "% of calls");
    }
    let feature = NAMED[index - NAMED_BASE];
    match feature.unit {
        Unit::Share => (value * 100.0, "%"),
        Unit::Flag => (value, "0 or 1"),
        Unit::Count => (value * feature.cap, ""),
        Unit::PerSecond => (value * feature.cap, "a second"),
        Unit::BytesPerSecond => (value * feature.cap, "bytes a second"),
        Unit::Bytes => (value * feature.cap, "bytes"),
        Unit::Bits => (value * feature.cap, "bits a character"),
        Unit::Milliseconds => (value * feature.cap, "ms"),
    }
}

/// What the baseline holds about a feature in a sparse list: 0 where it is absent, `None` without any list.
pub(crate) fn learned(list: &[(u16, f32)], index: usize) -> Option<f32> {
    let found = list.iter().find(|(at, _)| usize::from(*at) == index).map(|(_, value)| *value);
    (!list.is_empty()).then(|| found.unwrap_or(0.0))
}

/// The largest terms by feature, and the sum of the others.
fn feature_parts(raw: &Raw<'_>, vector: &Vector, baseline: &Manifest) -> (Vec<Part>, f32) {
    let contributions = &raw.contributions[..raw.contributions.len().min(vector.len())];
    let named = largest(contributions, PARTS_MAX);
    let training = &baseline.training;
    let part = |index: &usize| {
        let shown = |value: f32| in_unit(*index, value).0;
        Part {
            name: schema::name(*index).into(),
            unit: in_unit(*index, 0.0).1.into(),
            observed: shown(vector[*index]),
            usual: learned(&training.means, *index).map(shown),
            high: learned(&training.highs, *index).map(shown),
            contribution: raw.contributions[*index],
        }
    };
    let others = contributions.iter().enumerate().filter(|(index, _)| !named.contains(index));
    let rest = others.map(|(_, contribution)| contribution).sum();
    (named.iter().filter(|index| raw.contributions[**index] > 0.0).map(part).collect(), rest)
}

/// Where the so many largest values are, the largest first. One pass over them: this is asked for each window that is judged, and a
/// standard library that is built for size selects and sorts slowly.
pub(crate) fn largest(values: &[f32], most: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::with_capacity(most + 1);
    for (at, value) in values.iter().enumerate() {
        let place =
            found.iter().rposition(|known| values[*known].total_cmp(value).is_ge()).map_or(0, |at| at + 1);
        if place < most {
            found.insert(place, at);
            found.truncate(most);
        }
    }
    found
}

/// Mean surprisal of kinds of grams: those that the table does not hold, each worth [`MISS`], and those that it holds.
fn order_parts(grams: &GramWindow) -> Vec<Part> {
    let sums = &grams.kinds;
    let missed = (sums.misses * u64::from(MISS)).min(sums.surprisal);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "shown to people")]
    let share = |n: u64| (n as f64 * 100.0 / sums.calls.max(1) as f64) as f32;
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "shown to people")]
    let bits = |steps: u64| (steps as f64 / STEPS_PER_BIT / sums.calls.max(1) as f64) as f32;
    let part = |name: &'static str, kinds, steps| Part {
        name: name.into(),
        unit: "% of the orders".into(),
        observed: share(kinds),
        usual: None,
        high: None,
        contribution: bits(steps),
    };
    vec![
        part("orders_never_seen", sums.misses, missed),
        part("orders_learned", sums.calls.saturating_sub(sums.misses), sums.surprisal - missed),
    ]
}

/// One trait; `worth` is what all of its kind are worth together.
fn evidence(window: &Window, kinds: &[Kind], worth: &[(Kind, f32)], (id, kind): (u64, Kind)) -> Evidence {
    let of_kind = kinds.iter().filter(|other| **other == kind).count();
    let worth = worth.iter().find(|(other, _)| *other == kind);
    #[allow(clippy::cast_precision_loss, reason = "a window holds 128 traits at most")]
    let decades = worth.map_or(0.0, |(_, decades)| *decades) / of_kind.max(1) as f32;
    let value = window.text(id).unwrap_or("something");
    Evidence {
        name: kind.name().into(),
        trait_id: id,
        text: kind.sentence(value),
        layer: kind.layer().as_str().into(),
        technique: techniques(kind, value).first().copied().unwrap_or_default().into(),
        decades,
        first_boot_ns: window.first_ns(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::TrainingFacts;
    use crate::calibration::{Calibration, DetectorCalibration, News, score_of};
    use crate::event::{Comm, Event, EventKind, PathText};
    use crate::program::ProgramId;
    use crate::schema::FEATURES;
    use crate::sequence::Sums;
    use crate::verdict::judge;

    fn baseline() -> Manifest {
        let detectors = ["vae", "order"]
            .map(|name| DetectorCalibration::fit(name, 2.0, &[0.5, 1.0, 1.5, 2.0]))
            .into_iter()
            .collect();
        let calibration = Calibration { detectors, fused: vec![], news: News::default() };
        Manifest {
            calibration: calibration.with_fused((0..20_u8).map(|n| f32::from(n) / 10.0)),
            training: TrainingFacts {
                means: vec![(0, 0.25), (385, 0.02)],
                highs: vec![(385, 0.1)],
                ..TrainingFacts::default()
            },
            ..Manifest::new(ProgramId { unit: "-".into(), exe: "/x".into(), script: None }, 1, 0..1)
        }
    }

    #[test]
    fn every_block_adds_up_to_the_number_that_it_explains() {
        let mut window = Window::new(1, 0);
        for (boot_ns, path) in [(7, "/etc/shadow"), (9, "/etc/gshadow")] {
            let kind = EventKind::Open { path: PathText::try_from(path).unwrap(), flags: 0, sensitive: true };
            window.add(&Event { boot_ns, tgid: 1, tid: 1, uid: 0, comm: Comm::new(), kind });
        }
        window.program_started("/bin/sh", "");
        let kinds = Sums { calls: 40, misses: 3, surprisal: 3 * u64::from(MISS) + 37 * 20 };
        let sums = Sums { calls: 900, misses: 3, surprisal: 3 * u64::from(MISS) + 897 };
        window.syscalls.grams = Some(GramWindow { table: 1, sums, kinds, strange: vec![] });
        let contributions: Vec<f32> = (0..FEATURES).map(|at| (at % 13) as f32 * 0.001).collect();
        let raw = [
            Raw { name: "vae", score: contributions.iter().sum(), contributions: &contributions },
            Raw { name: "order", score: kinds.bits().unwrap(), contributions: &[] },
        ];
        let verdict = judge(&window, Some(&[0.1; FEATURES]), &raw, &baseline(), &[]);
        let why = verdict.explanation;
        for (detector, raw) in why.detectors.iter().zip(&raw) {
            let sum: f32 = detector.parts.iter().map(|part| part.contribution).sum::<f32>() + detector.rest;
            assert!((sum - raw.score).abs() < 1e-4 * raw.score, "{}: {sum} of {}", raw.name, raw.score);
        }
        assert_eq!(why.detectors[0].parts.len(), PARTS_MAX);
        let shares: f32 = why.detectors.iter().map(|detector| detector.share).sum();
        assert!((shares - why.fused_z.unwrap()).abs() < 1e-5);
        let decades: f32 = why.evidence.iter().map(|evidence| evidence.decades).sum();
        assert!((decades - why.evidence_decades).abs() < 1e-4, "{why:?}");
        let total = why.statistical_decades + why.evidence_decades;
        assert!((score_of(total) - verdict.score).abs() < 1e-3);
        assert!(why.p_value <= 10_f64.powf(-f64::from(total)) * 1.001, "drawn out further than it counts");
        let first = |name: &str| why.evidence.iter().find(|evidence| evidence.name == name).unwrap();
        assert_eq!(first("first_sensitive_file").first_boot_ns, Some(7));
    }

    #[test]
    fn a_part_has_its_unit_and_what_was_learned_of_it() {
        let mut contributions = [0.0; FEATURES];
        contributions[385] = 1.0;
        let raw = [Raw { name: "vae", score: 1.0, contributions: &contributions }];
        let mut vector = [0.0; FEATURES];
        vector[385] = 0.5;
        let why = judge(&Window::new(1, 0), Some(&vector), &raw, &baseline(), &[]).explanation;
        let part = &why.detectors[0].parts[0];
        assert_eq!((&*part.name, part.observed), ("unique_remote_ips", 25.0));
        assert_eq!((part.usual, part.high), (Some(1.0), Some(5.0)));
        assert_eq!(why.detectors[0].parts.len(), 1, "what adds nothing is not shown");
    }

    #[test]
    fn the_largest_come_first_and_of_equal_ones_the_first() {
        let values = [0.5, 2.0, f32::NEG_INFINITY, 2.0, 0.5, 1.0];
        assert_eq!(largest(&values, 3), [1, 3, 5]);
        assert_eq!(largest(&values, 9), [1, 3, 5, 0, 4, 2]);
        assert_eq!((largest(&values, 0), largest(&[], 3)), (vec![], vec![]));
    }

    #[test]
    fn more_evidence_than_is_named_is_counted() {
        let mut window = Window::new(1, 0);
        (0..20).for_each(|n| window.program_started(&format!("/opt/{n}"), ""));
        let why = judge(&window, None, &[], &baseline(), &[]).explanation;
        assert_eq!((why.evidence.len(), why.evidence_more), (EVIDENCE_MAX, 4));
    }
}
