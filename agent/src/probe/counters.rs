//! What the kernel programs and their reader counted.

use agent_ebpf::records::Class;

/// What a poll found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollStats {
    /// Records that became events.
    pub events: u64,
    /// Records that did not.
    pub decode_errors: u64,
}

/// Counters of one class. `seen = submitted + dropped + throttled`; after a poll, `submitted = received`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCounters {
    /// A hook began a record.
    pub seen: u64,
    /// It entered a ring.
    pub submitted: u64,
    /// A ring or map was full.
    pub dropped: u64,
    /// Its process had used up its cap, or it was not its first while the urgent ring was half full. For `flush`: left in the map for the next drain.
    pub throttled: u64,
    /// The agent decoded it.
    pub received: u64,
}

/// All counters since loading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Per class, in the order of [`Class::ALL`].
    pub classes: Vec<(&'static str, ClassCounters)>,
    /// Threads whose call sequence was cut by another thread's.
    pub collisions: u64,
    /// Paths and addresses that were not in memory at the hook.
    pub unreadable: u64,
    /// Grams of learning processes that found their map full.
    pub grams_refused: u64,
    /// Places for windows that the kernel's maps did not take back: gone until the next start.
    pub places_lost: u64,
    /// Processes whose grams are not learned because too many are learned at a time.
    pub learners_refused: u64,
    /// Records that could not be decoded.
    pub decode_errors: u64,
    /// Files touched that turned out to lie in no watched directory.
    pub elsewhere: u64,
    /// Files touched by a process that left before the agent could ask which they were.
    pub unresolved: u64,
    /// Paths that were not followed through links, because too many came or a file system did not answer.
    pub unchecked: u64,
    /// Packets that left no contained control group.
    pub egress_denied: u64,
}

impl Counters {
    /// The counters of one class.
    #[must_use]
    pub fn class(&self, class: Class) -> ClassCounters {
        self.classes.get(class as usize).map(|c| c.1).unwrap_or_default()
    }

    /// Names, as heartbeats and metrics give them, and values.
    #[must_use]
    pub fn list(&self) -> Vec<(String, u64)> {
        let mut all = Vec::new();
        for (name, class) in &self.classes {
            for (what, value) in [
                ("seen", class.seen),
                ("submitted", class.submitted),
                ("dropped", class.dropped),
                ("throttled", class.throttled),
                ("received", class.received),
            ] {
                all.push((format!("kernel_{name}_{what}"), value));
            }
        }
        let others = [
            ("kernel_collisions", self.collisions),
            ("kernel_unreadable", self.unreadable),
            ("kernel_grams_refused", self.grams_refused),
            ("kernel_places_lost", self.places_lost),
            ("kernel_learners_refused", self.learners_refused),
            ("kernel_decode_errors", self.decode_errors),
            ("kernel_elsewhere", self.elsewhere),
            ("kernel_unresolved", self.unresolved),
            ("opens_unchecked", self.unchecked),
            ("kernel_egress_denied", self.egress_denied),
        ];
        all.extend(others.map(|(name, value)| (name.to_owned(), value)));
        all
    }
}
