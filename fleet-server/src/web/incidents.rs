//! Incidents: alerts that belong together, and work on all of them at once.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use super::access::Actor;
use super::alerts::{WorkRequest, answer, told};
use super::answers::{ChangedView, IncidentList, IncidentPage};
use super::error::{ApiError, Problem};
use super::extract::{Asked, Body, Id};
use super::views::IncidentView;
use super::{Answer, limit_of};
use crate::clock;
use crate::server::Shared;
use crate::store::{self, WorkState};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct IncidentsQuery {
    /// Those whose newest alert is older, milliseconds since 1970.
    before: Option<u64>,
    /// At most so many: 100 by default, 1000 at most.
    limit: Option<u32>,
    state: Option<WorkState>,
}

/// Incidents, the one with the newest alert first.
#[utoipa::path(get, path = "/incidents", tag = "incidents", params(IncidentsQuery), responses((status = 200, description = "Done.", body = IncidentList)))]
pub(super) async fn list(State(shared): State<Arc<Shared>>, Asked(query): Asked<IncidentsQuery>) -> Answer {
    let IncidentsQuery { before, limit, state } = query;
    let limit = limit_of(limit);
    let incidents = shared.store.search(move |c| store::incidents(c, before, limit, state)).await?;
    let views: Vec<_> = incidents.iter().map(IncidentView::from).collect();
    let next = incidents.last().map(|incident| incident.last_ms);
    Ok(Json(json!(IncidentList { incidents: views, next_before: next })))
}

/// One incident and the devices it is about.
#[utoipa::path(get, path = "/incidents/{id}", tag = "incidents", params(("id" = u64, Path)), responses((status = 200, description = "Done.", body = IncidentPage)))]
pub(super) async fn one(State(shared): State<Arc<Shared>>, Id(id): Id) -> Answer {
    let found = shared.store.read(move |c| store::incident(c, id)).await?;
    let (incident, devices) = found.ok_or_else(|| ApiError::not_found("incident"))?;
    Ok(Json(json!(IncidentPage { incident: IncidentView::from(&incident), devices: &devices })))
}

/// Changes the incident and its newest 1000 alerts.
#[utoipa::path(patch, path = "/incidents/{id}", tag = "incidents", request_body = WorkRequest, params(("id" = u64, Path)), responses((status = 200, description = "Done.", body = ChangedView), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn work(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Id(id): Id,
    Body(body): Body<WorkRequest>,
) -> Answer {
    let change = body.read()?;
    let audit = actor.audit(&shared, "incident.work", id.to_string(), told(&change));
    let who = actor.who;
    let worked =
        audit.write(&shared, move |c| store::work_on_incident(c, id, &change, &who, clock::unix_ms()));
    let worked = worked.await?.ok_or_else(|| ApiError::not_found("incident"))?;
    answer(&shared, worked).await
}
