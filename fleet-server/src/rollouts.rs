//! A baseline of many devices on its way to them: a few first, and back by itself when they fare badly with it.
//!
//! ```text
//! canary ──wait, guard──► everyone ──wait, guard──► done
//!    └────────────┬──────────┘
//!            rolled_back: every device goes back to what it had
//! ```
//! Every [`LOOK_EVERY`] the facts of each rollout that is under way are read, [`decide`] says what follows, and the
//! change is stored together with its entry in the audit log. A server that was killed goes on where it was.

use std::sync::Arc;
use std::time::Duration;

use models::chain::chain;
use models::wire::Downlink;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::clock;
use crate::counters::Counter;
use crate::hub::Event;
use crate::names::DeviceId;
use crate::server::Shared;
use crate::silence;
use crate::staged;
use crate::store::{self, AuditRow, RolloutRow, StoreError};

/// How often rollouts are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Fewer alerts than this are no reason to go back: one odd window in a hundred is a promise kept.
const ALERTS_MIN: u64 = 3;

/// Devices with the baseline alarm too often when they do so many times as often as those without.
const TIMES_OTHERS: f64 = 3.0;

/// A rollout that cannot go on for so long waits for a person, in seconds.
const GIVE_UP_S: u64 = 7 * 86_400;

/// How a rollout goes on, and what takes it back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// How many of the devices are first, at least one.
    #[schema(minimum = 1, maximum = 100)]
    pub canary_percent: u32,
    /// How long each stage lasts at least, in seconds.
    #[schema(minimum = 10, maximum = 2_592_000)]
    pub wait_s: u32,
    /// Alerts of the program with this baseline, per device that uses it, that a stage may have; three are always
    /// allowed, and as many as three times those of devices without it.
    #[schema(minimum = 0, maximum = 1000)]
    pub alerts_per_device: f64,
    /// How many of the devices may refuse the baseline, and how many may fall silent or have their agent killed with it.
    #[schema(minimum = 0, maximum = 100)]
    pub unwell_percent: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self { canary_percent: 10, wait_s: 86_400, alerts_per_device: 1.0, unwell_percent: 20 }
    }
}

impl Plan {
    /// What is out of range.
    #[must_use]
    pub fn problem(&self) -> Option<&'static str> {
        if let Some(problem) = staged::problem(self.canary_percent, self.wait_s) {
            Some(problem)
        } else if !(0.0..=1000.0).contains(&self.alerts_per_device) {
            Some("alerts_per_device is from 0 to 1000")
        } else if self.unwell_percent > 100 {
            Some("unwell_percent is from 0 to 100")
        } else {
            None
        }
    }

    /// The first devices.
    #[must_use]
    pub fn canaries(&self, rollout: u64, mut targets: Vec<String>) -> Vec<String> {
        staged::draw(rollout, &mut targets, |device| device);
        targets.truncate(staged::first(self.canary_percent, targets.len()));
        targets
    }
}

/// How far a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The first devices have it.
    Canary,
    /// All that run the program have it, and are watched.
    Everyone,
    /// It is what devices use; those that come get it.
    Done,
    /// It was taken back.
    RolledBack,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 4] = [Self::Canary, Self::Everyone, Self::Done, Self::RolledBack];

    /// The name in the API and in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Canary => "canary",
            Self::Everyone => "everyone",
            Self::Done => "done",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Reads a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.as_str() == text)
    }

    /// It goes on by itself.
    #[must_use]
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Canary | Self::Everyone)
    }

    /// The stage after it.
    #[must_use]
    pub fn next(self) -> Self {
        match self {
            Self::Canary => Self::Everyone,
            Self::Everyone | Self::Done => Self::Done,
            Self::RolledBack => Self::RolledBack,
        }
    }
}

/// What a guard looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Devices that were offered the baseline.
    pub offered: u64,
    /// Of these, those that use it.
    pub active: u64,
    /// Of these, those that do not, or no longer.
    pub refused: u64,
    /// What one of them said.
    pub refusal: Option<String>,
    /// Devices that use it and fell silent, or whose agent was killed.
    pub unwell: u64,
    /// Alerts of the program by this baseline since the stage began.
    pub alerts: u64,
    /// Devices that run the program and are not part of it.
    pub others: u64,
    /// Of these, those that are silent.
    pub others_unwell: u64,
    /// Alerts of the program on these since the stage began.
    pub others_alerts: u64,
}

/// What follows from the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It waits, for this.
    Wait(String),
    /// The next stage, because of this.
    Next(String),
    /// Every device goes back to what it had, because of this.
    RollBack(String),
    /// A person has to look.
    Pause(String),
}

