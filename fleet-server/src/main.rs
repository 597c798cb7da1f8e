//! `behaveguard-fleet`: runs the fleet server, and changes who may use it.
#![forbid(unsafe_code)]

mod builds;
mod commands;
mod data;
mod groups;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use fleet_server::cli::{Cli, Command};
use fleet_server::config::Config;
use fleet_server::{server, trainer};
use models::chain::chain;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// In the static build; see the note in Cargo.toml.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for a command line that cannot be understood, from sysexits(3).
const USAGE: u8 = 64;

/// Files that the server has open beside connections.
const OWN_FILES: u64 = 64;

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
        Command::Init { state } => commands::init(&state),
        Command::Broker { state, name, port, out } => commands::broker(&state, &name, port, &out),
        Command::Store(command) => data::run(command),
        Command::Build(command) => builds::run(command),
        Command::Token(command) => commands::token(command),
        Command::Device(command) => commands::device_command(command),
        Command::Group(command) => groups::run(command),
        Command::User(command) => commands::user_command(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("behaveguard-fleet: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Every connection is an open file, and the soft limit is meant for programs that use select(2).
fn raise_open_files(config: &Config) {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::warn!("raising the limit of open files: {error}");
    }
    let wanted = u64::from(config.mqtt_connections_max) + u64::from(config.web_connections_max) + OWN_FILES;
    if let Some(maximum) = limit.maximum.filter(|maximum| *maximum < wanted) {
        log::warn!(
            "only {maximum} files can be open, and {wanted} may be needed: raise LimitNOFILE= of the service"
        );
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
    // The authority's key and everybody's alerts are in memory: no core file is to hold them.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::warn!("a core file could show keys: {error}");
    }
    raise_open_files(&config);
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
