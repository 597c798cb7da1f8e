//! The full-text index of alerts, `alert_words`.
//!
//! Alerts get into it once per commit and not one by one: SQLite's index is written out at each savepoint, and every job has
//! one. A commit of a thousand alerts then adds one segment to it instead of a thousand, each of which would be merged with
//! others later.

use models::program::ProgramId;
use models::wire::Alert;

use super::StoreError;
use super::sql::{Connection, Dialect, OptionalExtension as _, params};

/// Takes alerts into the index that were stored since this was done last. To be done before each commit.
///
/// # Errors
/// When the database fails.
pub fn index_new(c: &Connection) -> Result<(), StoreError> {
    let mut query = c.prepare_cached("SELECT rowid FROM alert_words ORDER BY rowid DESC LIMIT 1")?;
    let last: i64 = query.query_row([], |row| row.get(0)).optional()?.unwrap_or(0);
    let mut query = c.prepare_cached("SELECT id, device, body FROM alerts WHERE id > ? ORDER BY id")?;
    let mut insert = c.prepare_cached(match c.dialect() {
        Dialect::Sqlite => "INSERT INTO alert_words(rowid, words) VALUES (?, ?)",
        Dialect::Postgres => "INSERT INTO alert_words(rowid, words) VALUES (?, to_tsvector('simple', ?))",
    })?;
    let mut rows = query.query([last])?;
    while let Some(row) = rows.next()? {
        let (id, device): (i64, String) = (row.get(0)?, row.get(1)?);
        let alert = postcard::from_bytes(&row.get::<Vec<u8>>(2)?).map_err(StoreError::Damaged)?;
        let words = words(&device, &alert);
        let words = match c.dialect() {
            Dialect::Sqlite => words,
            Dialect::Postgres => split(&words).join(" "),
        };
        insert.execute(params![id, words])?;
    }
    Ok(())
}

/// Takes alerts up to this one out.
pub(super) fn forget(c: &Connection, up_to: i64) -> Result<(), StoreError> {
    c.prepare_cached("DELETE FROM alert_words WHERE rowid <= ?")?.execute([up_to])?;
    Ok(())
}

/// A text's words as SQLite's index takes them: what is neither letter nor digit is between words.
pub(super) fn split(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

fn words(device: &str, alert: &Alert) -> String {
    let ProgramId { unit, exe, script } = &alert.program;
    let reasons = alert.reasons.iter().flat_map(|reason| [reason.name.as_str(), reason.text.as_str()]);
    let own = [device, unit, exe, script.as_deref().unwrap_or(""), &alert.comm, &alert.summary];
    let all = own.into_iter().chain(reasons).chain(alert.techniques.iter().map(String::as_str));
    all.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use models::wire::{Uplink, UplinkFrame};

    use super::*;
    use crate::counters::{Counter, Counters};
    use crate::names::DeviceId;
    use crate::store::testing::{alert, intake, join, on_both};
    use crate::store::{AlertFilter, Intake, Limits, Page, find_alerts, put_frame};

    /// Stores alerts as jobs of one group are: each in its own savepoint.
    fn put(c: &Connection, seqs: std::ops::RangeInclusive<u64>, intake: &Intake) -> Counters {
        let (counters, device) = (Counters::default(), DeviceId::parse("gw").unwrap());
        for seq in seqs {
            c.repeat("SAVEPOINT job").unwrap();
            let frame = UplinkFrame { epoch: 1, seq, body: Uplink::Alert(alert(&format!("pump{seq}"))) };
            put_frame(c, &counters, &device, &frame, 10, intake).unwrap();
            c.repeat("RELEASE job").unwrap();
        }
        counters
    }

    fn found(c: &Connection, text: &str) -> usize {
        let filter = AlertFilter { words: Some(text.into()), ..AlertFilter::default() };
        find_alerts(c, &filter, Page::Newest, 100).unwrap().len()
    }

    #[test]
    fn a_commit_adds_one_segment_and_each_alert_once() {
        on_both(|empty| {
            let c = empty();
            join(&c, &["gw"]);
            for group in [1..=30, 31..=31, 32..=60] {
                c.begin().unwrap();
                put(&c, group.clone(), &intake());
                assert_eq!(found(&c, &format!("pump{}", group.end())), 0);
                index_new(&c).unwrap();
                index_new(&c).unwrap();
                c.commit().unwrap();
                assert_eq!(found(&c, &format!("pump{}", group.end())), 1);
            }
            assert_eq!(found(&c, "shadow"), 60);
            if c.dialect() == Dialect::Sqlite {
                let segments = "SELECT count(DISTINCT segid) FROM alert_words_idx";
                assert_eq!(c.query_row(segments, [], |row| row.get::<i64>(0)).unwrap(), 3);
            }
        });
    }

    #[test]
    fn what_is_dropped_before_it_was_indexed_is_not_found() {
        on_both(|empty| {
            let c = empty();
            join(&c, &["gw"]);
            let few = Intake { limits: Limits { alerts: 4, ..intake().limits }, ..intake() };
            for group in [1..=3, 4..=20] {
                c.begin().unwrap();
                let counters = put(&c, group.clone(), &few);
                index_new(&c).unwrap();
                c.commit().unwrap();
                assert_eq!(counters.get(Counter::AlertsDropped), group.end().saturating_sub(4));
            }
            assert_eq!((found(&c, "shadow"), found(&c, "pump16"), found(&c, "pump17")), (4, 0, 1));
            let indexed = "SELECT count(*) FROM alert_words";
            assert_eq!(c.query_row(indexed, [], |row| row.get::<i64>(0)).unwrap(), 4);
        });
    }
}
