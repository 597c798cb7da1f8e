//! What traits are in plain words, for the explanation.

use crate::novelty::Kind;

/// Traits whose value is kept as text.
const TEXTS_MAX: usize = 24;

/// A trait's value in plain words.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) id: u64,
    pub(super) text: String,
    pub(super) first_ns: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Texts(heapless::Vec<Shown, TEXTS_MAX>);

impl Texts {
    pub(super) fn get(&self, id: u64) -> Option<&Shown> {
        self.0.iter().find(|shown| shown.id == id)
    }

    /// Keeps one that is not there yet; gives how many found no room. Calls are named by their slot, so they make room, and
    /// are not counted: the text of the others cannot be had again.
    pub(super) fn keep(&mut self, shown: Shown) -> u64 {
        let is_call = |id| Kind::of(id) == Some(Kind::Syscall);
        let Err(shown) = self.0.push(shown) else { return 0 };
        if is_call(shown.id) {
            return 0;
        }
        match self.0.iter().position(|old| is_call(old.id)) {
            Some(at) => {
                self.0[at] = shown;
                0
            }
            None => 1,
        }
    }
}
