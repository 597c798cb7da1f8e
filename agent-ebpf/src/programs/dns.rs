//! The DNS layer: messages to port 53, by address or over a socket connected to it. Datagrams to other ports are the
//! network layer's.

use core::hint;

use agent_ebpf::gram::{self, Before};
use agent_ebpf::records::{Class, DNS_LEN, Dns, Field, KIND_DNS, Peer, SocketKey};
use aya_ebpf::{helpers::generated::bpf_probe_read_user as raw_read_user, macros::map, maps::PerCpuArray};

use crate::{
    call::{SEND_WITHOUT_ADDRESS, is_narrow_place, read_words, slot},
    call_layer,
    network::{self, AF_INET, DNS_PORT, count_sent, peer},
    shared::{Caller, DNS_SOCKETS, caller, field, send_urgent},
};

const SLOT_WRITEV: u16 = 20;
const SLOT_SENDTO: u16 = 44;
const SLOT_SENDMSG: u16 = 46;
const SLOT_SENDMMSG: u16 = 307;
/// Bytes of a `mmsghdr`.
const MMSGHDR: u64 = 64;
/// The same for 32-bit calls.
const NARROW_MMSGHDR: u64 = 32;
/// Messages of one `sendmmsg` that are looked at: a resolver sends two.
const MESSAGES: u64 = 4;

/// The record is too large for the stack.
#[map]
static ASKING: PerCpuArray<Dns> = PerCpuArray::with_max_entries(1, 0);

call_layer!(send_btf, send_raw, send_tp, send);

/// One piece of memory, or two when the first holds only the length that TCP needs.
#[derive(Clone, Copy)]
#[repr(C)]
struct Pieces {
    first: [u64; 2],
    second: [u64; 2],
}

/// One message of a call.
#[derive(Clone, Copy)]
#[repr(C)]
struct Message {
    /// Where the address is that it goes to, zero for that of the socket.
    address: u64,
    pieces: Pieces,
}

/// The messages of a call that are looked at.
#[repr(C)]
struct Messages {
    /// How many.
    n: u64,
    /// Whether their bytes are counted here.
    counts: u64,
    all: [Message; MESSAGES as usize],
}

/// Between reading messages and looking at them: what lies in a map is unknown to the verifier, so it follows what is done with
/// a message once, and not once for each way in which it and those before it can be read. That was three quarters of the
/// time that loading all programs took.
#[map]
static READ: PerCpuArray<Messages> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn send(caller: Caller, nr: u64, arg: impl Fn(usize) -> u64) {
    let fd = arg(0) as u32;
    let Some(messages) = READ.get_ptr_mut(0) else { return };
    // SAFETY: `messages` points to this CPU's element, and no other program of ours runs on this CPU meanwhile.
    let (n, counts) = unsafe {
        read(caller, nr, fd, arg, messages);
        ((&raw const (*messages).n).read_volatile(), (&raw const (*messages).counts).read_volatile())
    };
    let mut at = 0;
    while at < MESSAGES {
        if at >= n {
            break;
        }
        // SAFETY: as above, and `at` is below the length.
        let Message { address, pieces } =
            unsafe { (&raw const (*messages).all).cast::<Message>().add(at as usize).read_volatile() };
        if counts != 0 {
            count_sent(caller, (pieces.first[1] + pieces.second[1]) & 0x7fff_ffff);
        }
        sent(caller, fd, address, pieces);
        at += 1;
    }
}

