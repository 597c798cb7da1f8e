//! Records and map names that the kernel programs and the agent share, and the programs' pure logic.
#![no_std]

pub mod bigram;
pub mod records;
pub mod sensitive;
