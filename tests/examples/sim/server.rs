//! The fleet server: what it takes, in one transaction for all that came together, and what it answers.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use fleet_server::counters::{Counter, Counters};
use fleet_server::ingest::{self, Message, Taken};
use fleet_server::names::DeviceId;
use fleet_server::store::{self, Connection, Intake, Limits, StoreError};
use models::bundle::SigningKey;
use models::orders;
use models::wire::{Downlink, Errand, Leaf, UplinkFrame, encode};

use crate::device::{Marker, marker};

/// A message that arrived.
#[derive(Clone)]
pub(crate) struct Arrived {
    pub(crate) device: usize,
    pub(crate) leaf: Leaf,
    pub(crate) bytes: Vec<u8>,
}

/// What the store knows of one outbox of one device.
#[derive(Default)]
struct Epoch {
    acked: u64,
    stored: u64,
    first: Option<u64>,
}

/// A server and its folder.
pub(crate) struct Server {
    dir: PathBuf,
    connection: Option<Connection>,
    counters: Arc<Counters>,
    intake: Option<Intake>,
    names: Vec<DeviceId>,
    pub(crate) key: SigningKey,
    /// Messages that are committed.
    pub(crate) stored: HashMap<Marker, &'static str>,
    epochs: BTreeMap<(usize, u64), Epoch>,
}

impl Server {
    pub(crate) fn new(dir: PathBuf, names: &[String], key: SigningKey) -> Self {
        let names: Vec<_> = names.iter().map(|name| DeviceId::parse(name).expect("a name")).collect();
        let mut server = Self {
            dir,
            connection: None,
            counters: Arc::default(),
            intake: None,
            names,
            key,
            stored: HashMap::new(),
            epochs: BTreeMap::new(),
        };
        server.start();
        let direct = rusqlite::Connection::open(server.dir.join("fleet.db")).expect("the database is there");
        for name in &server.names {
            let insert = "INSERT INTO devices(id, certificate, key, enrolled_ms) VALUES (?, x'00', x'00', 1)";
            direct.execute(insert, [name.as_str()]).expect("a device");
        }
        server
    }

    pub(crate) fn start(&mut self) {
        let connection = store::open_alone(&self.dir).expect("the database opens");
        let rules = Arc::new(store::load_rules(&connection).expect("rules"));
        let channels = Arc::new(store::load_channels(&connection).expect("channels"));
        let limits =
            Limits { windows: 1000, programs: 64, alerts: 1_000_000, events: 1_000_000, captures: 64 };
        self.intake = Some(Intake { limits, rules, channels });
        self.connection = Some(connection);
    }

    pub(crate) fn kill(&mut self) {
        self.connection = None;
    }

    pub(crate) fn is_up(&self) -> bool {
        self.connection.is_some()
    }

    /// Stores what came; the acknowledgements, by device. With `commits` false the server is killed before the commit, or the
    /// disk is full: nothing of it is kept.
    pub(crate) fn take(
        &mut self,
        batch: &[Arrived],
        now_ms: u64,
        commits: bool,
    ) -> Result<Vec<(usize, Vec<u8>)>, String> {
        let (Some(c), Some(intake)) = (&self.connection, &self.intake) else { return Ok(Vec::new()) };
        let before = copy(&self.counters);
        let counters = Arc::clone(&self.counters);
        let read: Vec<_> =
            batch.iter().map(|one| (one.device, Message::read(one.leaf, one.bytes.clone()))).collect();
        let done = c.transaction(|c| {
            let mut all = Vec::with_capacity(read.len());
            for (device, message) in &read {
                all.push(ingest::take(c, &counters, &self.names[*device], message, now_ms, intake)?);
            }
            store::index_new(c)?;
            if commits { Ok(all) } else { Err(StoreError::NotCommitted) }
        });
        let all = match done {
            Ok(all) => all,
            Err(StoreError::NotCommitted) => {
                self.counters = Arc::new(before);
                return Ok(Vec::new());
            }
            Err(error) => return Err(format!("the store: {error}")),
        };
        let mut acks = BTreeMap::new();
        for ((device, message), taken) in read.iter().zip(all) {
            self.note(*device, message, &taken)?;
            if let Some((epoch, seq)) = taken.ack {
                acks.insert((*device, epoch), seq);
            }
        }
        let ack =
            |((device, epoch), seq)| (device, encode(&Downlink::Ack { epoch, seq }).expect("it is short"));
        Ok(acks.into_iter().map(ack).collect())
    }

    fn note(&mut self, device: usize, message: &Message, taken: &Taken) -> Result<(), String> {
        if let Message::Rejected(rejected) = message {
            return Err(format!("device {device}: rejected: {}", rejected.reason));
        }
        if let Some((epoch, seq)) = taken.ack {
            let known = self.epochs.entry((device, epoch)).or_default();
            // One that was forgotten begins anew; there are few of those, and they are counted.
            if seq < known.acked && self.counters.get(Counter::EpochsForgotten) == 0 {
                return Err(format!("device {device}: {epoch:x} went back from {} to {seq}", known.acked));
            }
            known.acked = known.acked.max(seq);
        }
        let (Message::Frame(frame), Some(outcome)) = (message, &taken.frame) else { return Ok(()) };
        if outcome.fresh {
            let kind = kind(frame);
            let known = self.epochs.entry((device, frame.epoch)).or_default();
            known.stored += 1;
            known.first = Some(known.first.map_or(frame.seq, |first| first.min(frame.seq)));
            if let Some(marker) = marker(&frame.body)
                && self.stored.insert(marker, kind).is_some()
            {
                return Err(format!("device {device}: {kind} {marker} is stored twice"));
            }
        }
        Ok(())
    }

