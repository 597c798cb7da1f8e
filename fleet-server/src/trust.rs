//! Whose certificates servers of others must have: of authorities that an operator named, or that this machine trusts.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// Certificates that are trusted when nothing else is said, as Debian, Alpine and Fedora have them.
const TRUSTED: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Those of a PEM text, or this machine's.
pub(crate) fn roots(own: Option<&str>) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = match own {
        Some(pem) => pem.as_bytes().to_vec(),
        None => TRUSTED.iter().find_map(|path| std::fs::read(path).ok()).ok_or(
            "this machine has no list of trusted certificates: install ca-certificates, or name an authority",
        )?,
    };
    let read = CertificateDer::pem_slice_iter(&pem);
    let all: Vec<_> = read.filter_map(Result::ok).collect();
    if all.is_empty() { Err("there is no certificate in PEM form".into()) } else { Ok(all) }
}

/// TLS to servers that those of a PEM text signed for, or this machine's.
pub(crate) fn tls(own: Option<&str>) -> Result<TlsConfig, String> {
    let roots: Vec<_> = roots(own)?.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .build())
}

/// The same of a file.
pub(crate) fn tls_of(own: Option<&Path>) -> Result<TlsConfig, String> {
    let read =
        |path: &Path| std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    tls(own.map(read).transpose()?.as_deref())
}
