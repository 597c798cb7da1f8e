//! A program that listens: it has a user's name and token instead of a certificate, and may only subscribe.
//!
//! It is told what is stored from then on. What it missed while it was away it asks the API for, by number.

use std::sync::Arc;
use std::time::Duration;

use models::chain::chain;
use models::feed::{fits, is_filter};
use tokio::io::{AsyncWriteExt as _, WriteHalf};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use super::codec::{self, Packet};
use super::connection::{End, WRITE_TIMEOUT, next_packet};
use crate::clock;
use crate::counters::Counter;
use crate::feed;
use crate::hub::Event;
use crate::secret;
use crate::server::Shared;
use crate::store::{self, StoreError, StoredAlert, StoredEvent};

/// Filters of one connection; a further one is refused.
const FILTERS_MAX: usize = 32;

/// Messages without a PUBACK; one more closes the connection.
const UNACKED_MAX: u32 = 1000;

/// A wrong name or token is answered this late.
const REFUSED_AFTER: Duration = Duration::from_secs(1);

/// Whether the token is still good is looked up at most this often.
const LOOK_EVERY_MS: u64 = 1000;

/// Who listens.
pub(super) struct Login {
    name: String,
    token: [u8; 32],
}

impl Login {
    /// Checks a name with its token; anything wrong takes a while.
    pub(super) async fn check(shared: &Shared, user: Option<(String, Vec<u8>)>) -> Result<Self, End> {
        if let Some((name, password)) = user {
            let token = secret::hash(&String::from_utf8_lossy(&password));
            let login = Self { name, token };
            if login.is_good(shared).await? {
                return Ok(login);
            }
        }
        tokio::time::sleep(REFUSED_AFTER).await;
        Err(End::NotEnrolled("neither a certificate nor a user's name and token"))
    }

    async fn is_good(&self, shared: &Shared) -> Result<bool, StoreError> {
        let token = self.token;
        let found = shared.store.read(move |c| store::principal(c, token, clock::unix_s())).await?;
        Ok(found.is_some_and(|(principal, _)| principal.name == self.name))
    }
}

/// Serves it to the end of its connection.
pub(super) async fn serve(
    shared: Arc<Shared>,
    stream: TlsStream<tokio::net::TcpStream>,
    rest: Vec<u8>,
    login: Login,
    keep_alive: Duration,
    mut shutdown: watch::Receiver<bool>,
) {
    let (read, write) = tokio::io::split(stream);
    log::info!("{} listens", login.name);
    shared.counters.bump(Counter::SubscribersAccepted);
    let looked_ms = clock::unix_ms();
    let mut subscriber =
        Subscriber { shared: &shared, write, login, filters: Vec::new(), id: 0, unacked: 0, looked_ms };
    let end = tokio::select! {
        end = subscriber.run(read, rest, keep_alive) => end.err().unwrap_or(End::Closed),
        _ = shutdown.wait_for(|stop| *stop) => End::Stopped,
    };
    log::info!("{} no longer listens: {}", subscriber.login.name, chain(&end));
}

struct Subscriber<'a> {
    shared: &'a Shared,
    write: WriteHalf<TlsStream<tokio::net::TcpStream>>,
    login: Login,
    /// With the QoS of each, 0 or 1.
    filters: Vec<(String, u8)>,
    id: u16,
    unacked: u32,
    looked_ms: u64,
}

