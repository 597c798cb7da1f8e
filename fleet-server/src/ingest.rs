//! Bytes of a device's topics to stored frames: decoded strictly, refused with a reason, never twice.

use std::sync::Arc;

use models::chain::chain;
use models::orders;
use models::program::ProgramId;
use models::schema::FEATURES;
use models::wire::{
    self, ANSWER_MAX, Alert, CHUNK_MAX, Downlink, Errand, Heartbeat, Order, Request, TrainingWindows, Uplink,
    UplinkFrame,
};

use crate::clock;
use crate::hub::Event;
use crate::names::DeviceId;
use crate::server::{Shared, Standing};
use crate::store::{self, FrameOutcome, Intake, Limits, Pending, Rejected, StoreError, StoredEvent};
use crate::trainer::Target;

/// The counter by which an agent tells how often it connected.
const LINKS: &str = "uplink_connected";

/// A message on its way into the store.
#[derive(Debug)]
pub enum Stored {
    /// A frame that was understood.
    Frame {
        /// Which outbox.
        epoch: u64,
        /// After the commit.
        pending: Pending<FrameOutcome>,
    },
    /// A message that is only kept; if it begins like a frame it is acknowledged.
    Rejected {
        /// Which outbox, if known.
        epoch: u64,
        /// After the commit.
        pending: Pending<Option<u64>>,
    },
    /// Numbers that the device no longer has.
    Gone {
        /// Which outbox.
        epoch: u64,
        /// After the commit.
        pending: Pending<u64>,
    },
    /// A heartbeat, with the event that a silent device is heard again.
    Heartbeat {
        /// How often the device connected since its start.
        links: u64,
        /// After the commit.
        pending: Pending<Option<StoredEvent>>,
    },
    /// A report.
    Note(Pending<()>),
}

/// What to do about a request.
#[derive(Debug)]
pub enum Asked {
    /// Wait for the store.
    Stored(Stored),
    /// Answer with part of a bundle.
    Chunk {
        /// SHA-256 of the whole bundle.
        sha256: [u8; 32],
        /// First byte.
        offset: u32,
        /// At most [`CHUNK_MAX`].
        len: u32,
    },
}

/// Takes a message of the `up` topic.
///
/// # Errors
/// When the store has stopped.
pub async fn up(shared: &Arc<Shared>, device: &DeviceId, raw: Vec<u8>) -> Result<Stored, StoreError> {
    let frame = match decode_frame(&raw) {
        Ok(frame) => frame,
        Err(reason) => return reject(shared, device, "up", reason, raw).await,
    };
    let epoch = frame.epoch;
    let (counters, owner, intake) = (Arc::clone(&shared.counters), device.clone(), intake(shared));
    let pending = shared
        .store
        .submit(move |c| store::put_frame(c, &counters, &owner, &frame, clock::unix_ms(), &intake))
        .await?;
    Ok(Stored::Frame { epoch, pending })
}

/// Takes a message of the `req` topic.
///
/// # Errors
/// When the store has stopped.
pub async fn request(shared: &Arc<Shared>, device: &DeviceId, raw: Vec<u8>) -> Result<Asked, StoreError> {
    let owner = device.clone();
    let pending = match wire::decode::<Request>(&raw) {
        Ok(Request::Chunk { sha256, offset, len }) => {
            return Ok(Asked::Chunk { sha256, offset, len: len.min(CHUNK_MAX as u32) });
        }
        Ok(Request::Bundle(report)) => {
            match &report.refused {
                Some(why) => log::warn!(
                    "device {device} refused generation {} for {}: {why}",
                    report.generation,
                    report.program
                ),
                None => {
                    log::info!(
                        "device {device} uses generation {} for {}",
                        report.generation,
                        report.program
                    );
                }
            }
            shared.store.submit(move |c| store::put_report(c, &owner, &report, clock::unix_ms())).await?
        }
        Ok(Request::Heartbeat(heartbeat)) => {
            let links = links_of(&heartbeat);
            let (counters, events_max) = (Arc::clone(&shared.counters), shared.config.events_max);
            let job = move |c: &_| {
                let now_ms = clock::unix_ms();
                store::put_heartbeat(c, &owner, &raw, now_ms)?;
                store::put_heard(c, &counters, &owner, now_ms, events_max)
            };
            let pending = shared.store.submit(job).await?;
            return Ok(Asked::Stored(Stored::Heartbeat { links, pending }));
        }
        Ok(Request::Gone { epoch, from, to }) if usable(from) && usable(to) && from <= to => {
            let counters = Arc::clone(&shared.counters);
            let job = move |c: &_| store::put_gone(c, &counters, &owner, epoch, (from, to), clock::unix_ms());
            let pending = shared.store.submit(job).await?;
            return Ok(Asked::Stored(Stored::Gone { epoch, pending }));
        }
        Ok(Request::Gone { from, to, .. }) => {
            let reason = format!("the numbers from {from} to {to} are out of range");
            return reject(shared, device, "req", reason, raw).await.map(Asked::Stored);
        }
        Err(error) => {
            return reject(shared, device, "req", error.to_string(), raw).await.map(Asked::Stored);
        }
    };
    Ok(Asked::Stored(Stored::Note(pending)))
}