/// Says what follows for a rollout whose stage has lasted `for_s` seconds.
#[must_use]
pub fn decide(plan: &Plan, facts: &Facts, for_s: u64) -> Verdict {
    let Facts { offered, active, refused, unwell, alerts, others, others_unwell, others_alerts, .. } = *facts;
    let too_many = |n: u64, of: u64| n * 100 > of * u64::from(plan.unwell_percent);
    if refused > 0 && too_many(refused, offered) {
        let why = facts.refusal.as_deref().unwrap_or("no reason was given");
        return Verdict::RollBack(format!("{refused} of {offered} devices do not use it: {why}"));
    }
    // A link that is down for all is not the baseline's doing.
    if unwell > 0 && too_many(unwell, active) && unwell * others >= 2 * others_unwell * active {
        return Verdict::RollBack(format!(
            "{unwell} of {active} devices that use it fell silent or had their agent killed, {others_unwell} of {others} \
             others are silent"
        ));
    }
    let per_device = |n: u64, of: u64| n as f64 / of.max(1) as f64;
    let elsewhere = per_device(others_alerts, others);
    if alerts >= ALERTS_MIN && per_device(alerts, active) > plan.alerts_per_device {
        if per_device(alerts, active) > TIMES_OTHERS * elsewhere {
            return Verdict::RollBack(format!(
                "{alerts} alerts on {active} devices that use it, {others_alerts} on {others} others"
            ));
        }
        return Verdict::Wait(format!(
            "{alerts} alerts on {active} devices that use it, and {others_alerts} on {others} others: look at these first"
        ));
    }
    if active * 2 < offered || active == 0 {
        let text = format!("{active} of {offered} devices use it yet");
        return if for_s > GIVE_UP_S { Verdict::Pause(text) } else { Verdict::Wait(text) };
    }
    let wait_s = u64::from(plan.wait_s);
    if for_s < wait_s {
        return Verdict::Wait(format!("{} s more, with {active} of {offered} devices", wait_s - for_s));
    }
    Verdict::Next(format!(
        "{active} of {offered} devices used it for {for_s} s: {alerts} alerts, {unwell} unwell"
    ))
}

/// Looks after rollouts until the server stops.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let started_ms = clock::unix_ms();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        if let Err(error) = look(&shared, started_ms).await {
            log::error!("looking after rollouts: {}", chain(&error));
        }
    }
}

async fn look(shared: &Arc<Shared>, started_ms: u64) -> Result<(), StoreError> {
    if !shared.store.leads() {
        return Ok(());
    }
    for row in shared.store.read(store::rollouts_under_way).await? {
        let now_ms = clock::unix_ms();
        let heard_before_ms = silence::heard_before_ms(&shared.config, started_ms, now_ms);
        let of = row.clone();
        let facts = shared.store.search(move |c| store::rollout_facts(c, &of, heard_before_ms)).await?;
        let for_s = now_ms.saturating_sub(row.stage_ms) / 1000;
        let who = format!("rollout {}", row.id);
        match decide(&row.plan, &facts, for_s) {
            Verdict::Wait(reason) if reason == row.reason => {}
            Verdict::Wait(reason) => {
                shared.store.write(move |c| store::put_reason(c, &row, &reason)).await?;
            }
            Verdict::Next(reason) => {
                go_on(shared, row.clone(), row.stage.next(), reason, who, "").await?;
            }
            Verdict::RollBack(reason) => {
                go_on(shared, row, Stage::RolledBack, reason, who, "").await?;
            }
            Verdict::Pause(reason) => {
                let audit = audit_row(&row, who, "", "rollout.pause", &reason);
                let (counters, max) = (Arc::clone(&shared.counters), shared.config.audit_max);
                let job = move |c: &_| {
                    store::pause_rollout(c, row.id, true, now_ms)?;
                    store::put_audit(c, &counters, &audit, max)
                };
                shared.store.write(job).await?;
            }
        }
    }
    Ok(())
}

/// Brings a rollout to another stage, with its entry in the audit log, and tells the devices that it is about. `false` when
/// somebody else was faster: nothing is changed then.
///
/// # Errors
/// When the database fails.
pub(crate) async fn go_on(
    shared: &Arc<Shared>,
    row: RolloutRow,
    stage: Stage,
    reason: String,
    who: String,
    from: &str,
) -> Result<bool, StoreError> {
    let action = match stage {
        Stage::RolledBack => "rollout.roll_back",
        Stage::Done => "rollout.done",
        Stage::Canary | Stage::Everyone => "rollout.promote",
    };
    let audit = audit_row(&row, who, from, action, &reason);
    let (counters, max) = (Arc::clone(&shared.counters), shared.config.audit_max);
    let of = row.clone();
    let job = move |c: &_| {
        let Some(devices) = store::put_stage(c, &of, stage, &reason, clock::unix_ms())? else {
            return Ok(None);
        };
        store::put_audit(c, &counters, &audit, max)?;
        Ok(Some((devices, store::offer_of(c, of.baseline)?, reason)))
    };
    let Some((devices, offer, reason)) = shared.store.write(job).await? else { return Ok(false) };
    log::warn!("rollout {} of generation {} for {}: {action}: {reason}", row.id, row.generation, row.program);
    match stage {
        Stage::RolledBack => shared.counters.bump(Counter::RolloutsRolledBack),
        Stage::Done => shared.counters.bump(Counter::RolloutsDone),
        Stage::Canary | Stage::Everyone => {}
    }
    let message = match (stage, offer) {
        (Stage::RolledBack, _) => {
            Some(Downlink::TakeBack { program: row.program.clone(), generation: row.generation })
        }
        (_, offer) => offer.map(Downlink::Offer),
    };
    if let Some(message) = message {
        tell(shared, &devices, &message);
    }
    shared.hub.tell(Event::Rollout(row.id));
    Ok(true)
}

