//! Stored rows as the API's JSON. Every JSON field of the API is named in this folder and nowhere else.

use models::program::ProgramId;
use models::wire::Heartbeat;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::words::SeverityWord;
use crate::names::DeviceId;
use crate::server::Shared;
use crate::store::{
    Alarmed, Comment, DeviceRow, Facet, Facets, IncidentRow, Overview, Rarity, Rule, Scope, StoredAlert,
    StoredEvent, Suspect, TrainingRow, WorkState,
};
use crate::trainer::{State, Target};

/// A device is late when its heartbeat is older than this, in milliseconds.
const LATE_MS: u64 = 180_000;

#[derive(Serialize, ToSchema)]
#[schema(as = Program)]
pub(super) struct ProgramView<'a> {
    key: String,
    unit: &'a str,
    exe: &'a str,
    script: Option<&'a str>,
    text: String,
}

impl<'a> ProgramView<'a> {
    pub(super) fn new(program: &'a ProgramId) -> Self {
        Self {
            key: program.key(),
            unit: &program.unit,
            exe: &program.exe,
            script: program.script.as_deref(),
            text: program.to_string(),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Alert)]
pub(super) struct AlertView<'a> {
    id: u64,
    device: &'a str,
    /// The group that the device is in now.
    group: &'a str,
    received_unix_ms: u64,
    unix_ms: u64,
    /// `new`, `acknowledged`, `resolved` or `false_positive`.
    #[schema(value_type = WorkState)]
    state: &'static str,
    assignee: Option<&'a str>,
    incident: Option<u64>,
    /// The rule that hides it.
    suppressed: Option<u64>,
    program: ProgramView<'a>,
    pid: u32,
    comm: &'a str,
    #[schema(value_type = SeverityWord)]
    severity: &'static str,
    score: f32,
    techniques: &'a [String],
    summary: &'a str,
    reasons: Vec<ReasonView<'a>>,
    generation: u64,
    detectors: Vec<DetectorView<'a>>,
    suppressed_before: u32,
    degraded: &'a [String],
}

#[derive(Serialize, ToSchema)]
#[schema(as = Reason)]
struct ReasonView<'a> {
    layer: &'a str,
    name: &'a str,
    text: &'a str,
    share: f32,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Detector)]
struct DetectorView<'a> {
    name: &'a str,
    z: f32,
}

impl<'a> From<&'a StoredAlert> for AlertView<'a> {
    fn from(stored: &'a StoredAlert) -> Self {
        let alert = &stored.alert;
        let reason = |r: &'a models::wire::Reason| ReasonView {
            layer: &r.layer,
            name: &r.name,
            text: &r.text,
            share: r.share,
        };
        Self {
            id: stored.id,
            device: &stored.device,
            group: &stored.group,
            received_unix_ms: stored.received_ms,
            unix_ms: alert.unix_ms,
            state: stored.state.as_str(),
            assignee: stored.assignee.as_deref(),
            incident: stored.incident,
            suppressed: stored.suppressed,
            program: ProgramView::new(&alert.program),
            pid: alert.pid,
            comm: &alert.comm,
            severity: alert.severity.as_str(),
            score: alert.score,
            techniques: &alert.techniques,
            summary: &alert.summary,
            reasons: alert.reasons.iter().map(reason).collect(),
            generation: alert.generation,
            detectors: alert.detectors.iter().map(|d| DetectorView { name: &d.name, z: d.z }).collect(),
            suppressed_before: alert.suppressed_before,
            degraded: &alert.degraded,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub(super) struct EventView<'a> {
    id: u64,
    device: &'a str,
    received_unix_ms: u64,
    unix_ms: u64,
    /// `silent`, `heard`, `twins` and `grave_acts_learned` are the server's, every other the device's.
    kind: &'a str,
    program: Option<ProgramView<'a>>,
    containment: Option<u32>,
    text: &'a str,
}

impl<'a> From<&'a StoredEvent> for EventView<'a> {
    fn from(event: &'a StoredEvent) -> Self {
        Self {
            id: event.id,
            device: &event.device,
            received_unix_ms: event.received_ms,
            unix_ms: event.unix_ms,
            kind: &event.kind,
            program: event.program.as_ref().map(ProgramView::new),
            containment: event.containment,
            text: &event.text,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Device)]
