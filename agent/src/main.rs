//! `behaveguard`: sets up, enrols, runs and asks the agent.

use std::error::Error;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent::config::{self, Config};
use agent::{control, doctor, enroll, service, simulate, vitals};
use clap::{Parser, Subcommand};
use models::chain::chain;
use models::policy::Severity;

/// Exit code for a command line that cannot be understood, from sysexits(3).
const USAGE: u8 = 64;

/// Behavioural anomaly detection for this gateway.
#[derive(Debug, Parser)]
#[command(name = "behaveguard", version)]
struct Cli {
    /// Configuration file; without it and without the default file, the defaults apply.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// State folder, instead of the configured one.
    #[arg(long, global = true)]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a configuration file with every key and its default.
    Init {
        /// Show it instead of writing it.
        #[arg(long)]
        print: bool,
    },
    /// Join a fleet with a ticket of its server.
    Enroll {
        /// File that holds the ticket; `-` or nothing reads it from standard input.
        #[arg(long, default_value = "-")]
        ticket: PathBuf,
        /// This device's name; by default made from the host name.
        #[arg(long)]
        device: Option<String>,
        /// Replace an identity that is there.
        #[arg(long)]
        force: bool,
    },
    /// Watch this machine until SIGINT or SIGTERM.
    Run,
    /// Show what this kernel lets the agent see, and what its maps cost.
    Doctor {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show how the running agent is.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what the running agent found lately.
    Alerts {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Only those of this severity or above: MEDIUM, HIGH or CRITICAL.
        #[arg(long, value_parser = severity, default_value = "MEDIUM")]
        severity: Severity,
        /// Only those younger than this, e.g. 1h.
        #[arg(long, value_parser = duration)]
        last: Option<std::time::Duration>,
    },
    /// Enact attacks without harm, to see whether an alarm works.
    Simulate(simulate::Options),
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no mistakes and go to standard output.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if let Command::Simulate(options) = &cli.command {
        return simulate::run(options);
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("behaveguard: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Box<dyn Error>> {
    if let Command::Init { print } = cli.command {
        return init(cli.config.as_deref().unwrap_or(Path::new(config::DEFAULT_PATH)), print);
    }
    if let Command::Doctor { json } = cli.command {
        let findings = doctor::examine()?;
        if json {
            println!("{}", serde_json::to_string_pretty(&findings)?);
        } else {
            print!("{}", findings.table());
        }
        return Ok(());
    }
    let mut config = load(cli.config.as_deref())?;
    if let Some(state) = cli.state {
        config.state = state;
    }
    match cli.command {
        Command::Init { .. } | Command::Doctor { .. } | Command::Simulate(_) => {}
        Command::Enroll { ticket, device, force } => {
            let device = device.unwrap_or_else(|| enroll::device_name(&vitals::host_name()));
            let identity = enroll::enroll(&config.state, &read_ticket(&ticket)?, &device, force)?;
            println!("enrolled as {} at {}:{}", identity.device, identity.host, identity.port);
        }
        Command::Run => service::run(config)?,
        Command::Status { json } => show_status(&control::status(&config.state)?, json)?,
        Command::Alerts { json, severity, last } => {
            let since = last.map_or(0, |last| {
                agent::clock::now()
                    .unix_ms
                    .saturating_sub(u64::try_from(last.as_millis()).unwrap_or(u64::MAX))
            });
            let mut alerts = control::alerts(&config.state)?;
            alerts.retain(|alert| alert.severity >= severity && alert.unix_ms >= since);
            if json {
                println!("{}", serde_json::to_string_pretty(&alerts)?);
                return Ok(());
            }
            for alert in &alerts {
                println!(
                    "{} {:.0}  {} (process {})",
                    alert.severity.as_str(),
                    alert.score,
                    alert.program,
                    alert.pid
                );
                println!("    {}  {}", alert.techniques.join(" "), alert.summary);
            }
            println!("{} alerts", alerts.len());
        }
    }
    Ok(())
}

fn load(path: Option<&Path>) -> Result<Config, Box<dyn Error>> {
    let default = Path::new(config::DEFAULT_PATH);
    let path = match path {
        Some(path) => path,
        None if default.exists() => default,
        None => return Ok(Config::default()),
    };
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Config::parse(&text).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
        format!("{} has {} problems:{}", path.display(), problems.len(), lines.concat()).into()
    })
}

fn init(path: &Path, print: bool) -> Result<(), Box<dyn Error>> {
    if print {
        print!("{}", config::TEMPLATE);
        return Ok(());
    }
    if path.exists() {
        return Err(format!("{} is there already; edit it, or remove it first", path.display()).into());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    std::fs::write(path, config::TEMPLATE).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("wrote {}; next: behaveguard enroll", path.display());
    Ok(())
}

fn read_ticket(path: &Path) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(64 * 1024).read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(text)
}

fn show_status(status: &control::Status, json: bool) -> Result<(), Box<dyn Error>> {
    if json {
        println!("{}", serde_json::to_string_pretty(status)?);
        return Ok(());
    }
    let beat = &status.heartbeat;
    let link = if status.online { "linked to" } else { "no link to" };
    println!("{} {link} {}, {} messages wait", status.device, status.fleet, beat.outbox_waiting);
    let share = beat.cpu_ms as f64 * 100.0 / beat.uptime_ms.max(1) as f64;
    println!("{} MiB, {share:.1} % CPU, up {} s", beat.rss_bytes / 1_048_576, beat.uptime_ms / 1000);
    for layer in &beat.layers {
        let backend = if layer.backend.is_empty() { "not seen" } else { &layer.backend };
        println!("layer {:16} {backend}", layer.layer);
        for (backend, reason) in &layer.failed {
            println!("                not {backend}: {reason}");
        }
        let unseen = agent::probe::unseen(layer);
        if !unseen.is_empty() {
            println!("                less is seen: {unseen}");
        }
    }
    for program in &beat.programs {
        println!("{:8} generation {} {}", program.state, program.generation, program.program);
    }
    let lost = ["damaged", "dropped", "refused", "failed", "limited", "overflow", "errors", "rejected"];
    for (name, value) in &beat.counters {
        if *value > 0 && lost.iter().any(|word| name.contains(word)) {
            println!("{name} {value}");
        }
    }
    Ok(())
}

fn severity(text: &str) -> Result<Severity, String> {
    let all = [Severity::Medium, Severity::High, Severity::Critical];
    let found = all.into_iter().find(|severity| severity.as_str().eq_ignore_ascii_case(text));
    found.ok_or_else(|| "must be MEDIUM, HIGH or CRITICAL".into())
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    config::parse_duration(text).ok_or_else(|| "must be like 30m, 1h or 2d".into())
}
