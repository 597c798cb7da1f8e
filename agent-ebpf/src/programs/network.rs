//! The network layer: whom a process asks to connect to, and how many bytes it sends and receives.

use agent_ebpf::records::{
    Class, Connect, Field, KIND_CONNECT, MODE_COUNT_CALLS, Peer, PeerKey, SocketKey, Window, counter,
};
use aya_ebpf::{
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::LruHashMap,
    programs::{BtfTracePointContext, RawTracePointContext},
};

use crate::{
    call::{read_words, slot},
    call_layer, dns,
    shared::{
        Caller, DNS_SOCKETS, add_u64, caller, count, count_at, field, modes, offset, open_epoch, read_user,
        send_urgent,
    },
};

pub(crate) const AF_INET: u16 = 2;
pub(crate) const AF_INET6: u16 = 10;
pub(crate) const DNS_PORT: u32 = 53;
const SLOT_RECVMSG: u16 = 47;

#[map]
static PEERS: LruHashMap<PeerKey, u32> = LruHashMap::with_max_entries(1024, 0);

call_layer!(connect_btf, connect_raw, connect_tp, connect);
call_layer!(recv_btf, recv_raw, recv_tp, recv);

#[btf_tracepoint(function = "sock_send_length")]
fn sent_btf(ctx: BtfTracePointContext) -> i32 {
    let sock: u64 = ctx.arg(0);
    sent(sock, ctx.arg(1), || typed(sock, Field::SockFamily, FAMILY), || typed(sock, Field::SockPort, PORT));
    0
}

