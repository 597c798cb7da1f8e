//! Every variant of the simulator inside the services' units, and which alerts it gave.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::Stdio;
use std::time::Duration;

use agent::clock;
use agent::simulate::report::{Outcome, Report};
use agent::simulate::table::THREATS;
use serde_json::{Value, json};
use tests::Failed;
use tests::process::binary;

use crate::eye::{Eye, Seen};
use crate::services::Services;

/// After a variant, until its last window is judged.
const AFTER: Duration = Duration::from_millis(1500);

/// One run of a variant that was done.
struct Run {
    name: String,
    unit: String,
    detected: bool,
    technique_right: bool,
    /// From the start of the simulator to the first alert.
    seconds: Option<f64>,
}

#[derive(Default)]
pub(crate) struct Results(BTreeMap<String, Vec<Run>>);

/// Runs each variant in so many units, in turn, and looks so late after its start.
pub(crate) fn all(
    eye: &mut Eye,
    services: &Services,
    (units_each, late): (usize, Duration),
    only: &[String],
    results: &mut Results,
) -> Result<(), Failed> {
    let units = services.units();
    let simulator = binary("behaveguard")?.display().to_string();
    let mut turn = 0;
    for threat in
        THREATS.iter().filter(|threat| only.is_empty() || only.iter().any(|name| name == threat.name))
    {
        eprintln!("{}: {} variants", threat.name, threat.variants.len());
        for variant in threat.variants {
            for _ in 0..units_each.clamp(1, units.len()) {
                let unit = &units[turn % units.len()];
                turn += 1;
                if let Some(run) = one(eye, services, (unit, &simulator), (threat.name, variant.name), late)?
                {
                    if !run.detected || !run.technique_right {
                        eprintln!(
                            "  {} in {unit}: detected {}, technique {}",
                            run.name, run.detected, run.technique_right
                        );
                    }
                    results.0.entry(threat.name.to_owned()).or_default().push(run);
                }
            }
        }
    }
    Ok(())
}

fn one(
    eye: &mut Eye,
    services: &Services,
    (unit, simulator): (&str, &str),
    (threat, variant): (&str, &str),
    late: Duration,
) -> Result<Option<Run>, Failed> {
    let failed = |error| Failed::new(format!("simulating {threat}/{variant}"), error);
    eye.take_alerts();
    let left_out = eye.left_out()?;
    let begun_ns = clock::boot_ns();
    let mut child = services
        .inside(unit, simulator)
        .args(["simulate", threat, "--variant", variant, "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    std::thread::sleep(late);
    eye.watch_until(|| child.try_wait().map(|ended| ended.is_some()).map_err(failed))?;
    eye.watch_for(AFTER)?;
    let mut text = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut text).map_err(failed)?;
    }
    let report: Report = serde_json::from_str(text.lines().last().unwrap_or_default())
        .map_err(|error| Failed::new(format!("the report of {threat}/{variant}: {text}"), error))?;
    if report.outcome != Outcome::Done {
        eprintln!("  {}: {:?}", report.name(), report.outcome);
        return Ok(None);
    }
    let alerts = eye.take_alerts();
    // The stage's own namespaces and mounts are the simulator's, not the attack's.
    let stage = [Some(child.id()), report.ppid];
    let base = |technique: &str| technique.split('.').next().unwrap_or_default().to_owned();
    let wanted: Vec<String> = report.techniques.iter().map(|technique| base(technique)).collect();
    let right = |seen: &Seen| seen.alert.techniques.iter().any(|technique| wanted.contains(&base(technique)));
    let of_it: Vec<&Seen> = alerts
        .iter()
        .filter(|seen| seen.alert.program.unit == unit && !stage.contains(&Some(seen.alert.pid)))
        // A service's own process may have its say at the same time; a tool that the unit knows may be the attack's.
        .filter(|seen| {
            let newer = report.ppid.is_some_and(|stage| seen.alert.pid > stage);
            Some(seen.alert.pid) == report.pid || seen.alert.generation == 0 || newer && right(seen)
        })
        .collect();
    let technique_right = of_it.iter().any(|seen| right(seen));
    if !technique_right {
        // What was said instead tells why.
        let mine: Vec<&Seen> = alerts.iter().filter(|seen| seen.alert.program.unit == unit).collect();
        for Seen { alert, .. } in if of_it.is_empty() { &mine } else { &of_it } {
            let (pid, program, techniques) = (alert.pid, &alert.program, alert.techniques.join(" "));
            eprintln!("    process {pid} of {program}, {techniques}: {}", alert.summary);
        }
        let moved =
            eye.left_out()?.into_iter().zip(left_out).filter(|((_, after), (_, before))| after != before);
        let moved: Vec<String> =
            moved.map(|((name, after), (_, before))| format!("{name} {}", after - before)).collect();
        eprintln!(
            "    process {:?}, {} alerts of others; meanwhile: {}",
            report.pid,
            alerts.len() - mine.len(),
            moved.join(", ")
        );
    }
    #[allow(clippy::cast_precision_loss, reason = "seconds of one run")]
    let seconds = of_it.first().map(|seen| seen.boot_ns.saturating_sub(begun_ns) as f64 / 1e9);
    Ok(Some(Run {
        name: report.name(),
        unit: unit.to_owned(),
        detected: !of_it.is_empty(),
        technique_right,
        seconds,
    }))
}

impl Results {
    /// A line per threat, then what was missed.
    pub(crate) fn print(&self) {
        println!("{:24} {:>5} {:>10} {:>10} {:>8}", "threat", "runs", "detected", "technique", "p99, s");
        for (threat, runs) in &self.0 {
            let (detected, right) = (count(runs, |run| run.detected), count(runs, |run| run.technique_right));
            println!("{threat:24} {:>5} {detected:>10} {right:>10} {:>8.2}", runs.len(), p99(runs));
        }
        for run in self.0.values().flatten().filter(|run| !run.detected) {
            println!("missed: {} in {}", run.name, run.unit);
        }
    }

    /// As JSON.
    pub(crate) fn threats(&self) -> Value {
        let one = |runs: &Vec<Run>| {
            json!({
                "runs": runs.len(),
                "detected": count(runs, |run| run.detected),
                "technique_right": count(runs, |run| run.technique_right),
                "p99_s": (p99(runs) * 1000.0).round() / 1000.0,
            })
        };
        self.0
            .iter()
            .map(|(threat, runs)| (threat.clone(), one(runs)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

fn count(runs: &[Run], of: impl Fn(&Run) -> bool) -> usize {
    runs.iter().filter(|run| of(run)).count()
}

/// Of the runs that were detected.
fn p99(runs: &[Run]) -> f64 {
    let mut seconds: Vec<f64> = runs.iter().filter_map(|run| run.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let rank = (seconds.len() * 99).div_ceil(100);
    rank.checked_sub(1).and_then(|at| seconds.get(at)).copied().unwrap_or(0.0)
}
