//! The link to the fleet: outboxes to MQTT, acknowledgements and bundles back, on a thread of its own.
//!
//! rumqttc keeps no promise across connections, so nothing is left to it: each connection is a new client with a
//! clean session, at most [`WINDOW`] numbered messages of each outbox are on their way ([`Lanes`]), and after each connection
//! sending starts again at the oldest message. A message leaves the outbox only when the fleet says it is stored.

mod deliver;
mod download;
mod fetch;
mod lanes;
mod renewal;
mod transfer;
mod web;
mod why;

use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use models::program::ProgramId;
use models::wire::{self, Downlink, Leaf, MESSAGE_MAX, Offer, Request, SignedOrder};
use rumqttc::{
    Client, Event, MqttOptions, NetworkOptions, Packet, QoS, SubscribeReasonCode, TlsConfiguration, Transport,
};

use crate::backoff::jittered;
use crate::captures::Capture;
use crate::clock;
use crate::confine;
use crate::contain::Contained;
use crate::enroll::{EnrollError, Identity};
use crate::outbox::Outbox;
use deliver::{Deliver, Delivered};
use download::Download;
use fetch::{Fetch, Fetched};
use renewal::Credentials;
use transfer::{Piece, Way};
use web::{Files, Web};
use why::{ENROL, RENEWS, has_expired, why};

pub use download::Wanted;
pub use lanes::{LANES, Lanes, WINDOW};

/// Messages handed to the client that it has not yet sent.
const QUEUE: usize = 128;

const KEEP_ALIVE: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT_S: u64 = 10;
/// Without an acknowledgement for this long the connection is made anew.
const STALL_NS: u64 = 30_000_000_000;
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What the link has to tell.
#[derive(Debug)]
pub enum News {
    /// The fleet listens, or no longer.
    Online(bool),
    /// A bundle may be fetched.
    Offer(Offer),
    /// A bundle is here, complete and with the right hash.
    Bundle(Offer, Vec<u8>),
    /// A containment is to be undone.
    Release {
        /// Its number.
        containment: u32,
        /// Who wants it.
        by: String,
        /// What became of it; the fleet is told by an event instead.
        answer: Option<SyncSender<Result<Contained, String>>>,
    },
    /// A bundle is to be used no longer.
    TakeBack(ProgramId, u64),
    /// Something is to be done, if it is signed.
    Order(SignedOrder),
    /// A capture is of no more use here: the fleet has it, or does not want it.
    Delivered {
        /// The order that it was recorded for.
        order: u64,
        /// The fleet has all of it.
        wanted: bool,
    },
    /// A program file is here, or never will be.
    Downloaded(Result<(), String>),
    /// The fleet is at these addresses now.
    Located(BTreeSet<SocketAddr>),
    /// Somebody on the device wants it quarantined for so many seconds, or no longer.
    Quarantine {
        /// `None` to end it.
        for_s: Option<u32>,
        /// Who wants it.
        by: String,
        /// What became of it.
        answer: SyncSender<Result<String, String>>,
    },
}

/// What happened how often since the start.
#[derive(Debug, Default)]
pub struct Counters {
    connected: AtomicU64,
    failed: AtomicU64,
    stalled: AtomicU64,
    sent: AtomicU64,
    acked: AtomicU64,
    requests_dropped: AtomicU64,
    rejected: AtomicU64,
    fetches_failed: AtomicU64,
    ranges: AtomicU64,
    ranges_failed: AtomicU64,
    deliveries_failed: AtomicU64,
    renewed: AtomicU64,
    renewals_failed: AtomicU64,
}

