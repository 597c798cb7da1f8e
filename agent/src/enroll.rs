//! An enrolment token to an identity: key and certificate of this device, and whom it trusts.
//!
//! The private key is made here and never leaves. The token names the server and its authority, so the very first
//! connection is already authenticated. The certificate lasts for weeks and is renewed by whoever
//! holds the key, also after its end. Texts of the key are wiped from memory after use.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use models::bundle::{Keyring, PublicKey};
use models::pem;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{files, https};

/// The longest answer of a server that is read, in bytes.
const ANSWER_MAX: u64 = 64 * 1024;

/// The key of an enrolment that is not done.
const PENDING: &str = "enrol.key";

/// Who this device is and where its fleet listens: `<state>/identity.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its name.
    pub device: String,
    /// The fleet's host name or address.
    pub host: String,
    /// The fleet's MQTT port.
    pub port: u16,
    /// Keys that may sign bundles, hexadecimal.
    pub bundle_keys: Vec<String>,
    /// Where it was enrolled and renews, `https://host:port`; empty when an older agent enrolled it.
    #[serde(default)]
    pub url: String,
    /// When the certificate is to be renewed, seconds since 1970.
    #[serde(default)]
    pub renew_after_unix_s: u64,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// Not a token.
    #[error("this is no enrolment token; make one with `behaveguard-fleet token create`")]
    Token,
    /// Not a device name.
    #[error("`{0}` is no device name: 1 to 64 of a-z, 0-9 and -; choose one with --device")]
    Device(String),
    /// Enrolled already.
    #[error("this device is enrolled as `{0}`; add --force to enrol it again")]
    Already(String),
    /// Not enrolled.
    #[error("this device is not enrolled ({0} is missing): run `behaveguard enroll`")]
    NotEnrolled(PathBuf),
    /// A file holds something else.
    #[error("{0} is damaged: enrol again with --force")]
    Damaged(PathBuf),
    /// A file of the state folder.
    #[error("reading or writing {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Making the key or the request.
    #[error("making a key and a signing request")]
    Request(#[source] rcgen::Error),
    /// The server could not be asked.
    #[error("asking {url}")]
    Server {
        /// Where.
        url: String,
        /// What went wrong.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The server said no.
    #[error("the server refused: {message}; {hint}")]
    Refused {
        /// Its reason.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The server's answer makes no sense.
    #[error("the server at {0} did not answer as a fleet server does")]
    Answer(String),
    /// TLS set-up.
    #[error("setting up TLS with this device's certificate")]
    Tls(#[source] rustls::Error),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    v: u32,
    url: String,
    secret: String,
    ca_pem: String,
}

#[derive(Serialize)]
struct EnrolRequest<'a> {
    secret: &'a str,
    device: &'a str,
    csr_pem: &'a str,
}

#[derive(Deserialize)]
struct Enrolled {
    certificate_pem: String,
    renew_after_unix_s: u64,
    ca_pem: String,
    mqtt: String,
    bundle_keys: Vec<String>,
}

#[derive(Serialize)]
struct RenewRequest<'a> {
    device: &'a str,
    csr_pem: &'a str,
}

#[derive(Deserialize)]
struct Renewed {
    certificate_pem: String,
    renew_after_unix_s: u64,
}

#[derive(Deserialize)]
struct Refusal {
    detail: String,
    hint: String,
}

/// Enrols this device: makes a key, has it signed, and writes everything down.
///
/// # Errors
/// When the token, the name or the server's answer is no good, or a file cannot be written.
pub fn enroll(state: &Path, token: &str, device: &str, force: bool) -> Result<Identity, EnrollError> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !(1..=64).contains(&device.len()) || !device.bytes().all(good) {
        return Err(EnrollError::Device(device.into()));
    }
    if let (Ok(identity), false) = (Identity::load(state), force) {
        return Err(EnrollError::Already(identity.device));
    }
    let token = decode(token).ok_or(EnrollError::Token)?;
    files::make_private_dir(state).map_err(|source| EnrollError::File { path: state.into(), source })?;
    let key = pending_key(state)?;
    let csr = request(&key, device)?;
    let sent = EnrolRequest { secret: &token.secret, device, csr_pem: &csr };
    let answer: Enrolled = ask(&token.url, "enroll", &token.ca_pem, &sent)?;
    let url = || EnrollError::Answer(token.url.clone());
    let (host, port) = answer.mqtt.rsplit_once(':').ok_or_else(url)?;
    let identity = Identity {
        device: device.into(),
        host: host.trim_start_matches('[').trim_end_matches(']').into(),
        port: port.parse().map_err(|_| url())?,
        bundle_keys: answer.bundle_keys,
        url: token.url.clone(),
        renew_after_unix_s: answer.renew_after_unix_s,
    };
    identity.keyring().ok_or_else(url)?;
    // The identity comes last: without it the device is not enrolled.
    write(state, "device.key", key_text(&key).as_bytes())?;
    write(state, "device.pem", answer.certificate_pem.as_bytes())?;
    write(state, "ca.pem", answer.ca_pem.as_bytes())?;
    identity.write(state)?;
    identity.tls(state)?;
    // Left behind by a crash it is only the key of the next enrolment.
    let _ = fs::remove_file(state.join(PENDING));
    Ok(identity)
}

