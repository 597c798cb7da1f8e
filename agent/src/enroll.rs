//! A ticket to an identity: key and certificate of this device, and whom it trusts.
//!
//! The private key is made here and never leaves. The ticket names the server and its authority, so the very first
//! connection is already authenticated. `docs/operations.md` shows the ticket's form.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use models::bundle::{Keyring, PublicKey};
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use crate::files;

/// The longest answer of a server that is read, in bytes.
const ANSWER_MAX: u64 = 64 * 1024;

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
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// Not a ticket.
    #[error("this is no enrolment ticket; make one with `behaveguard-fleet ticket`")]
    Ticket,
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
struct Ticket {
    v: u32,
    url: String,
    secret: String,
    ca_pem: String,
}

#[derive(Serialize)]
struct Request<'a> {
    secret: &'a str,
    device: &'a str,
    csr_pem: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    certificate_pem: String,
    ca_pem: String,
    mqtt: String,
    bundle_keys: Vec<String>,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
    hint: String,
}

/// Enrols this device: makes a key, has it signed, and writes everything down.
///
/// # Errors
/// When the ticket, the name or the server's answer is no good, or a file cannot be written.
pub fn enroll(state: &Path, ticket: &str, device: &str, force: bool) -> Result<Identity, EnrollError> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !(1..=64).contains(&device.len()) || !device.bytes().all(good) {
        return Err(EnrollError::Device(device.into()));
    }
    if let (Ok(identity), false) = (Identity::load(state), force) {
        return Err(EnrollError::Already(identity.device));
    }
    let ticket = decode(ticket).ok_or(EnrollError::Ticket)?;
    let key = KeyPair::generate().map_err(EnrollError::Request)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, device);
    let csr = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(EnrollError::Request)?;
    let answer = ask(&ticket, &Request { secret: &ticket.secret, device, csr_pem: &csr })?;
    let url = || EnrollError::Answer(ticket.url.clone());
    let (host, port) = answer.mqtt.rsplit_once(':').ok_or_else(url)?;
    let identity = Identity {
        device: device.into(),
        host: host.trim_start_matches('[').trim_end_matches(']').into(),
        port: port.parse().map_err(|_| url())?,
        bundle_keys: answer.bundle_keys,
    };
    identity.keyring().ok_or_else(url)?;
    files::make_private_dir(state).map_err(|source| EnrollError::File { path: state.into(), source })?;
    let json = serde_json::to_vec_pretty(&identity).expect("an identity has a JSON form");
    // The identity comes last: without it the device is not enrolled.
    for (name, bytes) in [
        ("device.key", key.serialize_pem().as_bytes()),
        ("device.pem", answer.certificate_pem.as_bytes()),
        ("ca.pem", answer.ca_pem.as_bytes()),
        ("identity.json", &json[..]),
    ] {
        let path = state.join(name);
        files::write_private(&path, bytes).map_err(|source| EnrollError::File { path, source })?;
    }
    identity.tls(state)?;
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

    /// The keys that may sign bundles; `None` when one of them is no key, or there are none or more than eight.
    #[must_use]
    pub fn keyring(&self) -> Option<Keyring> {
        let mut keys = Keyring::default();
        for hex in &self.bundle_keys {
            let bytes = HEXLOWER.decode(hex.as_bytes()).ok()?;
            keys.0.push(PublicKey(bytes.try_into().ok()?)).ok()?;
        }
        (!keys.0.is_empty()).then_some(keys)
    }

    /// TLS with this device's certificate, trusting its fleet only.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn tls(&self, state: &Path) -> Result<rustls::ClientConfig, EnrollError> {
        let read = |name: &str| {
            let path = state.join(name);
            fs::read(&path).map_err(|source| EnrollError::File { path, source })
        };
        let certificate = |name: &str| {
            CertificateDer::from_pem_slice(&read(name)?).map_err(|_| EnrollError::Damaged(state.join(name)))
        };
        let key = PrivateKeyDer::from_pem_slice(&read("device.key")?)
            .map_err(|_| EnrollError::Damaged(state.join("device.key")))?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate("ca.pem")?).map_err(EnrollError::Tls)?;
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(EnrollError::Tls)?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate("device.pem")?], key)
            .map_err(EnrollError::Tls)
    }
}

fn decode(text: &str) -> Option<Ticket> {
    let json = BASE64URL_NOPAD.decode(text.trim().as_bytes()).ok()?;
    let ticket: Ticket = serde_json::from_slice(&json).ok()?;
    (ticket.v == 1).then_some(ticket)
}

fn ask(ticket: &Ticket, request: &Request<'_>) -> Result<Answer, EnrollError> {
    let authority =
        ureq::tls::Certificate::from_pem(ticket.ca_pem.as_bytes()).map_err(|_| EnrollError::Ticket)?;
    let tls = ureq::tls::TlsConfig::builder()
        .provider(ureq::tls::TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(ureq::tls::RootCerts::new_with_certs(&[authority]))
        .build();
    let agent = ureq::Agent::config_builder()
        .tls_config(tls)
        .https_only(true)
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .timeout_global(Some(Duration::from_secs(30)))
        .build()
        .new_agent();
    let url = format!("{}/api/v1/enroll", ticket.url);
    let failed = |source| EnrollError::Server { url: url.clone(), source: Box::new(source) };
    let body = serde_json::to_vec(request).expect("a request has a JSON form");
    let mut answer = agent.post(&url).content_type("application/json").send(&body[..]).map_err(failed)?;
    let text = answer.body_mut().with_config().limit(ANSWER_MAX).read_to_vec().map_err(failed)?;
    if answer.status().is_success() {
        return serde_json::from_slice(&text).map_err(|_| EnrollError::Answer(ticket.url.clone()));
    }
    let refusal: Refusal =
        serde_json::from_slice(&text).map_err(|_| EnrollError::Answer(ticket.url.clone()))?;
    Err(EnrollError::Refused { message: refusal.message, hint: refusal.hint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_truncation_of_a_ticket_is_refused() {
        let json = br#"{"v":1,"url":"https://h:1","secret":"s","ca_pem":"p"}"#;
        let text = BASE64URL_NOPAD.encode(json);
        assert!(decode(&text).is_some());
        for end in 0..text.len() {
            assert!(decode(&text[..end]).is_none(), "{end} characters were enough");
        }
    }

    #[test]
    fn a_bad_ticket_or_name_is_refused_before_anyone_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(enroll(dir.path(), "x", "gw-1", false), Err(EnrollError::Ticket)));
        assert!(matches!(enroll(dir.path(), "x", "GW 1", false), Err(EnrollError::Device(_))));
        assert!(matches!(Identity::load(dir.path()), Err(EnrollError::NotEnrolled(_))));
    }

    #[test]
    fn host_names_become_device_names() {
        assert_eq!(device_name("Gw_01.example"), "gw-01-example");
        assert_eq!(device_name("ü"), "gateway");
    }
}
