//! One gateway: a pipeline, its outboxes, and what of them is on its way.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use agent::clock::Now;
use agent::config::Config;
use agent::done::DoneOrders;
use agent::outbox::{LogOutbox, MemoryOutbox, Outbox};
use agent::outgoing::{Counters, Outgoing, UNWRITTEN_MAX};
use agent::pipeline::{Input, Output, Pipeline};
use agent::processes::{Found, Identity, Lookup, Started};
use agent::uplink::{Lanes, WINDOW};
use models::bundle::Keyring;
use models::event::SyscallWindow;
use models::orders;
use models::policy::Severity;
use models::program::ProgramId;
use models::wire::{Alert, Answer, DeviceEvent, Downlink, EventKind, Leaf, Uplink, UplinkFrame, decode};

use crate::faults::Disk;

/// Room of the outbox on disk: a partition of some days fills it.
const OUTBOX_MAX: u64 = 64 * 1024;
/// Room of the one in memory.
const MEMORY_MAX: usize = 16 * 1024;
/// Length of a window.
const WINDOW_NS: u64 = 30_000_000_000;

/// Names a message through everything that happens to it.
pub(crate) type Marker = u64;

/// Who every process is.
struct Known;

impl Lookup for Known {
    fn identity(&mut self, tgid: u32, _: Option<&Started>) -> Identity {
        let program =
            ProgramId { unit: "gw.service".into(), exe: format!("/usr/bin/p{}", tgid % 3), script: None };
        Identity::Program(Found { program, comm: "p".into(), start_ticks: 1 })
    }
}

/// What runs; gone when the agent is killed.
struct Running {
    pipeline: Pipeline<Known>,
    outgoing: Outgoing,
    disk: Arc<Disk>,
    lanes: Lanes,
    done: DoneOrders,
    opened_ns: u64,
}

/// A gateway.
pub(crate) struct Device {
    pub(crate) name: String,
    dir: PathBuf,
    keys: Keyring,
    running: Option<Running>,
    /// What the wall clock is wrong by.
    pub(crate) clock_off_ms: i64,
    /// Of agents that were killed.
    before: Counters,
    /// Windows that went into the pipeline since the start, and those that came out for training.
    windows: (u64, u64),
    /// Messages that were given to `outgoing` and are in no store yet, with their kind.
    pub(crate) open: BTreeMap<Marker, &'static str>,
    /// Orders that were carried out.
    pub(crate) carried_out: BTreeMap<u64, u32>,
    pub(crate) produced: u64,
    pub(crate) lost: u64,
}

/// The marker that a message carries.
pub(crate) fn marker(body: &Uplink) -> Option<Marker> {
    match body {
        Uplink::Alert(alert) => alert.comm.parse().ok(),
        Uplink::Event(event) => event.text.parse().ok(),
        Uplink::Windows(windows) => windows.windows.first().map(|first| first.run),
        Uplink::Answer(answer) => answer.text.parse().ok(),
        Uplink::Alarmed(alarmed) => Some(alarmed.window.run),
    }
}

