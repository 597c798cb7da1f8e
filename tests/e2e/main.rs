//! The real programs together: kernel events, TLS, MQTT, database, models, browser.

mod access;
mod alerts;
mod broker;
mod bundles;
mod clock;
mod commands;
mod contained;
mod dashboard;
mod deaf;
mod described;
mod device;
mod documents;
mod drill;
mod external;
mod faults;
mod feed;
mod gaps;
mod identity;
mod kills;
mod live;
mod mailed;
mod moved;
mod notified;
mod opted;
mod ordered;
mod postgres;
mod power;
mod quarantined;
mod rolled;
mod shed;
mod signed_in;
mod story;
mod taught;
mod trained;
mod twins;
mod unsigned;
mod updated;
mod wiped;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by who enacts attacks with tools of the system, or makes more noise than an agent that is held up can keep: the
/// agent of another test sees it too, and takes what the same tool repeats within five minutes for one.
fn enacting() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails the test when it cannot load kernel programs.
fn needs_root() {
    assert!(rustix::process::geteuid().is_root(), "this test loads kernel programs: run it as root");
}
