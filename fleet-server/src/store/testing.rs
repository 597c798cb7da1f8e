//! Databases for tests: what one must do, the other must do too.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tests::postgres::Postgres;

use super::database::{Database, Purpose};
use super::schema;
use super::sql::Connection;

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

fn made(connection: Connection) -> Connection {
    schema::migrate(&connection, "test").unwrap();
    connection
}
