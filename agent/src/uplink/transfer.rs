//! One thing of the fleet, fetched one chunk after another, each asked for again when it does not come.

use std::io::{self, Write};

use models::wire::{CHUNK_MAX, Request};

/// Without an answer for this long a chunk is asked for, or a part of a capture sent, again.
pub(super) const STALL_NS: u64 = 15_000_000_000;

/// Goes on behind what there is already; whoever began it looks at the hash in the end.
#[derive(Debug)]
pub(super) struct Transfer<W> {
    sha256: [u8; 32],
    size: u32,
    have: u32,
    to: W,
    asked_ns: Option<u64>,
}

/// What a chunk led to.
#[derive(Debug)]
pub(super) enum Taken {
    /// More is needed, or it was of something else.
    Nothing,
    /// There is nothing more to come.
    End,
    /// It could not be written.
    Failed(io::Error),
}

impl<W: Write> Transfer<W> {
    /// Of `size` bytes, of which `have` are there.
    pub(super) fn new(sha256: [u8; 32], size: u32, have: u32, to: W) -> Self {
        Self { sha256, size, have: have.min(size), to, asked_ns: None }
    }

    /// What to ask for now, if nothing is on its way. When all of it is there already a chunk of nothing is asked for, so that its
    /// end is noticed in one place.
    pub(super) fn next(&mut self, now_ns: u64) -> Option<Request> {
        if self.asked_ns.is_some() && !self.is_stalled(now_ns) {
            return None;
        }
        self.asked_ns = Some(now_ns);
        let len = (self.size - self.have).min(CHUNK_MAX as u32);
        Some(Request::Chunk { sha256: self.sha256, offset: self.have, len })
    }

    /// Takes a chunk. An empty one is the end of what the fleet has.
    pub(super) fn take(&mut self, sha256: [u8; 32], offset: u32, chunk: &[u8]) -> Taken {
        if self.sha256 != sha256 || offset != self.have {
            return Taken::Nothing;
        }
        self.asked_ns = None;
        let chunk = &chunk[..chunk.len().min((self.size - self.have) as usize)];
        if let Err(error) = self.to.write_all(chunk) {
            return Taken::Failed(error);
        }
        self.have += chunk.len() as u32;
        if self.have < self.size && !chunk.is_empty() { Taken::Nothing } else { Taken::End }
    }

    /// The connection is a new one: what was asked for in the old one does not come.
    pub(super) fn restart(&mut self) {
        self.asked_ns = None;
    }

    /// Whether an answer is overdue.
    fn is_stalled(&self, now_ns: u64) -> bool {
        self.asked_ns.is_some_and(|asked| now_ns.saturating_sub(asked) > STALL_NS)
    }

    /// What it was written to.
    pub(super) fn into_inner(self) -> W {
        self.to
    }
}

#[cfg(test)]
mod tests {
    use models::bundle::sha256;

    use super::*;

    #[test]
    fn all_of_it_comes_over_a_link_that_loses() {
        let bytes: Vec<u8> = (0..50_000_u32).map(|n| (n % 251) as u8).collect();
        let hash = sha256(&bytes);
        for lost_every in [2, 3, 1000] {
            let mut transfer = Transfer::new(hash, 50_000, 0, Vec::new());
            let mut end = false;
            for turn in 0..100_u64 {
                // Each turn is late enough for what was lost.
                let Some(Request::Chunk { offset, len, .. }) = transfer.next(turn * (STALL_NS + 1)) else {
                    panic!()
                };
                if turn % lost_every == 1 {
                    continue;
                }
                let chunk = &bytes[offset as usize..(offset + len) as usize];
                assert!(matches!(transfer.take([9; 32], offset, chunk), Taken::Nothing), "of something else");
                assert!(matches!(transfer.take(hash, offset + 1, chunk), Taken::Nothing), "of elsewhere");
                if matches!(transfer.take(hash, offset, chunk), Taken::End) {
                    end = true;
                    break;
                }
                assert!(matches!(transfer.take(hash, offset, chunk), Taken::Nothing), "twice");
            }
            assert!(end);
            assert_eq!(transfer.into_inner(), bytes);
        }
    }

    #[test]
    fn a_chunk_is_asked_for_again_when_it_is_overdue_or_the_link_is_new() {
        let mut transfer = Transfer::new([1; 32], 10, 0, Vec::new());
        assert!(transfer.next(0).is_some());
        assert!(transfer.next(STALL_NS).is_none());
        assert!(transfer.next(STALL_NS + 1).is_some());
        transfer.restart();
        assert!(transfer.next(STALL_NS + 1).is_some());
    }

    #[test]
    fn it_ends_at_its_size_or_where_the_fleet_has_no_more() {
        let mut transfer = Transfer::new([1; 32], 10, 0, Vec::new());
        assert!(matches!(transfer.take([1; 32], 0, &[7; 20]), Taken::End));
        assert_eq!(transfer.into_inner(), [7; 10]);
        let mut transfer = Transfer::new([1; 32], 10, 4, Vec::new());
        assert!(matches!(transfer.take([1; 32], 4, &[]), Taken::End));
        let mut transfer = Transfer::new([1; 32], 10, 10, Vec::new());
        assert!(matches!(transfer.next(0), Some(Request::Chunk { offset: 10, len: 0, .. })));
        assert!(matches!(transfer.take([1; 32], 10, &[]), Taken::End));
    }
}
