//! One device's connection: a reader, a task that answers after commits, and a writer.
//!
//! ```text
//! reader ──(≤ 64 messages being stored)──► answers: PUBACK, then Ack ──┐
//!    └── SUBACK, PINGRESP, chunks ─────────────────────────────────────┼─(≤ 256)─► writer ──► device
//! hub: offers, acks ───────────────────────────────────────────────────┘
//! ```
//! When a queue is full the reader waits, so TCP slows the device down. The hub never waits: it closes instead.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use models::chain::chain;
use models::wire::{self, Downlink, Leaf, MESSAGE_MAX};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::HANDSHAKE_TIMEOUT;
use super::codec::{self, CodecError, Packet};
use super::subscriber::{self, Login};
use crate::clock;
use crate::counters::Counter;
use crate::hub::{OUTGOING_MAX, Outgoing, Session};
use crate::ingest::{self, Message, Stored, Taken};
use crate::names::DeviceId;
use crate::pki;
use crate::server::Shared;
use crate::store::{self, Known, StoreError};

/// A packet is a message, its topic and a few bytes.
const PACKET_MAX: usize = MESSAGE_MAX + 1024;

/// Messages being stored per connection.
const STORING_MAX: usize = 64;

/// Messages of ours without a PUBACK; one more closes the connection.
const UNACKED_MAX: u32 = 4096;

/// How long one write may take.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Keep-alive used when a client asks for none or for more.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(600);

