//! Databases for tests: what one must do, the other must do too.

use tests::postgres::Postgres;

use super::database::{Database, Purpose};
use super::schema;
use super::sql::Connection;

/// Runs a test on an empty database of each kind.
pub(super) fn on_both(test: impl Fn(&dyn Fn() -> Connection)) {
    test(&|| made(Connection::in_memory()));
    let server = Postgres::start().unwrap_or_else(|error| panic!("{error}"));
    test(&|| {
        let database = Database::postgres(&server.database().unwrap()).unwrap();
        made(database.open(Purpose::Write).unwrap())
    });
}

fn made(connection: Connection) -> Connection {
    schema::migrate(&connection, "test").unwrap();
    connection
}
