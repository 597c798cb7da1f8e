//! A session with a PostgreSQL server, in the forms that SQLite's connection has.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;

use ::postgres::types::{ToSql, Type};
use ::postgres::{Client, Config, Row, Statement};
use rustls::ClientConfig;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Cell, Error, Result};

/// Statements kept prepared; the next one throws all away.
const STATEMENTS_MAX: usize = 512;

/// A session; everything in it runs one after the other.
pub(crate) struct Session {
    client: RefCell<Client>,
    statements: RefCell<HashMap<String, Statement>>,
}

impl Session {
    /// Connects. Not from a task of tokio: the client drives a runtime of its own.
    pub(crate) fn connect(config: &Config, tls: ClientConfig) -> Result<Self> {
        let client = config.connect(MakeRustlsConnect::new(tls))?;
        Ok(Self { client: RefCell::new(client), statements: RefCell::default() })
    }

    /// Whether the server is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.borrow().is_closed()
    }

    pub(super) fn prepare(&self, sql: &str) -> Result<Statement> {
        if let Some(statement) = self.statements.borrow().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.borrow_mut().prepare(&numbered(sql))?;
        let mut statements = self.statements.borrow_mut();
        if statements.len() >= STATEMENTS_MAX {
            statements.clear();
        }
        statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    pub(super) fn execute(&self, statement: &Statement, cells: &[Cell<'_>]) -> Result<usize> {
        let changed = self.client.borrow_mut().execute(statement, &values(cells))?;
        Ok(usize::try_from(changed).unwrap_or(usize::MAX))
    }

    pub(super) fn query(&self, statement: &Statement, cells: &[Cell<'_>]) -> Result<Vec<Row>> {
        Ok(self.client.borrow_mut().query(statement, &values(cells))?)
    }

    pub(super) fn batch(&self, sql: &str) -> Result<()> {
        Ok(self.client.borrow_mut().batch_execute(sql)?)
    }
}

fn values<'c>(cells: &'c [Cell<'_>]) -> Vec<&'c (dyn ToSql + Sync)> {
    cells.iter().map(|cell| cell as &(dyn ToSql + Sync)).collect()
}

/// What a column holds.
pub(super) fn cell(row: &Row, at: usize) -> Result<Cell<'_>> {
    let of = row.columns().get(at).map(|column| column.type_().clone()).ok_or(Error::Column(at))?;
    let cell = match of {
        Type::INT8 => row.try_get::<_, Option<i64>>(at)?.map(Cell::Int),
        Type::INT4 => row.try_get::<_, Option<i32>>(at)?.map(|value| Cell::Int(i64::from(value))),
        Type::BOOL => row.try_get::<_, Option<bool>>(at)?.map(|value| Cell::Int(i64::from(value))),
        Type::FLOAT8 => row.try_get::<_, Option<f64>>(at)?.map(Cell::Real),
        Type::BYTEA => row.try_get::<_, Option<&[u8]>>(at)?.map(|bytes| Cell::Blob(Cow::Borrowed(bytes))),
        Type::TEXT | Type::VARCHAR => {
            row.try_get::<_, Option<&str>>(at)?.map(|text| Cell::Text(Cow::Borrowed(text)))
        }
        _ => return Err(Error::Column(at)),
    };
    Ok(cell.unwrap_or(Cell::Null))
}

/// SQLite's `?` and `?1` as PostgreSQL's `$1`. Nothing of ours has a question mark in a text.
fn numbered(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len() + 16);
    let mut rest = sql;
    let mut next = 0;
    while let Some((before, after)) = rest.split_once('?') {
        out.push_str(before);
        out.push('$');
        if !after.starts_with(|c: char| c.is_ascii_digit()) {
            next += 1;
            out.push_str(&next.to_string());
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_numbered_in_their_order_or_as_they_say() {
        assert_eq!(numbered("a = ? AND b IN (?, ?) LIMIT 5"), "a = $1 AND b IN ($2, $3) LIMIT 5");
        assert_eq!(numbered("a = ?2 OR b = ?1"), "a = $2 OR b = $1");
    }
}
