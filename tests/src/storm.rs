//! An agent that is killed again and again while alerts come all the time, and a fleet server that is killed now and then.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent::local::Local;
use models::program::ProgramId;
use models::train::{self, TrainOptions, WINDOWS_MIN};
use models::wire::TrainingWindow;
use serde_json::Value;

use crate::agent::Agent;
use crate::fleet::Fleet;
use crate::gateway::Gateway;
use crate::{Failed, wait_for};

const DEVICE: &str = "storm";

/// What an alert is known by on both sides.
type Key = (u64, u64, String);

/// What came of it.
#[derive(Debug)]
pub struct Aftermath {
    /// Alerts that the sink was told of.
    pub told: usize,
    /// Of these, not in the fleet's store.
    pub missing: usize,
    /// Of these, in the store more than once.
    pub twice: usize,
    /// All in the store.
    pub stored: usize,
    /// How often the fleet server was killed.
    pub fleet_kills: usize,
}

/// Kills the agent so often, each time after at most 1.5 s, which begin when it watches or, each third time, when it is started,
/// and looks what its sink and the fleet know in the end.
///
/// # Errors
/// When something does not start, or what waits does not reach the fleet in the end.
pub fn storm(dir: &Path, kills: usize, tell: &mut dyn FnMut(usize)) -> Result<Aftermath, Failed> {
    let mut fleet = Fleet::start(&dir.join("fleet"), 10_000)?;
    let folder = dir.join("gateway");
    let lines = dir.join("alerts.json");
    let config = format!(
        "watch = [{:?}]\nwindow = \"1s\"\nalert_budget = \"unlimited\"\n[alerts]\ndedup = \"0s\"\nper_minute = 1000\n\
         [[sink]]\nkind = \"file\"\npath = {lines:?}\nsize_max = \"1GiB\"\n",
        Gateway::executable(&folder)
    );
    let mut agent = Agent::enroll_with(&dir.join("agent"), &config, &fleet, DEVICE)?;
    let mut gateway = Gateway::start(&folder)?;
    learn_nothing(&mut agent)?;
    let mut random = fastrand::Rng::with_seed(7);
    let (mut is_up, mut fleet_kills) = (true, 0);
    for n in 0..kills {
        agent.run()?;
        if n % 3 > 0 {
            wait_for("an agent that watches", Duration::from_secs(30), || Ok(agent.status().ok()))?;
        }
        let until = SystemTime::now() + Duration::from_millis(random.u64(200..1500));
        while SystemTime::now() < until {
            gateway.attack()?;
            thread::sleep(Duration::from_millis(random.u64(5..50)));
        }
        agent.kill()?;
        // Up and down in turn: the agent meets every state of it.
        if random.u32(0..4) == 0 {
            if is_up {
                fleet.kill()?;
                fleet_kills += 1;
            } else {
                fleet.restart()?;
            }
            is_up = !is_up;
        }
        tell(n + 1);
    }
    if !is_up {
        fleet.restart()?;
    }
    // With a baseline that knows nothing, whatever the service does would go on to alarm.
    drop(gateway);
    agent.run()?;
    wait_for("the way of what waits to the fleet", Duration::from_secs(240), || {
        agent.check()?;
        let Ok(status) = agent.status() else { return Ok(None) };
        Ok((status["online"] == true && status["heartbeat"]["outbox_waiting"] == 0).then_some(()))
    })?;
    agent.stop()?;
    let text = fs::read_to_string(&lines).map_err(|error| Failed::new(lines.display(), error))?;
    // The last line before a kill may be cut: nobody was told of it.
    let told = count(text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()));
    let stored = count(all(&fleet)?.into_iter());
    let of = |key: &Key| stored.get(key).copied().unwrap_or(0);
    Ok(Aftermath {
        told: told.values().sum(),
        missing: told.iter().map(|(key, n)| n.saturating_sub(of(key))).sum(),
        twice: told.iter().map(|(key, n)| of(key).saturating_sub(*n)).sum(),
        stored: stored.values().sum(),
        fleet_kills,
    })
}

fn count(alerts: impl Iterator<Item = Value>) -> BTreeMap<Key, usize> {
    let mut counts = BTreeMap::new();
    for alert in alerts {
        let number = |field: &str| alert[field].as_u64().unwrap_or_default();
        let summary = alert["summary"].as_str().unwrap_or_default().to_owned();
        *counts.entry((number("unix_ms"), number("pid"), summary)).or_default() += 1;
    }
    counts
}

/// Every alert of the fleet's store.
fn all(fleet: &Fleet) -> Result<Vec<Value>, Failed> {
    let (mut alerts, mut after) = (Vec::new(), 0);
    loop {
        let page = fleet.get(&format!("alerts?limit=1000&after={after}&device={DEVICE}"))?;
        let page = page["alerts"].as_array().cloned().unwrap_or_default();
        let Some(last) = page.last().and_then(|alert| alert["id"].as_u64()) else { return Ok(alerts) };
        after = last;
        alerts.extend(page);
    }
}

/// Gives the agent a baseline of the program that it watches in which that program does nothing, so that all it does is news.
fn learn_nothing(agent: &mut Agent) -> Result<(), Failed> {
    let failed = |error: &dyn std::fmt::Display| Failed::new("making a baseline", error);
    agent.run()?;
    let program: ProgramId = wait_for("the program to be seen", Duration::from_secs(30), || {
        agent.check()?;
        let Ok(status) = agent.status() else { return Ok(None) };
        Ok(serde_json::from_value(status["heartbeat"]["programs"][0]["program"].clone()).ok())
    })?;
    agent.stop()?;
    let window = |at: usize| TrainingWindow {
        unix_ms: at as u64,
        run: 1,
        vector: vec![(0, 0.5 + (at % 5) as f32 / 100.0)],
        traits: vec![],
        grams: vec![],
    };
    let windows: Vec<TrainingWindow> = (0..2 * WINDOWS_MIN).map(window).collect();
    let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let options = TrainOptions { vae_steps: 100, lstm_steps: 10, now_unix_s, ..TrainOptions::default() };
    let trained = train::fit(&windows, &options, &mut |_| {}).map_err(|error| failed(&error))?;
    let local = Local::create(&agent.state()).map_err(|error| failed(&error))?;
    let raw = trained.seal(program.clone(), 1, 0..now_unix_s + 86_400, local.key());
    local.store(&program, &raw).map_err(|error| failed(&error))
}
