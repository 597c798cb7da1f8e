//! Starts the real programs, talks to them as users do, and ends them: for the demo and for the end-to-end tests.
#![forbid(unsafe_code)]

pub mod agent;
pub mod broker;
pub mod browser;
pub mod cgroup;
pub mod fleet;
pub mod gateway;
pub mod postgres;
pub mod process;
pub mod scene;
pub mod storm;
pub mod story;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

/// Something that did not happen, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failed(pub String);

impl Failed {
    /// What failed, and why.
    pub fn new(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}

/// A port of loopback on which nobody listens now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16, Failed> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..100 {
        // Below those that the kernel gives to whoever connects, and another one for each test of this process.
        let nth = std::process::id().wrapping_mul(101).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + u16::try_from(nth % 20_000).unwrap_or(0);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Failed("no port of a hundred is free".into()))
}

/// How much longer than on a quiet machine a test waits before it says that something does not happen.
pub const PATIENCE: u32 = 3;

/// Asks again and again until the answer is there, [`PATIENCE`] times as long as it takes on a quiet machine.
///
/// # Errors
/// When it is not there in time, or an answer is an error.
pub fn wait_for<T>(
    what: &str,
    within: Duration,
    mut ask: impl FnMut() -> Result<Option<T>, Failed>,
) -> Result<T, Failed> {
    let started = SystemTime::now();
    let within = within * PATIENCE;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if started.elapsed().unwrap_or_default() > within {
            return Err(Failed(format!("{what} did not happen within {} s", within.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