/// Tells devices that are connected; the others hear it when they come.
pub(crate) fn tell(shared: &Shared, devices: &[String], message: &Downlink) {
    for device in devices {
        if let Ok(device) = DeviceId::parse(device) {
            shared.hub.send(&device, message);
        }
    }
}

fn audit_row(row: &RolloutRow, who: String, from: &str, action: &str, reason: &str) -> AuditRow {
    AuditRow {
        id: 0,
        unix_ms: clock::unix_ms(),
        who,
        from: from.into(),
        action: action.into(),
        target: format!("generation {} for {}", row.generation, row.program),
        detail: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan { wait_s: 100, ..Plan::default() }
    }

    /// Ten canaries that fare well, among a hundred.
    fn well() -> Facts {
        Facts { offered: 10, active: 10, others: 90, ..Facts::default() }
    }

    #[test]
    fn a_baseline_that_devices_fare_well_with_goes_on_after_its_wait_and_not_before() {
        assert!(matches!(decide(&plan(), &well(), 99), Verdict::Wait(_)));
        assert!(matches!(decide(&plan(), &well(), 100), Verdict::Next(_)));
        // Two alerts are within the promise, and half of the devices are enough.
        assert!(matches!(decide(&plan(), &Facts { alerts: 2, ..well() }, 100), Verdict::Next(_)));
        assert!(matches!(decide(&plan(), &Facts { active: 5, ..well() }, 100), Verdict::Next(_)));
        for few in [0, 4] {
            let facts = Facts { active: few, ..well() };
            assert!(matches!(decide(&plan(), &facts, 100), Verdict::Wait(_)), "{few}");
            assert!(matches!(decide(&plan(), &facts, GIVE_UP_S + 1), Verdict::Pause(_)), "{few}");
        }
    }

    #[test]
    fn each_way_to_fare_badly_takes_it_back_at_once() {
        for (facts, told) in [
            (Facts { alerts: 11, ..well() }, "11 alerts on 10 devices"),
            (Facts { active: 1, offered: 1, alerts: 3, ..well() }, "3 alerts on 1 devices"),
            (
                Facts { active: 7, refused: 3, refusal: Some("too old".into()), ..well() },
                "do not use it: too old",
            ),
            (Facts { unwell: 3, ..well() }, "3 of 10 devices that use it fell silent"),
            (Facts { offered: 1, active: 0, refused: 1, others: 0, ..well() }, "1 of 1"),
        ] {
            let verdict = decide(&plan(), &facts, 5);
            assert!(matches!(&verdict, Verdict::RollBack(why) if why.contains(told)), "{verdict:?}");
        }
    }

    #[test]
    fn what_happens_everywhere_is_not_the_baselines_doing() {
        // An attack on all, and a link that is down for all.
        let attacked = Facts { alerts: 40, others_alerts: 300, ..well() };
        assert!(
            matches!(decide(&plan(), &attacked, 200), Verdict::Wait(why) if why.contains("look at these first"))
        );
        let cut_off = Facts { unwell: 5, others_unwell: 60, ..well() };
        assert!(!matches!(decide(&plan(), &cut_off, 50), Verdict::RollBack(_)));
    }

    #[test]
    fn canaries_are_the_share_asked_for_at_least_one_and_others_each_time() {
        let targets: Vec<String> = (0..200).map(|n| format!("gw-{n}")).collect();
        let of = |percent, rollout, n: usize| {
            let plan = Plan { canary_percent: percent, ..Plan::default() };
            plan.canaries(rollout, targets[..n].to_vec())
        };
        assert_eq!(of(10, 1, 200).len(), 20);
        assert_eq!(of(1, 1, 30).len(), 1);
        assert_eq!(of(100, 1, 30).len(), 30);
        assert_eq!(of(10, 1, 200), of(10, 1, 200));
        assert_ne!(of(10, 1, 200), of(10, 2, 200));
    }
}
