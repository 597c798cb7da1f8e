//! What people ask of this device from afar: checked, written down, carried out, answered.

use std::fmt::Write as _;

use models::bundle::Keyring;
use models::chain::chain;
use models::orders::{self, OrderError};
use models::program::ProgramId;
use models::wire::{ANSWER_MAX, Answer, Errand, LogLevel, SignedOrder};

use super::Service;
use crate::clock;
use crate::config::Overlay;
use crate::doctor::Findings;
use crate::done::DoneOrders;
use crate::local::Local;
use crate::logging;

/// Orders of the fleet.
pub(super) struct Orders {
    /// Whose orders count.
    pub(super) keys: Keyring,
    pub(super) done: DoneOrders,
    /// Until when a level holds that the fleet chose.
    pub(super) log_level_until_ns: Option<u64>,
}

impl Service {
    /// Carries an order out, unless it is none of the fleet's or was carried out before.
    pub(super) fn ordered(&mut self, signed: &SignedOrder) {
        let opened = orders::open(&self.device, signed, &self.orders.keys, self.orders.done.done());
        let order = match opened {
            Ok(order) => order,
            // The fleet has not read the answer yet.
            Err(error @ OrderError::Repeated(_)) => return log::debug!("{error}"),
            Err(error) => {
                self.counters.orders_rejected += 1;
                return log::error!("an order is not carried out: {}", chain(&error));
            }
        };
        let done = match self.orders.done.add(order.id) {
            Ok(()) => self.carry_out(order.id, order.errand),
            Err(error) => Err(format!("that it is carried out cannot be written down: {error}")),
        };
        let (done, mut text) = match done {
            Ok(text) => (true, text),
            Err(text) => (false, text),
        };
        let counter = if done { &mut self.counters.orders_done } else { &mut self.counters.orders_refused };
        *counter += 1;
        let first = text.lines().next().unwrap_or_default();
        log::warn!(
            "order {} of the fleet {}: {first}",
            order.id,
            if done { "is done" } else { "is refused" }
        );
        cut(&mut text, ANSWER_MAX);
        let unix_ms = clock::now().unix_ms;
        self.answer(Answer { id: order.id, unix_ms, done, text });
    }

    fn carry_out(&mut self, id: u64, errand: Errand) -> Result<String, String> {
        match errand {
            Errand::Doctor => self.described(),
            Errand::Processes => Ok(self.listed()),
            Errand::Process { pid } => self.judged_lately(pid),
            Errand::Update(signed) => self.update(&signed),
            Errand::EndUpdate => self.end_update(),
            Errand::LogLevel { level, for_s } => self.log_from(level, for_s),
            Errand::Relearn { program } => self.relearn(&program),
            Errand::Configure { version, text } => self.configured(Overlay { version, text }),
            Errand::Quarantine { for_s } => self.quarantine_for(for_s, "the fleet"),
            Errand::EndQuarantine => self.end_quarantine("ended by the fleet"),
            Errand::Record { for_s, bytes_max } => self.record(id, for_s, bytes_max),
        }
    }

    /// What `behaveguard doctor` shows, of the agent that runs.
    fn described(&mut self) -> Result<String, String> {
        let findings = Findings::of(self.watch.probe()).map_err(|error| chain(&error))?;
        let heartbeat = self.heartbeat();
        let mut text = format!(
            "behaveguard {} on Linux {} ({}), up {} s, {} KiB resident, {} ms of CPU time, {} messages wait\n\n{}",
            heartbeat.version,
            heartbeat.kernel,
            heartbeat.arch,
            heartbeat.uptime_ms / 1000,
            heartbeat.rss_bytes / 1024,
            heartbeat.cpu_ms,
            heartbeat.outbox_waiting,
            findings.table(),
        );
        text.push_str("\nprogram, state, generation\n");
        for state in &heartbeat.programs {
            let _ = writeln!(text, "{} {} {}", state.program, state.state, state.generation);
        }
        text.push_str("\ncounters that are not zero\n");
        for (name, value) in heartbeat.counters.iter().filter(|(_, value)| *value > 0) {
            let _ = writeln!(text, "{name} {value}");
        }
        Ok(text)
    }

    fn log_from(&mut self, level: LogLevel, for_s: u32) -> Result<String, String> {
        logging::set(level)?;
        let until_ns = clock::boot_ns().saturating_add(u64::from(for_s) * 1_000_000_000);
        self.orders.log_level_until_ns = Some(until_ns);
        Ok(format!("logs from {} on for {for_s} s", logging::name(level)))
    }

    /// Logs as before when the time is over.
    pub(super) fn look_at_log_level(&mut self) {
        if self.orders.log_level_until_ns.is_some_and(|until_ns| clock::boot_ns() >= until_ns) {
            self.orders.log_level_until_ns = None;
            logging::reset();
            log::info!("the time of the fleet's log level is over");
        }
    }

    fn relearn(&mut self, program: &ProgramId) -> Result<String, String> {
        let states = self.watch.pipeline().programs(clock::now().unix_ms / 1000);
        if !states.iter().any(|state| state.program == *program) {
            return Err(format!("{program} was not seen since the agent started"));
        }
        let own = Local::open(&self.config.state).map_err(|error| chain(&error))?;
        if own.is_some_and(|own| own.of(program).is_some()) {
            return Err(format!(
                "{program} has a baseline that was made on the device: there, `behaveguard train` makes a new one"
            ));
        }
        self.unlearn(program)?;
        self.beat();
        Ok(format!("{program} is learned anew"))
    }

    /// Uses the fleet's part of the configuration; what cannot be used changes nothing.
    fn configured(&mut self, overlay: Overlay) -> Result<String, String> {
        self.source.with(&overlay).map_err(|error| chain(&error))?;
        let told = if overlay.text.trim().is_empty() {
            "the device's own file alone counts".to_owned()
        } else {
            format!("version {} is in use", overlay.version)
        };
        overlay.write(&self.config.state).map_err(|error| format!("it cannot be kept: {error}"))?;
        self.reload();
        let reloaded = self.reloaded.clone().unwrap_or_default();
        if let Some(reason) = reloaded.refused {
            return Err(reason);
        }
        match &reloaded.needs_restart[..] {
            [] => Ok(told),
            keys => Ok(format!("{told}; these need a restart of the agent: {}", keys.join(", "))),
        }
    }
}

/// Cuts a text that is too long, between characters, and says so.
fn cut(text: &mut String, max: usize) {
    const CUT: &str = "\n(cut)";
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max - CUT.len()));
        text.push_str(CUT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_is_cut_between_characters_and_says_so() {
        let mut text = "é".repeat(10);
        cut(&mut text, 20);
        assert_eq!(text.len(), 20);
        text.push('!');
        cut(&mut text, 20);
        assert_eq!(text, format!("{}\n(cut)", "é".repeat(7)));
    }
}
