//! What leaves the machine, and what does not: contained control groups send nothing, and a quarantined device reaches its fleet
//! only. The one program that acts instead of watching. Loaded only when the operator configured it, and gone with the agent.

use agent_ebpf::records::{
    CGROUP_DEPTH_MAX, DENIED_MAX, MODE_DENY_EGRESS, MODE_QUARANTINE, PORTS, REACHABLE_MAX, counter,
};
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::generated::bpf_skb_ancestor_cgroup_id,
    macros::{cgroup_skb, map},
    maps::{HashMap, LpmTrie, lpm_trie::Key},
    programs::SkBuffContext,
};

use crate::shared::{COUNTERS, add_u64, modes};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
/// The loopback interface of every network namespace.
const LOOPBACK: u32 = 1;

/// `ETH_P_IP` and `ETH_P_IPV6`, in network order as in `__sk_buff`.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Router and neighbour solicitations and advertisements (RFC 4861): without them nothing is reached at all.
const FIRST_NEIGHBOUR: u8 = 133;
const LAST_NEIGHBOUR: u8 = 136;
/// Where multicast listeners report to (RFC 3810), which switches that look at it need for the former.
const LISTENERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16];
/// Ports of a DHCP client and its server (RFC 2131, RFC 8415): the address is kept.
const DHCP: (u16, u16) = (68, 67);
const DHCPV6: (u16, u16) = (546, 547);

#[map]
static DENIED: HashMap<u64, u32> = HashMap::with_max_entries(DENIED_MAX, 0);

/// Addresses, those of IPv4 as `::ffff:0:0/96`, to ports; all zero for any.
#[map]
static REACHABLE: LpmTrie<[u8; 16], [u16; PORTS]> =
    LpmTrie::with_max_entries(REACHABLE_MAX, BPF_F_NO_PREALLOC);

/// Attached to the root of the version 2 hierarchy, so it sees what every socket sends. The minimum kernel version is 5.8.
#[cgroup_skb(egress)]
fn deny_egress(ctx: SkBuffContext) -> i32 {
    let modes = modes();
    if modes & (MODE_DENY_EGRESS | MODE_QUARANTINE) == 0 {
        return ALLOW;
    }
    // SAFETY: the kernel gives the program a whole `__sk_buff`.
    if unsafe { (*ctx.skb.skb).ifindex } == LOOPBACK {
        return ALLOW;
    }
    let is_denied = modes & MODE_QUARANTINE != 0 && !is_reachable(&ctx)
        || modes & MODE_DENY_EGRESS != 0 && is_contained(&ctx);
    if !is_denied {
        return ALLOW;
    }
    if let Some(counted) = COUNTERS.get_ptr_mut(counter::EGRESS_DENIED) {
        // In one step: a packet may be sent from an interrupt while another is looked at.
        add_u64(counted, 1);
    }
    DENY
}

#[inline(always)]
fn is_contained(ctx: &SkBuffContext) -> bool {
    // A service's own control group and those that it made below.
    for level in 1..=CGROUP_DEPTH_MAX {
        // SAFETY: as above; a level that the socket's group is not below gives 0.
        let id = unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level) };
        if id == 0 {
            break;
        }
        // SAFETY: only whether it is there is asked for.
        if unsafe { DENIED.get(id) }.is_some() {
            return true;
        }
    }
    false
}

/// Whether a quarantined device may send this; what cannot be read is not.
#[inline(always)]
fn is_reachable(ctx: &SkBuffContext) -> bool {
    // SAFETY: as above.
    match unsafe { (*ctx.skb.skb).protocol } {
        IPV4 => reachable_by_ipv4(ctx),
        IPV6 => reachable_by_ipv6(ctx),
        _ => false,
    }
}

#[inline(always)]
fn reachable_by_ipv4(ctx: &SkBuffContext) -> bool {
    let Ok(header) = ctx.load::<[u8; 20]>(0) else { return false };
    // A later fragment has no ports. The kernel asks before it makes fragments: only a raw socket sends one.
    if u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0 {
        return false;
    }
    let mut to = [0; 16];
    (to[10], to[11]) = (0xff, 0xff);
    to[12..].copy_from_slice(&header[16..]);
    is_sent_to(ctx, header[9], usize::from(header[0] & 0xf) * 4, to, DHCP)
}

#[inline(always)]
fn reachable_by_ipv6(ctx: &SkBuffContext) -> bool {
    let Ok(header) = ctx.load::<[u8; 40]>(0) else { return false };
    let mut to = [0; 16];
    to.copy_from_slice(&header[24..]);
    match header[6] {
        ICMPV6 => ctx.load::<u8>(40).is_ok_and(|kind| (FIRST_NEIGHBOUR..=LAST_NEIGHBOUR).contains(&kind)),
        HOP_BY_HOP => to == LISTENERS,
        protocol => is_sent_to(ctx, protocol, 40, to, DHCPV6),
    }
}

#[inline(always)]
fn is_sent_to(ctx: &SkBuffContext, protocol: u8, ports_at: usize, to: [u8; 16], dhcp: (u16, u16)) -> bool {
    let (mut from, mut port) = (0, 0);
    if protocol == TCP || protocol == UDP {
        let Ok(ports) = ctx.load::<[u8; 4]>(ports_at) else { return false };
        from = u16::from_be_bytes([ports[0], ports[1]]);
        port = u16::from_be_bytes([ports[2], ports[3]]);
    }
    if protocol == UDP && (from, port) == dhcp {
        return true;
    }
    let Some(ports) = REACHABLE.get(Key::new(128, to)) else { return false };
    ports[0] == 0 || port != 0 && ports.contains(&port)
}
