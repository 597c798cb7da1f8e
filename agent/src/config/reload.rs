//! Another configuration while the agent runs: what differs, and what of it can be used.

use super::{Config, KEYS, QuarantineRule};

impl Config {
    /// What of another configuration can be used while the agent runs, and the rest of this one; see [`Key::applied`].
    #[must_use]
    pub fn reloaded(&self, new: &Self) -> Self {
        Self {
            heartbeat: new.heartbeat,
            models_max: new.models_max,
            policy: new.policy.clone(),
            alert_budget: new.alert_budget,
            samples: new.samples,
            lolbins: new.lolbins.clone(),
            redact: new.redact.clone(),
            cpu_budget: new.cpu_budget,
            quarantine: QuarantineRule {
                allowed: self.quarantine.allowed,
                reachable: new.quarantine.reachable.clone(),
            },
            update: new.update.clone(),
            contain: new.contain.clone(),
            sinks: new.sinks.clone(),
            ..self.clone()
        }
    }

    /// Names of keys that differ, in the table's order.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<String> {
        let (kernel, theirs) = (&self.kernel, &other.kernel);
        let differs = |name: &str| match name {
            "state" => self.state != other.state,
            "window" => self.window != other.window,
            "watch" => self.watch != other.watch,
            "heartbeat" => self.heartbeat != other.heartbeat,
            "programs_max" => self.programs_max != other.programs_max,
            "processes_max" => self.processes_max != other.processes_max,
            "outbox_max" => self.outbox_max != other.outbox_max,
            "models_max" => self.models_max != other.models_max,
            "memory_budget" => self.memory_budget != other.memory_budget,
            "cpu_budget" => self.cpu_budget != other.cpu_budget,
            "outbox_engine" => self.outbox_engine != other.outbox_engine,
            "alert_budget" => self.alert_budget != other.alert_budget,
            "samples" => self.samples != other.samples,
            "lolbins" => self.lolbins != other.lolbins,
            "redact" => self.redact != other.redact,
            "quarantine.allowed" => self.quarantine.allowed != other.quarantine.allowed,
            "quarantine.reachable" => self.quarantine.reachable != other.quarantine.reachable,
            "update.keys" => self.update != other.update,
            "alerts.thresholds" => self.policy.thresholds != other.policy.thresholds,
            "alerts.dedup" => self.policy.dedup_ns != other.policy.dedup_ns,
            "alerts.per_minute" => self.policy.per_minute != other.policy.per_minute,
            "kernel.processes_max" => kernel.processes_max != theirs.processes_max,
            "kernel.grams_max" => kernel.grams_max != theirs.grams_max,
            "kernel.learned_max" => kernel.learned_max != theirs.learned_max,
            "kernel.dns_sockets_max" => kernel.dns_sockets_max != theirs.dns_sockets_max,
            "kernel.urgent_ring" => kernel.urgent_ring != theirs.urgent_ring,
            "kernel.bulk_ring" => kernel.bulk_ring != theirs.bulk_ring,
            "kernel.opens_max" => kernel.opens_max != theirs.opens_max,
            "kernel.connects_max" => kernel.connects_max != theirs.connects_max,
            "kernel.acts_max" => kernel.acts_max != theirs.acts_max,
            "kernel.traces" => kernel.traces != theirs.traces,
            name => unreachable!("`{name}` is compared nowhere"),
        };
        KEYS.iter().filter(|key| differs(key.name)).map(|key| key.name.to_owned()).collect()
    }
}
