//! `behaveguard whitelist`: what the operator expects, told to the running agent.

use std::error::Error;
use std::path::Path;

use agent::cli::{Expected, WhitelistCommand};
use agent::whitelist::{Entry, Wanted, What};
use agent::{clock, control};

/// Does what was asked.
pub(crate) fn run(state: &Path, command: WhitelistCommand) -> Result<(), Box<dyn Error>> {
    match command {
        WhitelistCommand::List { json } => list(state, json),
        WhitelistCommand::Add(expected) => add(state, expected),
        WhitelistCommand::Remove { id } => {
            let entry = control::change_whitelist(state, &control::Request::WhitelistRemove { id })?;
            println!("removed {entry}");
            Ok(())
        }
    }
}

fn list(state: &Path, json: bool) -> Result<(), Box<dyn Error>> {
    let entries = control::whitelisted(state)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&entries)?);
        return Ok(());
    }
    for entry in &entries {
        println!("{entry} ({})", ends(entry));
    }
    println!("{} entries", entries.len());
    Ok(())
}

fn add(state: &Path, expected: Expected) -> Result<(), Box<dyn Error>> {
    let Expected { alert, program, unit, act, statistics, reason, time, json, .. } = expected;
    let expires_unix_s = time.map(|time| (clock::now().unix_ms / 1000).saturating_add(time.as_secs()));
    let wanted = match (alert, program) {
        (Some(alert), _) => {
            let explained = control::explanation(state, Some(alert), None)?;
            if explained.explanation.evidence_more > 0 {
                eprintln!(
                    "behaveguard: {} more acts of this alert are not named and stay news",
                    explained.explanation.evidence_more
                );
            }
            Wanted::of(&explained, reason, expires_unix_s)
        }
        (None, program) => {
            let what = match (act, statistics) {
                (acts, _) if !acts.is_empty() => What::Acts(acts),
                (_, true) => What::Statistics,
                _ => What::Everything,
            };
            let program = program.unwrap_or_default();
            Wanted { program, unit, script: None, what, reason, expires_unix_s }
        }
    };
    let entry = control::change_whitelist(state, &control::Request::WhitelistAdd { wanted })?;
    if json {
        println!("{}", serde_json::to_string_pretty(&entry)?);
    } else {
        println!("{entry} ({})", ends(&entry));
    }
    Ok(())
}

fn ends(entry: &Entry) -> String {
    let now_unix_s = clock::now().unix_ms / 1000;
    match entry.wanted.expires_unix_s {
        None => "until it is removed".to_owned(),
        Some(end) if end <= now_unix_s => "expired".to_owned(),
        Some(end) => {
            let left = end - now_unix_s;
            let (n, unit) = [(86_400, "days"), (3600, "hours"), (60, "minutes")]
                .into_iter()
                .find(|(of, _)| left >= 2 * of)
                .map_or((left, "seconds"), |(of, unit)| (left / of, unit));
            format!("for {n} {unit}")
        }
    }
}
