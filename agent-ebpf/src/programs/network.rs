//! The network layer: whom a process asks to connect to.

use agent_ebpf::records::{Class, Connect, KIND_CONNECT, Window, counter};
use aya_ebpf::{
    helpers::bpf_probe_read_user,
    macros::{btf_tracepoint, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};

use crate::shared::{Registers, URGENT_CAP, caller, count, count_at, send_urgent};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Where a classic tracepoint of `connect` keeps its second argument.
const TP_ADDRESS: usize = 24;

#[btf_tracepoint(function = "sys_enter")]
fn connect_btf(ctx: BtfTracePointContext) -> i32 {
    connect(Registers(ctx.arg(0)).arg(1));
    0
}

#[raw_tracepoint(tracepoint = "sys_enter")]
fn connect_raw(ctx: RawTracePointContext) -> i32 {
    connect(Registers(ctx.arg(0)).arg(1));
    0
}

#[tracepoint(category = "syscalls", name = "sys_enter_connect")]
fn connect_tp(ctx: TracePointContext) -> u32 {
    // SAFETY: the address is a 64-bit field of the tracepoint.
    if let Ok(address) = unsafe { ctx.read_at::<u64>(TP_ADDRESS) } {
        connect(address);
    }
    0
}

#[inline(always)]
fn connect(address: u64) {
    let Some(caller) = caller() else { return };
    // SAFETY: the helper checks the address. `sockaddr_in` is family, port, address in 2 + 2 + 4 bytes.
    let Ok(start) = (unsafe { bpf_probe_read_user(address as *const [u8; 8]) }) else {
        return count_at(counter::UNREADABLE);
    };
    let family = u16::from_ne_bytes([start[0], start[1]]);
    let mut addr = [0; 16];
    match family {
        AF_INET => {
            addr[0] = start[4];
            addr[1] = start[5];
            addr[2] = start[6];
            addr[3] = start[7];
        }
        AF_INET6 => {
            // SAFETY: as above. `sockaddr_in6` keeps its address after 2 + 2 + 4 bytes.
            match unsafe { bpf_probe_read_user((address + 8) as *const [u8; 16]) } {
                Ok(read) => addr = read,
                Err(_) => return count_at(counter::UNREADABLE),
            }
        }
        _ => return,
    }
    count(Class::Connect, counter::SEEN);
    if !caller.within_cap(URGENT_CAP.load(), urgent) {
        return count(Class::Connect, counter::THROTTLED);
    }
    let port = u32::from(u16::from_be_bytes([start[2], start[3]]));
    let record = Connect { header: caller.header(KIND_CONNECT), family: u32::from(family), port, addr };
    send_urgent(Class::Connect, &record);
}

#[inline(always)]
fn urgent(window: *mut Window) -> *mut u32 {
    // SAFETY: `window` points into a map value.
    unsafe { &raw mut (*window).n_urgent }
}
