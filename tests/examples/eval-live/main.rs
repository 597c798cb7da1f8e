//! Detection on live behaviour: `cargo xtask eval-live` builds everything and starts this.
//!
//! Real services run in units of their own under varied load. Their programs are learned, watched while nothing happens,
//! and then every variant of the simulator runs inside their units. The last line is one JSON object.

mod attack;
mod eye;
mod load;
mod services;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use models::policy::Severity;
use tests::Failed;

use attack::Results;
use eye::Eye;
use load::Loads;
use services::Services;

/// A window of these runs stands for one of the product's default length.
const WINDOW: Duration = Duration::from_secs(1);
const STANDS_FOR: Duration = Duration::from_secs(30);

/// Evaluates detection on live behaviour.
#[derive(Parser)]
struct Arguments {
    /// Seconds of learning; each window is a second.
    #[arg(long, default_value_t = 240)]
    learn: u64,
    /// Seconds in which nothing but changing load happens.
    #[arg(long, default_value_t = 240)]
    quiet: u64,
    /// Units in which each variant runs, in turn.
    #[arg(long, default_value_t = 2)]
    units: usize,
    /// Milliseconds after a variant's start before anything is looked at, as by an agent on a busy machine.
    #[arg(long, default_value_t = 0)]
    late: u64,
    /// Only this threat; may be repeated.
    #[arg(long)]
    threat: Vec<String>,
    /// Folder for a capture of the whole and the bundles that it needs, for `behaveguard replay`.
    #[arg(long)]
    record: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe evaluation failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failed("loading kernel programs needs root: run it with sudo".into()));
    }
    let dir = tempfile::tempdir().map_err(|error| Failed::new("making a temporary folder", error))?;
    let services = Services::start(dir.path())?;
    let mut eye = Eye::open(WINDOW, arguments.record.as_deref())?;
    let loads = Loads::start(&services, dir.path());

    eprintln!("learning {} services for {} s", services.units().len(), arguments.learn);
    eye.watch_for(Duration::from_secs(arguments.learn))?;
    let (learned, strangers) = eye.learn(&services.units())?;
    eprintln!("{learned} programs learned, {strangers} showed too few windows");

    eprintln!("quiet for {} s", arguments.quiet);
    eye.take_alerts();
    eye.watch_for(Duration::from_secs(arguments.quiet))?;
    let quiet = eye.take_alerts();
    let of_units: Vec<_> =
        quiet.iter().filter(|seen| services.units().contains(&seen.alert.program.unit)).collect();
    for seen in &of_units {
        eprintln!("  {} {}: {}", seen.alert.severity.as_str(), seen.alert.program, seen.alert.summary);
    }
    let false_high = of_units.iter().filter(|seen| seen.alert.severity >= Severity::High).count();
    let windows = Duration::from_secs(arguments.quiet).as_secs_f64() / WINDOW.as_secs_f64();
    let hours = windows * STANDS_FOR.as_secs_f64() / 3600.0;

    let mut results = Results::default();
    let late = Duration::from_millis(arguments.late);
    attack::all(&mut eye, &services, (arguments.units, late), &arguments.threat, &mut results)?;
    drop(loads);
    eye.finish()?;
    results.print();
    #[allow(clippy::cast_precision_loss, reason = "a few alerts")]
    let false_high_per_device_day = false_high as f64 / (hours / 24.0);
    println!(
        "\n{false_high} false HIGH or above and {} in all in {windows:.0} windows of {} s, which stand for {hours:.1} hours",
        of_units.len(),
        WINDOW.as_secs()
    );
    println!(
        "{}",
        serde_json::json!({
            "threats": results.threats(),
            "false_high_per_device_day": false_high_per_device_day,
            "hours": hours,
            "programs_learned": learned,
        })
    );
    Ok(())
}
