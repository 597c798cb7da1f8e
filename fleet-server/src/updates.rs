//! Updates of the agent: a few devices first, then the others, some at a time; stopped by itself when one does not come back.
//!
//! A device that does not come back with the new program runs its package's again by itself (`agent/src/updates.rs`). What the fleet
//! adds is that the others are not given it then.

use std::sync::Arc;
use std::time::Duration;

use models::chain::chain;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::clock;
use crate::hub::Event;
use crate::server::Shared;
use crate::silence;
use crate::staged;
use crate::store::{self, AuditRow, StoreError, UpdateRow};

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Devices that fetch at once, when it is everyone's turn.
const AT_ONCE: usize = 50;

/// How an update goes on, and what stops it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpdatePlan {
    /// How many of the devices are first, at least one.
    #[schema(minimum = 1, maximum = 100)]
    pub canary_percent: u32,
    /// How long the first ones are watched at least, in seconds.
    #[schema(minimum = 10, maximum = 2_592_000)]
    pub wait_s: u32,
    /// How many of those that were given it may fail when it is everyone's turn. Of the first ones none may.
    #[schema(minimum = 0, maximum = 100)]
    pub failed_percent: u32,
}

impl Default for UpdatePlan {
    fn default() -> Self {
        Self { canary_percent: 10, wait_s: 86_400, failed_percent: 5 }
    }
}

impl UpdatePlan {
    /// What is out of range.
    #[must_use]
    pub fn problem(&self) -> Option<&'static str> {
        if let Some(problem) = staged::problem(self.canary_percent, self.wait_s) {
            Some(problem)
        } else if self.failed_percent > 100 {
            Some("failed_percent is from 0 to 100")
        } else {
            None
        }
    }
}

/// How far an update is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = UpdateStage)]
pub enum Stage {
    /// The first devices.
    Canary,
    /// All others.
    Everyone,
    /// Every device has it, or refused it.
    Done,
    /// No further device is given it.
    Stopped,
    /// Those that had it run their packages' programs again.
    TakenBack,
}

impl Stage {
    const ALL: [Self; 5] = [Self::Canary, Self::Everyone, Self::Done, Self::Stopped, Self::TakenBack];

    /// The name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Canary => "canary",
            Self::Everyone => "everyone",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::TakenBack => "taken_back",
        }
    }

    /// Reads a name; what is not known goes no further.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self::ALL.into_iter().find(|stage| stage.as_str() == text).unwrap_or(Self::Stopped)
    }

    /// It goes on by itself.
    #[must_use]
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Canary | Self::Everyone)
    }
}

/// What became of an update on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It did not hear of it yet.
    Waits,
    /// It fetches it, or starts it.
    Fetches,
    /// It runs it.
    Runs,
    /// It will not, and why.
    Refused(String),
    /// It tried, and runs its package's program again; or it is silent.
    Failed(String),
}

/// A device that was given an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub device: String,
    /// It is one of the first.
    pub canary: bool,
    /// When, milliseconds since 1970.
    pub offered_ms: u64,
    /// How far it is.
    pub state: MemberState,
}

/// Devices by what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Were given it.
    pub given: usize,
    /// Fetch it.
    pub fetching: usize,
    /// Run it.
    pub runs: usize,
    /// Refused it.
    pub refused: usize,
    /// Failed.
    pub failed: usize,
}

impl Counts {
    /// Counts them.
    #[must_use]
    pub fn of(members: &[Member]) -> Self {
        let mut counts = Self { given: members.len(), ..Self::default() };
        for member in members {
            match member.state {
                MemberState::Waits => {}
                MemberState::Fetches => counts.fetching += 1,
                MemberState::Runs => counts.runs += 1,
                MemberState::Refused(_) => counts.refused += 1,
                MemberState::Failed(_) => counts.failed += 1,
            }
        }
        counts
    }

