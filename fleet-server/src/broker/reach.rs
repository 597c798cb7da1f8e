//! Devices behind a broker: who was heard lately, and messages to them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use models::wire::{self, Downlink, Leaf};
use rumqttc::{AsyncClient, QoS};

use crate::counters::{Counter, Counters};
use crate::names::DeviceId;

/// When a device was heard last, and in which of its connections.
#[derive(Clone, Copy, Debug)]
struct Heard {
    unix_ms: u64,
    /// How often it connected since its start, by its own count; `None` when it may have missed something.
    link: Option<u64>,
}

/// What a broker does not say: who listens. Only enrolled devices are in here, so their number is the bound.
#[derive(Debug)]
pub struct Reach {
    client: AsyncClient,
    heard: Mutex<HashMap<DeviceId, Heard>>,
    silent_ms: u64,
    counters: Arc<Counters>,
}

impl Reach {
    /// Nobody was heard yet. A device that was not heard for `silent_ms` is away.
    #[must_use]
    pub fn new(client: AsyncClient, silent_ms: u64, counters: Arc<Counters>) -> Self {
        Self { client, heard: Mutex::default(), silent_ms, counters }
    }

    /// Notes that the device spoke.
    pub fn heard(&self, device: &DeviceId, now_ms: u64) {
        let mut heard = self.all();
        heard.entry(device.clone()).or_insert(Heard { unix_ms: 0, link: None }).unix_ms = now_ms;
    }

    /// Notes which of its connections the device speaks in; whether that is a new one, so that it has to be told all that waits.
    pub fn is_new(&self, device: &DeviceId, link: u64, now_ms: u64) -> bool {
        let now = Heard { unix_ms: now_ms, link: Some(link) };
        self.all().insert(device.clone(), now).is_none_or(|before| before.link != now.link)
    }

    /// Forgets the device.
    pub fn forget(&self, device: &DeviceId) {
        self.all().remove(device);
    }

    /// Whether the device was heard lately.
    #[must_use]
    pub fn is_online(&self, device: &DeviceId, now_ms: u64) -> bool {
        self.all().get(device).is_some_and(|heard| self.is_recent(heard, now_ms))
    }

    /// How many devices were heard lately.
    #[must_use]
    pub fn online(&self, now_ms: u64) -> usize {
        self.all().values().filter(|heard| self.is_recent(heard, now_ms)).count()
    }

    /// Sends now or not at all; a device that missed a message is told all that waits with its next heartbeat.
    pub fn send(&self, device: &DeviceId, message: &Downlink) {
        let Ok(bytes) = wire::encode(message) else { return };
        let topic = wire::topic(device.as_str(), Leaf::Down);
        if self.client.try_publish(topic, QoS::AtLeastOnce, false, bytes).is_err() {
            self.counters.bump(Counter::BrokerNotSent);
            if let Some(heard) = self.all().get_mut(device) {
                heard.link = None;
            }
        }
    }

    fn is_recent(&self, heard: &Heard, now_ms: u64) -> bool {
        now_ms.saturating_sub(heard.unix_ms) <= self.silent_ms
    }

    fn all(&self) -> MutexGuard<'_, HashMap<DeviceId, Heard>> {
        // Every change is a single insert or remove, so a panic elsewhere leaves the map whole.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use rumqttc::MqttOptions;

    use super::*;

    #[test]
    fn a_device_is_new_once_in_each_connection_and_again_when_it_missed_something() {
        let counters = Arc::<Counters>::default();
        // Nothing is read from the queue of one message.
        let (client, _events) = AsyncClient::new(MqttOptions::new("test", "localhost", 1), 1);
        let reach = Reach::new(client, 1000, Arc::clone(&counters));
        let device = DeviceId::parse("gw-1").unwrap();
        assert!(!reach.is_online(&device, 5));
        assert!(
            reach.is_new(&device, 1, 10) && !reach.is_new(&device, 1, 20) && reach.is_new(&device, 2, 30)
        );
        assert!(reach.is_online(&device, 1030) && !reach.is_online(&device, 1031) && reach.online(40) == 1);
        let ack = Downlink::Ack { epoch: 1, seq: 1 };
        reach.send(&device, &ack);
        assert!(!reach.is_new(&device, 2, 40) && counters.get(Counter::BrokerNotSent) == 0);
        reach.send(&device, &ack);
        assert!(reach.is_new(&device, 2, 50) && counters.get(Counter::BrokerNotSent) == 1);
        reach.heard(&device, 5000);
        assert!(reach.is_online(&device, 5500) && !reach.is_new(&device, 2, 5500));
        reach.forget(&device);
        assert_eq!(reach.online(5500), 0);
    }
}
