//! The command line: what can be asked, and how it is written.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use models::bundle::PublicKey;
use models::policy::Severity;

use crate::whitelist::Act;
use crate::{config, simulate};

/// Behavioural anomaly detection for this gateway.
#[derive(Debug, Parser)]
#[command(name = "behaveguard", version)]
pub struct Cli {
    /// Configuration file; without it and without the default file, the defaults apply.
    #[arg(long, global = true)]
    pub config: Option<PathBuf>,
    /// State folder, instead of the configured one.
    #[arg(long, global = true)]
    pub state: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a configuration file with every key and its default.
    Init {
        /// Show it instead of writing it.
        #[arg(long)]
        print: bool,
    },
    /// Join a fleet with an enrolment token of its server.
    Enroll {
        /// File that holds the token; `-` or nothing reads it from standard input.
        #[arg(long, default_value = "-")]
        token: PathBuf,
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
    /// Write down everything that is judged, into a new file, for `behaveguard replay`: it holds paths and addresses.
    Record {
        /// The file.
        file: PathBuf,
        /// How long, e.g. 10m; until SIGINT or SIGTERM without it.
        #[arg(long = "for", value_parser = duration)]
        time: Option<std::time::Duration>,
        /// The file's largest size, e.g. 256MiB.
        #[arg(long, value_parser = size, default_value = "64MiB")]
        max: u64,
    },
    /// Judge a recorded file again, with this device's baselines and those named here.
    Replay {
        /// The file.
        file: PathBuf,
        /// A bundle that was used then; may be repeated.
        #[arg(long)]
        bundle: Vec<PathBuf>,
        /// Public key that signed it, 64 hexadecimal digits; by default the keys that this device trusts.
        #[arg(long, value_parser = public_key)]
        key: Option<PublicKey>,
        /// As JSON, one alert a line.
        #[arg(long)]
        json: bool,
    },
    /// Watch for a while and make baselines here, for programs that the fleet has none for.
    #[cfg(feature = "train")]
    Train {
        /// How long, e.g. 60m.
        #[arg(long, value_parser = duration)]
        duration: std::time::Duration,
        /// Only this program: its name, path or unit, * stands for any characters; may be repeated.
        #[arg(long)]
        process: Vec<String>,
        /// Write the bundles here, instead of keeping them for this device's agent.
        #[arg(long)]
        out: Option<PathBuf>,
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
    /// Look at the baselines of this device, or go back to the one before.
    #[command(subcommand)]
    Baseline(BaselineCommand),
    /// Show why an alert, or a process's last verdict, has its score.
    Explain {
        /// Of what.
        #[command(flatten)]
        of: Of,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what is right although it is new, so that no alert comes of it.
    #[command(subcommand)]
    Whitelist(WhitelistCommand),
    /// Show what was done to programs that alarmed, or undo it.
    #[command(subcommand)]
    Contain(ContainCommand),
    /// Cut this device off from everything but its fleet, or end that.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Enact attacks without harm, to see whether an alarm works.
    Simulate(simulate::Options),
    /// Print what makes a shell complete commands and options.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages.
    Man {
        /// The folder, e.g. /usr/local/share/man/man1.
        folder: PathBuf,
    },
}

/// Baselines of this device.
#[derive(Debug, Subcommand)]
pub enum BaselineCommand {
    /// Show every baseline that the agent uses.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what a program's baseline holds.
    Show {
        /// The program's executable or unit, as `list` shows it.
        program: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Exchange a program's baseline of the fleet for the one before; the agent must not run.
    Rollback {
        /// The program's executable or unit, as `list` shows it.
        program: String,
    },
}

/// The configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say everything that is wrong with a file; exit code 1 when something is.
    Check {
        /// The file; by default the one that the agent reads.
        file: Option<PathBuf>,
    },
    /// Show every key with its value, and where it is from.
    Show {
        /// As JSON, with the defaults.
        #[arg(long)]
        json: bool,
    },
}

/// What was done to programs that alarmed.
#[derive(Debug, Subcommand)]
pub enum ContainCommand {
    /// Show every program that is stopped or cut off.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Let a stopped process go on, or a service send again.
    Release {
        /// Its number, as `list` shows it.
        id: u32,
    },
}

/// A device that reaches its fleet only.
#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// Cut it off, where its configuration allows that.
    Begin {
        /// For how long, at most 30d.
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        time: std::time::Duration,
    },
    /// Let it reach everything again.
    End,
}

/// What is explained.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Of {
    /// An alert, as `behaveguard alerts` names it.
    #[arg(long, value_name = "ID")]
    pub alert: Option<String>,
    /// A process.
    #[arg(long, value_name = "N")]
    pub pid: Option<u32>,
}

/// What is right although it is new.
#[derive(Debug, Subcommand)]
pub enum WhitelistCommand {
    /// Expect something from now on: the acts of an alert, or what you name.
    Add(Expected),
    /// Show every entry.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take an entry back.
    Remove {
        /// Its number, as `list` shows it.
        id: u32,
    },
}

/// What is expected, of whom, why and how long.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("who").required(true).args(["alert", "program"]))]
#[command(group = clap::ArgGroup::new("what").multiple(false).args(["act", "statistics", "everything"]))]
pub struct Expected {
    /// What an alert told of its program, as `behaveguard alerts` names it.
    #[arg(long, value_name = "ID", conflicts_with_all = ["what", "unit"])]
    pub alert: Option<String>,
    /// Of which executable; * stands for any characters.
    #[arg(long, requires = "what")]
    pub program: Option<String>,
    /// Only in this unit, - for none; * stands for any characters.
    #[arg(long, default_value = "*")]
    pub unit: String,
    /// An act, e.g. first_sensitive_file=/etc/shadow; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = Act::parse)]
    pub act: Vec<Act>,
    /// What the detectors say of its windows; its acts are still told.
    #[arg(long)]
    pub statistics: bool,
    /// All that it does: nothing is told of it any more.
    #[arg(long)]
    pub everything: bool,
    /// Why, for whoever reads it in a year.
    #[arg(long)]
    pub reason: String,
    /// How long, e.g. 30d; until it is removed without it.
    #[arg(long = "for", value_parser = duration)]
    pub time: Option<std::time::Duration>,
    /// Show the entry as JSON.
    #[arg(long)]
    pub json: bool,
}

fn size(text: &str) -> Result<u64, String> {
    config::parse_size(text)
        .filter(|size| *size >= 4096)
        .ok_or_else(|| "must be like 64MiB, 4KiB or more".into())
}

fn public_key(text: &str) -> Result<PublicKey, String> {
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    let key = bytes.and_then(|bytes| bytes.try_into().ok());
    key.map(PublicKey).ok_or_else(|| "must be 64 hexadecimal digits".into())
}

fn severity(text: &str) -> Result<Severity, String> {
    Severity::from_word(text).ok_or_else(|| "must be MEDIUM, HIGH or CRITICAL".into())
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    config::parse_duration(text).ok_or_else(|| "must be like 30m, 1h or 2d".into())
}
