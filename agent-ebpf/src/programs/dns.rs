//! The DNS layer: messages to port 53, by address or over a socket connected to it.

use core::hint;

use agent_ebpf::records::{Class, DNS_LEN, Dns, KIND_DNS, Peer, SocketKey};
use aya_ebpf::{helpers::generated::bpf_probe_read_user as raw_read_user, macros::map, maps::PerCpuArray};

use crate::{
    call_layer,
    network::{DNS_PORT, count_sent, peer},
    shared::{Caller, DNS_SOCKETS, caller, read_user, send_urgent, slot},
};

const SLOT_WRITEV: u16 = 20;
const SLOT_SENDTO: u16 = 44;
const SLOT_SENDMSG: u16 = 46;
/// Bytes of a `mmsghdr`.
const MMSGHDR: u64 = 64;
/// Messages of one `sendmmsg` that are looked at: a resolver sends two.
const MESSAGES: u64 = 4;

/// The record is too large for the stack.
#[map]
static ASKING: PerCpuArray<Dns> = PerCpuArray::with_max_entries(1, 0);

call_layer!(send_btf, send_raw, send_tp, send);

/// One piece of memory, or two when the first holds only the length that TCP needs.
#[derive(Clone, Copy)]
struct Pieces {
    first: [u64; 2],
    second: [u64; 2],
}

#[inline(always)]
fn send(nr: u64, arg: impl Fn(usize) -> u64) {
    let Some(caller) = caller() else { return };
    let fd = arg(0) as u32;
    match slot(nr) {
        SLOT_SENDTO => {
            let (base, len) = (arg(1), arg(2));
            count_sent(caller, len & 0x7fff_ffff);
            sent(caller, fd, arg(4), Pieces { first: [base, len], second: [0; 2] });
        }
        SLOT_SENDMSG => message(caller, fd, arg(1), true),
        SLOT_WRITEV => {
            // Any file may be written so; only a socket known to be connected is looked at.
            let socket = SocketKey { tgid: caller.tgid, fd };
            if DNS_SOCKETS.get_ptr(socket).is_some() {
                if let Some(pieces) = pieces(arg(1), arg(2)) {
                    sent(caller, fd, 0, pieces);
                }
            }
        }
        _ => {
            let (headers, n) = (arg(1), arg(2));
            let mut at = 0;
            while at < MESSAGES {
                if at >= n {
                    break;
                }
                message(caller, fd, headers + at * MMSGHDR, true);
                at += 1;
            }
        }
    }
}

/// One `msghdr`: address, its length and a gap, pieces, number of pieces.
#[inline(always)]
fn message(caller: Caller, fd: u32, header: u64, counted: bool) {
    let Some([name, _, list, n]) = read_user::<[u64; 4]>(header) else { return };
    let Some(pieces) = pieces(list, n) else { return };
    if counted {
        count_sent(caller, (pieces.first[1] + pieces.second[1]) & 0x7fff_ffff);
    }
    sent(caller, fd, name, pieces);
}

#[inline(always)]
fn pieces(list: u64, n: u64) -> Option<Pieces> {
    let first = read_user::<[u64; 2]>(list)?;
    let second = if n > 1 { read_user::<[u64; 2]>(list + 16)? } else { [0; 2] };
    Some(Pieces { first, second })
}

#[inline(always)]
fn sent(caller: Caller, fd: u32, address: u64, pieces: Pieces) {
    let to = if address != 0 {
        peer(address)
    } else {
        let socket = SocketKey { tgid: caller.tgid, fd };
        // SAFETY: an entry may be replaced by another peer of the same process while it is read; both are whole.
        unsafe { DNS_SOCKETS.get(socket) }.copied()
    };
    let Some(Peer { family, port: DNS_PORT, addr }) = to else { return };
    if !caller.may_act(Class::Dns) {
        return;
    }
    let [base, len] =
        if pieces.first[1] == 2 && pieces.second[1] != 0 { pieces.second } else { pieces.first };
    let Some(record) = ASKING.get_ptr_mut(0) else { return };
    // SAFETY: `record` points into this CPU's element, and no other program of ours runs on this CPU meanwhile. The
    // helper checks the address.
    unsafe {
        caller.write_header(&raw mut (*record).header, KIND_DNS);
        (*record).family = family;
        (*record).len = len as u32;
        (*record)._pad = 0;
        (*record).addr = addr;
        let message = (&raw mut (*record).message).cast();
        // Checked right before it is used: older verifiers forget what they know of a value kept on the stack.
        let len = hint::black_box(len);
        let taken = if len < DNS_LEN as u64 { len as u32 } else { DNS_LEN as u32 };
        let read = raw_read_user(message, taken, base as *const _) == 0;
        (*record).taken = if read { taken } else { 0 };
        send_urgent(Class::Dns, &*record);
    }
}
