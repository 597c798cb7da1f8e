//! What those who listen are told of alerts and events: one message as postcard and one as JSON, as `models::feed` names them.

use models::feed::{self, FeedAlert, FeedEvent, Kind};
use models::wire;

use crate::store::{StoredAlert, StoredEvent};
use crate::web;

/// The kinds of messages about an alert.
pub(crate) const OF_ALERTS: [Kind; 2] = [Kind::Alert, Kind::AlertJson];

/// The kinds of messages about an event.
pub(crate) const OF_EVENTS: [Kind; 2] = [Kind::Event, Kind::EventJson];

/// Where an alert is told.
#[must_use]
pub(crate) fn alert_topic(kind: Kind, stored: &StoredAlert) -> String {
    feed::topic(kind, &stored.group, &stored.device, stored.alert.severity.as_str())
}

/// What is told of it; `None` when it has no such form.
#[must_use]
pub(crate) fn alert(kind: Kind, stored: &StoredAlert) -> Option<Vec<u8>> {
    if kind == Kind::AlertJson {
        return Some(web::alert_json(stored));
    }
    let message = FeedAlert {
        id: stored.id,
        device: stored.device.clone(),
        group: stored.group.clone(),
        received_unix_ms: stored.received_ms,
        alert: stored.alert.clone(),
    };
    wire::encode(&message).ok()
}

/// Where an event of a device in this group is told.
#[must_use]
pub(crate) fn event_topic(kind: Kind, group: &str, stored: &StoredEvent) -> String {
    feed::topic(kind, group, &stored.device, &stored.kind)
}

/// What is told of it; `None` when it has no such form.
#[must_use]
pub(crate) fn event(kind: Kind, group: &str, stored: &StoredEvent) -> Option<Vec<u8>> {
    if kind == Kind::EventJson {
        return Some(web::event_json(stored));
    }
    let message = FeedEvent {
        id: stored.id,
        device: stored.device.clone(),
        group: group.to_owned(),
        received_unix_ms: stored.received_ms,
        unix_ms: stored.unix_ms,
        kind: stored.kind.clone(),
        program: stored.program.clone(),
        containment: stored.containment,
        text: stored.text.clone(),
    };
    wire::encode(&message).ok()
}
