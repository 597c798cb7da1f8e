//! Captures to the fleet, one part after another, going on where the fleet is after a lost connection.
//!
//! One part is on its way at a time, so that alerts pass between them also on a bad link.

use std::collections::VecDeque;
use std::io;

use models::wire::{CHUNK_MAX, Request};

use super::transfer::STALL_NS;
use crate::captures::Capture;

/// What an answer led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// More is to be sent, or nothing was on its way.
    Nothing,
    /// The fleet has all of it.
    All(u64),
    /// The fleet does not want it.
    Unwanted(u64),
}

#[derive(Debug, Default)]
pub(super) struct Deliver {
    /// As many as there are files: [`CAPTURES_MAX`](crate::captures::CAPTURES_MAX).
    waiting: VecDeque<Capture>,
    /// How much of the first the fleet has.
    stored: u32,
    /// When the next part was sent.
    sent_ns: Option<u64>,
}

impl Deliver {
    /// Adds one.
    pub(super) fn add(&mut self, capture: Capture) {
        self.waiting.push_back(capture);
    }

    /// What to send now, if nothing is on its way. One that cannot be read goes, with its order.
    pub(super) fn next(&mut self, now_ns: u64) -> Result<Option<Request>, (u64, io::Error)> {
        if self.sent_ns.is_some() && !self.is_stalled(now_ns) {
            return Ok(None);
        }
        let Some(first) = self.waiting.front() else { return Ok(None) };
        let (order, size) = (first.order, first.size);
        match first.part(self.stored, CHUNK_MAX) {
            Ok(data) => {
                self.sent_ns = Some(now_ns);
                Ok(Some(Request::Part { order, size, offset: self.stored, data }))
            }
            Err(error) => {
                self.done();
                Err((order, error))
            }
        }
    }

    /// Takes an answer.
    pub(super) fn kept(&mut self, order: u64, next: Option<u32>) -> Delivered {
        let Some(first) = self.waiting.front().filter(|first| first.order == order) else {
            return Delivered::Nothing;
        };
        let size = first.size;
        self.sent_ns = None;
        match next {
            Some(next) if next < size => {
                self.stored = next;
                Delivered::Nothing
            }
            Some(_) => {
                self.done();
                Delivered::All(order)
            }
            None => {
                self.done();
                Delivered::Unwanted(order)
            }
        }
    }

    /// The connection is a new one: an answer in the old one does not come.
    pub(super) fn restart(&mut self) {
        self.sent_ns = None;
    }

    /// Whether an answer is overdue.
    pub(super) fn is_stalled(&self, now_ns: u64) -> bool {
        self.sent_ns.is_some_and(|sent| now_ns.saturating_sub(sent) > STALL_NS)
    }

    fn done(&mut self) {
        self.waiting.pop_front();
        (self.stored, self.sent_ns) = (0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captures::Captures;

    fn recorded(dir: &std::path::Path, orders: &[u64]) -> (Captures, Deliver) {
        let captures = Captures::of(dir);
        let mut deliver = Deliver::default();
        for order in orders {
            captures.begin(*order, 1 << 20).unwrap().finish().unwrap();
            let grown: Vec<u8> = (0..40_000).map(|n| (n % 251) as u8).collect();
            std::fs::write(dir.join(format!("captures/{order}")), grown).unwrap();
            deliver.add(captures.get(*order).unwrap());
        }
        (captures, deliver)
    }

    #[test]
    fn every_part_comes_in_order_also_over_a_link_that_breaks() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut deliver) = recorded(dir.path(), &[7, 8]);
        let (mut files, mut stored) = (Vec::new(), Vec::new());
        for turn in 1..100 {
            let Ok(Some(Request::Part { order, size, offset, data })) = deliver.next(0) else { break };
            assert!(deliver.next(0).unwrap().is_none(), "one at a time");
            assert_eq!((size, offset as usize), (40_000, stored.len()));
            stored.extend(data);
            if turn % 2 == 0 {
                // The answer is lost: the same comes again, and the fleet says how far it is.
                deliver.restart();
                let Ok(Some(Request::Part { offset, .. })) = deliver.next(0) else { panic!("sent again") };
                assert!((offset as usize) < stored.len());
            }
            let next = u32::try_from(stored.len()).unwrap();
            if deliver.kept(order, Some(next)) == Delivered::All(order) {
                files.push((order, std::mem::take(&mut stored)));
            }
        }
        let grown: Vec<u8> = (0..40_000).map(|n| (n % 251) as u8).collect();
        assert_eq!(files, [(7, grown.clone()), (8, grown)]);
    }

    #[test]
    fn what_nobody_wants_and_what_cannot_be_read_makes_room_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (captures, mut deliver) = recorded(dir.path(), &[7, 8]);
        assert!(deliver.next(0).unwrap().is_some());
        assert_eq!(deliver.kept(8, None), Delivered::Nothing, "not on its way");
        assert_eq!(deliver.kept(7, None), Delivered::Unwanted(7));
        captures.remove(8).unwrap();
        assert_eq!(deliver.next(0).unwrap_err().0, 8);
        assert!(deliver.next(0).unwrap().is_none());
    }

    #[test]
    fn an_overdue_part_is_sent_again() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut deliver) = recorded(dir.path(), &[7]);
        assert!(deliver.next(0).unwrap().is_some());
        assert!(deliver.next(STALL_NS).unwrap().is_none());
        assert!(deliver.next(STALL_NS + 1).unwrap().is_some());
    }
}
