//! The main job from beginning to end: learn a service, see it attacked, tell the fleet.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::agent::Agent;
use crate::fleet::Fleet;
use crate::gateway::Gateway;
use crate::{Failed, wait_for};

/// The device's name in the story.
pub const DEVICE: &str = "this-gateway";

/// Windows after activation in which nothing may be alarming; the sequence model speaks from the tenth on.
const QUIET_WINDOWS: u64 = 12;

/// Fleet server, agent and service, all running.
#[derive(Debug)]
pub struct Story {
    /// The fleet server.
    pub fleet: Fleet,
    /// The agent.
    pub agent: Agent,
    /// The service.
    pub gateway: Gateway,
}

/// How far the story is.
#[derive(Debug)]
pub enum Step {
    /// Windows learned, of so many.
    Learning(u64, u64),
    /// The models are being fitted.
    Training,
    /// Windows judged, of so many, and nothing alarming.
    Quiet(u64, u64),
}

impl Story {
    /// Starts everything below `dir` and enrols this host.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start(dir: &Path, learn_windows: u32) -> Result<Self, Failed> {
        Self::start_with(dir, learn_windows, "", "")
    }

    /// The same with more in the configurations of agent and fleet server.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start_with(dir: &Path, learn_windows: u32, agent: &str, fleet: &str) -> Result<Self, Failed> {
        let fleet = Fleet::start_with(&dir.join("fleet"), learn_windows, fleet)?;
        fleet.opt_in()?;
        let watch = Gateway::executable(&dir.join("gateway"));
        let config = format!("watch = [{watch:?}]\nwindow = \"1s\"\nheartbeat = \"2s\"\n{agent}");
        let mut agent = Agent::enroll_with(&dir.join("agent"), &config, &fleet, DEVICE)?;
        agent.run()?;
        let gateway = Gateway::start(&dir.join("gateway"))?;
        Ok(Self { fleet, agent, gateway })
    }

    /// Waits until the fleet has trained a baseline and the agent uses it, and then until it was quiet for a while.
    ///
    /// Quiet means nothing HIGH. MEDIUM is promised for one normal window in a hundred, so some are no failure; gives
    /// how many there were.
    ///
    /// # Errors
    /// When a part ends, training fails, or there is a HIGH alert although nothing happened.
    pub fn learn(&mut self, learn_windows: u32, mut tell: impl FnMut(Step)) -> Result<usize, Failed> {
        let needed = u64::from(learn_windows);
        let within = Duration::from_secs(u64::from(learn_windows) * 3 + 120);
        wait_for("learning the service's baseline", within, || {
            self.check()?;
            let Ok(answer) = self.fleet.get("training") else { return Ok(None) };
            let Some(row) = answer["training"].as_array().and_then(|rows| rows.first()) else {
                return Ok(None);
            };
            if let Some(reason) = row["failure"].as_str().or_else(|| row["refused"].as_str()) {
                return Err(Failed::new("training", reason));
            }
            let collected = row["windows_collected"].as_u64().unwrap_or(0);
            match row["state"].as_str() {
                Some("collecting") => tell(Step::Learning(collected.min(needed), needed)),
                _ => tell(Step::Training),
            }
            Ok((row["reported_generation"].as_u64() > Some(0)).then_some(()))
        })?;
        let before = self.judged()?;
        wait_for("judging the service's windows", Duration::from_secs(QUIET_WINDOWS * 4 + 20), || {
            self.check()?;
            let judged = self.judged()?.saturating_sub(before);
            tell(Step::Quiet(judged.min(QUIET_WINDOWS), QUIET_WINDOWS));
            Ok((judged >= QUIET_WINDOWS).then_some(()))
        })?;
        let alerts = self.agent.alerts()?;
        match alerts.iter().find(|alert| alert["severity"] != "Medium") {
            None => Ok(alerts.len()),
            Some(alert) => Err(Failed(format!("an alert although nothing happened: {alert}"))),
        }
    }

    /// Attacks the service and waits until its alert can be read from the fleet's API.
    ///
    /// # Errors
    /// When no alert comes, or not the right one.
    pub fn attack(&mut self) -> Result<Vec<Value>, Failed> {
        self.gateway.attack()?;
        self.delivered()
    }

    /// The same while the fleet server takes nothing, is killed with the alert undelivered, and comes back after
    /// `away`. The alert must be there once, and only once.
    ///
    /// # Errors
    /// When an alert is missing or doubled.
    pub fn attack_during_outage(&mut self, away: Duration) -> Result<Vec<Value>, Failed> {
        self.fleet.halt()?;
        self.gateway.attack()?;
        wait_for("the alert in the agent's outbox", Duration::from_secs(20), || {
            self.agent.check()?;
            Ok((!self.agent.alerts()?.is_empty()).then_some(()))
        })?;
        self.fleet.kill()?;
        std::thread::sleep(away);
        self.fleet.restart()?;
        self.delivered()
    }

    /// Waits until the fleet has every alert of the agent; checks that it has each once.
    ///
    /// # Errors
    /// When one is missing or doubled, or none names the attack.
    pub fn delivered(&mut self) -> Result<Vec<Value>, Failed> {
        wait_for("the alert", Duration::from_secs(20), || {
            self.agent.check()?;
            Ok((!self.agent.alerts()?.is_empty()).then_some(()))
        })?;
        // The window in which it happened has to end too.
        std::thread::sleep(Duration::from_millis(2500));
        let (wanted, alerts) = wait_for("the delivery of the alert", Duration::from_secs(240), || {
            self.agent.check()?;
            // The windows after an attack may bring more: asked anew each time. The server may be starting.
            let wanted = identities(&self.agent.alerts()?);
            let Ok(alerts) = self.fleet.alerts(DEVICE) else { return Ok(None) };
            let waiting = self.agent.status()?["heartbeat"]["outbox_waiting"].as_u64();
            let delivered = alerts.len() >= wanted.len() && waiting == Some(0);
            let none_came_meanwhile = identities(&self.agent.alerts()?) == wanted;
            Ok((delivered && none_came_meanwhile).then_some((wanted, alerts)))
        })?;
        let found = identities(&alerts);
        if alerts.len() != found.len() || found != wanted {
            return Err(Failed(format!(
                "the agent has {wanted:?}, the fleet {} alerts: {found:?}",
                alerts.len()
            )));
        }
        let about = |alert: &Value| {
            let reasons = alert["reasons"].as_array().cloned().unwrap_or_default();
            reasons
                .iter()
                .any(|reason| reason["text"].as_str().is_some_and(|text| text.contains("/etc/shadow")))
        };
        if !alerts.iter().any(about) {
            return Err(Failed(format!("no alert names /etc/shadow: {alerts:?}")));
        }
        Ok(alerts)
    }

    /// Ends everything in order.
    ///
    /// # Errors
    /// When a part had ended before, or ends with an error.
    pub fn stop(mut self) -> Result<(), Failed> {
        drop(self.gateway);
        self.agent.stop()?;
        self.fleet.stop()
    }

    fn check(&mut self) -> Result<(), Failed> {
        self.agent.check()?;
        self.gateway.check()
    }

    fn judged(&self) -> Result<u64, Failed> {
        let status = self.agent.status()?;
        Ok(counter(&status, "windows_judged"))
    }
}

/// A counter of `behaveguard status --json`.
#[must_use]
pub fn counter(status: &Value, name: &str) -> u64 {
    let counters = status["heartbeat"]["counters"].as_array();
    let found = counters.and_then(|counters| counters.iter().find(|counter| counter[0] == name));
    found.and_then(|counter| counter[1].as_u64()).unwrap_or(0)
}

/// What tells one alert from another, whoever shows it.
fn identities(alerts: &[Value]) -> BTreeSet<String> {
    let one = |alert: &Value| format!("{} {} {}", alert["unix_ms"], alert["pid"], alert["summary"]);
    alerts.iter().map(one).collect()
}
