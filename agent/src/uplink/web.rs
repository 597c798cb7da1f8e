//! Files of the fleet over HTTPS, in ranges (RFC 9110, section 14): one round trip for what takes sixteen over MQTT, and nothing
//! that a broker has to carry. A device that cannot reach the fleet's web address goes on over MQTT where this stopped.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use data_encoding::HEXLOWER;
use models::chain::chain;
use ureq::http::{StatusCode, header};

use super::transfer::Piece;
use crate::backoff::jittered;
use crate::clock::nanoseconds;
use crate::enroll::{EnrollError, Identity};

/// Bytes asked for at once.
pub(super) const RANGE_MAX: u32 = 256 * 1024;

/// For each range; a link slower than 2 KiB/s is left to MQTT.
pub(super) const TIMEOUT: Duration = Duration::from_secs(120);

/// A connection that is not used for this long is closed.
const IDLE: Duration = Duration::from_secs(10);

/// Pieces asked for that wait: one for each of those that fetch, and again at a new link.
pub(super) const QUEUE: usize = 4;

/// From the first failure to the next try; twice as long after each.
const RETRY_MIN: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// Whether HTTPS is worth a try, and whom to ask.
#[derive(Debug)]
pub(super) struct Web {
    to: SyncSender<Piece>,
    usable_from_ns: u64,
    wait: Duration,
}

impl Web {
    pub(super) fn new(to: SyncSender<Piece>) -> Self {
        Self { to, usable_from_ns: 0, wait: RETRY_MIN }
    }

    /// Whether to ask it for the next piece.
    pub(super) fn is_usable(&self, now_ns: u64) -> bool {
        now_ns >= self.usable_from_ns
    }

    /// Asks; `false` when too much waits.
    pub(super) fn ask(&self, piece: Piece) -> bool {
        self.to.try_send(piece).is_ok()
    }

    /// A piece came.
    pub(super) fn worked(&mut self) {
        self.wait = RETRY_MIN;
    }

    /// None came; for how long it is left alone.
    pub(super) fn failed(&mut self, now_ns: u64) -> Duration {
        let wait = jittered(self.wait);
        self.usable_from_ns = now_ns + nanoseconds(wait);
        self.wait = (self.wait * 2).min(RETRY_MAX);
        wait
    }
}

/// Why a piece did not come.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("this device's key and certificate")]
    Identity(#[from] EnrollError),
    #[error("asking {url}")]
    Asking {
        url: String,
        #[source]
        source: Box<ureq::Error>,
    },
    #[error("{url} answered {status}")]
    Refused { url: String, status: StatusCode },
    #[error("{url} gave nothing")]
    Empty { url: String },
}

/// Serves pieces until nobody asks any more.
pub(super) struct Files {
    pub(super) state: PathBuf,
    pub(super) identity: Identity,
    pub(super) asked: Receiver<Piece>,
}

impl Files {
    /// Tells each piece, or in a sentence why it does not come.
    pub(super) fn serve(self, tell: impl Fn(&Piece, Result<Vec<u8>, String>)) {
        let mut client = None;
        loop {
            let next = match client {
                Some(_) => self.asked.recv_timeout(IDLE),
                None => self.asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(piece) => {
                    let bytes = self.fetch(&mut client, &piece);
                    if bytes.is_err() {
                        client = None;
                    }
                    tell(&piece, bytes.map_err(|error| chain(&error)));
                }
                Err(RecvTimeoutError::Timeout) => client = None,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn fetch(&self, client: &mut Option<ureq::Agent>, piece: &Piece) -> Result<Vec<u8>, Failed> {
        let client = match client {
            Some(client) => client,
            // With the certificate as it is now: it may have been renewed.
            None => client.insert(self.identity.web(&self.state, TIMEOUT)?),
        };
        let url = format!("{}/api/v1/files/{}", self.identity.url, HEXLOWER.encode(&piece.sha256));
        let failed = |source: ureq::Error| Failed::Asking { url: url.clone(), source: Box::new(source) };
        let range = format!("bytes={}-{}", piece.offset, piece.offset + piece.len - 1);
        let mut answer = client.get(&url).header(header::RANGE, range).call().map_err(failed)?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Err(Failed::Refused { status: answer.status(), url });
        }
        let body = answer.body_mut().with_config().limit(u64::from(piece.len) + 1);
        let bytes = body.read_to_vec().map_err(failed)?;
        if bytes.is_empty() { Err(Failed::Empty { url }) } else { Ok(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::super::transfer::Way;
    use super::*;

    #[test]
    fn it_is_left_alone_for_longer_after_each_failure() {
        let (to, _asked) = sync_channel(1);
        let mut web = Web::new(to);
        assert!(web.is_usable(0));
        let first = web.failed(5);
        assert!(!web.is_usable(5) && web.is_usable(5 + nanoseconds(first)));
        for _ in 0..20 {
            web.failed(5);
        }
        assert!(web.failed(5) > 10 * first);
        web.worked();
        assert!(web.failed(5) < 10 * first);
    }

    #[test]
    fn what_cannot_wait_is_told() {
        let (to, _asked) = sync_channel(1);
        let web = Web::new(to);
        let piece = Piece { sha256: [1; 32], offset: 0, len: 1, way: Way::Web };
        assert!(web.ask(piece) && !web.ask(piece));
    }
}
