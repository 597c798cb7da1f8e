//! The agent's own log on standard error, and a level that the fleet may choose for a time.

use env_logger::{Builder, Env};
use log::LevelFilter;
use models::wire::LogLevel;

/// The variable by which whoever starts a program chooses what it logs.
const VARIABLE: &str = "RUST_LOG";

/// What is logged where nobody says otherwise.
const DEFAULT: LevelFilter = LevelFilter::Info;

/// What may be: of other packages never more than that.
const FILTER: &str = "info,agent=trace,behaveguard=trace";

/// Begins to log.
pub fn start() {
    Builder::from_env(Env::default().default_filter_or(FILTER)).init();
    if !is_chosen_here() {
        log::set_max_level(DEFAULT);
    }
}

/// Logs from this level on.
///
/// # Errors
/// When whoever started the agent chose what it logs.
pub fn set(level: LogLevel) -> Result<(), &'static str> {
    if is_chosen_here() {
        return Err("RUST_LOG is set where the agent was started, and decides what is logged");
    }
    log::set_max_level(filter(level));
    Ok(())
}

/// Logs as before.
pub fn reset() {
    if !is_chosen_here() {
        log::set_max_level(DEFAULT);
    }
}

/// The level's name.
#[must_use]
pub fn name(level: LogLevel) -> String {
    filter(level).as_str().to_lowercase()
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    }
}

fn is_chosen_here() -> bool {
    std::env::var_os(VARIABLE).is_some()
}
