//! Enrolment tokens, and what an enrolment with one does.

use super::sql::{Connection, OptionalExtension as _, params};

use super::audit::Change;
use super::{StoreError, certificates, int, uint};
use crate::counters::Counters;
use crate::names::{DeviceId, GroupId};
use crate::pki::Signed;

/// Tokens that are kept; when as many are, no more are made.
const TOKENS_MAX: i64 = 10_000;

/// A token is remembered this long after its end, so that a late use can be named as such.
const REMEMBERED_S: u64 = 7 * 86_400;

/// What a token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// The first eight bytes of the secret's hash, hexadecimal: names it without giving it away.
    pub id: String,
    /// The group that its devices join.
    pub group: GroupId,
    /// The only device that may use it; such a token may also replace a device of that name.
    pub device: Option<DeviceId>,
    /// How many devices may use it.
    pub uses: u32,
    /// How many did.
    pub used: u32,
    /// When it ends, seconds since 1970.
    pub expires_s: u64,
    /// Who made it.
    pub by: String,
}

/// A token to be made.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// SHA-256 of its secret.
    pub hash: [u8; 32],
    /// The group that its devices join.
    pub group: GroupId,
    /// The only device that may use it.
    pub device: Option<DeviceId>,
    /// How many devices may use it.
    pub uses: u32,
    /// When it ends, seconds since 1970.
    pub expires_s: u64,
    /// Who makes it.
    pub by: String,
}

/// What became of an enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrol {
    /// The device is known now, in this group.
    Done(GroupId),
    /// Never made, or for another device.
    NoSuchToken,
    /// As many devices used it as may.
    Used,
    /// Too late.
    Expired,
    /// There is a device of that name, and the token is not for replacing it.
    Taken,
}

impl Change for Enrol {
    fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }
}

/// Keeps a token; `false` when there are too many.
///
/// # Errors
/// When the database fails.
pub fn add_token(c: &Connection, token: &NewToken, now_s: u64) -> Result<bool, StoreError> {
    c.execute("DELETE FROM tokens WHERE expires_s < ?", [int(now_s.saturating_sub(REMEMBERED_S))])?;
    let there: i64 = c.query_row("SELECT count(*) FROM tokens", [], |row| row.get(0))?;
    if there >= TOKENS_MAX {
        return Ok(false);
    }
    c.execute(
        "INSERT INTO tokens(hash, grp, device, uses, expires_s, by) VALUES (?, ?, ?, ?, ?, ?)",
        params![
            token.hash,
            token.group.as_str(),
            token.device.as_ref().map(DeviceId::as_str),
            token.uses,
            int(token.expires_s),
            token.by
        ],
    )?;
    Ok(true)
}

/// All tokens, the one that ends first at the top.
///
/// # Errors
/// When the database fails.
pub fn tokens(c: &Connection) -> Result<Vec<TokenRow>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT lower(hex(substr(hash, 1, 8))), grp, device, uses, used, expires_s, by FROM tokens ORDER BY expires_s",
    )?;
    let mut rows = query.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let device: Option<String> = row.get(2)?;
        found.push(TokenRow {
            id: row.get(0)?,
            group: GroupId::parse(&row.get::<String>(1)?).unwrap_or_default(),
            device: device.and_then(|device| DeviceId::parse(&device).ok()),
            uses: row.get(3)?,
            used: row.get(4)?,
            expires_s: uint(row.get(5)?),
            by: row.get(6)?,
        });
    }
    Ok(found)
}

/// Forgets a token by its [`TokenRow::id`]; `false` when there is none.
///
/// # Errors
/// When the database fails.
pub fn drop_token(c: &Connection, id: &str) -> Result<bool, StoreError> {
    Ok(c.execute("DELETE FROM tokens WHERE lower(hex(substr(hash, 1, 8))) = ?", [id])? > 0)
}

/// Uses a token and remembers the device's key, both or neither. A device that asks again with the same key, because
/// the answer was lost, uses nothing.
///
/// # Errors
/// When the database fails.
pub fn enrol(
    c: &Connection,
    counters: &Counters,
    hash: [u8; 32],
    device: &DeviceId,
    signed: &Signed,
    now_ms: u64,
) -> Result<Enrol, StoreError> {
    let found = c
        .query_row(
            "SELECT grp, device, uses, used, expires_s FROM tokens WHERE hash = ?",
            [&hash[..]],
            |row| {
                let (group, owner): (String, Option<String>) = (row.get(0)?, row.get(1)?);
                Ok((group, owner, row.get::<u32>(2)?, row.get::<u32>(3)?, row.get::<i64>(4)?))
            },
        )
        .optional()?;
    let Some((group, owner, uses, used, expires_s)) = found else { return Ok(Enrol::NoSuchToken) };
    if owner.as_ref().is_some_and(|owner| owner != device.as_str()) {
        return Ok(Enrol::NoSuchToken);
    }
    if expires_s <= int(now_ms / 1000) {
        return Ok(Enrol::Expired);
    }
    let there = c
        .query_row("SELECT key, revoked_ms FROM devices WHERE id = ?", [device.as_str()], |row| {
            Ok((row.get::<Option<Vec<u8>>>(0)?, row.get::<i64>(1)?))
        })
        .optional()?;
    let again = there
        .as_ref()
        .is_some_and(|(key, revoked_ms)| key.as_deref() == Some(&signed.key_sha256[..]) && *revoked_ms == 0);
    if !again {
        if used >= uses {
            return Ok(Enrol::Used);
        }
        if there.is_some() && owner.is_none() {
            return Ok(Enrol::Taken);
        }
        c.execute("UPDATE tokens SET used = used + 1 WHERE hash = ?", params![hash])?;
    }
    c.execute(
        "INSERT INTO devices(id, certificate, key, grp, ends_s, enrolled_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT(id) DO UPDATE SET certificate = ?2, key = ?3, grp = ?4, ends_s = ?5, enrolled_ms = ?6, revoked_ms = 0",
        params![
            device.as_str(),
            signed.sha256,
            signed.key_sha256,
            group,
            int(signed.ends_unix_s),
            int(now_ms)
        ],
    )?;
    certificates::add(c, counters, device, signed, now_ms / 1000)?;
    // Whoever held the name before is not that device any more.
    certificates::withdraw(c, device, Some(signed.key_sha256), now_ms / 1000)?;
    let group = GroupId::parse(&group).unwrap_or_default();
    super::orders::configure(c, device, &group, !again, now_ms)?;
    Ok(Enrol::Done(group))
}
