//! Baselines: how far each is, and training them anew.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::Answer;
use super::access::Actor;
use super::answers::{BaselineList, QueuedView, TrainingList};
use super::error::{ApiError, Problem};
use super::extract::{Body, Id};
use super::rollout_views::BaselineView;
use super::views::{GroupTrainingView, TrainingView};
use crate::names::{DeviceId, GroupId};
use crate::server::Shared;
use crate::store::{self, Removed, Scope};
use crate::trainer::Target;

/// How far the baselines of programs are.
#[utoipa::path(get, path = "/training", tag = "baselines", responses((status = 200, description = "Done.", body = TrainingList)))]
pub(super) async fn training(State(shared): State<Arc<Shared>>) -> Answer {
    let rows = shared.store.read(|c| store::training(c, None)).await?;
    let views: Vec<_> = rows.iter().map(|row| TrainingView::new(row, &shared)).collect();
    Ok(Json(json!(TrainingList { training: views })))
}

/// Baselines of many devices, the newest first.
#[utoipa::path(get, path = "/baselines", tag = "baselines", responses((status = 200, description = "Done.", body = BaselineList)))]
pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Answer {
    let rows = shared.store.read(store::baselines).await?;
    let training = shared.trainer.of_many();
    let training =
        training.into_iter().map(|(scope, key, state)| GroupTrainingView::new(&scope, &key, state));
    let baselines = rows.iter().map(BaselineView::from).collect();
    Ok(Json(json!(BaselineList { baselines, training: training.collect() })))
}

/// Removes a baseline that was never rolled out, or was rolled back.
#[utoipa::path(delete, path = "/baselines/{id}", tag = "baselines", params(("id" = u64, Path)), responses((status = 204, description = "Done."), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    let audit = actor.audit(&shared, "baseline.delete", id.to_string(), "");
    match audit.write(&shared, move |c| store::remove_baseline(c, id)).await? {
        Removed::Done => Ok(StatusCode::NO_CONTENT),
        Removed::Missing => Err(ApiError::not_found("baseline")),
        Removed::InUse => {
            let (public, hint) = ("devices use this baseline, or are about to", "roll it back first");
            Err(ApiError::new(StatusCode::CONFLICT, "in_use", public, hint))
        }
    }
}

/// For one device, for a group, or, with neither, for the whole fleet.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TrainRequest {
    device: Option<DeviceId>,
    group: Option<GroupId>,
    program_key: String,
}

/// Trains a new generation.
#[utoipa::path(post, path = "/training", tag = "baselines", request_body = TrainRequest, responses((status = 202, description = "Asked for.", body = QueuedView)))]
pub(super) async fn train(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Body(body): Body<TrainRequest>,
) -> Result<Response, ApiError> {
    let target = match (body.device, body.group) {
        (Some(_), Some(_)) => return Err(ApiError::unprocessable("give `device` or `group`, not both")),
        (Some(device), None) => Target::Device(device),
        (None, Some(group)) => Target::Many(Scope::Group(group)),
        (None, None) => Target::Many(Scope::Fleet),
    };
    let (wanted, key) = (target.clone(), body.program_key.clone());
    let there = shared.store.read(move |c| match &wanted {
        Target::Device(device) => store::has_windows(c, Some(device), None, &key),
        Target::Many(scope) => store::has_windows(c, None, scope.group(), &key),
    });
    if !there.await? {
        return Err(ApiError::not_found("program with windows there"));
    }
    if shared.signer.check().is_err() {
        return Err(ApiError::busy("the signing key is away", "bring the file that `signing_key` names"));
    }
    if !shared.trainer.request(&target, &body.program_key, &actor.who) {
        return Err(ApiError::busy("too many trainings wait", "try again when some trainings are done"));
    }
    let audit = actor.audit(&shared, "training.start", target.to_string(), body.program_key);
    audit.write(&shared, |_| Ok(true)).await?;
    Ok((StatusCode::ACCEPTED, Json(QueuedView { state: "queued" })).into_response())
}