pub(super) struct DeviceView<'a> {
    id: &'a str,
    group: &'a str,
    tags: &'a [String],
    /// `online`, `late`, `offline`, `new` or `revoked`.
    state: &'static str,
    certificate_ends_unix_s: u64,
    enrolled_unix_ms: u64,
    last_seen_unix_ms: u64,
    alerts: u64,
    heartbeat: Option<HeartbeatView<'a>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Heartbeat)]
struct HeartbeatView<'a> {
    received_unix_ms: u64,
    unix_ms: u64,
    version: &'a str,
    kernel: &'a str,
    arch: &'a str,
    rss_bytes: u64,
    cpu_ms: u64,
    uptime_ms: u64,
    outbox_waiting: u64,
    #[schema(value_type = Object)]
    counters: Map<String, Value>,
    layers: Vec<LayerView<'a>>,
    programs: Vec<ProgramStateView<'a>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Layer)]
struct LayerView<'a> {
    layer: &'a str,
    backend: &'a str,
    failed: Vec<FailedView<'a>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Failed)]
struct FailedView<'a> {
    backend: &'a str,
    reason: &'a str,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ProgramState)]
struct ProgramStateView<'a> {
    program: ProgramView<'a>,
    state: &'a str,
    generation: u64,
    windows: u64,
}

impl<'a> DeviceView<'a> {
    pub(super) fn new(row: &'a DeviceRow, online: bool, now_ms: u64) -> Self {
        let heard = row.heartbeat.as_ref().map_or(0, |(at, _)| *at);
        let state = match (online, row.seen_ms) {
            _ if row.revoked_ms > 0 => "revoked",
            (true, _) if heard > 0 && now_ms.saturating_sub(heard) > LATE_MS => "late",
            (true, _) => "online",
            (false, 0) => "new",
            (false, _) => "offline",
        };
        Self {
            id: &row.id,
            group: &row.group,
            tags: &row.tags,
            state,
            certificate_ends_unix_s: row.ends_s,
            enrolled_unix_ms: row.enrolled_ms,
            last_seen_unix_ms: row.seen_ms,
            alerts: row.alerts,
            heartbeat: row.heartbeat.as_ref().map(|(at, heartbeat)| HeartbeatView::new(*at, heartbeat)),
        }
    }
}

impl<'a> HeartbeatView<'a> {
    fn new(received_unix_ms: u64, heartbeat: &'a Heartbeat) -> Self {
        let counters = heartbeat.counters.iter().map(|(name, value)| (name.clone(), Value::from(*value)));
        let layer = |state: &'a models::wire::LayerState| LayerView {
            layer: &state.layer,
            backend: &state.backend,
            failed: state.failed.iter().map(|(backend, reason)| FailedView { backend, reason }).collect(),
        };
        let program = |state: &'a models::wire::ProgramState| ProgramStateView {
            program: ProgramView::new(&state.program),
            state: &state.state,
            generation: state.generation,
            windows: state.windows,
        };
        Self {
            received_unix_ms,
            unix_ms: heartbeat.unix_ms,
            version: &heartbeat.version,
            kernel: &heartbeat.kernel,
            arch: &heartbeat.arch,
            rss_bytes: heartbeat.rss_bytes,
            cpu_ms: heartbeat.cpu_ms,
            uptime_ms: heartbeat.uptime_ms,
            outbox_waiting: heartbeat.outbox_waiting,
            counters: counters.collect(),
            layers: heartbeat.layers.iter().map(layer).collect(),
            programs: heartbeat.programs.iter().map(program).collect(),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Training)]
pub(super) struct TrainingView<'a> {
    device: &'a str,
    program: ProgramView<'a>,
    windows_collected: u64,
    windows_needed: u32,
    /// `collecting`, `queued`, `training`, `failed` or `ready`.
    state: &'static str,
    generation: u64,
    trained_unix_s: u64,
    /// The generation the device last reported on, and why it refused it.
    reported_generation: u64,
    refused: Option<&'a str>,
    /// It keeps what it has, whatever is rolled out.
    pinned: bool,
    failure: Option<String>,
}

