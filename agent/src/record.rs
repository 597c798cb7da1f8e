//! `behaveguard record`: the probe and the pipeline as `run` has them, and everything that goes in is written down.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use models::bundle::Verified;
use models::chain::chain;

use crate::capture::{CaptureError, Writer};
use crate::clock;
use crate::config::Config;
use crate::pipeline::Output;
use crate::probe::{Probe, ProbeError};
use crate::watch::Watch;

/// Records wait at most this long in their rings.
const POLL: Duration = Duration::from_millis(50);

/// Why nothing was recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The kernel part.
    #[error("starting the kernel part")]
    Probe(#[from] ProbeError),
    /// The file.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Signals.
    #[error("waiting for signals")]
    Signals(#[source] std::io::Error),
}

/// What was recorded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recorded {
    /// Size of the file; `None` when it had its full size before the end.
    pub bytes: Option<u64>,
    /// Windows that were closed.
    pub windows: u32,
    /// Alerts that these windows gave. Nobody was told.
    pub alerts: u32,
}

/// Records into a new file of at most `max` bytes, until `time` is over, the file is full, or SIGINT or SIGTERM.
///
/// # Errors
/// When it cannot begin, or the file's end cannot be written.
pub fn record(
    config: &Config,
    baselines: &[Verified],
    file: &Path,
    max: u64,
    time: Duration,
) -> Result<Recorded, RecordError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(RecordError::Signals)?;
    }
    let probe = Probe::load(&config.probe(std::process::id()))?;
    // Not before the kernel part: a try that it refuses leaves no file that is in the way of the next one.
    let writer = Writer::create(file, max)?;
    let mut watch = Watch::new(config, probe);
    watch.record(writer)?;
    baselines.iter().for_each(|verified| watch.activate(verified));
    let end_ns = clock::boot_ns().saturating_add(clock::nanoseconds(time));
    let window_ns = clock::nanoseconds(config.window);
    let mut recorded = Recorded::default();
    let mut out = Vec::new();
    while watch.is_recording() {
        let now_ns = clock::boot_ns();
        let over = now_ns >= end_ns || stop.load(Relaxed);
        watch.take_events(u64::MAX, &mut out);
        if over || now_ns >= watch.probe().epoch().1.saturating_add(window_ns) {
            watch.close(&mut out);
            recorded.windows += 1;
        }
        for output in out.drain(..) {
            if let Output::Alert(alert) = output {
                recorded.alerts += 1;
                log::warn!("{}: {} (process {})", alert.severity.as_str(), alert.summary, alert.pid);
            }
        }
        if over {
            break;
        }
        std::thread::sleep(POLL);
    }
    match watch.stop_recording() {
        Some(Ok(bytes)) => recorded.bytes = Some(bytes),
        Some(Err(error @ CaptureError::Full(_))) => log::warn!("it ended before its time: {}", chain(&error)),
        Some(Err(error)) => return Err(error.into()),
        None => {}
    }
    Ok(recorded)
}
