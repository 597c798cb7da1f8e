//! Baselines of many devices, and their way to them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use models::wire::Downlink;
use serde::Deserialize;
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::access::Actor;
use super::answers::{MadeView, RolloutList};
use super::error::{ApiError, Problem};
use super::extract::{Asked, Body, Id, Words, object};
use super::rollout_views::{RolloutPage, RolloutView};
use super::{Answer, device_of, limit_of};
use crate::clock;
use crate::hub::Event;
use crate::names::DeviceId;
use crate::rollouts::{self, Plan, Stage};
use crate::server::Shared;
use crate::store::{self, NotBegun, RolloutRow};

/// Devices that a rollout's page shows.
const SHOWN_MAX: u32 = 200;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RolloutsQuery {
    /// Those before this id.
    pub(super) before: Option<u64>,
    /// At most so many: 100 by default, 1000 at most.
    pub(super) limit: Option<u32>,
}

/// Rollouts, the newest first.
#[utoipa::path(get, path = "/rollouts", tag = "rollouts", params(RolloutsQuery), responses((status = 200, description = "Done.", body = RolloutList)))]
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Asked(RolloutsQuery { before, limit }): Asked<RolloutsQuery>,
) -> Answer {
    let limit = limit_of(limit);
    let rows = shared.store.read(move |c| store::rollouts(c, before, limit)).await?;
    let next_before = rows.last().map(|row| row.id);
    let views = rows.iter().map(RolloutView::from).collect();
    Ok(Json(json!(RolloutList { rollouts: views, next_before })))
}

/// One rollout, what its guard sees, and its devices: those first that do not use the baseline, 200 at most.
#[utoipa::path(get, path = "/rollouts/{id}", tag = "rollouts", params(("id" = u64, Path)), responses((status = 200, description = "Done.", body = RolloutPage)))]
pub(super) async fn one(State(shared): State<Arc<Shared>>, Id(id): Id) -> Answer {
    let silent_ms = u64::from(shared.config.silent_after_s) * 1000;
    let found = shared.store.search(move |c| {
        let Some(row) = store::rollout(c, id)? else { return Ok(None) };
        let facts = store::rollout_facts(c, &row, clock::unix_ms().saturating_sub(silent_ms))?;
        Ok(Some((store::rollout_devices(c, id, SHOWN_MAX)?, facts, row)))
    });
    let (devices, facts, row) = found.await?.ok_or_else(|| ApiError::not_found("rollout"))?;
    Ok(Json(json!(RolloutPage::new(&row, &facts, &devices))))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RolloutRequest {
    /// Which baseline.
    baseline: u64,
    #[serde(default, deserialize_with = "object")]
    plan: Option<Plan>,
}

/// Begins to roll out a baseline: a share of its devices first.
#[utoipa::path(post, path = "/rollouts", tag = "rollouts", request_body = RolloutRequest, responses((status = 201, description = "Begun.", body = MadeView), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Body(body): Body<RolloutRequest>,
) -> Result<Response, ApiError> {
    let plan = body.plan.unwrap_or_default();
    if let Some(problem) = plan.problem() {
        return Err(ApiError::bad_request(problem));
    }
    let baseline = body.baseline;
    let detail = serde_json::to_string(&plan).expect("a plan has a JSON form");
    let audit = actor.audit(&shared, "rollout.begin", format!("baseline {baseline}"), detail);
    let who = actor.who;
    let begun =
        audit.write(&shared, move |c| store::begin_rollout(c, baseline, &plan, &who, clock::unix_ms()));
    let conflict = |public: String, hint| Err(ApiError::new(StatusCode::CONFLICT, "conflict", public, hint));
    let id = match begun.await? {
        Ok(id) => id,
        Err(NotBegun::NoBaseline) => return Err(ApiError::not_found("baseline")),
        Err(NotBegun::NoDevice) => {
            return conflict("no device of its scope runs the program".into(), "check the devices' groups");
        }
        Err(NotBegun::UnderWay(id)) => {
            return conflict(
                format!("rollout {id} of the same program is under way"),
                "wait for its end, or roll it back",
            );
        }
        Err(NotBegun::Before(id)) => {
            return conflict(format!("rollout {id} has rolled it out before"), "train another generation");
        }
        Err(NotBegun::Full) => {
            return Err(ApiError::busy(
                "as many rollouts as may be are under way",
                "wait for the end of some",
            ));
        }
    };
    let (offer, devices) = shared
        .store
        .read(move |c| Ok((store::offer_of(c, baseline)?, store::rollout_devices(c, id, u32::MAX)?)))
        .await?;
    if let Some(offer) = offer {
        let devices: Vec<_> = devices.into_iter().map(|device| device.device).collect();
        rollouts::tell(&shared, &devices, &Downlink::Offer(offer));
    }
    shared.hub.tell(Event::Rollout(id));
    Ok((StatusCode::CREATED, Json(MadeView { id })).into_response())
}

