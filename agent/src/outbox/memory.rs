//! An outbox in memory, for messages that a failing disk does not take: they go while the link is there, and are gone with the
//! process. Its epoch is its own, so its numbers are never mistaken for those of the outbox on disk.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use models::wire::{Alert, Uplink, UplinkFrame, encode};

use super::{Kept, Outbox, OutboxError, random, rank};

/// Alerts kept for `behaveguard alerts`.
const RECENT_MAX: usize = 100;

/// Messages that wait in memory.
pub struct MemoryOutbox {
    epoch: u64,
    bytes_max: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    waiting: VecDeque<Message>,
    bytes: usize,
    last: u64,
    recent: VecDeque<Alert>,
}

struct Message {
    seq: u64,
    rank: u8,
    bytes: Vec<u8>,
}

impl MemoryOutbox {
    /// Holds at most so many bytes of messages.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self::with_epoch(bytes_max, random())
    }

    /// The same with an epoch from elsewhere, so that a simulation can be repeated.
    #[must_use]
    pub fn with_epoch(bytes_max: usize, epoch: u64) -> Self {
        Self { epoch, bytes_max, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Every change leaves whole messages, so a panic elsewhere leaves it usable.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outbox for MemoryOutbox {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn put(&self, body: Uplink) -> Result<Kept, OutboxError> {
        let mut held = self.held();
        let seq = held.last + 1;
        let frame = UplinkFrame { epoch: self.epoch, seq, body };
        let message = Message { seq, rank: rank(&frame.body), bytes: encode(&frame)? };
        held.last = seq;
        held.bytes += message.bytes.len();
        held.waiting.push_back(message);
        if let Uplink::Alert(alert) = frame.body {
            if held.recent.len() >= RECENT_MAX {
                held.recent.pop_front();
            }
            held.recent.push_back(alert);
        }
        let mut dropped = 0;
        while held.bytes > self.bytes_max {
            let lowest =
                held.waiting.iter().enumerate().min_by_key(|(_, message)| (message.rank, message.seq));
            let Some((at, _)) = lowest else { break };
            if let Some(gone) = held.waiting.remove(at) {
                held.bytes -= gone.bytes.len();
                dropped += 1;
            }
        }
        Ok(if dropped == 0 { Kept::As(seq) } else { Kept::AfterDropping(seq, dropped) })
    }

    fn after(&self, seq: u64) -> Result<Option<(u64, Vec<u8>)>, OutboxError> {
        let held = self.held();
        let next = held.waiting.partition_point(|message| message.seq <= seq);
        Ok(held.waiting.get(next).map(|message| (message.seq, message.bytes.clone())))
    }

    fn forget(&self, seq: u64) -> Result<u64, OutboxError> {
        let mut held = self.held();
        let done = held.waiting.partition_point(|message| message.seq <= seq);
        let bytes: usize = held.waiting.drain(..done).map(|message| message.bytes.len()).sum();
        held.bytes -= bytes;
        Ok(done as u64)
    }

    fn waiting(&self) -> u64 {
        self.held().waiting.len() as u64
    }

    fn damaged(&self) -> u64 {
        0
    }

    fn recent(&self) -> Result<Vec<Alert>, OutboxError> {
        Ok(self.held().recent.iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use models::wire::decode;

    use super::super::tests::alert;
    use super::*;

    #[test]
    fn messages_go_in_order_and_the_oldest_make_room() {
        let outbox = MemoryOutbox::new(5000);
        assert_eq!(outbox.put(alert(1)).unwrap(), Kept::As(1));
        let (_, bytes) = outbox.after(0).unwrap().unwrap();
        let frame: UplinkFrame = decode(&bytes).unwrap();
        assert_eq!((frame.epoch, frame.seq, frame.body), (outbox.epoch(), 1, alert(1)));
        let fit = 5000 / bytes.len() as u64;
        for n in 2..=fit {
            assert_eq!(outbox.put(alert(1)).unwrap(), Kept::As(n));
        }
        assert_eq!(outbox.put(alert(1)).unwrap(), Kept::AfterDropping(fit + 1, 1));
        assert_eq!(outbox.after(0).unwrap().unwrap().0, 2, "the oldest is gone");
        assert_eq!(outbox.forget(3).unwrap(), 2);
        assert_eq!((outbox.waiting(), outbox.after(3).unwrap().unwrap().0), (fit - 2, 4));
        assert_eq!(outbox.forget(u64::MAX).unwrap(), fit - 2);
        assert_eq!((outbox.waiting(), outbox.after(0).unwrap()), (0, None));
        assert_eq!(outbox.recent().unwrap().len() as u64, fit + 1);
        assert_eq!(outbox.put(alert(9)).unwrap(), Kept::As(fit + 2), "numbers are not used again");
    }
}
