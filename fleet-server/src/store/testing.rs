//! Databases for tests: what one must do, the other must do too.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use models::policy::Severity;
use models::program::ProgramId;
use models::wire::Alert;
use tests::postgres::Postgres;

use super::database::{Database, Purpose};
use super::schema;
use super::sql::{Connection, params};
use super::{Channels, Intake, Limits, Rules};

/// Runs a test on an empty database of each kind.
pub(super) fn on_both(test: impl Fn(&dyn Fn() -> Connection)) {
    test(&|| made(Connection::in_memory()));
    let server = server();
    test(&|| {
        let database = Database::postgres(&server.database().unwrap()).unwrap();
        made(database.open(Purpose::Write).unwrap())
    });
}

/// One for all tests that run at the time: to make one takes longer than most of them.
fn server() -> Arc<Postgres> {
    static SERVER: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
    let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(Postgres::start().unwrap_or_else(|error| panic!("{error}")));
        *shared = Arc::downgrade(&server);
        server
    })
}

/// An alert about `/usr/bin/<program>`.
pub(super) fn alert(program: &str) -> Alert {
    Alert {
        unix_ms: 5,
        program: ProgramId { unit: "u".into(), exe: format!("/usr/bin/{program}"), script: None },
        pid: 1,
        comm: program.into(),
        score: 93.0,
        severity: Severity::Critical,
        techniques: vec!["T1003".into()],
        summary: "opened /etc/shadow".into(),
        reasons: vec![],
        generation: 1,
        detectors: vec![],
        suppressed_before: 0,
        degraded: vec![],
    }
}

/// Enrols devices, in the group `default`.
pub(super) fn join(c: &Connection, names: &[&str]) {
    let insert = "INSERT INTO devices(id, certificate, enrolled_ms, grp) VALUES (?, ?, 1, 'default')";
    for (n, name) in names.iter().enumerate() {
        c.execute(insert, params![name, [n as u8]]).unwrap();
    }
}

/// Room for everything, no rules, no channels.
pub(super) fn intake() -> Intake {
    let limits = Limits { windows: 1000, programs: 100, alerts: 100_000, events: 1000, captures: 10 };
    Intake { limits, rules: Arc::new(Rules::default()), channels: Arc::new(Channels::default()) }
}

fn made(connection: Connection) -> Connection {
    schema::migrate(&connection, "test").unwrap();
    connection
}
