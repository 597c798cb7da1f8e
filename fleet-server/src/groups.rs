//! Groups' configurations, by commands beside a running server.

use std::error::Error;
use std::io::Read as _;
use std::path::Path;

use fleet_server::access::LOCAL;
use fleet_server::cli::GroupCommand;
use fleet_server::clock;
use fleet_server::configuration::{self, CONFIGURATION_MAX, KeyChange};
use fleet_server::names::GroupId;
use fleet_server::store::{self, Spread};
use serde_json::json;

use crate::commands::{change, open};

type Done = Result<(), Box<dyn Error>>;

pub(crate) fn run(command: GroupCommand) -> Done {
    match command {
        GroupCommand::Configure { state, dry_run, group, file } => configure(&state, dry_run, &group, &file),
        GroupCommand::Show { state, group } => {
            let connection = open(&state)?;
            let Some(row) = store::configurations(&connection, &group, None, 1)?.pop() else {
                eprintln!("group {group} has no configuration: its devices use their own files alone");
                return Ok(());
            };
            let Spread { devices, applied, refused } = store::spread(&connection, &group, row.version)?;
            eprintln!(
                "configuration {} of group {group}, by {}: {applied} of {devices} devices use it, {refused} refused it",
                row.version, row.by
            );
            print!("{}", row.text);
            Ok(())
        }
    }
}

fn configure(state: &Path, dry_run: bool, group: &GroupId, file: &Path) -> Done {
    let name = if is_stdin(file) { Path::new("standard input") } else { file };
    let in_file = |error: &dyn std::fmt::Display| format!("{}: {error}", name.display());
    let text = read(file).map_err(|error| in_file(&error))?;
    configuration::check(&text).map_err(|error| in_file(&error))?;
    let connection = open(state)?;
    let before = store::configurations(&connection, group, None, 1)?.pop();
    let (seen, before) = before.map_or((0, String::new()), |row| (row.version, row.text));
    for change in configuration::changes(&before, &text) {
        println!("{}", told(&change));
    }
    let devices = store::spread(&connection, group, seen)?.devices;
    drop(connection);
    if dry_run {
        println!("on {devices} devices of group {group}; nothing was changed");
        return Ok(());
    }
    if before == text {
        println!("group {group} has this configuration already");
        return Ok(());
    }
    let detail = format!("{} bytes", text.len());
    let version = change(state, "group.configure", group.as_str(), &detail, |c| {
        store::put_configuration_over(c, group, seen, &text, LOCAL, clock::unix_ms())
    })?;
    let version = version.ok_or("somebody else changed the configuration meanwhile: run this again")?;
    println!("configuration {version} of group {group}, which has {devices} devices");
    Ok(())
}

/// At most one byte more than may be, so that a wrong file is refused and not read to its end.
fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let most = CONFIGURATION_MAX as u64 + 1;
    if is_stdin(file) {
        std::io::stdin().lock().take(most).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(file)?.take(most).read_to_string(&mut text)?;
    }
    Ok(text)
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new("-")
}

/// Values as in the API.
fn told(change: &KeyChange) -> String {
    let value =
        |value: &Option<_>| value.as_ref().map_or("not named".to_owned(), |value| json!(value).to_string());
    format!("{}: {} -> {}", change.key, value(&change.before), value(&change.after))
}
