//! Devices, what happened to their agents, and what they are asked to do.

use std::collections::BTreeSet;
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
use super::answers::{DeviceList, EventList, QueuedView};
use super::error::ApiError;
use super::extract::{Asked, Body, OfDevice};
use super::views::{DeviceView, EventView};
use super::{Answer, limit_of};
use crate::clock;
use crate::hub::Event;
use crate::names::{DeviceId, GroupId, Tag};
use crate::server::Shared;
use crate::store;

/// Tags of one device at most.
const TAGS_MAX: usize = 16;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DevicesQuery {
    /// Those whose names come behind this.
    after: Option<String>,
    /// At most so many: 100 by default, 1000 at most.
    limit: Option<u32>,
    group: Option<String>,
    /// Those that have this tag.
    tag: Option<String>,
}

/// Devices by name.
#[utoipa::path(get, path = "/devices", tag = "devices", params(DevicesQuery), responses((status = 200, description = "Done.", body = DeviceList)))]
pub(super) async fn list(State(shared): State<Arc<Shared>>, Asked(query): Asked<DevicesQuery>) -> Answer {
    let DevicesQuery { after, limit, group, tag } = query;
    let limit = limit_of(limit);
    let rows = shared
        .store
        .search(move |c| {
            store::devices(c, after.as_deref().unwrap_or(""), limit, group.as_deref(), tag.as_deref())
        })
        .await?;
    let now = clock::unix_ms();
    let views: Vec<_> =
        rows.iter().map(|row| DeviceView::new(row, shared.hub.is_online(&row.id), now)).collect();
    let next = (rows.len() == limit as usize).then(|| rows.last().map(|row| row.id.as_str())).flatten();
    Ok(Json(json!(DeviceList { devices: views, next_after: next })))
}

/// One device, with its last heartbeat.
#[utoipa::path(get, path = "/devices/{id}", tag = "devices", params(("id" = DeviceId, Path)), responses((status = 200, description = "Done.", body = DeviceView)))]
pub(super) async fn one(State(shared): State<Arc<Shared>>, OfDevice(device): OfDevice) -> Answer {
    let row = shared.store.read(move |c| store::device(c, device.as_str())).await?;
    let row = row.ok_or_else(|| ApiError::not_found("device"))?;
    Ok(Json(json!(DeviceView::new(&row, shared.hub.is_online(&row.id), clock::unix_ms()))))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// The first behind this id; the newest without it.
    after: Option<u64>,
    /// At most so many: 100 by default, 1000 at most.
    limit: Option<u32>,
    device: Option<String>,
}

/// What happened to agents, in ascending order of ids.
#[utoipa::path(get, path = "/events", tag = "devices", params(EventsQuery), responses((status = 200, description = "Done.", body = EventList)))]
pub(super) async fn events(State(shared): State<Arc<Shared>>, Asked(query): Asked<EventsQuery>) -> Answer {
    let EventsQuery { after, limit, device } = query;
    let limit = limit_of(limit);
    let events = shared.store.read(move |c| store::events(c, after, limit, device.as_deref())).await?;
    let next = events.last().map(|event| event.id).or(after).unwrap_or(0);
    let views: Vec<_> = events.iter().map(EventView::from).collect();
    Ok(Json(json!(EventList { events: views, next_after: next })))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Changes {
    /// Puts it into this group.
    group: Option<GroupId>,
    /// Takes the place of those that it has.
    #[schema(max_items = 16, value_type = Option<Vec<Tag>>)]
    tags: Option<BTreeSet<Tag>>,
}

/// Puts a device into another group, or gives it other tags.
#[utoipa::path(patch, path = "/devices/{id}", tag = "devices", request_body = Changes, params(("id" = DeviceId, Path)), responses((status = 204, description = "Done.")))]
pub(super) async fn change(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    OfDevice(device): OfDevice,
    Body(body): Body<Changes>,
) -> Result<StatusCode, ApiError> {
    let Changes { group, tags } = body;
    if group.is_none() && tags.is_none() {
        return Err(ApiError::unprocessable("give `group`, `tags` or both"));
    }
    if tags.as_ref().is_some_and(|tags| tags.len() > TAGS_MAX) {
        return Err(ApiError::bad_request(format!("a device has at most {TAGS_MAX} tags")));
    }
    let told = |tags: &BTreeSet<Tag>| tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(" ");
    let told =
        [group.as_ref().map(ToString::to_string), tags.as_ref().map(|tags| format!("tags: {}", told(tags)))];
    let told = told.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let audit = actor.audit(&shared, "device.change", device.as_str(), told);
    let owner = device.clone();
    let job = move |c: &_| {
        let is_tagged = tags.map_or(Ok(true), |tags| store::set_tags(c, &owner, &tags))?;
        let is_moved =
            group.map_or(Ok(true), |group| store::set_group(c, &owner, &group, clock::unix_ms()))?;
        Ok(is_tagged && is_moved)
    };
    if !audit.write(&shared, job).await? {
        return Err(ApiError::not_found("device"));
    }
    shared.ordered.notify_one();
    shared.hub.tell(Event::Device(device));
    Ok(StatusCode::NO_CONTENT)
}

/// From now on nothing of the device is taken; its connection is closed.
#[utoipa::path(post, path = "/devices/{id}/revoke", tag = "devices", params(("id" = DeviceId, Path)), responses((status = 204, description = "Done.")))]
pub(super) async fn revoke(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    OfDevice(device): OfDevice,
) -> Result<StatusCode, ApiError> {
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

/// Refuses what is asked of a device that there is not.
pub(super) async fn must_exist(shared: &Shared, device: &DeviceId) -> Result<(), ApiError> {
    let wanted = device.clone();
    let row = shared.store.read(move |c| store::device(c, wanted.as_str())).await?;
    row.map(drop).ok_or_else(|| ApiError::not_found("device"))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseRequest {
    containment: u32,
}

/// Asks the device to undo a containment.
#[utoipa::path(post, path = "/devices/{id}/release", tag = "devices", request_body = ReleaseRequest, params(("id" = DeviceId, Path)), responses((status = 202, description = "Asked for.", body = QueuedView)))]
pub(super) async fn release(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    OfDevice(device): OfDevice,
    Body(body): Body<ReleaseRequest>,
) -> Result<Response, ApiError> {
    let ReleaseRequest { containment } = body;
    must_exist(&shared, &device).await?;
    let audit = actor.audit(&shared, "device.release", device.as_str(), format!("containment {containment}"));
    let owner = device.clone();
    let kept = audit.write(&shared, move |c| store::put_release(c, &owner, containment, clock::unix_ms()));
    if !kept.await? {
        return Err(ApiError::busy("too many releases wait", "wait until the device has answered some"));
    }
    // Whoever is away gets it when it connects.
    shared.hub.send(&device, &Downlink::Release { containment });
    log::warn!("device {device} is asked by {} to release containment {containment}", actor.who);
    Ok((StatusCode::ACCEPTED, Json(QueuedView { state: "asked" })).into_response())
}