impl Device {
    pub(crate) fn new(name: String, dir: PathBuf, keys: Keyring) -> Self {
        Self {
            name,
            dir,
            keys,
            running: None,
            clock_off_ms: 0,
            before: Counters::default(),
            windows: (0, 0),
            open: BTreeMap::new(),
            carried_out: BTreeMap::new(),
            produced: 0,
            lost: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.running.is_some()
    }

    /// Starts the agent.
    pub(crate) fn start(&mut self, now_ns: u64, random: &mut fastrand::Rng) -> Result<(), String> {
        let log = LogOutbox::open_with(&self.dir, OUTBOX_MAX, &mut || random.u64(..));
        let log = log.map_err(|error| format!("opening the outbox: {error}"))?;
        if log.damaged() > 0 {
            return Err(format!("{} messages in the outbox are damaged", log.damaged()));
        }
        let disk = Arc::new(Disk::new(log));
        let memory: Arc<dyn Outbox> = Arc::new(MemoryOutbox::with_epoch(MEMORY_MAX, random.u64(..)));
        self.windows = (0, 0);
        let lanes = [Arc::clone(&disk) as Arc<dyn Outbox>, memory];
        let config = Config { alert_budget: None, ..Config::default() };
        self.running = Some(Running {
            pipeline: Pipeline::new(config, Known, now_ns),
            outgoing: Outgoing::new(lanes, true),
            disk,
            lanes: Lanes::default(),
            done: DoneOrders::open(&self.dir),
            opened_ns: now_ns,
        });
        Ok(())
    }

    /// Kills the agent; what was only in memory is gone. An append may have been under way.
    pub(crate) fn kill(&mut self, torn: Option<Vec<u8>>) {
        let Some(running) = self.running.take() else { return };
        let mut gone: Vec<Marker> = running.outgoing.unwritten().filter_map(marker).collect();
        gone.extend(waiting(running.outgoing.memory(), u64::MAX).into_iter().map(|(_, marker)| marker));
        for marker in gone {
            // What the fleet has already is not lost.
            self.lost += u64::from(self.open.remove(&marker).is_some());
        }
        self.count(running.outgoing.counters());
        drop(running);
        if let Some(bytes) = torn
            && let Some(last) = self.last_segment()
        {
            let file = OpenOptions::new().append(true).open(last);
            file.and_then(|mut file| file.write_all(&bytes)).expect("the folder can be written");
        }
    }

    fn last_segment(&self) -> Option<PathBuf> {
        let folder = std::fs::read_dir(self.dir.join("outbox")).ok()?;
        let segments = folder.flatten().map(|entry| entry.path());
        segments.filter(|path| path.extension().is_some_and(|ext| ext == "seg")).max()
    }

    fn count(&mut self, counters: Counters) {
        let sum = &mut self.before;
        sum.outbox_dropped += counters.outbox_dropped;
        sum.unwritten_dropped += counters.unwritten_dropped;
        sum.windows_refused += counters.windows_refused;
        sum.messages_too_long += counters.messages_too_long;
        sum.outbox_bypassed += counters.outbox_bypassed;
        sum.outbox_failed += counters.outbox_failed;
    }

    /// What was dropped, as the agent counts it.
    pub(crate) fn dropped(&self) -> Counters {
        let mut all = self.before;
        if let Some(running) = &self.running {
            let now = running.outgoing.counters();
            all.outbox_dropped += now.outbox_dropped;
            all.unwritten_dropped += now.unwritten_dropped;
            all.windows_refused += now.windows_refused;
            all.messages_too_long += now.messages_too_long;
        }
        all
    }

    pub(crate) fn set_disk_full(&self, full: bool) {
        if let Some(running) = &self.running {
            running.disk.set_full(full);
        }
    }

    /// Says something about a program or the agent.
    pub(crate) fn speak(
        &mut self,
        now: Now,
        marker: Marker,
        random: &mut fastrand::Rng,
    ) -> Result<(), String> {
        let body = if random.u8(..) < 96 {
            let kinds = [EventKind::Started, EventKind::Shedding, EventKind::ClockSet];
            let kind = kinds[random.usize(..kinds.len())];
            Uplink::Event(DeviceEvent {
                unix_ms: now.unix_ms,
                kind,
                program: None,
                containment: None,
                text: marker.to_string(),
            })
        } else {
            let severities = [Severity::Medium, Severity::High, Severity::Critical];
            Uplink::Alert(Alert {
                unix_ms: now.unix_ms,
                program: ProgramId { unit: "gw.service".into(), exe: "/usr/bin/p0".into(), script: None },
                pid: 7,
                comm: marker.to_string(),
                score: random.f32() * 100.0,
                severity: severities[random.usize(..3)],
                techniques: vec!["T1003.008".into()],
                summary: "opened a file that it never opened before ".repeat(random.usize(1..20)),
                reasons: vec![],
                generation: 0,
                detectors: vec![],
                suppressed_before: 0,
                degraded: vec![],
            })
        };
        self.push(now.boot_ns, marker, body)
    }

    fn push(&mut self, now_ns: u64, marker: Marker, body: Uplink) -> Result<(), String> {
        let kind = match &body {
            Uplink::Alert(_) => "alert",
            Uplink::Event(_) => "event",
            Uplink::Windows(_) => "windows",
            Uplink::Answer(_) => "answer",
            Uplink::Alarmed(_) => "alarmed",
        };
        let Some(running) = &mut self.running else { return Ok(()) };
        self.open.insert(marker, kind);
        self.produced += 1;
        running.outgoing.push(body);
        running.outgoing.write(now_ns, &mut |_| {});
        self.check()
    }

    /// Ends a window in which some processes made calls; what is learned from it is sent.
    pub(crate) fn work(
        &mut self,
        now: Now,
        next: &mut dyn FnMut() -> Marker,
        random: &mut fastrand::Rng,
    ) -> Result<(), String> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let mut syscalls = Vec::new();
        for tgid in 1..=random.u32(1..4) {
            let mut window = SyscallWindow::empty(tgid, 0);
            (window.first_ns, window.last_ns) = (now.boot_ns - WINDOW_NS, now.boot_ns);
            window.calls[random.usize(..100)] = random.u32(20..500);
            syscalls.push(window);
        }
        self.windows.0 += syscalls.len() as u64;
        running.opened_ns = now.boot_ns;
        let mut out = Vec::new();
        running.pipeline.step(now, Input::Close { closed_ns: now.boot_ns, syscalls }, &mut out);
        let mut told = Vec::new();
        for output in out {
            match output {
                Output::Train(mut windows) => {
                    self.windows.1 += windows.windows.len() as u64;
                    let marker = next();
                    if let Some(first) = windows.windows.first_mut() {
                        first.run = marker;
                    }
                    told.push((marker, Uplink::Windows(windows)));
                }
                Output::Alert(alert) => {
                    let marker = next();
                    told.push((marker, Uplink::Alert(Alert { comm: marker.to_string(), ..*alert })));
                }
                Output::Alarmed(mut alarmed) => {
                    alarmed.window.run = next();
                    told.push((alarmed.window.run, Uplink::Alarmed(*alarmed)));
                }
                Output::Follow(_) | Output::Unfollow(_) => {}
            }
        }
        let counters = *running.pipeline.counters();
        for (marker, body) in told {
            self.push(now.boot_ns, marker, body)?;
        }
        // Every window of a process that is followed is learned, or counted as not.
        let counted = counters.windows_alarmed + counters.windows_degraded + counters.windows_surplus;
        let (given, learned) = self.windows;
        if given != learned + counted {
            return Err(format!("{given} windows went in, {learned} came out, {counted} were counted"));
        }
        Ok(())
    }

