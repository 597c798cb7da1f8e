//! People and programs that use the API: their roles and the hashes of their tokens.

use super::sql::{Connection, OptionalExtension as _, params};

use super::audit::Change;
use super::{StoreError, int, uint};
use crate::access::{Principal, Role};
use crate::names::UserName;

/// Users that are kept; one more is refused.
const USERS_MAX: i64 = 1000;

/// Tokens of one user; one more is refused.
const TOKENS_MAX: i64 = 32;

/// Sessions of one user; one more ends the oldest.
const SESSIONS_MAX: i64 = 8;

/// The label of a session's token: no token that is made has it.
const SESSION: &str = "\u{1}session";

/// A token's last use is written down at most this often.
const USED_EVERY_MS: u64 = 60_000;

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// The name.
    pub name: String,
    /// What the user may do.
    pub role: Role,
    /// When the user was made.
    pub created_ms: u64,
    /// The tokens.
    pub tokens: Vec<ApiTokenRow>,
}

/// One token of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiTokenRow {
    /// The first eight bytes of its hash, hexadecimal.
    pub id: String,
    /// What it is for.
    pub label: String,
    /// When it was made.
    pub created_ms: u64,
    /// When it ends; `None` for never.
    pub expires_s: Option<u64>,
    /// When it was used last, within a minute; 0 for never.
    pub used_ms: u64,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is done.
    Done,
    /// It was made, because it was not there.
    Made,
    /// There is no such user or token.
    Missing,
    /// There is one already.
    There,
    /// There are as many as may be.
    Full,
}

impl Change for Changed {
    fn is_done(&self) -> bool {
        matches!(self, Self::Done | Self::Made)
    }
}

/// Whose token this is; `None` when it is nobody's or has ended.
///
/// # Errors
/// When the database fails.
pub fn principal(
    c: &Connection,
    hash: [u8; 32],
    now_s: u64,
) -> Result<Option<(Principal, bool)>, StoreError> {
    let found = c
        .prepare_cached(
            "SELECT u.name, u.role, t.expires_s, t.used_ms FROM api_tokens t JOIN users u ON u.name = t.owner WHERE t.hash = ?",
        )?
        .query_row([&hash[..]], |row| {
            let (name, role): (String, String) = (row.get(0)?, row.get(1)?);
            Ok((name, role, row.get::<Option<i64>>(2)?, row.get::<i64>(3)?))
        })
        .optional()?;
    let Some((name, role, expires_s, used_ms)) = found else { return Ok(None) };
    let Some(role) = Role::parse(&role) else { return Ok(None) };
    if expires_s.is_some_and(|end| end <= int(now_s)) {
        return Ok(None);
    }
    let stale = (now_s * 1000).saturating_sub(uint(used_ms)) > USED_EVERY_MS;
    Ok(Some((Principal { name, role }, stale)))
}

/// Notes that a token was used.
///
/// # Errors
/// When the database fails.
pub fn token_used(c: &Connection, hash: [u8; 32], now_ms: u64) -> Result<(), StoreError> {
    c.prepare_cached("UPDATE api_tokens SET used_ms = ? WHERE hash = ?")?
        .execute(params![int(now_ms), hash])?;
    Ok(())
}

/// Makes a user.
///
/// # Errors
/// When the database fails.
pub fn add_user(c: &Connection, name: &UserName, role: Role, now_ms: u64) -> Result<Changed, StoreError> {
    if c.query_row("SELECT count(*) FROM users", [], |row| row.get::<i64>(0))? >= USERS_MAX {
        return Ok(Changed::Full);
    }
    let added = c.execute(
        "INSERT INTO users(name, role, created_ms) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        params![name.as_str(), role.as_str(), int(now_ms)],
    )?;
    Ok(if added > 0 { Changed::Made } else { Changed::There })
}

/// Gives a user another role.
///
/// # Errors
/// When the database fails.
pub fn set_role(c: &Connection, name: &UserName, role: Role) -> Result<Changed, StoreError> {
    let changed =
        c.execute("UPDATE users SET role = ? WHERE name = ?", params![role.as_str(), name.as_str()])?;
    Ok(if changed > 0 { Changed::Done } else { Changed::Missing })
}

/// Removes a user and every token of hers.
///
/// # Errors
/// When the database fails.
pub fn remove_user(c: &Connection, name: &UserName) -> Result<Changed, StoreError> {
    c.execute("DELETE FROM api_tokens WHERE owner = ?", [name.as_str()])?;
    let removed = c.execute("DELETE FROM users WHERE name = ?", [name.as_str()])?;
    Ok(if removed > 0 { Changed::Done } else { Changed::Missing })
}

/// Keeps a token of a user.
///
/// # Errors
/// When the database fails.
pub fn add_api_token(
    c: &Connection,
    user: &UserName,
    hash: [u8; 32],
    label: &str,
    expires_s: Option<u64>,
    now_ms: u64,
) -> Result<Changed, StoreError> {
    let count = "SELECT count(*) FROM api_tokens WHERE owner = ?";
    let there = c.query_row("SELECT 1 FROM users WHERE name = ?", [user.as_str()], |_| Ok(())).optional()?;
    if there.is_none() {
        return Ok(Changed::Missing);
    }
    c.execute("DELETE FROM api_tokens WHERE expires_s < ?", [int(now_ms / 1000)])?;
    if c.query_row(count, [user.as_str()], |row| row.get::<i64>(0))? >= TOKENS_MAX {
        return Ok(Changed::Full);
    }
    c.execute(
        "INSERT INTO api_tokens(hash, owner, label, created_ms, expires_s) VALUES (?, ?, ?, ?, ?)",
        params![hash, user.as_str(), label, int(now_ms), expires_s.map(int)],
    )?;
    Ok(Changed::Done)
}

