//! The server itself: whether it is well, what it counted, and who changed what.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::admin_views::AuditView;
use super::answers::{AuditList, CountersView, HealthView};
use super::error::ApiError;
use super::extract::Asked;
use super::views::OverviewView;
use super::{Answer, limit_of};
use crate::clock;
use crate::counters::Counter;
use crate::server::Shared;
use crate::store;

/// Whether the server is well.
#[utoipa::path(get, path = "/health", tag = "system", responses((status = 200, description = "Done.", body = HealthView)))]
pub(super) async fn health(State(shared): State<Arc<Shared>>) -> Answer {
    shared.store.read(|c| store::device(c, "-")).await?;
    let (version, devices_online) = (env!("CARGO_PKG_VERSION"), shared.hub.online());
    Ok(Json(json!(HealthView { status: "ok", version, devices_online })))
}

/// The certificate of the server's authority.
#[utoipa::path(get, path = "/ca.pem", tag = "system", responses((status = 200, description = "Done.", body = String, content_type = "application/x-pem-file")))]
pub(super) async fn ca(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "application/x-pem-file")], shared.pki.ca_pem().to_string()).into_response()
}

/// The certificates of devices that are worth nothing although they have not ended (RFC 5280), for a broker of others: good for 30
/// days.
#[utoipa::path(get, path = "/crl.pem", tag = "system", responses((status = 200, description = "Done.", body = String, content_type = "application/x-pem-file")))]
pub(super) async fn crl(State(shared): State<Arc<Shared>>) -> Result<Response, ApiError> {
    let now_s = clock::unix_s();
    let withdrawn = shared.store.search(move |c| store::withdrawn(c, now_s)).await?;
    let list = shared.pki.sign_crl(&withdrawn, now_s)?;
    Ok(([(header::CONTENT_TYPE, "application/x-pem-file")], list).into_response())
}

/// The last 24 hours at a glance.
#[utoipa::path(get, path = "/overview", tag = "system", responses((status = 200, description = "Done.", body = OverviewView)))]
pub(super) async fn overview(State(shared): State<Arc<Shared>>) -> Answer {
    let overview = shared.store.search(|c| store::overview(c, clock::unix_ms())).await?;
    Ok(Json(json!(OverviewView::new(&overview, shared.hub.online(), shared.signer.check().is_ok()))))
}

/// Everything that is counted.
#[utoipa::path(get, path = "/counters", tag = "system", responses((status = 200, description = "Done.", body = CountersView)))]
pub(super) async fn counters(State(shared): State<Arc<Shared>>) -> Answer {
    let counters = shared.counters.all().map(|(name, value)| (name.into(), Value::from(value))).collect();
    Ok(Json(json!(CountersView { counters })))
}

/// Everything that is counted, in the Prometheus text format 0.0.4.
#[utoipa::path(get, path = "/metrics", tag = "system", responses((status = 200, description = "Done.", body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let mut text = String::new();
    for counter in Counter::ALL {
        let (name, help, value) = (counter.name(), counter.help(), shared.counters.get(*counter));
        let _ = write!(
            text,
            "# HELP behaveguard_fleet_{name}_total {help}\n# TYPE behaveguard_fleet_{name}_total counter\n\
             behaveguard_fleet_{name}_total {value}\n"
        );
    }
    let online = shared.hub.online();
    let _ = write!(
        text,
        "# HELP behaveguard_fleet_devices_online Devices that are connected.\n\
         # TYPE behaveguard_fleet_devices_online gauge\nbehaveguard_fleet_devices_online {online}\n"
    );
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Those before this id.
    before: Option<u64>,
    /// At most so many: 100 by default, 1000 at most.
    limit: Option<u32>,
}

/// Who changed what, the newest first.
#[utoipa::path(get, path = "/audit", tag = "system", params(AuditQuery), responses((status = 200, description = "Done.", body = AuditList)))]
pub(super) async fn audit(State(shared): State<Arc<Shared>>, Asked(query): Asked<AuditQuery>) -> Answer {
    let AuditQuery { before, limit } = query;
    let limit = limit_of(limit);
    let entries = shared.store.read(move |c| store::audit(c, before, limit)).await?;
    let next = entries.last().map(|entry| entry.id);
    let views: Vec<_> = entries.iter().map(AuditView::from).collect();
    Ok(Json(json!(AuditList { audit: views, next_before: next })))
}
