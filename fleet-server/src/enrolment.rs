//! Enrolment tokens: what an operator hands to new devices.
//!
//! A token is base64url without padding of the JSON object
//! `{"v":1,"url":"https://host:port","secret":"<43 characters>","ca_pem":"-----BEGIN CERTIFICATE..."}`.
//! The device posts the secret, its id and a CSR to `<url>/api/v1/enroll`, trusting only `ca_pem`. The server keeps
//! SHA-256 of the secret with its group, uses and end, so a copy of its database enrols nobody.

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::names::{DeviceId, GroupId};
use crate::secret;
use crate::store::NewToken;

/// How long a token may be good, in seconds.
pub const TTL_MAX_S: u64 = 30 * 86_400;

/// How many devices may use one token.
pub const USES_MAX: u32 = 100_000;

/// What is asked for; the bounds are the caller's to check, in its own words.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The group that the devices join.
    pub group: GroupId,
    /// The only device that may use it.
    pub device: Option<DeviceId>,
    /// How many devices may use it, at most [`USES_MAX`].
    pub uses: u32,
    /// How long it is good, in seconds, at most [`TTL_MAX_S`].
    pub ttl_s: u64,
}

/// A token that was made: what is handed out, and what is kept.
#[derive(Clone, Debug)]
pub struct Issued {
    /// For the operator.
    pub token: Token,
    /// For the store.
    pub row: NewToken,
    /// For the audit log: for which device.
    pub target: String,
    /// For the audit log: what it allows.
    pub detail: String,
}

/// Makes a token with a new secret.
#[must_use]
pub fn issue(wanted: Wanted, url: String, ca_pem: String, by: String, now_s: u64) -> Issued {
    let Wanted { group, device, uses, ttl_s } = wanted;
    let token = Token { v: 1, url, secret: secret::random(), ca_pem };
    let target = device.as_ref().map_or_else(|| "any device".to_owned(), ToString::to_string);
    let detail = format!("group {group}, {uses} uses, {ttl_s} s");
    let hash = secret::hash(&token.secret);
    let row = NewToken { hash, group, device, uses, expires_s: now_s + ttl_s, by };
    Issued { token, row, target, detail }
}

/// The contents of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// 1.
    pub v: u32,
    /// Where to enrol, `https://host:port` without a slash at the end.
    pub url: String,
    /// 32 random bytes in base64url.
    pub secret: String,
    /// The certificate that signed the server's.
    pub ca_pem: String,
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an enrolment token of version 1")]
pub struct NotAToken;

impl Token {
    /// The text handed to people.
    ///
    /// # Panics
    /// Never: the fields always have a JSON form.
    #[must_use]
    pub fn encode(&self) -> String {
        BASE64URL_NOPAD.encode(&serde_json::to_vec(self).expect("a token has a JSON form"))
    }

    /// Reads a token.
    ///
    /// # Errors
    /// When it is not one, or of another version.
    pub fn decode(text: &str) -> Result<Self, NotAToken> {
        let json = BASE64URL_NOPAD.decode(text.trim().as_bytes()).map_err(|_| NotAToken)?;
        let token: Self = serde_json::from_slice(&json).map_err(|_| NotAToken)?;
        if token.v == 1 { Ok(token) } else { Err(NotAToken) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_every_truncation_is_refused() {
        let token = Token { v: 1, url: "https://h:1".into(), secret: secret::random(), ca_pem: "pem".into() };
        let text = token.encode();
        assert_eq!(Token::decode(&text), Ok(token.clone()));
        for end in 0..text.len() {
            assert_eq!(Token::decode(&text[..end]), Err(NotAToken), "{end} characters were enough");
        }
        assert_eq!(Token::decode(&Token { v: 2, ..token }.encode()), Err(NotAToken));
    }
}
