//! Contained control groups send nothing: the one program that acts instead of watching. Loaded only when the operator
//! configured it, and gone with the agent.

use agent_ebpf::records::{CGROUP_DEPTH_MAX, DENIED_MAX, MODE_DENY_EGRESS, counter};
use aya_ebpf::{
    helpers::generated::bpf_skb_ancestor_cgroup_id,
    macros::{cgroup_skb, map},
    maps::HashMap,
    programs::SkBuffContext,
};

use crate::shared::{COUNTERS, add_u64, modes};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
/// The loopback interface of every network namespace.
const LOOPBACK: u32 = 1;

#[map]
static DENIED: HashMap<u64, u32> = HashMap::with_max_entries(DENIED_MAX, 0);

/// Attached to the root of the version 2 hierarchy, so it sees what every socket sends. The minimum kernel version is 5.8.
#[cgroup_skb(egress)]
fn deny_egress(ctx: SkBuffContext) -> i32 {
    if modes() & MODE_DENY_EGRESS == 0 {
        return ALLOW;
    }
    let skb = ctx.skb.skb;
    // SAFETY: the kernel gives the program a whole `__sk_buff`.
    if unsafe { (*skb).ifindex } == LOOPBACK {
        return ALLOW;
    }
    // A service's own control group and those that it made below.
    for level in 1..=CGROUP_DEPTH_MAX {
        // SAFETY: as above; a level that the socket's group is not below gives 0.
        let id = unsafe { bpf_skb_ancestor_cgroup_id(skb, level) };
        if id == 0 {
            break;
        }
        // SAFETY: only whether it is there is asked for.
        if unsafe { DENIED.get(id) }.is_some() {
            if let Some(counted) = COUNTERS.get_ptr_mut(counter::EGRESS_DENIED) {
                // In one step: a packet may be sent from an interrupt while another is looked at.
                add_u64(counted, 1);
            }
            return DENY;
        }
    }
    ALLOW
}
