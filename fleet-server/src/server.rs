//! Everything together: opens the state folder, listens, and stops cleanly.

use std::fs::{File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rumqttc::{AsyncClient, EventLoop};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::broker::{self, Reach};
use crate::clock;
use crate::config::{Config, External, host_and_port};
use crate::counters::Counters;
use crate::deliver;
use crate::files;
use crate::follow;
use crate::hub::Hub;
use crate::mqtt;
use crate::names::DeviceId;
use crate::notify;
use crate::oidc::Provider;
use crate::pki::{Pki, PkiError};
use crate::retention;
use crate::rollouts;
use crate::signer::{Signer, SignerError};
use crate::silence;
use crate::store::{self, Channels, Database, Rules, Store, StoreError, Threads};
use crate::trainer::{self, Fit, Target, Trainer};
use crate::updates;
use crate::web::{self, Rates};

/// How often counters are saved when nothing else is.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// People who sign in at once; one more is asked to try again.
const SIGN_INS_MAX: usize = 8;

/// Threads that serve people.
const WEB_THREADS: usize = 2;

/// How long open requests may take at the end.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// What every part of the server can see.
pub struct Shared {
    /// What the operator chose.
    pub config: Config,
    /// Keys and certificates.
    pub pki: Pki,
    /// The key that signs baselines and orders.
    pub signer: Arc<Signer>,
    /// The database.
    pub store: Store,
    /// Who is connected.
    pub hub: Hub,
    /// What happened how often.
    pub counters: Arc<Counters>,
    /// Asks for trainings.
    pub trainer: Trainer,
    /// What is done with new alerts.
    standing: RwLock<Standing>,
    /// How many requests each client made.
    pub rates: Rates,
    /// Where people sign in, if anywhere but with a token.
    pub(crate) oidc: Option<Arc<Provider>>,
    /// How many may do that at once: each waits for the provider on a thread.
    pub(crate) sign_ins: Semaphore,
    /// Something was stored that others share.
    pub(crate) stored: Notify,
    /// Orders were made.
    pub(crate) ordered: Notify,
    /// Where we listen.
    pub addresses: Addresses,
    /// Says true when the server stops.
    pub stop: watch::Receiver<bool>,
}

/// What people decided about alerts to come.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Which are hidden.
    pub rules: Arc<Rules>,
    /// Who is told.
    pub channels: Arc<Channels>,
}

impl Standing {
    async fn load(store: &Store) -> Result<Self, StoreError> {
        let rules = Arc::new(store.read(store::load_rules).await?);
        Ok(Self { rules, channels: Arc::new(store.read(store::load_channels).await?) })
    }
}

impl Shared {
    /// What is done with new alerts.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads rules and channels again, after a change.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn reload_standing(&self) -> Result<(), StoreError> {
        let standing = Standing::load(&self.store).await?;
        *self.standing.write().unwrap_or_else(PoisonError::into_inner) = standing;
        Ok(())
    }
}

