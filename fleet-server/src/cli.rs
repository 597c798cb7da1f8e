//! The command line: what can be asked, and how it is written.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use models::train::WINDOWS_MIN;

use crate::access::{self, Role};
use crate::config::is_host;
use crate::enrolment::{TTL_MAX_S, USES_MAX};
use crate::names::{DeviceId, GroupId, UserName};

/// The fleet side of BehaveGuard.
#[derive(Debug, Parser)]
#[command(name = "behaveguard-fleet", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
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
        /// Windows needed before a program's first baseline, 40 to 100000.
        #[arg(long, value_parser = clap::value_parser!(u32).range(WINDOWS_MIN as i64..=100_000))]
        learn_windows: Option<u32>,
    },
    /// Make what a server needs, its certificate authority first, without starting it.
    Init {
        /// Folder for keys, certificates and the database; made when missing.
        #[arg(long)]
        state: PathBuf,
    },
    /// Write what a broker of others needs to take this fleet's devices: certificate, key, and configurations for Mosquitto and NATS.
    Broker {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// A host name or address by which devices and fleet servers call the broker; may be given more than once.
        #[arg(long, required = true, value_parser = host)]
        name: Vec<String>,
        /// Where it listens.
        #[arg(long, default_value_t = 8883)]
        port: u16,
        /// The folder that is written, as an absolute path: the configurations name it.
        #[arg(long)]
        out: PathBuf,
    },
    /// The data: move it between a file and PostgreSQL, and make it small.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Program files of the agent that devices may be given.
    #[command(subcommand)]
    Build(BuildCommand),
    /// Enrolment tokens for new devices.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Devices: list, revoke, group.
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Groups: what their devices are configured with.
    #[command(subcommand)]
    Group(GroupCommand),
    /// People and programs that use the API, and their tokens.
    #[command(subcommand)]
    User(UserCommand),
}

/// Enrolment tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print one line that `behaveguard enroll` takes. The server must have been started once, or --url be given.
    Create {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// The group that the devices join: 1 to 64 of a-z, 0-9 and -.
        #[arg(long, default_value = "default", value_parser = group)]
        group: GroupId,
        /// Only this device may use it, once; it may also replace a device of that name.
        #[arg(long, value_parser = device, conflicts_with = "uses")]
        device: Option<DeviceId>,
        /// How many devices may use it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(USES_MAX)))]
        uses: u32,
        /// How long it is good, e.g. 30m, 24h or 7d.
        #[arg(long, default_value = "1h", value_parser = seconds)]
        expires: u64,
        /// Where devices enrol, https://host:port, instead of where the server listened last.
        #[arg(long)]
        url: Option<String>,
    },
    /// List the tokens, without their secrets.
    List {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
    },
    /// Make a token worthless.
    Delete {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// As `token list` shows it.
        id: String,
    },
}

/// Program files of the agent.
#[derive(Debug, Subcommand)]
pub enum BuildCommand {
    /// Make the key that signs program files, where they are built, and print what devices are to trust.
    Key {
        /// The file that is written.
        #[arg(long)]
        out: PathBuf,
    },
    /// Sign a program file: writes FILE.sig beside it.
    Sign {
        /// As `build key` made it.
        #[arg(long)]
        key: PathBuf,
        /// What it is: numbers with dots between, such as 1.4.2. Devices take none that is older than theirs.
        #[arg(long)]
        version: String,
        /// The agent, for x86-64 or aarch64.
        file: PathBuf,
    },
    /// Bring a signed program file to the server, for updates of that version.
    Add {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// The agent, with FILE.sig beside it.
        file: PathBuf,
    },
    /// List the program files.
    List {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
    },
    /// Remove one that no update is under way to.
    Remove {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// As `build list` shows it.
        id: u64,
    },
}

/// Devices.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// List the devices.
    List {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
    },
    /// Take nothing of a device from now on: its next packet ends its connection.
    Revoke {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// Which.
        #[arg(value_parser = device)]
        device: DeviceId,
    },
    /// Put a device into a group.
    Group {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// Which.
        #[arg(value_parser = device)]
        device: DeviceId,
        /// Into which.
        #[arg(value_parser = group)]
        group: GroupId,
    },
}

/// Groups.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Give a group a configuration, which replaces the one before; prints what changes. Devices that are connected use it within
    /// seconds, others when they come.
    Configure {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// Only print what would change.
        #[arg(long)]
        dry_run: bool,
        /// Which.
        #[arg(value_parser = group)]
        group: GroupId,
        /// TOML, as in the agent's file; - for standard input.
        file: PathBuf,
    },
    /// Print a group's configuration.
    Show {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// Which.
        #[arg(value_parser = group)]
        group: GroupId,
    },
}

/// People and programs that use the API.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Make a user and print a token for the API and the dashboard.
    Add {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// The name: 1 to 64 of a-z, 0-9 and -.
        #[arg(value_parser = user)]
        name: UserName,
        /// viewer, analyst or admin.
        #[arg(long, default_value = "viewer", value_parser = role)]
        role: Role,
    },
    /// List users and their tokens.
    List {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
    },
    /// Give a user another role.
    Role {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// Whom.
        #[arg(value_parser = user)]
        name: UserName,
        /// viewer, analyst or admin.
        #[arg(value_parser = role)]
        role: Role,
    },
    /// Print a further token of a user.
    Token {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// Whose.
        #[arg(value_parser = user)]
        name: UserName,
        /// What it is for.
        #[arg(long, default_value = "", value_parser = access::label)]
        label: String,
        /// How long it is good, e.g. 12h or 30d; for ever when not given.
        #[arg(long, value_parser = seconds)]
        expires: Option<u64>,
    },
    /// Remove a user with all tokens, or one token.
    Remove {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// Whom.
        #[arg(value_parser = user)]
        name: UserName,
        /// Only this token, as `user list` shows it.
        #[arg(long)]
        token: Option<String>,
    },
}

/// The data.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Write all data into a file; the server may run. Keys and certificates are files of the state folder, and are not in it.
    Export {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// The file that is written; there must be none.
        file: PathBuf,
    },
    /// Read such a file into an empty database; the server must not run.
    Import {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
        /// The PostgreSQL server that gets the data, as in [store]; without it what the folder used last, a file at first.
        #[arg(long)]
        postgres: Option<String>,
        /// The file.
        file: PathBuf,
    },
    /// Give room back to the disk that dropped data left; needs as much room again, and a server that runs waits meanwhile.
    Compact {
        /// The server's folder.
        #[arg(long)]
        state: PathBuf,
    },
}

/// Reads a host name or an address.
fn host(text: &str) -> Result<String, String> {
    if is_host(text) { Ok(text.to_owned()) } else { Err("is no host name and no address".to_owned()) }
}

fn device(text: &str) -> Result<DeviceId, String> {
    DeviceId::parse(text).map_err(|error| error.to_string())
}

fn group(text: &str) -> Result<GroupId, String> {
    GroupId::parse(text).map_err(|error| error.to_string())
}

fn user(text: &str) -> Result<UserName, String> {
    access::user_name(text)
}

fn role(text: &str) -> Result<Role, String> {
    Role::parse(text).ok_or_else(|| "a role is viewer, analyst or admin".into())
}

fn seconds(text: &str) -> Result<u64, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
    let parsed = units
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*factor));
    parsed.filter(|ttl| (1..=TTL_MAX_S).contains(ttl)).ok_or("must be like 30m, 1h or 2d, at most 30d".into())
}
