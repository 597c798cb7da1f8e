//! Orders and configurations of groups as the API's JSON.

use models::wire::{Errand, LogLevel};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::views::ProgramView;
use crate::configuration::KeyChange;
use crate::store::{CaptureRow, ConfigurationRow, OrderRow, Spread};

/// From which level on a device logs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::Error,
            Level::Warn => Self::Warn,
            Level::Info => Self::Info,
            Level::Debug => Self::Debug,
            Level::Trace => Self::Trace,
        }
    }
}

impl From<LogLevel> for Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

/// What a device is asked to do.
#[derive(Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[schema(as = Errand)]
pub(super) enum ErrandView<'a> {
    Doctor,
    LogLevel {
        level: Level,
        for_s: u32,
    },
    Relearn {
        program: ProgramView<'a>,
    },
    Configure {
        version: u64,
    },
    Quarantine {
        for_s: u32,
    },
    EndQuarantine,
    Record {
        for_s: u32,
        bytes_max: u32,
    },
    Processes,
    Process {
        pid: u32,
    },
    /// To run another program file; an update gives it.
    Update {
        version: String,
    },
    EndUpdate,
}

impl<'a> From<&'a Errand> for ErrandView<'a> {
    fn from(errand: &'a Errand) -> Self {
        match errand {
            Errand::Doctor => Self::Doctor,
            Errand::LogLevel { level, for_s } => Self::LogLevel { level: (*level).into(), for_s: *for_s },
            Errand::Relearn { program } => Self::Relearn { program: ProgramView::new(program) },
            Errand::Configure { version, .. } => Self::Configure { version: *version },
            Errand::Quarantine { for_s } => Self::Quarantine { for_s: *for_s },
            Errand::EndQuarantine => Self::EndQuarantine,
            Errand::Record { for_s, bytes_max } => Self::Record { for_s: *for_s, bytes_max: *bytes_max },
            Errand::Processes => Self::Processes,
            Errand::Process { pid } => Self::Process { pid: *pid },
            Errand::Update(signed) => {
                let file = models::program_file::read(signed);
                Self::Update { version: file.map(|file| file.version).unwrap_or_default() }
            }
            Errand::EndUpdate => Self::EndUpdate,
        }
    }
}

/// How far an order is.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OrderState {
    /// The device did not answer yet.
    Waiting,
    /// It was carried out.
    Done,
    /// The device would not, or could not.
    Refused,
    /// The device did not answer in time, and is asked no more.
    Expired,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Order)]
pub(super) struct OrderView<'a> {
    id: u64,
    device: &'a str,
    order: ErrandView<'a>,
    state: OrderState,
    by: &'a str,
    created_unix_ms: u64,
    /// Null when it waits for ever.
    expires_unix_ms: Option<u64>,
    answered_unix_ms: Option<u64>,
    /// What the device found, what came of it, or why it refused.
    answer: Option<&'a str>,
    /// How much came of what it recorded; null when nothing came yet.
    capture: Option<CaptureView>,
}

/// What a device recorded.
#[derive(Serialize, ToSchema)]
#[schema(as = Capture)]
pub(super) struct CaptureView {
    /// Of the whole file, bytes.
    size: u32,
    /// Of them here; it can be taken when all are.
    stored: u32,
}

impl<'a> OrderView<'a> {
    pub(super) fn new(row: &'a OrderRow, now_ms: u64) -> Self {
        let state = match &row.answer {
            Some(answer) if answer.done => OrderState::Done,
            Some(_) => OrderState::Refused,
            None if row.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) => OrderState::Expired,
            None => OrderState::Waiting,
        };
        Self {
            id: row.id,
            device: &row.device,
            order: (&row.errand).into(),
            state,
            by: &row.by,
            created_unix_ms: row.created_ms,
            expires_unix_ms: row.expires_ms,
            answered_unix_ms: row.answer.as_ref().map(|answer| answer.received_ms),
            answer: row.answer.as_ref().map(|answer| &*answer.text),
            capture: row.capture.map(|CaptureRow { size, stored }| CaptureView { size, stored }),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct OrderList<'a> {
    pub(super) orders: Vec<OrderView<'a>>,
    /// Ask `before` this for what is older.
    pub(super) next_before: Option<u64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = KeyChange)]
pub(super) struct ChangeView {
    /// With its table, e.g. `alerts.dedup`.
    key: String,
    /// Null where there was none.
    #[schema(value_type = Object, nullable)]
    before: Value,
    /// Null where there is none any more.
    #[schema(value_type = Object, nullable)]
    after: Value,
}

impl From<KeyChange> for ChangeView {
    fn from(change: KeyChange) -> Self {
        // A value of TOML has a JSON form: dates are texts in it.
        let json = |value: Option<toml::Value>| serde_json::to_value(value).unwrap_or_default();
        Self { key: change.key, before: json(change.before), after: json(change.after) }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Configuration)]
pub(super) struct ConfigurationView<'a> {
    group: &'a str,
    version: u64,
    /// TOML.
    text: &'a str,
    by: &'a str,
    created_unix_ms: u64,
    /// Against the version before.
    changes: Vec<ChangeView>,
}

impl<'a> ConfigurationView<'a> {
    /// `before` is the text of the version before.
    pub(super) fn new(row: &'a ConfigurationRow, before: &str) -> Self {
        Self {
            group: &row.group,
            version: row.version,
            text: &row.text,
            by: &row.by,
            created_unix_ms: row.created_ms,
            changes: changes(before, &row.text),
        }
    }
}

pub(super) fn changes(before: &str, after: &str) -> Vec<ChangeView> {
    crate::configuration::changes(before, after).into_iter().map(Into::into).collect()
}

#[derive(Serialize, ToSchema)]
pub(super) struct ConfigurationList<'a> {
    /// The newest first; it is in force.
    pub(super) versions: Vec<ConfigurationView<'a>>,
    /// Ask `before` this for what is older.
    pub(super) next_before: Option<u64>,
    /// How far the group's devices are with the newest.
    pub(super) spread: SpreadView,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Spread)]
pub(super) struct SpreadView {
    /// Devices of the group.
    devices: u64,
    /// Use the newest version.
    applied: u64,
    /// Refused it: their orders say why.
    refused: u64,
}

impl From<Spread> for SpreadView {
    fn from(spread: Spread) -> Self {
        Self { devices: spread.devices, applied: spread.applied, refused: spread.refused }
    }
}

/// What a configuration would change.
#[derive(Serialize, ToSchema)]
#[schema(as = ConfigurationPreview)]
pub(super) struct ConfigurationPreviewView {
    pub(super) changes: Vec<ChangeView>,
    /// Devices that would be asked to use it.
    pub(super) devices: u64,
}

/// A new configuration of a group.
#[derive(Serialize, ToSchema)]
#[schema(as = MadeConfiguration)]
pub(super) struct MadeConfigurationView {
    pub(super) version: u64,
}