/// A device name from a host name: lower case, other characters become `-`.
#[must_use]
pub fn device_name(host: &str) -> String {
    let good = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = host.chars().map(good).take(64).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "gateway".into() } else { name.into() }
}

impl Identity {
    /// Hosts and ports where this device speaks to its fleet.
    #[must_use]
    pub fn endpoints(&self) -> Vec<(String, u16)> {
        let mut all = vec![(self.host.clone(), self.port)];
        let url = self.url.parse::<ureq::http::Uri>().ok();
        all.extend(url.and_then(|url| {
            let host = url.host()?.trim_matches(['[', ']']).to_owned();
            Some((host, url.port_u16().unwrap_or(443)))
        }));
        all
    }

    /// Reads the identity of an enrolled device.
    ///
    /// # Errors
    /// When it is not enrolled, or the file is damaged.
    pub fn load(state: &Path) -> Result<Self, EnrollError> {
        let path = state.join("identity.json");
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(EnrollError::NotEnrolled(path));
            }
            Err(source) => return Err(EnrollError::File { path, source }),
        };
        serde_json::from_slice(&json).map_err(|_| EnrollError::Damaged(path))
    }

    /// Whether the certificate is to be renewed by this clock.
    #[must_use]
    pub fn is_due(&self, now_unix_s: u64) -> bool {
        !self.url.is_empty() && now_unix_s >= self.renew_after_unix_s
    }

    /// Has this device's key signed again, and writes down what came.
    ///
    /// # Errors
    /// When the server cannot be asked or refuses, or a file cannot be read or written; the old certificate stays then.
    pub fn renew(&mut self, state: &Path) -> Result<(), EnrollError> {
        let read = |name: &str| {
            let path = state.join(name);
            fs::read_to_string(&path).map_err(|source| EnrollError::File { path, source })
        };
        let damaged = |name: &str| EnrollError::Damaged(state.join(name));
        let pem = Zeroizing::new(read("device.key")?);
        let key = key_of(pem.as_bytes()).ok_or_else(|| damaged("device.key"))?;
        let csr = request(&key, &self.device)?;
        let sent = RenewRequest { device: &self.device, csr_pem: &csr };
        let answer: Renewed = ask(&self.url, "renew", &read("ca.pem")?, &sent)?;
        CertificateDer::from_pem_slice(answer.certificate_pem.as_bytes())
            .map_err(|_| EnrollError::Answer(self.url.clone()))?;
        write(state, "device.pem", answer.certificate_pem.as_bytes())?;
        self.renew_after_unix_s = answer.renew_after_unix_s;
        self.write(state)
    }

    fn write(&self, state: &Path) -> Result<(), EnrollError> {
        let json = serde_json::to_vec_pretty(self).expect("an identity has a JSON form");
        write(state, "identity.json", &json)
    }

    /// The keys that may sign bundles; `None` when one of them is no key, or there are none or more than eight.
    #[must_use]
    pub fn keyring(&self) -> Option<Keyring> {
        let mut keys = Keyring::default();
        for hex in &self.bundle_keys {
            keys.0.push(PublicKey::parse(hex)?).ok()?;
        }
        (!keys.0.is_empty()).then_some(keys)
    }

    /// HTTPS with this device's certificate, trusting its fleet only, in so much time for each request.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn web(&self, state: &Path, timeout: Duration) -> Result<ureq::Agent, EnrollError> {
        Ok(https::client(Arc::new(self.tls(state)?), timeout))
    }

    /// TLS with this device's certificate, trusting its fleet only.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn tls(&self, state: &Path) -> Result<ClientConfig, EnrollError> {
        let read = |name: &str| {
            let path = state.join(name);
            fs::read(&path).map_err(|source| EnrollError::File { path, source })
        };
        let certificate = |name: &str| {
            CertificateDer::from_pem_slice(&read(name)?).map_err(|_| EnrollError::Damaged(state.join(name)))
        };
        let key = pem::decode(&Zeroizing::new(read("device.key")?))
            .ok_or_else(|| EnrollError::Damaged(state.join("device.key")))?;
        // What reads it wipes it.
        let key = PrivateKeyDer::Pkcs8(key.to_vec().into());
        trusting(certificate("ca.pem")?)?
            .with_client_auth_cert(vec![certificate("device.pem")?], key)
            .map_err(EnrollError::Tls)
    }
}

