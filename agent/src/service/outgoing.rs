//! What leaves the agent: to disk, then to the log, the sinks and the fleet.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use models::program::ProgramId;
use models::wire::{Alert, Answer, DeviceEvent, EventKind, TrainingWindow, TrainingWindows, Uplink as Body};

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
                Output::Train(windows) if self.member.is_some() => self.sample(windows),
                Output::Alarmed(window) if self.member.is_some() && self.config.samples > 0 => {
                    self.put(Body::Alarmed(*window));
                }
                // Nobody would train on them.
                Output::Train(_) | Output::Alarmed(_) => {}
                // Done already.
                Output::Follow(_) | Output::Unfollow(_) => {}
            }
        }
        self.write_out();
    }

    /// Gives the fleet as many windows as it may have.
    fn sample(&mut self, mut all: TrainingWindows) {
        let (percent, stretch_ms) = (self.config.samples, STRETCH * self.config.window.as_millis() as u64);
        let before = all.windows.len();
        all.windows.retain(|window| is_sample(percent, window, stretch_ms));
        self.counters.windows_not_sampled += (before - all.windows.len()) as u64;
        if !all.windows.is_empty() {
            self.put(Body::Windows(all));
        }
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

/// Windows whose order is learned from stay together.
const STRETCH: u64 = 20;

/// Whether a window is among so many percent: by its run and its time, so that stretches of each run are chosen evenly.
fn is_sample(percent: u32, window: &TrainingWindow, stretch_ms: u64) -> bool {
    let mut hasher = DefaultHasher::new();
    (window.run, window.unix_ms / stretch_ms.max(1)).hash(&mut hasher);
    hasher.finish() % 100 < u64::from(percent)
}

/// Tells log and sinks of an alert.
fn tell(body: &Body, device: &str, sinks: &Sinks) {
    if let Body::Alert(alert) = body {
        let Alert { score, severity, program, pid, summary, .. } = alert;
        log::warn!("{} {score:.0}: {program} (process {pid}): {summary}", severity.as_str());
        sinks.tell(device, alert);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_whole_stretches_and_as_many_as_was_said() {
        let window = |run, n: u64| TrainingWindow {
            unix_ms: n * 30_000,
            run,
            vector: vec![],
            traits: vec![],
            grams: vec![],
        };
        let chosen = |percent| {
            let all = (0..50_u64).flat_map(|run| (0..2000).map(move |n| (run, n)));
            let mut kept = Vec::new();
            for (run, n) in all {
                let is_kept = is_sample(percent, &window(run, n), STRETCH * 30_000);
                assert_eq!(
                    is_kept,
                    is_sample(percent, &window(run, n / STRETCH * STRETCH), STRETCH * 30_000)
                );
                kept.push(is_kept);
            }
            kept
        };
        let count = |percent| chosen(percent).into_iter().filter(|kept| *kept).count();
        assert_eq!((count(0), count(100)), (0, 100_000));
        assert!((8_000..12_000).contains(&count(10)), "{}", count(10));
        let (few, more) = (chosen(10), chosen(40));
        assert!(few.iter().zip(&more).all(|(few, more)| !few || *more), "with more, what was chosen stays");
    }
}
