//! Bytes that leave a device: postcard messages on the MQTT topics of one device.
//!
//! | topic | direction | message |
//! |---|---|---|
//! | `bg/v1/<device>/up` | device to fleet, QoS 1 | [`UplinkFrame`]: kept by the device until acknowledged |
//! | `bg/v1/<device>/req` | device to fleet, QoS 1 | [`Request`]: repeated by the device when unanswered |
//! | `bg/v1/<device>/down` | fleet to device, QoS 1 | [`Downlink`] |
//!
//! Variants are only ever appended; a changed structure is a new variant. `docs/wire-format.md` follows this file.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::policy::Severity;
use crate::program::ProgramId;

/// The largest message either side accepts, in bytes.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// The largest part of a bundle sent in one [`Downlink::Chunk`], and of a capture in one [`Request::Part`], in bytes.
pub const CHUNK_MAX: usize = 16 * 1024;

/// The longest [`Answer::text`], in bytes.
pub const ANSWER_MAX: usize = 32 * 1024;

/// The longest configuration that a fleet gives, in bytes.
pub const CONFIGURATION_MAX: usize = 16 * 1024;

/// The longest time for which a log level holds, in seconds.
pub const LOG_LEVEL_MAX_S: u32 = 86_400;

/// The longest time for which a device is quarantined, in seconds.
pub const QUARANTINE_MAX_S: u32 = 30 * 86_400;

/// The longest recording that a fleet asks for, in seconds.
pub const RECORD_MAX_S: u32 = 3600;

/// The largest capture that a device sends, in bytes.
pub const CAPTURE_MAX: u32 = 8 << 20;

/// Alerts that an [`AlarmedWindow`] names at most: the first ones.
pub const ALARMED_ALERTS_MAX: usize = 16;

/// The smallest size that a capture may be given, in bytes: what is known at its beginning must fit.
pub const CAPTURE_MIN: u32 = 64 << 10;

/// The topic `bg/v1/<device>/<leaf>`.
#[must_use]
pub fn topic(device: &str, leaf: Leaf) -> String {
    format!("bg/v1/{device}/{}", leaf.as_str())
}

/// The last level of a device's topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// Device to fleet, numbered.
    Up,
    /// Device to fleet, not numbered.
    Req,
    /// Fleet to device.
    Down,
}

impl Leaf {
    /// The topic level's text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Req => "req",
            Self::Down => "down",
        }
    }
}

/// Splits `bg/v1/<device>/<leaf>`.
#[must_use]
pub fn parse_topic(topic: &str) -> Option<(&str, Leaf)> {
    let (device, leaf) = topic.strip_prefix("bg/v1/")?.split_once('/')?;
    let leaf = [Leaf::Up, Leaf::Req, Leaf::Down].into_iter().find(|known| known.as_str() == leaf)?;
    (!device.is_empty()).then_some((device, leaf))
}

/// One numbered message of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UplinkFrame {
    /// Chosen at random when the outbox is created; a new outbox counts from 1 again under a new epoch.
    pub epoch: u64,
    /// Counts up from 1 per epoch; the server drops repeats.
    pub seq: u64,
    /// What is told.
    pub body: Uplink,
}

/// What a device tells the fleet and keeps until it is acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Uplink {
    /// A verdict.
    Alert(Alert),
    /// Normal windows of a program that is being learned.
    Windows(TrainingWindows),
    /// What happened to the agent itself, or was done by it.
    Event(DeviceEvent),
    /// What became of an order.
    Answer(Answer),
    /// A window that alarmed, in case that it was a false alarm: then the next baseline is to know it.
    Alarmed(AlarmedWindow),
}

/// What happened to a device's agent, or was done by it: evidence of tampering, and the audit of its own acts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceEvent {
    /// Wall clock when it was noticed, milliseconds since 1970.
    pub unix_ms: u64,
    /// Of which kind.
    pub kind: EventKind,
    /// Which program it is about.
    pub program: Option<ProgramId>,
    /// Which containment it is about, as numbered on the device.
    pub containment: Option<u32>,
    /// One plain sentence.
    pub text: String,
}

