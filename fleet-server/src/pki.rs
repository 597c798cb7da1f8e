//! The fleet's own certificate authority, server certificate and API token, kept in the state folder: `ca.pem`, `ca.key`,
//! `server.pem`, `server.key` and `api.token`, mode 0600. What was read or written of a key is wiped from memory after use.
//! The key that signs baselines and orders is none of TLS: [`crate::signer`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use models::pem;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _,
};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use zeroize::{Zeroize as _, Zeroizing};

use crate::files::write_private;
use crate::names::DeviceId;
use crate::secret;
use crate::store::Withdrawn;

const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Whoever talks to the fleet can do that: agents, browsers since 2018, the brokers that are tried.
const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Keys and certificates, read or made.
pub struct Pki {
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    server_der: CertificateDer<'static>,
    server_key: KeyPair,
    token_hash: [u8; 32],
}

/// Bytes of a serial number.
pub const SERIAL_LEN: usize = 16;

/// For how long a list of revoked certificates is good: a broker that has an older one turns everybody away.
const CRL_LIFE: Duration = Duration::from_secs(30 * 86_400);

/// A device's certificate, signed.
#[derive(Clone, Debug)]
pub struct Signed {
    /// For the device.
    pub pem: String,
    /// Its serial number.
    pub serial: [u8; SERIAL_LEN],
    /// SHA-256 of the DER form.
    pub sha256: [u8; 32],
    /// SHA-256 of the key in it, as [`key_of`] gives: who holds that key is the device.
    pub key_sha256: [u8; 32],
    /// When it ends, seconds since 1970.
    pub ends_unix_s: u64,
}

