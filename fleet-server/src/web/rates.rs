//! How many requests each client made in this minute.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// A minute, in milliseconds.
const WINDOW_MS: u64 = 60_000;

/// Clients that are counted apart; further ones share one count.
const CLIENTS_MAX: usize = 10_000;

/// Who is counted: a user's token, or an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// SHA-256 of a good token.
    Token([u8; 32]),
    /// Someone without one.
    Address(IpAddr),
    /// Whoever came when there were too many.
    Others,
}

/// What a client has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    limit: u32,
    /// Requests in this minute after this one; `None` when this one is too many.
    remaining: Option<u32>,
    /// Seconds until the next minute begins.
    reset_s: u64,
}

/// Counts of all clients.
#[derive(Debug)]
pub struct Rates {
    limit: u32,
    clients: Mutex<HashMap<Client, (u64, u32)>>,
}

impl Rates {
    /// So many requests a minute for each.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self { limit, clients: Mutex::default() }
    }

    /// Counts one request, unless it is too many.
    pub(super) fn take(&self, client: Client, now_ms: u64) -> Left {
        let mut clients = self.clients();
        if clients.len() >= CLIENTS_MAX && !clients.contains_key(&client) {
            clients.retain(|_, (since_ms, _)| now_ms.abs_diff(*since_ms) < WINDOW_MS);
        }
        let full = clients.len() >= CLIENTS_MAX && !clients.contains_key(&client);
        let (since_ms, count) =
            clients.entry(if full { Client::Others } else { client }).or_insert((now_ms, 0));
        if now_ms.abs_diff(*since_ms) >= WINDOW_MS {
            (*since_ms, *count) = (now_ms, 0);
        }
        let remaining = self.limit.checked_sub(*count + 1);
        if remaining.is_some() {
            *count += 1;
        }
        Left { limit: self.limit, remaining, reset_s: reset_s(*since_ms, now_ms) }
    }

    /// What one more request would be given.
    pub(super) fn look(&self, client: Client, now_ms: u64) -> Left {
        let (since_ms, count) = match self.clients().get(&client) {
            Some((since_ms, count)) if now_ms.abs_diff(*since_ms) < WINDOW_MS => (*since_ms, *count),
            _ => (now_ms, 0),
        };
        let remaining = self.limit.checked_sub(count + 1);
        Left { limit: self.limit, remaining, reset_s: reset_s(since_ms, now_ms) }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Client, (u64, u32)>> {
        // Each change is one map operation, so a panic elsewhere leaves the map whole.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reset_s(since_ms: u64, now_ms: u64) -> u64 {
    WINDOW_MS.saturating_sub(now_ms.abs_diff(since_ms)).div_ceil(1000)
}

impl Left {
    /// Whether this request is within the rate.
    pub(super) fn is_enough(self) -> bool {
        self.remaining.is_some()
    }

    /// As the headers of draft-ietf-httpapi-ratelimit-headers-03, and `Retry-After` for one too many.
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        let mut put = |name: &'static str, value: u64| {
            headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
        };
        put("ratelimit-limit", self.limit.into());
        put("ratelimit-remaining", self.remaining.unwrap_or(0).into());
        put("ratelimit-reset", self.reset_s);
        if self.remaining.is_none() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(self.reset_s));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> Client {
        Client::Address(IpAddr::from(std::net::Ipv4Addr::from(n)))
    }

    #[test]
    fn each_client_has_so_many_a_minute_and_is_told_when_it_may_again() {
        let rates = Rates::new(3);
        let left: Vec<_> = (0..4).map(|n| rates.take(address(1), 1000 + n * 1000).remaining).collect();
        assert_eq!(left, [Some(2), Some(1), Some(0), None]);
        assert_eq!(rates.take(address(2), 5000).remaining, Some(2));
        let refused = rates.take(address(1), 31_000);
        assert_eq!((refused.remaining, refused.reset_s), (None, 30));
        assert!(!rates.look(address(1), 31_000).is_enough());
        assert_eq!(rates.take(address(1), 61_000).remaining, Some(2), "the next minute");
        assert_eq!(rates.take(address(1), 900).remaining, Some(2), "the clock was set back by a minute");
    }

    #[test]
    fn more_clients_than_are_counted_apart_share_one_count() {
        let rates = Rates::new(2);
        for n in 0..CLIENTS_MAX as u32 {
            assert!(rates.take(address(n), 0).is_enough());
        }
        assert!(rates.take(address(1_000_000), 1).is_enough());
        assert!(rates.take(address(1_000_001), 1).is_enough());
        assert!(!rates.take(address(1_000_002), 1).is_enough());
        assert!(rates.take(address(5), 1).is_enough(), "a known one is counted apart");
        assert!(rates.take(address(1_000_002), WINDOW_MS + 1).is_enough(), "the old ones are gone");
        assert!(rates.clients().len() < 10);
    }
}
