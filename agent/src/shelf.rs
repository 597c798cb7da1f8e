//! `behaveguard baseline`: what is there, and back to the one before.

use std::error::Error;

use agent::baselines::Baselines;
use agent::cli::BaselineCommand;
use agent::config::{Config, Pattern};
use agent::local::Local;
use agent::{clock, service};
use models::bundle::Verified;
use models::program::ProgramId;
use serde::Serialize;

use crate::own_keys;
use crate::page::Page;

/// One baseline, for people and as JSON.
#[derive(Serialize)]
struct Row {
    program: ProgramId,
    /// `fleet` or `device`.
    made_by: &'static str,
    generation: u64,
    windows: [u32; 3],
    trained_unix_s: u64,
    expires_unix_s: u64,
    expired: bool,
}

/// Does what was asked.
pub(crate) fn run(config: &Config, command: BaselineCommand) -> Result<(), Box<dyn Error>> {
    match command {
        BaselineCommand::List { json } => list(config, json),
        BaselineCommand::Show { program, json } => show(config, &program, json),
        BaselineCommand::Rollback { program } => roll_back(config, &program),
    }
}

/// Hands out every baseline that the agent would use, and who made it: `fleet`, or `device` where the fleet made none.
pub(crate) fn each(
    config: &Config,
    each: &mut dyn FnMut(&'static str, Verified),
) -> Result<(), Box<dyn Error>> {
    let fleet = Baselines::open(&config.state, own_keys(config)?, &mut |verified| each("fleet", verified))?;
    if let Some(own) = Local::open(&config.state)? {
        own.active(&fleet, clock::now().unix_ms / 1000, &mut |verified| each("device", verified))?;
    }
    Ok(())
}

fn list(config: &Config, json: bool) -> Result<(), Box<dyn Error>> {
    let now_unix_s = clock::now().unix_ms / 1000;
    let row = |made_by, verified: &Verified| {
        let manifest = verified.manifest();
        Row {
            program: manifest.program.clone(),
            made_by,
            generation: manifest.generation,
            windows: manifest.training.windows,
            trained_unix_s: manifest.training.trained_unix_s,
            expires_unix_s: manifest.expires_unix_s,
            expired: manifest.expires_unix_s <= now_unix_s,
        }
    };
    let mut rows: Vec<Row> = Vec::new();
    each(config, &mut |made_by, verified| rows.push(row(made_by, &verified)))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    for row in &rows {
        let days = row.expires_unix_s.saturating_sub(now_unix_s) / 86_400;
        let valid = if row.expired { "expired".to_owned() } else { format!("valid for {days} days") };
        let windows: u32 = row.windows.iter().sum();
        println!(
            "{}: generation {} by the {}, {windows} windows, {valid}",
            row.program, row.generation, row.made_by
        );
    }
    println!("{} baselines", rows.len());
    Ok(())
}

fn show(config: &Config, name: &str, json: bool) -> Result<(), Box<dyn Error>> {
    let pattern = Pattern(name.to_owned());
    let mut pages: Vec<Page> = Vec::new();
    each(config, &mut |made_by, verified| {
        let manifest = verified.manifest();
        pages.extend(pattern.fits(&manifest.program).then(|| Page::of(made_by, manifest)));
    })?;
    let [page] = &pages[..] else {
        let n = pages.len();
        return Err(format!("{n} baselines fit `{name}`: `behaveguard baseline list` shows them").into());
    };
    if json {
        println!("{}", serde_json::to_string_pretty(page)?);
    } else {
        print!("{page}");
    }
    Ok(())
}

fn roll_back(config: &Config, name: &str) -> Result<(), Box<dyn Error>> {
    let _lock = service::lock(&config.state)
        .map_err(|error| format!("{error}: stop it, roll back, and start it again"))?;
    let pattern = Pattern(name.to_owned());
    let mut programs: Vec<ProgramId> = Vec::new();
    let mut baselines = Baselines::open(&config.state, own_keys(config)?, &mut |verified| {
        programs.extend(Some(&verified.manifest().program).filter(|id| pattern.fits(id)).cloned());
    })?;
    let [program] = &programs[..] else {
        let n = programs.len();
        return Err(format!(
            "{n} baselines of the fleet fit `{name}`: `behaveguard baseline list` shows them"
        )
        .into());
    };
    let generation = baselines.roll_back(program)?.manifest().generation;
    println!("{program}: generation {generation} is used from the agent's next start on");
    Ok(())
}
