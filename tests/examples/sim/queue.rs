//! What will happen, in the order of time; what is put for the same moment happens in the order in which it was put.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Things and their times.
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Entry<T>>,
    pushed: u64,
}

struct Entry<T> {
    at_ms: u64,
    order: u64,
    what: T,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), pushed: 0 }
    }
}

impl<T> Queue<T> {
    pub(crate) fn push(&mut self, at_ms: u64, what: T) {
        self.pushed += 1;
        self.heap.push(Entry { at_ms, order: self.pushed, what });
    }

    /// The next thing and its time.
    pub(crate) fn pop(&mut self) -> Option<(u64, T)> {
        self.heap.pop().map(|entry| (entry.at_ms, entry.what))
    }

    /// How many things were ever put.
    pub(crate) fn pushed(&self) -> u64 {
        self.pushed
    }
}

impl<T> Ord for Entry<T> {
    /// The earliest is the greatest: the heap gives that first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_ms, other.order).cmp(&(self.at_ms, self.order))
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Entry<T> {}
