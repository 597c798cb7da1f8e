//! Commands beside a running server, on its own machine: they change its database and are in its audit log as `local`.

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;

use fleet_server::access::LOCAL;
use fleet_server::broker;
use fleet_server::cli::{DeviceCommand, TokenCommand, UserCommand};
use fleet_server::config::{Config, host_and_port};
use fleet_server::counters::Counters;
use fleet_server::enrolment::{Issued, Wanted};
use fleet_server::names::{DeviceId, UserName};
use fleet_server::pki::Pki;
use fleet_server::server::Addresses;
use fleet_server::signer::Signer;
use fleet_server::store::Connection;
use fleet_server::store::{self, AuditRow, Change, Changed};
use fleet_server::{clock, enrolment, files, secret, server};

type Done = Result<(), Box<dyn Error>>;

/// A server that is started makes its keys and its database first.
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(100);

/// Makes what a server needs, without starting it.
pub(crate) fn init(state: &Path) -> Done {
    files::make_state_dir(state).map_err(|error| format!("{}: {error}", state.display()))?;
    let pki = Pki::open(state, &Config::default().certificate_names(), clock::unix_s())?;
    Signer::open(state, None)?;
    store::open_alone(state)?;
    let folder = state.display();
    println!("certificate authority, signing key, API token and database are in {folder}");
    println!("SHA-256 of ca.pem: {}", models::program::hex(&models::bundle::sha256(pki.ca_pem().as_bytes())));
    println!("next: behaveguard-fleet run --state {folder}");
    Ok(())
}

pub(crate) fn broker(state: &Path, names: &[String], port: u16, out: &Path) -> Done {
    if !state.join("ca.pem").exists() {
        return Err(format!("no server was made in {} yet: behaveguard-fleet init", state.display()).into());
    }
    if !out.is_absolute() {
        return Err(format!("{}: give an absolute path, the configurations name it", out.display()).into());
    }
    let pki = Pki::open(state, &Config::default().certificate_names(), clock::unix_s())?;
    files::make_state_dir(out).map_err(|error| format!("{}: {error}", out.display()))?;
    broker::write_files(out, names, port, &pki, clock::unix_s())?;
    println!("wrote {} into {}", broker::FILES.join(", "), out.display());
    println!(
        "next: give them to the broker's user, start it, and put into the fleet server's configuration:"
    );
    println!("[broker]\nexternal = \"mqtts://{}\"", host_and_port(&names[0], port));
    Ok(())
}

/// Where the server listens; one that was started a moment ago is waited for.
fn started(state: &Path) -> Result<Addresses, Box<dyn Error>> {
    let mut waited = Duration::ZERO;
    loop {
        match server::addresses_of(state) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && waited < PATIENCE => {
                if waited.is_zero() {
                    eprintln!("waiting for the server of {} to start", state.display());
                }
                std::thread::sleep(STEP);
                waited += STEP;
            }
            result => {
                return result.map_err(|error| {
                    let folder = state.display();
                    format!("no server was started on {folder} yet ({error}): start it, or give --url").into()
                });
            }
        }
    }
}

pub(crate) fn token(command: TokenCommand) -> Done {
    match command {
        TokenCommand::Create { state, group, device, uses, expires, url } => {
            let url = match url {
                Some(url) => checked(url)?,
                None => started(&state)?.web_url,
            };
            let ca_pem = std::fs::read_to_string(state.join("ca.pem"))
                .map_err(|error| format!("{}: {error}", state.join("ca.pem").display()))?;
            let now_s = clock::unix_s();
            let wanted = Wanted { group, device, uses, ttl_s: expires };
            let Issued { token, row, target, detail } =
                enrolment::issue(wanted, url, ca_pem, LOCAL.into(), now_s);
            change(&state, "token.create", &target, &detail, |c| store::add_token(c, &row, now_s))?
                .then_some(())
                .ok_or("too many tokens are kept; delete some, or wait for some to expire")?;
            println!("{}", token.encode());
            Ok(())
        }
        TokenCommand::List { state } => {
            let now_s = clock::unix_s();
            for token in store::tokens(&open(&state)?)? {
                let whose = token.device.map_or_else(|| "any".to_owned(), |device| device.to_string());
                let left = match token.expires_s.checked_sub(now_s) {
                    None | Some(0) => "expired".to_owned(),
                    Some(s) => format!("{} min left", s / 60),
                };
                println!(
                    "{}  group {}  device {whose}  {} of {} used  {left}  by {}",
                    token.id, token.group, token.used, token.uses, token.by
                );
            }
            Ok(())
        }
        TokenCommand::Delete { state, id } => {
            let there = change(&state, "token.delete", &id, "", |c| store::drop_token(c, &id))?;
            found(there, &format!("there is no token {id}; see behaveguard-fleet token list"))
        }
    }
}