    fn are_settled(&self) -> bool {
        self.runs + self.refused + self.failed == self.given
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// For this.
    Wait(String),
    /// So many more are given it.
    Give(usize),
    /// Another stage, and why.
    Go(Stage, String),
}

/// What is to be done; `left` devices were not given it yet, for `for_s` it has been in this stage.
fn decide(plan: &UpdatePlan, stage: Stage, members: &[Member], left: usize, for_s: u64) -> Verdict {
    let counts = Counts::of(members);
    let first = |wanted: fn(&MemberState) -> Option<&String>| {
        let found = members.iter().find_map(|member| Some((member, wanted(&member.state)?)));
        found.map_or_else(String::new, |(member, why)| format!("{}: {why}", member.device))
    };
    let failure = || first(|state| if let MemberState::Failed(why) = state { Some(why) } else { None });
    let refusal = || first(|state| if let MemberState::Refused(why) = state { Some(why) } else { None });
    let allowed = if stage == Stage::Canary { 0 } else { counts.given * plan.failed_percent as usize / 100 };
    if counts.failed > allowed {
        return Verdict::Go(
            Stage::Stopped,
            format!("{} of {} failed: {}", counts.failed, counts.given, failure()),
        );
    }
    if stage == Stage::Canary {
        let canaries = staged::first(plan.canary_percent, counts.given + left);
        return if counts.given < canaries && left > 0 {
            Verdict::Give(canaries - counts.given)
        } else if !counts.are_settled() {
            Verdict::Wait(format!("{} of the first {} run it", counts.runs, counts.given))
        } else if counts.runs == 0 {
            Verdict::Go(Stage::Stopped, format!("none of the first {} runs it: {}", counts.given, refusal()))
        } else if for_s < u64::from(plan.wait_s) {
            Verdict::Wait(format!("the first {} run it, for {} s of {}", counts.runs, for_s, plan.wait_s))
        } else {
            Verdict::Go(Stage::Everyone, format!("{} of the first {} run it", counts.runs, counts.given))
        };
    }
    let room = AT_ONCE.saturating_sub(counts.fetching).min(left);
    if room > 0 {
        Verdict::Give(room)
    } else if left == 0 && counts.are_settled() {
        Verdict::Go(Stage::Done, format!("{} run it, {} refused it", counts.runs, counts.refused))
    } else {
        Verdict::Wait(format!("{} of {} run it", counts.runs, counts.given + left))
    }
}

/// Looks after updates until the server stops.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let started_ms = clock::unix_ms();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        if shared.store.leads()
            && let Err(error) = look(&shared, started_ms).await
        {
            log::error!("looking after updates: {}", chain(&error));
        }
    }
}

async fn look(shared: &Arc<Shared>, started_ms: u64) -> Result<(), StoreError> {
    for row in shared.store.read(store::updates_under_way).await? {
        if row.paused {
            continue;
        }
        let now_ms = clock::unix_ms();
        let heard_before_ms = silence::heard_before_ms(&shared.config, started_ms, now_ms);
        let of = row.clone();
        let query = move |c: &_| {
            let members = store::members(c, of.id, heard_before_ms)?;
            Ok((store::targets(c, &of.version, of.group.as_deref())?, members))
        };
        let (mut left, members) = shared.store.search(query).await?;
        members.iter().for_each(|member| _ = left.remove(&member.device));
        let for_s = now_ms.saturating_sub(row.stage_ms) / 1000;
        match decide(&row.plan, row.stage, &members, left.len(), for_s) {
            Verdict::Wait(reason) if reason == row.reason => {}
            Verdict::Wait(reason) => {
                let stage = row.stage;
                shared.store.write(move |c| store::put_update_stage(c, &row, stage, &reason, now_ms)).await?;
            }
            Verdict::Give(n) => {
                let mut left: Vec<_> = left.into_iter().collect();
                staged::draw(row.id, &mut left, |(device, _)| device);
                left.truncate(n);
                let id = row.id;
                shared.store.write(move |c| store::give(c, &row, &left, now_ms)).await?;
                shared.hub.tell(Event::Update(id));
            }
            Verdict::Go(stage, reason) => {
                let who = format!("update {}", row.id);
                go_on(shared, row, stage, reason, (who, "")).await?;
            }
        }
    }
    Ok(())
}

