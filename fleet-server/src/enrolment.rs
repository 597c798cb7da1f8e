//! Enrolment tokens: what an operator hands to new devices.
//!
//! A token is base64url without padding of the JSON object
//! `{"v":1,"url":"https://host:port","secret":"<43 characters>","ca_pem":"-----BEGIN CERTIFICATE..."}`.
//! The device posts the secret, its id and a CSR to `<url>/api/v1/enroll`, trusting only `ca_pem`. The server keeps
//! SHA-256 of the secret with its group, uses and end, so a copy of its database enrols nobody.

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

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
    use crate::secret;

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