/// Where a server listens, as in `<state>/addresses.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Host and port told to devices: of our own endpoint, or of a broker of others.
    pub mqtt: String,
    /// Address and port people connect to.
    pub web: SocketAddr,
    /// What `https://` address is told to devices.
    pub web_url: String,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Making the state folder or a file in it.
    #[error("preparing {path}")]
    State {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Another server uses the folder.
    #[error("{0} is used by another server")]
    InUse(PathBuf),
    /// Listening.
    #[error("listening on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Keys and certificates.
    #[error("keys and certificates")]
    Pki(#[from] PkiError),
    /// The key that signs baselines and orders.
    #[error("the signing key")]
    Signer(#[from] SignerError),
    /// The database.
    #[error("the store")]
    Store(#[from] StoreError),
    /// A thread.
    #[error("starting threads")]
    Threads(#[source] io::Error),
}

/// A server that listens.
pub struct Running {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    store: Threads,
    trainer: JoinHandle<()>,
    web: Runtime,
    lock: File,
}

/// Starts a server on a state folder.
///
/// # Errors
/// When the folder, a key, the database or an address cannot be used.
pub async fn start(dir: &Path, config: Config, fit: Box<dyn Fit>) -> Result<Running, ServerError> {
    let failed = |source| ServerError::State { path: dir.into(), source };
    files::make_state_dir(dir).map_err(failed)?;
    let lock = lock(dir)?;
    let pki = Pki::open(dir, &config.certificate_names(), clock::unix_s())?;
    let signer = Arc::new(Signer::open(dir, config.signing_key.as_deref())?);
    let counters = Arc::<Counters>::default();
    let (store, threads) = open_store(dir, &config, &counters)?;
    let web_listener = listen(config.web).await?;
    let web = web_listener.local_addr().map_err(failed)?;
    let web_listener = web_listener.into_std().map_err(failed)?;
    let web_url = format!("https://{}", config.host_for(web));
    let web_tls = TlsAcceptor::from(Arc::new(pki.web_tls()?));
    let (trainer, work) = Trainer::new(config.learn_windows, Arc::clone(&signer), Arc::clone(&counters));
    let (devices, mqtt) = Devices::open(&config, &pki).await?;
    let addresses = Addresses { mqtt, web, web_url };
    let hub = Hub::new(Arc::clone(&counters), devices.reach(&config, &counters));
    let (stop, stopped) = watch::channel(false);
    let rates = Rates::new(config.requests_per_minute);
    let oidc = config.oidc.clone().map(|oidc| Arc::new(Provider::new(oidc, &addresses.web_url)));
    let stop_told = stopped.clone();
    let standing = RwLock::new(Standing::load(&store).await?);
    let shared = Shared {
        config,
        pki,
        signer,
        store,
        hub,
        counters,
        trainer,
        standing,
        rates,
        oidc,
        sign_ins: Semaphore::new(SIGN_INS_MAX),
        stored: Notify::new(),
        ordered: Notify::new(),
        addresses,
        stop: stop_told,
    };
    let shared = Arc::new(shared);
    let runtime = tokio::runtime::Handle::current();
    let trainer =
        trainer::spawn(work, Arc::downgrade(&shared), runtime, dir, fit).map_err(ServerError::Threads)?;
    train_what_waited(&shared).await?;
    let mut tasks = JoinSet::new();
    let web = web_runtime().map_err(ServerError::Threads)?;
    match devices {
        Devices::Own(listener, tls) => {
            tasks.spawn(mqtt::serve(Arc::clone(&shared), listener, tls, stopped.clone()))
        }
        Devices::Broker(external, client, events) => {
            tasks.spawn(broker::run(Arc::clone(&shared), external, client, *events, stopped.clone()))
        }
    };
    let (people, stop_web) = (Arc::clone(&shared), stopped.clone());
    let serve = async move {
        // Made here, so that it belongs to the threads that serve it.
        match TcpListener::from_std(web_listener) {
            Ok(listener) => web::serve(people, listener, web_tls, stop_web).await,
            Err(error) => log::error!("listening for people: {error}"),
        }
    };
    tasks.spawn_on(serve, web.handle());
    if shared.store.is_shared() {
        tasks.spawn(follow::run(Arc::clone(&shared), stopped.clone()));
    }
    tasks.spawn(deliver::run(Arc::clone(&shared), stopped.clone()));
    tasks.spawn(retention::run(Arc::clone(&shared), stopped.clone()));
    tasks.spawn(silence::watch(Arc::clone(&shared), stopped.clone()));
    tasks.spawn(notify::run(Arc::clone(&shared), stopped.clone()));
    tasks.spawn(rollouts::run(Arc::clone(&shared), stopped.clone()));
    tasks.spawn(updates::run(Arc::clone(&shared), stopped.clone()));
    tasks.spawn(save_counters(shared.store.clone(), stopped));
    let path = dir.join("addresses.json");
    let json = serde_json::to_vec(&shared.addresses).expect("addresses have a JSON form");
    files::write_private(&path, &json).map_err(|source| ServerError::State { path, source })?;
    log::info!(
        "devices: mqtts://{}, people: {}, state: {}",
        shared.addresses.mqtt,
        shared.addresses.web_url,
        dir.display()
    );
    Ok(Running { shared, stop, tasks, store: threads, trainer, web, lock })
}

/// On a thread of its own, as the client of PostgreSQL wants it.
fn open_store(dir: &Path, config: &Config, counters: &Arc<Counters>) -> Result<(Store, Threads), StoreError> {
    let database = Database::choose(dir, config.postgres.as_deref())?;
    let open = || Store::open(&database, Arc::clone(counters));
    std::thread::scope(|scope| match scope.spawn(open).join() {
        Ok(opened) => opened,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// How devices reach us.
enum Devices {
    /// They connect to us.
    Own(TcpListener, TlsAcceptor),
    /// They connect to a broker of others, and so do we.
    Broker(External, AsyncClient, Box<EventLoop>),
}

impl Devices {
    /// Also the host and port that devices are told.
    async fn open(config: &Config, pki: &Pki) -> Result<(Self, String), ServerError> {
        if let Some(external) = &config.external {
            let (client, events) = broker::client(external, pki, clock::unix_s())?;
            let told = host_and_port(&external.host, external.port);
            return Ok((Self::Broker(external.clone(), client, Box::new(events)), told));
        }
        let listener = listen(config.mqtt).await?;
        let bound = listener.local_addr();
        let bound = bound.map_err(|source| ServerError::Listen { address: config.mqtt, source })?;
        Ok((Self::Own(listener, TlsAcceptor::from(Arc::new(pki.device_tls()?))), config.host_for(bound)))
    }

    fn reach(&self, config: &Config, counters: &Arc<Counters>) -> Option<Reach> {
        let Self::Broker(_, client, _) = self else { return None };
        let silent_ms = u64::from(config.silent_after_s) * 1000;
        Some(Reach::new(client.clone(), silent_ms, Arc::clone(counters)))
    }
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.shared.addresses
    }

    /// What its parts see.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Stops listening, lets open requests end, and writes everything down. A training that runs is left behind.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let ended =
            tokio::time::timeout(STOP_TIMEOUT, async { while self.tasks.join_next().await.is_some() {} });
        if ended.await.is_err() {
            self.tasks.abort_all();
            while self.tasks.join_next().await.is_some() {}
        }
        self.web.shutdown_background();
        drop(self.shared);
        let (store, trainer, lock) = (self.store, self.trainer, self.lock);
        let written = tokio::task::spawn_blocking(move || {
            if trainer.is_finished() {
                store.join();
            } else {
                // Connections' tasks may hold the store a moment longer.
                std::thread::sleep(Duration::from_millis(50));
                if trainer.is_finished() {
                    store.join();
                }
            }
            drop(lock);
        });
        if written.await.is_err() {
            log::error!("writing everything down at the end failed");
        }
    }
}

/// Where the server of a state folder listens or listened last.
///
/// # Errors
/// When no server was started on it yet.
pub fn addresses_of(dir: &Path) -> io::Result<Addresses> {
    let json = std::fs::read(dir.join("addresses.json"))?;
    serde_json::from_slice(&json).map_err(io::Error::other)
}

/// Takes the folder for one server, or for what must not run beside one.
///
/// # Errors
/// When another has it.
pub fn lock(dir: &Path) -> Result<File, ServerError> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(|source| ServerError::State { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ServerError::InUse(dir.into())),
        Err(TryLockError::Error(source)) => Err(ServerError::State { path, source }),
    }
}

/// Threads of their own for people and programs that use the API: a commit wakes thousands of devices' tasks at once, and none of
/// them is to be waited for by somebody who looks.
fn web_runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WEB_THREADS)
        .thread_name("web")
        .enable_all()
        .build()
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
}

/// Asks for the trainings for which there are windows; where several servers share the database, on the one that leads.
pub(crate) async fn train_what_waited(shared: &Arc<Shared>) -> Result<(), StoreError> {
    if !shared.store.leads() {
        return Ok(());
    }
    let needed = shared.config.learn_windows;
    for (device, key, total) in shared.store.read(move |c| store::training_candidates(c, needed)).await? {
        if let Ok(device) = DeviceId::parse(&device) {
            shared.trainer.consider(&Target::Device(device), &key, total, 0);
        }
    }
    Ok(())
}

async fn save_counters(store: Store, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SAVE_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        // Every commit saves the counters that changed; this one has nothing else to do.
        if let Err(error) = store.write(|_| Ok(())).await {
            log::error!("saving counters: {error}");
        }
    }
}
