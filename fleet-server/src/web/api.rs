//! The handlers of `/api/v1`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use models::program::hex;
use models::wire::Downlink;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::views::{AlertView, DeviceView, EventView, TrainingView};
use crate::clock;
use crate::counters::Counter;
use crate::device::DeviceId;
use crate::hub::Event;
use crate::server::Shared;
use crate::store::{self, Enrol};
use crate::ticket::{self, Ticket};

/// Alerts in one answer at most.
const ALERTS_MAX: u32 = 1000;

/// How long a ticket may be good, in seconds.
const TTL_MAX_S: u64 = 30 * 86_400;

type Answer = Result<Json<Value>, ApiError>;

pub(super) async fn health(State(shared): State<Arc<Shared>>) -> Answer {
    shared.store.read(|c| store::device(c, "-")).await?;
    Ok(Json(
        json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION"), "devices_online": shared.hub.online() }),
    ))
}

pub(super) async fn ca(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "application/x-pem-file")], shared.pki.ca_pem().to_string()).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AlertsQuery {
    after: Option<u64>,
    limit: Option<u32>,
    device: Option<String>,
}

pub(super) async fn alerts(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<AlertsQuery>, QueryRejection>,
) -> Answer {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let limit = query.limit.unwrap_or(100).clamp(1, ALERTS_MAX);
    let alerts =
        shared.store.read(move |c| store::alerts(c, query.after, limit, query.device.as_deref())).await?;
    let next = alerts.last().map(|alert| alert.id).or(query.after).unwrap_or(0);
    let views: Vec<_> = alerts.iter().map(AlertView::from).collect();
    Ok(Json(json!({ "alerts": views, "next_after": next })))
}

