//! `cargo xtask bench soak`: an agent that is killed again and again, and one that is left alone for long.
//!
//! Last line: one JSON object. Fails when an alert is missing or twice in the fleet's store.

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use serde_json::{Value, json};
use tests::Failed;
use tests::fleet::Fleet;
use tests::scene::{Scene, status_mib, wait_until_active};
use tests::storm::storm;

/// Services, each with a baseline of its own.
const SERVICES: usize = 20;

/// Kills an agent again and again, then leaves one alone for long.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often the agent is killed.
    #[arg(long, default_value_t = 500)]
    kills: usize,
    /// How long the other one runs, in windows of a second; its memory is looked at from a sixth of that on.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe soak failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failed("loading kernel programs needs root: run it with sudo".into()));
    }
    let dir = tempfile::tempdir().map_err(|error| Failed::new("making a temporary folder", error))?;
    let mut result = json!({});
    if arguments.kills > 0 {
        let aftermath = storm(&dir.path().join("storm"), arguments.kills, &mut |n| {
            if n % 50 == 0 {
                eprintln!("killed {n} times");
            }
        })?;
        eprintln!("{aftermath:?}");
        if aftermath.missing + aftermath.twice > 0 || aftermath.told == 0 {
            return Err(Failed(format!("alerts are missing or twice: {aftermath:?}")));
        }
        result["kills"] = arguments.kills.into();
        result["fleet_kills"] = aftermath.fleet_kills.into();
        result["told"] = aftermath.told.into();
        result["stored"] = aftermath.stored.into();
        result["missing"] = aftermath.missing.into();
        result["twice"] = aftermath.twice.into();
    }
    if arguments.minutes > 0 {
        alone(&dir.path().join("alone"), arguments.minutes, &mut result)?;
    }
    println!("{result}");
    Ok(())
}

/// Runs an agent over services that are attacked now and then, and looks what it holds.
fn alone(dir: &std::path::Path, minutes: u64, result: &mut Value) -> Result<(), Failed> {
    let fleet = Fleet::start(&dir.join("fleet"), 10_000)?;
    let mut scene = Scene::learn(dir, SERVICES)?;
    let mut agent = scene.agent(SERVICES, Some(&fleet))?;
    agent.run()?;
    wait_until_active(&mut agent, SERVICES)?;
    let id = agent.id()?;
    let begun = SystemTime::now();
    let (mut memory, mut descriptors) = (Vec::new(), Vec::new());
    let mut at = 0;
    while begun.elapsed().unwrap_or_default() < Duration::from_secs(60 * minutes) {
        std::thread::sleep(Duration::from_secs(2));
        agent.check()?;
        scene.attack(at)?;
        at += 1;
        if begun.elapsed().unwrap_or_default() > Duration::from_secs(10 * minutes) && at % 15 == 0 {
            memory.push(status_mib(id, "VmRSS:")?);
            let open =
                fs::read_dir(format!("/proc/{id}/fd")).map_err(|error| Failed::new("descriptors", error))?;
            descriptors.push(open.count());
            if memory.len() % 10 == 1 {
                eprintln!(
                    "{} s: {:.2} MiB, {} descriptors",
                    at * 2,
                    memory[memory.len() - 1],
                    descriptors[descriptors.len() - 1]
                );
            }
        }
    }
    let status = agent.status()?;
    agent.stop()?;
    let bounds = |values: &[f64]| {
        values.iter().fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(*value), high.max(*value)))
    };
    let (low, high) = bounds(&memory);
    result["minutes"] = minutes.into();
    result["rss_mib"] = json!([round(low), round(high)]);
    // The median of the last tenth against that of the first: what grows for good.
    result["rss_growth_mib"] = round(late(&memory) - early(&memory)).into();
    result["descriptors"] = json!([descriptors.iter().min(), descriptors.iter().max()]);
    let counters = status["heartbeat"]["counters"].as_array().cloned().unwrap_or_default();
    result["drops"] = lost(&counters);
    result["unexplained_drops"] = unexplained(&counters).into();
    Ok(())
}

fn round(mib: f64) -> f64 {
    (mib * 100.0).round() / 100.0
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn early(values: &[f64]) -> f64 {
    median(&values[..values.len().div_ceil(10)])
}

fn late(values: &[f64]) -> f64 {
    median(&values[values.len() - values.len().div_ceil(10)..])
}

/// Counters of something lost that are not zero.
fn lost(counters: &[Value]) -> Value {
    let words = ["damaged", "dropped", "refused", "failed", "overflow", "errors", "rejected", "throttled"];
    let lost = counters.iter().filter(|counter| {
        let name = counter[0].as_str().unwrap_or_default();
        counter[1] != 0 && words.iter().any(|word| name.contains(word))
    });
    lost.cloned().collect()
}

/// Records of the kernel that are neither received nor counted as lost.
fn unexplained(counters: &[Value]) -> i64 {
    let value = |name: &str| {
        let found = counters.iter().find(|counter| counter[0] == name);
        found.and_then(|counter| counter[1].as_i64()).unwrap_or_default()
    };
    let classes = counters
        .iter()
        .filter_map(|counter| counter[0].as_str()?.strip_prefix("kernel_")?.strip_suffix("_seen"));
    classes
        .map(|class| {
            let of = |what: &str| value(&format!("kernel_{class}_{what}"));
            let unseen = of("seen") - of("submitted") - of("dropped") - of("throttled");
            unseen.abs() + (of("submitted") - of("received")).max(0)
        })
        .sum()
}
