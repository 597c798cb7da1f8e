//! Whether the device may be cut off from everything but its fleet: the table `[quarantine]`.

use serde::{Deserialize, Serialize};

use super::read::Reader;
use crate::quarantine::{NETWORKS_MAX, Network};

/// What the device's own file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineRule {
    /// It may.
    pub allowed: bool,
    /// What it reaches then beside the fleet, at any port.
    pub reachable: Vec<Network>,
}

impl QuarantineRule {
    pub(super) fn read(&mut self, keys: &mut Reader) {
        keys.words("allowed", &mut self.allowed, |_| true);
        keys.words("reachable", &mut self.reachable, |list| list.len() <= NETWORKS_MAX);
    }
}
