//! What a baseline and a program on their way to many devices have in common: a few are first, as if drawn by lot, and watched.

use models::bundle::sha256;

/// What is out of range of what every plan says.
pub(crate) fn problem(canary_percent: u32, wait_s: u32) -> Option<&'static str> {
    if !(1..=100).contains(&canary_percent) {
        Some("canary_percent is from 1 to 100")
    } else if !(10..=2_592_000).contains(&wait_s) {
        Some("wait_s is from 10 to 2592000")
    } else {
        None
    }
}

/// How many of so many devices are first, at least one.
pub(crate) fn first(canary_percent: u32, of: usize) -> usize {
    (of * canary_percent as usize).div_ceil(100).max(1)
}

/// Puts devices in an order as if drawn by lot: others are first each time, not all of one site, and always the same for one `id`.
pub(crate) fn draw<T>(id: u64, devices: &mut [T], name: impl Fn(&T) -> &str) {
    devices.sort_by_cached_key(|device| sha256(format!("{id} {}", name(device)).as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_the_share_asked_for_at_least_one_and_others_each_time() {
        let first_of = |percent, id, n: usize| {
            let mut devices: Vec<String> = (0..n).map(|n| format!("gw-{n}")).collect();
            draw(id, &mut devices, |device| device);
            devices.truncate(first(percent, n));
            devices
        };
        assert_eq!(first_of(10, 1, 200).len(), 20);
        assert_eq!(first_of(1, 1, 30).len(), 1);
        assert_eq!(first_of(100, 1, 30).len(), 30);
        assert_eq!(first_of(10, 1, 200), first_of(10, 1, 200));
        assert_ne!(first_of(10, 1, 200), first_of(10, 2, 200));
    }

    #[test]
    fn what_every_plan_says_has_a_range() {
        assert_eq!(problem(1, 10), None);
        assert_eq!(problem(100, 2_592_000), None);
        for (percent, wait_s, named) in
            [(0, 10, "canary"), (101, 10, "canary"), (1, 9, "wait_s"), (1, 2_592_001, "wait_s")]
        {
            assert!(problem(percent, wait_s).unwrap().starts_with(named));
        }
    }
}
