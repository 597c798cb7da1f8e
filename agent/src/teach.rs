//! `behaveguard train` as people see it: what is collected, how far training is, and what came of it.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use agent::clock;
use agent::config::Config;
use agent::control::{self, ControlError};
use agent::local::Local;
use agent::train::{self, Collected};
use models::chain::chain;
use models::program::ProgramId;
use models::train::{Progress, WINDOWS_MIN};
use models::wire::TrainingWindow;

/// Collects for `time` and learns every program that was seen often enough; into `out`, or for this device's agent.
pub(crate) fn train(
    mut config: Config,
    time: Duration,
    process: &[String],
    out: Option<PathBuf>,
) -> Result<(), Box<dyn Error>> {
    if !process.is_empty() {
        config.watch = process.iter().flat_map(|process| train::patterns(process)).collect();
    }
    let windows = time.as_secs_f64() / config.window.as_secs_f64();
    if windows < WINDOWS_MIN as f64 {
        eprintln!(
            "behaveguard: {time:?} hold {windows:.0} windows of {:?}, and a program needs {WINDOWS_MIN}: only programs of \
             several processes can be learned",
            config.window
        );
    }
    let local = Local::create(&config.state)?;
    let collected = train::collect(&config, time, &mut |left, collected| {
        let windows: usize = collected.seen().map(|(_, windows)| windows).sum();
        eprintln!(
            "collecting, {} left: {windows} windows of {} programs",
            clock_text(left),
            collected.seen().count()
        );
    })?;
    show(&collected);
    if collected.interrupted {
        return Err("interrupted: nothing was learned, and no baseline was changed".into());
    }
    let mut made = 0;
    // A program that has a baseline already may have done what the running agent told of.
    let alerts = match control::alerts(&config.state) {
        Ok(alerts) => alerts,
        Err(ControlError::NotRunning(_)) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    for (program, mut windows) in collected.into_programs() {
        let poisoned = train::leave_out_alerts(&program, &mut windows, &alerts, &config);
        if poisoned > 0 {
            println!("{program}: {poisoned} windows not used: the running agent told of them, or might have");
        }
        match make(&local, &program, &windows, out.as_ref()) {
            Ok(text) => {
                made += 1;
                println!("{program}: {text}");
            }
            Err(error) => println!("{program}: not learned: {}", chain(error.as_ref())),
        }
    }
    if made == 0 {
        return Err(
            "no program was learned: collect for longer, or name one that is busier with --process".into()
        );
    }
    if out.is_none() {
        println!("the agent uses them from its next start on, where the fleet has no baseline of its own");
    }
    Ok(())
}

fn make(
    local: &Local,
    program: &ProgramId,
    windows: &[TrainingWindow],
    out: Option<&PathBuf>,
) -> Result<String, Box<dyn Error>> {
    let generation = local.next_generation(program);
    let (begun_ns, mut told) = (clock::boot_ns(), 0.0);
    let mut progress = |Progress { model, share }: Progress| {
        if share < told + 0.1 {
            return;
        }
        told = share;
        let spent = (clock::boot_ns() - begun_ns) as f64 / 1e9;
        // Early stopping may end it sooner.
        let left = Duration::from_secs_f64(spent * f64::from(1.0 - share) / f64::from(share));
        eprintln!(
            "learning {program}: {:.0} % at the {model}, at most {} left",
            share * 100.0,
            clock_text(left)
        );
    };
    let now_unix_s = clock::now().unix_ms / 1000;
    let raw = train::make(program, windows, generation, now_unix_s, local.key(), &mut progress)?;
    let size = raw.len() / 1024;
    match out {
        None => local.store(program, &raw)?,
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            let path = train::file_of(dir, program);
            agent::files::write_private(&path, &raw)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            let key = models::program::hex(&local.key().public().0);
            return Ok(format!(
                "{size} KiB from {} windows in {}, signed by {key}",
                windows.len(),
                path.display()
            ));
        }
    }
    Ok(format!("own generation {generation}, {size} KiB from {} windows", windows.len()))
}

fn show(collected: &Collected) {
    for (program, windows) in collected.seen() {
        println!("{program}: {windows} windows collected");
    }
    let counters = &collected.counters;
    let unused = counters.windows_degraded + counters.windows_surplus;
    if unused > 0 {
        println!("{unused} windows not used: {} were not fully seen", counters.windows_degraded);
    }
}

fn clock_text(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}