fn links_of(heartbeat: &Heartbeat) -> u64 {
    heartbeat.counters.iter().find(|(name, _)| name == LINKS).map_or(0, |(_, value)| *value)
}

/// Tells people and the trainer about what was stored; gives the acknowledgement (epoch, seq) if there is one.
///
/// # Errors
/// When it was not stored; the device must not be answered then.
pub async fn stored(
    shared: &Arc<Shared>,
    device: &DeviceId,
    stored: Stored,
) -> Result<Option<(u64, u64)>, StoreError> {
    match stored {
        Stored::Frame { epoch, pending } => {
            let outcome = pending.done().await?;
            if let Some(stored) = outcome.alert {
                let (id, alert) = (stored.id, &stored.alert);
                log::info!(
                    "alert {id} from {device}: {} {:.0} {}: {}",
                    alert.severity.as_str(),
                    alert.score,
                    alert.program,
                    alert.summary
                );
                tell(shared, Event::Alert(Arc::from(stored)));
            }
            if let Some(event) = outcome.event {
                tell_event(shared, event);
            }
            if let Some((id, done)) = outcome.answered {
                log::info!("device {device} {} order {id}", if done { "carried out" } else { "refused" });
                shared.hub.tell(Event::Device(device.clone()));
            }
            if let Some(windows) = outcome.windows {
                let target = Target::Device(device.clone());
                if shared.store.leads() {
                    shared.trainer.consider(
                        &target,
                        &windows.program.key(),
                        windows.total,
                        windows.generation,
                    );
                }
                shared.hub.tell(Event::Training(target));
                if windows.is_new {
                    offer_what_is_there(shared, device, &windows.program).await?;
                }
            }
            Ok(Some((epoch, outcome.acked)))
        }
        Stored::Gone { epoch, pending } => Ok(Some((epoch, pending.done().await?))),
        Stored::Rejected { epoch, pending } => Ok(pending.done().await?.map(|seq| (epoch, seq))),
        Stored::Heartbeat { pending, .. } => {
            if let Some(event) = pending.done().await? {
                tell_event(shared, event);
            }
            shared.hub.tell(Event::Device(device.clone()));
            Ok(None)
        }
        Stored::Note(pending) => {
            pending.done().await?;
            shared.hub.tell(Event::Device(device.clone()));
            Ok(None)
        }
    }
}

/// All that waits for a device, for one that connected: what of it is stored, baselines taken back and offered, containments
/// that people undid, and orders.
///
/// # Errors
/// When the database fails.
pub async fn waiting(shared: &Shared, device: &DeviceId) -> Result<Vec<Downlink>, StoreError> {
    let owner = device.clone();
    let query = move |c: &_| {
        let orders = store::orders_waiting(c, &owner, clock::unix_ms())?;
        let acks = store::acks(c, &owner)?.into_iter().map(|(epoch, seq)| Downlink::Ack { epoch, seq });
        let take_backs = store::take_backs(c, &owner)?.into_iter();
        let take_backs = take_backs.map(|(program, generation)| Downlink::TakeBack { program, generation });
        let offers = store::newest_offers(c, &owner)?.into_iter();
        // Else it would fetch again what it is about to forget.
        let offers = offers.filter(|offer| !orders.iter().any(|order| is_relearned(order, &offer.program)));
        let offers = offers.map(Downlink::Offer);
        let releases = store::releases(c, &owner)?.into_iter();
        let releases = releases.map(|containment| Downlink::Release { containment });
        let all: Vec<_> = acks.chain(take_backs).chain(offers).chain(releases).collect();
        Ok((all, orders))
    };
    let (mut all, orders) = shared.store.read(query).await?;
    all.extend(orders.iter().filter_map(|order| signed(shared, device, order)));
    Ok(all)
}

