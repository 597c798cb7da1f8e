//! Whose program files this device may be given to run as its agent: the table `[update]`.

use models::bundle::{Keyring, PublicKey};
use serde::{Deserialize, Serialize};

use super::read::Reader;

/// Keys that may be named.
const KEYS_MAX: usize = 4;

/// What the device's own file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateRule {
    /// Ed25519 public keys in hexadecimal of those who may make them; nobody may when there are none.
    pub keys: Vec<String>,
}

impl UpdateRule {
    pub(super) fn read(&mut self, keys: &mut Reader) {
        keys.words("keys", &mut self.keys, |list: &Vec<String>| {
            list.len() <= KEYS_MAX && list.iter().all(|key| PublicKey::parse(key).is_some())
        });
    }

    /// The same as keys.
    #[must_use]
    pub fn keyring(&self) -> Keyring {
        Keyring(self.keys.iter().filter_map(|key| PublicKey::parse(key)).take(KEYS_MAX).collect())
    }
}
