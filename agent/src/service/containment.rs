//! What is done to programs that alarm, where the operator wants it.

use models::chain::chain;
use models::wire::{Alert, DeviceEvent, EventKind};

use super::Service;
use crate::clock;
use crate::config::Action;
use crate::contain::{ContainError, Contained, rule_for};

impl Service {
    /// Contains the program of an alert when a rule says so, and gives what is told of it. Never while neither it nor a program
    /// of its unit is learned: nobody knows what is usual then.
    pub(super) fn contain(&mut self, alert: &Alert) -> Option<DeviceEvent> {
        let action = rule_for(&self.config.contain, alert)?.action;
        let done = if self.is_learned(alert) {
            self.do_it(alert, action)
        } else {
            Err("it is not ACTIVE, so nobody knows what is usual for it".to_owned())
        };
        let (kind, containment, text) = match done {
            Ok(None) => return None,
            Ok(Some(entry)) => {
                self.counters.contained += 1;
                // What was killed cannot be released.
                let id = (action != Action::Kill).then_some(entry.id);
                (EventKind::Contained, id, entry.to_string())
            }
            Err(reason) => {
                self.counters.not_contained += 1;
                let text = format!("{} (process {}): no {action}, {reason}", alert.program, alert.pid);
                (EventKind::NotContained, None, text)
            }
        };
        let unix_ms = clock::now().unix_ms;
        Some(DeviceEvent { unix_ms, kind, program: Some(alert.program.clone()), containment, text })
    }

    fn do_it(&mut self, alert: &Alert, action: Action) -> Result<Option<Contained>, String> {
        if action == Action::DenyEgress {
            let prepared = self.watch.probe().denies_egress();
            let prepared = prepared.unwrap_or(Err("the agent gave it up at its start: restart it"));
            prepared.map_err(|reason| ContainError::NoEgress(reason.to_owned()).to_string())?;
        }
        let entry = self.containment.contain(alert, action).map_err(|error| chain(&error))?;
        if let Some(entry) = &entry
            && action == Action::DenyEgress
            && let Err(error) = self.tell_kernel()
        {
            // What is not denied must not be shown as denied.
            let _ = self.containment.release(entry.id);
            return Err(error);
        }
        Ok(entry)
    }

    /// Undoes a containment, and says who wanted it.
    pub(super) fn release(&mut self, id: u32, by: &str) -> Result<Contained, String> {
        let released = self.containment.release(id).map_err(|error| chain(&error));
        let released = released.and_then(|entry| self.tell_kernel().map(|()| entry));
        let text = match &released {
            Ok(entry) => format!("{by} released {entry}"),
            Err(reason) => format!("{by} wanted {id} released: {reason}"),
        };
        let program = released.as_ref().ok().map(|entry| entry.program.clone());
        self.counters.released += u64::from(released.is_ok());
        // The fleet asks until it is told, also that there is nothing of this number.
        self.event(EventKind::Released, program, Some(id), text);
        released
    }

    /// Ends what has ended by itself, and denies what came back under its name.
    pub(super) fn look_after_contained(&mut self) {
        if self.containment.entries().is_empty() {
            return;
        }
        for entry in self.containment.sweep() {
            let text = format!("ended by itself: {entry}");
            self.event(EventKind::Released, Some(entry.program), Some(entry.id), text);
        }
        if let Err(error) = self.tell_kernel() {
            log::error!("egress of contained programs: {error}");
        }
    }

    fn tell_kernel(&mut self) -> Result<(), String> {
        let denied = self.containment.denied();
        self.watch.probe_mut().deny_egress(&denied).map_err(|error| chain(&error))
    }

    fn is_learned(&self, alert: &Alert) -> bool {
        let states = self.watch.pipeline().programs(clock::now().unix_ms / 1000);
        let mut active = states.iter().filter(|state| state.state == "ACTIVE");
        match alert.generation {
            // Judged by what the learned programs of its unit do.
            0 => active.any(|state| state.program.unit == alert.program.unit),
            _ => active.any(|state| state.program == alert.program),
        }
    }
}