impl<'a> TrainingView<'a> {
    pub(super) fn new(row: &'a TrainingRow, shared: &Shared) -> Self {
        let target = DeviceId::parse(&row.device).ok().map(Target::Device);
        let (state, failure) = match target.and_then(|target| shared.trainer.state(&target, &row.key)) {
            Some(state) => state_of(state),
            None if row.generation > 0 || row.uses_another() => ("ready", None),
            None => ("collecting", None),
        };
        Self {
            device: &row.device,
            program: ProgramView::new(&row.program),
            windows_collected: row.total,
            windows_needed: shared.config.learn_windows,
            state,
            generation: row.generation,
            trained_unix_s: row.trained_s,
            reported_generation: row.reported_generation,
            refused: row.refused.as_deref(),
            pinned: row.pinned,
            failure,
        }
    }
}

/// What is being done, and why it failed.
fn state_of(state: State) -> (&'static str, Option<String>) {
    match state {
        State::Queued => ("queued", None),
        State::Training => ("training", None),
        State::Failed { reason, .. } => ("failed", Some(reason)),
    }
}

/// A training for many devices.
#[derive(Serialize, ToSchema)]
#[schema(as = GroupTraining)]
pub(super) struct GroupTrainingView {
    /// Null for the whole fleet.
    group: Option<String>,
    program_key: String,
    /// `queued`, `training` or `failed`.
    state: &'static str,
    failure: Option<String>,
}

impl GroupTrainingView {
    pub(super) fn new(scope: &Scope, key: &str, state: State) -> Self {
        let (state, failure) = state_of(state);
        Self { group: scope.group().map(str::to_owned), program_key: key.to_owned(), state, failure }
    }
}

/// One alert with everything that is known about it.
#[derive(Serialize, ToSchema)]
pub(super) struct AlertPage<'a> {
    #[serde(flatten)]
    pub(super) alert: AlertView<'a>,
    pub(super) rarity: RarityView,
    pub(super) window: AlarmedView,
    pub(super) comments: Vec<CommentView<'a>>,
}

/// What is here of the window that the alert was about. When all of its alerts that somebody judged are false positives, it is
/// accepted: the next training takes it for normal.
#[derive(Serialize, ToSchema)]
#[schema(as = AlarmedWindow)]
#[serde(rename_all = "snake_case")]
pub(super) enum AlarmedView {
    Missing,
    Kept,
    Accepted,
}

impl From<Alarmed> for AlarmedView {
    fn from(alarmed: Alarmed) -> Self {
        match alarmed {
            Alarmed::Missing => Self::Missing,
            Alarmed::Kept => Self::Kept,
            Alarmed::Accepted => Self::Accepted,
        }
    }
}

/// The same program doing the same, over the fleet.
#[derive(Serialize, ToSchema)]
#[schema(as = Rarity)]
pub(super) struct RarityView {
    devices: u64,
    of: u64,
    alerts: u64,
    text: String,
}

impl From<Rarity> for RarityView {
    fn from(Rarity { devices, of, alerts }: Rarity) -> Self {
        let others = of.saturating_sub(1);
        let of_others =
            if others == 1 { "1 other device".to_owned() } else { format!("{others} other devices") };
        let text = match devices {
            0 | 1 => format!("none of {of_others} did the same"),
            _ => format!("{} of {of_others} did the same", devices - 1),
        };
        Self { devices, of, alerts, text }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Comment)]
pub(super) struct CommentView<'a> {
    unix_ms: u64,
    who: &'a str,
    text: &'a str,
}

impl<'a> From<&'a Comment> for CommentView<'a> {
    fn from(comment: &'a Comment) -> Self {
        Self { unix_ms: comment.unix_ms, who: &comment.who, text: &comment.text }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Facets)]
pub(super) struct FacetsView<'a> {
    counted: u64,
    complete: bool,
    severity: Vec<ValueView<'a>>,
    state: Vec<ValueView<'a>>,
    device: Vec<ValueView<'a>>,
    program: Vec<ValueView<'a>>,
    technique: Vec<ValueView<'a>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Value)]
struct ValueView<'a> {
    value: &'a str,
    /// For people, when it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    alerts: u64,
}

