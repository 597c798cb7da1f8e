//! `cargo xtask bench agent`: what the shipped agent weighs and how fast it is, with a real kernel, broker and disk.
//!
//! The binaries beside this one are measured. Last line: one JSON object.

mod outbox;

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use serde_json::json;
use tests::Failed;
use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::gateway::Gateway;
use tests::process::binary;
use tests::scene::{self, Scene};
use tests::wait_for;

/// What the shipped agent weighs and how fast it is.
#[derive(Debug, Parser)]
struct Arguments {
    /// Attacks whose way to the broker is timed.
    #[arg(long, default_value_t = 100)]
    attacks: usize,
    /// Alerts that wait in the outbox.
    #[arg(long, default_value_t = 100_000)]
    waiting: u64,
    /// Seconds over which the idle agent's CPU time is taken.
    #[arg(long, default_value_t = 120)]
    idle: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe bench failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failed("loading kernel programs needs root: run it with sudo".into()));
    }
    let dir = tempfile::tempdir().map_err(|error| Failed::new("making a temporary folder", error))?;
    let agent = binary("behaveguard")?;
    let binary_bytes = fs::metadata(&agent).map_err(|error| Failed::new(agent.display(), error))?.len();
    eprintln!("{}: {binary_bytes} bytes", agent.display());

    let mut scene = Scene::learn(dir.path(), 50)?;
    let (rss_5, peak_5) = scene.memory(5)?;
    eprintln!("5 baselines: {rss_5:.1} MiB resident, {peak_5:.1} MiB at most");
    let (rss_50, peak_50) = scene.memory(50)?;
    eprintln!("50 baselines: {rss_50:.1} MiB resident, {peak_50:.1} MiB at most");
    let start_s = scene.start(50)?;
    eprintln!("{start_s:.2} s from its start to the first alert, with 50 baselines");
    let latency = scene.alerts(arguments.attacks)?;
    let alert_p99_s = quantile(&latency, 0.99);
    eprintln!(
        "alerts at the broker after {:.3} s (median), {alert_p99_s:.3} s (p99)",
        quantile(&latency, 0.5)
    );
    drop(scene);

    let idle = idle(&dir.path().join("idle"), arguments.idle)?;
    eprintln!(
        "20 quiet services: {:.2} % of a core, woken {:.2} times a second",
        idle.cpu_share * 100.0,
        idle.wake_ups_per_s
    );
    let replay = outbox::replay(&dir.path().join("outbox"), arguments.waiting)?;
    eprintln!(
        "{} alerts waited in {:.1} MiB; {:.0} a second reached the store",
        arguments.waiting,
        replay.bytes as f64 / 1_048_576.0,
        replay.per_s
    );
    println!(
        "{}",
        json!({
            "binary_bytes": binary_bytes,
            "rss_mib_5": rounded(rss_5),
            "rss_mib_50": rounded(rss_50),
            "rss_peak_mib_50": rounded(peak_50),
            "idle_cpu_share": (idle.cpu_share * 1e5).round() / 1e5,
            "idle_wake_ups_per_s": (idle.wake_ups_per_s * 100.0).round() / 100.0,
            "alert_p99_s": (alert_p99_s * 1e3).round() / 1e3,
            "replay_per_s": replay.per_s.round(),
            "start_s": (start_s * 1e3).round() / 1e3,
        })
    );
    Ok(())
}

fn rounded(mib: f64) -> f64 {
    (mib * 10.0).round() / 10.0
}

/// Of the sorted values, the one that this share does not exceed.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// What an agent takes that has nothing to tell.
struct Idle {
    /// Its CPU time as a share of one core.
    cpu_share: f64,
    /// How often its threads are woken.
    wake_ups_per_s: f64,
}

/// An agent with the default window over 20 services that do little.
fn idle(dir: &std::path::Path, seconds: u64) -> Result<Idle, Failed> {
    let fleet = Fleet::start(&dir.join("fleet"), 10_000)?;
    let services: Vec<Gateway> = (0..20)
        .map(|n| Gateway::start_every(&dir.join(n.to_string()), Duration::from_secs(5)))
        .collect::<Result<_, _>>()?;
    let config = format!("watch = [{:?}]\n", format!("{}/*", dir.display()));
    let mut agent = Agent::enroll_with(&dir.join("agent"), &config, &fleet, "idle")?;
    agent.run()?;
    wait_for("the link", Duration::from_secs(30), || {
        agent.check()?;
        Ok(agent.status().ok().filter(|status| status["online"] == true))
    })?;
    // Its start is over.
    std::thread::sleep(Duration::from_secs(5));
    let pid = agent.id()?;
    let (cpu, wake_ups, begun) = (scene::cpu_s(pid)?, scene::wake_ups(pid)?, SystemTime::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let passed = begun.elapsed().unwrap_or_default().as_secs_f64();
    let idle = Idle {
        cpu_share: (scene::cpu_s(pid)? - cpu) / passed,
        wake_ups_per_s: scene::wake_ups(pid)?.saturating_sub(wake_ups) as f64 / passed,
    };
    agent.stop()?;
    drop(services);
    Ok(idle)
}
