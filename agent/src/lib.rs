//! The agent: kernel events to alerts.
//!
//! ```text
//! probe ─► (events, drained counts) ─► pipeline ─► alerts, training windows ─► outbox ─► uplink ─► fleet
//!             processes ◄─ /proc           ▲                                                │
//!                                          └────────── baselines (verify, activate) ◄───────┘
//! ```
//! [`service`] ties these together on one thread; [`uplink`] has a thread of its own.

pub mod backoff;
pub mod baselines;
pub mod capture;
pub mod captures;
pub mod cli;
pub mod clock;
pub mod config;
pub mod confine;
pub mod contain;
pub mod control;
pub mod doctor;
#[cfg(test)]
mod documented;
pub mod done;
pub mod enroll;
pub mod explanations;
pub mod files;
mod https;
pub mod local;
pub mod logging;
pub mod memory;
pub mod outbox;
pub mod outgoing;
pub mod pipeline;
pub mod probe;
pub mod processes;
pub mod quarantine;
pub mod record;
pub mod redact;
pub mod replay;
pub mod run_mark;
pub mod service;
pub mod settings;
pub mod shedding;
pub mod simulate;
pub mod sinks;
#[cfg(feature = "train")]
pub mod train;
pub mod trials;
pub mod updates;
pub mod uplink;
pub mod vitals;
pub mod watch;
pub mod whitelist;
