//! Messages of devices into the store, and what waits for them: refused with a reason, never stored twice.
//!
//! [`Message::read`] and [`take`] are everything that happens to a message, without a clock and without waiting; the rest hands
//! them to the store's thread and tells people afterwards.

mod message;

use std::sync::Arc;

use models::chain::chain;
use models::orders;
use models::program::ProgramId;
use models::wire::{Downlink, Errand, Order};

use crate::clock;
use crate::counters::Counters;
use crate::hub::Event;
use crate::names::DeviceId;
use crate::server::{Shared, Standing};
use crate::store::{
    self, Connection, FrameOutcome, Intake, Limits, Pending, Rejected, StoreError, StoredEvent,
};
use crate::trainer::Target;

pub use message::Message;

/// What became of a message.
#[derive(Debug, Default)]
pub struct Taken {
    /// Epoch, and the number up to which everything of it is stored.
    pub ack: Option<(u64, u64)>,
    /// What was new in a frame.
    pub frame: Option<FrameOutcome>,
    /// A silent device is heard again.
    pub heard: Option<StoredEvent>,
    /// What a device that is there is still to do.
    pub orders: Vec<Order>,
    /// How far a capture is.
    pub kept: Option<Kept>,
}

/// How far a capture is.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// The order that it was recorded for.
    pub order: u64,
    /// Its first byte that is not stored; `None` when nobody wants it.
    pub next: Option<u32>,
    /// All of it is stored.
    pub is_whole: bool,
}

/// Stores a message; the device may be answered when this is committed. A request for a part of a bundle stores nothing.
///
/// # Errors
/// [`StoreError::Revoked`], or when the database fails.
pub fn take(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    message: &Message,
    now_ms: u64,
    intake: &Intake,
) -> Result<Taken, StoreError> {
    let epoch = message.epoch();
    let acked = |seq: u64| Some((epoch, seq));
    let nothing = Taken::default();
    Ok(match message {
        Message::Frame(frame) => {
            let outcome = store::put_frame(c, counters, device, frame, now_ms, intake)?;
            Taken { ack: acked(outcome.acked), frame: Some(outcome), ..nothing }
        }
        Message::Gone { epoch, from, to } => {
            let seq = store::put_gone(c, counters, device, *epoch, (*from, *to), now_ms)?;
            Taken { ack: acked(seq), ..nothing }
        }
        Message::Rejected(rejected) => {
            let seq = store::put_rejected(c, counters, device, rejected, now_ms)?;
            Taken { ack: seq.and_then(acked), ..nothing }
        }
        Message::Heartbeat { raw, .. } => {
            store::put_heartbeat(c, device, raw, now_ms)?;
            let heard = store::put_heard(c, counters, device, now_ms, intake.limits.events)?;
            // Orders may come from a command beside the server, and what was sent may be lost.
            let orders = store::orders_waiting(c, device, now_ms)?;
            Taken { heard, orders, ..nothing }
        }
        Message::Report(report) => {
            store::put_report(c, device, report, now_ms)?;
            nothing
        }
        Message::Part(part) => {
            let next = store::put_part(c, counters, device, part, now_ms, intake.limits.captures)?;
            let kept = Kept { order: part.order, next, is_whole: next == Some(part.size) };
            Taken { kept: Some(kept), ..nothing }
        }
        Message::Chunk { .. } => nothing,
    })
}

/// A message on its way into the store.
#[derive(Debug)]
pub struct Stored {
    /// Of a heartbeat: how often the device connected since its start.
    pub links: Option<u64>,
    /// After the commit.
    pub pending: Pending<Taken>,
}

/// Hands a message to the store.
///
/// # Errors
/// When the store has stopped.
pub async fn submit(shared: &Shared, device: &DeviceId, message: Message) -> Result<Stored, StoreError> {
    log_of(device, &message);
    let links = if let Message::Heartbeat { links, .. } = &message { Some(*links) } else { None };
    let (counters, owner, intake) = (Arc::clone(&shared.counters), device.clone(), intake(shared));
    let job = move |c: &_| take(c, &counters, &owner, &message, clock::unix_ms(), &intake);
    Ok(Stored { links, pending: shared.store.submit(job).await? })
}

fn log_of(device: &DeviceId, message: &Message) {
    match message {
        Message::Report(report) => match &report.refused {
            Some(why) => log::warn!(
                "device {device} refused generation {} for {}: {why}",
                report.generation,
                report.program
            ),
            None => {
                log::info!("device {device} uses generation {} for {}", report.generation, report.program);
            }
        },
        Message::Rejected(Rejected { topic, reason, raw, .. }) => {
            log::warn!("device {device} sent {} bytes on {topic} that were rejected: {reason}", raw.len());
        }
        Message::Frame(_)
        | Message::Heartbeat { .. }
        | Message::Gone { .. }
        | Message::Part(_)
        | Message::Chunk { .. } => {}
    }
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
    let Taken { ack, frame, heard, orders, kept } = stored.pending.done().await?;
    if let Some(Kept { order, next, is_whole }) = kept {
        shared.hub.send(device, &Downlink::Kept { order, next });
        if !is_whole {
            return Ok(None);
        }
        log::info!("device {device} sent what it recorded for order {order}");
    }
    for message in orders.iter().filter_map(|order| signed(shared, device, order)) {
        shared.hub.send(device, &message);
    }
    if let Some(event) = heard {
        tell_event(shared, event);
    }
    match frame {
        Some(outcome) => tell_frame(shared, device, outcome).await?,
        // A heartbeat, a report, or a whole capture; numbers that are gone are nothing to see.
        None if ack.is_none() => shared.hub.tell(Event::Device(device.clone())),
        None => {}
    }
    Ok(ack)
}

async fn tell_frame(
    shared: &Arc<Shared>,
    device: &DeviceId,
    outcome: FrameOutcome,
) -> Result<(), StoreError> {
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
            let key = windows.program.key();
            shared.trainer.consider(&target, &key, windows.total, windows.generation);
        }
        shared.hub.tell(Event::Training(target));
        if windows.is_new {
            offer_what_is_there(shared, device, &windows.program).await?;
        }
    }
    Ok(())
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

/// An order as it is sent; `None` when it cannot be, which is told. While the signing key is away it waits.
#[must_use]
pub fn signed(shared: &Shared, device: &DeviceId, order: &Order) -> Option<Downlink> {
    // It says so itself when it is away.
    let signed = shared.signer.with(|key| orders::sign(device.as_str(), order, key)).ok()?;
    match signed {
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
        let notice = store::Noticed::of_agent(store::TWINS, text.to_owned());
        store::put_noticed(c, &counters, &owner, notice, clock::unix_ms(), events_max)
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

fn intake(shared: &Shared) -> Intake {
    let config = &shared.config;
    let limits = Limits {
        windows: config.windows_max,
        programs: config.programs_max,
        alerts: config.alerts_max,
        events: config.events_max,
        captures: config.captures_max,
    };
    let Standing { rules, channels } = shared.standing();
    Intake { limits, rules, channels }
}
