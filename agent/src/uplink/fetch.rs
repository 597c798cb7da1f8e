//! Offers to complete bundles, one chunk after another, going on where it was after a lost connection.

use std::collections::VecDeque;

use models::bundle::{BUNDLE_MAX, sha256};
use models::program::ProgramId;
use models::wire::Offer;

use super::transfer::{Piece, Taken, Transfer, Way};

/// Offers that wait; one more drops the oldest, which the fleet offers again at the next connection.
const OFFERS_MAX: usize = 256;

/// What a chunk led to.
#[derive(Debug)]
pub(super) enum Fetched {
    /// More is needed, or nobody waits for it.
    Nothing,
    /// All of it, with the right hash.
    Complete(Offer, Vec<u8>),
    /// All of it, and not what was offered.
    Wrong,
}

#[derive(Debug, Default)]
pub(super) struct Fetch {
    waiting: VecDeque<Offer>,
    current: Option<(Offer, Transfer<Vec<u8>>)>,
}

impl Fetch {
    /// Adds an offer; a newer one for the same program replaces the one that waits.
    pub(super) fn add(&mut self, offer: Offer) {
        let same = |other: &Offer| other.sha256 == offer.sha256;
        if offer.size as usize > BUNDLE_MAX || self.current.as_ref().is_some_and(|(current, _)| same(current))
        {
            return;
        }
        self.waiting.retain(|other| other.program != offer.program);
        if self.waiting.len() >= OFFERS_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(offer);
    }

    /// Fetches this bundle no longer.
    pub(super) fn forget(&mut self, program: &ProgramId, generation: u64) {
        let same = |offer: &Offer| offer.program == *program && offer.generation == generation;
        self.waiting.retain(|offer| !same(offer));
        if self.current.as_ref().is_some_and(|(offer, _)| same(offer)) {
            // An answer that still comes is for nobody.
            self.current = None;
        }
    }

    /// What to ask for now, if nothing is on its way.
    pub(super) fn next(&mut self, now_ns: u64, way: Way) -> Option<Piece> {
        if self.current.is_none() {
            let offer = self.waiting.pop_front()?;
            let transfer = Transfer::new(offer.sha256, offer.size, 0, Vec::new());
            self.current = Some((offer, transfer));
        }
        self.current.as_mut()?.1.next(now_ns, way)
    }

    /// Takes a piece.
    pub(super) fn take(&mut self, hash: [u8; 32], offset: u32, chunk: &[u8]) -> Fetched {
        let Some((_, transfer)) = &mut self.current else { return Fetched::Nothing };
        match transfer.take(hash, offset, chunk) {
            Taken::Nothing => return Fetched::Nothing,
            Taken::End => {}
            Taken::Failed(error) => unreachable!("memory takes what is written to it: {error}"),
        }
        match self.current.take().map(|(offer, transfer)| (offer, transfer.into_inner())) {
            Some((offer, data)) if sha256(&data) == hash => Fetched::Complete(offer, data),
            _ => Fetched::Wrong,
        }
    }

    /// What was asked for this way does not come.
    pub(super) fn lost(&mut self, way: Way) {
        if let Some((_, transfer)) = &mut self.current {
            transfer.lost(way);
        }
    }
}

#[cfg(test)]
mod tests {
    use models::wire::CHUNK_MAX;

    use super::super::transfer::STALL_NS;
    use super::*;

    fn offer(bytes: &[u8]) -> Offer {
        let program = ProgramId { unit: "u".into(), exe: "/e".into(), script: None };
        Offer { program, generation: 1, sha256: sha256(bytes), size: u32::try_from(bytes.len()).unwrap() }
    }

    fn check(served: &[u8], offered: &[u8], lose_every: usize) -> Option<bool> {
        let mut fetch = Fetch::default();
        fetch.add(offer(offered));
        for turn in 1..100 {
            let Piece { sha256, offset, len, .. } = fetch.next(0, Way::Mqtt)?;
            if turn % lose_every == 0 {
                fetch.lost(Way::Mqtt);
                continue;
            }
            let (from, to) = (offset as usize, (offset + len) as usize);
            match fetch.take(sha256, offset, &served[from.min(served.len())..to.min(served.len())]) {
                Fetched::Nothing => {}
                Fetched::Complete(_, bytes) => return Some(bytes == offered),
                Fetched::Wrong => return Some(false),
            }
        }
        None
    }

    #[test]
    fn a_bundle_comes_whole_also_over_a_link_that_breaks() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
        assert_eq!(check(&bytes, &bytes, 1000), Some(true));
        assert_eq!(check(&bytes, &bytes, 3), Some(true));
        assert_eq!(check(&bytes[..CHUNK_MAX], &bytes[..CHUNK_MAX], 1000), Some(true));
    }

    #[test]
    fn changed_or_short_contents_are_dropped() {
        let bytes = vec![1; 40_000];
        let mut changed = bytes.clone();
        changed[39_999] = 2;
        assert_eq!(check(&changed, &bytes, 1000), Some(false));
        assert_eq!(check(&bytes[..30_000], &bytes, 1000), Some(false));
    }

    #[test]
    fn what_was_taken_back_is_fetched_no_longer() {
        let mut fetch = Fetch::default();
        let taken = offer(&[1; 10]);
        fetch.add(taken.clone());
        let Piece { sha256, offset, .. } = fetch.next(0, Way::Mqtt).expect("it is fetched");
        fetch.forget(&taken.program, 2);
        assert!(fetch.current.is_some(), "another generation");
        fetch.forget(&taken.program, 1);
        assert!(matches!(fetch.take(sha256, offset, &[1; 10]), Fetched::Nothing));
        assert!(fetch.next(0, Way::Mqtt).is_none());
        fetch.add(taken.clone());
        fetch.forget(&taken.program, 1);
        assert!(fetch.next(0, Way::Mqtt).is_none(), "it waited");
    }

    #[test]
    fn an_overdue_chunk_is_asked_for_again() {
        let mut fetch = Fetch::default();
        fetch.add(offer(&[1; 10]));
        assert!(fetch.next(0, Way::Mqtt).is_some());
        assert!(fetch.next(STALL_NS, Way::Mqtt).is_none());
        assert!(fetch.next(STALL_NS + 1, Way::Mqtt).is_some());
    }
}