/// Gives a user who signed in elsewhere this role and one more session: made when there is none, of too many sessions without the
/// oldest.
///
/// # Errors
/// When the database fails.
pub fn sign_in(
    c: &Connection,
    user: &UserName,
    role: Role,
    hash: [u8; 32],
    expires_s: u64,
    now_ms: u64,
) -> Result<Changed, StoreError> {
    if set_role(c, user, role)? == Changed::Missing && add_user(c, user, role, now_ms)? == Changed::Full {
        return Ok(Changed::Full);
    }
    c.execute(
        "DELETE FROM api_tokens WHERE owner = ?1 AND label = ?2 AND hash NOT IN
         (SELECT hash FROM api_tokens WHERE owner = ?1 AND label = ?2 ORDER BY created_ms DESC, hash LIMIT ?3)",
        params![user.as_str(), SESSION, SESSIONS_MAX - 1],
    )?;
    add_api_token(c, user, hash, SESSION, Some(expires_s), now_ms)
}

/// Ends a session, and no token that somebody made.
///
/// # Errors
/// When the database fails.
pub fn end_session(c: &Connection, hash: [u8; 32]) -> Result<(), StoreError> {
    c.execute("DELETE FROM api_tokens WHERE hash = ? AND label = ?", params![hash, SESSION])?;
    Ok(())
}

/// Removes a token by its [`ApiTokenRow::id`].
///
/// # Errors
/// When the database fails.
pub fn remove_api_token(c: &Connection, user: &UserName, id: &str) -> Result<Changed, StoreError> {
    let removed = c.execute(
        "DELETE FROM api_tokens WHERE owner = ? AND lower(hex(substr(hash, 1, 8))) = ?",
        params![user.as_str(), id],
    )?;
    Ok(if removed > 0 { Changed::Done } else { Changed::Missing })
}

/// All users with their tokens, by name.
///
/// # Errors
/// When the database fails.
pub fn users(c: &Connection) -> Result<Vec<UserRow>, StoreError> {
    let mut query = c.prepare_cached("SELECT name, role, created_ms FROM users ORDER BY name")?;
    let rows = query
        .query_map([], |row| Ok((row.get::<String>(0)?, row.get::<String>(1)?, uint(row.get::<i64>(2)?))))?;
    let mut users = Vec::new();
    for row in rows {
        let (name, role, created_ms) = row?;
        let Some(role) = Role::parse(&role) else { continue };
        let tokens = tokens_of(c, &name)?;
        users.push(UserRow { name, role, created_ms, tokens });
    }
    Ok(users)
}

fn tokens_of(c: &Connection, user: &str) -> Result<Vec<ApiTokenRow>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT lower(hex(substr(hash, 1, 8))), label, created_ms, expires_s, used_ms FROM api_tokens
         WHERE owner = ? ORDER BY created_ms",
    )?;
    let rows = query.query_map([user], |row| {
        Ok(ApiTokenRow {
            id: row.get(0)?,
            label: row.get::<String>(1)?.replace(SESSION, "signed in"),
            created_ms: uint(row.get(2)?),
            expires_s: row.get::<Option<i64>>(3)?.map(uint),
            used_ms: uint(row.get(4)?),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::on_both;
    use super::*;

    #[test]
    fn a_session_ends_and_of_too_many_the_oldest_goes_while_what_was_made_stays() {
        on_both(|open: &dyn Fn() -> Connection| {
            let c = open();
            let anna = UserName::parse("anna").unwrap();
            let sign_in = |n: u8, role| sign_in(&c, &anna, role, [n; 32], 1000, u64::from(n)).unwrap();
            let role_of = |n: u8| principal(&c, [n; 32], 500).unwrap().map(|(principal, _)| principal.role);
            assert_eq!(sign_in(1, Role::Viewer), Changed::Done);
            assert_eq!(add_api_token(&c, &anna, [100; 32], "made", None, 50).unwrap(), Changed::Done);
            for n in 2..=9 {
                sign_in(n, Role::Admin);
            }
            assert_eq!((role_of(1), role_of(2), role_of(9)), (None, Some(Role::Admin), Some(Role::Admin)));
            end_session(&c, [9; 32]).unwrap();
            end_session(&c, [100; 32]).unwrap();
            assert_eq!((role_of(9), role_of(100)), (None, Some(Role::Admin)), "what was made is no session");
            let labels: Vec<_> =
                users(&c).unwrap()[0].tokens.iter().map(|token| token.label.clone()).collect();
            assert_eq!(labels.iter().filter(|label| *label == "signed in").count(), 7, "{labels:?}");
            assert!(principal(&c, [8; 32], 1001).unwrap().is_none(), "its time is over");
        });
    }
}
