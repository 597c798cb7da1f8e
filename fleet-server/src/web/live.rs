//! What is new, one thing after the other: what a reader missed from the store, then what comes from the hub.
//!
//! The hub is listened to before the store is asked, and what both give is told once, so that there is no gap between
//! them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::views::{AlertView, DeviceView, EventView};
use crate::clock;
use crate::counters::Counter;
use crate::hub::Event;
use crate::names::DeviceId;
use crate::server::Shared;
use crate::store::{self, AlertFilter, Page, StoreError};
use crate::trainer::Target;

/// Alerts, and events, that a reader who comes back is told; one who missed more is told so and asks the lists.
const MISSED_MAX: u32 = 1000;

/// How far a reader is: the last alert and the last event. Written `<alert>.<event>`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    alert: u64,
    event: u64,
}

impl Position {
    /// Reads one; an event's number may be missing.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (alert, event) = text.split_once('.').unwrap_or((text, ""));
        let event = if event.is_empty() { Some(u64::MAX) } else { event.parse().ok() };
        Some(Self { alert: alert.parse().ok()?, event: event? })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.alert, self.event)
    }
}

/// One thing that is told.
#[derive(Debug)]
pub(super) struct Told {
    /// Where a reader goes on who has this; only what is in the store has one.
    pub(super) position: Option<Position>,
    /// `alert`, `event`, `device`, `training`, `rollout` or `lagged`.
    pub(super) name: &'static str,
    /// As the API gives it elsewhere.
    pub(super) data: Value,
}

struct Reader {
    shared: Arc<Shared>,
    events: broadcast::Receiver<Event>,
    stop: watch::Receiver<bool>,
    position: Position,
    missed: VecDeque<Told>,
}

/// Everything from now on, or from where a reader was.
///
/// # Errors
/// When the database fails.
pub(super) async fn live(
    shared: Arc<Shared>,
    from: Option<Position>,
) -> Result<impl Stream<Item = Told>, StoreError> {
    let (events, stop) = (shared.hub.listen(), shared.stop.clone());
    let newest = shared.store.read(|c| Ok((store::newest_alert(c)?, store::newest_event(c)?)));
    let (alert, event) = newest.await?;
    let position = Position { alert, event };
    let mut reader = Reader { shared, events, stop, position, missed: VecDeque::new() };
    if let Some(from) = from {
        reader.catch_up(from).await?;
    }
    Ok(stream::unfold(reader, |mut reader| async move { reader.next().await.map(|told| (told, reader)) }))
}

impl Reader {
    /// Takes from the store what came after `from`.
    async fn catch_up(&mut self, from: Position) -> Result<(), StoreError> {
        let filter = AlertFilter::default();
        let page = Page::After(from.alert.min(self.position.alert));
        let alerts =
            self.shared.store.search(move |c| store::find_alerts(c, &filter, page, MISSED_MAX + 1)).await?;
        let after = from.event.min(self.position.event);
        let events =
            self.shared.store.read(move |c| store::events(c, Some(after), MISSED_MAX + 1, None)).await?;
        if alerts.len() > MISSED_MAX as usize || events.len() > MISSED_MAX as usize {
            let lost = self.position.alert.saturating_sub(from.alert) + self.position.event - after;
            self.missed.push_back(Told { position: None, name: "lagged", data: json!({ "lost": lost }) });
            return Ok(());
        }
        let mut at = Position { alert: from.alert, event: after };
        for alert in &alerts {
            at.alert = alert.id;
            let data = json!(AlertView::from(alert));
            self.missed.push_back(Told { position: Some(at), name: "alert", data });
        }
        for event in &events {
            at.event = event.id;
            let data = json!(EventView::from(event));
            self.missed.push_back(Told { position: Some(at), name: "event", data });
        }
        self.position =
            Position { alert: self.position.alert.max(at.alert), event: self.position.event.max(at.event) };
        Ok(())
    }

    async fn next(&mut self) -> Option<Told> {
        if let Some(told) = self.missed.pop_front() {
            return Some(told);
        }
        loop {
            let next = tokio::select! {
                next = self.events.recv() => next,
                _ = self.stop.wait_for(|stop| *stop) => return None,
            };
            let told = |name, data| Some(Told { position: None, name, data });
            match next {
                Ok(Event::Alert(alert)) if alert.suppressed.is_some() || alert.id <= self.position.alert => {}
                Ok(Event::Alert(alert)) => {
                    self.position.alert = alert.id;
                    let data = json!(AlertView::from(alert.as_ref()));
                    return Some(Told { position: Some(self.position), name: "alert", data });
                }
                Ok(Event::AlertChanged(alert)) => {
                    return told("alert", json!(AlertView::from(alert.as_ref())));
                }
                Ok(Event::Agent(event)) if event.id <= self.position.event => {}
                Ok(Event::Agent(event)) => {
                    self.position.event = event.id;
                    let data = json!(EventView::from(event.as_ref()));
                    return Some(Told { position: Some(self.position), name: "event", data });
                }
                Ok(Event::Training(Target::Device(device))) => {
                    return told("training", json!({ "device": device.as_str() }));
                }
                Ok(Event::Training(Target::Many(scope))) => {
                    return told("training", json!({ "group": scope.group() }));
                }
                Ok(Event::Rollout(id)) => return told("rollout", json!({ "id": id })),
                Ok(Event::Update(id)) => return told("update", json!({ "id": id })),
                Ok(Event::Device(device)) => {
                    if let Some(data) = of_device(&self.shared, device).await {
                        return told("device", data);
                    }
                }
                Err(RecvError::Lagged(lost)) => {
                    self.shared.counters.add(Counter::StreamLagged, lost);
                    return told("lagged", json!({ "lost": lost }));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

async fn of_device(shared: &Shared, device: DeviceId) -> Option<Value> {
    let row = shared.store.read(move |c| store::device(c, device.as_str())).await.ok()??;
    Some(json!(DeviceView::new(&row, shared.hub.is_online(&row.id), clock::unix_ms())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_and_may_name_an_alert_only() {
        let position = Position { alert: 12, event: 7 };
        assert_eq!(Position::parse(&position.to_string()), Some(position));
        assert_eq!(Position::parse("12"), Some(Position { alert: 12, event: u64::MAX }));
        for bad in ["", ".", "x", "1.x", "1.2.3", "-1"] {
            assert_eq!(Position::parse(bad), None, "{bad}");
        }
    }
}
