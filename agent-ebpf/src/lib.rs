//! Records and map names that the kernel programs and the agent share, and the programs' pure logic.
#![no_std]
