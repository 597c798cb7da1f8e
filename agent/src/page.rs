//! `behaveguard baseline show`: what a baseline holds, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use models::bundle::Manifest;
use models::novelty::Kind;
use models::program::{ProgramId, hex};
use models::schema;
use serde::Serialize;

/// Features shown by name; the others are counted.
const FEATURES_SHOWN: usize = 8;

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Page {
    program: ProgramId,
    /// `fleet` or `device`.
    made_by: &'static str,
    generation: u64,
    schema: u32,
    trained_unix_s: u64,
    valid_unix_s: [u64; 2],
    /// Used to fit, for the residual variance, and for calibration.
    windows: [u32; 3],
    parts: Vec<Part>,
    detectors: Vec<Detector>,
    /// Fused z of the calibration windows: median, 95 % quantile, largest; absent without any.
    fused_z: Option<[f32; 3]>,
    /// Acts that are no news, by kind.
    acts: BTreeMap<&'static str, usize>,
    /// Windows of the later part of learning that brought news of a kind, and of how many.
    news: BTreeMap<&'static str, u32>,
    news_windows: u32,
    /// The largest means first.
    usual: Vec<Usual>,
    /// Features that moved but are not named here.
    usual_more: usize,
}

#[derive(Debug, Serialize)]
struct Part {
    name: String,
    bytes: u32,
    sha256: String,
}

#[derive(Debug, Serialize)]
struct Detector {
    name: String,
    weight: f32,
}

/// A feature, 0 to 1 as the models see it.
#[derive(Debug, Serialize)]
struct Usual {
    name: String,
    mean: f32,
    /// 99 % quantile.
    high: f32,
}

impl Page {
    pub(crate) fn of(made_by: &'static str, manifest: &Manifest) -> Self {
        let (training, calibration) = (&manifest.training, &manifest.calibration);
        let fused = &calibration.fused;
        let quantile =
            |percent: usize| fused.get((fused.len() * percent / 100).min(fused.len() - 1)).copied();
        let mut acts = BTreeMap::new();
        for kind in manifest.traits.iter().filter_map(|id| Kind::of(*id)) {
            *acts.entry(act(kind)).or_insert(0) += 1;
        }
        let kinds = |(kind, count): &(u8, u32)| Some((act(Kind::of(u64::from(*kind) << 56)?), *count));
        let mut usual: Vec<Usual> = training
            .means
            .iter()
            .map(|(at, mean)| Usual {
                name: schema::name(usize::from(*at)),
                mean: *mean,
                high: training.highs.iter().find(|(known, _)| known == at).map_or(0.0, |(_, high)| *high),
            })
            .collect();
        usual.sort_by(|a, b| b.mean.total_cmp(&a.mean));
        let usual_more = usual.len().saturating_sub(FEATURES_SHOWN);
        usual.truncate(FEATURES_SHOWN);
        Self {
            program: manifest.program.clone(),
            made_by,
            generation: manifest.generation,
            schema: manifest.schema,
            trained_unix_s: training.trained_unix_s,
            valid_unix_s: [manifest.not_before_unix_s, manifest.expires_unix_s],
            windows: training.windows,
            parts: manifest
                .parts
                .iter()
                .map(|part| Part { name: part.name.clone(), bytes: part.size, sha256: hex(&part.sha256) })
                .collect(),
            detectors: calibration
                .detectors
                .iter()
                .map(|detector| Detector { name: detector.name.clone(), weight: detector.weight })
                .collect(),
            fused_z: (!fused.is_empty())
                .then(|| [50, 95, 100].map(|percent| quantile(percent).unwrap_or(0.0))),
            acts,
            news: calibration.news.counts.iter().filter_map(kinds).collect(),
            news_windows: calibration.news.windows,
            usual,
            usual_more,
        }
    }
}

/// A kind of act without the word that makes it evidence.
fn act(kind: Kind) -> &'static str {
    kind.name().strip_prefix("first_").unwrap_or(kind.name())
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [fit, variance, calibration] = self.windows;
        writeln!(
            f,
            "{}, generation {} by the {}, schema {}",
            self.program, self.generation, self.made_by, self.schema
        )?;
        writeln!(
            f,
            "learned from {fit} + {variance} windows, calibrated on {calibration}; trained at {} and valid from {} to {} \
             (seconds since 1970)",
            self.trained_unix_s, self.valid_unix_s[0], self.valid_unix_s[1]
        )?;
        for part in &self.parts {
            writeln!(f, "part {:16} {:>9} bytes, SHA-256 {}", part.name, part.bytes, part.sha256)?;
        }
        for detector in &self.detectors {
            writeln!(f, "detector {:12} weight {}", detector.name, detector.weight)?;
        }
        if let Some([median, high, largest]) = self.fused_z {
            writeln!(f, "fused z of calibration: median {median:.2}, 95 % {high:.2}, largest {largest:.2}")?;
        }
        for (act, count) in &self.acts {
            let news = self.news.get(act).copied().unwrap_or(0);
            let more = if news > 0 {
                format!(", new ones in {news} of the last {} windows", self.news_windows)
            } else {
                String::new()
            };
            writeln!(f, "known {act}: {count}{more}")?;
        }
        for usual in &self.usual {
            writeln!(f, "usual {}: mean {:.3}, 99 % {:.3}", usual.name, usual.mean, usual.high)?;
        }
        if self.usual_more > 0 {
            writeln!(f, "and {} more features", self.usual_more)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::bundle::TrainingFacts;
    use models::calibration::{Calibration, News};
    use models::novelty::trait_id;

    #[test]
    fn a_page_tells_what_the_manifest_holds() {
        let program = ProgramId { unit: "gw.service".into(), exe: "/usr/bin/gw".into(), script: None };
        let news = News { windows: 32, counts: vec![(Kind::Port as u8, 2)] };
        let manifest = Manifest {
            calibration: Calibration { news, ..Calibration::default() }
                .with_fused((0..100_u8).map(f32::from)),
            traits: vec![
                trait_id(Kind::Exec, "/bin/a"),
                trait_id(Kind::Exec, "/bin/b"),
                trait_id(Kind::Port, "443"),
            ],
            training: TrainingFacts {
                windows: [48, 16, 16],
                means: (0..20_u16).map(|at| (at, f32::from(at) / 100.0)).collect(),
                highs: vec![(19, 0.5)],
                ..TrainingFacts::default()
            },
            ..Manifest::new(program.clone(), 3, 5..9)
        };
        let text = Page::of("fleet", &manifest).to_string();
        for line in [
            "generation 3 by the fleet",
            "learned from 48 + 16 windows, calibrated on 16",
            "valid from 5 to 9",
            "median 50.00, 95 % 95.00, largest 99.00",
            "known program: 2\n",
            "known port: 1, new ones in 2 of the last 32 windows",
            "mean 0.190, 99 % 0.500",
            "and 12 more features",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        let empty = Page::of("device", &Manifest::new(program, 1, 0..1));
        assert!(empty.fused_z.is_none() && !empty.to_string().contains("fused"));
    }
}