/// Kinds of [`DeviceEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// The agent began to watch.
    Started,
    /// The agent was asked to stop, and stopped.
    Stopped,
    /// The agent's last run ended without being asked to, while the machine went on: it was killed, or crashed.
    Killed,
    /// The agent's last run ended together with the machine's: power loss, or a reset.
    MachineEnded,
    /// The configuration is another than before.
    ConfigurationChanged,
    /// The agent's program file is another than in its last run.
    AgentReplaced,
    /// A baseline alarmed far above its promise, and the one before it is active again.
    BaselineRolledBack,
    /// A program was contained.
    Contained,
    /// A containment was undone, or ended by itself.
    Released,
    /// A program would have been contained, and was not.
    NotContained,
    /// Less evidence is gathered, so that the CPU budget holds, or all of it again.
    Shedding,
    /// The wall clock was set.
    ClockSet,
    /// The device reaches its fleet only.
    Quarantined,
    /// It reaches everything again.
    QuarantineEnded,
    /// A recording that the fleet wanted has ended.
    Recorded,
    /// The program file that the fleet gave it runs, and is linked to the fleet.
    Updated,
    /// A program file that the fleet gave it is not used.
    UpdateFailed,
}

impl EventKind {
    /// The name in logs and in the fleet's API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
            Self::MachineEnded => "machine_ended",
            Self::ConfigurationChanged => "configuration_changed",
            Self::AgentReplaced => "agent_replaced",
            Self::BaselineRolledBack => "baseline_rolled_back",
            Self::Contained => "contained",
            Self::Released => "released",
            Self::NotContained => "not_contained",
            Self::Shedding => "shedding",
            Self::ClockSet => "clock_set",
            Self::Quarantined => "quarantined",
            Self::QuarantineEnded => "quarantine_ended",
            Self::Recorded => "recorded",
            Self::Updated => "updated",
            Self::UpdateFailed => "update_failed",
        }
    }
}

/// A verdict on one window or one decisive event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Wall clock of the verdict, milliseconds since 1970.
    pub unix_ms: u64,
    /// Whose behaviour it was.
    pub program: ProgramId,
    /// Process id on the device.
    pub pid: u32,
    /// Thread name.
    pub comm: String,
    /// 0 to 100; see `docs/specification.md` for what it promises.
    pub score: f32,
    /// From the score by the device's policy.
    pub severity: Severity,
    /// ATT&CK technique ids, most telling first.
    pub techniques: Vec<String>,
    /// One plain sentence.
    pub summary: String,
    /// Why, most telling first.
    pub reasons: Vec<Reason>,
    /// The generation of the baseline that judged, 0 when none was active.
    pub generation: u64,
    /// Raw detector outputs.
    pub detectors: Vec<DetectorScore>,
    /// Earlier verdicts folded into this one by deduplication or the rate limit.
    pub suppressed_before: u32,
    /// Kernel layers that were not fully seen in this window.
    pub degraded: Vec<String>,
}

/// One piece of an explanation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// The layer that saw it, e.g. `file`.
    pub layer: String,
    /// The feature's or evidence's name.
    pub name: String,
    /// Plain words with the value and what is usual.
    pub text: String,
    /// Share of the anomaly in 0 to 1; evidence beside the vector counts 1.
    pub share: f32,
}

/// One detector's say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DetectorScore {
    /// e.g. `vae`, or `novelty`.
    pub name: String,
    /// Robust z against the calibration windows.
    pub z: f32,
}

/// Normal windows for training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingWindows {
    /// Whose windows.
    pub program: ProgramId,
    /// In time order, all of one process run unless `run` says otherwise.
    pub windows: Vec<TrainingWindow>,
}

/// A window in which there were alerts; sent at its end, so after them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlarmedWindow {
    /// Whose window.
    pub program: ProgramId,
    /// [`Alert::unix_ms`] of each, ascending; at most [`ALARMED_ALERTS_MAX`].
    pub alerts: Vec<u64>,
    /// As for training. Without values when it was too short to be compared with whole windows; without the order of
    /// calls, which is gathered of what is learned only.
    pub window: TrainingWindow,
}

/// One normal window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingWindow {
    /// Wall clock at the window's end, milliseconds since 1970.
    pub unix_ms: u64,
    /// Which process run it is from; sequences never cross runs.
    pub run: u64,
    /// The vector's non-zero values as (index, value), index ascending.
    pub vector: Vec<(u16, f32)>,
    /// What was seen beside the vector; see [`crate::novelty`].
    pub traits: Vec<u64>,
    /// Six calls in order and how often they came, ascending; see [`crate::sequence`]. Empty when there were too many.
    pub grams: Vec<(u64, u32)>,
}