    /// What a device is told when it connects: acknowledgements and orders.
    pub(crate) fn waiting(&self, device: usize, now_ms: u64) -> Result<Vec<Vec<u8>>, String> {
        let Some(c) = &self.connection else { return Ok(Vec::new()) };
        let name = &self.names[device];
        let failed = |error: StoreError| error.to_string();
        let acks = store::acks(c, name).map_err(failed)?.into_iter();
        let acks = acks.map(|(epoch, seq)| Downlink::Ack { epoch, seq });
        let orders = store::orders_waiting(c, name, now_ms).map_err(failed)?;
        let sign = |order| orders::sign(name.as_str(), &order, &self.key).expect("it is within the limits");
        let orders = orders.into_iter().map(sign).map(Downlink::Order);
        Ok(acks.chain(orders).map(|message| encode(&message).expect("it is short")).collect())
    }

    /// Asks a device how it is; `false` when too many orders wait.
    pub(crate) fn order(&self, device: usize, now_ms: u64) -> Result<bool, String> {
        let Some(c) = &self.connection else { return Ok(false) };
        let put =
            c.transaction(|c| store::put_order(c, &self.names[device], &Errand::Doctor, "sim", now_ms, None));
        Ok(put.map_err(|error| error.to_string())?.is_some())
    }

    /// Orders that no device answered.
    pub(crate) fn unanswered(&self) -> Result<u64, String> {
        let Some(c) = &self.connection else { return Ok(0) };
        let of = |name| store::orders_waiting(c, name, 0).map(|orders| orders.len() as u64);
        let all: Result<Vec<_>, _> = self.names.iter().map(of).collect();
        all.map(|all| all.iter().sum()).map_err(|error| error.to_string())
    }

    /// What the tables hold, against what was committed and against their bounds.
    pub(crate) fn check(&self) -> Result<(), String> {
        let path = self.dir.join("fleet.db");
        let direct = rusqlite::Connection::open(path).map_err(|error| error.to_string())?;
        let count = |sql: &str| -> Result<u64, String> {
            direct
                .query_row(sql, [], |row| row.get::<_, i64>(0))
                .map(i64::unsigned_abs)
                .map_err(|error| format!("{sql}: {error}"))
        };
        for (table, kind) in [("alerts", "alert"), ("events", "event")] {
            let rows = count(&format!("SELECT count(*) FROM {table}"))?;
            let wanted = self.stored.values().filter(|stored| **stored == kind).count() as u64;
            if rows != wanted {
                return Err(format!("{rows} rows of {table}, and {wanted} were committed"));
            }
        }
        for (what, sql, most) in [
            (
                "numbers beyond a gap",
                "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM ahead GROUP BY device, epoch)",
                4096,
            ),
            (
                "outboxes of a device",
                "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM acks GROUP BY device)",
                16,
            ),
            (
                "windows of a program",
                "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM windows GROUP BY device, key)",
                1000,
            ),
            (
                "orders that wait",
                "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM orders WHERE answered_ms IS NULL GROUP BY device)",
                64,
            ),
        ] {
            let n = count(sql)?;
            if n > most {
                return Err(format!("{n} {what}, over {most}"));
            }
        }
        Ok(())
    }

    /// Every gap in the numbers of an outbox is counted, but for those before the first that came. `comes_late`: what the device has
    /// no longer may lie with a broker, and comes after it was counted.
    pub(crate) fn check_gaps(&self, comes_late: bool) -> Result<(), String> {
        if self.counters.get(Counter::EpochsForgotten) > 0 {
            return Ok(());
        }
        let gaps = self.epochs.values().map(|epoch| {
            let before = epoch.first.map_or(epoch.acked, |first| first - 1);
            epoch.acked.saturating_sub(epoch.stored).saturating_sub(before)
        });
        let (gaps, counted) = (gaps.sum::<u64>(), self.counters.get(Counter::FramesMissing));
        if gaps == counted || (comes_late && gaps < counted) {
            Ok(())
        } else {
            Err(format!("{gaps} numbers are missing, and {counted} are counted"))
        }
    }
}

fn kind(frame: &UplinkFrame) -> &'static str {
    use models::wire::Uplink;
    match frame.body {
        Uplink::Alert(_) => "alert",
        Uplink::Event(_) => "event",
        Uplink::Windows(_) => "windows",
        Uplink::Answer(_) => "answer",
        Uplink::Alarmed(_) => "alarmed",
    }
}

/// Counters of a server that is killed before its commit are those of the last commit.
fn copy(counters: &Counters) -> Counters {
    let copy = Counters::default();
    Counter::ALL.iter().for_each(|counter| copy.add(*counter, counters.get(*counter)));
    copy
}
