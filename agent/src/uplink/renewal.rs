//! The device's certificate: what TLS shows, and when it is renewed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use models::chain::chain;
use rustls::ClientConfig;

use crate::backoff::jittered;
use crate::clock::{self, Now, nanoseconds};
use crate::enroll::{EnrollError, Identity};

/// From the first failed renewal to the next try; twice as long after each.
const RETRY_MIN: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// Key and certificate, of one thread.
pub(super) struct Credentials {
    state: PathBuf,
    identity: Identity,
    tls: Arc<ClientConfig>,
    /// The fleet said so, whatever this device's clock says.
    expired: bool,
    next_try_ns: u64,
    wait: Duration,
}

impl Credentials {
    pub(super) fn new(state: PathBuf, identity: Identity) -> Result<Self, EnrollError> {
        let tls = Arc::new(identity.tls(&state)?);
        Ok(Self { state, identity, tls, expired: false, next_try_ns: 0, wait: RETRY_MIN })
    }

    pub(super) fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls)
    }

    /// The fleet refused the certificate because its time is over.
    pub(super) fn set_expired(&mut self) {
        self.expired = true;
    }

    /// Whether this device can renew it: it knows where.
    pub(super) fn is_renewable(&self) -> bool {
        !self.identity.url.is_empty()
    }

    /// Whether it should be renewed now.
    pub(super) fn is_due(&self, now: Now) -> bool {
        let wanted = self.expired || self.identity.is_due(now.unix_ms / 1000);
        wanted && self.is_renewable() && now.boot_ns >= self.next_try_ns
    }

    /// Renews it; `false` when that failed, and the old one stays in use.
    pub(super) fn renew(&mut self) -> bool {
        let renewed = self.identity.renew(&self.state).and_then(|()| self.identity.tls(&self.state));
        match renewed {
            Ok(tls) => {
                self.tls = Arc::new(tls);
                self.expired = false;
                self.wait = RETRY_MIN;
                self.next_try_ns = clock::boot_ns() + nanoseconds(RETRY_MIN);
                log::info!("this device's certificate was renewed");
                true
            }
            Err(error) => {
                let wait = jittered(self.wait);
                self.next_try_ns = clock::boot_ns() + nanoseconds(wait);
                self.wait = (self.wait * 2).min(RETRY_MAX);
                log::warn!(
                    "this device's certificate was not renewed: {}; trying again in {} s",
                    chain(&error),
                    wait.as_secs()
                );
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(url: &str) -> Credentials {
        let identity = Identity {
            device: "gw".into(),
            host: "h".into(),
            port: 1,
            bundle_keys: vec![],
            url: url.into(),
            renew_after_unix_s: 1000,
        };
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let state = PathBuf::from("/nowhere");
        Credentials { state, identity, tls: Arc::new(tls), expired: false, next_try_ns: 0, wait: RETRY_MIN }
    }

    #[test]
    fn it_is_renewed_when_its_time_comes_or_the_fleet_says_that_it_is_over() {
        let at = |unix_s: u64| Now { boot_ns: 5, unix_ms: unix_s * 1000 };
        let mut credentials = credentials("https://h:1");
        assert!(!credentials.is_due(at(999)));
        assert!(credentials.is_due(at(1000)));
        credentials.set_expired();
        assert!(credentials.is_due(at(0)), "this device's clock is wrong");
        assert!(!super::tests::credentials("").is_due(at(1000)), "it does not know where");
    }

    #[test]
    fn a_failed_renewal_is_not_tried_again_at_once() {
        let mut credentials = credentials("https://h:1");
        assert!(!credentials.renew(), "there is no key");
        let now = clock::now();
        assert!(!credentials.is_due(now));
        let later = Now { boot_ns: now.boot_ns + nanoseconds(RETRY_MIN), ..now };
        assert!(credentials.is_due(later));
    }
}