impl Counters {
    /// Names and values.
    #[must_use]
    pub fn list(&self) -> [(&'static str, u64); 13] {
        [
            ("uplink_connected", self.connected.load(Relaxed)),
            ("uplink_failed", self.failed.load(Relaxed)),
            ("uplink_stalled", self.stalled.load(Relaxed)),
            ("uplink_sent", self.sent.load(Relaxed)),
            ("uplink_acked", self.acked.load(Relaxed)),
            ("uplink_requests_dropped", self.requests_dropped.load(Relaxed)),
            ("uplink_messages_rejected", self.rejected.load(Relaxed)),
            ("uplink_fetches_failed", self.fetches_failed.load(Relaxed)),
            ("uplink_ranges", self.ranges.load(Relaxed)),
            ("uplink_ranges_failed", self.ranges_failed.load(Relaxed)),
            ("uplink_deliveries_failed", self.deliveries_failed.load(Relaxed)),
            ("uplink_renewed", self.renewed.load(Relaxed)),
            ("uplink_renewals_failed", self.renewals_failed.load(Relaxed)),
        ]
    }
}

/// Why there is no link at all.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Key or certificate.
    #[error("this device's key and certificate")]
    Identity(#[from] EnrollError),
    /// The thread.
    #[error("starting a thread")]
    Thread(#[from] io::Error),
}

/// A handle to the link. Cheap to clone.
#[derive(Clone)]
pub struct Uplink(Arc<Shared>);

struct Shared {
    identity: Identity,
    /// Whether the service is told where the fleet is.
    locates: bool,
    /// Each with an epoch of its own.
    outboxes: [Arc<dyn Outbox>; LANES],
    news: async_channel::Sender<News>,
    counters: Counters,
    sending: Mutex<Sending>,
}

#[derive(Default)]
struct Sending {
    /// While the fleet listens.
    client: Option<Client>,
    lanes: Lanes,
    fetch: Fetch,
    download: Download,
    deliver: Deliver,
    /// Where the fleet's web address is known.
    web: Option<Web>,
}

impl Uplink {
    /// Starts the thread, which writes below `state` only; it connects, and connects again, until the process ends. Before each
    /// connection it tells where the fleet is, if `locates`.
    ///
    /// # Errors
    /// When the device's key or certificate cannot be used, or the thread cannot be started.
    pub fn start(
        state: &Path,
        identity: Identity,
        outboxes: [Arc<dyn Outbox>; LANES],
        news: async_channel::Sender<News>,
        locates: bool,
    ) -> Result<Self, StartError> {
        let mut credentials = Credentials::new(state.to_owned(), identity.clone())?;
        let shared = Arc::new(Shared {
            identity,
            locates,
            outboxes,
            news,
            counters: Counters::default(),
            sending: Mutex::default(),
        });
        if !shared.identity.url.is_empty() {
            Arc::clone(&shared).fetch_over_https(state)?;
        }
        let mine = Arc::clone(&shared);
        let writes = state.to_owned();
        let work = move || {
            confine::thread_or_not(&[&writes]);
            mine.run(&mut credentials);
        };
        thread::Builder::new().name("uplink".into()).spawn(work)?;
        Ok(Self(shared))
    }

    /// Something new is in the outbox.
    pub fn wake(&self) {
        self.0.pump(&mut self.0.sending());
    }

    /// Sends a request now or not at all; `false` when the fleet does not listen.
    pub fn request(&self, request: &Request) -> bool {
        self.0.request(&self.0.sending(), request)
    }

    /// Fetches an offered bundle; it comes as [`News::Bundle`].
    pub fn fetch(&self, offer: Offer) {
        let mut sending = self.0.sending();
        sending.fetch.add(offer);
        self.0.ask(&mut sending);
    }

    /// Fetches a program file, and no other any more; what became of it comes as [`News::Downloaded`].
    ///
    /// # Errors
    /// When its file cannot be opened.
    pub fn download(&self, wanted: Wanted) -> io::Result<()> {
        let mut sending = self.0.sending();
        sending.download.begin(wanted)?;
        self.0.ask(&mut sending);
        Ok(())
    }

    /// Fetches none any more.
    pub fn end_download(&self) {
        self.0.sending().download.end();
    }

    /// Sends a capture; that it is there comes as [`News::Delivered`].
    pub fn deliver(&self, capture: Capture) {
        let mut sending = self.0.sending();
        sending.deliver.add(capture);
        self.0.ask(&mut sending);
    }

    /// What happened how often.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Says good bye to the fleet.
    pub fn stop(&self) {
        if let Some(client) = self.0.sending().client.take() {
            let _ = client.try_disconnect();
        }
    }
}

impl Shared {
    fn sending(&self) -> MutexGuard<'_, Sending> {
        // A panic elsewhere leaves at worst a message that is sent twice.
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread that fetches files of the fleet from its web address.
    fn fetch_over_https(self: Arc<Self>, state: &Path) -> io::Result<()> {
        let (to, asked) = sync_channel(web::QUEUE);
        self.sending().web = Some(Web::new(to));
        let files = Files { state: state.to_owned(), identity: self.identity.clone(), asked };
        let work = move || {
            confine::thread_or_not(&[&files.state]);
            files.serve(|piece, bytes| self.came_over_https(piece, bytes));
        };
        thread::Builder::new().name("files".into()).spawn(work)?;
        Ok(())
    }

    fn came_over_https(&self, piece: &Piece, bytes: Result<Vec<u8>, String>) {
        let mut sending = self.sending();
        match bytes {
            Ok(bytes) => {
                self.counters.ranges.fetch_add(1, Relaxed);
                sending.web.iter_mut().for_each(Web::worked);
                self.came(sending, piece.sha256, piece.offset, &bytes);
            }
            Err(why) => {
                self.counters.ranges_failed.fetch_add(1, Relaxed);
                let wait = sending.web.as_mut().map(|web| web.failed(clock::boot_ns())).unwrap_or_default();
                log::warn!("files of the fleet come over MQTT for the next {} s: {why}", wait.as_secs());
                sending.fetch.lost(Way::Web);
                sending.download.lost(Way::Web);
                self.ask(&mut sending);
            }
        }
    }

    fn run(&self, credentials: &mut Credentials) {
        let mut wait = RETRY_MIN;
        loop {
            self.locate();
            self.renew_when_due(credentials);
            let was_online = self.connection(credentials);
            self.sending().client = None;
            if was_online {
                wait = RETRY_MIN;
                if self.news.send_blocking(News::Online(false)).is_err() {
                    return;
                }
            }
            thread::sleep(jittered(wait));
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Names that nobody knows at the moment keep the addresses of before.
    fn locate(&self) {
        if !self.locates {
            return;
        }
        let found = self.identity.endpoints().into_iter().map(|(host, port)| (host, port).to_socket_addrs());
        let found: Result<Vec<_>, io::Error> = found.collect();
        match found {
            Ok(found) => self.tell(News::Located(found.into_iter().flatten().collect())),
            Err(error) => log::debug!("looking for the fleet: {error}"),
        }
    }

    /// A connection that stands is not ended for it: the new certificate is shown at the next one.
    fn renew_when_due(&self, credentials: &mut Credentials) {
        if credentials.is_due(clock::now()) {
            let counters = &self.counters;
            let counter = if credentials.renew() { &counters.renewed } else { &counters.renewals_failed };
            counter.fetch_add(1, Relaxed);
        }
    }

    /// One connection from beginning to end; whether the fleet listened.
    fn connection(&self, credentials: &mut Credentials) -> bool {
        let device = &self.identity.device;
        let mut options = MqttOptions::new(device, &self.identity.host, self.identity.port);
        options
            .set_keep_alive(KEEP_ALIVE)
            .set_clean_session(true)
            .set_inflight(u16::try_from(QUEUE).unwrap_or(u16::MAX))
            .set_max_packet_size(MESSAGE_MAX + 1024, MESSAGE_MAX + 1024)
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(credentials.tls())));
        let (client, mut connection) = Client::new(options, QUEUE);
        let mut network = NetworkOptions::new();
        network.set_connection_timeout(CONNECT_TIMEOUT_S);
        network.set_tcp_nodelay(true);
        connection.eventloop.set_network_options(network);
        let mut online = false;
        loop {
            let event = match connection.recv() {
                Ok(Ok(event)) => event,
                Ok(Err(error)) => {
                    self.counters.failed.fetch_add(1, Relaxed);
                    let mut why = why(&error);
                    if has_expired(&error) {
                        credentials.set_expired();
                        let then = if credentials.is_renewable() { RENEWS } else { ENROL };
                        why = format!("{why}: this device's certificate has expired: {then}");
                    }
                    log::warn!(
                        "no link to {}:{}: {why}; trying again, messages wait on disk",
                        self.identity.host,
                        self.identity.port,
                    );
                    return online;
                }
                Err(_) => return online,
            };
            match event {
                Event::Incoming(Packet::ConnAck(_)) => {
                    let _ = client.try_subscribe(wire::topic(device, Leaf::Down), QoS::AtLeastOnce);
                }
                Event::Incoming(Packet::SubAck(ack)) => {
                    if ack.return_codes.iter().any(|code| matches!(code, SubscribeReasonCode::Failure)) {
                        log::error!(
                            "the fleet does not let {device} listen to its own topic: enrol it again"
                        );
                        return online;
                    }
                    online = true;
                    self.counters.connected.fetch_add(1, Relaxed);
                    log::info!("linked to {}:{}", self.identity.host, self.identity.port);
                    let mut sending = self.sending();
                    sending.client = Some(client.clone());
                    sending.lanes.restart();
                    self.pump(&mut sending);
                    sending.fetch.lost(Way::Mqtt);
                    sending.download.lost(Way::Mqtt);
                    sending.deliver.restart();
                    self.ask(&mut sending);
                    drop(sending);
                    self.tell(News::Online(true));
                }
                Event::Incoming(Packet::Publish(publish)) => self.downlink(&publish.payload),
                Event::Incoming(_) => {
                    let mut sending = self.sending();
                    self.pump(&mut sending);
                    // What is not overdue is not asked for again.
                    self.ask(&mut sending);
                    let still = sending.lanes.still_ns(clock::boot_ns());
                    drop(sending);
                    if still > STALL_NS {
                        self.counters.stalled.fetch_add(1, Relaxed);
                        log::warn!(
                            "the fleet acknowledged nothing for {} s: connecting anew",
                            still / 1_000_000_000
                        );
                        return online;
                    }
                    self.renew_when_due(credentials);
                }
                Event::Outgoing(_) => {}
            }
        }
    }

    fn downlink(&self, payload: &[u8]) {
        match wire::decode::<Downlink>(payload) {
            Ok(Downlink::Ack { epoch, seq }) => self.acknowledged(epoch, seq),
            Ok(Downlink::Offer(offer)) => self.tell(News::Offer(offer)),
            Ok(Downlink::Release { containment }) => {
                self.tell(News::Release { containment, by: "the fleet".into(), answer: None });
            }
            Ok(Downlink::TakeBack { program, generation }) => {
                self.sending().fetch.forget(&program, generation);
                self.tell(News::TakeBack(program, generation));
            }
            Ok(Downlink::Order(signed)) => self.tell(News::Order(signed)),
            Ok(Downlink::Chunk { sha256, offset, data }) => {
                self.came(self.sending(), sha256, offset, &data);
            }
            Ok(Downlink::Kept { order, next }) => {
                let mut sending = self.sending();
                let delivered = sending.deliver.kept(order, next);
                self.ask(&mut sending);
                drop(sending);
                match delivered {
                    Delivered::Nothing => {}
                    Delivered::All(order) => self.tell(News::Delivered { order, wanted: true }),
                    Delivered::Unwanted(order) => self.tell(News::Delivered { order, wanted: false }),
                }
            }
            Err(error) => {
                self.counters.rejected.fetch_add(1, Relaxed);
                log::warn!("a message of the fleet cannot be used: {error}; is the agent too old?");
            }
        }
    }

    /// A piece of something that is being fetched.
    fn came(&self, mut sending: MutexGuard<'_, Sending>, sha256: [u8; 32], offset: u32, bytes: &[u8]) {
        let fetched = sending.fetch.take(sha256, offset, bytes);
        let downloaded = sending.download.take(sha256, offset, bytes);
        if matches!(fetched, Fetched::Wrong) {
            self.counters.fetches_failed.fetch_add(1, Relaxed);
            log::warn!("a bundle came with the wrong contents and was dropped");
        }
        self.ask(&mut sending);
        drop(sending);
        if let Fetched::Complete(offer, bytes) = fetched {
            self.tell(News::Bundle(offer, bytes));
        }
        if let Some(result) = downloaded {
            self.counters.fetches_failed.fetch_add(u64::from(result.is_err()), Relaxed);
            self.tell(News::Downloaded(result.map_err(|error| error.to_string())));
        }
    }

    fn acknowledged(&self, epoch: u64, seq: u64) {
        let mut sending = self.sending();
        match sending.lanes.acknowledged(self.outboxes(), (epoch, seq), clock::boot_ns()) {
            Ok(n) => {
                self.counters.acked.fetch_add(n, Relaxed);
            }
            Err(error) => log::warn!("forgetting what the fleet has: {error}"),
        }
        self.pump(&mut sending);
    }

    /// Hands messages to the client while the windows have room.
    fn pump(&self, sending: &mut Sending) {
        let Some(client) = sending.client.clone() else { return };
        let mut send = |leaf, bytes| {
            let topic = wire::topic(&self.identity.device, leaf);
            let is_sent = client.try_publish(topic, QoS::AtLeastOnce, false, bytes).is_ok();
            self.counters.sent.fetch_add(u64::from(is_sent && leaf == Leaf::Up), Relaxed);
            is_sent
        };
        if let Err(error) = sending.lanes.pump(self.outboxes(), clock::boot_ns(), &mut send) {
            log::error!("reading the outbox: {error}");
        }
    }

    fn outboxes(&self) -> [&dyn Outbox; LANES] {
        [self.outboxes[0].as_ref(), self.outboxes[1].as_ref()]
    }

    /// Asks for the next part of what is being fetched, and sends the next part of a capture, if there are any.
    fn ask(&self, sending: &mut Sending) {
        let (now_ns, is_linked) = (clock::boot_ns(), sending.client.is_some());
        let way = match &sending.web {
            // What was begun goes on while the link to the broker is down.
            Some(web) if web.is_usable(now_ns) => Way::Web,
            _ if is_linked => Way::Mqtt,
            _ => return,
        };
        let pieces = [sending.fetch.next(now_ns, way), sending.download.next(now_ns, way)];
        for piece in pieces.into_iter().flatten() {
            let Piece { sha256, offset, len, way } = piece;
            match (&sending.web, way) {
                (Some(web), Way::Web) => web.ask(piece),
                _ => self.request(sending, &Request::Chunk { sha256, offset, len }),
            };
        }
        if !is_linked {
            return;
        }
        match sending.deliver.next(now_ns) {
            Ok(Some(part)) => {
                self.request(sending, &part);
            }
            Ok(None) => {}
            Err((order, error)) => {
                self.counters.deliveries_failed.fetch_add(1, Relaxed);
                log::error!("the capture for order {order} is not sent: {error}");
            }
        }
    }

    fn request(&self, sending: &Sending, request: &Request) -> bool {
        let Some(client) = &sending.client else { return false };
        let sent = self.publish(client, request);
        if !sent {
            self.counters.requests_dropped.fetch_add(1, Relaxed);
        }
        sent
    }

    fn publish(&self, client: &Client, request: &Request) -> bool {
        let topic = wire::topic(&self.identity.device, Leaf::Req);
        match wire::encode(request) {
            Ok(bytes) => client.try_publish(topic, QoS::AtLeastOnce, false, bytes).is_ok(),
            Err(error) => {
                log::error!("a request was not sent: {error}");
                false
            }
        }
    }

    fn tell(&self, news: News) {
        // The service is gone only when the process ends.
        let _ = self.news.send_blocking(news);
    }
}
