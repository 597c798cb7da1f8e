//! New alerts and changed devices as server-sent events.
//!
//! | event | data |
//! |---|---|
//! | `alert` | as in `GET /api/v1/alerts/{id}`, when it is stored and when people worked on it |
//! | `event` | as one of `GET /api/v1/events` |
//! | `device` | as one of `GET /api/v1/devices` |
//! | `training` | `{"device": "..."}`: ask `GET /api/v1/training` again; `{"group": "..."}`, null for the whole fleet: ask
//! `GET /api/v1/baselines` again |
//! | `rollout` | `{"id": n}`: ask `GET /api/v1/rollouts/{id}` again |
//! | `lagged` | `{"lost": n}`: the reader was too slow; ask the lists again |

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event as Sse, KeepAlive};
use futures_util::stream::{self, Stream};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::views::{AlertView, DeviceView, EventView};
use crate::clock;
use crate::counters::Counter;
use crate::hub::Event;
use crate::names::DeviceId;
use crate::server::Shared;
use crate::store;
use crate::trainer::Target;

/// Alerts, events, devices and trainings as server-sent events, from now on.
#[utoipa::path(get, path = "/stream", tag = "system", responses((status = 200, description = "Done.", body = String, content_type = "text/event-stream")))]
pub(super) async fn stream(
    State(shared): State<Arc<Shared>>,
) -> axum::response::Sse<impl Stream<Item = Result<Sse, Infallible>>> {
    let start = (Arc::clone(&shared), shared.hub.listen(), shared.stop.clone());
    let events = stream::unfold(start, |(shared, mut events, mut stop)| async move {
        loop {
            let next = tokio::select! {
                next = events.recv() => next,
                _ = stop.wait_for(|stop| *stop) => return None,
            };
            let event = match next {
                Ok(Event::Alert(alert)) if alert.suppressed.is_some() => continue,
                Ok(Event::Alert(alert) | Event::AlertChanged(alert)) => {
                    sse("alert", json!(AlertView::from(alert.as_ref())))
                }
                Ok(Event::Agent(event)) => sse("event", json!(EventView::from(event.as_ref()))),
                Ok(Event::Training(Target::Device(device))) => {
                    sse("training", json!({ "device": device.as_str() }))
                }
                Ok(Event::Training(Target::Many(scope))) => {
                    sse("training", json!({ "group": scope.group() }))
                }
                Ok(Event::Rollout(id)) => sse("rollout", json!({ "id": id })),
                Ok(Event::Device(device)) => match of_device(&shared, device).await {
                    Some(event) => event,
                    None => continue,
                },
                Err(RecvError::Lagged(lost)) => {
                    shared.counters.add(Counter::StreamLagged, lost);
                    sse("lagged", json!({ "lost": lost }))
                }
                Err(RecvError::Closed) => return None,
            };
            return Some((Ok(event), (shared, events, stop)));
        }
    });
    axum::response::Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}

async fn of_device(shared: &Shared, device: DeviceId) -> Option<Sse> {
    let row = shared.store.read(move |c| store::device(c, device.as_str())).await.ok()??;
    let view = DeviceView::new(&row, shared.hub.is_online(&row.id), clock::unix_ms());
    Some(sse("device", json!(view)))
}

fn sse(name: &'static str, data: serde_json::Value) -> Sse {
    // JSON text has no line breaks, which is all that an event's data may not have.
    Sse::default().event(name).data(data.to_string())
}
