//! The fleet server: devices report over MQTT, verdicts and training windows are stored, baselines are trained,
//! signed and offered, and people watch over HTTPS.
//!
//! ```text
//! device ── mTLS ──► mqtt ──► ingest ──► store (SQLite, group commit) ──► hub ──► web (API, stream, dashboard)
//!    ▲                 │                   │
//!    └── Ack, Offer, Chunk, Order ◄─────────── trainer (fit, seal) ◄── windows
//! ```
//! Instead of `mqtt`, the endpoint of our own, `broker` takes devices' messages from a broker of others.
#![forbid(unsafe_code)]

pub mod access;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod configuration;
pub mod counters;
mod deliver;
pub mod enrolment;
mod feed;
pub mod files;
mod follow;
pub mod hub;
pub mod ingest;
pub mod mqtt;
pub mod names;
mod notify;
pub mod oidc;
pub mod pki;
mod retention;
pub mod rollouts;
pub mod secret;
pub mod server;
pub mod signer;
mod silence;
mod staged;
pub mod store;
pub mod trainer;
mod trust;
pub mod updates;
pub mod web;
