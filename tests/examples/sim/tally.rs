//! What came of worlds.

/// What came of some worlds.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) worlds: u64,
    pub(crate) device_days: u64,
    pub(crate) produced: u64,
    pub(crate) stored: u64,
    pub(crate) dropped: u64,
    pub(crate) lost: u64,
    pub(crate) agent_crashes: u64,
    pub(crate) server_crashes: u64,
    pub(crate) partitions: u64,
    pub(crate) duplicates: u64,
    pub(crate) orders: u64,
    pub(crate) violations: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.worlds += other.worlds;
        self.device_days += other.device_days;
        self.produced += other.produced;
        self.stored += other.stored;
        self.dropped += other.dropped;
        self.lost += other.lost;
        self.agent_crashes += other.agent_crashes;
        self.server_crashes += other.server_crashes;
        self.partitions += other.partitions;
        self.duplicates += other.duplicates;
        self.orders += other.orders;
        self.violations.extend(other.violations);
    }
}
