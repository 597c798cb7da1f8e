//! What leaves the agent on its way to an outbox: to the one on disk, or past it when the disk takes nothing for long.
//!
//! Without a clock of its own, so that it runs as well where time and disk are made up.

use std::collections::VecDeque;
use std::sync::Arc;

use models::chain::chain;
use models::wire::Uplink;

use crate::outbox::{Kept, Outbox, OutboxError};
use crate::uplink::LANES;

/// Messages that could not be written to disk, kept in memory; one more drops the oldest.
pub const UNWRITTEN_MAX: usize = 256;

/// A disk that takes nothing for so long is not waited for. Until then it may have been full for a moment, and what is on
/// disk survives a power cut.
const BYPASS_AFTER_NS: u64 = 5_000_000_000;

/// A message on its way to the disk.
struct Unwritten {
    body: Uplink,
    /// Log and sinks have it.
    told: bool,
}

/// What became of messages since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Dropped to make room in an outbox.
    pub outbox_dropped: u64,
    /// Writes that failed.
    pub outbox_failed: u64,
    /// Dropped because too many could not be written.
    pub unwritten_dropped: u64,
    /// Given to the outbox in memory.
    pub outbox_bypassed: u64,
    /// Dropped because they cannot be sent.
    pub messages_too_long: u64,
    /// Training windows that were not taken because an outbox was half full.
    pub windows_refused: u64,
}

/// The way to the outboxes.
pub struct Outgoing {
    /// On disk, and in memory for what the disk does not take.
    outboxes: [Arc<dyn Outbox>; LANES],
    unwritten: VecDeque<Unwritten>,
    /// Since when the disk takes nothing.
    fails_since_ns: Option<u64>,
    /// Without a fleet nobody reads the outbox in memory.
    has_fleet: bool,
    counters: Counters,
}

impl Outgoing {
    /// With the outbox on disk first, then the one in memory.
    #[must_use]
    pub fn new(outboxes: [Arc<dyn Outbox>; LANES], has_fleet: bool) -> Self {
        let (unwritten, counters) = (VecDeque::new(), Counters::default());
        Self { outboxes, unwritten, fails_since_ns: None, has_fleet, counters }
    }

    /// The outbox on disk.
    #[must_use]
    pub fn disk(&self) -> &dyn Outbox {
        self.outboxes[0].as_ref()
    }

    /// The outbox in memory.
    #[must_use]
    pub fn memory(&self) -> &dyn Outbox {
        self.outboxes[1].as_ref()
    }

    /// What became of messages.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Messages that wait, wherever they are.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.disk().waiting() + self.memory().waiting() + self.unwritten.len() as u64
    }

    /// Messages that are in no outbox yet, the oldest first.
    pub fn unwritten(&self) -> impl Iterator<Item = &Uplink> {
        self.unwritten.iter().map(|waiting| &waiting.body)
    }

    /// Adds a message, to be written with [`Outgoing::write`].
    pub fn push(&mut self, body: Uplink) {
        if self.unwritten.len() >= UNWRITTEN_MAX {
            self.unwritten.pop_front();
            self.counters.unwritten_dropped += 1;
        }
        self.unwritten.push_back(Unwritten { body, told: false });
    }

    /// Writes what waits, what could not be written before first; whether an outbox has something new. Each is told once: when it is
    /// on disk, so that the fleet gets whatever anybody was told of, or at once, when the disk fails.
    pub fn write(&mut self, now_ns: u64, tell: &mut dyn FnMut(&Uplink)) -> bool {
        let mut written = false;
        while let Some(first) = self.unwritten.front() {
            match self.outboxes[0].put(first.body.clone()) {
                Ok(Kept::As(_)) => {}
                Ok(Kept::AfterDropping(_, n)) => self.counters.outbox_dropped += n,
                Ok(Kept::Refused) => self.counters.windows_refused += 1,
                Err(OutboxError::Message(error)) => {
                    self.counters.messages_too_long += 1;
                    log::error!("a message was dropped: {error}");
                }
                Err(error) => {
                    // Said when it begins and when it is over, not at every try.
                    if self.fails_since_ns.is_none() {
                        log::error!("{}; messages are kept in memory and tried again", chain(&error));
                    }
                    let since_ns = *self.fails_since_ns.get_or_insert(now_ns);
                    self.counters.outbox_failed += 1;
                    if self.has_fleet && now_ns.saturating_sub(since_ns) >= BYPASS_AFTER_NS {
                        self.bypass(tell);
                        return true;
                    }
                    break;
                }
            }
            if let Some(mut first) = self.unwritten.pop_front() {
                first.tell(tell);
            }
            written = true;
        }
        self.unwritten.iter_mut().for_each(|waiting| waiting.tell(tell));
        if written && self.fails_since_ns.take().is_some() {
            log::info!("the outbox can be written again");
        }
        written
    }

    /// Gives what the disk does not take to the link directly: the fleet gets it while there is one.
    fn bypass(&mut self, tell: &mut dyn FnMut(&Uplink)) {
        for mut waiting in std::mem::take(&mut self.unwritten) {
            waiting.tell(tell);
            match self.outboxes[1].put(waiting.body) {
                Ok(Kept::AfterDropping(_, n)) => self.counters.outbox_dropped += n,
                Ok(Kept::As(_) | Kept::Refused) => {}
                Err(error) => {
                    self.counters.messages_too_long += 1;
                    log::error!("a message was dropped: {}", chain(&error));
                }
            }
            self.counters.outbox_bypassed += 1;
        }
    }
}

impl Unwritten {
    /// Tells of it, once.
    fn tell(&mut self, tell: &mut dyn FnMut(&Uplink)) {
        if !std::mem::replace(&mut self.told, true) {
            tell(&self.body);
        }
    }
}