/// A key or certificate that could not be read, made or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file of the state folder.
    #[error("reading or writing {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{0} is damaged; restore it from a backup, or move the state folder away to start a new fleet")]
    Damaged(PathBuf),
    /// Making or signing a certificate.
    #[error("making a certificate")]
    Certificate(#[source] rcgen::Error),
    /// The CSR of a device.
    #[error("the certificate signing request cannot be used")]
    Request(#[source] rcgen::Error),
    /// TLS set-up.
    #[error("setting up TLS")]
    Tls(#[source] rustls::Error),
    /// TLS set-up of client certificates.
    #[error("setting up client certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// A client certificate without a device id as its common name.
    #[error("the certificate names no device")]
    NoIdentity,
}

impl Pki {
    /// Reads what is there and makes what is missing. The server certificate is made anew at every start, so it
    /// always fits the configured names and never runs out while anyone restarts the server once in five years.
    ///
    /// # Errors
    /// When a file cannot be read or written, or holds something else.
    pub fn open(dir: &Path, names: &[String], now_unix_s: u64) -> Result<Self, PkiError> {
        let (ca_pem, issuer) = authority(dir, now_unix_s)?;
        let ca_der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|_| PkiError::Damaged(dir.join("ca.pem")))?;
        let (server_der, server_key) = server_certificate(dir, names, &issuer, now_unix_s)?;
        let token_path = dir.join("api.token");
        let token = read_or_make(&token_path, || secret::random().into_bytes())?;
        let token = text(&token, &token_path)?;
        if token.trim().len() < 32 {
            return Err(PkiError::Damaged(token_path));
        }
        let token_hash = secret::hash(token.trim());
        Ok(Self { ca_pem, ca_der, issuer, server_der, server_key, token_hash })
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Whether this is the hash of the token in the state folder; takes the same time wherever it differs.
    #[must_use]
    pub fn is_owner_token(&self, hash: &[u8; 32]) -> bool {
        secret::same(hash, &self.token_hash)
    }

    /// Signs a device's public key for so long. Only the key is taken from the request: name and use are ours.
    ///
    /// # Errors
    /// When the request cannot be read or its own signature does not fit, so that whoever sent it need not hold the key.
    pub fn sign_device(
        &self,
        device: &DeviceId,
        csr_pem: &str,
        now_unix_s: u64,
        life: Duration,
    ) -> Result<Signed, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(PkiError::Request)?;
        let serial = serial();
        let mut params = params(device.as_str(), now_unix_s, life);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate =
            params.signed_by(&request.public_key, &self.issuer).map_err(PkiError::Certificate)?;
        Ok(Signed {
            pem: certificate.pem(),
            serial,
            sha256: models::bundle::sha256(certificate.der()),
            key_sha256: key_of(certificate.der())?,
            ends_unix_s: now_unix_s + life.as_secs(),
        })
    }

    /// TLS for people, and for devices that fetch files: a browser that has no certificate of our authority asks nobody for one.
    ///
    /// # Errors
    /// When the TLS library refuses key or certificate.
    pub fn web_tls(&self) -> Result<ServerConfig, PkiError> {
        let mut config = self.device_tls()?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// TLS for devices and those who listen: a client certificate must be one of our authority; whoever shows none needs
    /// a user's name and token.
    ///
    /// # Errors
    /// When the TLS library refuses key or certificate.
    pub fn device_tls(&self) -> Result<ServerConfig, PkiError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca_der.clone()).map_err(PkiError::Tls)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(PkiError::Verifier)?;
        let builder = builder()?.with_client_cert_verifier(verifier);
        builder.with_single_cert(self.chain(), self.key()).map_err(PkiError::Tls)
    }

    /// The name that this fleet's servers have at a broker of others; no device can have it.
    pub const BROKER_CLIENT: &'static str = "behaveguard_fleet";

    /// TLS to a broker of others: its certificate must be one of our authority, and so is the one that it is shown, made anew at
    /// every start as the server's is.
    ///
    /// # Errors
    /// When the TLS library refuses key or certificate.
    pub fn broker_client_tls(&self, now_unix_s: u64) -> Result<ClientConfig, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::Certificate)?;
        let mut params = params(Self::BROKER_CLIENT, now_unix_s, 5 * YEAR);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&key, &self.issuer).map_err(PkiError::Certificate)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.ca_der.clone()).map_err(PkiError::Tls)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(VERSIONS);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let builder = builder.map_err(PkiError::Tls)?.with_root_certificates(roots);
        builder.with_client_auth_cert(vec![certificate.der().clone()], key).map_err(PkiError::Tls)
    }

    /// A certificate for a broker of others and its key, in PEM form, good for five years.
    ///
    /// # Errors
    /// When a name is none.
    pub fn sign_broker(&self, names: &[String], now_unix_s: u64) -> Result<(String, String), PkiError> {
        let (certificate, key) = serving("BehaveGuard broker", names, &self.issuer, now_unix_s)?;
        Ok((format!("{}{}", certificate.pem(), self.ca_pem), key.serialize_pem()))
    }

    /// The list of certificates that are worth nothing although they have not ended (RFC 5280, section 5), in PEM form.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn sign_crl(&self, withdrawn: &[Withdrawn], now_unix_s: u64) -> Result<String, PkiError> {
        let at = |unix_s| date_time_ymd(1970, 1, 1) + Duration::from_secs(unix_s);
        let revoked = |one: &Withdrawn| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&one.serial),
            revocation_time: at(one.since_s),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: at(now_unix_s) - DAY,
            next_update: at(now_unix_s) + CRL_LIFE,
            crl_number: SerialNumber::from(now_unix_s),
            issuing_distribution_point: None,
            revoked_certs: withdrawn.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).and_then(|list| list.pem()).map_err(PkiError::Certificate)
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.server_der.clone(), self.ca_der.clone()]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.server_key.serialize_der()))
    }
}

/// The device a verified client certificate belongs to: its only common name.
///
/// # Errors
/// [`PkiError::NoIdentity`] when there is no such name or it is no device id.
pub fn device_of(certificate: &CertificateDer<'_>) -> Result<DeviceId, PkiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| PkiError::NoIdentity)?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next().and_then(|name| name.as_str().ok()).ok_or(PkiError::NoIdentity)?;
    match (DeviceId::parse(name), names.next()) {
        (Ok(device), None) => Ok(device),
        _ => Err(PkiError::NoIdentity),
    }
}

