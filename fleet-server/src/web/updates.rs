//! Program files of the agent, and updates to them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use models::program::hex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::access::Actor;
use super::answers::MadeView;
use super::error::{ApiError, Problem};
use super::extract::{Asked, Body, Id, object};
use super::rollouts::RolloutsQuery;
use super::{Answer, limit_of};
use crate::clock;
use crate::hub::Event;
use crate::names::GroupId;
use crate::server::Shared;
use crate::store::{self, Build, NotUpdated, UpdateRow};
use crate::updates::{self, Counts, Member, MemberState, Stage, UpdatePlan};

/// Devices that an update's page shows.
const SHOWN_MAX: usize = 200;

/// A program file that devices may be given.
#[derive(Serialize, ToSchema)]
#[schema(as = Build)]
struct BuildView<'a> {
    id: u64,
    version: &'a str,
    /// As the kernel calls the processor.
    arch: &'a str,
    sha256: String,
    size_bytes: u32,
    by: &'a str,
    created_unix_ms: u64,
}

#[derive(Serialize, ToSchema)]
pub(super) struct BuildList<'a> {
    builds: Vec<BuildView<'a>>,
}

/// Program files of the agent; `behaveguard-fleet build add` brings them.
#[utoipa::path(get, path = "/builds", tag = "updates", responses((status = 200, description = "Done.", body = BuildList)))]
pub(super) async fn builds(State(shared): State<Arc<Shared>>) -> Answer {
    let builds = shared.store.read(store::builds).await?;
    let view = |build: &'_ Build| {
        json!(BuildView {
            id: build.id,
            version: &build.file.version,
            arch: &build.file.arch,
            sha256: hex(&build.file.sha256),
            size_bytes: build.file.size,
            by: &build.by,
            created_unix_ms: build.created_ms,
        })
    };
    Ok(Json(json!({ "builds": builds.iter().map(view).collect::<Vec<_>>() })))
}

/// Removes a program file that no update is under way to.
#[utoipa::path(delete, path = "/builds/{id}", tag = "updates", params(("id" = u64, Path)), responses((status = 204, description = "Done.")))]
pub(super) async fn remove_build(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    let audit = actor.audit(&shared, "build.delete", id.to_string(), "");
    if audit.write(&shared, move |c| store::remove_build(c, id)).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found("program file that no update is under way to"))
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Update)]
struct UpdateView<'a> {
    id: u64,
    version: &'a str,
    /// The group it is for; null for the whole fleet.
    group: Option<&'a str>,
    plan: &'a UpdatePlan,
    stage: Stage,
    /// Nothing goes on by itself.
    paused: bool,
    by: &'a str,
    created_unix_ms: u64,
    /// When this stage began.
    stage_unix_ms: u64,
    /// Why it is where it is, or what it waits for.
    reason: &'a str,
}

impl<'a> From<&'a UpdateRow> for UpdateView<'a> {
    fn from(row: &'a UpdateRow) -> Self {
        Self {
            id: row.id,
            version: &row.version,
            group: row.group.as_deref(),
            plan: &row.plan,
            stage: row.stage,
            paused: row.paused,
            by: &row.by,
            created_unix_ms: row.created_ms,
            stage_unix_ms: row.stage_ms,
            reason: &row.reason,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct UpdateList<'a> {
    updates: Vec<UpdateView<'a>>,
    /// Ask `before` this for what is older.
    next_before: Option<u64>,
}

/// Updates of agents, the newest first.
#[utoipa::path(get, path = "/updates", tag = "updates", params(RolloutsQuery), responses((status = 200, description = "Done.", body = UpdateList)))]
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Asked(RolloutsQuery { before, limit }): Asked<RolloutsQuery>,
) -> Answer {
    let limit = limit_of(limit);
    let rows = shared.store.read(move |c| store::updates(c, before, limit)).await?;
    let next_before = rows.last().map(|row| row.id);
    Ok(Json(json!(UpdateList { updates: rows.iter().map(UpdateView::from).collect(), next_before })))
}

/// How far a device is.
#[derive(Serialize, ToSchema)]
#[schema(as = UpdateMember)]
struct MemberView<'a> {
    device: &'a str,
    /// It is one of the first.
    canary: bool,
    offered_unix_ms: u64,
    /// `waits`, `fetches`, `runs`, `refused` or `failed`.
    state: &'static str,
    /// Why, of the last two.
    reason: Option<&'a str>,
}

impl<'a> From<&'a Member> for MemberView<'a> {
    fn from(member: &'a Member) -> Self {
        let (state, reason) = match &member.state {
            MemberState::Waits => ("waits", None),
            MemberState::Fetches => ("fetches", None),
            MemberState::Runs => ("runs", None),
            MemberState::Refused(reason) => ("refused", Some(&**reason)),
            MemberState::Failed(reason) => ("failed", Some(&**reason)),
        };
        Self {
            device: &member.device,
            canary: member.canary,
            offered_unix_ms: member.offered_ms,
            state,
            reason,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = UpdateCounts)]
struct CountsView {
    given: usize,
    fetching: usize,
    runs: usize,
    refused: usize,
    failed: usize,
}

#[derive(Serialize, ToSchema)]
pub(super) struct UpdatePage<'a> {
    update: UpdateView<'a>,
    devices: CountsView,
    /// Those first that do not run it, 200 at most.
    members: Vec<MemberView<'a>>,
}

