//! The server itself: whether it is well, what it counted, and who changed what.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::admin_views::AuditView;
use super::views::OverviewView;
use super::{Answer, limit_of, query_of};
use crate::clock;
use crate::counters::Counter;
use crate::server::Shared;
use crate::store;

pub(super) async fn health(State(shared): State<Arc<Shared>>) -> Answer {
    shared.store.read(|c| store::device(c, "-")).await?;
    Ok(Json(
        json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION"), "devices_online": shared.hub.online() }),
    ))
}

pub(super) async fn ca(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "application/x-pem-file")], shared.pki.ca_pem().to_string()).into_response()
}

pub(super) async fn overview(State(shared): State<Arc<Shared>>) -> Answer {
    let overview = shared.store.search(|c| store::overview(c, clock::unix_ms())).await?;
    Ok(Json(json!(OverviewView::new(&overview, shared.hub.online()))))
}

pub(super) async fn counters(State(shared): State<Arc<Shared>>) -> Answer {
    let counters: Map<_, _> =
        shared.counters.all().map(|(name, value)| (name.into(), Value::from(value))).collect();
    Ok(Json(json!({ "counters": counters })))
}

/// Everything that is counted, in the Prometheus text format 0.0.4.
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    before: Option<u64>,
    limit: Option<u32>,
}

pub(super) async fn audit(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Answer {
    let AuditQuery { before, limit } = query_of(query)?;
    let limit = limit_of(limit);
    let entries = shared.store.read(move |c| store::audit(c, before, limit)).await?;
    let next = entries.last().map(|entry| entry.id);
    let views: Vec<_> = entries.iter().map(AuditView::from).collect();
    Ok(Json(json!({ "audit": views, "next_before": next })))
}