/// SHA-256 of a certificate's public key, in the form of its SubjectPublicKeyInfo.
///
/// # Errors
/// [`PkiError::NoIdentity`] when it is no certificate.
pub fn key_of(certificate: &CertificateDer<'_>) -> Result<[u8; 32], PkiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| PkiError::NoIdentity)?;
    Ok(models::bundle::sha256(parsed.public_key().raw))
}

fn builder() -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, PkiError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider).with_protocol_versions(VERSIONS).map_err(PkiError::Tls)
}

/// Valid from a day ago, because a gateway's clock may be behind.
fn params(common_name: &str, now_unix_s: u64, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = date_time_ymd(1970, 1, 1) + Duration::from_secs(now_unix_s);
    params.not_before = now - DAY;
    params.not_after = now + life;
    params.serial_number = Some(SerialNumber::from_slice(&serial()));
    params
}

/// Random; its first bits make it a positive number of the same length.
fn serial() -> [u8; SERIAL_LEN] {
    let random = models::bundle::sha256(secret::random().as_bytes());
    let mut serial: [u8; SERIAL_LEN] = std::array::from_fn(|at| random[at]);
    serial[0] = (serial[0] & 0x7f) | 0x40;
    serial
}

fn authority(dir: &Path, now_unix_s: u64) -> Result<(String, Issuer<'static, KeyPair>), PkiError> {
    let (pem_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
    // The certificate is written last: without it the key has signed nothing and may be replaced.
    if !pem_path.exists() {
        let key = Zeroizing::new(KeyPair::generate().map_err(PkiError::Certificate)?);
        let mut params = params("BehaveGuard fleet CA", now_unix_s, 20 * YEAR);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&*key).map_err(PkiError::Certificate)?;
        write(&key_path, key_text(&key).as_bytes())?;
        write(&pem_path, certificate.pem().as_bytes())?;
    }
    let pem = text(&read(&pem_path)?, &pem_path)?.to_owned();
    let der = pem::decode(&read(&key_path)?).ok_or_else(|| PkiError::Damaged(key_path.clone()))?;
    let mut key = KeyPair::try_from(der.as_slice()).map_err(|_| PkiError::Damaged(key_path))?;
    // What can be written out again; it signs without.
    key.zeroize();
    let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|_| PkiError::Damaged(pem_path))?;
    Ok((pem, issuer))
}

fn server_certificate(
    dir: &Path,
    names: &[String],
    issuer: &Issuer<'static, KeyPair>,
    now_unix_s: u64,
) -> Result<(CertificateDer<'static>, KeyPair), PkiError> {
    let (certificate, key) = serving("BehaveGuard fleet server", names, issuer, now_unix_s)?;
    write(&dir.join("server.key"), key_text(&key).as_bytes())?;
    write(&dir.join("server.pem"), certificate.pem().as_bytes())?;
    Ok((certificate.der().clone(), key))
}

/// A certificate for something that is connected to under these names, and its key.
fn serving(
    common_name: &str,
    names: &[String],
    issuer: &Issuer<'static, KeyPair>,
    now_unix_s: u64,
) -> Result<(Certificate, KeyPair), PkiError> {
    let key = KeyPair::generate().map_err(PkiError::Certificate)?;
    let mut params = params(common_name, now_unix_s, 5 * YEAR);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    for name in names {
        let san = match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(PkiError::Certificate)?),
        };
        params.subject_alt_names.push(san);
    }
    let certificate = params.signed_by(&key, issuer).map_err(PkiError::Certificate)?;
    Ok((certificate, key))
}

