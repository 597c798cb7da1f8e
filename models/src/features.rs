//! A closed window to its vector of 427 values in 0 to 1.

use crate::schema::{BIGRAM_BASE, FEATURES, NAMED, NAMED_BASE, SYSCALL_SLOTS};
use crate::window::Window;

/// One window's features, in the order of [`crate::schema`].
pub type Vector = [f32; FEATURES];

/// The longest window, bounded by the 512 activity slots of 100 ms that the kernel keeps.
pub const WINDOW_MAX_MS: u64 = 50_000;

const SLOT_MS: u64 = 100;

/// Extracts all features. Pure: the same window gives the same bits.
///
/// ```
/// let window = models::window::Window::new(1, 0);
/// let vector = models::features::extract(&window);
/// assert!(vector.iter().all(|value| (0.0..=1.0).contains(value)));
/// ```
#[must_use]
pub fn extract(window: &Window) -> Vector {
    let mut out = [0.0; FEATURES];
    let calls = &window.syscalls;
    let total = as_f32(calls.total().max(1));
    for (value, n) in out.iter_mut().zip(&calls.calls) {
        *value = as_f32(u64::from(*n)) / total;
    }
    let pairs = as_f32(calls.bigrams.iter().map(|n| u64::from(*n)).sum::<u64>().max(1));
    for (value, n) in out[BIGRAM_BASE..NAMED_BASE].iter_mut().zip(&calls.bigrams) {
        *value = as_f32(u64::from(*n)) / pairs;
    }
    for ((value, raw), feature) in out[NAMED_BASE..].iter_mut().zip(raw(window)).zip(NAMED) {
        *value = (raw / feature.cap).clamp(0.0, 1.0);
    }
    out
}

/// The named features before their caps.
fn raw(window: &Window) -> [f32; NAMED.len()] {
    let sums = &window.sums;
    let duration_ms = (window.closed_ns.saturating_sub(window.opened_ns) / 1_000_000).max(1);
    let seconds = as_f32(duration_ms) / 1000.0;
    let count = |n: u32| as_f32(u64::from(n));
    let flag = |on: bool| f32::from(u8::from(on));
    let per_second = |n: u64| as_f32(n) / seconds;
    let mean = |sum: f32, n: u32| if n == 0 { 0.0 } else { sum / count(n) };
    let slots = duration_ms.div_ceil(SLOT_MS);
    let active = window.syscalls.active_slots();
    let lolbins: u32 = sums.lolbins.iter().map(|n| u32::from(*n)).sum();
    let mut out = [0.0; NAMED.len()];
    let head = [
        as_f32(window.addresses.len() as u64),
        as_f32(window.ports.len() as u64),
        per_second(u64::from(sums.connections)),
        per_second(sums.bytes_sent),
        per_second(sums.bytes_recv),
        flag(sums.tor_port),
        flag(sums.rfc1918),
        mean(as_f32(sums.dns_bytes), sums.dns_queries),
        per_second(u64::from(sums.dns_queries)),
        count(sums.dns_bytes_max),
        as_f32(window.files.len() as u64),
        count(sums.system_dir_files),
        count(sums.executables_opened),
        count(sums.files_written),
        mean(sums.path_entropy_sum, sums.paths),
        count(sums.log_deletions),
        count(sums.time_changes),
        count(sums.children),
        flag(sums.shell),
        flag(sums.root_gained),
        flag(sums.injected),
        count(sums.namespace_changes),
        flag(sums.pivot_root),
        count(lolbins),
    ];
    let (first, rest) = out.split_at_mut(head.len());
    first.copy_from_slice(&head);
    for (value, n) in rest.iter_mut().zip(sums.lolbins) {
        *value = f32::from(n);
    }
    let time = [as_f32(duration_ms), per_second(window.syscalls.total()), count(active) / as_f32(slots)];
    rest[sums.lolbins.len()..].copy_from_slice(&time);
    out
}

/// The non-zero values with their indices, as sent for training.
#[must_use]
pub fn to_sparse(vector: &Vector) -> Vec<(u16, f32)> {
    (0_u16..).zip(vector).filter(|(_, value)| **value != 0.0).map(|(index, value)| (index, *value)).collect()
}

/// The vector again; `None` when an index is out of range or a value is not in 0 to 1.
#[must_use]
pub fn from_sparse(sparse: &[(u16, f32)]) -> Option<Vector> {
    let mut out = [0.0; FEATURES];
    for (index, value) in sparse {
        if !(0.0..=1.0).contains(value) {
            return None;
        }
        *out.get_mut(usize::from(*index))? = *value;
    }
    Some(out)
}

#[allow(clippy::cast_precision_loss, reason = "counts of one window; 24 bits of precision are enough")]
fn as_f32(n: u64) -> f32 {
    n as f32
}

const _: () = assert!(SYSCALL_SLOTS == BIGRAM_BASE);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::index;

    fn window() -> Window {
        let mut window = Window::new(1, 0);
        window.closed_ns = 2_000_000_000;
        window.syscalls.calls[0] = 30;
        window.syscalls.calls[1] = 10;
        window.syscalls.bigrams[49] = 5;
        window.syscalls.active[0] = 0b1111;
        window
    }

    #[test]
    fn frequencies_are_shares_of_all_calls() {
        let mut window = window();
        window.syscalls.unmapped = 10;
        let vector = extract(&window);
        assert_eq!(&vector[..3], &[0.6, 0.2, 0.0]);
        assert_eq!(vector[BIGRAM_BASE + 49], 1.0);
    }

    #[test]
    fn rates_are_per_second_of_the_window() {
        let vector = extract(&window());
        assert_eq!(vector[index("events_per_second")], 0.02);
        assert_eq!(vector[index("cpu_time_ratio")], 0.2);
        assert_eq!(vector[index("window_duration_ms")], 2000.0 / 60_000.0);
    }

    #[test]
    fn values_saturate_at_their_caps() {
        let mut window = window();
        window.sums.children = 1000;
        window.sums.lolbins[14] = 500;
        let vector = extract(&window);
        assert_eq!(vector[index("child_processes_spawned")], 1.0);
        assert_eq!(vector[index("lolbin_chmod")], 1.0);
        assert_eq!(vector[index("lolbin_execution_count")], 1.0);
    }

    #[test]
    fn a_sparse_vector_is_the_same_vector() {
        let vector = extract(&window());
        assert_eq!(from_sparse(&to_sparse(&vector)), Some(vector));
        assert_eq!(from_sparse(&[(427, 0.5)]), None);
        assert_eq!(from_sparse(&[(0, f32::NAN)]), None);
    }
}
