//! `behaveguard-fleet`: runs the fleet server and makes enrolment tickets.
#![forbid(unsafe_code)]

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fleet_server::config::Config;
use fleet_server::device::DeviceId;
use fleet_server::ticket::{self, Ticket};
use fleet_server::{clock, server, store, trainer};
use models::chain::chain;

/// Exit code for a command line that cannot be understood, from sysexits(3).
const USAGE: u8 = 64;

/// The fleet side of BehaveGuard.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGINT or SIGTERM.
    Run {
        /// Folder for keys, certificates and the database; made when missing.
        #[arg(long)]
        state: PathBuf,
        /// TOML file; the other options win over it.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Where devices connect; port 0 takes a free one.
        #[arg(long)]
        mqtt: Option<SocketAddr>,
        /// Where people and enrolling devices connect.
        #[arg(long)]
        web: Option<SocketAddr>,
        /// Windows needed before a program's first baseline.
        #[arg(long)]
        learn_windows: Option<u32>,
    },
    /// Print one enrolment ticket for a device. The server must have been started once.
    Ticket {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// The device's name: 1 to 64 of a-z, 0-9 and -.
        #[arg(long)]
        device: String,
        /// How long it is good, e.g. 30m, 1h or 2d.
        #[arg(long, default_value = "1h", value_parser = seconds)]
        ttl: u64,
    },
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    // Everything this program writes is its owner's: keys, and a database that knows what every device does.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no mistakes and go to standard output.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Command::Run { state, config, mqtt, web, learn_windows } => {
            configure(config, mqtt, web, learn_windows).and_then(|config| run(&state, config))
        }
        Command::Ticket { state, device, ttl } => print_ticket(&state, &device, ttl),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("behaveguard-fleet: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn configure(
    file: Option<PathBuf>,
    mqtt: Option<SocketAddr>,
    web: Option<SocketAddr>,
    learn_windows: Option<u32>,
) -> Result<Config, Box<dyn Error>> {
    let mut config = match file {
        None => Config::default(),
        Some(path) => {
            let text =
                std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            Config::parse(&text).map_err(|problems| {
                let lines: Vec<_> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
                format!("{} has {} problems:{}", path.display(), problems.len(), lines.concat())
            })?
        }
    };
    config.mqtt = mqtt.unwrap_or(config.mqtt);
    config.web = web.unwrap_or(config.web);
    config.learn_windows = learn_windows.unwrap_or(config.learn_windows);
    config.windows_max = config.windows_max.max(config.learn_windows);
    Ok(config)
}

fn run(state: &std::path::Path, config: Config) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let running = server::start(state, config, Box::new(trainer::Training)).await?;
        let addresses = running.addresses();
        println!("behaveguard-fleet listens: mqtt {} web {}", addresses.mqtt, addresses.web_url);
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
        }
        log::info!("stopping");
        running.stop().await;
        Ok(())
    })
}

fn print_ticket(state: &std::path::Path, device: &str, ttl_s: u64) -> Result<(), Box<dyn Error>> {
    let device = DeviceId::parse(device)?;
    let addresses = server::addresses_of(state)
        .map_err(|error| format!("no server was started on {} yet: {error}", state.display()))?;
    let ca_pem = std::fs::read_to_string(state.join("ca.pem"))?;
    let ticket = Ticket { v: 1, url: addresses.web_url, secret: ticket::random_secret(), ca_pem };
    let connection = store::open_alone(state)?;
    let now = clock::unix_s();
    if !store::add_ticket(&connection, ticket::secret_hash(&ticket.secret), &device, now + ttl_s, now)? {
        return Err("too many tickets are open; wait for some to expire".into());
    }
    println!("{}", ticket.encode());
    Ok(())
}

fn seconds(text: &str) -> Result<u64, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
    let parsed = units
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*factor));
    parsed
        .filter(|ttl| (1..=30 * 86_400).contains(ttl))
        .ok_or("must be like 30m, 1h or 2d, at most 30d".into())
}
