//! What people do with alerts: states, who works on them, and what they say.

use super::sql::{Connection, params};

use super::alarmed::judged;
use super::alerts::WorkState;
use super::audit::Change;
use super::{StoreError, int, uint};

/// Comments of one alert; one more is refused.
const COMMENTS_MAX: i64 = 200;

/// Alerts that one request may change.
pub const BULK_MAX: usize = 1000;

/// What is to be changed; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// How far people are with it.
    pub state: Option<WorkState>,
    /// Who works on it; `Some(None)` for nobody.
    pub assignee: Option<Option<String>>,
    /// What is said about it.
    pub comment: Option<String>,
}

/// What somebody said about an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comment {
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// Who.
    pub who: String,
    /// What.
    pub text: String,
}

/// What became of the work on alerts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Worked {
    /// These alerts were changed.
    Done(Vec<u64>),
    /// There is no such alert; nothing was changed.
    Missing(u64),
    /// That alert has as many comments as may be; nothing was changed.
    Full(u64),
}

impl Change for Worked {
    fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }
}

impl Change for Option<Worked> {
    fn is_done(&self) -> bool {
        self.as_ref().is_some_and(Worked::is_done)
    }
}

/// Changes alerts, all or none.
///
/// # Errors
/// When the database fails.
pub fn work(c: &Connection, ids: &[u64], work: &Work, who: &str, now_ms: u64) -> Result<Worked, StoreError> {
    // Looked at before anything is changed, because a job that succeeds is kept.
    for id in ids {
        let there = c.prepare_cached("SELECT 1 FROM alerts WHERE id = ?")?.exists([int(*id)])?;
        if !there {
            return Ok(Worked::Missing(*id));
        }
        let mut count = c.prepare_cached("SELECT count(*) FROM comments WHERE alert = ?")?;
        if work.comment.is_some() && count.query_row([int(*id)], |row| row.get::<i64>(0))? >= COMMENTS_MAX {
            return Ok(Worked::Full(*id));
        }
    }
    for id in ids {
        if let Some(state) = work.state {
            c.prepare_cached("UPDATE alerts SET state = ? WHERE id = ?")?
                .execute(params![state.number(), int(*id)])?;
            judged(c, int(*id))?;
        }
        if let Some(assignee) = &work.assignee {
            c.prepare_cached("UPDATE alerts SET assignee = ? WHERE id = ?")?
                .execute(params![assignee, int(*id)])?;
        }
        if let Some(comment) = &work.comment {
            c.prepare_cached("INSERT INTO comments(alert, unix_ms, who, text) VALUES (?, ?, ?, ?)")?
                .execute(params![int(*id), int(now_ms), who, comment])?;
        }
    }
    Ok(Worked::Done(ids.to_vec()))
}

/// Changes an incident and its newest [`BULK_MAX`] alerts; `None` when there is no such incident. A comment goes to the
/// newest alert.
///
/// # Errors
/// When the database fails.
pub fn work_on_incident(
    c: &Connection,
    incident: u64,
    change: &Work,
    who: &str,
    now_ms: u64,
) -> Result<Option<Worked>, StoreError> {
    let there = c.prepare_cached("SELECT 1 FROM incidents WHERE id = ?")?.exists([int(incident)])?;
    if !there {
        return Ok(None);
    }
    let mut query = c.prepare_cached("SELECT id FROM alerts WHERE incident = ? ORDER BY id DESC LIMIT ?")?;
    let rows = query.query_map(params![int(incident), BULK_MAX as i64], |row| row.get::<i64>(0).map(uint))?;
    let ids = rows.collect::<Result<Vec<_>, _>>()?;
    if change.comment.is_some() {
        let only = Work { comment: change.comment.clone(), ..Work::default() };
        let said = work(c, &ids[..ids.len().min(1)], &only, who, now_ms)?;
        if !matches!(said, Worked::Done(_)) {
            return Ok(Some(said));
        }
    }
    if let Some(state) = change.state {
        c.execute("UPDATE incidents SET state = ? WHERE id = ?", params![state.number(), int(incident)])?;
    }
    if let Some(assignee) = &change.assignee {
        c.execute("UPDATE incidents SET assignee = ? WHERE id = ?", params![assignee, int(incident)])?;
    }
    work(c, &ids, &Work { comment: None, ..change.clone() }, who, now_ms).map(Some)
}

/// What was said about an alert, in order.
///
/// # Errors
/// When the database fails.
pub fn comments(c: &Connection, alert: u64) -> Result<Vec<Comment>, StoreError> {
    let mut query =
        c.prepare_cached("SELECT unix_ms, who, text FROM comments WHERE alert = ? ORDER BY id")?;
    let rows = query.query_map([int(alert)], |row| {
        Ok(Comment { unix_ms: uint(row.get(0)?), who: row.get(1)?, text: row.get(2)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
