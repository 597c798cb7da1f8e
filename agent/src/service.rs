//! `behaveguard run`: probe, pipeline, outbox, uplink and control socket tied together on one thread.

mod bundles;
mod containment;
mod listing;
mod orders;
mod outgoing;
mod quarantine;
mod recording;
mod run;
mod state;
mod updating;

use std::collections::{BTreeSet, VecDeque};
use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use models::chain::chain;
use models::wire::Request;
use smol::future::FutureExt as _;
use smol::{Async, Timer};

use crate::baselines::{BaselineError, Baselines};
use crate::captures::Captures;
use crate::clock;
use crate::config::{Action, Config, OutboxEngine, Source};
use crate::confine::{self, Confinement};
use crate::contain::Containment;
use crate::control::{self, ControlError, Reloaded, Sources, Status};
use crate::done::DoneOrders;
use crate::enroll::{self, EnrollError, Identity};
use crate::files;
use crate::local::Local;
use crate::memory::MemoryFile;
#[cfg(feature = "sled")]
use crate::outbox::SledOutbox;
use crate::outbox::{LogOutbox, MemoryOutbox, Outbox, OutboxError};
use crate::outgoing::Outgoing;
use crate::probe::{Probe, ProbeError, cgroup_root};
use crate::quarantine::Quarantine;
use crate::run_mark::{self, RunMark};
use crate::shedding::Shedding;
use crate::sinks::Sinks;
use crate::trials::Trials;
use crate::updates::Updates;
use crate::uplink::{self, News, Uplink};
use crate::vitals;
use crate::watch::Watch;
use crate::whitelist::Whitelist;
use orders::Orders;
use recording::Recording;

/// How often what a restart would forget is written down, beside the end.
const REMEMBER_EVERY_NS: u64 = 600_000_000_000;
/// How often is looked although nothing woke: an idle machine is to sleep.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long ordinary records may wait in their ring: those that came meanwhile are taken with the one that woke.
const GATHER_BULK: Duration = Duration::from_millis(200);

/// Urgent records that come together are taken together.
const GATHER: Duration = Duration::from_millis(10);

/// Bytes of messages that a failing disk does not take; one more drops the lowest severity first.
const MEMORY_OUTBOX_MAX: usize = 1 << 20;

