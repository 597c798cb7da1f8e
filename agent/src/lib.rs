//! The agent: kernel events to alerts.

pub mod probe;
