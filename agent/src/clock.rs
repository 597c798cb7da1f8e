//! The only place in the agent that asks for the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// One instant on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// `CLOCK_BOOTTIME`, nanoseconds: the clock of kernel records and of every interval.
    pub boot_ns: u64,
    /// Wall clock, milliseconds since 1970: what is told to people. It may jump.
    pub unix_ms: u64,
}

/// Both clocks now.
#[must_use]
pub fn now() -> Now {
    Now { boot_ns: boot_ns(), unix_ms: unix_ms() }
}

/// `CLOCK_BOOTTIME` in nanoseconds.
#[must_use]
pub fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// A length of time in nanoseconds; one that does not fit is the longest that does.
#[must_use]
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
