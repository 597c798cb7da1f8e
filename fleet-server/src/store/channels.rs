//! Notification channels, and what waits to be told through them.
//!
//! A notice is put in the transaction of its alert and removed when it was delivered, so that each is told at least
//! once whatever is killed in between.

use super::sql::{Connection, OptionalExtension as _, Row, params};
use models::policy::Severity;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::alerts::{StoredAlert, severity_of};
use super::suppressions::Matcher;
use super::{StoreError, int, uint};
use crate::counters::{Counter, Counters};

/// Channels at most; one more is refused.
pub const CHANNELS_MAX: i64 = 100;

/// Notices that wait for one channel; more drops the oldest.
const NOTICES_MAX: i64 = 10_000;

/// The bound is looked after with every so many notices.
const TRIM_EVERY: i64 = 256;

/// In which form a channel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The alert as the API gives it.
    Json,
    /// A text for Slack, Mattermost or Rocket.Chat.
    Slack,
    /// An adaptive card for Microsoft Teams.
    Teams,
    /// A sentence with structured data, RFC 5424.
    Syslog,
    /// ArcSight Common Event Format, in syslog.
    Cef,
    /// Sentences in a mail.
    Mail,
    /// A detection finding of the Open Cybersecurity Schema Framework 1.3, in syslog or posted.
    Ocsf,
}

/// From whom and for whom mail is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MailConfig {
    /// The sender's address.
    pub from: String,
    /// Who gets it, 1 to 20.
    #[schema(min_items = 1, max_items = 20)]
    pub to: Vec<String>,
    /// As whom the server is logged in to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// That user's password; never shown again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

/// Where alerts are told, and which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChannelConfig {
    /// Where it is posted to.
    pub url: String,
    /// In which form.
    pub format: Format,
    /// Certificates to trust instead of the system's, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// From whom and for whom mail is; with a mail server's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mail: Option<MailConfig>,
    /// At least so severe: `MEDIUM`, `HIGH` or `CRITICAL`.
    pub severity: String,
    /// Which of them; everything when nothing is given.
    #[serde(default)]
    pub matcher: Matcher,
    /// Posts in a minute; what is beyond comes as one digest.
    pub per_minute: u32,
}

/// A channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Channel {
    /// Counts up.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// What it does.
    pub config: ChannelConfig,
    /// Signs what is posted.
    pub secret: String,
    /// Who made it.
    pub by: String,
    /// Alerts that were told.
    pub delivered: u64,
    /// Alerts that were not: too many waited, or too long.
    pub dropped: u64,
    /// Alerts that wait.
    pub waiting: u64,
    /// Why the last try failed; `None` when it did not.
    pub error: Option<String>,
}

/// What waits for one channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// Counts up; names the delivery.
    pub id: u64,
    /// The alert's id.
    pub alert: u64,
    /// How severe it is.
    pub severity: Severity,
    /// How often it was tried.
    pub tries: u32,
    /// When its alert was stored, milliseconds since 1970.
    pub since_ms: u64,
}

/// All channels, to look through for each new alert.
#[derive(Clone, Debug, Default)]
pub struct Channels(Vec<(u64, Severity, Matcher)>);

impl Channels {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts a notice for every channel that this alert is for.
    pub(super) fn note(
        &self,
        c: &Connection,
        counters: &Counters,
        stored: &StoredAlert,
    ) -> Result<(), StoreError> {
        let alert = &stored.alert;
        for (channel, least, matcher) in &self.0 {
            if alert.severity < *least || !matcher.fits(&stored.device, &stored.group, alert) {
                continue;
            }
            let mut insert = c.prepare_cached(
                "INSERT INTO notices(channel, alert, severity, since_ms, due_ms) VALUES (?, ?, ?, ?, ?4) RETURNING id",
            )?;
            let severity = alert.severity as i64;
            let values = params![int(*channel), int(stored.id), severity, int(stored.received_ms)];
            let id: i64 = insert.query_row(values, |row| row.get(0))?;
            if id % TRIM_EVERY == 0 {
                let older = "DELETE FROM notices WHERE channel = ?1 AND id <=
                    (SELECT id FROM notices WHERE channel = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)";
                let dropped = c.prepare_cached(older)?.execute(params![int(*channel), NOTICES_MAX])?;
                count_dropped(c, counters, *channel, dropped as u64)?;
            }
        }
        Ok(())
    }
}

fn count_dropped(c: &Connection, counters: &Counters, channel: u64, dropped: u64) -> Result<(), StoreError> {
    if dropped > 0 {
        counters.add(Counter::NoticesDropped, dropped);
        c.prepare_cached("UPDATE channels SET dropped = dropped + ? WHERE id = ?")?
            .execute(params![int(dropped), int(channel)])?;
    }
    Ok(())
}

const CHANNEL: &str = "SELECT id, name, config, secret, by, delivered, dropped, error,
    (SELECT count(*) FROM notices n WHERE n.channel = c.id) FROM channels c";

/// All channels by name.
///
/// # Errors
/// When the database fails.
pub fn channels(c: &Connection) -> Result<Vec<Channel>, StoreError> {
    let mut query = c.prepare_cached(&format!("{CHANNEL} ORDER BY name"))?;
    let mut rows = query.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.extend(read(&row)?);
    }
    Ok(found)
}

