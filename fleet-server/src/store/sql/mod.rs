//! One way to ask two databases: SQLite, which is in the server, and PostgreSQL, which several servers share.
//!
//! Statements are written once, in what both understand: `?` or `?1` for a value, `ON CONFLICT`, `RETURNING`, `coalesce`. What
//! PostgreSQL lacks of SQLite's functions its schema defines. Where that is not enough, [`Connection::dialect`] says which it is.

mod cell;
mod postgres;

use std::fmt;
use std::path::Path;

use rusqlite::ErrorCode;

pub(crate) use cell::{Cell, FromCell, ToCell};
pub(crate) use postgres::Session;

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One row was wanted and there is none.
    #[error("there is no such row")]
    NoRows,
    /// SQLite.
    #[error(transparent)]
    Sqlite(rusqlite::Error),
    /// PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] ::postgres::Error),
    /// A column holds something else than what is wanted.
    #[error("column {0} holds something else")]
    Column(usize),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::QueryReturnedNoRows => Self::NoRows,
            error => Self::Sqlite(error),
        }
    }
}

impl Error {
    /// Whether it was given up because it took too long.
    pub(crate) fn is_interrupted(&self) -> bool {
        match self {
            Self::Sqlite(error) => error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted),
            Self::Postgres(error) => error.code() == Some(&::postgres::error::SqlState::QUERY_CANCELED),
            Self::NoRows | Self::Column(_) => false,
        }
    }
}

/// What a statement gives.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

/// An open database.
pub struct Connection(Kind);

enum Kind {
    Sqlite(rusqlite::Connection),
    Postgres(Session),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.dialect()).finish()
    }
}

impl Connection {
    /// A file of SQLite's.
    pub(crate) fn sqlite(path: &Path) -> Result<Self> {
        Ok(Self(Kind::Sqlite(rusqlite::Connection::open(path)?)))
    }

    /// A session with a PostgreSQL server.
    pub(crate) fn postgres(session: Session) -> Self {
        Self(Kind::Postgres(session))
    }

    /// A database of SQLite's that is gone afterwards.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self(Kind::Sqlite(rusqlite::Connection::open_in_memory().expect("there is memory")))
    }

    /// What only SQLite knows, if it is that.
    pub(crate) fn as_sqlite(&self) -> Option<&rusqlite::Connection> {
        match &self.0 {
            Kind::Sqlite(connection) => Some(connection),
            Kind::Postgres(_) => None,
        }
    }

    /// What only PostgreSQL knows, if it is that.
    pub(crate) fn as_postgres(&self) -> Option<&Session> {
        match &self.0 {
            Kind::Sqlite(_) => None,
            Kind::Postgres(session) => Some(session),
        }
    }

    /// Which it is.
    pub(crate) fn dialect(&self) -> Dialect {
        match &self.0 {
            Kind::Sqlite(_) => Dialect::Sqlite,
            Kind::Postgres(_) => Dialect::Postgres,
        }
    }

    /// A statement, prepared or found as it was prepared before.
    pub(crate) fn prepare_cached(&self, sql: &str) -> Result<Statement<'_>> {
        Ok(match &self.0 {
            Kind::Sqlite(connection) => Statement::Sqlite(connection.prepare_cached(sql)?),
            Kind::Postgres(session) => Statement::Postgres(session, session.prepare(sql)?),
        })
    }

    /// Runs one statement; how many rows it changed.
    pub(crate) fn execute(&self, sql: &str, params: impl Params) -> Result<usize> {
        self.prepare_cached(sql)?.execute(params)
    }

    /// The first row of one statement.
    pub(crate) fn query_row<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<T> {
        self.prepare_cached(sql)?.query_row(params, read)
    }

    /// Begins a transaction that writes; only one of all servers and commands has one at a time.
    pub(crate) fn begin(&self) -> Result<()> {
        self.execute_batch(match self.dialect() {
            Dialect::Sqlite => "BEGIN IMMEDIATE",
            Dialect::Postgres => "BEGIN; SELECT pg_advisory_xact_lock(4845873002)",
        })
    }

    /// Ends it with what was written.
    pub(crate) fn commit(&self) -> Result<()> {
        self.execute_batch("COMMIT")
    }

    /// Ends it without.
    pub(crate) fn roll_back(&self) -> Result<()> {
        self.execute_batch("ROLLBACK")
    }

    /// Does a job in a transaction that writes: all of it or nothing.
    ///
    /// # Errors
    /// That of the job, or when the transaction cannot be begun or ended.
    pub fn transaction<T, E: From<Error>>(
        &self,
        job: impl FnOnce(&Self) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        self.begin()?;
        let done = job(self);
        match &done {
            Ok(_) => self.commit()?,
            Err(_) => self.roll_back()?,
        }
        done
    }

    /// One statement without values, again and again.
    pub(crate) fn repeat(&self, sql: &str) -> Result<()> {
        match &self.0 {
            Kind::Sqlite(connection) => {
                connection.prepare_cached(sql)?.execute([]).map(drop).map_err(Into::into)
            }
            Kind::Postgres(session) => session.batch(sql),
        }
    }

    /// Several statements without values.
    pub(crate) fn execute_batch(&self, sql: &str) -> Result<()> {
        match &self.0 {
            Kind::Sqlite(connection) => Ok(connection.execute_batch(sql)?),
            Kind::Postgres(session) => session.batch(sql),
        }
    }
}

