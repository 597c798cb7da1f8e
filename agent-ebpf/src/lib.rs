//! Records and map names that the kernel programs and the agent share, and the programs' pure logic.
#![no_std]

pub mod acts;
pub mod bigram;
pub mod counters;
pub mod dns;
pub mod gram;
pub mod records;
pub mod sensitive;
pub mod watched;
pub mod window;