fn read_or_make(path: &Path, make: impl FnOnce() -> Vec<u8>) -> Result<Zeroizing<Vec<u8>>, PkiError> {
    if !path.exists() {
        write(path, &Zeroizing::new(make()))?;
    }
    read(path)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, PkiError> {
    let bytes = fs::read(path).map_err(|source| PkiError::File { path: path.into(), source })?;
    Ok(Zeroizing::new(bytes))
}

fn key_text(key: &KeyPair) -> Zeroizing<String> {
    pem::encode(&Zeroizing::new(key.serialize_der()))
}

fn text<'a>(bytes: &'a [u8], path: &Path) -> Result<&'a str, PkiError> {
    std::str::from_utf8(bytes).map_err(|_| PkiError::Damaged(path.into()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    write_private(path, bytes).map_err(|source| PkiError::File { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn csr(name: &str, san: &str) -> String {
        let mut params = CertificateParams::new(vec![san.to_string()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn only_the_key_of_a_request_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &["localhost".into()], NOW).unwrap();
        let device = DeviceId::parse("gw-1").unwrap();
        let signed = pki.sign_device(&device, &csr("gw-2", "evil.example"), NOW, DAY).unwrap();
        let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
        assert_eq!(device_of(&der).unwrap(), device);
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(parsed.validity().not_after.timestamp(), i64::try_from(signed.ends_unix_s).unwrap());
        assert_eq!(signed.ends_unix_s, NOW + 86_400);
        assert!(parsed.subject_alternative_name().unwrap().is_none());
        assert!(!parsed.is_ca());
        let usage = parsed.extended_key_usage().unwrap().unwrap();
        assert!(usage.value.client_auth && !usage.value.server_auth);
        assert!(pki.sign_device(&device, "-----BEGIN NOTHING-----", NOW, DAY).is_err());
    }

    #[test]
    fn a_request_without_the_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &["localhost".into()], NOW).unwrap();
        let device = DeviceId::parse("gw-1").unwrap();
        let pem = csr("gw-1", "gw-1");
        let mut der = data_encoding::BASE64
            .decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>().as_bytes())
            .unwrap();
        // The last byte belongs to the signature.
        *der.last_mut().unwrap() ^= 1;
        let changed = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            data_encoding::BASE64.encode(&der)
        );
        assert!(pki.sign_device(&device, &pem, NOW, DAY).is_ok());
        assert!(matches!(pki.sign_device(&device, &changed, NOW, DAY), Err(PkiError::Request(_))));
    }

    #[test]
    fn a_withdrawn_certificate_is_in_the_list_by_its_own_number() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &[], NOW).unwrap();
        let device = DeviceId::parse("gw-1").unwrap();
        let sign = || pki.sign_device(&device, &csr("x", "y"), NOW, DAY).unwrap();
        let (gone, stays) = (sign(), sign());
        let list = pki.sign_crl(&[Withdrawn { serial: gone.serial, since_s: NOW - 5 }], NOW).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(list.as_bytes()).unwrap();
        let (_, list) = x509_parser::parse_x509_crl(&pem.contents).unwrap();
        let named: Vec<_> = list.iter_revoked_certificates().map(|one| one.raw_serial().to_vec()).collect();
        let serial = |signed: &Signed| {
            let (_, pem) = x509_parser::pem::parse_x509_pem(signed.pem.as_bytes()).unwrap();
            pem.parse_x509().unwrap().raw_serial().to_vec()
        };
        assert_eq!(named, [serial(&gone)]);
        assert_ne!(serial(&gone), serial(&stays));
        let ends = list.next_update().unwrap().timestamp() as u64;
        assert_eq!(ends, NOW + CRL_LIFE.as_secs());
    }

    #[test]
    fn a_second_start_keeps_the_authority_and_secrets_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), &["localhost".into(), "::1".into()], NOW).unwrap();
        let second = Pki::open(dir.path(), &["other".into()], NOW).unwrap();
        assert_eq!(first.ca_pem, second.ca_pem);
        let token = fs::read_to_string(dir.path().join("api.token")).unwrap();
        assert!(second.is_owner_token(&secret::hash(&token)) && !second.is_owner_token(&secret::hash("x")));
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
    }
}
