//! What a lost link is told as.

use models::chain::chain;
use rumqttc::{ConnectReturnCode, ConnectionError};

use crate::clock;

/// Why there is no link, and what to do about it.
pub(super) fn why(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized) => {
            "the fleet does not know this device's certificate or revoked it: enrol it again with a new token"
                .into()
        }
        ConnectionError::ConnectionRefused(code) => format!("the fleet refused the connection ({code:?})"),
        error => {
            let text = chain(error);
            match hint(&text) {
                Some(hint) => format!("{text}: {hint}"),
                None => text,
            }
        }
    }
}

/// What is done about an expired certificate.
pub(super) const RENEWS: &str = "it is being renewed";
pub(super) const ENROL: &str = "enrol it again with a new token; what waits is kept";

/// Whether the fleet refused this device's certificate because its time is over: rustls 0.23 names the alert of TLS.
pub(super) fn has_expired(error: &ConnectionError) -> bool {
    let text = chain(error);
    ["fatal alert: CertificateExpired", "fatal alert: certificate_expired"]
        .iter()
        .any(|name| text.contains(name))
}

/// What to do when the fleet's certificate is not good now: rustls 0.23 names the error. An alert is about ours.
fn hint(text: &str) -> Option<String> {
    if text.contains("fatal alert") {
        return None;
    }
    ["Expired", "NotValidYet", "certificate expired", "certificate not valid yet"]
        .iter()
        .any(|name| text.contains(name))
        .then(|| {
            format!("is this device's clock right? It is {} s after 1970 by it", clock::now().unix_ms / 1000)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_welcome_any_more_is_told_what_to_do() {
        let refused = ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized);
        assert_eq!(
            why(&refused),
            "the fleet does not know this device's certificate or revoked it: enrol it again with a new token"
        );
    }
}
