//! The API's short answers: lists of views with the way to the next page, and what became of a change.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::admin_views::{AuditView, ChannelView, TokenView, UserView};
use super::rollout_views::{BaselineView, RolloutView};
use super::views::{
    AlertView, DeviceView, EventView, GroupTrainingView, IncidentView, RuleView, TrainingView,
};
use crate::access::Role;

#[derive(Serialize, ToSchema)]
pub(super) struct AlertList<'a> {
    pub(super) alerts: Vec<AlertView<'a>>,
    /// Ask `after` this for what is newer.
    pub(super) next_after: u64,
    /// Ask `before` this for what is older.
    pub(super) next_before: Option<u64>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct EventList<'a> {
    pub(super) events: Vec<EventView<'a>>,
    /// Ask `after` this for what is newer.
    pub(super) next_after: u64,
}

#[derive(Serialize, ToSchema)]
pub(super) struct IncidentList<'a> {
    pub(super) incidents: Vec<IncidentView<'a>>,
    /// Ask `before` this for what is older.
    pub(super) next_before: Option<u64>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct IncidentPage<'a> {
    pub(super) incident: IncidentView<'a>,
    /// The devices it is about.
    pub(super) devices: &'a [String],
}

#[derive(Serialize, ToSchema)]
pub(super) struct DeviceList<'a> {
    pub(super) devices: Vec<DeviceView<'a>>,
    /// Ask `after` this for the rest; null at the end.
    pub(super) next_after: Option<&'a str>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct TrainingList<'a> {
    pub(super) training: Vec<TrainingView<'a>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct BaselineList<'a> {
    pub(super) baselines: Vec<BaselineView<'a>>,
    /// Trainings that wait, run or failed.
    pub(super) training: Vec<GroupTrainingView>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct RolloutList<'a> {
    pub(super) rollouts: Vec<RolloutView<'a>>,
    /// Ask `before` this for what is older.
    pub(super) next_before: Option<u64>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct RuleList<'a> {
    pub(super) suppressions: Vec<RuleView<'a>>,
}

/// What a rule would have hidden.
#[derive(Serialize, ToSchema)]
#[schema(as = Preview)]
pub(super) struct PreviewView<'a> {
    pub(super) hidden: usize,
    /// Alerts that were looked at.
    pub(super) of: u64,
    /// Both in a sentence.
    pub(super) text: String,
    /// The newest of them.
    pub(super) alerts: Vec<AlertView<'a>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ChannelList<'a> {
    pub(super) channels: Vec<ChannelView<'a>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct UserList<'a> {
    pub(super) users: Vec<UserView<'a>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct TokenList<'a> {
    pub(super) tokens: Vec<TokenView<'a>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AuditList<'a> {
    pub(super) audit: Vec<AuditView<'a>>,
    /// Ask `before` this for what is older.
    pub(super) next_before: Option<u64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Me)]
pub(super) struct MeView<'a> {
    pub(super) name: &'a str,
    pub(super) role: Role,
}

#[derive(Serialize, ToSchema)]
#[schema(as = SignIn)]
pub(super) struct SignInView<'a> {
    /// The identity provider; null when people need a token.
    pub(super) issuer: Option<&'a str>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
pub(super) struct HealthView {
    /// `ok`; a server that is not answers 503.
    pub(super) status: &'static str,
    pub(super) version: &'static str,
    pub(super) devices_online: usize,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Counters)]
pub(super) struct CountersView {
    /// By name.
    #[schema(value_type = Object)]
    pub(super) counters: Map<String, Value>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Changed)]
pub(super) struct ChangedView {
    /// How many.
    pub(super) changed: usize,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Made)]
pub(super) struct MadeView {
    pub(super) id: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = MadeChannel)]
pub(super) struct MadeChannelView {
    pub(super) id: u64,
    /// Signs its posts.
    pub(super) secret: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = MadeToken)]
pub(super) struct MadeTokenView {
    /// Names it from now on.
    pub(super) id: String,
    pub(super) token: String,
    /// Null for never.
    pub(super) expires_unix_s: Option<u64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Delivered)]
pub(super) struct DeliveredView {
    pub(super) delivered: bool,
    /// Why not.
    pub(super) error: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Queued)]
pub(super) struct QueuedView {
    /// `queued`, or `asked` of a device.
    pub(super) state: &'static str,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Enrolled)]
pub(super) struct EnrolledView<'a> {
    pub(super) certificate_pem: &'a str,
    pub(super) renew_after_unix_s: u64,
    pub(super) ca_pem: &'a str,
    /// Host and port that devices connect to.
    pub(super) mqtt: String,
    /// Ed25519 public keys that sign bundles, in hexadecimal.
    pub(super) bundle_keys: Vec<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Renewed)]
pub(super) struct RenewedView<'a> {
    pub(super) certificate_pem: &'a str,
    pub(super) renew_after_unix_s: u64,
}
