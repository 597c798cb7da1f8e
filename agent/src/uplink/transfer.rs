//! One thing of the fleet, fetched one piece after another, each asked for again when it does not come.

use std::io::{self, Write};

use models::wire::CHUNK_MAX;

use super::web;
use crate::clock::nanoseconds;

/// Without an answer for this long a chunk is asked for, or a part of a capture sent, again.
pub(super) const STALL_NS: u64 = 15_000_000_000;

/// How a piece is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A chunk over MQTT.
    Mqtt,
    /// A range over HTTPS.
    Web,
}

impl Way {
    /// Bytes of a piece at most.
    fn most(self) -> u32 {
        match self {
            Self::Mqtt => CHUNK_MAX as u32,
            Self::Web => web::RANGE_MAX,
        }
    }

    /// Without an answer for longer it is asked for again. HTTPS tells its failures itself.
    fn stall_ns(self) -> u64 {
        match self {
            Self::Mqtt => STALL_NS,
            Self::Web => 2 * nanoseconds(web::TIMEOUT),
        }
    }
}

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Of the whole file.
    pub(super) sha256: [u8; 32],
    /// Where it begins.
    pub(super) offset: u32,
    /// How many bytes, of which fewer may come.
    pub(super) len: u32,
    /// How.
    pub(super) way: Way,
}

/// Goes on behind what there is already; whoever began it looks at the hash in the end.
#[derive(Debug)]
pub(super) struct Transfer<W> {
    sha256: [u8; 32],
    size: u32,
    have: u32,
    to: W,
    asked: Option<(u64, Way)>,
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
        Self { sha256, size, have: have.min(size), to, asked: None }
    }

    /// What to ask for now, if nothing is on its way. When all of it is there already a chunk of nothing is asked for, so that its
    /// end is noticed in one place.
    pub(super) fn next(&mut self, now_ns: u64, way: Way) -> Option<Piece> {
        if self.asked.is_some() && !self.is_stalled(now_ns) {
            return None;
        }
        let rest = self.size - self.have;
        let way = if rest == 0 { Way::Mqtt } else { way };
        self.asked = Some((now_ns, way));
        Some(Piece { sha256: self.sha256, offset: self.have, len: rest.min(way.most()), way })
    }

    /// Takes a piece. An empty one is the end of what the fleet has.
    pub(super) fn take(&mut self, sha256: [u8; 32], offset: u32, chunk: &[u8]) -> Taken {
        if self.sha256 != sha256 || offset != self.have {
            return Taken::Nothing;
        }
        self.asked = None;
        let chunk = &chunk[..chunk.len().min((self.size - self.have) as usize)];
        if let Err(error) = self.to.write_all(chunk) {
            return Taken::Failed(error);
        }
        self.have += chunk.len() as u32;
        if self.have < self.size && !chunk.is_empty() { Taken::Nothing } else { Taken::End }
    }

    /// What was asked for this way does not come.
    pub(super) fn lost(&mut self, way: Way) {
        self.asked.take_if(|(_, asked)| *asked == way);
    }

    /// Whether an answer is overdue.
    fn is_stalled(&self, now_ns: u64) -> bool {
        self.asked.is_some_and(|(asked_ns, way)| now_ns.saturating_sub(asked_ns) > way.stall_ns())
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
                let Piece { offset, len, .. } = transfer.next(turn * (STALL_NS + 1), Way::Mqtt).unwrap();
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
        assert!(transfer.next(0, Way::Mqtt).is_some());
        assert!(transfer.next(STALL_NS, Way::Mqtt).is_none());
        assert!(transfer.next(STALL_NS + 1, Way::Mqtt).is_some());
        transfer.lost(Way::Web);
        assert!(transfer.next(STALL_NS + 1, Way::Mqtt).is_none(), "it is on its way");
        transfer.lost(Way::Mqtt);
        assert!(transfer.next(STALL_NS + 1, Way::Mqtt).is_some());
    }

    #[test]
    fn ranges_are_longer_and_what_https_did_not_bring_comes_over_mqtt() {
        let size = web::RANGE_MAX + 10;
        let mut transfer = Transfer::new([1; 32], size, 0, io::sink());
        let piece = |offset, len, way| Some(Piece { sha256: [1; 32], offset, len, way });
        assert_eq!(transfer.next(0, Way::Web), piece(0, web::RANGE_MAX, Way::Web));
        transfer.lost(Way::Mqtt);
        assert_eq!(transfer.next(STALL_NS + 1, Way::Web), None, "a new link to the broker changes nothing");
        assert!(matches!(transfer.take([1; 32], 0, &vec![0; web::RANGE_MAX as usize]), Taken::Nothing));
        assert_eq!(transfer.next(1, Way::Web), piece(web::RANGE_MAX, 10, Way::Web));
        transfer.lost(Way::Web);
        assert_eq!(transfer.next(2, Way::Mqtt), piece(web::RANGE_MAX, 10, Way::Mqtt));
        let mut whole = Transfer::new([1; 32], 10, 10, io::sink());
        assert_eq!(whole.next(0, Way::Web), piece(10, 0, Way::Mqtt), "there is no empty range");
    }

    #[test]
    fn it_ends_at_its_size_or_where_the_fleet_has_no_more() {
        let mut transfer = Transfer::new([1; 32], 10, 0, Vec::new());
        assert!(matches!(transfer.take([1; 32], 0, &[7; 20]), Taken::End));
        assert_eq!(transfer.into_inner(), [7; 10]);
        let mut transfer = Transfer::new([1; 32], 10, 4, Vec::new());
        assert!(matches!(transfer.take([1; 32], 4, &[]), Taken::End));
        let mut transfer = Transfer::new([1; 32], 10, 10, Vec::new());
        assert!(matches!(transfer.next(0, Way::Mqtt), Some(Piece { offset: 10, len: 0, .. })));
        assert!(matches!(transfer.take([1; 32], 10, &[]), Taken::End));
    }
}
