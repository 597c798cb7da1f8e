//! Who is connected, and what the rest of the server is told when something new is stored.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use models::wire::{self, Downlink};
use tokio::sync::{broadcast, mpsc, watch};

use crate::broker::Reach;
use crate::clock;
use crate::counters::{Counter, Counters};
use crate::names::DeviceId;
use crate::store::{StoredAlert, StoredEvent};
use crate::trainer::Target;

/// Messages that may wait for one device; one more closes its connection, and it gets everything again.
pub const OUTGOING_MAX: usize = 256;

/// Events a live stream may be behind; a slower one is told how many it lost.
const EVENTS_MAX: usize = 1024;

/// So many takeovers of one device's connections within this time are told as two agents with one identity.
const TWINS_FROM: u32 = 5;
const TWINS_WITHIN_MS: u64 = 60_000;
const TWINS_TOLD_EVERY_MS: u64 = 3_600_000;

/// Something new for people to see.
#[derive(Clone, Debug)]
pub enum Event {
    /// A new alert.
    Alert(Arc<StoredAlert>),
    /// People worked on an alert.
    AlertChanged(Arc<StoredAlert>),
    /// Something happened to an agent.
    Agent(Arc<StoredEvent>),
    /// A device connected, went away, or spoke.
    Device(DeviceId),
    /// A training began, ended or has new windows.
    Training(Target),
    /// A rollout went on.
    Rollout(u64),
    /// An update of agents went on.
    Update(u64),
}

/// What waits to be written to a device.
#[derive(Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// An MQTT packet as it is.
    Packet(Vec<u8>),
    /// A message for the `down` topic.
    Down(Vec<u8>),
}

/// One device's connection.
#[derive(Clone, Debug)]
pub struct Session {
    number: u64,
    queue: mpsc::Sender<Outgoing>,
    stop: watch::Sender<bool>,
    subscribed: Arc<AtomicBool>,
    takeovers: Takeovers,
}

/// How often a device's connections took over one another lately. One does after a broken link; two agents with one
/// identity do it all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Takeovers {
    since_ms: u64,
    count: u32,
    told_ms: u64,
}

impl Takeovers {
    /// One more; whether that is worth telling.
    fn next(mut self, now_ms: u64) -> (Self, bool) {
        if now_ms.abs_diff(self.since_ms) > TWINS_WITHIN_MS {
            (self.since_ms, self.count) = (now_ms, 0);
        }
        self.count += 1;
        let tell = self.count == TWINS_FROM && now_ms.abs_diff(self.told_ms) > TWINS_TOLD_EVERY_MS;
        if tell {
            self.told_ms = now_ms;
        }
        (self, tell)
    }
}

impl Session {
    /// Notes that the device listens to its topic now.
    pub fn set_subscribed(&self, subscribed: bool) {
        self.subscribed.store(subscribed, Relaxed);
    }

    /// Whether the device listens to its topic.
    #[must_use]
    pub fn is_subscribed(&self) -> bool {
        self.subscribed.load(Relaxed)
    }

    /// Closes the connection.
    pub fn close(&self) {
        self.stop.send_replace(true);
    }
}

/// All connections, one per device at most, and the event stream.
#[derive(Debug)]
pub struct Hub {
    sessions: Mutex<HashMap<DeviceId, Session>>,
    next: AtomicU64,
    events: broadcast::Sender<Event>,
    counters: Arc<Counters>,
    /// Where devices are behind a broker of others, instead of sessions.
    reach: Option<Reach>,
}

impl Hub {
    /// An empty hub; with `reach`, of devices behind a broker.
    #[must_use]
    pub fn new(counters: Arc<Counters>, reach: Option<Reach>) -> Self {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        Self { sessions: Mutex::default(), next: AtomicU64::new(1), events, counters, reach }
    }

    /// The devices behind a broker of others, where there is one.
    #[must_use]
    pub fn reach(&self) -> Option<&Reach> {
        self.reach.as_ref()
    }

    /// Adds a connection; an older one of the same device is closed. Also whether two agents seem to use its identity.
    pub fn attach(
        &self,
        device: &DeviceId,
        queue: mpsc::Sender<Outgoing>,
        stop: watch::Sender<bool>,
    ) -> (Session, bool) {
        let number = self.next.fetch_add(1, Relaxed);
        let takeovers = Takeovers::default();
        let mut session = Session { number, queue, stop, subscribed: Arc::default(), takeovers };
        let mut twins = false;
        let mut sessions = self.sessions();
        if let Some(older) = sessions.remove(device) {
            (session.takeovers, twins) = older.takeovers.next(clock::unix_ms());
            self.counters.bump(Counter::MqttTakenOver);
            older.close();
        }
        sessions.insert(device.clone(), session.clone());
        drop(sessions);
        self.tell(Event::Device(device.clone()));
        (session, twins)
    }

    /// Removes a connection, unless the device has a newer one.
    pub fn detach(&self, device: &DeviceId, session: &Session) {
        let mut sessions = self.sessions();
        if sessions.get(device).is_some_and(|current| current.number == session.number) {
            sessions.remove(device);
        }
        drop(sessions);
        self.tell(Event::Device(device.clone()));
    }

    /// Sends to a device that is connected and listens; whoever is away gets it when it subscribes.
    pub fn send(&self, device: &DeviceId, message: &Downlink) {
        if let Some(reach) = &self.reach {
            return reach.send(device, message);
        }
        let session = self.sessions().get(device).cloned();
        let Some(session) = session.filter(Session::is_subscribed) else { return };
        match wire::encode(message) {
            Ok(bytes) => {
                if session.queue.try_send(Outgoing::Down(bytes)).is_err() {
                    self.counters.bump(Counter::MqttSlowClosed);
                    session.close();
                }
            }
            Err(error) => log::error!("a message for device {device} was not sent: {error}"),
        }
    }

    /// Closes the device's connection, if it has one. A broker of others lets it stay, and nothing of it is taken.
    pub fn close(&self, device: &DeviceId) {
        if let Some(reach) = &self.reach {
            reach.forget(device);
        }
        if let Some(session) = self.sessions().get(device) {
            session.close();
        }
    }

    /// Whether the device is connected; behind a broker, whether it was heard lately.
    #[must_use]
    pub fn is_online(&self, device: &str) -> bool {
        DeviceId::parse(device).is_ok_and(|device| match &self.reach {
            Some(reach) => reach.is_online(&device, clock::unix_ms()),
            None => self.sessions().contains_key(&device),
        })
    }

    /// Devices connected.
    #[must_use]
    pub fn online(&self) -> usize {
        match &self.reach {
            Some(reach) => reach.online(clock::unix_ms()),
            None => self.sessions().len(),
        }
    }

    /// Tells everyone who listens.
    pub fn tell(&self, event: Event) {
        // Nobody listening is no error.
        let _ = self.events.send(event);
    }

    /// Events from now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<DeviceId, Session>> {
        // Every change is a single insert or remove, so a panic elsewhere leaves the map whole.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takeovers_in_a_row_are_told_once_an_hour_and_single_ones_never() {
        let told = |every_ms: u64, n: u64| {
            let mut takeovers = Takeovers::default();
            let start_ms = 10_000_000;
            let one = |k: u64| {
                let (next, tell) = takeovers.next(start_ms + k * every_ms);
                takeovers = next;
                tell
            };
            (0..n).map(one).filter(|tell| *tell).count()
        };
        assert_eq!(told(1000, 4), 0);
        assert_eq!(told(1000, 3000), 1);
        assert_eq!(told(1000, 4000), 2);
        assert_eq!(told(20_000, 1000), 0, "a bad link");
    }
}
