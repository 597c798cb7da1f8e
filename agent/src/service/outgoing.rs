//! What leaves the agent: to disk, then to the log, the sinks and the fleet.

use models::wire::{Alert, Answer, DeviceEvent, EventKind, Uplink as Body};

use models::program::ProgramId;

use super::Service;
use crate::clock;
use crate::pipeline::Output;
use crate::sinks::Sinks;

impl Service {
    /// Writes what the pipeline said into the outbox, and contains programs that alarmed where that is wanted.
    pub(super) fn keep(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Alert(alert) => {
                    // At once: what is written to a slow disk first may come too late.
                    let contained = self.contain(&alert);
                    self.put(Body::Alert(*alert));
                    if let Some(event) = contained {
                        self.put(Body::Event(event));
                    }
                }
                Output::Train(windows) if self.member.is_some() => self.put(Body::Windows(windows)),
                Output::Alarmed(window) if self.member.is_some() => self.put(Body::Alarmed(*window)),
                // Nobody would train on them.
                Output::Train(_) | Output::Alarmed(_) => {}
                // Done already.
                Output::Follow(_) | Output::Unfollow(_) => {}
            }
        }
        self.write_out();
    }

    /// Tells log and fleet what happened to the agent, or what it did.
    pub(super) fn event(
        &mut self,
        kind: EventKind,
        program: Option<ProgramId>,
        containment: Option<u32>,
        text: String,
    ) {
        let unix_ms = clock::now().unix_ms;
        self.put(Body::Event(DeviceEvent { unix_ms, kind, program, containment, text }));
        self.write_out();
    }

    /// Tells the fleet what became of an order.
    pub(super) fn answer(&mut self, answer: Answer) {
        self.put(Body::Answer(answer));
        self.write_out();
    }

    fn put(&mut self, body: Body) {
        if let Body::Event(event) = &body {
            log::warn!("{}: {}", event.kind.name(), event.text);
            // Without a fleet the outbox keeps alerts for `behaveguard alerts`, and nothing else.
            if self.member.is_none() {
                return;
            }
        }
        self.outgoing.push(body);
    }

    /// Writes what waits, and wakes the link when there is something new for it.
    fn write_out(&mut self) {
        let (device, sinks) = (&self.device, &self.sinks);
        let new = self.outgoing.write(clock::boot_ns(), &mut |body| tell(body, device, sinks));
        if let (true, Some(member)) = (new, &self.member) {
            member.uplink.wake();
        }
    }
}

/// Tells log and sinks of an alert.
fn tell(body: &Body, device: &str, sinks: &Sinks) {
    if let Body::Alert(alert) = body {
        let Alert { score, severity, program, pid, summary, .. } = alert;
        log::warn!("{} {score:.0}: {program} (process {pid}): {summary}", severity.as_str());
        sinks.tell(device, alert);
    }
}