/// The key to enrol with: it is kept until the enrolment is done, so that one whose answer was lost can be repeated
/// with the same token.
fn pending_key(state: &Path) -> Result<Zeroizing<KeyPair>, EnrollError> {
    let text = fs::read(state.join(PENDING)).ok().map(Zeroizing::new);
    if let Some(key) = text.and_then(|text| key_of(&text)) {
        return Ok(key);
    }
    let key = Zeroizing::new(KeyPair::generate().map_err(EnrollError::Request)?);
    write(state, PENDING, key_text(&key).as_bytes())?;
    Ok(key)
}

fn key_text(key: &KeyPair) -> Zeroizing<String> {
    pem::encode(&Zeroizing::new(key.serialize_der()))
}

fn key_of(text: &[u8]) -> Option<Zeroizing<KeyPair>> {
    let der = pem::decode(text)?;
    KeyPair::try_from(der.as_slice()).ok().map(Zeroizing::new)
}

fn write(state: &Path, name: &str, bytes: &[u8]) -> Result<(), EnrollError> {
    let path = state.join(name);
    files::write_private(&path, bytes).map_err(|source| EnrollError::File { path, source })
}

fn request(key: &KeyPair, device: &str) -> Result<String, EnrollError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, device);
    params.serialize_request(key).and_then(|csr| csr.pem()).map_err(EnrollError::Request)
}

fn decode(text: &str) -> Option<Token> {
    let json = BASE64URL_NOPAD.decode(text.trim().as_bytes()).ok()?;
    let token: Token = serde_json::from_slice(&json).ok()?;
    (token.v == 1).then_some(token)
}

/// TLS to servers that this authority signed for, and no others.
fn trusting(
    authority: CertificateDer<'static>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, EnrollError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(EnrollError::Tls)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.map_err(EnrollError::Tls)?.with_root_certificates(roots))
}

/// `POST <server>/api/v1/<path>`, trusting this authority only.
fn ask<T: DeserializeOwned>(
    server: &str,
    path: &str,
    ca_pem: &str,
    request: &impl Serialize,
) -> Result<T, EnrollError> {
    let authority = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|_| EnrollError::Token)?;
    let tls = trusting(authority)?.with_no_client_auth();
    // Shorter than the keep-alive of the connection that waits while a certificate is renewed.
    let agent = https::client(Arc::new(tls), Duration::from_secs(15));
    let url = format!("{server}/api/v1/{path}");
    let failed = |source| EnrollError::Server { url: url.clone(), source: Box::new(source) };
    let body = serde_json::to_vec(request).expect("a request has a JSON form");
    let mut answer = agent.post(&url).content_type("application/json").send(&body[..]).map_err(failed)?;
    let text = answer.body_mut().with_config().limit(ANSWER_MAX).read_to_vec().map_err(failed)?;
    let strange = |_| EnrollError::Answer(server.to_owned());
    if answer.status().is_success() {
        return serde_json::from_slice(&text).map_err(strange);
    }
    let refusal: Refusal = serde_json::from_slice(&text).map_err(strange)?;
    Err(EnrollError::Refused { message: refusal.detail, hint: refusal.hint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_truncation_of_a_token_is_refused() {
        let json = br#"{"v":1,"url":"https://h:1","secret":"s","ca_pem":"p"}"#;
        let text = BASE64URL_NOPAD.encode(json);
        assert!(decode(&text).is_some());
        for end in 0..text.len() {
            assert!(decode(&text[..end]).is_none(), "{end} characters were enough");
        }
    }

    #[test]
    fn a_bad_token_or_name_is_refused_before_anyone_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(enroll(dir.path(), "x", "gw-1", false), Err(EnrollError::Token)));
        assert!(matches!(enroll(dir.path(), "x", "GW 1", false), Err(EnrollError::Device(_))));
        assert!(matches!(Identity::load(dir.path()), Err(EnrollError::NotEnrolled(_))));
    }

    #[test]
    fn host_names_become_device_names() {
        assert_eq!(device_name("Gw_01.example"), "gw-01-example");
        assert_eq!(device_name("ü"), "gateway");
    }
}
