//! Simulated devices: one task each, with TLS, MQTT 3.1.1 and our messages.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fleet_server::mqtt::codec;
use models::policy::Severity;
use models::program::ProgramId;
use models::wire::{
    self, Alert, DetectorScore, Downlink, Heartbeat, LayerState, Leaf, ProgramState, Reason, Request, Uplink,
    UplinkFrame,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tests::Failed;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Alerts on their way, as the agent has them.
const WINDOW: u64 = 32;

/// Devices that send when as much as possible is sent.
const FULL_DEVICES: usize = 1000;

/// Handshakes at once; the server takes 256.
const HANDSHAKES: usize = 64;

const HEARTBEAT: Duration = Duration::from_secs(30);

/// Who a device is.
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) certificate: String,
    pub(crate) key: Arc<Vec<u8>>,
    pub(crate) ca_pem: String,
}

/// What all devices do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Heartbeats only.
    None,
    /// So many alerts a second together, evenly.
    Paced { per_s: u64 },
    /// Some of them as many alerts as are acknowledged.
    Full,
}

#[derive(Default)]
struct Counts {
    connected: AtomicU64,
    lost: AtomicU64,
    /// Connections made anew after the server went away.
    reconnected: AtomicU64,
    sent: AtomicU64,
    durable: AtomicU64,
    /// From sending to the acknowledgement, in microseconds, while paced.
    latencies: Mutex<Vec<u32>>,
}

/// All simulated devices.
pub(crate) struct Devices {
    address: SocketAddr,
    identities: Vec<Identity>,
    counts: Arc<Counts>,
    load: watch::Sender<Load>,
    /// The server may go away: each comes back and sends again what was not acknowledged.
    come_back: bool,
}

impl Devices {
    pub(crate) fn new(address: &str, identities: Vec<Identity>) -> Result<Self, Failed> {
        let address = address.parse().map_err(|error| Failed::new("the server's address", error))?;
        let (load, _) = watch::channel(Load::None);
        Ok(Self { address, identities, counts: Arc::default(), load, come_back: false })
    }

    /// The same for a server that goes away now and then.
    pub(crate) fn that_come_back(address: &str, identities: Vec<Identity>) -> Result<Self, Failed> {
        Ok(Self { come_back: true, ..Self::new(address, identities)? })
    }

    /// Connects them all and leaves them running.
    pub(crate) async fn connect(&self) -> Result<(), Failed> {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        let of = self.identities.len();
        for (n, identity) in self.identities.iter().enumerate() {
            let permit = Arc::clone(&handshakes)
                .acquire_owned()
                .await
                .map_err(|error| Failed::new("a place", error))?;
            let (address, counts, load) = (self.address, Arc::clone(&self.counts), self.load.subscribe());
            let (name, config, come_back) = (identity.name.clone(), config(identity)?, self.come_back);
            tokio::spawn(async move {
                let mut device = match Device::open(address, name, Arc::clone(&config)).await {
                    Ok(device) => device,
                    Err(error) => {
                        counts.lost.fetch_add(1, Relaxed);
                        eprintln!("a device did not connect: {error}");
                        return;
                    }
                };
                drop(permit);
                counts.connected.fetch_add(1, Relaxed);
                let mut random = fastrand::Rng::with_seed(n as u64);
                while let Err(error) = device.run((n, of), &mut random, &counts, load.clone()).await {
                    if !come_back {
                        if counts.lost.fetch_add(1, Relaxed) < 5 {
                            eprintln!("{} was disconnected: {error}", device.name);
                        }
                        return;
                    }
                    device.reopen(address, &config, &mut random).await;
                    counts.reconnected.fetch_add(1, Relaxed);
                }
            });
        }
        // All places again: every handshake is done.
        let all = handshakes
            .acquire_many(HANDSHAKES as u32)
            .await
            .map_err(|error| Failed::new("a place", error))?;
        drop(all);
        match self.counts.lost.load(Relaxed) {
            0 => Ok(()),
            lost => Err(Failed(format!("{lost} devices did not connect"))),
        }
    }

    pub(crate) fn load(&self, load: Load) {
        self.load.send_replace(load);
    }