/// A prepared statement.
pub(crate) enum Statement<'c> {
    Sqlite(rusqlite::CachedStatement<'c>),
    Postgres(&'c Session, ::postgres::Statement),
}

impl Statement<'_> {
    /// The names of its columns.
    pub(crate) fn columns(&self) -> Vec<String> {
        match self {
            Self::Sqlite(statement) => statement.column_names().into_iter().map(str::to_owned).collect(),
            Self::Postgres(_, statement) => {
                statement.columns().iter().map(|column| column.name().to_owned()).collect()
            }
        }
    }

    /// How many rows it changed.
    pub(crate) fn execute(&mut self, params: impl Params) -> Result<usize> {
        let cells = params.cells();
        Ok(match self {
            Self::Sqlite(statement) => statement.execute(rusqlite::params_from_iter(cells))?,
            Self::Postgres(session, statement) => session.execute(statement, &cells)?,
        })
    }

    /// All rows.
    pub(crate) fn query(&mut self, params: impl Params) -> Result<Rows<'_>> {
        let cells = params.cells();
        Ok(match self {
            Self::Sqlite(statement) => Rows::Sqlite(statement.query(rusqlite::params_from_iter(cells))?),
            Self::Postgres(session, statement) => Rows::Postgres(session.query(statement, &cells)?, 0),
        })
    }

    /// The first row.
    pub(crate) fn query_row<T>(
        &mut self,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut rows = self.query(params)?;
        let row = rows.next()?.ok_or(Error::NoRows)?;
        read(&row)
    }

    /// All rows, read.
    pub(crate) fn query_map<T>(
        &mut self,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<T>,
    ) -> Result<std::vec::IntoIter<Result<T>>> {
        let mut rows = self.query(params)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(read(&row));
        }
        Ok(all.into_iter())
    }

    /// Whether there is a row.
    pub(crate) fn exists(&mut self, params: impl Params) -> Result<bool> {
        Ok(self.query(params)?.next()?.is_some())
    }
}

/// The rows of a statement.
pub(crate) enum Rows<'s> {
    Sqlite(rusqlite::Rows<'s>),
    Postgres(Vec<::postgres::Row>, usize),
}

impl Rows<'_> {
    /// The next one.
    pub(crate) fn next(&mut self) -> Result<Option<Row<'_>>> {
        Ok(match self {
            Self::Sqlite(rows) => rows.next()?.map(Row::Sqlite),
            Self::Postgres(rows, at) => {
                *at += 1;
                rows.get(*at - 1).map(Row::Postgres)
            }
        })
    }
}

/// One row.
#[derive(Clone, Copy)]
pub(crate) enum Row<'r> {
    Sqlite(&'r rusqlite::Row<'r>),
    Postgres(&'r ::postgres::Row),
}

impl Row<'_> {
    /// What a column holds.
    pub(crate) fn get<T: FromCell>(&self, at: usize) -> Result<T> {
        let cell = match self {
            Self::Sqlite(row) => Cell::from(row.get_ref(at)?),
            Self::Postgres(row) => postgres::cell(row, at)?,
        };
        T::from_cell(cell).ok_or(Error::Column(at))
    }
}

/// Values for a statement's places.
pub(crate) trait Params {
    /// In their order.
    fn cells(&self) -> Vec<Cell<'_>>;
}

impl Params for &[&dyn ToCell] {
    fn cells(&self) -> Vec<Cell<'_>> {
        self.iter().map(|value| value.to_cell()).collect()
    }
}

impl Params for Vec<Cell<'static>> {
    fn cells(&self) -> Vec<Cell<'_>> {
        self.iter().map(Cell::borrowed).collect()
    }
}

impl Params for [&dyn ToCell; 0] {
    fn cells(&self) -> Vec<Cell<'_>> {
        Vec::new()
    }
}

macro_rules! arrays {
    ($($n:literal)+) => {$(
        impl<T: ToCell> Params for [T; $n] {
            fn cells(&self) -> Vec<Cell<'_>> {
                self.iter().map(ToCell::to_cell).collect()
            }
        }
    )+};
}

arrays!(1 2 3 4 5 6 7 8);

/// Values of different types for a statement's places.
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$(&$value as &dyn $crate::store::sql::ToCell),*] as &[&dyn $crate::store::sql::ToCell]
    };
}
pub(crate) use params;

/// A row that need not be there.
pub(crate) trait OptionalExtension<T> {
    /// `None` when there is none.
    fn optional(self) -> Result<Option<T>>;
}

impl<T> OptionalExtension<T> for Result<T> {
    fn optional(self) -> Result<Option<T>> {
        match self {
            Ok(row) => Ok(Some(row)),
            Err(Error::NoRows) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