/// One update and its devices.
#[utoipa::path(get, path = "/updates/{id}", tag = "updates", params(("id" = u64, Path)), responses((status = 200, description = "Done.", body = UpdatePage)))]
pub(super) async fn one(State(shared): State<Arc<Shared>>, Id(id): Id) -> Answer {
    let silent_ms = u64::from(shared.config.silent_after_s) * 1000;
    let found = shared.store.search(move |c| {
        let Some(row) = store::update(c, id)? else { return Ok(None) };
        Ok(Some((row, store::members(c, id, clock::unix_ms().saturating_sub(silent_ms))?)))
    });
    let (row, mut members) = found.await?.ok_or_else(|| ApiError::not_found("update"))?;
    let Counts { given, fetching, runs, refused, failed } = Counts::of(&members);
    members.sort_by_key(|member| member.state == MemberState::Runs);
    Ok(Json(json!(UpdatePage {
        update: UpdateView::from(&row),
        devices: CountsView { given, fetching, runs, refused, failed },
        members: members.iter().take(SHOWN_MAX).map(MemberView::from).collect(),
    })))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateRequest {
    /// To which version, of which there are program files.
    #[schema(min_length = 1, max_length = 32)]
    version: String,
    /// Whose agents; null for the whole fleet.
    group: Option<GroupId>,
    #[serde(default, deserialize_with = "object")]
    plan: Option<UpdatePlan>,
}

/// Begins to update agents: a share of the devices first.
#[utoipa::path(post, path = "/updates", tag = "updates", request_body = UpdateRequest, responses((status = 201, description = "Begun.", body = MadeView), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Body(UpdateRequest { version, group, plan }): Body<UpdateRequest>,
) -> Result<Response, ApiError> {
    let plan = plan.unwrap_or_default();
    if let Some(problem) = plan.problem() {
        return Err(ApiError::bad_request(problem));
    }
    let whose = group.as_ref().map_or_else(|| "the fleet".to_owned(), |group| format!("group {group}"));
    let audit = actor.audit(&shared, "update.begin", format!("version {version}"), whose);
    let who = actor.who;
    let begun = audit.write(&shared, move |c| {
        store::begin_update(c, &version, group.as_ref().map(GroupId::as_str), &plan, &who, clock::unix_ms())
    });
    let conflict = |public: String, hint| Err(ApiError::new(StatusCode::CONFLICT, "conflict", public, hint));
    match begun.await? {
        Ok(id) => {
            shared.hub.tell(Event::Update(id));
            Ok((StatusCode::CREATED, Json(MadeView { id })).into_response())
        }
        Err(NotUpdated::NoBuild) => Err(ApiError::not_found("program file of this version")),
        Err(NotUpdated::NoDevice) => conflict(
            "no device there was heard that has a processor this version is built for".into(),
            "check the group, and the builds' `arch`",
        ),
        Err(NotUpdated::UnderWay(id)) => {
            conflict(format!("update {id} concerns some of them"), "wait for its end, or stop it")
        }
        Err(NotUpdated::Full) => {
            Err(ApiError::busy("as many updates as may be are under way", "wait for the end of some"))
        }
    }
}

/// What to do with an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum UpdateAction {
    /// Nothing goes on by itself.
    Pause,
    /// It goes on; the stage's time begins anew.
    Resume,
    /// Everyone now.
    Promote,
    /// No further device is given it.
    Stop,
    /// And those that have it run their packages' programs again.
    TakeBack,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateWork {
    action: UpdateAction,
}

/// Pauses, resumes, promotes, stops or takes back an update. One that has ended can still be taken back.
#[utoipa::path(patch, path = "/updates/{id}", tag = "updates", request_body = UpdateWork, params(("id" = u64, Path)), responses((status = 204, description = "Done."), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn work(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Id(id): Id,
    Body(UpdateWork { action }): Body<UpdateWork>,
) -> Result<StatusCode, ApiError> {
    let row = shared.store.read(move |c| store::update(c, id)).await?;
    let row = row.ok_or_else(|| ApiError::not_found("update"))?;
    let stage = match action {
        UpdateAction::Pause | UpdateAction::Resume => row.stage,
        UpdateAction::Promote => Stage::Everyone,
        UpdateAction::Stop => Stage::Stopped,
        UpdateAction::TakeBack => Stage::TakenBack,
    };
    let possible = match action {
        UpdateAction::TakeBack => row.stage != Stage::TakenBack,
        UpdateAction::Promote => row.stage == Stage::Canary,
        UpdateAction::Pause | UpdateAction::Resume | UpdateAction::Stop => row.stage.is_under_way(),
    };
    let done = match action {
        _ if !possible => false,
        UpdateAction::Pause | UpdateAction::Resume => {
            let paused = action == UpdateAction::Pause;
            let name = if paused { "update.pause" } else { "update.resume" };
            let audit = actor.audit(&shared, name, format!("version {}", row.version), "");
            audit.write(&shared, move |c| store::pause_update(c, id, paused, clock::unix_ms())).await?
        }
        UpdateAction::Promote | UpdateAction::Stop | UpdateAction::TakeBack => {
            let reason = format!("asked for by {}", actor.who);
            updates::go_on(&shared, row, stage, reason, (actor.who.clone(), actor.from())).await?
        }
    };
    if !done {
        let public = "the update is not in a stage for this";
        return Err(ApiError::new(StatusCode::CONFLICT, "conflict", public, "look at its stage"));
    }
    shared.hub.tell(Event::Update(id));
    Ok(StatusCode::NO_CONTENT)
}