/// Reads the messages of a call, up to the first that cannot be read.
///
/// # Safety
///
/// `into` points to an element of this CPU.
#[inline(always)]
unsafe fn read(caller: Caller, nr: u64, fd: u32, arg: impl Fn(usize) -> u64, into: *mut Messages) {
    let call = slot(nr);
    let put = |at: u64, message: Message| {
        // SAFETY: the caller's promise; all who call this stay below the length.
        unsafe { (&raw mut (*into).all).cast::<Message>().add(at as usize).write_volatile(message) };
    };
    // SAFETY: the caller's promise.
    let told = |n: u64, counts: bool| unsafe {
        (&raw mut (*into).n).write_volatile(n);
        (&raw mut (*into).counts).write_volatile(u64::from(counts));
    };
    told(0, false);
    match call {
        SLOT_SENDTO => {
            let address = if nr == u64::from(SEND_WITHOUT_ADDRESS.load()) { 0 } else { arg(4) };
            put(0, Message { address, pieces: Pieces { first: [arg(1), arg(2)], second: [0; 2] } });
            told(1, true);
        }
        SLOT_WRITEV => {
            // Any file may be written so; only a socket known to be connected is looked at.
            if DNS_SOCKETS.get_ptr(SocketKey { tgid: caller.tgid, fd }).is_none() {
                return;
            }
            let Some(pieces) = pieces(nr, arg(1), arg(2)) else { return };
            put(0, Message { address: 0, pieces });
            told(1, false);
        }
        _ => {
            let messages = if call == SLOT_SENDMSG { 1 } else { arg(2) };
            let size = if is_narrow_place(nr) { NARROW_MMSGHDR } else { MMSGHDR };
            let mut at = 0;
            while at < MESSAGES {
                if at >= messages {
                    break;
                }
                let Some(message) = message(nr, arg(1) + at * size) else { return };
                put(at, message);
                at += 1;
                told(at, true);
            }
        }
    }
}

/// One `msghdr`: address, its length and a gap, pieces, number of pieces.
#[inline(always)]
fn message(nr: u64, header: u64) -> Option<Message> {
    let [address, _, list, n] = read_words::<4>(nr, header)?;
    Some(Message { address, pieces: pieces(nr, list, n)? })
}

#[inline(always)]
fn pieces(nr: u64, list: u64, n: u64) -> Option<Pieces> {
    if n > 1 {
        let [a, b, c, d] = read_words(nr, list)?;
        return Some(Pieces { first: [a, b], second: [c, d] });
    }
    Some(Pieces { first: read_words(nr, list)?, second: [0; 2] })
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
    let Some(to) = to else { return };
    if to.port != DNS_PORT {
        return network::datagram(caller, to);
    }
    let [base, len] =
        if pieces.first[1] == 2 && pieces.second[1] != 0 { pieces.second } else { pieces.first };
    report(caller, to, base, len);
}

/// `read`, `write` and `sendfile` on a socket: how much went to port 53, and to whom; not what.
#[inline(always)]
pub(crate) fn moved(sock: u64, family: u16, n: u32) {
    let Some(caller) = caller() else { return };
    let Some(thread) = caller.thread() else { return };
    // SAFETY: `thread` points to an element of an array, and the cell is read as one aligned word.
    let last = match gram::before(unsafe { (&raw const (*thread).cell).read_volatile() }, caller.tid) {
        Before::Gram(gram) => gram::latest(gram),
        _ => None,
    };
    // Of these the message was seen on the way in.
    if let Some(SLOT_SENDTO | SLOT_SENDMSG | SLOT_SENDMMSG | SLOT_WRITEV) = last {
        return;
    }
    let addr = if family == AF_INET {
        field::<[u8; 4]>(sock, Field::SockAddr)
            .map(|[a, b, c, d]| [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    } else {
        field(sock, Field::SockAddr6)
    };
    if let Some(addr) = addr {
        report(caller, Peer { family: u32::from(family), port: DNS_PORT, addr }, 0, u64::from(n));
    }
}

/// Sends a record about a message; at address zero its text is not known.
#[inline(always)]
fn report(caller: Caller, to: Peer, base: u64, len: u64) {
    if !caller.may_act(Class::Dns) {
        return;
    }
    let Some(record) = ASKING.get_ptr_mut(0) else { return };
    // SAFETY: `record` points into this CPU's element, and no other program of ours runs on this CPU meanwhile. The
    // helper checks the address.
    unsafe {
        caller.write_header(&raw mut (*record).header, KIND_DNS);
        (*record).family = to.family;
        (*record).len = len as u32;
        (*record)._pad = 0;
        (*record).addr = to.addr;
        let message = (&raw mut (*record).message).cast();
        // Checked right before it is used: older verifiers forget what they know of a value kept on the stack.
        let len = hint::black_box(len);
        let taken = if len < DNS_LEN as u64 { len as u32 } else { DNS_LEN as u32 };
        let read = base != 0 && raw_read_user(message, taken, base as *const _) == 0;
        (*record).taken = if read { taken } else { 0 };
        send_urgent(Class::Dns, &*record);
    }
}
