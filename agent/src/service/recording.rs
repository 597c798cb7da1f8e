//! What the fleet asks to be recorded: whole windows, then the file is sent.

use models::chain::chain;
use models::wire::EventKind;

use super::Service;
use crate::capture::CaptureError;
use crate::clock;

/// A recording.
pub(super) struct Recording {
    order: u64,
    for_ns: u64,
    /// `None` until the first window begins.
    until_ns: Option<u64>,
}

impl Service {
    /// Records from the next window on.
    pub(super) fn record(&mut self, order: u64, for_s: u32, bytes_max: u32) -> Result<String, String> {
        if let Some(Recording { order, .. }) = self.recording {
            return Err(format!("order {order} is being recorded: ask again when it has ended"));
        }
        let writer = self.captures.begin(order, bytes_max).map_err(|error| chain(&error))?;
        self.watch.record_next(writer);
        let for_ns = u64::from(for_s) * 1_000_000_000;
        self.recording = Some(Recording { order, for_ns, until_ns: None });
        Ok(format!(
            "records from the next window on, for {for_s} s or until it has {bytes_max} bytes; then it is sent"
        ))
    }

    /// A window has ended: a recording begins or ends with it.
    pub(super) fn look_after_recording(&mut self) {
        let Some(recording) = &mut self.recording else { return };
        let now_ns = clock::boot_ns();
        let until_ns = *recording.until_ns.get_or_insert(now_ns.saturating_add(recording.for_ns));
        if now_ns >= until_ns || !self.watch.is_recording() {
            self.end_recording();
        }
    }

    /// Ends a recording, if there is one; its file is sent, whatever ended it.
    pub(super) fn end_recording(&mut self) {
        let Some(Recording { order, .. }) = self.recording.take() else { return };
        let ended = match self.watch.stop_recording() {
            None | Some(Ok(_)) => "ended".to_owned(),
            Some(Err(CaptureError::Full(_))) => "ended because the file has its full size".to_owned(),
            Some(Err(error)) => format!("was cut short: {}", chain(&error)),
        };
        let text = match self.captures.get(order) {
            Ok(capture) => {
                let text =
                    format!("the recording for order {order} {ended}; {} bytes are sent", capture.size);
                if let Some(member) = &self.member {
                    member.uplink.deliver(capture);
                }
                text
            }
            Err(error) => format!("the recording for order {order} {ended}, and its file is lost: {error}"),
        };
        self.event(EventKind::Recorded, None, None, text);
    }

    /// Sends what the last run recorded and did not send.
    pub(super) fn resume_captures(&self) {
        let Some(member) = &self.member else { return };
        self.captures.all().into_iter().for_each(|capture| member.uplink.deliver(capture));
    }

    /// A capture is of no more use here: the fleet has it, or does not want it.
    pub(super) fn delivered(&mut self, order: u64, wanted: bool) {
        let counter =
            if wanted { &mut self.counters.captures_sent } else { &mut self.counters.captures_dropped };
        *counter += 1;
        log::info!("the capture for order {order} {}", if wanted { "was sent" } else { "is not wanted" });
        if let Err(error) = self.captures.remove(order) {
            log::error!("the capture for order {order} cannot be removed: {error}");
        }
    }
}
