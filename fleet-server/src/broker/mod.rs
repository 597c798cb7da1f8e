//! A broker of others instead of our own endpoint: this server is one of its clients, and so may further ones be.
//!
//! ```text
//! broker ── up, req ──► poll ──(≤ 4096)──► intake ──► ingest ──(≤ 1024 being stored)──► answer: PUBACK, Ack ──┐
//!    ▲                                                                                                        │
//!    └──────────────────────────────── one queue of the client (≤ 4096) ◄── hub: offers ◄── feed ◄───────────┘
//! ```
//! The broker checks certificates, and by its ACL that a device uses its own topics only. It does not say when a device comes:
//! that shows in the device's next heartbeat, and it is told then what waited. A message is acknowledged to the broker when
//! its commit is over, well or not; what a device is told, and what empties its outbox, is an `Ack` of ours as with our own endpoint.
//! So a message that the broker loses, or that was not stored, is sent again.

mod files;
mod reach;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use models::chain::chain;
use models::wire::{self, Downlink, Leaf, MESSAGE_MAX};
use rumqttc::{
    AsyncClient, Event as MqttEvent, EventLoop, MqttOptions, NetworkOptions, Packet, Publish, QoS,
    SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::sync::{broadcast::error::RecvError, mpsc, watch};

use crate::clock;
use crate::config::External;
use crate::counters::Counter;
use crate::feed;
use crate::hub::Event;
use crate::ingest::{self, Message, Stored};
use crate::names::DeviceId;
use crate::pki::{Pki, PkiError};
use crate::secret;
use crate::server::Shared;
use crate::store::{self, Known, StoreError};

pub use files::{FILES, write as write_files};
pub use reach::Reach;

/// Messages to the broker that wait; one more to a device is not sent, others wait with whoever sends them.
const QUEUE: usize = 4096;

/// Messages that came and were not looked at yet. A broker that has more on their way than its limit of unacknowledged messages
/// should allow loses them, and the devices send them again.
const ARRIVED_MAX: usize = 4096;

/// Messages being stored.
const STORING_MAX: usize = 1024;

/// One acknowledgement covers at most so many messages.
const ACK_EVERY: usize = 256;

/// Messages of ours without a PUBACK.
const INFLIGHT: u16 = 1000;

/// Those that share a subscription get each message once together.
const SHARE: &str = "$share/behaveguard/";

const KEEP_ALIVE: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT_S: u64 = 10;
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A client of the broker and what drives it; it connects when it is [`run`].
///
/// # Errors
/// When the TLS library refuses our key or certificate.
pub fn client(external: &External, pki: &Pki, now_unix_s: u64) -> Result<(AsyncClient, EventLoop), PkiError> {
    let id = format!("behaveguard-fleet-{}", &secret::random()[..8]);
    let mut options = MqttOptions::new(id, &external.host, external.port);
    options
        .set_keep_alive(KEEP_ALIVE)
        .set_clean_session(true)
        .set_manual_acks(true)
        .set_inflight(INFLIGHT)
        .set_max_packet_size(2 * MESSAGE_MAX, 2 * MESSAGE_MAX)
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(
            pki.broker_client_tls(now_unix_s)?,
        ))));
    let (client, mut events) = AsyncClient::new(options, QUEUE);
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(CONNECT_TIMEOUT_S);
    network.set_tcp_nodelay(true);
    events.set_network_options(network);
    Ok((client, events))
}

/// A message and the connection it came in.
struct Arrived {
    link: u64,
    publish: Publish,
}

/// A message that is being stored.
struct Storing {
    link: u64,
    publish: Publish,
    device: DeviceId,
    stored: Stored,
}