/// Brings an update to another stage, with its entry in the audit log. `false` when somebody else was faster.
///
/// # Errors
/// When the database fails.
pub(crate) async fn go_on(
    shared: &Arc<Shared>,
    row: UpdateRow,
    stage: Stage,
    reason: String,
    (who, from): (String, &str),
) -> Result<bool, StoreError> {
    log::warn!("update {} to version {}: {}: {reason}", row.id, row.version, stage.as_str());
    let audit = AuditRow {
        id: 0,
        unix_ms: clock::unix_ms(),
        who,
        from: from.into(),
        action: format!("update.{}", stage.as_str()),
        target: format!("version {}", row.version),
        detail: reason.clone(),
    };
    let (counters, max, id) = (Arc::clone(&shared.counters), shared.config.audit_max, row.id);
    let job = move |c: &_| {
        let done = store::put_update_stage(c, &row, stage, &reason, clock::unix_ms())?;
        if done {
            store::put_audit(c, &counters, &audit, max)?;
        }
        Ok(done)
    };
    let done = shared.store.write(job).await?;
    shared.hub.tell(Event::Update(id));
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(states: &[MemberState]) -> Vec<Member> {
        let member = |(n, state): (usize, &MemberState)| Member {
            device: format!("gw-{n}"),
            canary: true,
            offered_ms: 1,
            state: state.clone(),
        };
        states.iter().enumerate().map(member).collect()
    }

    #[test]
    fn the_first_devices_decide_whether_the_others_are_given_it() {
        use MemberState::{Failed, Fetches, Refused, Runs, Waits};
        let plan = UpdatePlan { canary_percent: 20, wait_s: 60, failed_percent: 50 };
        let check =
            |stage, states: &[MemberState], left, for_s| decide(&plan, stage, &members(states), left, for_s);
        let stopped = |verdict, wanted: &str| match verdict {
            Verdict::Go(Stage::Stopped, reason) => assert!(reason.contains(wanted), "{reason}"),
            other => panic!("{other:?}"),
        };
        assert_eq!(check(Stage::Canary, &[], 10, 0), Verdict::Give(2));
        assert_eq!(check(Stage::Canary, &[Runs], 9, 0), Verdict::Give(1));
        assert!(matches!(check(Stage::Canary, &[Runs, Fetches], 8, 600), Verdict::Wait(_)));
        assert!(matches!(check(Stage::Canary, &[Runs, Runs], 8, 59), Verdict::Wait(_)));
        assert!(matches!(
            check(Stage::Canary, &[Runs, Refused("no".into())], 8, 60),
            Verdict::Go(Stage::Everyone, _)
        ));
        stopped(check(Stage::Canary, &[Runs, Failed("it died".into())], 8, 60), "gw-1: it died");
        stopped(check(Stage::Canary, &vec![Refused("no keys".into()); 2], 8, 60), "gw-0: no keys");

        assert_eq!(check(Stage::Everyone, &[Runs, Fetches], 100, 0), Verdict::Give(49));
        assert_eq!(
            check(Stage::Everyone, &vec![Waits; 60], 3, 0),
            Verdict::Give(3),
            "who is away holds nobody up"
        );
        assert!(matches!(check(Stage::Everyone, &vec![Fetches; 50], 3, 0), Verdict::Wait(_)));
        assert!(matches!(
            check(Stage::Everyone, &[Runs, Failed(String::new())], 0, 0),
            Verdict::Go(Stage::Done, _)
        ));
        stopped(
            check(Stage::Everyone, &[Failed("a".into()), Failed("b".into()), Runs], 9, 0),
            "2 of 3 failed",
        );
        assert!(matches!(check(Stage::Everyone, &[Runs, Waits], 0, 0), Verdict::Wait(_)));
    }
}
