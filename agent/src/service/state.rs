//! How the agent is: for whoever asks on the control socket, and for the fleet's heartbeat.

use std::sync::PoisonError;

use models::wire::Heartbeat;

use super::Service;
use crate::clock;
use crate::control::{BudgetState, Status};
use crate::shedding::Shed;
use crate::vitals;

/// Programs named in a heartbeat.
const PROGRAMS_TOLD_MAX: usize = 100;

impl Service {
    pub(super) fn show(&mut self) {
        let mut promises = self.watch.pipeline().promises();
        promises.truncate(PROGRAMS_TOLD_MAX);
        let status = Status {
            promises,
            device: self.device.clone(),
            fleet: self.member.as_ref().map(|m| format!("{}:{}", m.identity.host, m.identity.port)),
            online: self.online,
            samples: self.config.samples,
            sinks: self.sinks.states(),
            confinement: self.confinement.clone(),
            contained: self.containment.entries().to_vec(),
            quarantined: self.quarantine.held().cloned(),
            shed: (self.shedding.shed() != Shed::Nothing).then(|| self.shedding.shed().text().to_owned()),
            reloaded: self.reloaded.clone(),
            alert_budget: self
                .watch
                .pipeline()
                .budget()
                .map(|(budget, p_max)| BudgetState { budget: budget.to_string(), p_max }),
            heartbeat: self.heartbeat(),
        };
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    pub(super) fn heartbeat(&self) -> Heartbeat {
        let now = clock::now();
        let mut programs = self.watch.pipeline().programs(now.unix_ms / 1000);
        programs.truncate(PROGRAMS_TOLD_MAX);
        Heartbeat {
            unix_ms: now.unix_ms,
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: vitals::kernel(),
            arch: std::env::consts::ARCH.into(),
            rss_bytes: vitals::rss_bytes(),
            cpu_ms: vitals::cpu_ms(),
            uptime_ms: now.boot_ns.saturating_sub(self.started_ns) / 1_000_000,
            outbox_waiting: self.outgoing.waiting(),
            counters: self.all_counters(),
            layers: self.watch.probe().layers().to_vec(),
            programs,
            program_file: self.program_file(),
        }
    }

    fn all_counters(&self) -> Vec<(String, u64)> {
        let mut all = Vec::new();
        match self.watch.probe().counters() {
            Ok(counters) => all = counters.list(),
            Err(error) => log::warn!("reading the kernel's counters: {error}"),
        }
        let (own, watch, outgoing) = (&self.counters, self.watch.counters(), self.outgoing.counters());
        let named = [
            ("outbox_dropped", outgoing.outbox_dropped),
            ("outbox_failed", outgoing.outbox_failed),
            ("outbox_damaged", self.outgoing.disk().damaged()),
            ("unwritten_dropped", outgoing.unwritten_dropped),
            ("outbox_bypassed", outgoing.outbox_bypassed),
            ("messages_too_long_dropped", outgoing.messages_too_long),
            ("training_refused", outgoing.windows_refused),
            ("training_not_sampled", own.windows_not_sampled),
            ("memory_failed", own.memory_failed),
            ("bundles_activated", own.bundles_activated),
            ("bundles_refused", own.bundles_refused),
            ("bundles_rolled_back", own.bundles_rolled_back),
            ("quarantine_left_s", self.quarantine.held().map_or(0, |held| held.left_s(clock::now()))),
            ("contained", own.contained),
            ("not_contained", own.not_contained),
            ("contained_released", own.released),
            ("captures_sent", own.captures_sent),
            ("captures_dropped", own.captures_dropped),
            ("reloads_refused", own.reloads_refused),
            ("orders_done", own.orders_done),
            ("orders_refused", own.orders_refused),
            ("orders_rejected", own.orders_rejected),
            ("drains_failed", watch.drains_failed),
            ("tables_refused", watch.tables_refused),
            ("follows_refused", watch.follows_refused),
            ("model_bytes", self.watch.pipeline().model_bytes() as u64),
            ("processes_followed", self.watch.pipeline().followed() as u64),
        ];
        let explanations = self.watch.pipeline().explanations();
        let forgotten = explanations.lock().unwrap_or_else(PoisonError::into_inner).forgotten();
        let lists = named.into_iter().chain(forgotten).chain(self.watch.pipeline().counters().list());
        all.extend(lists.map(|(name, value)| (name.to_owned(), value)));
        if let Some(member) = &self.member {
            let counters = member.uplink.counters().list().into_iter();
            all.extend(counters.map(|(name, value)| (name.to_owned(), value)));
        }
        for sink in self.sinks.states() {
            let counts = [("delivered", sink.delivered), ("dropped", sink.dropped), ("failed", sink.failed)];
            all.extend(counts.map(|(what, value)| (format!("sink_{}_{what}", sink.name), value)));
        }
        all
    }
}