/// What a device asks or reports without a number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Part of an offered bundle.
    Chunk {
        /// SHA-256 of the whole bundle.
        sha256: [u8; 32],
        /// First byte.
        offset: u32,
        /// At most [`CHUNK_MAX`] bytes.
        len: u32,
    },
    /// What became of an offered bundle.
    Bundle(BundleReport),
    /// The device is alive.
    Heartbeat(Heartbeat),
    /// Numbers that the device no longer has: acknowledged before, or dropped to make room. Told before the next one
    /// that it has, so that nobody waits for them.
    Gone {
        /// Of which outbox.
        epoch: u64,
        /// The first of them.
        from: u64,
        /// The last of them.
        to: u64,
    },
    /// Part of a capture, in order; answered with [`Downlink::Kept`] and repeated until then.
    Part {
        /// The order that it was recorded for.
        order: u64,
        /// Of the whole file, bytes; at most [`CAPTURE_MAX`].
        size: u32,
        /// First byte.
        offset: u32,
        /// At most [`CHUNK_MAX`] bytes.
        data: Vec<u8>,
    },
}

/// What became of an offered bundle on the device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BundleReport {
    /// For which program.
    pub program: ProgramId,
    /// Which generation was offered.
    pub generation: u64,
    /// `None` when it is active now, else why it was refused.
    pub refused: Option<String>,
}

/// What a device says about itself, every heartbeat interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// Agent version.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// Machine architecture.
    pub arch: String,
    /// Resident memory of the agent, bytes.
    pub rss_bytes: u64,
    /// CPU time of the agent since start, milliseconds.
    pub cpu_ms: u64,
    /// Milliseconds since the agent started.
    pub uptime_ms: u64,
    /// Messages waiting in the outbox.
    pub outbox_waiting: u64,
    /// Counters by name, e.g. `kernel_file_dropped`.
    pub counters: Vec<(String, u64)>,
    /// Layer, backend in use, and what failed before it.
    pub layers: Vec<LayerState>,
    /// Programs with the state of their baselines.
    pub programs: Vec<ProgramState>,
    /// SHA-256 of the program file that runs; zeros when it cannot be read.
    pub program_file: [u8; 32],
}

/// How one layer is attached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerState {
    /// e.g. `syscall`.
    pub layer: String,
    /// e.g. `tp_btf/sys_enter`; empty when none attached.
    pub backend: String,
    /// Better backends and why each failed.
    pub failed: Vec<(String, String)>,
}

/// One program's baseline on a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramState {
    /// Which program.
    pub program: ProgramId,
    /// `LEARNING`, `ACTIVE` or `STALE`.
    pub state: String,
    /// Active generation, 0 for none.
    pub generation: u64,
    /// Windows sent for training since the agent started.
    pub windows: u64,
}

/// What the fleet tells a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Downlink {
    /// Everything of this epoch up to and including `seq` is stored durably.
    Ack {
        /// The outbox's epoch.
        epoch: u64,
        /// Highest number with nothing missing below it.
        seq: u64,
    },
    /// A bundle may be fetched.
    Offer(Offer),
    /// Answer to [`Request::Chunk`].
    Chunk {
        /// SHA-256 of the whole bundle.
        sha256: [u8; 32],
        /// First byte.
        offset: u32,
        /// The bytes; shorter than asked at the bundle's end.
        data: Vec<u8>,
    },
    /// A containment is to be undone; answered with [`EventKind::Released`].
    Release {
        /// As the device numbered it.
        containment: u32,
    },
    /// A bundle is to be used no longer: the one before is, or the program is learned anew. Answered with a
    /// [`BundleReport`] that says so in `refused`, also when it is not in use.
    TakeBack {
        /// For which program.
        program: ProgramId,
        /// Which generation; every other stays.
        generation: u64,
    },
    /// Something that people ask of this device; answered with [`Uplink::Answer`] and repeated until then.
    Order(SignedOrder),
    /// Answer to [`Request::Part`].
    Kept {
        /// The order that the capture was recorded for.
        order: u64,
        /// The first byte that is not stored durably; the size of the file when all of it is. `None` when nobody wants it.
        next: Option<u32>,
    },
}