impl Subscriber<'_> {
    async fn run(
        &mut self,
        mut read: tokio::io::ReadHalf<TlsStream<tokio::net::TcpStream>>,
        mut rest: Vec<u8>,
        keep_alive: Duration,
    ) -> Result<(), End> {
        let mut events = self.shared.hub.listen();
        // A future of its own, because reading a packet must not be given up in the middle.
        let (packets, mut incoming) = tokio::sync::mpsc::channel(16);
        let reading = async move {
            loop {
                let packet = tokio::time::timeout(keep_alive, next_packet(&mut read, &mut rest)).await;
                let packet = packet.unwrap_or(Err(End::Silent));
                let ends = packet.is_err();
                if packets.send(packet).await.is_err() || ends {
                    return;
                }
            }
        };
        tokio::pin!(reading);
        let mut reading_ended = false;
        loop {
            tokio::select! {
                () = &mut reading, if !reading_ended => reading_ended = true,
                packet = incoming.recv() => match packet {
                    Some(packet) => self.take(packet?).await?,
                    None => return Err(End::Closed),
                },
                event = events.recv() => match event {
                    Ok(Event::Alert(alert)) if alert.suppressed.is_none() => self.alert(&alert).await?,
                    Ok(Event::Agent(event)) => self.event(&event).await?,
                    Ok(_) => {}
                    Err(RecvError::Lagged(lost)) => {
                        // It asks the API for what it missed when it comes back.
                        self.shared.counters.add(Counter::StreamLagged, lost);
                        return Err(End::Slow);
                    }
                    Err(RecvError::Closed) => return Err(End::Stopped),
                },
            }
        }
    }

    async fn take(&mut self, packet: Packet) -> Result<(), End> {
        match packet {
            Packet::Subscribe { id, filters } => {
                let codes: Vec<u8> =
                    filters.into_iter().map(|(filter, qos)| self.subscribe(filter, qos)).collect();
                self.send(&codec::suback(id, &codes)).await
            }
            Packet::Unsubscribe { id, filters } => {
                self.filters.retain(|(filter, _)| !filters.contains(filter));
                self.send(&codec::unsuback(id)).await
            }
            Packet::PubAck => {
                self.unacked = self.unacked.saturating_sub(1);
                Ok(())
            }
            Packet::PingReq => self.send(&codec::pingresp()).await,
            Packet::Disconnect => Err(End::Closed),
            Packet::Publish { topic, .. } => {
                self.shared.counters.bump(Counter::ForbiddenPublish);
                log::warn!("{} tried to publish to {topic:?}; its connection was closed", self.login.name);
                Err(End::Forbidden(topic))
            }
            Packet::Connect { .. } => Err(End::Unexpected),
        }
    }

    fn subscribe(&mut self, filter: String, qos: u8) -> u8 {
        let there = self.filters.iter().position(|(known, _)| *known == filter);
        if !is_filter(&filter) || (there.is_none() && self.filters.len() >= FILTERS_MAX) {
            self.shared.counters.bump(Counter::ForbiddenSubscribe);
            log::warn!("{} tried to subscribe to {filter:?}", self.login.name);
            return 0x80;
        }
        let qos = qos.min(1);
        match there {
            Some(at) => self.filters[at].1 = qos,
            None => self.filters.push((filter, qos)),
        }
        qos
    }

    async fn alert(&mut self, stored: &StoredAlert) -> Result<(), End> {
        for kind in feed::OF_ALERTS {
            self.tell(&feed::alert_topic(kind, stored), || feed::alert(kind, stored)).await?;
        }
        Ok(())
    }

    async fn event(&mut self, stored: &StoredEvent) -> Result<(), End> {
        let wanted = stored.device.clone();
        let group = self.shared.store.read(move |c| store::group_of(c, &wanted)).await?.unwrap_or_default();
        for kind in feed::OF_EVENTS {
            let topic = feed::event_topic(kind, &group, stored);
            self.tell(&topic, || feed::event(kind, &group, stored)).await?;
        }
        Ok(())
    }

    /// Sends a message once, with the highest QoS of the filters that fit.
    async fn tell(&mut self, topic: &str, message: impl FnOnce() -> Option<Vec<u8>>) -> Result<(), End> {
        let fitting = self.filters.iter().filter(|(filter, _)| fits(filter, topic));
        let Some(qos) = fitting.map(|(_, qos)| *qos).max() else { return Ok(()) };
        let now_ms = clock::unix_ms();
        if now_ms.abs_diff(self.looked_ms) >= LOOK_EVERY_MS {
            self.looked_ms = now_ms;
            if !self.login.is_good(self.shared).await? {
                return Err(End::NotEnrolled("its token has ended or was removed"));
            }
        }
        let Some(message) = message() else { return Ok(()) };
        let id = (qos == 1).then(|| {
            self.id = self.id.checked_add(1).unwrap_or(1);
            self.unacked += 1;
            self.id
        });
        if self.unacked > UNACKED_MAX {
            self.shared.counters.bump(Counter::MqttSlowClosed);
            return Err(End::Slow);
        }
        self.send(&codec::publish(topic, id, &message)).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), End> {
        let write = async {
            self.write.write_all(bytes).await?;
            self.write.flush().await
        };
        tokio::time::timeout(WRITE_TIMEOUT, write).await.map_err(|_| End::Slow)??;
        Ok(())
    }
}
