//! A device's bytes to a message: decoded strictly, or kept with the reason why not.

use models::schema::FEATURES;
use models::wire::{
    self, ALARMED_ALERTS_MAX, ANSWER_MAX, Alert, BundleReport, CHUNK_MAX, Heartbeat, Leaf, Request,
    TrainingWindow, Uplink, UplinkFrame,
};

use crate::store::{CapturePart, Rejected};

/// The counter by which an agent tells how often it connected.
const LINKS: &str = "uplink_connected";

/// A message of a device, understood.
#[derive(Clone, Debug)]
pub enum Message {
    /// Numbered, and kept by the device until it is stored.
    Frame(UplinkFrame),
    /// What became of a bundle.
    Report(BundleReport),
    /// How it is.
    Heartbeat {
        /// How often the device connected since its start.
        links: u64,
        /// As it came.
        raw: Vec<u8>,
    },
    /// Numbers that the device no longer has.
    Gone {
        /// Of which outbox.
        epoch: u64,
        /// The first of them.
        from: u64,
        /// The last of them.
        to: u64,
    },
    /// It asks for part of a bundle.
    Chunk {
        /// SHA-256 of the whole bundle.
        sha256: [u8; 32],
        /// First byte.
        offset: u32,
        /// At most [`CHUNK_MAX`].
        len: u32,
    },
    /// Part of what it recorded.
    Part(CapturePart),
    /// It is only kept; if it begins like a frame it is acknowledged.
    Rejected(Rejected),
}

impl Message {
    /// Reads a message of one of a device's topics.
    #[must_use]
    pub fn read(leaf: Leaf, raw: Vec<u8>) -> Self {
        let read = if leaf == Leaf::Up { decode_frame(&raw).map(Self::Frame) } else { read_request(&raw) };
        read.unwrap_or_else(|reason| {
            let number = if leaf == Leaf::Up { leading_number(&raw) } else { None };
            Self::Rejected(Rejected { topic: leaf.as_str(), reason, number, raw })
        })
    }

    /// The outbox whose numbers it tells, 0 for none.
    pub(super) fn epoch(&self) -> u64 {
        match self {
            Self::Frame(frame) => frame.epoch,
            Self::Gone { epoch, .. } => *epoch,
            Self::Rejected(rejected) => rejected.number.map_or(0, |(epoch, _)| epoch),
            Self::Report(_) | Self::Heartbeat { .. } | Self::Chunk { .. } | Self::Part(_) => 0,
        }
    }
}

fn read_request(raw: &[u8]) -> Result<Message, String> {
    match wire::decode::<Request>(raw).map_err(|error| error.to_string())? {
        Request::Chunk { sha256, offset, len } => {
            Ok(Message::Chunk { sha256, offset, len: len.min(CHUNK_MAX as u32) })
        }
        Request::Part { data, .. } if data.len() > CHUNK_MAX => {
            Err(format!("a part of {} bytes is over the limit of {CHUNK_MAX}", data.len()))
        }
        Request::Part { order, size, offset, data } => {
            Ok(Message::Part(CapturePart { order, size, offset, data }))
        }
        Request::Bundle(report) => Ok(Message::Report(report)),
        Request::Heartbeat(heartbeat) => {
            Ok(Message::Heartbeat { links: links_of(&heartbeat), raw: raw.to_vec() })
        }
        Request::Gone { epoch, from, to } if usable(from) && usable(to) && from <= to => {
            Ok(Message::Gone { epoch, from, to })
        }
        Request::Gone { from, to, .. } => Err(format!("the numbers from {from} to {to} are out of range")),
    }
}

fn links_of(heartbeat: &Heartbeat) -> u64 {
    heartbeat.counters.iter().find(|(name, _)| name == LINKS).map_or(0, |(_, value)| *value)
}

/// A frame's first two fields, if they are there and usable.
fn leading_number(raw: &[u8]) -> Option<(u64, u64)> {
    let ((epoch, seq), _) = postcard::take_from_bytes::<(u64, u64)>(raw).ok()?;
    usable(seq).then_some((epoch, seq))
}

fn usable(seq: u64) -> bool {
    (1..=i64::MAX as u64 / 2).contains(&seq)
}

fn decode_frame(raw: &[u8]) -> Result<UplinkFrame, String> {
    let frame: UplinkFrame = wire::decode(raw).map_err(|error| error.to_string())?;
    if !usable(frame.seq) {
        return Err(format!("the number {} is out of range", frame.seq));
    }
    match &frame.body {
        Uplink::Alert(alert) => check_alert(alert)?,
        Uplink::Windows(windows) => check_windows(&windows.windows)?,
        Uplink::Alarmed(alarmed) if alarmed.alerts.len() > ALARMED_ALERTS_MAX => {
            return Err(format!("{} alerts of a window are over the limit", alarmed.alerts.len()));
        }
        Uplink::Alarmed(alarmed) => check_windows(std::slice::from_ref(&alarmed.window))?,
        // Any text, any number.
        Uplink::Event(_) => {}
        Uplink::Answer(answer) if answer.text.len() > ANSWER_MAX => {
            return Err(format!(
                "an answer of {} bytes is over the limit of {ANSWER_MAX}",
                answer.text.len()
            ));
        }
        Uplink::Answer(_) => {}
    }
    Ok(frame)
}

fn check_alert(alert: &Alert) -> Result<(), String> {
    if !(0.0..=100.0).contains(&alert.score) {
        return Err("the score is not in 0 to 100".into());
    }
    let shares = alert.reasons.iter().map(|reason| reason.share);
    if !shares.chain(alert.detectors.iter().map(|detector| detector.z)).all(f32::is_finite) {
        return Err("a share or z is not a number".into());
    }
    Ok(())
}

fn check_windows(windows: &[TrainingWindow]) -> Result<(), String> {
    for window in windows {
        let ascending = window.vector.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let inside = window.vector.last().is_none_or(|(index, _)| usize::from(*index) < FEATURES);
        if !ascending || !inside {
            return Err("a vector's indices are not ascending or out of range".into());
        }
        if !window.vector.iter().all(|(_, value)| (0.0..=1.0).contains(value)) {
            return Err("a vector's value is not in 0 to 1".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use models::program::ProgramId;
    use models::wire::TrainingWindows;

    use super::*;

    fn frame(seq: u64, vector: Vec<(u16, f32)>) -> Vec<u8> {
        let program = ProgramId { unit: "u".into(), exe: "/e".into(), script: None };
        let windows = vec![TrainingWindow { unix_ms: 1, run: 1, vector, traits: vec![], grams: vec![] }];
        let body = Uplink::Windows(TrainingWindows { program, windows });
        wire::encode(&UplinkFrame { epoch: 9, seq, body }).unwrap()
    }

    #[test]
    fn vectors_outside_the_schema_are_refused() {
        assert!(decode_frame(&frame(1, vec![(0, 0.5), (426, 1.0)])).is_ok());
        for bad in [vec![(427, 0.5)], vec![(2, 0.5), (1, 0.5)], vec![(1, 0.5), (1, 0.5)], vec![(1, 1.5)]] {
            assert!(decode_frame(&frame(1, bad)).is_err());
        }
        assert!(decode_frame(&frame(1, vec![(1, f32::NAN)])).is_err());
        assert!(decode_frame(&frame(0, vec![])).is_err());
    }

    #[test]
    fn a_rejected_frame_still_tells_its_number() {
        let raw = frame(7, vec![(427, 0.5)]);
        assert_eq!(leading_number(&raw), Some((9, 7)));
        assert_eq!(leading_number(b"\xff"), None);
    }
}
