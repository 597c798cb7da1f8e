//! The demo: `cargo xtask demo` builds everything and starts this.
#![forbid(unsafe_code)]

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use clap::Parser;
use serde_json::Value;
use tests::Failed;
use tests::gateway::Gateway;
use tests::story::{Step, Story, counter};

/// Windows that are learned: a second each.
const LEARN_WINDOWS: u32 = 80;

/// How long the fleet server is away with `--outage`.
const AWAY: Duration = Duration::from_secs(20);

/// Learns a small service from real kernel events, attacks it, and shows the alert.
#[derive(Parser)]
struct Arguments {
    /// End after the alert: with 0 when it was read back from the fleet server's API.
    #[arg(long)]
    once: bool,
    /// Kill the fleet server between attack and delivery, and start it again 20 s later.
    #[arg(long)]
    outage: bool,
    /// State folder; by default a new one below the system's temporary folder.
    #[arg(long)]
    state: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failed("loading kernel programs needs root: run it with sudo".into()));
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second Ctrl-C ends the demo at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(|error| Failed::new("waiting for Ctrl-C", error))?;
    }
    let state = match &arguments.state {
        Some(state) => state.clone(),
        None => tempfile::Builder::new()
            .prefix("behaveguard-demo-")
            .tempdir()
            .map_err(|error| Failed::new("making a state folder", error))?
            .keep(),
    };
    println!("state folder: {} (keys, database, logs; remove it when you are done)", state.display());
    let result = story(arguments, &state, &stop);
    if result.is_err() && stop.load(Relaxed) {
        println!("\nstopped");
        return if arguments.once { Err(Failed("stopped before the alert".into())) } else { Ok(()) };
    }
    result
}

fn story(arguments: &Arguments, state: &Path, stop: &AtomicBool) -> Result<(), Failed> {
    println!("1. starting behaveguard-fleet, enrolling this host, starting behaveguard and a small service");
    let mut story = Story::start(state, LEARN_WINDOWS)?;
    let service = Gateway::executable(&state.join("gateway"));
    println!("   service: {} (process {})", service.display(), story.gateway.id());
    println!("2. learning what it normally does, in windows of one second, from kernel events");
    let mut bar = Bar::default();
    let learned = story.learn(LEARN_WINDOWS, |step| {
        if !stop.load(Relaxed) {
            bar.show(&step);
        }
    });
    bar.end();
    if stop.load(Relaxed) {
        return Err(Failed("stopped".into()));
    }
    let medium = learned?;
    println!(
        "   baseline active, {} windows judged: none HIGH, {medium} MEDIUM (promised: one in a hundred)",
        counter(&story.agent.status()?, "windows_judged")
    );
    println!("3. attack from inside the service: reads /etc/shadow, starts a shell, connects to port 4444");
    let alerts = if arguments.outage {
        println!(
            "   the fleet server is killed before the alert reaches it, and is back in {} s",
            AWAY.as_secs()
        );
        story.attack_during_outage(AWAY)?
    } else {
        story.attack()?
    };
    println!("4. {} alerts, read back from the fleet server's API, each there once:", alerts.len());
    alerts.iter().for_each(show_alert);
    show_costs(&story.agent.status()?);
    println!("dashboard: {}/#token={}", story.fleet.url()?, story.fleet.token()?);
    println!("           (its certificate is signed by {})", state.join("fleet/ca.pem").display());
    if !arguments.once {
        println!("everything stays up until Ctrl-C; logs are in {}", state.display());
        while !stop.load(Relaxed) {
            story.agent.check()?;
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    story.stop()?;
    println!("all parts have ended; left behind: {}", state.display());
    Ok(())
}

fn show_alert(alert: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let techniques: Vec<_> = alert["techniques"].as_array().into_iter().flatten().map(text).collect();
    println!();
    println!(
        "   {} {:.0} of 100   ATT&CK {}",
        text(&alert["severity"]),
        alert["score"].as_f64().unwrap_or(0.0),
        techniques.join(" ")
    );
    println!("   {} (process {})", text(&alert["program"]["text"]), alert["pid"]);
    for reason in alert["reasons"].as_array().into_iter().flatten() {
        println!("     {:8} {}", text(&reason["layer"]), text(&reason["text"]));
    }
    let detectors = alert["detectors"].as_array().into_iter().flatten();
    let scores: Vec<_> =
        detectors.map(|d| format!("{} {:.1}", text(&d["name"]), d["z"].as_f64().unwrap_or(0.0))).collect();
    println!("     detectors, robust z: {}", scores.join(", "));
}

fn show_costs(status: &Value) {
    let beat = &status["heartbeat"];
    let number = |key: &str| beat[key].as_u64().unwrap_or(0);
    println!();
    println!(
        "agent: {:.1} MiB resident, {:.2} % of one CPU over {} s",
        number("rss_bytes") as f64 / 1_048_576.0,
        number("cpu_ms") as f64 * 100.0 / number("uptime_ms").max(1) as f64,
        number("uptime_ms") / 1000
    );
    let counters = beat["counters"].as_array().into_iter().flatten();
    for class in
        counters.filter_map(|counter| counter[0].as_str()?.strip_prefix("kernel_")?.strip_suffix("_seen"))
    {
        let of = |what: &str| counter(status, &format!("kernel_{class}_{what}"));
        if of("seen") > 0 {
            println!(
                "       {class:13} seen {} = submitted {} + dropped {} + throttled {}",
                of("seen"),
                of("submitted"),
                of("dropped"),
                of("throttled")
            );
        }
    }
}

/// A progress bar on a terminal, a line now and then elsewhere.
#[derive(Default)]
struct Bar {
    said: String,
    drawn: bool,
}

impl Bar {
    fn show(&mut self, step: &Step) {
        let (name, done, all) = match step {
            Step::Learning(done, all) => ("learning", *done, *all),
            Step::Training => ("training, signing, delivering", 1, 1),
            Step::Quiet(done, all) => ("judging normal windows", *done, *all),
        };
        if std::io::stdout().is_terminal() {
            let full = usize::try_from(done * 40 / all.max(1)).unwrap_or(0).min(40);
            print!("\r   [{}{}] {done:3}/{all:3} {name:32}", "#".repeat(full), "-".repeat(40 - full));
            let _ = std::io::stdout().flush();
            self.drawn = true;
            return;
        }
        // A line each quarter is enough for a log.
        let line = format!("   {name} {} of {all}", done / all.div_ceil(4).max(1) * all.div_ceil(4));
        if line != self.said {
            println!("{line}");
            self.said = line;
        }
    }

    fn end(&mut self) {
        if self.drawn {
            println!();
        }
    }
}