/// What to do with a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum RolloutAction {
    /// Nothing goes on by itself.
    Pause,
    /// It goes on; the stage's time begins anew.
    Resume,
    /// The next stage now.
    Promote,
    /// Every device goes back to what it had.
    RollBack,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RolloutWork {
    action: RolloutAction,
}

/// Pauses, resumes, promotes or takes back a rollout. One that is done can still be taken back.
#[utoipa::path(patch, path = "/rollouts/{id}", tag = "rollouts", request_body = RolloutWork, params(("id" = u64, Path)), responses((status = 204, description = "Done."), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn work(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Id(id): Id,
    Body(RolloutWork { action }): Body<RolloutWork>,
) -> Result<StatusCode, ApiError> {
    let row = shared.store.read(move |c| store::rollout(c, id)).await?;
    let row = row.ok_or_else(|| ApiError::not_found("rollout"))?;
    let possible = match action {
        RolloutAction::RollBack => row.stage != Stage::RolledBack,
        RolloutAction::Promote | RolloutAction::Pause | RolloutAction::Resume => row.stage.is_under_way(),
    };
    let done = match action {
        _ if !possible => false,
        RolloutAction::Pause | RolloutAction::Resume => {
            let paused = action == RolloutAction::Pause;
            let name = if paused { "rollout.pause" } else { "rollout.resume" };
            let audit = actor.audit(&shared, name, told(&row), "");
            audit.write(&shared, move |c| store::pause_rollout(c, id, paused, clock::unix_ms())).await?
        }
        RolloutAction::Promote => step(&shared, &actor, row, None).await?,
        RolloutAction::RollBack => step(&shared, &actor, row, Some(Stage::RolledBack)).await?,
    };
    if !done {
        let public = "the rollout is not in a stage for this";
        return Err(ApiError::new(StatusCode::CONFLICT, "conflict", public, "look at its stage"));
    }
    shared.hub.tell(Event::Rollout(id));
    Ok(StatusCode::NO_CONTENT)
}

async fn step(
    shared: &Arc<Shared>,
    actor: &Actor,
    row: RolloutRow,
    stage: Option<Stage>,
) -> Result<bool, ApiError> {
    let stage = stage.unwrap_or_else(|| row.stage.next());
    let reason = format!("asked for by {}", actor.who);
    Ok(rollouts::go_on(shared, row, stage, reason, actor.who.clone(), actor.from()).await?)
}

fn told(row: &RolloutRow) -> String {
    format!("generation {} for {}", row.generation, row.program)
}

/// Keeps the baseline that a device has of a program, whatever is rolled out.
#[utoipa::path(put, path = "/devices/{id}/pins/{key}", tag = "rollouts", params(("id" = DeviceId, Path), ("key" = String, Path)), responses((status = 204, description = "Done.")))]
pub(super) async fn pin(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Words((device, key)): Words<(String, String)>,
) -> Result<StatusCode, ApiError> {
    set_pinned(&shared, &actor, device_of(&device)?, key, true).await
}

/// Lets a device take part in rollouts of a program again.
#[utoipa::path(delete, path = "/devices/{id}/pins/{key}", tag = "rollouts", params(("id" = DeviceId, Path), ("key" = String, Path)), responses((status = 204, description = "Done.")))]
pub(super) async fn unpin(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Words((device, key)): Words<(String, String)>,
) -> Result<StatusCode, ApiError> {
    set_pinned(&shared, &actor, device_of(&device)?, key, false).await
}

async fn set_pinned(
    shared: &Arc<Shared>,
    actor: &Actor,
    device: DeviceId,
    key: String,
    pinned: bool,
) -> Result<StatusCode, ApiError> {
    let name = if pinned { "device.pin" } else { "device.unpin" };
    let audit = actor.audit(shared, name, device.as_str(), key.as_str());
    let done = audit.write(shared, move |c| store::set_pinned(c, &device, &key, pinned));
    if done.await? { Ok(StatusCode::NO_CONTENT) } else { Err(ApiError::not_found("program on this device")) }
}