    pub(crate) fn sent(&self) -> u64 {
        self.counts.sent.load(Relaxed)
    }

    /// Alerts that the server said are stored.
    pub(crate) fn durable(&self) -> u64 {
        self.counts.durable.load(Relaxed)
    }

    /// Connections that were made anew.
    pub(crate) fn reconnected(&self) -> u64 {
        self.counts.reconnected.load(Relaxed)
    }

    /// Waits until everything that was sent is acknowledged.
    pub(crate) fn settle(&self) -> Result<(), Failed> {
        let lost = self.counts.lost.load(Relaxed);
        if lost > 0 {
            return Err(Failed(format!("{lost} devices were disconnected")));
        }
        tests::wait_for("the acknowledgement of everything", Duration::from_secs(120), || {
            Ok((self.durable() >= self.sent()).then_some(()))
        })
    }

    /// From sending to the acknowledgement: median and 99th percentile.
    pub(crate) fn latency_ms(&self) -> (f64, f64) {
        let mut all = self.counts.latencies.lock().map(|all| all.clone()).unwrap_or_default();
        all.sort_unstable();
        let at = |share: f64| {
            let index = (all.len() as f64 * share) as usize;
            all.get(index.min(all.len().saturating_sub(1))).map_or(0.0, |us| f64::from(*us) / 1000.0)
        };
        (at(0.5), at(0.99))
    }
}

fn config(identity: &Identity) -> Result<Arc<rustls::ClientConfig>, Failed> {
    let failed = |error: &dyn std::fmt::Display| Failed::new("setting up TLS", error);
    let certificate =
        |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| failed(&error));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate(&identity.ca_pem)?).map_err(|error| failed(&error))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.to_vec()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate(&identity.certificate)?], key)
        .map_err(|error| failed(&error))?;
    Ok(Arc::new(config))
}

struct Device {
    name: String,
    stream: TlsStream<TcpStream>,
    rest: Vec<u8>,
    next_id: u16,
    seq: u64,
    acked: u64,
    /// What was sent and not acknowledged.
    unacked: std::collections::VecDeque<Vec<u8>>,
    /// When each of those on their way was sent.
    sent_at: std::collections::VecDeque<SystemTime>,
}

type Io<T> = std::io::Result<T>;