pub(super) async fn alert(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer {
    let id = id.parse().map_err(|_| ApiError::bad_request("an alert's id is a number"))?;
    let alert = shared.store.read(move |c| store::alert(c, id)).await?;
    let alert = alert.ok_or_else(|| ApiError::not_found("alert"))?;
    Ok(Json(json!(AlertView::from(&alert))))
}

pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<AlertsQuery>, QueryRejection>,
) -> Answer {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let limit = query.limit.unwrap_or(100).clamp(1, ALERTS_MAX);
    let events =
        shared.store.read(move |c| store::events(c, query.after, limit, query.device.as_deref())).await?;
    let next = events.last().map(|event| event.id).or(query.after).unwrap_or(0);
    let views: Vec<_> = events.iter().map(EventView::from).collect();
    Ok(Json(json!({ "events": views, "next_after": next })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseRequest {
    containment: u32,
}

pub(super) async fn release(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    body: Result<Json<ReleaseRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(ReleaseRequest { containment }) =
        body.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let device = DeviceId::parse(&id).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let wanted = device.clone();
    if shared.store.read(move |c| store::device(c, wanted.as_str())).await?.is_none() {
        return Err(ApiError::not_found("device"));
    }
    let owner = device.clone();
    let kept =
        shared.store.write(move |c| store::put_release(c, &owner, containment, clock::unix_ms())).await?;
    if !kept {
        let hint = "wait until the device has answered some";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many releases wait", hint));
    }
    // Whoever is away gets it when it connects.
    shared.hub.send(&device, &Downlink::Release { containment });
    log::warn!("device {device} is asked to release containment {containment}");
    Ok((StatusCode::ACCEPTED, Json(json!({ "state": "asked" }))).into_response())
}

pub(super) async fn devices(State(shared): State<Arc<Shared>>) -> Answer {
    let rows = shared.store.read(store::devices).await?;
    let now = clock::unix_ms();
    let views: Vec<_> =
        rows.iter().map(|row| DeviceView::new(row, shared.hub.is_online(&row.id), now)).collect();
    Ok(Json(json!({ "devices": views })))
}

pub(super) async fn training(State(shared): State<Arc<Shared>>) -> Answer {
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
    body: Result<Json<TrainRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(body) = body.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let device = DeviceId::parse(&body.device).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let wanted = device.clone();
    let rows = shared.store.read(move |c| store::training(c, Some(wanted.as_str()))).await?;
    if !rows.iter().any(|row| row.key == body.program_key) {
        return Err(ApiError::not_found("program on this device"));
    }
    if !shared.trainer.request(&device, &body.program_key) {
        let hint = "try again when some trainings are done";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many trainings wait", hint));
    }
    Ok((StatusCode::ACCEPTED, Json(json!({ "state": "queued" }))).into_response())
}

pub(super) async fn counters(State(shared): State<Arc<Shared>>) -> Answer {
    let counters: Map<_, _> =
        shared.counters.all().map(|(name, value)| (name.into(), Value::from(value))).collect();
    Ok(Json(json!({ "counters": counters })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TicketRequest {
    device: String,
    ttl_s: Option<u64>,
}

pub(super) async fn tickets(
    State(shared): State<Arc<Shared>>,
    body: Result<Json<TicketRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(body) = body.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let device = DeviceId::parse(&body.device).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let ttl_s = body.ttl_s.unwrap_or(3600);
    if !(1..=TTL_MAX_S).contains(&ttl_s) {
        return Err(ApiError::bad_request(format!("ttl_s must be from 1 to {TTL_MAX_S}")));
    }
    let (url, ca_pem) = (shared.addresses.web_url.clone(), shared.pki.ca_pem().to_string());
    let ticket = Ticket { v: 1, url, secret: ticket::random_secret(), ca_pem };
    let hash = ticket::secret_hash(&ticket.secret);
    let now = clock::unix_s();
    let stored = shared.store.write(move |c| store::add_ticket(c, hash, &device, now + ttl_s, now)).await?;
    if !stored {
        let hint = "wait for some to expire";
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many tickets are open",
            hint,
        ));
    }
    let answer = json!({ "ticket": ticket.encode(), "expires_unix_s": now + ttl_s });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EnrolRequest {
    secret: String,
    device: String,
    csr_pem: String,
}

pub(super) async fn enroll(
    State(shared): State<Arc<Shared>>,
    body: Result<Json<EnrolRequest>, JsonRejection>,
) -> Answer {
    let result = enroll_checked(&shared, body).await;
    if let Err(error) = &result {
        shared.counters.bump(Counter::EnrolRefused);
        log::warn!("an enrolment was refused: {error}");
    }
    result
}

async fn enroll_checked(shared: &Shared, body: Result<Json<EnrolRequest>, JsonRejection>) -> Answer {
    let Json(body) = body.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let device = DeviceId::parse(&body.device).map_err(|error| ApiError::bad_request(error.to_string()))?;
    // Signed before the ticket is used up, so that a bad request does not cost the ticket.
    let signed = shared.pki.sign_device(&device, &body.csr_pem, clock::unix_s())?;
    let (hash, owner, certificate) = (ticket::secret_hash(&body.secret), device.clone(), signed.sha256);
    let enrolled =
        shared.store.write(move |c| store::enrol(c, hash, &owner, certificate, clock::unix_ms())).await?;
    let refused = |code, public| {
        Err(ApiError::new(StatusCode::FORBIDDEN, code, public, "make a new ticket: behaveguard-fleet ticket"))
    };
    match enrolled {
        Enrol::Done => {}
        Enrol::NoSuchTicket => return refused("no_such_ticket", "no such ticket for this device"),
        Enrol::Used => return refused("ticket_used", "the ticket was used before"),
        Enrol::Expired => return refused("ticket_expired", "the ticket has expired"),
    }
    shared.counters.bump(Counter::Enrolled);
    log::info!("device {device} enrolled");
    shared.hub.tell(Event::Device(device));
    Ok(Json(json!({
        "certificate_pem": signed.pem,
        "ca_pem": shared.pki.ca_pem(),
        "mqtt": shared.config.host_for(shared.addresses.mqtt),
        "bundle_keys": [hex(&shared.pki.signing().public().0)],
    })))
}
