//! Scores of normal and attack traces to AUC, detection rates and false positives, each trace with a weight.

/// A scored trace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scored {
    /// Higher is odder.
    pub(crate) score: f64,
    /// An attack, or normal.
    pub(crate) attack: bool,
    /// How much it counts.
    pub(crate) weight: f64,
}

/// Resamples of the bootstrap.
const RESAMPLES: usize = 400;

/// The area under the ROC curve: the chance that an attack scores higher than a normal trace, ties half.
pub(crate) fn auc(scored: &[Scored]) -> f64 {
    let sorted = sorted(scored);
    area(&sorted, &vec![1; sorted.len()])
}

/// The 2.5 % and 97.5 % quantiles of the AUC over resamples of normal and of attack traces (Efron 1979).
pub(crate) fn interval(scored: &[Scored], seed: u64) -> (f64, f64) {
    let sorted = sorted(scored);
    let classes: [Vec<usize>; 2] =
        [false, true].map(|attack| (0..sorted.len()).filter(|at| sorted[*at].attack == attack).collect());
    let mut random = fastrand::Rng::with_seed(seed);
    let mut areas: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut times = vec![0_u32; sorted.len()];
            for class in classes.iter().filter(|class| !class.is_empty()) {
                (0..class.len()).for_each(|_| times[class[random.usize(..class.len())]] += 1);
            }
            area(&sorted, &times)
        })
        .collect();
    areas.sort_by(f64::total_cmp);
    (areas[RESAMPLES / 40], areas[RESAMPLES - 1 - RESAMPLES / 40])
}

/// The share of attacks above the lowest threshold that at most `rate` of the normal traces exceed.
pub(crate) fn detection(scored: &[Scored], rate: f64) -> f64 {
    let sorted = sorted(scored);
    let normal: f64 = sorted.iter().filter(|s| !s.attack).map(|s| s.weight).sum();
    let mut above = 0.0;
    let mut threshold = f64::NEG_INFINITY;
    for s in sorted.iter().rev().filter(|s| !s.attack) {
        above += s.weight;
        if above > rate * normal * (1.0 + 1e-12) {
            threshold = s.score;
            break;
        }
    }
    share(&sorted, true, |score| score > threshold)
}

/// The share of traces of one class whose score is so.
pub(crate) fn share(scored: &[Scored], attack: bool, is: impl Fn(f64) -> bool) -> f64 {
    let class = || scored.iter().filter(|s| s.attack == attack);
    let hit: f64 = class().filter(|s| is(s.score)).map(|s| s.weight).sum();
    // An empty sum is -0.
    (hit / class().map(|s| s.weight).sum::<f64>()).abs()
}

fn sorted(scored: &[Scored]) -> Vec<Scored> {
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| a.score.total_cmp(&b.score));
    sorted
}

fn area(sorted: &[Scored], times: &[u32]) -> f64 {
    let (mut below, mut attacks, mut sum) = (0.0, 0.0, 0.0);
    let mut at = 0;
    while at < sorted.len() {
        let (mut normal, mut attack) = (0.0, 0.0);
        let score = sorted[at].score;
        while at < sorted.len() && sorted[at].score == score {
            let weight = sorted[at].weight * f64::from(times[at]);
            if sorted[at].attack {
                attack += weight;
            } else {
                normal += weight;
            }
            at += 1;
        }
        sum += attack * (below + normal / 2.0);
        below += normal;
        attacks += attack;
    }
    sum / (below * attacks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(normal: &[f64], attacks: &[f64]) -> Vec<Scored> {
        let one = |attack| move |score: &f64| Scored { score: *score, attack, weight: 1.0 };
        normal.iter().map(one(false)).chain(attacks.iter().map(one(true))).collect()
    }

    #[test]
    fn area_counts_pairs_and_halves_ties() {
        assert_eq!(auc(&scored(&[1.0, 2.0], &[3.0])), 1.0);
        assert_eq!(auc(&scored(&[1.0, 3.0], &[3.0])), 0.75);
        let mut weighted = scored(&[1.0, 3.0], &[2.0]);
        weighted[1].weight = 3.0;
        assert_eq!(auc(&weighted), 0.25);
    }

    #[test]
    fn detection_holds_the_rate_it_is_given() {
        let normal: Vec<f64> = (0..100).map(f64::from).collect();
        let scored = scored(&normal, &[93.5, 94.5, 98.5, 200.0]);
        assert_eq!(detection(&scored, 0.05), 0.75);
        assert_eq!(detection(&scored, 0.01), 0.5);
        assert_eq!(detection(&scored, 0.0), 0.25);
    }

    #[test]
    fn the_interval_holds_the_area_and_is_the_same_for_a_seed() {
        let normal: Vec<f64> = (0..60).map(f64::from).collect();
        let attacks: Vec<f64> = (30..70).map(f64::from).collect();
        let scored = scored(&normal, &attacks);
        let (low, high) = interval(&scored, 1);
        assert!(low < auc(&scored) && auc(&scored) < high && high - low < 0.3, "{low} {high}");
        assert_eq!(interval(&scored, 1), (low, high));
    }
}
