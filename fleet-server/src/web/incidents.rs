//! Incidents: alerts that belong together, and work on all of them at once.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::json;

use super::access::Actor;
use super::alerts::{WorkRequest, answer, id_of, state_of, told};
use super::error::ApiError;
use super::views::IncidentView;
use super::{Answer, body_of, limit_of, query_of};
use crate::clock;
use crate::server::Shared;
use crate::store;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IncidentsQuery {
    before: Option<u64>,
    limit: Option<u32>,
    state: Option<String>,
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<IncidentsQuery>, QueryRejection>,
) -> Answer {
    let IncidentsQuery { before, limit, state } = query_of(query)?;
    let state = state.as_deref().map(state_of).transpose()?;
    let limit = limit_of(limit);
    let incidents = shared.store.search(move |c| store::incidents(c, before, limit, state)).await?;
    let views: Vec<_> = incidents.iter().map(IncidentView::from).collect();
    let next = incidents.last().map(|incident| incident.last_ms);
    Ok(Json(json!({ "incidents": views, "next_before": next })))
}

pub(super) async fn one(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer {
    let id = id_of(&id)?;
    let found = shared.store.read(move |c| store::incident(c, id)).await?;
    let (incident, devices) = found.ok_or_else(|| ApiError::not_found("incident"))?;
    Ok(Json(json!({ "incident": IncidentView::from(&incident), "devices": devices })))
}

pub(super) async fn work(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Path(id): Path<String>,
    body: Result<Json<WorkRequest>, JsonRejection>,
) -> Answer {
    let id = id_of(&id)?;
    let change = body_of(body)?.read()?;
    let audit = actor.audit(&shared, "incident.work", id.to_string(), told(&change));
    let who = actor.who;
    let worked =
        audit.write(&shared, move |c| store::work_on_incident(c, id, &change, &who, clock::unix_ms()));
    let worked = worked.await?.ok_or_else(|| ApiError::not_found("incident"))?;
    answer(&shared, worked).await
}