/// An order as it is sent; `None` when it cannot be, which is told.
#[must_use]
pub fn signed(shared: &Shared, device: &DeviceId, order: &Order) -> Option<Downlink> {
    match orders::sign(device.as_str(), order, shared.pki.signing()) {
        Ok(signed) => Some(Downlink::Order(signed)),
        Err(error) => {
            log::error!("order {} for device {device} is not sent: {}", order.id, chain(&error));
            None
        }
    }
}

fn is_relearned(order: &Order, of: &ProgramId) -> bool {
    matches!(&order.errand, Errand::Relearn { program } if program == of)
}

/// A program that is new on a device may have a baseline already, of its group or of all.
async fn offer_what_is_there(
    shared: &Shared,
    device: &DeviceId,
    program: &ProgramId,
) -> Result<(), StoreError> {
    let owner = device.clone();
    let offers = shared.store.read(move |c| store::newest_offers(c, &owner)).await?;
    for offer in offers.into_iter().filter(|offer| offer.program == *program) {
        shared.hub.send(device, &Downlink::Offer(offer));
    }
    Ok(())
}

/// Notes that two agents seem to use one identity, and tells people.
pub async fn tell_twins(shared: &Arc<Shared>, device: &DeviceId) {
    let (owner, counters, events_max) =
        (device.clone(), Arc::clone(&shared.counters), shared.config.events_max);
    let noted = shared.store.write(move |c| {
        let text = "two agents use this identity and push each other out: was the device copied? Enrol one of them \
                    anew under a name of its own";
        store::put_noticed(c, &counters, &owner, store::TWINS, text.to_owned(), clock::unix_ms(), events_max)
    });
    match noted.await {
        Ok(Some(event)) => tell_event(shared, event),
        Ok(None) => {}
        Err(error) => log::error!("noting that two agents use the identity of {device}: {error}"),
    }
}

/// Tells people what happened to an agent.
pub fn tell_event(shared: &Shared, event: StoredEvent) {
    log::warn!("device {}: {}: {}", event.device, event.kind, event.text);
    tell(shared, Event::Agent(Arc::new(event)));
}

/// What is numbered is told in the order of its numbers: where others store too, by who follows them all.
fn tell(shared: &Shared, event: Event) {
    if shared.store.is_shared() {
        shared.stored.notify_one();
    } else {
        shared.hub.tell(event);
    }
}

async fn reject(
    shared: &Arc<Shared>,
    device: &DeviceId,
    topic: &'static str,
    reason: String,
    raw: Vec<u8>,
) -> Result<Stored, StoreError> {
    log::warn!("device {device} sent {} bytes on {topic} that were rejected: {reason}", raw.len());
    let number = if topic == "up" { leading_number(&raw) } else { None };
    let epoch = number.map_or(0, |(epoch, _)| epoch);
    let rejected = Rejected { topic, reason, number, raw };
    let (counters, owner) = (Arc::clone(&shared.counters), device.clone());
    let pending = shared
        .store
        .submit(move |c| store::put_rejected(c, &counters, &owner, &rejected, clock::unix_ms()))
        .await?;
    Ok(Stored::Rejected { epoch, pending })
}

fn intake(shared: &Shared) -> Intake {
    let config = &shared.config;
    let limits = Limits {
        windows: config.windows_max,
        programs: config.programs_max,
        alerts: config.alerts_max,
        events: config.events_max,
    };
    let Standing { rules, channels } = shared.standing();
    Intake { limits, rules, channels }
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
        Uplink::Windows(windows) => check_windows(windows)?,
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

fn check_windows(windows: &TrainingWindows) -> Result<(), String> {
    for window in &windows.windows {
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
    use models::wire::TrainingWindow;

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