/// Why the agent did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The kernel part.
    #[error("starting the kernel part")]
    Probe(#[from] ProbeError),
    /// The state folder.
    #[error("preparing the state folder {path}")]
    State {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Another agent.
    #[error("another agent uses the state folder {0}")]
    InUse(PathBuf),
    /// Who this device is.
    #[error("reading this device's identity")]
    Identity(#[source] EnrollError),
    /// There is nobody to tell.
    #[error(
        "this device is not enrolled and has no [[sink]], so nobody would be told of alerts: \
         run `behaveguard enroll`, or configure one"
    )]
    NobodyToTell,
    /// The outbox.
    #[error("opening the outbox")]
    Outbox(#[from] OutboxError),
    /// The baselines.
    #[error("opening the baselines")]
    Baselines(#[from] BaselineError),
    /// The control socket.
    #[error("opening the control socket")]
    Control(#[from] ControlError),
    /// Threads, signals, timers.
    #[error("starting the runtime")]
    Runtime(#[source] io::Error),
    /// The link to the fleet.
    #[error("starting the link to the fleet")]
    Uplink(#[from] uplink::StartError),
}

/// What woke the loop.
enum Wake {
    Urgent,
    Time,
    News(News),
    Reload,
    Stop,
}

/// This device in its fleet.
struct Member {
    identity: Identity,
    uplink: Uplink,
}

struct Service {
    config: Config,
    source: Source,
    reloaded: Option<Reloaded>,
    confinement: Confinement,
    device: String,
    /// `None` where it belongs to no fleet: then alerts go to sinks only, and the newest are kept in the outbox.
    member: Option<Member>,
    sinks: Sinks,
    watch: Watch,
    baselines: Baselines,
    outgoing: Outgoing,
    status: Arc<Mutex<Status>>,
    mark: RunMark,
    shedding: Shedding,
    containment: Containment,
    quarantine: Quarantine,
    captures: Captures,
    updates: Updates,
    /// Somebody starts this process again when it ends.
    is_supervised: bool,
    /// Another program file is to be started in place of this one.
    ends_for_update: bool,
    /// Since the start.
    windows_ended: u64,
    recording: Option<Recording>,
    /// What may be done to programs: the agent gave up the rest at its start.
    prepared: BTreeSet<Action>,
    /// Wall clock minus the clock of intervals, milliseconds.
    clock_offset: i64,
    refused: VecDeque<[u8; 32]>,
    trials: Trials,
    online: bool,
    started_ns: u64,
    heartbeat_ns: u64,
    orders: Orders,
    memory: MemoryFile,
    /// When it was written.
    remembered_ns: u64,
    counters: OwnCounters,
}

#[derive(Default)]
struct OwnCounters {
    memory_failed: u64,
    bundles_activated: u64,
    bundles_refused: u64,
    bundles_rolled_back: u64,
    reloads_refused: u64,
    windows_not_sampled: u64,
    orders_done: u64,
    orders_refused: u64,
    orders_rejected: u64,
    contained: u64,
    not_contained: u64,
    released: u64,
    captures_sent: u64,
    captures_dropped: u64,
}

/// Runs the agent until SIGINT or SIGTERM; SIGHUP reads the source of its configuration again.
///
/// # Errors
/// When it cannot start.
pub fn run(config: Config, source: Source) -> Result<(), ServiceError> {
    confine::hide_memory();
    let is_supervised = vitals::is_supervised();
    // Before anything that takes time: without it the signal would end the agent.
    let reload = signalled(&[signal_hook::consts::SIGHUP]).map_err(ServiceError::Runtime)?;
    let failed = |source| ServiceError::State { path: config.state.clone(), source };
    files::make_private_dir(&config.state).map_err(failed)?;
    let lock = lock(&config.state)?;
    let identity = match Identity::load(&config.state) {
        Ok(identity) => Some(identity),
        Err(EnrollError::NotEnrolled(_)) if !config.sinks.is_empty() => None,
        Err(EnrollError::NotEnrolled(_)) => return Err(ServiceError::NobodyToTell),
        Err(error) => return Err(ServiceError::Identity(error)),
    };
    let damaged = || ServiceError::Identity(EnrollError::Damaged(config.state.join("identity.json")));
    let keys = identity.as_ref().map(|identity| identity.keyring().ok_or_else(damaged)).transpose()?;
    let keys = keys.unwrap_or_default();
    let probe = Probe::load(&config.probe(std::process::id()))?;
    let outbox: Arc<dyn Outbox> = match config.outbox_engine {
        OutboxEngine::Log => Arc::new(LogOutbox::open(&config.state, config.outbox_max)?),
        #[cfg(feature = "sled")]
        OutboxEngine::Sled => Arc::new(SledOutbox::open(&config.state, config.outbox_max)?),
    };
    let mut watch = Watch::new(&config, probe);
    let (memory, remembered) = MemoryFile::open(&config.state);
    watch.remember(remembered);
    watch.set_shelf(Baselines::shelf(&config.state, keys.clone()));
    let orders =
        Orders { keys: keys.clone(), done: DoneOrders::open(&config.state), log_level_until_ns: None };
    let baselines = Baselines::open(&config.state, keys, &mut |verified| watch.activate(&verified))?;
    own_baselines(&config, &baselines, &mut watch);
    for layer in watch.probe().layers() {
        if layer.backend.is_empty() {
            log::warn!("layer {}: not seen on this kernel", layer.layer);
        } else {
            log::info!("layer {}: {}", layer.layer, layer.backend);
        }
        for (backend, reason) in &layer.failed {
            log::info!("layer {}: not {backend}: {reason}", layer.layer);
        }
    }
    if let Some(Err(reason)) = watch.probe().denies_egress() {
        log::error!("neither [[contain]] nor a quarantine can deny egress here: {reason}");
    }
    let status = Arc::new(Mutex::new(Status::default()));
    let explanations = watch.pipeline().explanations();
    let whitelist = Arc::new(Mutex::new(Whitelist::open(&config.state)));
    watch.set_whitelist(Arc::clone(&whitelist));
    let (news_out, news) = async_channel::bounded(64);
    let memory_outbox: Arc<dyn Outbox> = Arc::new(MemoryOutbox::new(MEMORY_OUTBOX_MAX));
    let lanes = [outbox, memory_outbox];
    let sources = Sources {
        status: Arc::clone(&status),
        outboxes: lanes.clone(),
        explanations,
        whitelist,
        news: news_out.clone(),
    };
    let (mark, last_run) = RunMark::begin(&config.state, &config);
    let prepared: BTreeSet<Action> = config.contain.iter().map(|rule| rule.action).collect();
    let programs = config.sinks.iter().any(|sink| sink.kind.starts_programs());
    let signals = prepared.iter().any(|action| *action != Action::DenyEgress);
    let confinement = confine::process(&config.state, programs, signals);
    for problem in &confinement.problems {
        log::warn!("confinement: {problem}");
    }
    control::serve(&config.state, sources)?;
    let device = identity
        .as_ref()
        .map_or_else(|| enroll::device_name(&vitals::host_name()), |identity| identity.device.clone());
    // Without a link nothing comes; the sender is kept so that waiting for news does not end.
    let _no_news = news_out.clone();
    let join = |identity: Identity| {
        let locates = config.quarantine.allowed;
        let uplink = Uplink::start(&config.state, identity.clone(), lanes.clone(), news_out, locates)?;
        Ok::<_, ServiceError>(Member { identity, uplink })
    };
    let member = identity.map(join).transpose()?;
    let outgoing = Outgoing::new(lanes, member.is_some());
    let mut sinks = Sinks::default();
    sinks.apply(&config.sinks).map_err(ServiceError::Runtime)?;
    log::info!("{device} watches {} in windows of {:?}", patterns(&config), config.window);
    let mut service = Service {
        source,
        reloaded: None,
        confinement,
        device,
        member,
        sinks,
        outgoing,
        mark,
        shedding: Shedding::new(vitals::cpu_ms(), clock::boot_ns()),
        containment: Containment::open(&config.state, cgroup_root()),
        quarantine: Quarantine::open(&config.state, clock::now()),
        captures: Captures::of(&config.state),
        updates: Updates::of(&config.state),
        is_supervised,
        ends_for_update: false,
        windows_ended: 0,
        recording: None,
        prepared,
        clock_offset: run::clock_offset(),
        refused: VecDeque::new(),
        trials: Trials::open(&config.state),
        online: false,
        started_ns: clock::boot_ns(),
        heartbeat_ns: 0,
        orders,
        memory,
        remembered_ns: clock::boot_ns(),
        counters: OwnCounters::default(),
        config,
        watch,
        baselines,
        status,
    };
    service.began(last_run);
    service.show();
    let done = smol::future::block_on(service.turn(&news, reload)).map_err(ServiceError::Runtime);
    service.ends();
    if let Some(member) = &service.member {
        member.uplink.stop();
    }
    service.sinks.stop();
    log::info!("stopped; {} messages wait in the outbox", service.outgoing.disk().waiting());
    service.mark.end();
    drop(lock);
    done
}

/// Keeps other agents and changes of the state folder out, as long as the file is open.
///
/// # Errors
/// When another holds it.
pub fn lock(state: &Path) -> Result<File, ServiceError> {
    let failed = |source| ServiceError::State { path: state.to_owned(), source };
    let lock = File::create(state.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(ServiceError::InUse(state.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Uses those that this device made itself; without them it runs all the same.
fn own_baselines(config: &Config, fleet: &Baselines, watch: &mut Watch) {
    let now_unix_s = clock::now().unix_ms / 1000;
    let used = Local::open(&config.state).and_then(|local| {
        let Some(local) = local else { return Ok(()) };
        local.active(fleet, now_unix_s, &mut |verified| watch.activate(&verified))
    });
    if let Err(error) = used {
        log::error!("this device's own baselines are not used: {}", chain(&error));
    }
}

fn patterns(config: &Config) -> String {
    config.watch.iter().map(|pattern| pattern.0.as_str()).collect::<Vec<_>>().join(", ")
}

impl Service {
    async fn turn(&mut self, news: &async_channel::Receiver<News>, reload: UnixStream) -> io::Result<()> {
        let urgent = Async::new(self.watch.probe().urgent_fd().try_clone_to_owned()?)?;
        let bulk = Async::new(self.watch.probe().bulk_fd().try_clone_to_owned()?)?;
        let reload = Async::new(reload)?;
        let stop = Async::new(signalled(&[signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?)?;
        let window_ns = clock::nanoseconds(self.config.window);
        let mut close_ns = self.watch.probe().epoch().1 + window_ns;
        loop {
            let until = |at_ns: u64| Duration::from_nanos(at_ns.saturating_sub(clock::boot_ns()));
            let left = until(close_ns);
            let beat = until(self.heartbeat_ns + clock::nanoseconds(self.config.heartbeat));
            let wake = async {
                urgent.readable().await?;
                Timer::after(GATHER.min(left)).await;
                Ok(Wake::Urgent)
            }
            .or(async {
                bulk.readable().await?;
                Timer::after(GATHER_BULK.min(left)).await;
                Ok(Wake::Time)
            })
            .or(async {
                Timer::after(left.min(beat).min(LOOK_EVERY)).await;
                Ok(Wake::Time)
            })
            .or(async { news.recv().await.map(Wake::News).map_err(io::Error::other) })
            .or(async {
                reload.readable().await?;
                // Several that came together are one.
                let _ = reload.get_ref().read(&mut [0; 64]);
                Ok(Wake::Reload)
            })
            .or(async {
                stop.readable().await?;
                Ok::<_, io::Error>(Wake::Stop)
            })
            .await?;
            match wake {
                Wake::Urgent | Wake::Time => {
                    self.take_events();
                }
                Wake::News(news) => self.news(news),
                Wake::Reload => self.reload(),
                Wake::Stop => {
                    self.close();
                    self.remember();
                    return Ok(());
                }
            }
            if clock::boot_ns() >= close_ns {
                self.close();
                // After a long pause (sleep, a stopped machine) the next window starts now.
                close_ns = (close_ns + window_ns).max(self.watch.probe().epoch().1 + window_ns / 2);
            }
            if clock::boot_ns().saturating_sub(self.heartbeat_ns) >= clock::nanoseconds(self.config.heartbeat)
            {
                self.beat();
            }
            self.look_at_log_level();
            self.look_after_quarantine();
            if self.ends_for_update {
                self.close();
                self.remember();
                return Ok(());
            }
            if clock::boot_ns().saturating_sub(self.remembered_ns) >= REMEMBER_EVERY_NS {
                self.remember();
            }
        }
    }

    /// Reads the configuration again and uses what can be changed; a bad one changes nothing.
    fn reload(&mut self) {
        let mut reloaded = Reloaded { unix_ms: clock::now().unix_ms, ..Reloaded::default() };
        match self.source.load() {
            Err(error) => {
                self.counters.reloads_refused += 1;
                let reason = chain(&error);
                log::error!("the configuration stays as it was: {reason}");
                reloaded.refused = Some(reason);
            }
            Ok(new) => {
                let mut config = self.config.reloaded(&new);
                if let Some((kind, text)) = run_mark::change(&self.config, &new) {
                    self.event(kind, None, None, text);
                }
                let asks = config.sinks.len();
                if self.confinement.calls_refused {
                    config.sinks.retain(|sink| !sink.kind.starts_programs());
                }
                let programs = asks - config.sinks.len();
                if let Err(error) = self.sinks.apply(&config.sinks) {
                    log::error!("starting a sink: {error}");
                }
                self.watch.reconfigure(&config);
                self.config = config;
                self.mark.configured(&self.config);
                if let Err(error) = self.tell_kernel_of_quarantine() {
                    log::error!("what is reached in quarantine: {error}");
                }
                reloaded.needs_restart = self.config.differing(&new);
                let given_up = self.config.contain.iter().map(|rule| rule.action);
                let given_up: BTreeSet<_> =
                    given_up.filter(|action| !self.prepared.contains(action)).collect();
                let given_up =
                    given_up.iter().map(|action| format!("contain ({action}, which the agent gave up)"));
                reloaded.needs_restart.extend(given_up);
                if programs > 0 {
                    reloaded.needs_restart.push("sinks that start programs, which the agent gave up".into());
                }
                log::info!("the configuration was read again");
                if !reloaded.needs_restart.is_empty() {
                    log::warn!("these changes need a restart: {}", reloaded.needs_restart.join(", "));
                }
            }
        }
        self.reloaded = Some(reloaded);
        self.show();
    }

    /// Keeps what a restart would forget.
    fn remember(&mut self) {
        self.remembered_ns = clock::boot_ns();
        if let Err(error) = self.memory.write(&self.watch.memory()) {
            self.counters.memory_failed += 1;
            log::error!("what is known beside the baselines cannot be kept over a restart: {error}");
        }
    }

    fn take_events(&mut self) {
        let mut out = Vec::new();
        self.watch.take_events(u64::MAX, &mut out);
        self.keep(out);
    }

    /// Ends the kernel's epoch and judges its windows.
    fn close(&mut self) {
        let mut out = Vec::new();
        self.watch.close(&mut out);
        self.keep(out);
        self.window_ended();
        self.show();
    }

    fn news(&mut self, news: News) {
        match news {
            News::Online(online) => {
                self.online = online;
                if online {
                    self.beat();
                }
            }
            News::Offer(offer) => self.offered(offer),
            News::Bundle(offer, raw) => self.arrived(&offer, &raw),
            News::Release { containment, by, answer } => {
                let released = self.release(containment, &by);
                if let Some(answer) = answer {
                    // Who asked may have given up.
                    let _ = answer.send(released);
                }
            }
            News::TakeBack(program, generation) => self.taken_back(&program, generation),
            News::Order(signed) => self.ordered(&signed),
            News::Delivered { order, wanted } => self.delivered(order, wanted),
            News::Located(addresses) => self.located(addresses),
            News::Downloaded(result) => self.downloaded(result),
            News::Quarantine { for_s, by, answer } => {
                let done = match for_s {
                    Some(for_s) => self.quarantine_for(for_s, &by),
                    None => self.end_quarantine(&format!("ended by {by}")),
                };
                let _ = answer.send(done);
            }
        }
        self.show();
    }

    fn beat(&mut self) {
        self.heartbeat_ns = clock::boot_ns();
        if self.online {
            self.request(&Request::Heartbeat(self.heartbeat()));
        }
    }

    fn request(&self, request: &Request) {
        if let Some(member) = &self.member {
            member.uplink.request(request);
        }
    }
}

/// Readable when one of these signals came.
fn signalled(signals: &[i32]) -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, write.try_clone()?)?;
    }
    Ok(read)
}
