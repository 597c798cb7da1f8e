//! Rules that hide alerts: still stored and found, but not in the lists, the stream or an incident unless asked for.

use super::sql::{Connection, params};
use models::wire::Alert;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::alerts::{ALERT, StoredAlert, read};
use super::{StoreError, int, uint};
use crate::names::DeviceId;

/// Rules at most; one more is refused.
pub const RULES_MAX: usize = 1000;

/// Alerts that a preview looks at.
pub const PREVIEWED: u32 = 1000;

/// Which alerts a rule hides, or a channel is told of: those of which everything that is given is true.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Matcher {
    /// The device's group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The executable's path; `*` stands for any characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// The systemd unit or container; `*` stands for any characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// An ATT&CK technique of the alert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub technique: Option<String>,
    /// The name of a reason, e.g. `first_sensitive_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Scores above it are shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 100)]
    pub max_score: Option<f32>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Counts up.
    pub id: u64,
    /// What it hides.
    pub matcher: Matcher,
    /// Why, in the words of who made it.
    pub why: String,
    /// Who made it.
    pub by: String,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// When it ends; `None` for never.
    pub expires_ms: Option<u64>,
    /// Alerts that it hid.
    pub hidden: u64,
}

/// All rules, to look through for each new alert.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<Rule>);

impl Matcher {
    /// Whether it says anything beside a score: otherwise it would hide everything.
    #[must_use]
    pub fn is_narrow(&self) -> bool {
        let texts = [&self.group, &self.device, &self.exe, &self.unit, &self.technique, &self.reason];
        texts.iter().any(|text| text.is_some())
    }

    /// Whether this alert of a device in this group is one of them.
    #[must_use]
    pub fn fits(&self, device: &str, group: &str, alert: &Alert) -> bool {
        let given = |wanted: &Option<String>, is: &dyn Fn(&str) -> bool| wanted.as_deref().is_none_or(is);
        given(&self.device, &|wanted| wanted == device)
            && given(&self.group, &|wanted| wanted == group)
            && given(&self.exe, &|wanted| glob(wanted, &alert.program.exe))
            && given(&self.unit, &|wanted| glob(wanted, &alert.program.unit))
            && given(&self.technique, &|wanted| alert.techniques.iter().any(|technique| technique == wanted))
            && given(&self.reason, &|wanted| alert.reasons.iter().any(|reason| reason.name == wanted))
            && self.max_score.is_none_or(|max| alert.score <= max)
    }
}

impl Rules {
    /// The rule that hides this alert, if there is one.
    pub(super) fn hides(&self, device: &DeviceId, group: &str, alert: &Alert, now_ms: u64) -> Option<u64> {
        let mut live = self.0.iter().filter(|rule| rule.expires_ms.is_none_or(|end| end > now_ms));
        live.find(|rule| rule.matcher.fits(device.as_str(), group, alert)).map(|rule| rule.id)
    }
}

/// Whether a text fits a pattern in which `*` stands for any characters.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// All rules, the newest first.
///
/// # Errors
/// When the database fails.
pub fn rules(c: &Connection) -> Result<Vec<Rule>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT id, matcher, why, by, created_ms, expires_ms, hidden FROM suppressions ORDER BY id DESC",
    )?;
    let mut rows = query.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let matcher: String = row.get(1)?;
        // One that a newer server made in another form hides nothing.
        let Ok(matcher) = serde_json::from_str(&matcher) else { continue };
        found.push(Rule {
            id: uint(row.get(0)?),
            matcher,
            why: row.get(2)?,
            by: row.get(3)?,
            created_ms: uint(row.get(4)?),
            expires_ms: row.get::<Option<i64>>(5)?.map(uint),
            hidden: uint(row.get(6)?),
        });
    }
    Ok(found)
}

/// The rules for new alerts.
///
/// # Errors
/// When the database fails.
pub fn load_rules(c: &Connection) -> Result<Rules, StoreError> {
    Ok(Rules(rules(c)?))
}

/// Keeps a rule, whose id and count are not used; gives its id, or `None` when there are too many.
///
/// # Errors
/// When the database fails.
pub fn add_rule(c: &Connection, rule: &Rule) -> Result<Option<u64>, StoreError> {
    let there: i64 = c.query_row("SELECT count(*) FROM suppressions", [], |row| row.get(0))?;
    if usize::try_from(there).is_ok_and(|there| there >= RULES_MAX) {
        return Ok(None);
    }
    let matcher = serde_json::to_string(&rule.matcher).expect("a matcher has a JSON form");
    let id = c.query_row(
        "INSERT INTO suppressions(matcher, why, by, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?) RETURNING id",
        params![matcher, rule.why, rule.by, int(rule.created_ms), rule.expires_ms.map(int)],
        |row| row.get(0),
    )?;
    Ok(Some(uint(id)))
}

/// Removes a rule; what it hid stays hidden. `false` when there is none.
///
/// # Errors
/// When the database fails.
pub fn remove_rule(c: &Connection, id: u64) -> Result<bool, StoreError> {
    Ok(c.execute("DELETE FROM suppressions WHERE id = ?", [int(id)])? > 0)
}

/// What a rule would have hidden of the newest [`PREVIEWED`] alerts that are shown: those, and how many there were.
///
/// # Errors
/// When the database fails.
pub fn preview(c: &Connection, matcher: &Matcher) -> Result<(Vec<StoredAlert>, u64), StoreError> {
    let mut query = c.prepare_cached(&format!(
        "{ALERT} WHERE a.suppressed IS NULL ORDER BY a.id DESC LIMIT {PREVIEWED}"
    ))?;
    let mut rows = query.query([])?;
    let (mut hidden, mut of) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let alert = read(&row)?;
        of += 1;
        if matcher.fits(&alert.device, &alert.group, &alert.alert) {
            hidden.push(alert);
        }
    }
    Ok((hidden, of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text) in [
            ("/usr/bin/*", "/usr/bin/pump"),
            ("*", ""),
            ("a*c*e", "abcde"),
            ("*.service", "pump.service"),
            ("a*a", "aa"),
            ("exact", "exact"),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("/usr/bin/*", "/usr/sbin/x"), ("a*a", "a"), ("exact", "exactly"), ("", "x"), ("a*c*e", "ace ")]
        {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }
}
