//! The pure core of BehaveGuard: no I/O, no clock, no threads.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod calibration;
pub mod event;
pub mod policy;
pub mod program;
pub mod schema;
pub mod syscalls;
pub mod wire;