/// One channel.
///
/// # Errors
/// When the database fails.
pub fn channel(c: &Connection, id: u64) -> Result<Option<Channel>, StoreError> {
    let mut query = c.prepare_cached(&format!("{CHANNEL} WHERE id = ?"))?;
    let mut rows = query.query([int(id)])?;
    rows.next()?.map(|row| read(&row)).transpose().map(Option::flatten)
}

/// `None` for one that a newer server made in another form.
fn read(row: &Row<'_>) -> Result<Option<Channel>, StoreError> {
    let config: String = row.get(2)?;
    let Ok(config) = serde_json::from_str(&config) else { return Ok(None) };
    Ok(Some(Channel {
        id: uint(row.get(0)?),
        name: row.get(1)?,
        config,
        secret: row.get(3)?,
        by: row.get(4)?,
        delivered: uint(row.get(5)?),
        dropped: uint(row.get(6)?),
        error: row.get(7)?,
        waiting: uint(row.get(8)?),
    }))
}

/// The channels for new alerts.
///
/// # Errors
/// When the database fails.
pub fn load_channels(c: &Connection) -> Result<Channels, StoreError> {
    let of = |channel: Channel| {
        let severity = Severity::from_word(&channel.config.severity).unwrap_or(Severity::Medium);
        (channel.id, severity, channel.config.matcher)
    };
    Ok(Channels(channels(c)?.into_iter().map(of).collect()))
}

/// Makes a channel; `None` when there is one of that name, or too many.
///
/// # Errors
/// When the database fails.
pub fn add_channel(
    c: &Connection,
    name: &str,
    config: &ChannelConfig,
    secret: &str,
    by: &str,
) -> Result<Option<u64>, StoreError> {
    let there: i64 = c.query_row("SELECT count(*) FROM channels", [], |row| row.get(0))?;
    if there >= CHANNELS_MAX {
        return Ok(None);
    }
    let config = serde_json::to_string(config).expect("a channel has a JSON form");
    let added = c.query_row(
        "INSERT INTO channels(name, config, secret, by) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id",
        params![name, config, secret, by],
        |row| row.get(0),
    );
    Ok(added.optional()?.map(uint))
}

/// Removes a channel with what waits for it; `false` when there is none.
///
/// # Errors
/// When the database fails.
pub fn remove_channel(c: &Connection, id: u64) -> Result<bool, StoreError> {
    c.execute("DELETE FROM notices WHERE channel = ?", [int(id)])?;
    Ok(c.execute("DELETE FROM channels WHERE id = ?", [int(id)])? > 0)
}

/// What is due for a channel, the oldest first.
///
/// # Errors
/// When the database fails.
pub fn due(c: &Connection, channel: u64, now_ms: u64, limit: u32) -> Result<Vec<Notice>, StoreError> {
    // One that waits for its next try holds up those behind it: they go the same way.
    let first = "SELECT due_ms FROM notices WHERE channel = ? ORDER BY id LIMIT 1";
    let next: Option<i64> =
        c.prepare_cached(first)?.query_row([int(channel)], |row| row.get(0)).optional()?;
    if next.is_none_or(|due_ms| due_ms > int(now_ms)) {
        return Ok(Vec::new());
    }
    let mut query = c.prepare_cached(
        "SELECT id, alert, severity, tries, since_ms FROM notices WHERE channel = ? ORDER BY id LIMIT ?",
    )?;
    let rows = query.query_map(params![int(channel), limit], |row| {
        Ok(Notice {
            id: uint(row.get(0)?),
            alert: uint(row.get(1)?),
            severity: severity_of(row.get(2)?),
            tries: row.get(3)?,
            since_ms: uint(row.get(4)?),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// These were told, up to this one.
///
/// # Errors
/// When the database fails.
pub fn delivered(c: &Connection, channel: u64, up_to: u64) -> Result<(), StoreError> {
    let told = c
        .prepare_cached("DELETE FROM notices WHERE channel = ? AND id <= ?")?
        .execute(params![int(channel), int(up_to)])?;
    c.prepare_cached("UPDATE channels SET delivered = delivered + ?, error = NULL WHERE id = ?")?
        .execute(params![told as i64, int(channel)])?;
    Ok(())
}

/// The first was tried in vain: it waits, and whatever has waited since before `oldest_ms` is given up.
///
/// # Errors
/// When the database fails.
pub fn failed(
    c: &Connection,
    counters: &Counters,
    channel: u64,
    first: u64,
    due_ms: u64,
    oldest_ms: u64,
    error: &str,
) -> Result<(), StoreError> {
    let given_up = c
        .prepare_cached("DELETE FROM notices WHERE channel = ? AND since_ms < ?")?
        .execute(params![int(channel), int(oldest_ms)])?;
    count_dropped(c, counters, channel, given_up as u64)?;
    c.prepare_cached("UPDATE notices SET tries = tries + 1, due_ms = ? WHERE id = ?")?
        .execute(params![int(due_ms), int(first)])?;
    c.prepare_cached("UPDATE channels SET error = ? WHERE id = ?")?.execute(params![error, int(channel)])?;
    Ok(())
}
