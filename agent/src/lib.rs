//! The agent: kernel events to alerts.