/// Connects, and connects again, until `stop` says true.
pub async fn run(
    shared: Arc<Shared>,
    external: External,
    client: AsyncClient,
    mut events: EventLoop,
    mut stop: watch::Receiver<bool>,
) {
    let broker = format!("{}:{}", external.host, external.port);
    let link = Arc::new(AtomicU64::new(0));
    let (arrived, arriving) = mpsc::channel(ARRIVED_MAX);
    let (storing, to_answer) = mpsc::channel(STORING_MAX);
    let acknowledge = Acknowledge { client: client.clone(), link: Arc::clone(&link) };
    tokio::spawn(take(Arc::clone(&shared), acknowledge.clone(), arriving, storing));
    tokio::spawn(answer(Arc::clone(&shared), acknowledge, to_answer));
    tokio::spawn(tell_listeners(Arc::clone(&shared), client.clone(), stop.clone()));
    let mut wait = RETRY_MIN;
    loop {
        let event = tokio::select! {
            event = events.poll() => event,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match event {
            Ok(MqttEvent::Incoming(Packet::ConnAck(_))) => {
                link.fetch_add(1, Relaxed);
                if client.try_subscribe_many(filters(external.shared)).is_err() {
                    log::error!("{broker}: too much waits for it to subscribe");
                    events.clean();
                }
            }
            Ok(MqttEvent::Incoming(Packet::SubAck(ack))) => {
                if ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                    log::error!(
                        "{broker} does not let us subscribe to bg/v1/+/up and bg/v1/+/req: its access control must let \
                         {} do that; `behaveguard-fleet broker` writes files that do",
                        Pki::BROKER_CLIENT
                    );
                } else {
                    wait = RETRY_MIN;
                    shared.counters.bump(Counter::BrokerConnected);
                    log::info!("devices are heard through {broker}");
                }
            }
            Ok(MqttEvent::Incoming(Packet::Publish(publish))) => {
                let message = Arrived { link: link.load(Relaxed), publish };
                if let Err(error) = arrived.try_send(message) {
                    shared.counters.bump(Counter::BrokerOverflow);
                    // Else the broker would wait for it for ever. The device sends it again.
                    let _ = client.try_ack(&error.into_inner().publish);
                }
            }
            Ok(_) => {}
            Err(error) => {
                shared.counters.bump(Counter::BrokerFailed);
                log::warn!(
                    "no link to the broker {broker}: {}; trying again, devices keep what they have",
                    chain(&error)
                );
                tokio::select! {
                    () = tokio::time::sleep(jittered(wait)) => {}
                    _ = stop.wait_for(|stop| *stop) => break,
                }
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
    // Says good bye, if that goes at once.
    let _ = client.try_disconnect();
    let _ = tokio::time::timeout(Duration::from_millis(200), async { while events.poll().await.is_ok() {} })
        .await;
}

/// So that several servers do not come back together.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + f64::from(secret::random().as_bytes()[0] % 32) / 32.0)
}

fn filters(is_shared: bool) -> Vec<SubscribeFilter> {
    let share = if is_shared { SHARE } else { "" };
    let filter = |leaf| SubscribeFilter::new(format!("{share}{}", wire::topic("+", leaf)), QoS::AtLeastOnce);
    vec![filter(Leaf::Up), filter(Leaf::Req)]
}

/// Tells the broker that a message need not wait any more: it is stored, or was not and the device, which was not told so,
/// sends it again. A broker whose messages are never acknowledged sends no more.
#[derive(Clone)]
struct Acknowledge {
    client: AsyncClient,
    link: Arc<AtomicU64>,
}

impl Acknowledge {
    async fn done(&self, link: u64, publish: &Publish) {
        // The broker of another connection knows nothing of this message, or calls another one by its number.
        if link == self.link.load(Relaxed) {
            let _ = self.client.ack(publish).await;
        }
    }
}

/// Hands messages to the store in the order in which they came.
async fn take(
    shared: Arc<Shared>,
    acknowledge: Acknowledge,
    mut arriving: mpsc::Receiver<Arrived>,
    storing: mpsc::Sender<Storing>,
) {
    while let Some(Arrived { link, publish }) = arriving.recv().await {
        match taken(&shared, &publish).await {
            Ok(Taken::Storing { device, stored }) => {
                if storing.send(Storing { link, publish, device, stored }).await.is_err() {
                    return;
                }
            }
            Ok(Taken::Done(answer)) => {
                if let Some((device, message)) = answer {
                    shared.hub.send(&device, &message);
                }
                acknowledge.done(link, &publish).await;
            }
            Err(error) => {
                log::error!("a message was not stored: {}", chain(&error));
                acknowledge.done(link, &publish).await;
            }
        }
    }
}

enum Taken {
    Storing {
        device: DeviceId,
        stored: Stored,
    },
    /// With what the device is told.
    Done(Option<(DeviceId, Downlink)>),
}

async fn taken(shared: &Arc<Shared>, publish: &Publish) -> Result<Taken, StoreError> {
    let topic = &publish.topic;
    let of = wire::parse_topic(topic).and_then(|(name, leaf)| Some((DeviceId::parse(name).ok()?, leaf)));
    let Some((device, leaf)) = of else {
        shared.counters.bump(Counter::MessagesRejected);
        log::warn!("the broker let somebody publish to {topic:?}");
        return Ok(Taken::Done(None));
    };
    let owner = device.clone();
    if shared.store.read(move |c| store::admitted(c, &owner)).await? != Known::Yes {
        shared.counters.bump(Counter::MqttNotEnrolled);
        log::warn!("device {device} is not enrolled or was revoked: nothing of it is taken");
        shared.hub.close(&device);
        return Ok(Taken::Done(None));
    }
    let raw = publish.payload.to_vec();
    let message = match Message::read(leaf, raw) {
        Message::Chunk { sha256, offset, len } => {
            let owner = device.clone();
            let part = shared.store.read(move |c| store::chunk(c, &owner, sha256, offset, len)).await?;
            let answer = part.map(|data| (device, Downlink::Chunk { sha256, offset, data }));
            return Ok(Taken::Done(answer));
        }
        message => message,
    };
    let stored = ingest::submit(shared, &device, message).await?;
    if let Some(reach) = shared.hub.reach() {
        reach.heard(&device, clock::unix_ms());
    }
    Ok(Taken::Storing { device, stored })
}

/// Answers after commits. One acknowledgement covers everything of a device that was ready.
async fn answer(shared: Arc<Shared>, acknowledge: Acknowledge, mut storing: mpsc::Receiver<Storing>) {
    let mut acks: HashMap<(DeviceId, u64), u64> = HashMap::new();
    let mut since_ack = 0;
    while let Some(Storing { link, publish, device, stored }) = storing.recv().await {
        let links = stored.links;
        let stored = ingest::stored(&shared, &device, stored).await;
        acknowledge.done(link, &publish).await;
        match stored {
            Ok(ack) => {
                if let Some((epoch, seq)) = ack {
                    acks.insert((device.clone(), epoch), seq);
                }
                let now_ms = clock::unix_ms();
                let reach = shared.hub.reach();
                if links.is_some_and(|links| reach.is_some_and(|reach| reach.is_new(&device, links, now_ms)))
                {
                    tell_what_waits(&shared, &device).await;
                }
            }
            Err(error) => log::error!("a message of device {device} was not stored: {}", chain(&error)),
        }
        since_ack += 1;
        if storing.is_empty() || since_ack >= ACK_EVERY {
            for ((device, epoch), seq) in acks.drain() {
                shared.hub.send(&device, &Downlink::Ack { epoch, seq });
            }
            since_ack = 0;
        }
    }
}

async fn tell_what_waits(shared: &Shared, device: &DeviceId) {
    match ingest::waiting(shared, device).await {
        Ok(waiting) => waiting.iter().for_each(|message| shared.hub.send(device, message)),
        Err(error) => log::error!("reading what waits for device {device}: {}", chain(&error)),
    }
}

/// Publishes what is stored for those who listen, each once: the server that leads does.
async fn tell_listeners(shared: Arc<Shared>, client: AsyncClient, mut stop: watch::Receiver<bool>) {
    let mut events = shared.hub.listen();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        if !shared.store.leads() {
            continue;
        }
        let messages: Vec<_> = match event {
            Ok(Event::Alert(alert)) if alert.suppressed.is_none() => {
                let of = |kind| Some((feed::alert_topic(kind, &alert), feed::alert(kind, &alert)?));
                feed::OF_ALERTS.into_iter().filter_map(of).collect()
            }
            Ok(Event::Agent(event)) => {
                let wanted = event.device.clone();
                let group = shared.store.read(move |c| store::group_of(c, &wanted)).await;
                let group = group.ok().flatten().unwrap_or_default();
                let of = |kind| {
                    Some((feed::event_topic(kind, &group, &event), feed::event(kind, &group, &event)?))
                };
                feed::OF_EVENTS.into_iter().filter_map(of).collect()
            }
            Ok(_) => continue,
            Err(RecvError::Lagged(lost)) => {
                // Whoever listens asks the API for what is missing, by number.
                shared.counters.add(Counter::StreamLagged, lost);
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        for (topic, message) in messages {
            let sent = client.publish(topic, QoS::AtLeastOnce, false, message);
            tokio::select! {
                _ = sent => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }
}