/// An order and the fleet's word for it, so that a broker in between can hold it back but not make one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedOrder {
    /// An [`Order`], encoded.
    pub order: Vec<u8>,
    /// Ed25519 (RFC 8032) by the key that signs bundles, over what [`crate::orders::signed_text`] gives.
    pub signature: Vec<u8>,
}

/// Something that people ask of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Counts up over the fleet. A device carries out none that is not above the last one, so each is done once at most.
    pub id: u64,
    /// What is to be done.
    pub errand: Errand,
}

/// What a device can be asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Errand {
    /// To tell how it is: what `behaveguard doctor` shows, of the agent that runs.
    Doctor,
    /// To write more or less into its log for a time.
    LogLevel {
        /// From which level on.
        level: LogLevel,
        /// For how long, at most [`LOG_LEVEL_MAX_S`]; then it is as before.
        for_s: u32,
    },
    /// To forget what it learned of a program, and to learn it anew.
    Relearn {
        /// Which.
        program: ProgramId,
    },
    /// To use this part of the configuration in place of what its file says.
    Configure {
        /// Counts up over the fleet.
        version: u64,
        /// TOML, at most [`CONFIGURATION_MAX`] bytes; empty when the file alone is to count.
        text: String,
    },
    /// To reach its fleet only, if its own file allows that.
    Quarantine {
        /// For how long from when it is carried out, at most [`QUARANTINE_MAX_S`].
        for_s: u32,
    },
    /// To reach everything again.
    EndQuarantine,
    /// To write down everything that it judges, and to send that.
    Record {
        /// For how long, at most [`RECORD_MAX_S`]; up to the end of a window.
        for_s: u32,
        /// The file's largest size, at most [`CAPTURE_MAX`]; when it has that, the recording ends.
        bytes_max: u32,
    },
    /// To tell what runs, and how it was judged last: JSON, the highest scores first.
    Processes,
    /// To tell how one process was judged lately: JSON, its last scores, and the last verdict taken apart.
    Process {
        /// Process id.
        pid: u32,
    },
    /// To fetch this program file of the agent by [`Request::Chunk`], and to run it, if its own file trusts who made it.
    Update(SignedProgramFile),
    /// To run its package's program again.
    EndUpdate,
}

/// A [`crate::program_file::ProgramFile`] and the word of whoever made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedProgramFile {
    /// What it is, encoded.
    pub file: Vec<u8>,
    /// Ed25519 (RFC 8032), over what [`crate::program_file`] says.
    pub signature: Vec<u8>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// What went wrong.
    Error,
    /// And what may go wrong.
    Warn,
    /// And what happens.
    Info,
    /// And why.
    Debug,
    /// And everything else.
    Trace,
}

/// What became of an order on the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Which order.
    pub id: u64,
    /// Wall clock when it was carried out or refused, milliseconds since 1970.
    pub unix_ms: u64,
    /// Carried out, not refused.
    pub done: bool,
    /// What was found, what came of it, or why it was refused; at most [`ANSWER_MAX`] bytes.
    pub text: String,
}

/// A bundle that may be fetched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// For which program.
    pub program: ProgramId,
    /// Counts up per program.
    pub generation: u64,
    /// Of the whole bundle file.
    pub sha256: [u8; 32],
    /// Of the whole bundle file, bytes.
    pub size: u32,
}

/// A message that could not be read or written.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum WireError {
    /// Over [`MESSAGE_MAX`].
    #[error("a message of {0} bytes is over the limit of {MESSAGE_MAX}")]
    TooLong(usize),
    /// Bytes left over after the message.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// Not the expected message.
    #[error("decoding a message")]
    Malformed(#[source] postcard::Error),
}

/// Writes a message.
///
/// # Errors
/// [`WireError::TooLong`] when it does not fit into [`MESSAGE_MAX`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let bytes = postcard::to_stdvec(message).map_err(WireError::Malformed)?;
    if bytes.len() > MESSAGE_MAX { Err(WireError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// Reads a message that must fill `bytes` exactly.
///
/// # Errors
/// When the bytes are too many, too few or not this message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    if bytes.len() > MESSAGE_MAX {
        return Err(WireError::TooLong(bytes.len()));
    }
    let (message, rest) = postcard::take_from_bytes(bytes).map_err(WireError::Malformed)?;
    if rest.is_empty() { Ok(message) } else { Err(WireError::Trailing(rest.len())) }
}

#[cfg(test)]
mod tests;
