//! Secrets that are handed out once: made at random, kept as SHA-256, compared in constant time.
//!
//! They hold 256 random bits, so a plain hash is enough: there is nothing to guess that a slow hash would protect.

use data_encoding::BASE64URL_NOPAD;
use ring::rand::{SecureRandom as _, SystemRandom};

/// 32 random bytes in base64url without padding: 43 characters.
///
/// # Panics
/// When the system has no randomness.
#[must_use]
pub fn random() -> String {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).expect("the system gives random bytes");
    BASE64URL_NOPAD.encode(&bytes)
}

/// What is stored of a secret.
#[must_use]
pub fn hash(secret: &str) -> [u8; 32] {
    models::bundle::sha256(secret.as_bytes())
}

/// Compares digests in a time that does not depend on where they differ.
#[must_use]
pub fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_differ_in_any_byte() {
        let a = hash("a");
        for at in 0..32 {
            let mut b = a;
            b[at] ^= 1;
            assert!(!same(&a, &b));
        }
        assert!(same(&a, &a));
    }
}
