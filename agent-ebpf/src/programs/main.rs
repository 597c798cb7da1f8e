//! The eBPF programs. One object serves every architecture: what differs arrives in globals.
#![no_std]
#![no_main]
#![allow(internal_features, reason = "32-bit atomic addition has no stable name on this target")]
#![feature(core_intrinsics)]

mod call;
mod capability;
mod dns;
mod egress;
mod escape;
mod file;
mod injection;
mod network;
mod privilege;
mod process;
mod sequence;
mod shared;
mod syscall;
mod traces;
mod uring;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
