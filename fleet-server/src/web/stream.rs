//! New alerts and changed devices as server-sent events, or over a WebSocket.
//!
//! | event | data |
//! |---|---|
//! | `alert` | as in `GET /api/v1/alerts/{id}`, when it is stored and when people worked on it |
//! | `event` | as one of `GET /api/v1/events` |
//! | `device` | as one of `GET /api/v1/devices` |
//! | `training` | `{"device": "..."}`: ask `GET /api/v1/training` again; `{"group": "..."}`, null for the whole fleet: ask `GET /api/v1/baselines` again |
//! | `rollout` | `{"id": n}`: ask `GET /api/v1/rollouts/{id}` again |
//! | `lagged` | `{"lost": n}`: the reader was too slow, or away for too long; ask the lists again |
//!
//! New alerts and events carry an id, `<alert>.<event>`; a reader who gives the last one back, as `Last-Event-ID` or as `after`,
//! gets what came since then first.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::response::sse::{Event as Sse, KeepAlive};
use futures_util::stream::{Stream, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use super::error::{ApiError, Problem};
use super::extract::Asked;
use super::live::{Position, Told, live};
use crate::server::Shared;

/// The WebSocket's protocol; a browser, which cannot send a token as others do, gives `token.<token>` beside it.
const PROTOCOL: &str = "behaveguard";

/// How often a quiet connection says that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long one message to a WebSocket may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamQuery {
    /// Goes on behind this id, or behind this alert.
    after: Option<String>,
}

fn position(text: Option<&str>) -> Result<Option<Position>, ApiError> {
    let bad = || ApiError::bad_request("an id of the stream is `<alert>.<event>`, or an alert's number");
    text.map(|text| Position::parse(text).ok_or_else(bad)).transpose()
}

/// Alerts, events, devices and trainings as server-sent events, from now on or from where a reader was.
#[utoipa::path(get, path = "/stream", tag = "system", params(StreamQuery), responses((status = 200, description = "Done.", body = String, content_type = "text/event-stream")))]
pub(super) async fn stream(
    State(shared): State<Arc<Shared>>,
    Asked(query): Asked<StreamQuery>,
    headers: HeaderMap,
) -> Result<axum::response::Sse<impl Stream<Item = Result<Sse, Infallible>>>, ApiError> {
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let from = position(last.or(query.after.as_deref()))?;
    let events = live(shared, from).await?.map(|Told { position, name, data }| {
        // JSON text has no line breaks, which is all that an event's data may not have.
        let event = Sse::default().event(name).data(data.to_string());
        Ok(match position {
            Some(position) => event.id(position.to_string()),
            None => event,
        })
    });
    Ok(axum::response::Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// The same over a WebSocket: each message is `{"type", "id", "data"}`, whose id is null where the stream has none.
#[utoipa::path(get, path = "/ws/alerts", tag = "system", params(StreamQuery), responses((status = 101, description = "It goes on as a WebSocket."), (status = 426, description = "It is for WebSockets.", body = Problem)))]
pub(super) async fn socket(
    State(shared): State<Arc<Shared>>,
    Asked(query): Asked<StreamQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let from = position(query.after.as_deref())?;
    let upgrade = upgrade.map_err(|error| {
        let hint = "connect with a WebSocket client, or follow /api/v1/stream";
        ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", error.body_text(), hint)
    })?;
    let told = live(shared, from).await?;
    Ok(upgrade.protocols([PROTOCOL]).on_upgrade(move |socket| tell(socket, told)))
}

/// Tells until either side ends it.
async fn tell(mut socket: WebSocket, told: impl Stream<Item = Told>) {
    let mut told = std::pin::pin!(told);
    let mut alive = tokio::time::interval(KEEP_ALIVE);
    loop {
        let message = tokio::select! {
            next = told.next() => match next {
                Some(Told { position, name, data }) => {
                    let id = position.map(|position| position.to_string());
                    Message::text(json!({ "type": name, "id": id, "data": data }).to_string())
                }
                None => break,
            },
            came = socket.recv() => match came {
                // Nothing that it says matters; a ping is answered by the library.
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            _ = alive.tick() => Message::Ping(Vec::new().into()),
        };
        match tokio::time::timeout(WRITE_TIMEOUT, socket.send(message)).await {
            Ok(Ok(())) => {}
            // It has gone, or does not read.
            Ok(Err(_)) | Err(_) => return,
        }
    }
    // The server stops; whoever has gone meanwhile needs no word of it.
    let _ = socket.send(Message::Close(None)).await;
}
