//! What leaves the agent: to disk, then to the log, the sinks and the fleet.

use models::chain::chain;
use models::wire::{Alert, Answer, DeviceEvent, EventKind, Uplink as Body};

use models::program::ProgramId;

use super::Service;
use crate::clock;
use crate::outbox::{Kept, OutboxError};
use crate::pipeline::Output;
use crate::sinks::Sinks;

/// Messages that could not be written to disk, kept in memory; one more drops the oldest.
const UNWRITTEN_MAX: usize = 256;

/// A disk that takes nothing for so long is not waited for. Until then it may have been full for a moment, and what is on
/// disk survives a power cut.
const BYPASS_AFTER_NS: u64 = 5_000_000_000;

/// A message on its way to the disk.
pub(super) struct Unwritten {
    body: Body,
    /// Log and sinks have it.
    told: bool,
}

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
                // Nobody would train on them.
                Output::Train(_) => {}
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
        if self.unwritten.len() >= UNWRITTEN_MAX {
            self.unwritten.pop_front();
            self.counters.unwritten_dropped += 1;
        }
        self.unwritten.push_back(Unwritten { body, told: false });
    }

    /// Writes what waits, what could not be written before first. An alert is told to the log and the sinks once it is on disk,
    /// so that the fleet gets whatever anybody was told of; or at once, when the disk fails.
    fn write_out(&mut self) {
        let mut written = false;
        while let Some(first) = self.unwritten.front() {
            match self.outbox.put(first.body.clone()) {
                Ok(Kept::As(_)) => {}
                Ok(Kept::AfterDropping(_, n)) => self.counters.outbox_dropped += n,
                Ok(Kept::Refused) => self.counters.windows_refused += 1,
                Err(OutboxError::Message(error)) => {
                    self.counters.messages_too_long += 1;
                    log::error!("a message was dropped: {error}");
                }
                Err(error) => {
                    let now_ns = clock::boot_ns();
                    // Said when it begins and when it is over, not at every try.
                    if self.outbox_fails_ns.is_none() {
                        log::error!("{}; messages are kept in memory and tried again", chain(&error));
                    }
                    let since_ns = *self.outbox_fails_ns.get_or_insert(now_ns);
                    self.counters.outbox_failed += 1;
                    if self.member.is_some() && now_ns.saturating_sub(since_ns) >= BYPASS_AFTER_NS {
                        self.bypass();
                        return;
                    }
                    break;
                }
            }
            if let Some(mut first) = self.unwritten.pop_front() {
                tell(&mut first, &self.device, &self.sinks);
            }
            written = true;
        }
        for waiting in &mut self.unwritten {
            tell(waiting, &self.device, &self.sinks);
        }
        if written {
            if self.outbox_fails_ns.take().is_some() {
                log::info!("the outbox can be written again");
            }
            if let Some(member) = &self.member {
                member.uplink.wake();
            }
        }
    }
}

impl Service {
    /// Gives what the disk does not take to the link directly: the fleet gets it while there is one.
    fn bypass(&mut self) {
        for mut waiting in std::mem::take(&mut self.unwritten) {
            tell(&mut waiting, &self.device, &self.sinks);
            match self.memory_outbox.put(waiting.body) {
                Ok(Kept::AfterDropping(_, n)) => self.counters.outbox_dropped += n,
                Ok(_) => {}
                Err(error) => {
                    self.counters.messages_too_long += 1;
                    log::error!("a message was dropped: {}", chain(&error));
                }
            }
            self.counters.outbox_bypassed += 1;
        }
        if let Some(member) = &self.member {
            member.uplink.wake();
        }
    }
}

/// Tells log and sinks of an alert, once.
fn tell(waiting: &mut Unwritten, device: &str, sinks: &Sinks) {
    if let (Body::Alert(alert), false) = (&waiting.body, waiting.told) {
        let Alert { score, severity, program, pid, summary, .. } = alert;
        log::warn!("{} {score:.0}: {program} (process {pid}): {summary}", severity.as_str());
        sinks.tell(device, alert);
    }
    waiting.told = true;
}
