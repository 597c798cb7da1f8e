//! Baselines: how far each is, and training them anew.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::access::Actor;
use super::error::ApiError;
use super::views::TrainingView;
use super::{Answer, body_of, device_of};
use crate::server::Shared;
use crate::store;

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Answer {
    let rows = shared.store.read(|c| store::training(c, None)).await?;
    let views: Vec<_> = rows.iter().map(|row| TrainingView::new(row, &shared)).collect();
    Ok(Json(json!({ "training": views })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrainRequest {
    device: String,
    program_key: String,
}

pub(super) async fn train(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    body: Result<Json<TrainRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let body = body_of(body)?;
    let device = device_of(&body.device)?;
    let wanted = device.clone();
    let rows = shared.store.read(move |c| store::training(c, Some(wanted.as_str()))).await?;
    if !rows.iter().any(|row| row.key == body.program_key) {
        return Err(ApiError::not_found("program on this device"));
    }
    if !shared.trainer.request(&device, &body.program_key) {
        return Err(ApiError::busy("too many trainings wait", "try again when some trainings are done"));
    }
    let audit = actor.audit(&shared, "training.start", device.as_str(), body.program_key);
    audit.write(&shared, |_| Ok(true)).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "state": "queued" }))).into_response())
}
