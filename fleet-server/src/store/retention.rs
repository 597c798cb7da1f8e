//! Dropping what is older than it is to be kept, some at a time.

use super::alerts::drop_oldest;
use super::captures::drop_older_captures;
use super::sql::Connection;
use super::{StoreError, int};
use crate::counters::{Counter, Counters};

/// Rows of each table that go at once, so that nobody waits long.
const AT_ONCE: i64 = 1000;

/// Drops alerts, events, captures and entries of the audit log from before this time, the oldest first; whether there may be more.
///
/// # Errors
/// When the database fails.
pub fn drop_older(c: &Connection, counters: &Counters, before_ms: u64) -> Result<bool, StoreError> {
    drop_older_captures(c, counters, before_ms)?;
    let mut more = false;
    for (table, time) in [("alerts", "received_ms"), ("events", "received_ms"), ("audit", "unix_ms")] {
        // Numbers are given in the order of time: the last of the oldest that is old enough.
        let sql = format!(
            "SELECT max(id), count(*) FROM (SELECT id, {time} AS at FROM {table} ORDER BY id LIMIT {AT_ONCE}) AS oldest
             WHERE at < ?"
        );
        let oldest =
            c.prepare_cached(&sql)?.query_row([int(before_ms)], |row| Ok((row.get(0)?, row.get(1)?)));
        let (Some(up_to), count): (Option<i64>, i64) = oldest? else { continue };
        more |= count == AT_ONCE;
        if table == "alerts" {
            drop_oldest(c, counters, up_to)?;
            continue;
        }
        let dropped =
            c.prepare_cached(&format!("DELETE FROM {table} WHERE id <= ?"))?.execute([up_to])? as u64;
        counters.add(if table == "events" { Counter::EventsDropped } else { Counter::AuditDropped }, dropped);
    }
    Ok(more)
}

#[cfg(test)]
mod tests {
    use super::super::sql::params;
    use super::super::testing::on_both;
    use super::*;

    #[test]
    fn what_is_too_old_goes_some_at_a_time_and_the_rest_stays() {
        on_both(|empty| {
            let (c, counters) = (empty(), Counters::default());
            let insert = "INSERT INTO audit(unix_ms, who, source, action, target, detail) VALUES (?, '', '', '', '', '')";
            for unix_ms in 1..=1500_i64 {
                c.execute(insert, [unix_ms]).unwrap();
            }
            let insert = "INSERT INTO events(device, received_ms, unix_ms, kind, text) VALUES ('gw', ?, 0, 'started', '')";
            for received_ms in [5_i64, 1400, 1450] {
                c.execute(insert, [received_ms]).unwrap();
            }
            let left = |table: &str| -> i64 {
                c.query_row(&format!("SELECT count(*) FROM {table}"), params![], |row| row.get(0)).unwrap()
            };
            assert!(drop_older(&c, &counters, 1401).unwrap());
            assert_eq!((left("audit"), left("events")), (500, 1));
            assert!(!drop_older(&c, &counters, 1401).unwrap());
            assert!(!drop_older(&c, &counters, 1401).unwrap());
            assert_eq!((left("audit"), left("events")), (100, 1));
            assert_eq!(
                (counters.get(Counter::AuditDropped), counters.get(Counter::EventsDropped)),
                (1400, 2)
            );
        });
    }
}