impl Device {
    async fn open(address: SocketAddr, name: String, config: Arc<rustls::ClientConfig>) -> Io<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let server = ServerName::IpAddress(address.ip().into());
        let stream = TlsConnector::from(config).connect(server, tcp).await?;
        let mut device = Self {
            name,
            stream,
            rest: Vec::new(),
            next_id: 0,
            seq: 0,
            acked: 0,
            unacked: std::collections::VecDeque::new(),
            sent_at: std::collections::VecDeque::new(),
        };
        let id = device.name.clone();
        let mut connect = vec![0x10, u8::try_from(12 + id.len()).unwrap_or(0)];
        connect.extend_from_slice(b"\x00\x04MQTT\x04\x02\x00\x3c\x00");
        connect.push(u8::try_from(id.len()).unwrap_or(0));
        connect.extend_from_slice(id.as_bytes());
        device.stream.write_all(&connect).await?;
        let topic = wire::topic(&device.name, Leaf::Down);
        let mut subscribe = vec![0x82, u8::try_from(5 + topic.len()).unwrap_or(0), 0, 1, 0];
        subscribe.push(u8::try_from(topic.len()).unwrap_or(0));
        subscribe.extend_from_slice(topic.as_bytes());
        subscribe.push(1);
        device.stream.write_all(&subscribe).await?;
        for expected in [0x20, 0x90] {
            let (kind, body) = device.packet().await?;
            let good = kind == expected && body.last().is_some_and(|code| *code < 2);
            if !good {
                return Err(std::io::Error::other(format!("refused: packet {kind:#x} {body:?}")));
            }
        }
        Ok(device)
    }

    /// Connects again, however long it takes.
    async fn reopen(
        &mut self,
        address: SocketAddr,
        config: &Arc<rustls::ClientConfig>,
        random: &mut fastrand::Rng,
    ) {
        loop {
            tokio::time::sleep(Duration::from_millis(random.u64(50..500))).await;
            if let Ok(Self { stream, rest, .. }) =
                Self::open(address, self.name.clone(), Arc::clone(config)).await
            {
                (self.stream, self.rest) = (stream, rest);
                return;
            }
        }
    }

    async fn run(
        &mut self,
        (n, of): (usize, usize),
        random: &mut fastrand::Rng,
        counts: &Counts,
        mut load: watch::Receiver<Load>,
    ) -> Io<()> {
        for n in 0..self.unacked.len() {
            let bytes = self.unacked[n].clone();
            self.publish(Leaf::Up, &bytes).await?;
        }
        let share = (n as f64 + random.f64()) / of as f64;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.reset_after(HEARTBEAT.mul_f64(share));
        let mut pace = tokio::time::interval(Duration::from_secs(3600));
        loop {
            let now = *load.borrow();
            let paced = matches!(now, Load::Paced { .. });
            let full = now == Load::Full && n < FULL_DEVICES;
            while full && self.seq - self.acked < WINDOW {
                self.alert(random, counts).await?;
            }
            let due = tokio::select! {
                packet = next_packet(&mut self.stream, &mut self.rest) => {
                    let (kind, body) = packet?;
                    self.take(kind, &body, counts, paced).await?;
                    continue;
                }
                _ = heartbeat.tick() => Due::Heartbeat,
                _ = pace.tick(), if paced => Due::Alert,
                changed = load.changed() => {
                    changed.map_err(std::io::Error::other)?;
                    Due::Load
                }
            };
            match due {
                Due::Heartbeat => {
                    let heartbeat =
                        wire::encode(&Request::Heartbeat(self.heartbeat())).map_err(std::io::Error::other)?;
                    self.publish(Leaf::Req, &heartbeat).await?;
                }
                Due::Alert => self.alert(random, counts).await?,
                Due::Load => {
                    if let Load::Paced { per_s } = *load.borrow() {
                        let every = Duration::from_secs_f64(of as f64 / per_s as f64);
                        pace = tokio::time::interval(every);
                        pace.reset_after(every.mul_f64(share));
                    }
                }
            }
        }
    }

    async fn alert(&mut self, random: &mut fastrand::Rng, counts: &Counts) -> Io<()> {
        self.seq += 1;
        let frame = UplinkFrame { epoch: 1, seq: self.seq, body: Uplink::Alert(alert(self.seq, random)) };
        let bytes = wire::encode(&frame).map_err(std::io::Error::other)?;
        self.sent_at.push_back(SystemTime::now());
        counts.sent.fetch_add(1, Relaxed);
        self.unacked.push_back(bytes.clone());
        self.publish(Leaf::Up, &bytes).await
    }

    async fn publish(&mut self, leaf: Leaf, bytes: &[u8]) -> Io<()> {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        let packet = codec::publish(&wire::topic(&self.name, leaf), Some(self.next_id), bytes);
        self.stream.write_all(&packet).await?;
        self.stream.flush().await
    }

    async fn take(&mut self, kind: u8, body: &[u8], counts: &Counts, paced: bool) -> Io<()> {
        if kind & 0xf0 != 0x30 {
            return Ok(());
        }
        let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let (id, payload) = (&body[2 + topic..4 + topic], &body[4 + topic..]);
        self.stream.write_all(&codec::puback(u16::from_be_bytes([id[0], id[1]]))).await?;
        if let Ok(Downlink::Ack { epoch: 1, seq }) = wire::decode::<Downlink>(payload)
            && seq > self.acked
        {
            let fresh = seq - self.acked;
            counts.durable.fetch_add(fresh, Relaxed);
            self.acked = seq;
            self.unacked.drain(..usize::try_from(fresh).unwrap_or(0).min(self.unacked.len()));
            let done = self.sent_at.drain(..usize::try_from(fresh).unwrap_or(0).min(self.sent_at.len()));
            if paced && let Ok(mut latencies) = counts.latencies.lock() {
                let us = |at: SystemTime| {
                    u32::try_from(at.elapsed().unwrap_or_default().as_micros()).unwrap_or(u32::MAX)
                };
                latencies.extend(done.map(us));
            }
        }
        Ok(())
    }

    async fn packet(&mut self) -> Io<(u8, Vec<u8>)> {
        next_packet(&mut self.stream, &mut self.rest).await
    }

    fn heartbeat(&self) -> Heartbeat {
        let layer = |n: usize| LayerState {
            layer: format!("layer-{n}"),
            backend: "tp_btf/sys_enter".into(),
            failed: vec![],
        };
        let program = |n: usize| ProgramState {
            program: program(n),
            state: "ACTIVE".into(),
            generation: 1,
            windows: 240,
        };
        Heartbeat {
            unix_ms: 1_800_000_000_000,
            version: "0.1.0".into(),
            kernel: "6.1.0".into(),
            arch: "aarch64".into(),
            rss_bytes: 30 << 20,
            cpu_ms: 100_000,
            uptime_ms: 10_000_000,
            outbox_waiting: self.seq - self.acked,
            counters: (0..60).map(|n| (format!("kernel_class_{n}_submitted"), n * 1000)).collect(),
            layers: (0..14).map(layer).collect(),
            programs: (0..20).map(program).collect(),
            program_file: [7; 32],
        }
    }
}

