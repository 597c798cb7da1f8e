//! The tables in SQLite: a step from each version to the next.

use super::super::sql::Connection;
use super::super::{StoreError, alerts};
use super::VERSION;

/// `acks` holds the highest number without a gap below it; `ahead` what was stored beyond it.
const V1: &str = "
CREATE TABLE devices(
    id TEXT PRIMARY KEY, certificate BLOB NOT NULL, enrolled_ms INTEGER NOT NULL, seen_ms INTEGER NOT NULL DEFAULT 0,
    alerts INTEGER NOT NULL DEFAULT 0, heartbeat BLOB, heartbeat_ms INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE tickets(
    hash BLOB PRIMARY KEY, device TEXT NOT NULL, expires_s INTEGER NOT NULL, used_ms INTEGER
) WITHOUT ROWID;
CREATE TABLE acks(
    device TEXT NOT NULL, epoch INTEGER NOT NULL, acked INTEGER NOT NULL, touched_ms INTEGER NOT NULL,
    PRIMARY KEY(device, epoch)
) WITHOUT ROWID;
CREATE TABLE ahead(
    device TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(device, epoch, seq)
) WITHOUT ROWID;
CREATE TABLE alerts(
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
    received_ms INTEGER NOT NULL, body BLOB NOT NULL, UNIQUE(device, epoch, seq)
);
CREATE INDEX alerts_by_device ON alerts(device, id);
CREATE TABLE programs(
    device TEXT NOT NULL, key TEXT NOT NULL, program BLOB NOT NULL, total INTEGER NOT NULL DEFAULT 0,
    generation INTEGER NOT NULL DEFAULT 0, trained_s INTEGER NOT NULL DEFAULT 0,
    reported_generation INTEGER NOT NULL DEFAULT 0, refused TEXT, PRIMARY KEY(device, key)
) WITHOUT ROWID;
CREATE TABLE windows(
    id INTEGER PRIMARY KEY, device TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL
);
CREATE INDEX windows_by_program ON windows(device, key, id);
CREATE TABLE bundles(
    device TEXT NOT NULL, key TEXT NOT NULL, generation INTEGER NOT NULL, sha256 BLOB NOT NULL,
    size INTEGER NOT NULL, created_ms INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY(device, key, generation)
);
CREATE INDEX bundles_by_hash ON bundles(sha256, device);
CREATE TABLE rejected(
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, received_ms INTEGER NOT NULL, topic TEXT NOT NULL,
    reason TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
";

/// What happens to agents. Those that a device told have its number; those that the server noticed have none.
const V2: &str = "
CREATE TABLE events(
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, epoch INTEGER, seq INTEGER, received_ms INTEGER NOT NULL,
    unix_ms INTEGER NOT NULL, kind TEXT NOT NULL, program BLOB, containment INTEGER, text TEXT NOT NULL,
    UNIQUE(device, epoch, seq)
);
CREATE INDEX events_by_device ON events(device, id);
CREATE TABLE releases(
    device TEXT NOT NULL, containment INTEGER NOT NULL, asked_ms INTEGER NOT NULL, PRIMARY KEY(device, containment)
) WITHOUT ROWID;
ALTER TABLE devices ADD COLUMN silent_ms INTEGER NOT NULL DEFAULT 0;
";

/// Groups, keys and revocation of devices; tokens for many devices; users; who did what. A device of before has no
/// key here and is enrolled again.
const V3: &str = "
ALTER TABLE devices ADD COLUMN key BLOB;
ALTER TABLE devices ADD COLUMN grp TEXT NOT NULL DEFAULT 'default';
ALTER TABLE devices ADD COLUMN ends_s INTEGER NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN revoked_ms INTEGER NOT NULL DEFAULT 0;
CREATE INDEX devices_by_group ON devices(grp, id);
CREATE TABLE tokens(
    hash BLOB PRIMARY KEY, grp TEXT NOT NULL, device TEXT, uses INTEGER NOT NULL, used INTEGER NOT NULL DEFAULT 0,
    expires_s INTEGER NOT NULL, by TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO tokens(hash, grp, device, uses, used, expires_s, by)
    SELECT hash, 'default', device, 1, used_ms IS NOT NULL, expires_s, 'local' FROM tickets;
DROP TABLE tickets;
CREATE TABLE users(name TEXT PRIMARY KEY, role TEXT NOT NULL, created_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE api_tokens(
    hash BLOB PRIMARY KEY, user TEXT NOT NULL REFERENCES users(name), label TEXT NOT NULL, created_ms INTEGER NOT NULL,
    expires_s INTEGER, used_ms INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX api_tokens_by_user ON api_tokens(user);
CREATE TABLE audit(
    id INTEGER PRIMARY KEY AUTOINCREMENT, unix_ms INTEGER NOT NULL, who TEXT NOT NULL, source TEXT NOT NULL,
    action TEXT NOT NULL, target TEXT NOT NULL, detail TEXT NOT NULL
);
";

/// Alerts as they are looked for and worked on; [`super::alerts::fill`] fills the new columns. A heartbeat is some
/// kilobytes, and a device's row is written with every alert: so they are apart.
const V4: &str = "
ALTER TABLE alerts ADD COLUMN unix_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN severity INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN score REAL NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN program_key TEXT NOT NULL DEFAULT '';
ALTER TABLE alerts ADD COLUMN program TEXT NOT NULL DEFAULT '';
ALTER TABLE alerts ADD COLUMN techniques TEXT NOT NULL DEFAULT ' ';
ALTER TABLE alerts ADD COLUMN print INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN state INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN assignee TEXT;
ALTER TABLE alerts ADD COLUMN incident INTEGER;
ALTER TABLE alerts ADD COLUMN suppressed INTEGER;
CREATE INDEX alerts_by_program ON alerts(program_key, id);
CREATE INDEX alerts_by_incident ON alerts(incident, id) WHERE incident IS NOT NULL;
CREATE INDEX alerts_by_state ON alerts(state, id);
CREATE INDEX alerts_high ON alerts(id) WHERE severity >= 2;
CREATE INDEX alerts_critical ON alerts(id) WHERE severity >= 3;
CREATE VIRTUAL TABLE alert_words USING fts5(words, content='', contentless_delete=1);
CREATE TABLE comments(
    id INTEGER PRIMARY KEY, alert INTEGER NOT NULL, unix_ms INTEGER NOT NULL, who TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX comments_by_alert ON comments(alert, id);
CREATE TABLE evidence(
    print INTEGER NOT NULL, device TEXT NOT NULL, first_ms INTEGER NOT NULL, alerts INTEGER NOT NULL,
    PRIMARY KEY(print, device)
) WITHOUT ROWID;
CREATE TABLE incidents(
    id INTEGER PRIMARY KEY AUTOINCREMENT, print INTEGER NOT NULL, device TEXT NOT NULL, first_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL, alerts INTEGER NOT NULL, devices INTEGER NOT NULL, severity INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0, assignee TEXT, title TEXT NOT NULL
);
CREATE INDEX incidents_by_print ON incidents(print, last_ms);
CREATE INDEX incidents_by_device ON incidents(device, last_ms);
CREATE INDEX incidents_by_time ON incidents(last_ms);
CREATE TABLE incident_devices(
    incident INTEGER NOT NULL, device TEXT NOT NULL, PRIMARY KEY(incident, device)
) WITHOUT ROWID;
CREATE TABLE heartbeats(device TEXT PRIMARY KEY, body BLOB NOT NULL);
INSERT INTO heartbeats(device, body) SELECT id, heartbeat FROM devices WHERE heartbeat IS NOT NULL;
ALTER TABLE devices DROP COLUMN heartbeat;
CREATE TABLE suppressions(
    id INTEGER PRIMARY KEY AUTOINCREMENT, matcher TEXT NOT NULL, why TEXT NOT NULL, by TEXT NOT NULL,
    created_ms INTEGER NOT NULL, expires_ms INTEGER, hidden INTEGER NOT NULL DEFAULT 0
);
";

/// Notification channels and what waits for them.
const V5: &str = "
CREATE TABLE channels(
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, config TEXT NOT NULL, secret TEXT NOT NULL,
    by TEXT NOT NULL, delivered INTEGER NOT NULL DEFAULT 0, dropped INTEGER NOT NULL DEFAULT 0, error TEXT
);
CREATE TABLE notices(
    id INTEGER PRIMARY KEY AUTOINCREMENT, channel INTEGER NOT NULL, alert INTEGER NOT NULL, severity INTEGER NOT NULL,
    since_ms INTEGER NOT NULL, due_ms INTEGER NOT NULL, tries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX notices_by_channel ON notices(channel, id);
";

/// Baselines of many devices and their rollouts; what devices are to take back, and keep.
const V6: &str = "
CREATE TABLE baselines(
    id INTEGER PRIMARY KEY AUTOINCREMENT, grp TEXT, key TEXT NOT NULL, program BLOB NOT NULL, generation INTEGER NOT NULL,
    sha256 BLOB NOT NULL, size INTEGER NOT NULL, created_ms INTEGER NOT NULL, by TEXT NOT NULL,
    windows INTEGER NOT NULL, devices INTEGER NOT NULL, body BLOB NOT NULL, UNIQUE(key, generation)
);
CREATE INDEX baselines_by_hash ON baselines(sha256);
CREATE TABLE rollouts(
    id INTEGER PRIMARY KEY AUTOINCREMENT, baseline INTEGER NOT NULL UNIQUE, plan TEXT NOT NULL, state TEXT NOT NULL,
    paused INTEGER NOT NULL DEFAULT 0, by TEXT NOT NULL, created_ms INTEGER NOT NULL, stage_ms INTEGER NOT NULL,
    reason TEXT NOT NULL, first_alert INTEGER NOT NULL
);
CREATE TABLE rollout_devices(
    rollout INTEGER NOT NULL, device TEXT NOT NULL, canary INTEGER NOT NULL, offered_ms INTEGER NOT NULL,
    active_ms INTEGER NOT NULL DEFAULT 0, refused TEXT, PRIMARY KEY(rollout, device)
) WITHOUT ROWID;
CREATE TABLE take_backs(
    device TEXT NOT NULL, key TEXT NOT NULL, program BLOB NOT NULL, generation INTEGER NOT NULL, asked_ms INTEGER NOT NULL,
    PRIMARY KEY(device, key, generation)
) WITHOUT ROWID;
CREATE TABLE pins(device TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY(device, key)) WITHOUT ROWID;
CREATE INDEX programs_by_key ON programs(key, device);
";

/// The user of a token, under a name that is no keyword anywhere.
const V7: &str = "ALTER TABLE api_tokens RENAME COLUMN user TO owner;";

/// What devices are asked to do, the configurations of groups, the generations of programs that are learned anew, and tags:
/// each with a space before and behind it.
const V8: &str = "
CREATE TABLE orders(
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, body BLOB NOT NULL, version INTEGER, by TEXT NOT NULL,
    created_ms INTEGER NOT NULL, expires_ms INTEGER, answered_ms INTEGER, done INTEGER, answer TEXT
);
CREATE INDEX orders_by_device ON orders(device, id);
CREATE INDEX orders_waiting ON orders(device, id) WHERE answered_ms IS NULL;
CREATE TABLE group_configs(
    id INTEGER PRIMARY KEY AUTOINCREMENT, grp TEXT NOT NULL, text TEXT NOT NULL, by TEXT NOT NULL, created_ms INTEGER NOT NULL
);
CREATE INDEX group_configs_by_group ON group_configs(grp, id);
ALTER TABLE programs ADD COLUMN floor INTEGER NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN tags TEXT NOT NULL DEFAULT ' ';
";

/// What devices recorded for an order, and how much of it is here.
const V9: &str = "
CREATE TABLE captures(id INTEGER PRIMARY KEY, size INTEGER NOT NULL, stored INTEGER NOT NULL);
CREATE TABLE capture_parts(
    capture INTEGER NOT NULL, at INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY(capture, at)
);
";

/// Windows that there were alerts in, and which of them each alert was about.
const V10: &str = "
CREATE TABLE alarmed(
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL,
    accepted INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX alarmed_by_device ON alarmed(device, accepted, id);
CREATE INDEX alarmed_accepted ON alarmed(key, id) WHERE accepted = 1;
ALTER TABLE alerts ADD COLUMN alarmed INTEGER;
CREATE INDEX alerts_by_alarmed ON alerts(alarmed) WHERE alarmed IS NOT NULL;
";

/// Program files of the agent, and who was given them.
const V11: &str = "
CREATE TABLE builds(
    id INTEGER PRIMARY KEY AUTOINCREMENT, sha256 BLOB NOT NULL UNIQUE, signed BLOB NOT NULL, by TEXT NOT NULL,
    created_ms INTEGER NOT NULL
);
CREATE TABLE build_parts(build INTEGER NOT NULL, at INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY(build, at));
CREATE TABLE updates(
    id INTEGER PRIMARY KEY AUTOINCREMENT, version TEXT NOT NULL, grp TEXT, plan TEXT NOT NULL, stage TEXT NOT NULL,
    paused INTEGER NOT NULL DEFAULT 0, by TEXT NOT NULL, created_ms INTEGER NOT NULL, stage_ms INTEGER NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE update_devices(
    update_id INTEGER NOT NULL, device TEXT NOT NULL, canary INTEGER NOT NULL, order_id INTEGER NOT NULL,
    offered_ms INTEGER NOT NULL, sha256 BLOB NOT NULL, PRIMARY KEY(update_id, device)
) WITHOUT ROWID;
CREATE INDEX update_devices_by_device ON update_devices(device, sha256);
";

/// Certificates of devices that have not ended.
const V12: &str = "
CREATE TABLE certificates(
    serial BLOB PRIMARY KEY, device TEXT NOT NULL, key BLOB NOT NULL, ends_s INTEGER NOT NULL,
    withdrawn_s INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX certificates_by_device ON certificates(device, ends_s);
CREATE INDEX certificates_by_end ON certificates(ends_s);
CREATE INDEX certificates_withdrawn ON certificates(serial) WHERE withdrawn_s > 0;
";

/// A part of the index of words is written anew when four fifths of its alerts were dropped. With a tenth, which is the
/// default, a server that keeps 500,000 alerts and drops one for each new one was at that most of the time, and up to 4.4
/// seconds at once, in which nothing was acknowledged.
const V13: &str = "
INSERT INTO alert_words(alert_words, rank) VALUES ('deletemerge', 80);
";

/// The steps from each version to the next.
const STEPS: [&str; VERSION as usize] = [V1, V2, V3, V4, V5, V6, V7, V8, V9, V10, V11, V12, V13];

/// Brings an older or empty database to [`VERSION`], in one transaction.
pub(super) fn migrate(c: &Connection, place: &str) -> Result<(), StoreError> {
    let Some(connection) = c.as_sqlite() else { return Ok(()) };
    let opened =
        |source: rusqlite::Error| StoreError::Open { place: place.to_owned(), source: source.into() };
    connection.execute_batch("BEGIN IMMEDIATE").map_err(opened)?;
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(opened)?;
    let Some(steps) = STEPS.get(found as usize..) else {
        let _ = connection.execute_batch("ROLLBACK");
        return Err(StoreError::Newer { place: place.to_owned(), found, known: VERSION });
    };
    steps.iter().try_for_each(|step| connection.execute_batch(step)).map_err(opened)?;
    if (1..4).contains(&found) {
        alerts::fill(c)?;
    }
    let result = connection.pragma_update(None, "user_version", VERSION);
    result.and_then(|()| connection.execute_batch("COMMIT")).map_err(opened)
}

#[cfg(test)]
mod tests {
    use models::policy::Severity;

    use super::*;
    use crate::store::{AlertFilter, Page, find_alerts, incidents, testing};

    /// An alert as a server with schema 1 stored it.
    fn old_alert(connection: &Connection) {
        let body = postcard::to_stdvec(&testing::alert("pump")).unwrap();
        let insert = "INSERT INTO alerts(device, epoch, seq, received_ms, body) VALUES ('gw', 1, 1, 7, ?)";
        connection.execute(insert, [body]).unwrap();
    }

    #[test]
    fn every_older_database_is_brought_up_to_date_and_its_alerts_are_found() {
        for from in 1..VERSION {
            let connection = Connection::in_memory();
            for step in &STEPS[..from as usize] {
                connection.execute_batch(step).unwrap();
            }
            connection.as_sqlite().unwrap().pragma_update(None, "user_version", from).unwrap();
            if from < 4 {
                old_alert(&connection);
            }
            migrate(&connection, "test").unwrap();
            migrate(&connection, "test").unwrap();
            let filter = AlertFilter {
                words: Some("shadow".into()),
                severity: Some(Severity::Critical),
                technique: Some("T1003".into()),
                ..AlertFilter::default()
            };
            let found = find_alerts(&connection, &filter, Page::Newest, 10).unwrap();
            assert_eq!(found.len(), usize::from(from < 4), "from {from}");
            assert_eq!(incidents(&connection, None, 10, None).unwrap().len(), found.len());
            let merged_at = "SELECT v FROM alert_words_config WHERE k = 'deletemerge'";
            assert_eq!(connection.query_row(merged_at, [], |row| row.get::<i64>(0)).unwrap(), 80);
        }
    }

    #[test]
    fn a_database_of_a_newer_server_is_left_alone() {
        let connection = Connection::in_memory();
        connection.as_sqlite().unwrap().pragma_update(None, "user_version", VERSION + 1).unwrap();
        assert!(matches!(migrate(&connection, "test"), Err(StoreError::Newer { .. })));
    }
}