    /// Tries again what could not be written.
    pub(crate) fn write(&mut self, now_ns: u64) {
        if let Some(running) = &mut self.running {
            running.outgoing.write(now_ns, &mut |_| {});
        }
    }

    pub(crate) fn connected(&mut self) {
        if let Some(running) = &mut self.running {
            running.lanes.restart();
        }
    }

    /// Hands messages to the link.
    pub(crate) fn pump(
        &mut self,
        now_ns: u64,
        send: &mut dyn FnMut(Leaf, Vec<u8>) -> bool,
    ) -> Result<(), String> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let outboxes = [running.outgoing.disk(), running.outgoing.memory()];
        running.lanes.pump(outboxes, now_ns, send).map_err(|error| format!("pumping: {error}"))?;
        self.check()
    }

    /// For how long nothing was acknowledged.
    pub(crate) fn still_ns(&self, now_ns: u64) -> u64 {
        self.running.as_ref().map_or(0, |running| running.lanes.still_ns(now_ns))
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.running.as_ref().map_or(0, |running| running.outgoing.waiting())
    }

    /// Takes a message of the fleet. `is_stored` says what is in the fleet's store.
    pub(crate) fn hear(
        &mut self,
        now: Now,
        bytes: &[u8],
        next: &mut dyn FnMut() -> Marker,
        is_stored: &dyn Fn(Marker) -> bool,
    ) -> Result<(), String> {
        let Some(running) = &mut self.running else { return Ok(()) };
        match decode::<Downlink>(bytes).map_err(|error| error.to_string())? {
            Downlink::Ack { epoch, seq } => {
                let outboxes = [running.outgoing.disk(), running.outgoing.memory()];
                for outbox in outboxes.iter().filter(|outbox| outbox.epoch() == epoch) {
                    let early = waiting(*outbox, seq).into_iter().find(|(_, marker)| !is_stored(*marker));
                    if let Some((at, marker)) = early {
                        return Err(format!(
                            "{}: {seq} of {epoch:x} is acknowledged, and {marker} ({at}) is not stored",
                            self.name
                        ));
                    }
                }
                // A disk that takes nothing forgets later.
                let _ = running.lanes.acknowledged(outboxes, (epoch, seq), now.boot_ns);
            }
            Downlink::Order(signed) => {
                let opened = orders::open(&self.name, &signed, &self.keys, running.done.done());
                match opened {
                    Ok(order) => {
                        running.done.add(order.id).map_err(|error| error.to_string())?;
                        *self.carried_out.entry(order.id).or_default() += 1;
                        let marker = next();
                        let text = marker.to_string();
                        let answer = Answer { id: order.id, unix_ms: now.unix_ms, done: true, text };
                        self.push(now.boot_ns, marker, Uplink::Answer(answer))?;
                    }
                    Err(orders::OrderError::Repeated(_)) => {}
                    Err(error) => return Err(format!("{}: an order: {error}", self.name)),
                }
            }
            Downlink::Offer(_)
            | Downlink::Chunk { .. }
            | Downlink::Release { .. }
            | Downlink::TakeBack { .. }
            | Downlink::Kept { .. } => {}
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let Some(running) = &self.running else { return Ok(()) };
        let unwritten = running.outgoing.unwritten().count();
        if unwritten > UNWRITTEN_MAX {
            return Err(format!("{unwritten} messages wait in memory"));
        }
        if running.lanes.on_way() > WINDOW {
            return Err(format!("{} messages are on their way", running.lanes.on_way()));
        }
        Ok(())
    }

    /// Bytes of the outbox on disk, against its bound: a quarter more than the messages may take, a segment of an eighth, and the
    /// largest message.
    pub(crate) fn check_disk(&self) -> Result<(), String> {
        let folder = std::fs::read_dir(self.dir.join("outbox")).map_err(|error| error.to_string())?;
        let segments =
            folder.flatten().filter(|entry| entry.path().extension().is_some_and(|ext| ext == "seg"));
        let bytes: u64 = segments.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum();
        let most = OUTBOX_MAX + OUTBOX_MAX / 4 + OUTBOX_MAX / 8 + 4096;
        if bytes > most {
            return Err(format!("{}: the outbox takes {bytes} bytes on disk, over {most}", self.name));
        }
        Ok(())
    }
}

/// What waits in an outbox, up to a number.
fn waiting(outbox: &dyn Outbox, up_to: u64) -> Vec<(u64, Marker)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(Some((seq, bytes))) = outbox.after(at) {
        if seq > up_to {
            break;
        }
        at = seq;
        let frame: UplinkFrame = decode(&bytes).expect("an outbox holds whole frames");
        found.extend(marker(&frame.body).map(|marker| (seq, marker)));
    }
    found
}