#[raw_tracepoint(tracepoint = "sock_send_length")]
fn sent_raw(ctx: RawTracePointContext) -> i32 {
    let sock: u64 = ctx.arg(0);
    sent(sock, ctx.arg(1), || field(sock, Field::SockFamily), || field(sock, Field::SockPort));
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
fn received_btf(ctx: BtfTracePointContext) -> i32 {
    let sock: u64 = ctx.arg(0);
    moved(ctx.arg(1), typed(sock, Field::SockFamily, FAMILY), received_of);
    0
}

#[raw_tracepoint(tracepoint = "sock_recv_length")]
fn received_raw(ctx: RawTracePointContext) -> i32 {
    moved(ctx.arg(1), field(ctx.arg(0), Field::SockFamily), received_of);
    0
}

/// Where `skc_family` and `skc_dport` have been since Linux 2.6.
const FAMILY: u64 = 16;
const PORT: u64 = 12;

/// A field of a socket whose type the verifier knows, read without a helper where it is where it usually is.
#[inline(always)]
fn typed(sock: u64, place: Field, usual: u64) -> Option<u16> {
    if offset(place) == Some(usual) {
        // SAFETY: the kernel checks each such access, by its type when it loads the program, and by its fault when it runs.
        return Some(unsafe { ((sock + usual) as *const u16).read_volatile() });
    }
    field(sock, place)
}

/// A socket sent so many bytes.
#[inline(always)]
fn sent(sock: u64, result: i32, family: impl Fn() -> Option<u16>, port: impl Fn() -> Option<u16>) {
    let family = family();
    if moved(result, family, sent_of) && port().map(u16::from_be) == Some(DNS_PORT as u16) {
        dns::moved(sock, family.unwrap_or(0), result as u32);
    }
}

/// A socket moved so many bytes, or failed with a negative number; true when they were counted. Without type information
/// every socket counts, those of the machine's own kind too.
#[inline(always)]
fn moved(result: i32, family: Option<u16>, counted: fn(*mut Window) -> *mut u64) -> bool {
    if result <= 0 || family.is_some_and(|family| family != AF_INET && family != AF_INET6) {
        return false;
    }
    let Some(caller) = caller() else { return false };
    count_bytes(caller, result as u64, counted);
    true
}

/// Adds to a sum of this process's window.
#[inline(always)]
fn count_bytes(caller: Caller, n: u64, counted: fn(*mut Window) -> *mut u64) {
    let Some(epoch) = open_epoch() else { return };
    if let Some(window) = caller.window(epoch.number) {
        add_u64(counted(window), n);
    }
}

#[inline(always)]
fn sent_of(window: *mut Window) -> *mut u64 {
    // SAFETY: `window` points into a map value.
    unsafe { &raw mut (*window).bytes_sent }
}

#[inline(always)]
fn received_of(window: *mut Window) -> *mut u64 {
    // SAFETY: `window` points into a map value.
    unsafe { &raw mut (*window).bytes_recv }
}

/// Counts what a call wants to send, when nothing better counts it.
#[inline(always)]
pub(crate) fn count_sent(caller: Caller, n: u64) {
    if modes() & MODE_COUNT_CALLS != 0 {
        count_bytes(caller, n, sent_of);
    }
}

/// Counts the room that a receiving call offers. Attached only when nothing better counts.
#[inline(always)]
fn recv(caller: Caller, nr: u64, arg: impl Fn(usize) -> u64) {
    let room = match slot(nr) {
        SLOT_RECVMSG => message(nr, arg(1)).map_or(0, |m| m.1),
        _ => arg(2),
    };
    count_bytes(caller, room & 0x7fff_ffff, received_of);
}

/// Address and length of the first piece of a `msghdr`.
#[inline(always)]
fn message(nr: u64, header: u64) -> Option<(u64, u64)> {
    let [_, _, pieces] = read_words::<3>(nr, header)?;
    let [base, len] = read_words::<2>(nr, pieces)?;
    Some((base, len))
}

/// Family, port and address of a `sockaddr`; `None` when it is no IP address or not in memory, which is counted.
#[inline(always)]
pub(crate) fn peer(address: u64) -> Option<Peer> {
    // `sockaddr_in` is family, port, address in 2 + 2 + 4 bytes.
    let Some(start) = read_user::<[u8; 8]>(address) else {
        count_at(counter::UNREADABLE);
        return None;
    };
    let family = u16::from_ne_bytes([start[0], start[1]]);
    let port = u32::from(u16::from_be_bytes([start[2], start[3]]));
    let mut addr = [0; 16];
    match family {
        AF_INET => {
            addr[0] = start[4];
            addr[1] = start[5];
            addr[2] = start[6];
            addr[3] = start[7];
        }
        AF_INET6 => {
            // `sockaddr_in6` keeps its address after 2 + 2 + 4 bytes.
            let Some(read) = read_user::<[u8; 16]>(address + 8) else {
                count_at(counter::UNREADABLE);
                return None;
            };
            addr = read;
        }
        _ => return None,
    }
    Some(Peer { family: u32::from(family), port, addr })
}

#[inline(always)]
fn connect(caller: Caller, _: u64, arg: impl Fn(usize) -> u64) {
    let socket = SocketKey { tgid: caller.tgid, fd: arg(0) as u32 };
    let Some(peer) = peer(arg(1)) else {
        let _ = DNS_SOCKETS.remove(socket);
        return;
    };
    if peer.port == DNS_PORT {
        let _ = DNS_SOCKETS.insert(socket, &peer, 0);
    } else {
        let _ = DNS_SOCKETS.remove(socket);
    }
    report(caller, peer);
}

/// A datagram with an address of its own: the first one to each peer in an epoch is reported as a connection is. Whom the
/// least recently used table has forgotten is reported again.
#[inline(always)]
pub(crate) fn datagram(caller: Caller, peer: Peer) {
    let Some(epoch) = open_epoch() else { return };
    let key = PeerKey { tgid: caller.tgid, peer };
    // SAFETY: the value is read at once.
    if unsafe { PEERS.get(key) }.is_some_and(|told| *told == epoch.number) {
        return;
    }
    let _ = PEERS.insert(key, epoch.number, 0);
    report(caller, peer);
}

/// A connection that was given to io_uring.
#[inline(always)]
pub(crate) fn submitted(caller: Caller, address: u64) {
    if let Some(peer) = peer(address) {
        report(caller, peer);
    }
}

#[inline(always)]
fn report(caller: Caller, to: Peer) {
    count(Class::Connect, counter::SEEN);
    if !caller.may_report() {
        return count(Class::Connect, counter::THROTTLED);
    }
    let header = caller.header(KIND_CONNECT);
    send_urgent(Class::Connect, &Connect { header, family: to.family, port: to.port, addr: to.addr });
}
