//! Stored rows of administration as the API's JSON: tokens, users, the audit log, notification channels.

use serde::Serialize;
use utoipa::ToSchema;

use crate::access::Role;
use crate::names::DeviceId;
use crate::store::{ApiTokenRow, AuditRow, Channel, TokenRow, UserRow};

/// An enrolment token, without its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub(super) struct TokenView<'a> {
    id: &'a str,
    group: &'a str,
    device: Option<&'a str>,
    uses: u32,
    used: u32,
    expires_unix_s: u64,
    by: &'a str,
}

impl<'a> From<&'a TokenRow> for TokenView<'a> {
    fn from(row: &'a TokenRow) -> Self {
        Self {
            id: &row.id,
            group: row.group.as_str(),
            device: row.device.as_ref().map(DeviceId::as_str),
            uses: row.uses,
            used: row.used,
            expires_unix_s: row.expires_s,
            by: &row.by,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = User)]
pub(super) struct UserView<'a> {
    name: &'a str,
    /// `viewer`, `analyst` or `admin`.
    #[schema(value_type = Role)]
    role: &'static str,
    created_unix_ms: u64,
    tokens: Vec<ApiTokenView<'a>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ApiToken)]
struct ApiTokenView<'a> {
    id: &'a str,
    label: &'a str,
    created_unix_ms: u64,
    expires_unix_s: Option<u64>,
    used_unix_ms: u64,
}

impl<'a> From<&'a UserRow> for UserView<'a> {
    fn from(row: &'a UserRow) -> Self {
        let token = |token: &'a ApiTokenRow| ApiTokenView {
            id: &token.id,
            label: &token.label,
            created_unix_ms: token.created_ms,
            expires_unix_s: token.expires_s,
            used_unix_ms: token.used_ms,
        };
        Self {
            name: &row.name,
            role: row.role.as_str(),
            created_unix_ms: row.created_ms,
            tokens: row.tokens.iter().map(token).collect(),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Audit)]
pub(super) struct AuditView<'a> {
    id: u64,
    unix_ms: u64,
    who: &'a str,
    from: &'a str,
    action: &'a str,
    target: &'a str,
    detail: &'a str,
}

impl<'a> From<&'a AuditRow> for AuditView<'a> {
    fn from(row: &'a AuditRow) -> Self {
        Self {
            id: row.id,
            unix_ms: row.unix_ms,
            who: &row.who,
            from: &row.from,
            action: &row.action,
            target: &row.target,
            detail: &row.detail,
        }
    }
}

/// A notification channel, without its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = Channel)]
pub(super) struct ChannelView<'a> {
    id: u64,
    name: &'a str,
    #[serde(flatten)]
    config: crate::store::ChannelConfig,
    by: &'a str,
    delivered: u64,
    dropped: u64,
    waiting: u64,
    /// Why the last try failed.
    error: Option<&'a str>,
}

impl<'a> From<&'a Channel> for ChannelView<'a> {
    fn from(channel: &'a Channel) -> Self {
        let mut config = channel.config.clone();
        if let Some(mail) = &mut config.mail {
            mail.password = None;
        }
        Self {
            id: channel.id,
            name: &channel.name,
            config,
            by: &channel.by,
            delivered: channel.delivered,
            dropped: channel.dropped,
            waiting: channel.waiting,
            error: channel.error.as_deref(),
        }
    }
}