enum Due {
    Heartbeat,
    Alert,
    Load,
}

/// Safe to drop at any point: bytes that came are in `rest`.
async fn next_packet(stream: &mut TlsStream<TcpStream>, rest: &mut Vec<u8>) -> Io<(u8, Vec<u8>)> {
    loop {
        let mut length = 0;
        let mut header = 1;
        let complete = loop {
            let Some(byte) = rest.get(header) else { break false };
            length |= usize::from(byte & 0x7f) << (7 * (header - 1));
            header += 1;
            if byte & 0x80 == 0 {
                break true;
            }
        };
        if complete && rest.len() >= header + length {
            let packet = (rest[0], rest[header..header + length].to_vec());
            rest.drain(..header + length);
            return Ok(packet);
        }
        if stream.read_buf(rest).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn program(n: usize) -> ProgramId {
    let unit = format!("service-{}.service", n % 40);
    ProgramId { unit, exe: format!("/usr/bin/program-{}", n % 200), script: None }
}

/// One of many alerts: 200 programs, a dozen acts, ten thousand paths.
fn alert(seq: u64, random: &mut fastrand::Rng) -> Alert {
    const ACTS: [(&str, &str, &str); 12] = [
        ("file", "first_sensitive_file", "T1003.008"),
        ("network", "first_port", "T1571"),
        ("process", "first_shell", "T1059"),
        ("injection", "first_ptrace", "T1055"),
        ("escape", "first_namespace", "T1611"),
        ("lolbin", "first_lolbin", "T1218"),
        ("antiforensic", "first_log_wipe", "T1070"),
        ("dns", "first_long_query", "T1071.004"),
        ("privilege", "first_setuid", "T1068"),
        ("module", "first_bpf", "T1547.006"),
        ("memory", "first_memfd", "T1620"),
        ("volume", "sent_more", "T1041"),
    ];
    let (layer, name, technique) = ACTS[random.usize(0..ACTS.len())];
    let score = 40.0 + random.f32() * 60.0;
    let severity = match score {
        score if score >= 90.0 => Severity::Critical,
        score if score >= 70.0 => Severity::High,
        _ => Severity::Medium,
    };
    let path = format!("/srv/data/object-{}", random.u32(0..10_000));
    let reason = |text: String, share| Reason { layer: layer.into(), name: name.into(), text, share };
    Alert {
        unix_ms: 1_800_000_000_000 + seq,
        program: program(random.usize(0..200)),
        pid: random.u32(2..40_000),
        comm: "worker".into(),
        score,
        severity,
        techniques: vec![technique.into()],
        summary: format!("touched {path}; it never did before"),
        reasons: vec![
            reason(format!("touched {path}, which it never did before"), 1.0),
            reason("opened 17 files a second, usually 0 to 3".into(), 0.3),
        ],
        generation: 1,
        detectors: ["vae", "lstm", "nearest", "repertoire", "novelty"]
            .map(|name| DetectorScore { name: name.into(), z: random.f32() * 20.0 })
            .to_vec(),
        suppressed_before: 0,
        degraded: vec![],
    }
}
