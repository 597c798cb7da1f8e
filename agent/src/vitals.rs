//! What the agent itself costs, from `/proc/self`.

use std::fs;

/// Resident memory of this process, bytes; 0 where `/proc` does not say.
#[must_use]
pub fn rss_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// CPU time of this process since its start, milliseconds.
#[must_use]
pub fn cpu_ms() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15; the second field is in brackets and may hold spaces.
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    ticks * 1000 / rustix::param::clock_ticks_per_second().max(1)
}

/// The kernel's release, e.g. `6.1.0-13-amd64`.
#[must_use]
pub fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Which boot of the machine this is.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Whether somebody starts this process again when it ends: systemd, or what else runs as the first process and started it. To be
/// asked at the start: whoever loses his parent is later given to that one as well.
#[must_use]
pub fn is_supervised() -> bool {
    std::env::var_os("INVOCATION_ID").is_some()
        || rustix::process::getppid().is_none_or(|parent| parent.is_init())
}

/// The machine's name in the network.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_uses_time() {
        assert!(rss_bytes() > 100_000);
        let mut n = 0_u64;
        while cpu_ms() == 0 {
            n = std::hint::black_box(n + 1);
        }
        assert!(!kernel().is_empty());
    }
}