pub(crate) fn device_command(command: DeviceCommand) -> Done {
    let missing =
        |device: &DeviceId| format!("there is no device {device}; see behaveguard-fleet device list");
    match command {
        DeviceCommand::List { state } => {
            let connection = open(&state)?;
            let mut after = String::new();
            loop {
                let rows = store::devices(&connection, &after, 1000, None, None)?;
                for row in &rows {
                    let state = if row.revoked_ms > 0 { "  revoked" } else { "" };
                    println!("{}  group {}  {} alerts{state}", row.id, row.group, row.alerts);
                }
                match rows.last() {
                    Some(last) => after.clone_from(&last.id),
                    None => return Ok(()),
                }
            }
        }
        DeviceCommand::Revoke { state, device } => {
            let now_ms = clock::unix_ms();
            let there =
                change(&state, "device.revoke", device.as_str(), "", |c| store::revoke(c, &device, now_ms))?;
            found(there, &missing(&device))
        }
        DeviceCommand::Group { state, device, group } => {
            let there = change(&state, "device.change", device.as_str(), group.as_str(), |c| {
                store::set_group(c, &device, &group, clock::unix_ms())
            })?;
            found(there, &missing(&device))
        }
    }
}

pub(crate) fn user_command(command: UserCommand) -> Done {
    let now_ms = clock::unix_ms();
    match command {
        UserCommand::Add { state, name, role } => {
            let text = secret::random();
            let hash = secret::hash(&text);
            let added = change(&state, "user.set", name.as_str(), role.as_str(), |c| {
                let added = store::add_user(c, &name, role, now_ms)?;
                Ok(if added == Changed::Made {
                    store::add_api_token(c, &name, hash, "first", None, now_ms)?
                } else {
                    added
                })
            })?;
            told(added, &name)?;
            println!("{text}");
            Ok(())
        }
        UserCommand::List { state } => {
            for user in store::users(&open(&state)?)? {
                println!("{}  {}", user.name, user.role);
                for token in user.tokens {
                    let used =
                        if token.used_ms == 0 { "never used".to_owned() } else { ago(now_ms, token.used_ms) };
                    println!("  {}  {}  {used}", token.id, token.label);
                }
            }
            Ok(())
        }
        UserCommand::Role { state, name, role } => {
            let done = change(&state, "user.set", name.as_str(), role.as_str(), |c| {
                store::set_role(c, &name, role)
            })?;
            told(done, &name)
        }
        UserCommand::Token { state, name, label, expires } => {
            let text = secret::random();
            let hash = secret::hash(&text);
            let ends_s = expires.map(|expires| now_ms / 1000 + expires);
            let done = change(&state, "user.token.create", name.as_str(), &label, |c| {
                store::add_api_token(c, &name, hash, &label, ends_s, now_ms)
            })?;
            told(done, &name)?;
            println!("{text}");
            Ok(())
        }
        UserCommand::Remove { state, name, token: None } => {
            told(change(&state, "user.delete", name.as_str(), "", |c| store::remove_user(c, &name))?, &name)
        }
        UserCommand::Remove { state, name, token: Some(id) } => {
            let done = change(&state, "user.token.delete", name.as_str(), &id, |c| {
                store::remove_api_token(c, &name, &id)
            })?;
            found(
                done == Changed::Done,
                &format!("{name} has no token {id}; see behaveguard-fleet user list"),
            )
        }
    }
}

/// Does a change and notes it, both or neither.
pub(crate) fn change<T: Change>(
    state: &Path,
    action: &str,
    target: &str,
    detail: &str,
    job: impl FnOnce(&Connection) -> Result<T, store::StoreError>,
) -> Result<T, Box<dyn Error>> {
    let done = store::alone(&open(state)?, |c| {
        let done = job(c)?;
        if done.is_done() {
            let row = AuditRow {
                id: 0,
                unix_ms: clock::unix_ms(),
                who: LOCAL.into(),
                from: String::new(),
                action: action.into(),
                target: target.into(),
                detail: detail.into(),
            };
            // The server itself keeps the log within its bound.
            store::put_audit(c, &Counters::default(), &row, u32::MAX)?;
        }
        Ok(done)
    });
    Ok(done?)
}

/// The database of a folder in which a server was made, or into which data was read.
pub(crate) fn open(state: &Path) -> Result<Connection, Box<dyn Error>> {
    let is_there = |name: &str| state.join(name).try_exists();
    let there = is_there("ca.pem").and_then(|there| Ok(there || is_there("fleet.db")?));
    // Whoever may not look into the folder must not be told that it is none.
    if !there.map_err(|error| format!("{}: {error}", state.display()))? {
        return Err(format!(
            "{} is no folder of a fleet server: run `behaveguard-fleet init` first",
            state.display()
        )
        .into());
    }
    Ok(store::open_alone(state)?)
}

pub(crate) fn found(there: bool, otherwise: &str) -> Done {
    if there { Ok(()) } else { Err(otherwise.into()) }
}

fn told(done: Changed, name: &UserName) -> Done {
    match done {
        Changed::Done | Changed::Made => Ok(()),
        Changed::Missing => Err(format!("there is no user {name}; see behaveguard-fleet user list").into()),
        Changed::There => {
            Err(format!("there is a user {name}; for a further token: behaveguard-fleet user token").into())
        }
        Changed::Full => Err("there are as many as may be; remove some".into()),
    }
}

fn ago(now_ms: u64, then_ms: u64) -> String {
    format!("used {} min ago", now_ms.saturating_sub(then_ms) / 60_000)
}

fn checked(url: String) -> Result<String, Box<dyn Error>> {
    let url = url.trim_end_matches('/').to_owned();
    let host = url.strip_prefix("https://").unwrap_or_default();
    if host.is_empty() || host.contains(['/', '?', '#', '@', ' ']) {
        return Err("--url must be like https://fleet.example:8443".into());
    }
    Ok(url)
}
