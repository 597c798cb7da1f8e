//! The pure core of BehaveGuard: no I/O, no clock, no threads.
//!
//! [`event`] and [`window`] hold what happened, [`features`] turns a window into 427 values, `detect` runs a
//! baseline's models, [`calibration`] turns their outputs into a score, [`verdict`] explains it, [`policy`] decides
//! what is sent, [`wire`] and [`bundle`] are the bytes that travel. `train` makes the baselines.
#![deny(unsafe_code)]

pub mod attack;
pub mod budget;
pub mod bundle;
pub mod calibration;
mod capability;
pub mod chain;
#[cfg(feature = "infer")]
mod compact;
#[cfg(feature = "infer")]
pub mod detect;
pub mod drift;
pub mod event;
pub mod explain;
pub mod features;
pub mod feed;
#[cfg(feature = "infer")]
mod lanes;
pub mod nearest;
pub mod novelty;
pub mod orders;
pub mod pairs;
pub mod pem;
pub mod policy;
pub mod program;
pub mod program_file;
pub mod schema;
pub mod sequence;
pub mod surprisal;
pub mod syscalls;
#[cfg(feature = "train")]
pub mod train;
pub mod verdict;
pub mod window;
pub mod wire;
