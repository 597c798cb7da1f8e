//! What programs of others are told over MQTT: every alert and event that the fleet stored, as postcard and as JSON.
//!
//! | topic | message |
//! |---|---|
//! | `bg-feed/v1/alert/<group>/<device>/<severity>` | [`FeedAlert`], postcard |
//! | `bg-feed/v1/alert-json/<group>/<device>/<severity>` | as `GET /api/v1/alerts/{id}` gives it, without comments and rarity |
//! | `bg-feed/v1/event/<group>/<device>/<kind>` | [`FeedEvent`], postcard |
//! | `bg-feed/v1/event-json/<group>/<device>/<kind>` | as one of `GET /api/v1/events` |
//!
//! A severity is in small letters. Filters may hold `+` and `#` below `bg-feed/v1/`. `docs/mqtt.md` follows this file.

use serde::{Deserialize, Serialize};

use crate::program::ProgramId;
use crate::wire::Alert;

/// What every topic begins with.
pub const PREFIX: &str = "bg-feed/v1/";

/// The four kinds of topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An alert as postcard.
    Alert,
    /// An alert as JSON.
    AlertJson,
    /// An event as postcard.
    Event,
    /// An event as JSON.
    EventJson,
}

impl Kind {
    /// The topic's third level.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::AlertJson => "alert-json",
            Self::Event => "event",
            Self::EventJson => "event-json",
        }
    }
}

/// The topic of something about a device; `what` is the severity or the event's kind.
#[must_use]
pub fn topic(kind: Kind, group: &str, device: &str, what: &str) -> String {
    format!("{PREFIX}{}/{group}/{device}/{}", kind.as_str(), what.to_ascii_lowercase())
}

/// Whether a filter is one that may be subscribed to: below [`PREFIX`], with wildcards as MQTT 3.1.1 has them.
#[must_use]
pub fn is_filter(filter: &str) -> bool {
    let Some(rest) = filter.strip_prefix(PREFIX) else { return false };
    let levels: Vec<_> = rest.split('/').collect();
    levels.iter().enumerate().all(|(at, level)| match *level {
        "#" => at + 1 == levels.len(),
        "+" => true,
        level => !level.is_empty() && !level.contains(['+', '#', '\0']),
    })
}

/// Whether a topic fits a filter.
#[must_use]
pub fn fits(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    let mut wanted = filter.split('/');
    loop {
        match (wanted.next(), levels.next()) {
            // As MQTT has it, `#` also stands for nothing at all.
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

/// An alert that the fleet stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeedAlert {
    /// Its number in the fleet; counts up, so that what was missed can be asked for with `GET /api/v1/alerts?after=`.
    pub id: u64,
    /// Whose.
    pub device: String,
    /// The device's group.
    pub group: String,
    /// When it was stored, milliseconds since 1970 on the server's clock.
    pub received_unix_ms: u64,
    /// What the device said.
    pub alert: Alert,
}

/// Something that happened to an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedEvent {
    /// Its number in the fleet, as for `GET /api/v1/events?after=`.
    pub id: u64,
    /// Whose.
    pub device: String,
    /// The device's group.
    pub group: String,
    /// When it was stored, milliseconds since 1970 on the server's clock.
    pub received_unix_ms: u64,
    /// When it was noticed, on the clock of who noticed it.
    pub unix_ms: u64,
    /// As in `docs/operations.md`, e.g. `killed`.
    pub kind: String,
    /// Which program it is about.
    pub program: Option<ProgramId>,
    /// Which containment it is about, as numbered on the device.
    pub containment: Option<u32>,
    /// One plain sentence.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Severity;

    #[test]
    fn filters_fit_as_mqtt_has_it_and_none_reaches_beyond_the_feed() {
        let topic = topic(Kind::Alert, "pumps", "gw-1", "HIGH");
        assert_eq!(topic, "bg-feed/v1/alert/pumps/gw-1/high");
        for filter in [
            "bg-feed/v1/#",
            "bg-feed/v1/alert/#",
            "bg-feed/v1/alert/+/+/high",
            "bg-feed/v1/+/pumps/gw-1/high",
            &topic,
            "bg-feed/v1/alert/pumps/gw-1/high/#",
        ] {
            assert!(is_filter(filter) && fits(filter, &topic), "{filter}");
        }
        for filter in [
            "bg-feed/v1/alert/+/+/critical",
            "bg-feed/v1/alert/+",
            "bg-feed/v1/alert/pumps/gw-1/high/+",
            "bg-feed/v1/alert-json/#",
        ] {
            assert!(is_filter(filter) && !fits(filter, &topic), "{filter}");
        }
        for filter in [
            "#",
            "+/v1/#",
            "bg/v1/gw-1/down",
            "bg-feed/v1/",
            "bg-feed/v1/a#",
            "bg-feed/v1/#/a",
            "bg-feed/v1/a+/b",
            "bg-feed/v1//b",
        ] {
            assert!(!is_filter(filter), "{filter}");
        }
    }

    #[test]
    fn the_bytes_of_the_feed_never_change() {
        let program = ProgramId { unit: "gw.service".into(), exe: "/usr/bin/gw".into(), script: None };
        let alert = Alert {
            unix_ms: 1,
            program: program.clone(),
            pid: 42,
            comm: "gw".into(),
            score: 91.5,
            severity: Severity::Critical,
            techniques: vec!["T1003".into()],
            summary: "s".into(),
            reasons: vec![],
            generation: 2,
            detectors: vec![],
            suppressed_before: 0,
            degraded: vec![],
        };
        let alert =
            FeedAlert { id: 300, device: "gw-1".into(), group: "pumps".into(), received_unix_ms: 2, alert };
        assert_eq!(
            crate::wire::encode(&alert).unwrap(),
            b"\xac\x02\x04gw-1\x05pumps\x02\x01\x0agw.service\x0b/usr/bin/gw\x00\x2a\x02gw\x00\x00\xb7\x42\x03\x01\x05T1003\x01s\x00\x02\x00\x00\x00"
        );
        let event = FeedEvent {
            id: 1,
            device: "gw-1".into(),
            group: "pumps".into(),
            received_unix_ms: 2,
            unix_ms: 1,
            kind: "killed".into(),
            program: Some(program),
            containment: None,
            text: "t".into(),
        };
        assert_eq!(
            crate::wire::encode(&event).unwrap(),
            b"\x01\x04gw-1\x05pumps\x02\x01\x06killed\x01\x0agw.service\x0b/usr/bin/gw\x00\x00\x01t"
        );
    }
}
