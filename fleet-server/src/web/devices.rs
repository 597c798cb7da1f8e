//! Devices, what happened to their agents, and what they are asked to do.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use models::wire::Downlink;
use serde::Deserialize;
use serde_json::json;

use super::access::Actor;
use super::error::ApiError;
use super::views::{DeviceView, EventView};
use super::{Answer, body_of, device_of, limit_of, query_of};
use crate::clock;
use crate::hub::Event;
use crate::names::GroupId;
use crate::server::Shared;
use crate::store;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DevicesQuery {
    after: Option<String>,
    limit: Option<u32>,
    group: Option<String>,
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<DevicesQuery>, QueryRejection>,
) -> Answer {
    let DevicesQuery { after, limit, group } = query_of(query)?;
    let limit = limit_of(limit);
    let rows = shared
        .store
        .search(move |c| store::devices(c, after.as_deref().unwrap_or(""), limit, group.as_deref()))
        .await?;
    let now = clock::unix_ms();
    let views: Vec<_> =
        rows.iter().map(|row| DeviceView::new(row, shared.hub.is_online(&row.id), now)).collect();
    let next = (rows.len() == limit as usize).then(|| rows.last().map(|row| row.id.as_str())).flatten();
    Ok(Json(json!({ "devices": views, "next_after": next })))
}

pub(super) async fn one(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer {
    let row = shared.store.read(move |c| store::device(c, &id)).await?;
    let row = row.ok_or_else(|| ApiError::not_found("device"))?;
    Ok(Json(json!(DeviceView::new(&row, shared.hub.is_online(&row.id), clock::unix_ms()))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    after: Option<u64>,
    limit: Option<u32>,
    device: Option<String>,
}

pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Answer {
    let EventsQuery { after, limit, device } = query_of(query)?;
    let limit = limit_of(limit);
    let events = shared.store.read(move |c| store::events(c, after, limit, device.as_deref())).await?;
    let next = events.last().map(|event| event.id).or(after).unwrap_or(0);
    let views: Vec<_> = events.iter().map(EventView::from).collect();
    Ok(Json(json!({ "events": views, "next_after": next })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Changes {
    group: String,
}

/// Puts a device into another group.
pub(super) async fn change(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Path(id): Path<String>,
    body: Result<Json<Changes>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let device = device_of(&id)?;
    let group =
        GroupId::parse(&body_of(body)?.group).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let audit = actor.audit(&shared, "device.group", device.as_str(), group.as_str());
    let owner = device.clone();
    let there = audit.write(&shared, move |c| store::set_group(c, &owner, &group));
    if !there.await? {
        return Err(ApiError::not_found("device"));
    }
    shared.hub.tell(Event::Device(device));
    Ok(StatusCode::NO_CONTENT)
}

/// From now on nothing of the device is taken; its connection is closed.
pub(super) async fn revoke(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let device = device_of(&id)?;
    let audit = actor.audit(&shared, "device.revoke", device.as_str(), "");
    let owner = device.clone();
    let there = audit.write(&shared, move |c| store::revoke(c, &owner, clock::unix_ms()));
    if !there.await? {
        return Err(ApiError::not_found("device"));
    }
    shared.hub.close(&device);
    shared.hub.tell(Event::Device(device));
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseRequest {
    containment: u32,
}

pub(super) async fn release(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Path(id): Path<String>,
    body: Result<Json<ReleaseRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let ReleaseRequest { containment } = body_of(body)?;
    let device = device_of(&id)?;
    let wanted = device.clone();
    if shared.store.read(move |c| store::device(c, wanted.as_str())).await?.is_none() {
        return Err(ApiError::not_found("device"));
    }
    let audit = actor.audit(&shared, "device.release", device.as_str(), format!("containment {containment}"));
    let owner = device.clone();
    let kept = audit.write(&shared, move |c| store::put_release(c, &owner, containment, clock::unix_ms()));
    if !kept.await? {
        return Err(ApiError::busy("too many releases wait", "wait until the device has answered some"));
    }
    // Whoever is away gets it when it connects.
    shared.hub.send(&device, &Downlink::Release { containment });
    log::warn!("device {device} is asked by {} to release containment {containment}", actor.who);
    Ok((StatusCode::ACCEPTED, Json(json!({ "state": "asked" }))).into_response())
}
