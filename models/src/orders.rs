//! Orders that only the fleet can give: signed for one device, and each carried out once at most.
//!
//! Whoever runs the broker sees what passes and can hold it back. The signature keeps him from making an order, the
//! device's name in it from giving one to another device, and the number, of which the device remembers those that it
//! carried out, from giving one twice.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::bundle::{Keyring, SigningKey};
use crate::wire::{
    self, CAPTURE_MAX, CAPTURE_MIN, CONFIGURATION_MAX, Errand, LOG_LEVEL_MAX_S, Order, QUARANTINE_MAX_S,
    RECORD_MAX_S, SignedOrder, WireError,
};

const CONTEXT: &[u8] = b"behaveguard-order-v1\0";

/// Why an order is not carried out.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum OrderError {
    /// No key that the device trusts made the signature, or it is for another device.
    #[error("the order is not signed for this device by a key that it trusts")]
    Signature,
    /// The bytes.
    #[error("reading the order")]
    Malformed(#[from] WireError),
    /// It was carried out before, or may have been.
    #[error("order {0} was carried out before")]
    Repeated(u64),
    /// It asks for more than may be asked for.
    #[error("{0}")]
    OverLimit(&'static str),
}

/// Keys that a fleet's configuration must not have: they name files of the device, start programs, are done to them, say
/// what a fleet may do, or keep secrets from it.
pub const KEYS_OF_DEVICES: [&str; 7] =
    ["state", "outbox_engine", "redact", "quarantine", "update", "sink", "contain"];

/// Orders that a device remembers.
const DONE_MAX: usize = 64;

/// Numbers of orders that were carried out: the latest, below which everything counts as carried out, as in the
/// anti-replay window of RFC 6347, section 4.1.2.6.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done(BTreeSet<u64>);

impl Done {
    /// Whether the order was carried out, or is too old to know.
    #[must_use]
    pub fn contains(&self, id: u64) -> bool {
        let is_older = self.0.len() >= DONE_MAX && self.0.first().is_some_and(|first| id < *first);
        is_older || self.0.contains(&id)
    }

    /// Remembers one; the lowest makes room.
    pub fn add(&mut self, id: u64) {
        self.0.insert(id);
        if self.0.len() > DONE_MAX {
            self.0.pop_first();
        }
    }
}

/// What the signature is over: `"behaveguard-order-v1\0" | device | 0 | order`. A device's name holds no zero.
#[must_use]
pub fn signed_text(device: &str, order: &[u8]) -> Vec<u8> {
    [CONTEXT, device.as_bytes(), &[0], order].concat()
}

/// Signs an order for one device.
///
/// # Errors
/// When it asks for more than may be asked for, or is too long to be sent.
pub fn sign(device: &str, order: &Order, key: &SigningKey) -> Result<SignedOrder, OrderError> {
    check(&order.errand)?;
    let order = wire::encode(order)?;
    let signature = key.sign(&signed_text(device, &order));
    Ok(SignedOrder { order, signature })
}

/// Checks an order on its device: signature, form, that it was not carried out before, and limits.
///
/// # Errors
/// One [`OrderError`] per reason not to carry it out.
pub fn open(device: &str, signed: &SignedOrder, keys: &Keyring, done: &Done) -> Result<Order, OrderError> {
    let message = signed_text(device, &signed.order);
    if !keys.0.iter().any(|key| key.verifies(&message, &signed.signature)) {
        return Err(OrderError::Signature);
    }
    let order: Order = wire::decode(&signed.order)?;
    if done.contains(order.id) {
        return Err(OrderError::Repeated(order.id));
    }
    check(&order.errand)?;
    Ok(order)
}

/// Whether no more is asked for than may be.
///
/// # Errors
/// [`OrderError::OverLimit`].
pub fn check(errand: &Errand) -> Result<(), OrderError> {
    match errand {
        Errand::LogLevel { for_s, .. } if !(1..=LOG_LEVEL_MAX_S).contains(for_s) => {
            Err(OrderError::OverLimit("a log level holds for 1 to 86400 seconds"))
        }
        Errand::Configure { text, .. } if text.len() > CONFIGURATION_MAX => {
            Err(OrderError::OverLimit("a configuration has at most 16384 bytes"))
        }
        Errand::Quarantine { for_s } if !(1..=QUARANTINE_MAX_S).contains(for_s) => {
            Err(OrderError::OverLimit("a quarantine holds for 1 to 2592000 seconds"))
        }
        Errand::Record { for_s, .. } if !(1..=RECORD_MAX_S).contains(for_s) => {
            Err(OrderError::OverLimit("a recording takes 1 to 3600 seconds"))
        }
        Errand::Record { bytes_max, .. } if !(CAPTURE_MIN..=CAPTURE_MAX).contains(bytes_max) => {
            Err(OrderError::OverLimit("a capture has 65536 to 8388608 bytes"))
        }
        Errand::Doctor
        | Errand::LogLevel { .. }
        | Errand::Relearn { .. }
        | Errand::Configure { .. }
        | Errand::Quarantine { .. }
        | Errand::EndQuarantine
        | Errand::Record { .. }
        | Errand::Processes
        | Errand::Process { .. }
        | Errand::Update(_)
        | Errand::EndUpdate => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::LogLevel;

    fn key() -> (SigningKey, Keyring) {
        let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
        let keys = Keyring([key.public()].into_iter().collect());
        (key, keys)
    }

    #[test]
    fn an_order_is_good_on_its_device_once_and_nowhere_else() {
        let (key, keys) = key();
        let order = Order { id: 7, errand: Errand::Doctor };
        let signed = sign("gw-1", &order, &key).unwrap();
        let mut done = Done::default();
        assert_eq!(open("gw-1", &signed, &keys, &done), Ok(order));
        done.add(7);
        assert_eq!(open("gw-1", &signed, &keys, &done), Err(OrderError::Repeated(7)));
        assert_eq!(open("gw-2", &signed, &keys, &Done::default()), Err(OrderError::Signature));
        assert_eq!(open("gw-1", &signed, &self::key().1, &Done::default()), Err(OrderError::Signature));
        assert_eq!(open("gw-1", &signed, &Keyring::default(), &Done::default()), Err(OrderError::Signature));
        for at in 0..signed.order.len() {
            let mut changed = signed.clone();
            changed.order[at] ^= 1;
            assert_eq!(
                open("gw-1", &changed, &keys, &Done::default()),
                Err(OrderError::Signature),
                "byte {at}"
            );
        }
    }

    #[test]
    fn what_asks_for_too_much_is_neither_signed_nor_carried_out() {
        let (key, keys) = key();
        let bad = [
            Errand::LogLevel { level: LogLevel::Trace, for_s: 0 },
            Errand::LogLevel { level: LogLevel::Trace, for_s: LOG_LEVEL_MAX_S + 1 },
            Errand::Configure { version: 1, text: "#".repeat(CONFIGURATION_MAX + 1) },
            Errand::Quarantine { for_s: 0 },
            Errand::Quarantine { for_s: QUARANTINE_MAX_S + 1 },
            Errand::Record { for_s: RECORD_MAX_S + 1, bytes_max: CAPTURE_MAX },
            Errand::Record { for_s: 60, bytes_max: CAPTURE_MAX + 1 },
            Errand::Record { for_s: 60, bytes_max: CAPTURE_MIN - 1 },
        ];
        for errand in bad {
            let order = Order { id: 1, errand };
            assert!(matches!(sign("gw", &order, &key), Err(OrderError::OverLimit(_))));
            // A fleet server of another version, say.
            let bytes = wire::encode(&order).unwrap();
            let signature = key.sign(&signed_text("gw", &bytes));
            let signed = SignedOrder { order: bytes, signature };
            assert!(matches!(open("gw", &signed, &keys, &Done::default()), Err(OrderError::OverLimit(_))));
        }
    }

    #[test]
    fn of_many_orders_the_latest_are_remembered_and_all_before_them_count_as_done() {
        let mut done = Done::default();
        for id in (2..=2 * DONE_MAX as u64).step_by(2) {
            assert!(!done.contains(id));
            done.add(id);
            assert!(done.contains(id));
        }
        assert!(done.contains(1), "before the window");
        assert!(!done.contains(3), "came late, and was not done");
        done.add(1000);
        assert!(done.contains(2) && done.contains(3) && !done.contains(5) && !done.contains(999));
    }

    #[test]
    fn a_bundle_s_signature_is_none_of_an_order() {
        let (key, keys) = key();
        let order = wire::encode(&Order { id: 1, errand: Errand::Doctor }).unwrap();
        let signature = key.sign(&[b"behaveguard-bundle-v1\0".as_slice(), &order].concat());
        assert_eq!(
            open("gw", &SignedOrder { order, signature }, &keys, &Done::default()),
            Err(OrderError::Signature)
        );
    }
}
