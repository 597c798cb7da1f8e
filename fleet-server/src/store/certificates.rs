//! Certificates of devices that have not ended, so that those which are worth nothing any more can be named to brokers of others.

use super::sql::{Connection, params};

use super::{StoreError, int, uint};
use crate::counters::{Counter, Counters};
use crate::names::DeviceId;
use crate::pki::{SERIAL_LEN, Signed};

/// Of one device; one more forgets the oldest, which is then never named.
const OF_DEVICE_MAX: i64 = 64;

/// A certificate that is worth nothing although it has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withdrawn {
    /// Its serial number.
    pub serial: [u8; SERIAL_LEN],
    /// Since when, seconds since 1970.
    pub since_s: u64,
}

/// Remembers one that was signed, and forgets those that have ended.
pub(super) fn add(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    signed: &Signed,
    now_s: u64,
) -> Result<(), StoreError> {
    c.prepare_cached("DELETE FROM certificates WHERE ends_s < ?")?.execute([int(now_s)])?;
    c.prepare_cached("INSERT INTO certificates(serial, device, key, ends_s) VALUES (?, ?, ?, ?)")?
        .execute(params![signed.serial, device.as_str(), signed.key_sha256, int(signed.ends_unix_s)])?;
    let oldest = "DELETE FROM certificates WHERE serial IN
        (SELECT serial FROM certificates WHERE device = ?1 ORDER BY ends_s DESC, serial LIMIT 1000 OFFSET ?2)";
    let forgotten = c.prepare_cached(oldest)?.execute(params![device.as_str(), OF_DEVICE_MAX])?;
    counters.add(Counter::CertificatesForgotten, forgotten as u64);
    Ok(())
}

/// All of a device but those with this key are worth nothing from now on.
pub(super) fn withdraw(
    c: &Connection,
    device: &DeviceId,
    but: Option<[u8; 32]>,
    now_s: u64,
) -> Result<(), StoreError> {
    let withdraw =
        "UPDATE certificates SET withdrawn_s = ?1 WHERE device = ?2 AND withdrawn_s = 0 AND key <> ?3";
    // No hash is empty.
    let but = but.map_or_else(Vec::new, Vec::from);
    c.prepare_cached(withdraw)?.execute(params![int(now_s), device.as_str(), but])?;
    Ok(())
}

/// Those that are worth nothing and have not ended.
///
/// # Errors
/// When the database fails.
pub fn withdrawn(c: &Connection, now_s: u64) -> Result<Vec<Withdrawn>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT serial, withdrawn_s FROM certificates WHERE withdrawn_s > 0 AND ends_s >= ? ORDER BY serial",
    )?;
    let rows = query.query_map([int(now_s)], |row| {
        let serial: Vec<u8> = row.get(0)?;
        let since_s = row.get(1).map(uint)?;
        Ok(serial.try_into().ok().map(|serial| Withdrawn { serial, since_s }))
    })?;
    Ok(rows.filter_map(Result::transpose).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::on_both;
    use super::*;

    fn signed(serial: u8, key: u8, ends_unix_s: u64) -> Signed {
        let pem = String::new();
        Signed { pem, serial: [serial; SERIAL_LEN], sha256: [0; 32], key_sha256: [key; 32], ends_unix_s }
    }

    fn check(c: &Connection, now_s: u64, wanted: &[(u8, u64)]) {
        let found: Vec<_> =
            withdrawn(c, now_s).unwrap().iter().map(|one| (one.serial[0], one.since_s)).collect();
        assert_eq!(found, wanted, "at {now_s}");
    }

    #[test]
    fn what_is_worth_nothing_is_named_until_it_ends() {
        on_both(|open: &dyn Fn() -> Connection| {
            let (c, counters) = (open(), Counters::default());
            let [a, b] = ["a", "b"].map(|name| DeviceId::parse(name).unwrap());
            add(&c, &counters, &a, &signed(1, 1, 100), 0).unwrap();
            add(&c, &counters, &a, &signed(2, 1, 200), 0).unwrap();
            add(&c, &counters, &a, &signed(3, 2, 300), 0).unwrap();
            add(&c, &counters, &b, &signed(4, 3, 300), 0).unwrap();
            check(&c, 10, &[]);
            withdraw(&c, &a, Some([2; 32]), 11).unwrap();
            check(&c, 20, &[(1, 11), (2, 11)]);
            withdraw(&c, &a, None, 22).unwrap();
            check(&c, 30, &[(1, 11), (2, 11), (3, 22)]);
            check(&c, 150, &[(2, 11), (3, 22)]);
            add(&c, &counters, &b, &signed(5, 3, 900), 250).unwrap();
            check(&c, 0, &[(3, 22)]);
        });
    }

    #[test]
    fn one_device_does_not_fill_the_table() {
        on_both(|open: &dyn Fn() -> Connection| {
            let (c, counters) = (open(), Counters::default());
            let a = DeviceId::parse("a").unwrap();
            for n in 0..=OF_DEVICE_MAX as u8 {
                add(&c, &counters, &a, &signed(n, 1, 1000 + u64::from(n)), 0).unwrap();
            }
            withdraw(&c, &a, None, 5).unwrap();
            let left = withdrawn(&c, 10).unwrap();
            assert_eq!((left.len() as i64, left[0].serial[0]), (OF_DEVICE_MAX, 1), "the oldest is forgotten");
            assert_eq!(counters.get(Counter::CertificatesForgotten), 1);
        });
    }
}
