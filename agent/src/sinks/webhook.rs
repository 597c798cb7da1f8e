//! Alerts by HTTP POST, as JSON.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use models::chain::chain;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use super::{Deliver, Failure, Item};

/// Codes by which a server asks to be tried again: RFC 9110 section 15.5.9 and RFC 6585 section 4.
const TRY_AGAIN: [u16; 2] = [408, 429];

pub(super) struct Webhook {
    url: String,
    token_file: Option<PathBuf>,
    ca_file: PathBuf,
    timeout: Duration,
    client: Option<ureq::Agent>,
}

impl Webhook {
    pub(super) fn new(url: String, token_file: Option<PathBuf>, ca_file: PathBuf, timeout: Duration) -> Self {
        Self { url, token_file, ca_file, timeout, client: None }
    }

    fn connect(&self) -> Result<ureq::Agent, Failure> {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(self.timeout));
        if self.url.starts_with("https://") {
            let tls = TlsConfig::builder()
                .provider(TlsProvider::Rustls)
                .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .root_certs(RootCerts::new_with_certs(&trusted(&self.ca_file)?))
                .build();
            config = config.tls_config(tls);
        }
        Ok(config.build().new_agent())
    }
}

impl Deliver for Webhook {
    fn deliver(&mut self, item: &Item) -> Result<(), Failure> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.connect()?,
        };
        let mut request = client.post(&self.url).content_type("application/json");
        if let Some(path) = &self.token_file {
            // Read each time: it may be exchanged while the agent runs.
            let token = fs::read_to_string(path)
                .map_err(|error| Failure::Later(format!("{}: {error}", path.display())))?;
            request = request.header("authorization", format!("Bearer {}", token.trim()));
        }
        let answer = request.send(item.json.as_bytes());
        let status =
            answer.map_err(|error| Failure::Later(format!("{}: {}", self.url, chain(&error))))?.status();
        self.client = Some(client);
        let refused = format!("{} answered {status}", self.url);
        match status.as_u16() {
            200..=299 => Ok(()),
            code if code >= 500 || TRY_AGAIN.contains(&code) => Err(Failure::Later(refused)),
            _ => Err(Failure::Never(refused)),
        }
    }
}

fn trusted(path: &Path) -> Result<Vec<Certificate<'static>>, Failure> {
    let failed = |what: String| Failure::Later(format!("certificates in {}: {what}", path.display()));
    let read = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    // One that cannot be read is not trusted; the others are.
    let all: Vec<_> = read.filter_map(Result::ok).map(|der| Certificate::from_der(&der).to_owned()).collect();
    if all.is_empty() { Err(failed("there are none".into())) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::item;
    use super::*;
    use models::policy::Severity;
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::net::TcpListener;
    use std::thread;

    /// Answers one request after the other, and gives what it read.
    fn serve<S: std::io::Read + std::io::Write>(
        mut stream: S,
        answers: &[&str],
    ) -> Vec<(Vec<String>, String)> {
        let mut read = Vec::new();
        for answer in answers {
            let mut reader = BufReader::new(&mut stream);
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
                head.push(line.trim().to_ascii_lowercase());
            }
            let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            read.push((head, String::from_utf8(body).unwrap()));
            write!(stream, "HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
        read
    }

    #[test]
    fn the_status_decides_and_the_token_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        fs::write(&token, "secret\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let answers = ["204 No Content", "503 Busy", "429 Slow", "400 Bad", "302 Found"];
        let server = thread::spawn(move || serve(listener.accept().unwrap().0, &answers));
        let mut hook = Webhook::new(url, Some(token), "/none".into(), Duration::from_secs(10));
        let item = item(Severity::High, "x");
        hook.deliver(&item).unwrap();
        for _ in 0..2 {
            assert!(matches!(hook.deliver(&item), Err(Failure::Later(_))));
        }
        for _ in 0..2 {
            assert!(
                matches!(hook.deliver(&item), Err(Failure::Never(reason)) if reason.contains("answered"))
            );
        }
        let read = server.join().unwrap();
        let (head, body) = &read[0];
        assert_eq!((&*head[0], body), ("post /hook http/1.1", &item.json));
        assert!(head.contains(&"authorization: bearer secret".into()), "{head:?}");
        assert!(head.contains(&"content-type: application/json".into()), "{head:?}");
    }

    #[test]
    fn tls_is_checked_against_the_named_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (good, other) = (dir.path().join("good.pem"), dir.path().join("other.pem"));
        fs::write(&good, own.cert.pem()).unwrap();
        let stranger = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        fs::write(&other, stranger.cert.pem()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let server = thread::spawn(move || {
            let mut last = Vec::new();
            for answers in [&["200 OK"][..], &[]] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut tls = rustls::Stream::new(&mut session, &mut stream);
                if answers.is_empty() {
                    // The client goes away in the middle of the handshake.
                    let _ = tls.read(&mut [0; 16]);
                } else {
                    last = serve(&mut tls, answers);
                }
            }
            last
        });
        let item = item(Severity::High, "x");
        let hook = |ca: &Path| Webhook::new(url.clone(), None, ca.to_owned(), Duration::from_secs(10));
        hook(&good).deliver(&item).unwrap();
        let refused = hook(&other).deliver(&item);
        assert!(
            matches!(&refused, Err(Failure::Later(reason)) if reason.contains("certificate")),
            "{refused:?}"
        );
        assert_eq!(server.join().unwrap()[0].1, item.json);
        let missing = hook(Path::new("/no/such/file")).deliver(&item);
        assert!(matches!(missing, Err(Failure::Later(reason)) if reason.contains("/no/such/file")));
    }
}
