//! Which numbered messages are on their way: at most [`WINDOW`] of each outbox, in order, again from the oldest at each
//! connection. Without a link and without a clock of its own, so that it runs as well where both are made up.

use std::collections::VecDeque;

use models::wire::{Leaf, Request};

use crate::outbox::{Outbox, OutboxError};

/// Numbered messages sent and not yet acknowledged by the fleet.
pub const WINDOW: usize = 32;

/// Outboxes: on disk, and in memory for what a failing disk does not take.
pub const LANES: usize = 2;

/// Takes a message for a topic, or `false` when there is no room now.
type Send<'a> = &'a mut dyn FnMut(Leaf, Vec<u8>) -> bool;

/// What is on its way of each outbox.
#[derive(Debug, Default)]
pub struct Lanes([Lane; LANES]);

#[derive(Debug, Default)]
struct Lane {
    /// Numbers, ascending.
    on_way: VecDeque<u64>,
    /// The last number given away in this connection.
    cursor: u64,
    /// When something was sent into an empty window, or acknowledged.
    moved_ns: u64,
}

impl Lanes {
    /// A new connection: whatever was on its way may be lost.
    pub fn restart(&mut self) {
        *self = Self::default();
    }

    /// Hands messages over while the windows have room.
    ///
    /// # Errors
    /// When an outbox cannot be read; the others were served.
    pub fn pump(
        &mut self,
        outboxes: [&dyn Outbox; LANES],
        now_ns: u64,
        send: Send<'_>,
    ) -> Result<(), OutboxError> {
        let mut done = Ok(());
        for (outbox, lane) in outboxes.into_iter().zip(&mut self.0) {
            done = lane.pump(outbox, now_ns, send).and(done);
        }
        done
    }

    /// Everything of an outbox up to `seq` is with the fleet; how many messages leave it. One that is not ours is of an outbox that
    /// this device had before.
    ///
    /// # Errors
    /// When an outbox cannot write that down: harmless, the fleet drops repeats.
    pub fn acknowledged(
        &mut self,
        outboxes: [&dyn Outbox; LANES],
        (epoch, seq): (u64, u64),
        now_ns: u64,
    ) -> Result<u64, OutboxError> {
        let of = outboxes.iter().zip(&mut self.0).find(|(outbox, _)| outbox.epoch() == epoch);
        let Some((outbox, lane)) = of else { return Ok(0) };
        while lane.on_way.front().is_some_and(|oldest| *oldest <= seq) {
            lane.on_way.pop_front();
            lane.moved_ns = now_ns;
        }
        outbox.forget(seq)
    }

    /// For how long nothing was acknowledged that is on its way.
    #[must_use]
    pub fn still_ns(&self, now_ns: u64) -> u64 {
        self.0.iter().map(|lane| lane.still_ns(now_ns)).max().unwrap_or(0)
    }

    /// Messages on their way, of the lane that has most.
    #[must_use]
    pub fn on_way(&self) -> usize {
        self.0.iter().map(|lane| lane.on_way.len()).max().unwrap_or(0)
    }
}

impl Lane {
    fn pump(&mut self, outbox: &dyn Outbox, now_ns: u64, send: Send<'_>) -> Result<(), OutboxError> {
        while self.on_way.len() < WINDOW {
            let Some((seq, bytes)) = outbox.after(self.cursor)? else { break };
            // In a new connection the first number tells what was before it, too.
            let (epoch, from) = (outbox.epoch(), self.cursor + 1);
            if seq > from {
                let gone = models::wire::encode(&Request::Gone { epoch, from, to: seq - 1 })?;
                if !send(Leaf::Req, gone) {
                    break;
                }
                // Told once, also when there is no room for the message now: else a full link is kept full of it.
                self.cursor = seq - 1;
            }
            if !send(Leaf::Up, bytes) {
                break;
            }
            if self.on_way.is_empty() {
                self.moved_ns = now_ns;
            }
            self.cursor = seq;
            self.on_way.push_back(seq);
        }
        Ok(())
    }

    fn still_ns(&self, now_ns: u64) -> u64 {
        if self.on_way.is_empty() { 0 } else { now_ns.saturating_sub(self.moved_ns) }
    }
}

#[cfg(test)]
mod tests {
    use models::wire::{DeviceEvent, EventKind, Uplink, UplinkFrame, decode};

    use super::*;
    use crate::outbox::MemoryOutbox;

    fn full(n: u64) -> MemoryOutbox {
        let outbox = MemoryOutbox::new(1 << 20);
        for unix_ms in 1..=n {
            let (kind, text) = (EventKind::Started, String::new());
            let event = DeviceEvent { unix_ms, kind, program: None, containment: None, text };
            let _ = outbox.put(Uplink::Event(event)).unwrap();
        }
        outbox
    }

    fn numbers(lanes: &mut Lanes, outbox: &MemoryOutbox, other: &MemoryOutbox, room: usize) -> Vec<u64> {
        let mut found = Vec::new();
        let mut take = |leaf, bytes: Vec<u8>| {
            let has_room = found.len() < room;
            if has_room && leaf == Leaf::Up {
                found.push(decode::<UplinkFrame>(&bytes).unwrap().seq);
            }
            has_room
        };
        lanes.pump([outbox, other], 7, &mut take).unwrap();
        found
    }

    #[test]
    fn numbers_that_are_gone_are_told_once_although_there_is_no_room_for_what_follows() {
        let (outbox, other) = (full(5), full(0));
        outbox.forget(3).unwrap();
        let mut lanes = Lanes::default();
        let mut told = Vec::new();
        for room in [1, 1, 1, 2] {
            let mut left = room;
            let mut take = |leaf, _| {
                // The link has room for one message less than it says.
                let takes = left > 0 && (leaf == Leaf::Req || room > 1);
                left -= i32::from(takes);
                told.extend(takes.then_some(leaf));
                takes
            };
            lanes.pump([&outbox, &other], 7, &mut take).unwrap();
        }
        assert_eq!(told, [Leaf::Req, Leaf::Up, Leaf::Up]);
    }

    #[test]
    fn a_window_is_sent_and_more_when_some_of_it_is_acknowledged() {
        let (outbox, other) = (full(100), full(0));
        let mut lanes = Lanes::default();
        assert_eq!(numbers(&mut lanes, &outbox, &other, 1000), (1..=32).collect::<Vec<_>>());
        assert_eq!(numbers(&mut lanes, &outbox, &other, 1000), [0; 0]);
        assert_eq!((lanes.on_way(), lanes.still_ns(10)), (WINDOW, 3));
        let done = lanes.acknowledged([&outbox, &other], (outbox.epoch(), 10), 9).unwrap();
        assert_eq!((done, lanes.still_ns(10)), (10, 1));
        assert_eq!(numbers(&mut lanes, &outbox, &other, 3), [33, 34, 35], "the client has no more room");
        assert_eq!(numbers(&mut lanes, &outbox, &other, 1000), (36..=42).collect::<Vec<_>>());
        let before = lanes.acknowledged([&outbox, &other], (outbox.epoch() ^ 1, 90), 9).unwrap();
        assert_eq!((before, lanes.on_way()), (0, WINDOW), "of an outbox that is gone");
        lanes.restart();
        assert_eq!(numbers(&mut lanes, &outbox, &other, 2), [11, 12], "again from the oldest");
    }
}
