//! Enrolment tickets: what an operator hands to a new device, once.
//!
//! A ticket is base64url without padding of the JSON object
//! `{"v":1,"url":"https://host:port","secret":"<43 characters>","ca_pem":"-----BEGIN CERTIFICATE..."}`.
//! The device posts the secret, its id and a CSR to `<url>/api/v1/enroll`, trusting only `ca_pem`. The server keeps
//! SHA-256 of the secret, so a copy of its database enrols nobody.

use data_encoding::BASE64URL_NOPAD;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

/// The contents of a ticket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// 1.
    pub v: u32,
    /// Where to enrol, `https://host:port` without a slash at the end.
    pub url: String,
    /// 32 random bytes in base64url; good once.
    pub secret: String,
    /// The certificate that signed the server's.
    pub ca_pem: String,
}

/// A text that is no ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an enrolment ticket of version 1")]
pub struct NotATicket;

impl Ticket {
    /// The text handed to people.
    ///
    /// # Panics
    /// Never: the fields always have a JSON form.
    #[must_use]
    pub fn encode(&self) -> String {
        BASE64URL_NOPAD.encode(&serde_json::to_vec(self).expect("a ticket has a JSON form"))
    }

    /// Reads a ticket.
    ///
    /// # Errors
    /// When it is not one, or of another version.
    pub fn decode(text: &str) -> Result<Self, NotATicket> {
        let json = BASE64URL_NOPAD.decode(text.trim().as_bytes()).map_err(|_| NotATicket)?;
        let ticket: Self = serde_json::from_slice(&json).map_err(|_| NotATicket)?;
        if ticket.v == 1 { Ok(ticket) } else { Err(NotATicket) }
    }
}

/// 32 random bytes in base64url without padding.
///
/// # Panics
/// When the system has no randomness.
#[must_use]
pub fn random_secret() -> String {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).expect("the system gives random bytes");
    BASE64URL_NOPAD.encode(&bytes)
}

/// What is stored of a secret.
#[must_use]
pub fn secret_hash(secret: &str) -> [u8; 32] {
    models::bundle::sha256(secret.as_bytes())
}

/// Compares digests in a time that does not depend on where they differ.
#[must_use]
pub fn same_digest(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_reads_back_and_every_truncation_is_refused() {
        let ticket =
            Ticket { v: 1, url: "https://h:1".into(), secret: random_secret(), ca_pem: "pem".into() };
        let text = ticket.encode();
        assert_eq!(Ticket::decode(&text), Ok(ticket.clone()));
        for end in 0..text.len() {
            assert_eq!(Ticket::decode(&text[..end]), Err(NotATicket), "{end} characters were enough");
        }
        assert_eq!(Ticket::decode(&Ticket { v: 2, ..ticket }.encode()), Err(NotATicket));
    }

    #[test]
    fn digests_differ_in_any_byte() {
        let a = secret_hash("a");
        for at in 0..32 {
            let mut b = a;
            b[at] ^= 1;
            assert!(!same_digest(&a, &b));
        }
        assert!(same_digest(&a, &a));
    }
}
