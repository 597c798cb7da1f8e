//! `behaveguard`: sets up, enrols, runs and asks the agent.

mod exceptions;
mod page;
mod report;
mod shelf;
#[cfg(feature = "train")]
mod teach;

use std::error::Error;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent::cli::{Cli, Command, ConfigCommand, ContainCommand, QuarantineCommand};
use agent::config::{self, Config, Found, Overlay, Source, SourceError};
use agent::enroll::EnrollError;
use agent::explanations::Named;
use agent::settings::Origin;
use agent::updates::{self, Updates};
use agent::{control, doctor, enroll, logging, record, service, settings, simulate, vitals};
use clap::{CommandFactory as _, Parser as _};
use models::bundle::{self, Keyring, Verified};
use models::chain::chain;

/// Exit code for a command line that cannot be understood, from sysexits(3).
const USAGE: u8 = 64;
/// Exit code for a configuration with which starting again makes no sense, from the same list.
const CONFIGURATION: u8 = 78;

fn main() -> ExitCode {
    logging::start();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no mistakes and go to standard output.
            let _ = error.print();
            return match error.use_stderr() {
                true if updates::was_handed_over() => ExitCode::FAILURE,
                true => ExitCode::from(USAGE),
                false => ExitCode::SUCCESS,
            };
        }
    };
    if !matches!(cli.command, Command::Run | Command::Simulate(_)) {
        end_with_the_reader();
    }
    if let Command::Simulate(options) = &cli.command {
        return simulate::run(options);
    }
    let is_service = matches!(cli.command, Command::Run);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("behaveguard: {}", told(error.as_ref()));
            // An updated agent that cannot start is to be started again until its package's takes over.
            if is_service && needs_its_operator(error.as_ref()) && !updates::was_handed_over() {
                ExitCode::from(CONFIGURATION)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// What went wrong, and the usual way out where it is known.
fn told(error: &(dyn Error + 'static)) -> String {
    let text = chain(error);
    if text.contains("Permission denied") && !simulate::is_root() {
        return format!("{text}; run it as root, with sudo for instance");
    }
    text
}

/// Whether only a change by people helps, so that whoever started the agent should not start it again.
fn needs_its_operator(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(service::ServiceError::NobodyToTell))
        || matches!(error.downcast_ref(), Some(SourceError::Problems { .. }))
}

/// `behaveguard ... | head` ends as other tools do; the agent itself must outlive whoever reads what it says.
fn end_with_the_reader() {
    let always = std::sync::Arc::new(true.into());
    if let Err(error) = signal_hook::flag::register_conditional_default(signal_hook::consts::SIGPIPE, always)
    {
        log::debug!("a reader that ends early is an error: {error}");
    }
}

fn run(cli: Cli) -> Result<(), Box<dyn Error>> {
    if let Command::Init { print } = cli.command {
        return init(cli.config.as_deref().unwrap_or(Path::new(config::DEFAULT_PATH)), print);
    }
    if let Command::Config(command) = cli.command {
        return configuration(cli.config, command);
    }
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "behaveguard", &mut std::io::stdout());
        return Ok(());
    }
    if let Command::Man { folder } = cli.command {
        clap_mangen::generate_to(Cli::command(), &folder)
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        println!("wrote the manual pages into {}", folder.display());
        return Ok(());
    }
    let source = Source { file: cli.config, state: cli.state };
    let config = match source.load() {
        // The agent that runs has the configuration that it started with.
        Err(error @ SourceError::Problems { .. }) if asks_the_agent(&cli.command) => {
            eprintln!("behaveguard: {}", chain(&error));
            Config { state: source.state_folder(), ..Config::default() }
        }
        loaded => loaded?,
    };
    if let Command::Doctor { json } = cli.command {
        let findings = doctor::examine(&config)?;
        if json {
            println!("{}", serde_json::to_string_pretty(&findings)?);
        } else {
            print!("{}", findings.table());
        }
        return Ok(());
    }
    match cli.command {
        Command::Init { .. }
        | Command::Doctor { .. }
        | Command::Config(_)
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Simulate(_) => {}
        Command::Enroll { token, device, force } => {
            let device = device.unwrap_or_else(|| enroll::device_name(&vitals::host_name()));
            let identity = enroll::enroll(&config.state, &read_token(&token)?, &device, force)?;
            println!("enrolled as {} at {}:{}", identity.device, identity.host, identity.port);
            println!(
                "now start the agent: `systemctl restart behaveguard` where its package is installed, else `behaveguard run`"
            );
        }
        Command::Run => {
            Updates::of(&config.state).launch(&config.update.keyring());
            service::run(config, source)?;
        }
        Command::Record { file, time, max } => {
            let time = time.unwrap_or(std::time::Duration::MAX);
            let recorded = record::record(&config, &own_baselines(&config)?, &file, max, time)?;
            let size =
                recorded.bytes.map_or("its full size".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
            println!(
                "{} windows, {} alerts, {size} in {}",
                recorded.windows,
                recorded.alerts,
                file.display()
            );
        }
        Command::Replay { file, bundle, key, json } => {
            let mut baselines = own_baselines(&config)?;
            let keys = key.map(|key| Keyring([key].into_iter().collect()));
            let keys = keys.map_or_else(|| own_keys(&config), Ok)?;
            for path in bundle {
                let raw = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                let opened =
                    bundle::open(&raw, &keys).map_err(|error| format!("{}: {error}", path.display()))?;
                baselines.push(opened);
            }
            report::replayed(&file, &baselines, json)?;
        }
        #[cfg(feature = "train")]
        Command::Train { duration, process, out } => teach::train(config, duration, &process, out)?,
        Command::Status { json } => report::status(&control::status(&config.state)?, json)?,
        Command::Baseline(command) => shelf::run(&config, command)?,
        Command::Whitelist(command) => exceptions::run(&config.state, command)?,
        Command::Contain(ContainCommand::List { json }) => report::contained(&config.state, json)?,
        Command::Contain(ContainCommand::Release { id }) => {
            println!("released {}", control::release(&config.state, id)?);
        }
        Command::Quarantine(command) => {
            let for_s = match command {
                QuarantineCommand::Begin { time } => Some(u32::try_from(time.as_secs()).unwrap_or(u32::MAX)),
                QuarantineCommand::End => None,
            };
            println!("{}", control::quarantine(&config.state, for_s)?);
        }
        Command::Explain { of, json } => {
            let explained = control::explanation(&config.state, of.alert, of.pid)?;
            if json {
                println!("{}", serde_json::to_string_pretty(&explained)?);
            } else {
                print!("{}", report::explained(&explained));
            }
        }
        Command::Alerts { json, severity, last } => {
            let since = last.map_or(0, |last| {
                agent::clock::now()
                    .unix_ms
                    .saturating_sub(u64::try_from(last.as_millis()).unwrap_or(u64::MAX))
            });
            let mut alerts = control::alerts(&config.state)?;
            alerts.retain(|alert| alert.severity >= severity && alert.unix_ms >= since);
            if json {
                let named: Vec<Named<'_>> = alerts.iter().map(Into::into).collect();
                println!("{}", serde_json::to_string_pretty(&named)?);
                return Ok(());
            }
            alerts.iter().for_each(report::alert);
            println!("{} alerts", alerts.len());
        }
    }
    Ok(())
}

