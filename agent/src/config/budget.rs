//! Sizes that follow from the memory budget.

use super::{Config, Kernel};

/// The budget that the defaults are for.
pub const BUDGET: u64 = 64 << 20;

/// Keys that follow from it, unless the operator says otherwise.
pub(crate) const FOLLOWING: &[&str] = &[
    "programs_max",
    "processes_max",
    "models_max",
    "kernel.processes_max",
    "kernel.grams_max",
    "kernel.learned_max",
    "kernel.dns_sockets_max",
    "kernel.urgent_ring",
    "kernel.bulk_ring",
];

impl Config {
    /// The defaults of an agent that has this much memory, in bytes, for itself and for the kernel's maps.
    #[must_use]
    pub fn within(budget: u64) -> Self {
        let defaults = Self { memory_budget: budget, ..Self::default() };
        if budget == BUDGET {
            return defaults;
        }
        let number = |default: u32, least: u32| {
            let scaled = u64::from(default) * budget / BUDGET;
            u32::try_from(scaled).unwrap_or(u32::MAX).clamp(least, default.saturating_mul(16))
        };
        // A ring is a power of two; the next lower one.
        let ring = |default: u64| {
            let scaled = (default.saturating_mul(budget) / BUDGET).max(64 * 1024);
            (1 << scaled.ilog2()).min(16 * default)
        };
        let of = &defaults.kernel;
        let kernel = Kernel {
            processes_max: number(of.processes_max, 64),
            grams_max: number(of.grams_max, 1024),
            learned_max: number(of.learned_max, 1024),
            dns_sockets_max: number(of.dns_sockets_max, 16),
            urgent_ring: ring(of.urgent_ring),
            bulk_ring: ring(of.bulk_ring),
            ..of.clone()
        };
        Self {
            // More programs than the default are learned only on purpose: each costs the fleet, too.
            programs_max: number(defaults.programs_max, 16).min(4096),
            processes_max: number(defaults.processes_max, 64).min(65_536),
            models_max: (defaults.models_max * budget / BUDGET).max(1 << 20),
            kernel,
            ..defaults
        }
    }

    /// A key of [`FOLLOWING`] as TOML.
    pub(crate) fn following(&self, key: &str) -> Option<String> {
        let kernel = &self.kernel;
        let number = |n: u32| Some(n.to_string());
        let size = |bytes: u64| Some(format!("\"{}KiB\"", bytes / 1024));
        match key {
            "programs_max" => number(self.programs_max),
            "processes_max" => number(self.processes_max),
            "models_max" => size(self.models_max),
            "kernel.processes_max" => number(kernel.processes_max),
            "kernel.grams_max" => number(kernel.grams_max),
            "kernel.learned_max" => number(kernel.learned_max),
            "kernel.dns_sockets_max" => number(kernel.dns_sockets_max),
            "kernel.urgent_ring" => size(kernel.urgent_ring),
            "kernel.bulk_ring" => size(kernel.bulk_ring),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_budget_and_what_is_said_counts() {
        assert_eq!(Config::within(BUDGET), Config::default());
        let less = Config::parse("memory_budget = \"48MiB\"\nprocesses_max = 9000\n").unwrap();
        assert_eq!((less.models_max, less.programs_max), (15 << 20, 192));
        assert_eq!((less.kernel.bulk_ring, less.kernel.urgent_ring), (512 * 1024, 128 * 1024));
        assert_eq!(less.processes_max, 9000);
        let most = Config::within(16 << 30);
        assert!(most.kernel.bulk_ring <= 256 << 20 && most.kernel.grams_max <= 4_194_304);
        // What is scaled is a value that the key may have.
        for budget in [48_u64 << 20, 100 << 20, 1 << 30] {
            let config = Config::within(budget);
            let text: String = FOLLOWING
                .iter()
                .map(|key| {
                    let value = config.following(key).unwrap();
                    match key.split_once('.') {
                        Some((table, key)) => format!("{table}.{key} = {value}\n"),
                        None => format!("{key} = {value}\n"),
                    }
                })
                .collect();
            let spelled = Config::parse(&text).unwrap();
            let models_max = config.models_max / 1024 * 1024;
            assert_eq!(Config { memory_budget: budget, ..spelled }, Config { models_max, ..config });
        }
    }
}
