//! People sign in at an identity provider: OpenID Connect Core 1.0, the authorization code flow with PKCE (RFC 7636).
//!
//! ```text
//! browser ── /oidc/login ──► to the provider, with state, nonce and challenge; the secret they are made of stays in a cookie
//! browser ◄── code, state ── provider
//! browser ── /oidc/callback ──► server ── code, secret ──► provider
//!                               server ◄── ID token ────── provider: signature, issuer, audience, end, nonce; groups to a role
//! ```
//! Nothing is kept between the two requests but the cookie, so any of several servers may take the second. Everything here
//! blocks.

mod signature;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use form_urlencoded::Serializer;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};
use models::bundle::sha256;
use models::program::hex;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::access::Role;
use crate::config::OidcConfig;
use crate::names::UserName;
use crate::{clock, secret, trust};

/// How long one question to the provider may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 256 * 1024;

/// What the provider says of itself, and its keys, are asked for again after so many seconds.
const FRESH_S: u64 = 3600;

/// Keys are asked for at most this often, in seconds, however many tokens name one that is not known.
const KEYS_EVERY_S: u64 = 30;

/// Bytes of a person's own name in the name of the user.
const OWN_NAME_MAX: usize = 40;

/// Why nobody is signed in.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The file of the client's secret.
    #[error("reading {0}")]
    Secret(std::path::PathBuf, #[source] std::io::Error),
    /// The certificates that are trusted.
    #[error("{0}")]
    Trust(String),
    /// The provider could not be asked.
    #[error("asking {0}")]
    Asking(String, #[source] Box<ureq::Error>),
    /// It answered with an error.
    #[error("{url} answered {status}: {text}")]
    Answer {
        /// Which address.
        url: String,
        /// HTTP status.
        status: u16,
        /// What it said.
        text: String,
    },
    /// It answered something else.
    #[error("{0} did not answer as an identity provider does")]
    Strange(String, #[source] serde_json::Error),
    /// It says that it is another, or has an address that is not encrypted.
    #[error("the provider says that its {0} is `{1}`")]
    Metadata(&'static str, String),
    /// Its token.
    #[error("the provider's token")]
    Token(#[source] jsonwebtoken::errors::Error),
    /// It was made for another sign-in or another client.
    #[error("the provider's token has another {0}")]
    Foreign(&'static str),
    /// Which key it was signed with is not known.
    #[error("the provider's token is signed with a key that it does not publish")]
    NoKey,
    /// None of the groups that a role is given for.
    #[error("`{0}` is in none of the groups that may use this server")]
    NoRole(String),
}

/// One sign-in, by the secret that the browser keeps until its end.
pub struct Login(String);

impl Login {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        Self(secret::random())
    }

    /// One of which the browser kept this.
    #[must_use]
    pub fn of(cookie: &str) -> Self {
        Self(cookie.to_owned())
    }

    /// What the browser keeps: the verifier of PKCE.
    #[must_use]
    pub fn cookie(&self) -> &str {
        &self.0
    }

    /// What comes back with the code, so that nobody else's code is taken.
    #[must_use]
    pub fn state(&self) -> String {
        self.derived("state")
    }

    /// What must be in the token.
    fn nonce(&self) -> String {
        self.derived("nonce")
    }

    fn derived(&self, what: &str) -> String {
        BASE64URL_NOPAD.encode(&secret::hash(&format!("{what} {}", self.0)))
    }

    fn challenge(&self) -> String {
        BASE64URL_NOPAD.encode(&secret::hash(&self.0))
    }
}

impl Default for Login {
    fn default() -> Self {
        Self::new()
    }
}

/// Who signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The user's name here: the person's own, and a part of a hash that is hers alone.
    pub name: UserName,
    /// What she may do, by her groups.
    pub role: Role,
}

/// What a provider says of itself (OpenID Connect Discovery 1.0, section 3).
#[derive(Clone, Debug, Deserialize)]
struct Metadata {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    userinfo_endpoint: Option<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Tokens {
    access_token: String,
    id_token: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    nonce: Option<String>,
    azp: Option<String>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// What was read, and when.
#[derive(Default)]
struct Known {
    metadata: Option<(u64, Metadata)>,
    keys: Option<(u64, Vec<Jwk>)>,
}

/// The provider that people sign in at.
pub struct Provider {
    config: OidcConfig,
    /// Where it sends browsers back to.
    callback: String,
    known: Mutex<Known>,
}

impl Provider {
    /// The provider of a configuration; browsers reach this server at `web_url` unless that says otherwise.
    #[must_use]
    pub fn new(config: OidcConfig, web_url: &str) -> Self {
        signature::install();
        let here = config.url.as_deref().unwrap_or(web_url);
        let callback = format!("{here}/api/v1/oidc/callback");
        Self { config, callback, known: Mutex::default() }
    }

    /// The address that a browser is sent to.
    ///
    /// # Errors
    /// When the provider cannot be asked where that is.
    pub fn begin(&self, login: &Login) -> Result<String, OidcError> {
        let metadata = self.metadata(&self.client()?)?;
        let scope = self.config.scopes.join(" ");
        let query = form(&[
            ("response_type", "code"),
            ("client_id", &self.config.client_id),
            ("redirect_uri", &self.callback),
            ("scope", &scope),
            ("state", &login.state()),
            ("nonce", &login.nonce()),
            ("code_challenge", &login.challenge()),
            ("code_challenge_method", "S256"),
        ]);
        let to = metadata.authorization_endpoint;
        let mark = if to.contains('?') { '&' } else { '?' };
        Ok(format!("{to}{mark}{query}"))
    }

    /// Who it is that came back with this code.
    ///
    /// # Errors
    /// When the provider cannot be asked or refuses, its token is not good, or no role is meant for the person.
    pub fn finish(&self, login: &Login, code: &str) -> Result<Person, OidcError> {
        let client = self.client()?;
        let metadata = self.metadata(&client)?;
        let tokens = self.exchange(&client, &metadata, login, code)?;
        let mut claims = self.claims(&client, &metadata, &tokens.id_token)?;
        if claims.nonce.as_deref() != Some(&login.nonce()) {
            return Err(OidcError::Foreign("nonce"));
        }
        if claims.azp.as_ref().is_some_and(|azp| *azp != self.config.client_id) {
            return Err(OidcError::Foreign("azp"));
        }
        if let (None, Some(url)) = (claims.others.get(&self.config.claim), &metadata.userinfo_endpoint) {
            let told: Claims = read(url, client.get(url).header("Authorization", bearer(&tokens)).call())?;
            if told.sub != claims.sub {
                return Err(OidcError::Foreign("sub"));
            }
            claims.others.extend(told.others);
        }
        let name = user_name(&metadata.issuer, &claims);
        match self.config.role(&groups(claims.others.get(&self.config.claim))) {
            Some(role) => Ok(Person { name, role }),
            None => Err(OidcError::NoRole(name.to_string())),
        }
    }

    fn exchange(
        &self,
        client: &ureq::Agent,
        metadata: &Metadata,
        login: &Login,
        code: &str,
    ) -> Result<Tokens, OidcError> {
        let id = self.config.client_id.as_str();
        let mut fields = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", self.callback.as_str()),
            ("code_verifier", login.cookie()),
        ];
        let mut request = client.post(&metadata.token_endpoint);
        let secret = self.secret()?;
        let methods = metadata.token_endpoint_auth_methods_supported.as_ref();
        let is_basic = methods.is_none_or(|all| all.iter().any(|method| method == "client_secret_basic"));
        match &secret {
            Some(secret) if is_basic => {
                // RFC 6749, section 2.3.1: both are encoded before they are put together.
                let encoded =
                    |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let pair = format!("{}:{}", encoded(id), encoded(secret));
                let told = format!("Basic {}", data_encoding::BASE64.encode(pair.as_bytes()));
                request = request.header("Authorization", told);
            }
            Some(secret) => fields.extend([("client_id", id), ("client_secret", secret.as_str())]),
            None => fields.push(("client_id", id)),
        }
        read(&metadata.token_endpoint, request.send_form(fields))
    }

    fn secret(&self) -> Result<Option<String>, OidcError> {
        let Some(path) = &self.config.client_secret_file else { return Ok(None) };
        let text = std::fs::read_to_string(path).map_err(|error| OidcError::Secret(path.clone(), error))?;
        Ok(Some(text.trim().to_owned()))
    }

    /// What a token says, if it is the provider's, for us and not over.
    fn claims(&self, client: &ureq::Agent, metadata: &Metadata, token: &str) -> Result<Claims, OidcError> {
        let header = decode_header(token).map_err(OidcError::Token)?;
        if !signature::ALGORITHMS.contains(&header.alg) {
            return Err(OidcError::Token(jsonwebtoken::errors::ErrorKind::InvalidAlgorithm.into()));
        }
        let key = self.key(client, metadata, header.kid.as_deref())?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&metadata.issuer]);
        validation.set_audience(&[&self.config.client_id]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        Ok(decode::<Claims>(token, &key, &validation).map_err(OidcError::Token)?.claims)
    }

    fn key(
        &self,
        client: &ureq::Agent,
        metadata: &Metadata,
        kid: Option<&str>,
    ) -> Result<DecodingKey, OidcError> {
        let kept = self.known().keys.clone();
        if let Some((read_s, keys)) = kept.filter(|(read_s, _)| age_s(*read_s) < FRESH_S) {
            match find(&keys, kid) {
                Some(key) => return Ok(key),
                None if age_s(read_s) < KEYS_EVERY_S => return Err(OidcError::NoKey),
                None => {}
            }
        }
        let keys: Keys = read(&metadata.jwks_uri, client.get(&metadata.jwks_uri).call())?;
        // One of a kind that nobody here knows does not spoil the others.
        let keys: Vec<Jwk> =
            keys.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect();
        let found = find(&keys, kid).ok_or(OidcError::NoKey);
        self.known().keys = Some((clock::unix_s(), keys));
        found
    }

    fn metadata(&self, client: &ureq::Agent) -> Result<Metadata, OidcError> {
        let kept = self.known().metadata.clone();
        if let Some((_, metadata)) = kept.filter(|(read_s, _)| age_s(*read_s) < FRESH_S) {
            return Ok(metadata);
        }
        let url = format!("{}/.well-known/openid-configuration", self.config.issuer.trim_end_matches('/'));
        let metadata: Metadata = read(&url, client.get(&url).call())?;
        if metadata.issuer != self.config.issuer {
            return Err(OidcError::Metadata("issuer", metadata.issuer));
        }
        for (what, address) in [
            ("authorization_endpoint", Some(&metadata.authorization_endpoint)),
            ("token_endpoint", Some(&metadata.token_endpoint)),
            ("jwks_uri", Some(&metadata.jwks_uri)),
            ("userinfo_endpoint", metadata.userinfo_endpoint.as_ref()),
        ] {
            if let Some(address) = address.filter(|address| !address.starts_with("https://")) {
                return Err(OidcError::Metadata(what, address.clone()));
            }
        }
        self.known().metadata = Some((clock::unix_s(), metadata.clone()));
        Ok(metadata)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> Result<ureq::Agent, OidcError> {
        let tls = trust::tls_of(self.config.ca_file.as_deref()).map_err(OidcError::Trust)?;
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(TIMEOUT));
        Ok(config.build().new_agent())
    }
}

/// How long ago that was; a clock that was set back makes nothing fresh for ever.
fn age_s(then_s: u64) -> u64 {
    clock::unix_s().abs_diff(then_s)
}

fn bearer(tokens: &Tokens) -> String {
    format!("Bearer {}", tokens.access_token)
}

fn form(fields: &[(&str, &str)]) -> String {
    Serializer::new(String::new()).extend_pairs(fields).finish()
}

fn read<T: DeserializeOwned>(
    url: &str,
    answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<T, OidcError> {
    let failed = |error| OidcError::Asking(url.to_owned(), Box::new(error));
    let mut answer = answer.map_err(failed)?;
    let body = answer.body_mut().with_config().limit(ANSWER_MAX).read_to_vec().map_err(failed)?;
    let status = answer.status();
    if !status.is_success() {
        let text = String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(200).collect();
        return Err(OidcError::Answer { url: url.to_owned(), status: status.as_u16(), text });
    }
    serde_json::from_slice(&body).map_err(|error| OidcError::Strange(url.to_owned(), error))
}

/// The key of this name; without a name the only one.
fn find(keys: &[Jwk], kid: Option<&str>) -> Option<DecodingKey> {
    let key = match kid {
        Some(_) => keys.iter().find(|key| key.common.key_id.as_deref() == kid)?,
        None => match keys {
            [only] => only,
            _ => return None,
        },
    };
    DecodingKey::from_jwk(key).ok()
}

/// A claim that is a text or a list of texts.
fn groups(claim: Option<&Value>) -> Vec<&str> {
    match claim {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Readable, and of nobody else: a provider may give a name that it gave to somebody before, and its subject never.
fn user_name(issuer: &str, claims: &Claims) -> UserName {
    let text = |name: &str| claims.others.get(name).and_then(Value::as_str);
    let email = text("email").map(|email| email.split('@').next().unwrap_or_default());
    let own = text("preferred_username").or(email).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let own: String = own.chars().map(plain).take(OWN_NAME_MAX).collect();
    let own = own.trim_matches('-');
    let own = if own.is_empty() { "user" } else { own };
    let hash = sha256(format!("{issuer} {}", claims.sub).as_bytes());
    UserName::parse(&format!("{own}-{}", hex(&hash[..6]))).expect("letters, digits and dashes are a name")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(value: Value) -> Claims {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn users_are_named_so_that_nobody_gets_another_s_name() {
        let name = |value| user_name("https://id", &claims(value)).to_string();
        let anna = name(json!({ "sub": "1", "preferred_username": "Anna B." }));
        assert!(anna.starts_with("anna-b-") && anna.len() == "anna-b-".len() + 12, "{anna}");
        assert_ne!(anna, name(json!({ "sub": "2", "preferred_username": "Anna B." })));
        assert_ne!(
            anna,
            user_name("https://other", &claims(json!({ "sub": "1", "preferred_username": "Anna B." })))
                .to_string()
        );
        assert!(name(json!({ "sub": "1", "email": "bob@example.org" })).starts_with("bob-"));
        assert!(name(json!({ "sub": "1" })).starts_with("user-"));
        assert!(name(json!({ "sub": "1", "preferred_username": "ü".repeat(500) })).starts_with("user-"));
    }

    #[test]
    fn a_sign_in_has_three_values_that_do_not_tell_its_secret() {
        let login = Login::new();
        let told = [login.state(), login.nonce(), login.challenge()];
        assert!(told.iter().all(|text| text.len() == 43 && *text != login.0), "{told:?}");
        assert!(told[0] != told[1] && told[1] != told[2] && told[0] != told[2]);
        assert_eq!(Login::of(login.cookie()).state(), told[0]);
        // RFC 7636, appendix B.
        let known = Login::of("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        assert_eq!(known.challenge(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn groups_are_a_text_or_a_list() {
        assert_eq!(groups(Some(&json!("a"))), ["a"]);
        assert_eq!(groups(Some(&json!(["a", 5, "b"]))), ["a", "b"]);
        assert!(groups(Some(&json!({ "a": 1 }))).is_empty() && groups(None).is_empty());
    }
}