impl<'a> From<&'a Facets> for FacetsView<'a> {
    fn from(facets: &'a Facets) -> Self {
        let plain = |facet: &'a Facet| {
            facet.iter().map(|(value, alerts)| ValueView { value, text: None, alerts: *alerts }).collect()
        };
        let program = |(value, alerts): &'a (String, u64)| match value.split_once(' ') {
            Some((key, text)) => ValueView { value: key, text: Some(text), alerts: *alerts },
            None => ValueView { value, text: None, alerts: *alerts },
        };
        Self {
            counted: facets.counted,
            complete: facets.complete,
            severity: plain(&facets.severity),
            state: plain(&facets.state),
            device: plain(&facets.device),
            program: facets.program.iter().map(program).collect(),
            technique: plain(&facets.technique),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Incident)]
pub(super) struct IncidentView<'a> {
    id: u64,
    first_unix_ms: u64,
    last_unix_ms: u64,
    alerts: u64,
    devices: u64,
    /// The device of its first alert.
    device: &'a str,
    #[schema(value_type = SeverityWord)]
    severity: &'static str,
    #[schema(value_type = WorkState)]
    state: &'static str,
    assignee: Option<&'a str>,
    title: &'a str,
}

impl<'a> From<&'a IncidentRow> for IncidentView<'a> {
    fn from(row: &'a IncidentRow) -> Self {
        Self {
            id: row.id,
            first_unix_ms: row.first_ms,
            last_unix_ms: row.last_ms,
            alerts: row.alerts,
            devices: row.devices,
            device: &row.device,
            severity: row.severity.as_str(),
            state: row.state.as_str(),
            assignee: row.assignee.as_deref(),
            title: &row.title,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Rule)]
pub(super) struct RuleView<'a> {
    id: u64,
    matcher: &'a crate::store::Matcher,
    why: &'a str,
    by: &'a str,
    created_unix_ms: u64,
    expires_unix_ms: Option<u64>,
    hidden: u64,
}

impl<'a> From<&'a Rule> for RuleView<'a> {
    fn from(rule: &'a Rule) -> Self {
        Self {
            id: rule.id,
            matcher: &rule.matcher,
            why: &rule.why,
            by: &rule.by,
            created_unix_ms: rule.created_ms,
            expires_unix_ms: rule.expires_ms,
            hidden: rule.hidden,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Overview)]
pub(super) struct OverviewView<'a> {
    since_unix_ms: u64,
    /// Alerts per hour: MEDIUM, HIGH, CRITICAL.
    hours: &'a [[u64; 3]],
    /// Of these, those that nobody looked at.
    new_alerts: [u64; 3],
    complete: bool,
    incidents: u64,
    devices: u64,
    devices_online: usize,
    silent: u64,
    signing_key: SigningKeyView,
    groups: Vec<GroupView<'a>>,
    programs: Vec<SuspectView<'a>>,
    heat: Vec<SuspectView<'a>>,
}

/// The key that signs baselines and orders: while it is away, trainings and orders wait.
#[derive(Serialize, ToSchema)]
#[schema(as = SigningKey)]
#[serde(rename_all = "snake_case")]
enum SigningKeyView {
    Here,
    Away,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Group)]
struct GroupView<'a> {
    group: &'a str,
    devices: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Suspect)]
struct SuspectView<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    device: &'a str,
    program_key: &'a str,
    program: &'a str,
    alerts: u64,
    score: f64,
}

impl<'a> OverviewView<'a> {
    pub(super) fn new(overview: &'a Overview, devices_online: usize, can_sign: bool) -> Self {
        let suspect = |one: &'a Suspect| SuspectView {
            device: &one.device,
            program_key: &one.program_key,
            program: &one.program,
            alerts: one.alerts,
            score: one.score,
        };
        let group = |(group, devices): &'a (String, u64)| GroupView { group, devices: *devices };
        Self {
            since_unix_ms: overview.since_ms,
            hours: &overview.hours,
            new_alerts: overview.new,
            complete: overview.complete,
            incidents: overview.incidents,
            devices: overview.devices,
            devices_online,
            silent: overview.silent,
            signing_key: if can_sign { SigningKeyView::Here } else { SigningKeyView::Away },
            groups: overview.groups.iter().map(group).collect(),
            programs: overview.programs.iter().map(suspect).collect(),
            heat: overview.heat.iter().map(suspect).collect(),
        }
    }
}