type Stream = TlsStream<TcpStream>;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("it was closed by the device")]
    Closed,
    #[error("reading or writing")]
    Io(#[from] std::io::Error),
    #[error("breaking the protocol")]
    Protocol(#[from] CodecError),
    #[error("a packet that has no place here")]
    Unexpected,
    #[error("the handshake took too long")]
    HandshakeTimeout,
    #[error("who it is")]
    Identity(#[from] pki::PkiError),
    #[error("{0}")]
    NotEnrolled(&'static str),
    #[error("nothing came within its keep-alive")]
    Silent,
    #[error("publishing to {0}")]
    Forbidden(String),
    #[error("it does not read what it is sent")]
    Slow,
    #[error("storing")]
    Store(#[from] StoreError),
    #[error("taken over or shut down")]
    Stopped,
}

struct Opened {
    stream: Stream,
    who: Who,
    keep_alive: Duration,
    rest: Vec<u8>,
}

enum Who {
    Device(DeviceId),
    Subscriber(Login),
}

/// Serves one TCP connection to its end.
pub(super) async fn run(
    shared: Arc<Shared>,
    tls: TlsAcceptor,
    tcp: TcpStream,
    peer: SocketAddr,
    handshake: OwnedSemaphorePermit,
    mut shutdown: watch::Receiver<bool>,
) {
    let opened = tokio::select! {
        opened = tokio::time::timeout(HANDSHAKE_TIMEOUT, open(&shared, tls, tcp)) => opened.unwrap_or(Err(End::HandshakeTimeout)),
        _ = shutdown.wait_for(|stop| *stop) => return,
    };
    drop(handshake);
    match opened {
        Ok(Opened { stream, who: Who::Device(device), keep_alive, rest }) => {
            established(shared, device, stream, rest, keep_alive, peer, shutdown).await;
        }
        Ok(Opened { stream, who: Who::Subscriber(login), keep_alive, rest }) => {
            subscriber::serve(shared, stream, rest, login, keep_alive, shutdown).await;
        }
        Err(end @ End::NotEnrolled(_)) => {
            shared.counters.bump(Counter::MqttNotEnrolled);
            log::warn!("{peer}: {end}");
        }
        Err(end) => {
            shared.counters.bump(Counter::MqttHandshakeFailed);
            log::info!("{peer}: handshake failed: {}", chain(&end));
        }
    }
}

async fn open(shared: &Arc<Shared>, tls: TlsAcceptor, tcp: TcpStream) -> Result<Opened, End> {
    tcp.set_nodelay(true)?;
    let mut stream = tls.accept(tcp).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let shown = certificate
        .map(|certificate| Ok::<_, pki::PkiError>((pki::device_of(certificate)?, pki::key_of(certificate)?)))
        .transpose()?;
    let mut rest = Vec::new();
    let (keep_alive_s, will, user) = match next_packet(&mut stream, &mut rest).await? {
        Packet::Connect { keep_alive_s, will, user } => (keep_alive_s, will, user),
        _ => return Err(End::Unexpected),
    };
    let asked = Duration::from_secs(u64::from(keep_alive_s)) * 3 / 2;
    let keep_alive = if asked.is_zero() { KEEP_ALIVE_MAX } else { asked.min(KEEP_ALIVE_MAX) };
    let Some((device, key)) = shown else {
        return match Login::check(shared, user).await {
            Ok(login) if !will => {
                stream.write_all(&codec::connack(0)).await?;
                Ok(Opened { stream, who: Who::Subscriber(login), keep_alive, rest })
            }
            refused => {
                stream.write_all(&codec::connack(5)).await?;
                stream.shutdown().await?;
                Err(refused.err().unwrap_or(End::NotEnrolled("a last will, which only devices could have")))
            }
        };
    };
    let owner = device.clone();
    let refused = match shared.store.read(move |c| store::known(c, &owner, key)).await? {
        Known::Yes if will => Some("it wants a last will, which would be a message that nobody numbered"),
        Known::Yes => None,
        Known::Replaced => Some("the device was enrolled again with another key"),
        Known::Revoked => Some("the device was revoked"),
        Known::No => Some("the device is not enrolled here"),
    };
    if let Some(why) = refused {
        stream.write_all(&codec::connack(5)).await?;
        stream.shutdown().await?;
        return Err(End::NotEnrolled(why));
    }
    stream.write_all(&codec::connack(0)).await?;
    Ok(Opened { stream, who: Who::Device(device), keep_alive, rest })
}

async fn established(
    shared: Arc<Shared>,
    device: DeviceId,
    stream: Stream,
    rest: Vec<u8>,
    keep_alive: Duration,
    peer: SocketAddr,
    mut shutdown: watch::Receiver<bool>,
) {
    let (read, write) = tokio::io::split(stream);
    let (queue, outgoing) = mpsc::channel(OUTGOING_MAX);
    let (storing, to_answer) = mpsc::channel(STORING_MAX);
    let (stop, mut stopped) = watch::channel(false);
    let (session, twins) = shared.hub.attach(&device, queue.clone(), stop);
    if twins {
        ingest::tell_twins(&shared, &device).await;
    }
    shared.counters.bump(Counter::MqttAccepted);
    log::info!("device {device} connected from {peer}");
    let unacked = Arc::new(AtomicU32::new(0));
    let mut reader = Reader {
        shared: Arc::clone(&shared),
        device: device.clone(),
        session: session.clone(),
        queue: queue.clone(),
        storing,
        unacked: Arc::clone(&unacked),
    };
    // A task of its own: what was committed is told to people and the trainer even when the device has gone.
    tokio::spawn(answer(Arc::clone(&shared), device.clone(), session.clone(), to_answer, queue));
    let end = tokio::select! {
        end = reader.run(read, rest, keep_alive) => end,
        end = write_out(&device, write, outgoing, unacked) => end,
        _ = stopped.wait_for(|stop| *stop) => Err(End::Stopped),
        _ = shutdown.wait_for(|stop| *stop) => Err(End::Stopped),
    };
    shared.hub.detach(&device, &session);
    let end = end.err().unwrap_or(End::Closed);
    let counter = match &end {
        End::Forbidden(topic) => {
            let owner = wire::parse_topic(topic).map_or(topic.as_str(), |(owner, _)| owner);
            log::warn!(
                "device {device} tried to publish as {owner:?} (topic {topic:?}); its connection was closed"
            );
            Some(Counter::ForbiddenPublish)
        }
        End::Protocol(_) | End::Unexpected => Some(Counter::MqttProtocolErrors),
        End::Silent => Some(Counter::MqttKeepAliveExpired),
        End::Slow => Some(Counter::MqttSlowClosed),
        _ => None,
    };
    if let Some(counter) = counter {
        shared.counters.bump(counter);
    }
    log::info!("device {device} disconnected: {}", chain(&end));
}

struct Reader {
    shared: Arc<Shared>,
    device: DeviceId,
    session: Session,
    queue: mpsc::Sender<Outgoing>,
    storing: mpsc::Sender<(Option<u16>, Stored)>,
    unacked: Arc<AtomicU32>,
}

impl Reader {
    async fn run(
        &mut self,
        mut read: ReadHalf<Stream>,
        mut rest: Vec<u8>,
        keep_alive: Duration,
    ) -> Result<(), End> {
        loop {
            let packet = tokio::time::timeout(keep_alive, next_packet(&mut read, &mut rest)).await;
            match packet.map_err(|_| End::Silent)?? {
                Packet::Publish { topic, qos, id, payload } => {
                    self.published(topic, qos, id, payload).await?;
                }
                Packet::PubAck => {
                    let _ = self.unacked.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
                }
                Packet::Subscribe { id, filters } => self.subscribed(id, &filters).await?,
                Packet::Unsubscribe { id, filters } => {
                    if filters.contains(&wire::topic(self.device.as_str(), Leaf::Down)) {
                        self.session.set_subscribed(false);
                    }
                    self.send(Outgoing::Packet(codec::unsuback(id))).await?;
                }
                Packet::PingReq => self.send(Outgoing::Packet(codec::pingresp())).await?,
                Packet::Disconnect => return Err(End::Closed),
                Packet::Connect { .. } => return Err(End::Unexpected),
            }
        }
    }

    async fn published(&mut self, topic: String, qos: u8, id: u16, payload: Vec<u8>) -> Result<(), End> {
        let leaf = match wire::parse_topic(&topic) {
            Some((owner, leaf)) if owner == self.device.as_str() && leaf != Leaf::Down => leaf,
            _ => return Err(End::Forbidden(topic)),
        };
        if qos > 1 {
            return Err(End::Unexpected);
        }
        let id = (qos == 1).then_some(id);
        let message = match Message::read(leaf, payload) {
            Message::Chunk { sha256, offset, len } => return self.chunk(id, sha256, offset, len).await,
            message => message,
        };
        let stored = ingest::submit(&self.shared, &self.device, message).await?;
        self.storing.send((id, stored)).await.map_err(|_| End::Stopped)
    }

    async fn chunk(&mut self, id: Option<u16>, sha256: [u8; 32], offset: u32, len: u32) -> Result<(), End> {
        if let Some(id) = id {
            self.send(Outgoing::Packet(codec::puback(id))).await?;
        }
        let owner = self.device.clone();
        let data = self.shared.store.read(move |c| store::chunk(c, &owner, sha256, offset, len)).await?;
        match data {
            Some(data) if self.session.is_subscribed() => {
                self.send_down(&Downlink::Chunk { sha256, offset, data }).await
            }
            Some(_) => Ok(()),
            None => {
                log::info!("device {} asked for a bundle that is not its own or is gone", self.device);
                Ok(())
            }
        }
    }

    async fn subscribed(&mut self, id: u16, filters: &[(String, u8)]) -> Result<(), End> {
        let mine = wire::topic(self.device.as_str(), Leaf::Down);
        let mut codes = Vec::with_capacity(filters.len());
        for (filter, qos) in filters {
            if *filter == mine && *qos > 0 {
                codes.push(1);
            } else {
                self.shared.counters.bump(Counter::ForbiddenSubscribe);
                log::warn!("device {} tried to subscribe to {filter:?}", self.device);
                codes.push(0x80);
            }
        }
        let good = codes.iter().any(|code| *code < 0x80);
        self.send(Outgoing::Packet(codec::suback(id, &codes))).await?;
        if !good {
            return Ok(());
        }
        // From here on the hub sends new messages itself, so nothing falls between the query and them.
        self.session.set_subscribed(true);
        for message in ingest::waiting(&self.shared, &self.device).await? {
            self.send_down(&message).await?;
        }
        let owner = self.device.clone();
        let seen = move |c: &_| store::seen(c, &owner, clock::unix_ms()).map(|()| Taken::default());
        let pending = self.shared.store.submit(seen).await?;
        self.storing.send((None, Stored { links: None, pending })).await.map_err(|_| End::Stopped)
    }

    async fn send_down(&self, message: &Downlink) -> Result<(), End> {
        send_down(&self.queue, message).await
    }

    async fn send(&self, outgoing: Outgoing) -> Result<(), End> {
        self.queue.send(outgoing).await.map_err(|_| End::Stopped)
    }
}

async fn send_down(queue: &mpsc::Sender<Outgoing>, message: &Downlink) -> Result<(), End> {
    match wire::encode(message) {
        Ok(bytes) => queue.send(Outgoing::Down(bytes)).await.map_err(|_| End::Stopped),
        Err(error) => {
            log::error!("a message was not sent: {error}");
            Ok(())
        }
    }
}

/// Answers in the order of arrival, each after its commit. One acknowledgement covers everything that was ready.
async fn answer(
    shared: Arc<Shared>,
    device: DeviceId,
    session: Session,
    mut storing: mpsc::Receiver<(Option<u16>, Stored)>,
    queue: mpsc::Sender<Outgoing>,
) {
    let mut acked: Option<(u64, u64)> = None;
    let mut since_ack = 0;
    while let Some((id, stored)) = storing.recv().await {
        let ack = match ingest::stored(&shared, &device, stored).await {
            Ok(ack) => ack,
            Err(error) => {
                log::error!("a message of device {device} was not stored: {}", chain(&error));
                session.close();
                continue;
            }
        };
        // The device may be gone; what it sent is stored all the same.
        if let Some(id) = id {
            let _ = queue.send(Outgoing::Packet(codec::puback(id))).await;
        }
        since_ack += 1;
        if let (Some((old_epoch, seq)), Some((epoch, _))) = (acked, ack)
            && old_epoch != epoch
        {
            let _ = send_down(&queue, &Downlink::Ack { epoch: old_epoch, seq }).await;
        }
        acked = ack.or(acked);
        if let Some((epoch, seq)) = acked
            && (storing.is_empty() || since_ack >= STORING_MAX / 2)
        {
            if session.is_subscribed() {
                let _ = send_down(&queue, &Downlink::Ack { epoch, seq }).await;
            }
            acked = None;
            since_ack = 0;
        }
    }
}

async fn write_out(
    device: &DeviceId,
    mut write: WriteHalf<Stream>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    unacked: Arc<AtomicU32>,
) -> Result<(), End> {
    let topic = wire::topic(device.as_str(), Leaf::Down);
    let mut id: u16 = 0;
    let mut buffer = Vec::new();
    while let Some(first) = outgoing.recv().await {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Outgoing::Packet(bytes) => buffer.extend_from_slice(&bytes),
                Outgoing::Down(bytes) => {
                    if unacked.fetch_add(1, Relaxed) >= UNACKED_MAX {
                        return Err(End::Slow);
                    }
                    id = id.checked_add(1).unwrap_or(1);
                    buffer.extend_from_slice(&codec::publish(&topic, Some(id), &bytes));
                }
            }
            next = if buffer.len() < PACKET_MAX { outgoing.try_recv().ok() } else { None };
        }
        let written = async {
            write.write_all(&buffer).await?;
            write.flush().await
        };
        tokio::time::timeout(WRITE_TIMEOUT, written).await.map_err(|_| End::Slow)??;
        buffer.clear();
    }
    Err(End::Stopped)
}

pub(super) async fn next_packet<R: tokio::io::AsyncRead + Unpin>(
    read: &mut R,
    rest: &mut Vec<u8>,
) -> Result<Packet, End> {
    loop {
        if let Some((packet, used)) = codec::read(rest, PACKET_MAX)? {
            rest.drain(..used);
            return Ok(packet);
        }
        if read.read_buf(rest).await? == 0 {
            return Err(End::Closed);
        }
    }
}