/// It needs nothing of the configuration but where the agent answers.
fn asks_the_agent(command: &Command) -> bool {
    matches!(
        command,
        Command::Status { .. } | Command::Alerts { .. } | Command::Explain { .. } | Command::Whitelist(_)
    )
}

fn configuration(named: Option<PathBuf>, command: ConfigCommand) -> Result<(), Box<dyn Error>> {
    let (file, show) = match command {
        ConfigCommand::Check { file } => (file.or(named), None),
        ConfigCommand::Show { json } => (named, Some(json)),
    };
    let source = Source { file, state: None };
    let Found { text, place, is_file } = source.find()?;
    // A file is checked by itself: it may be for another device.
    let overlay = show.map_or(Ok(None), |_| Overlay::read(&source.state_folder())).unwrap_or_else(|error| {
        eprintln!("behaveguard: what the fleet says cannot be read: {error}");
        None
    });
    let settings = settings::effective(&text, overlay.as_ref(), &config::environment())
        .map_err(|problems| SourceError::Problems { place: place.clone(), problems })?;
    let given = settings.keys.iter().filter(|setting| setting.from != Origin::Default).count();
    match show {
        None => println!(
            "{}: all right, {given} of {} keys are set, {} sinks",
            if is_file { &*place } else { "no file" },
            settings.keys.len(),
            settings.sinks.len()
        ),
        Some(true) => println!("{}", serde_json::to_string_pretty(&settings)?),
        Some(false) => {
            for setting in &settings.keys {
                let from = match setting.from {
                    Origin::Default => "default".to_owned(),
                    Origin::File => place.clone(),
                    Origin::Fleet => {
                        format!(
                            "version {} of the fleet's",
                            overlay.as_ref().map_or(0, |fleet| fleet.version)
                        )
                    }
                    Origin::Environment => setting.variable.clone(),
                    Origin::Budget => "follows from memory_budget".to_owned(),
                };
                // What the keys hold is written alike in both languages.
                println!("{} = {}  # {from}", setting.key, serde_json::to_string(&setting.value)?);
            }
            for (name, tables) in [("contain", &settings.contain), ("sink", &settings.sinks)] {
                for table in tables {
                    println!("\n[[{name}]]");
                    for (key, value) in table {
                        println!("{key} = {}", serde_json::to_string(value)?);
                    }
                }
            }
        }
    }
    Ok(())
}

fn init(path: &Path, print: bool) -> Result<(), Box<dyn Error>> {
    if print {
        print!("{}", config::template());
        return Ok(());
    }
    if path.exists() {
        return Err(format!("{} is there already; edit it, or remove it first", path.display()).into());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    std::fs::write(path, config::template()).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("wrote {}; next: behaveguard enroll", path.display());
    Ok(())
}

fn read_token(path: &Path) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(64 * 1024).read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(text)
}

/// Baselines of this device: its fleet's, and its own where the fleet has none.
fn own_baselines(config: &Config) -> Result<Vec<Verified>, Box<dyn Error>> {
    let mut active = Vec::new();
    shelf::each(config, &mut |_, verified| active.push(verified))?;
    Ok(active)
}

/// Keys that this device trusts; none when it is not enrolled.
fn own_keys(config: &Config) -> Result<Keyring, Box<dyn Error>> {
    match enroll::Identity::load(&config.state) {
        Ok(identity) => Ok(identity.keyring().unwrap_or_default()),
        Err(EnrollError::NotEnrolled(_)) => Ok(Keyring::default()),
        Err(error) => Err(error.into()),
    }
}
