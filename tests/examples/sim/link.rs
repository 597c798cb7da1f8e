//! The way between a device and the fleet.

/// The way between a device and the fleet.
#[derive(Default)]
pub(crate) struct Link {
    /// Nothing goes over it.
    pub(crate) broken: bool,
    /// Counts up with each connection; 0 for none.
    pub(crate) number: u64,
    pub(crate) is_open: bool,
    /// Somebody looks after it at some time.
    pub(crate) looks: bool,
    /// It is tried again at some time.
    pub(crate) connects: bool,
    /// Messages on it.
    pub(crate) under_way: usize,
    /// Messages on one connection stay in order: when the last one arrives.
    pub(crate) up_ms: u64,
    pub(crate) down_ms: u64,
}
