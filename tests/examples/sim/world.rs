//! One world: some gateways and a server on one clock, what goes wrong among them, and what must hold all the same.

use std::path::Path;

use agent::clock::Now;
use models::bundle::{Keyring, SigningKey};
use models::wire::Leaf;
use tempfile::TempDir;

use crate::device::{Device, Marker};
use crate::event::Event;
use crate::link::Link;
use crate::queue::Queue;
use crate::server::{Arrived, Server};
use crate::tally::Tally;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The first moment, milliseconds since 1970.
const BEGIN: u64 = 1_800_000_000_000;
const DEVICES: usize = 4;
const DAYS: u64 = 10;
/// After the last fault everything must be with the fleet within this time.
const SETTLE: u64 = 3 * DAY;
/// The agent connects anew when nothing was acknowledged for so long.
const STALL_NS: u64 = 30_000_000_000;
/// A world in which more happens goes round in a circle.
const EVENTS_MAX: u64 = 3_000_000;
/// Messages that a link takes at once.
const LINK_MAX: usize = 128;

/// Gateways, links, a broker or none, and a server.
pub(crate) struct World {
    seed: u64,
    verbose: bool,
    random: fastrand::Rng,
    now_ms: u64,
    queue: Queue<Event>,
    devices: Vec<Device>,
    links: Vec<Link>,
    server: Server,
    /// A broker of others stands between, and keeps what it was given.
    has_broker: bool,
    inbox: Vec<Arrived>,
    stores: bool,
    server_clock_off_ms: i64,
    markers: Marker,
    /// Nothing breaks any more, and nothing new is said.
    settles: bool,
    tally: Tally,
    _dir: TempDir,
}

impl World {
    pub(crate) fn new(seed: u64, verbose: bool) -> Self {
        // Where there is memory for files they need no disk.
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() };
        let dir = dir.expect("a temporary folder");
        let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).expect("a key");
        let keys = Keyring([key.public()].into_iter().collect());
        let names: Vec<String> = (0..DEVICES).map(|n| format!("gw-{n}")).collect();
        let folder = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).expect("a folder");
            path
        };
        let devices =
            names.iter().map(|name| Device::new(name.clone(), folder(name), keys.clone())).collect();
        let server = Server::new(folder("fleet"), &names, key);
        let mut random = fastrand::Rng::with_seed(seed);
        let has_broker = random.bool();
        Self {
            seed,
            verbose,
            random,
            now_ms: BEGIN,
            queue: Queue::default(),
            devices,
            links: (0..DEVICES).map(|_| Link::default()).collect(),
            server,
            has_broker,
            inbox: Vec::new(),
            stores: false,
            server_clock_off_ms: 0,
            markers: 0,
            settles: false,
            tally: Tally { worlds: 1, ..Tally::default() },
            _dir: dir,
        }
    }

    /// Lives through its days; what came of them.
    pub(crate) fn run(mut self) -> Tally {
        if let Err(violation) = self.live() {
            let days = (self.now_ms - BEGIN) / DAY;
            self.tally.violations.push(format!("day {days}, {} ms: {violation}", self.now_ms));
        }
        self.tally.device_days = DEVICES as u64 * ((self.now_ms - BEGIN) / DAY);
        self.tally.produced = self.devices.iter().map(|device| device.produced).sum();
        self.tally.lost = self.devices.iter().map(|device| device.lost).sum();
        self.tally.stored = self.server.stored.len() as u64;
        self.tally
    }

    fn live(&mut self) -> Result<(), String> {
        self.note(|world| {
            format!("seed {}, {}", world.seed, if world.has_broker { "a broker" } else { "no broker" })
        });
        let now_ns = self.boot_ns();
        for n in 0..DEVICES {
            self.devices[n].start(now_ns, &mut self.random)?;
            self.connect_in(n, SECOND);
            let later = self.random.u64(0..HOUR);
            self.at(later, Event::Speak(n));
            let later = self.random.u64(0..12 * HOUR);
            self.at(later, Event::Work(n, 6));
        }
        self.at(HOUR, Event::Fault);
        self.at(HOUR, Event::Order);
        self.at(HOUR, Event::Check);
        while let Some((at_ms, event)) = self.queue.pop() {
            self.now_ms = at_ms;
            self.happen(event)?;
            if self.queue.pushed() > EVENTS_MAX {
                return Err(format!("{EVENTS_MAX} things happened, and it is not over"));
            }
            let is_late = self.now_ms - BEGIN >= DAYS * DAY;
            if is_late && !self.settles {
                self.settle()?;
            }
            let has_settled = self.settles && self.now_ms - BEGIN >= DAYS * DAY + HOUR;
            if has_settled && self.devices.iter().all(|device| device.waiting() == 0) {
                return self.end();
            }
            if self.now_ms - BEGIN >= DAYS * DAY + SETTLE {
                let waiting: Vec<u64> = self.devices.iter().map(Device::waiting).collect();
                return Err(format!("after {} hours of peace these wait: {waiting:?}", SETTLE / HOUR));
            }
        }
        Err("nothing happens any more".to_owned())
    }

    /// Everything works again, and nobody says anything new.
    fn settle(&mut self) -> Result<(), String> {
        self.settles = true;
        self.server_clock_off_ms = 0;
        if !self.server.is_up() {
            self.server.start();
        }
        let now_ns = self.boot_ns();
        for n in 0..DEVICES {
            self.links[n].broken = false;
            self.devices[n].set_disk_full(false);
            if !self.devices[n].is_up() {
                self.devices[n].start(now_ns, &mut self.random)?;
            }
            // What a broker or a killed server kept from a device it is told when it connects anew.
            self.links[n].is_open = false;
            self.connect_in(n, SECOND);
            self.look(n, SECOND);
        }
        Ok(())
    }

    /// What must hold at the end: all is stored, or was counted as dropped, or was in the memory of an agent that was killed.
    fn end(&mut self) -> Result<(), String> {
        let mut all = 0;
        for device in &self.devices {
            let counted = device.dropped();
            let dropped = counted.outbox_dropped
                + counted.unwritten_dropped
                + counted.windows_refused
                + counted.messages_too_long;
            let open =
                device.open.keys().filter(|marker| !self.server.stored.contains_key(marker)).count() as u64;
            if open > dropped {
                return Err(format!(
                    "{}: {open} messages are nowhere, and {dropped} were dropped",
                    device.name
                ));
            }
            if let Some((id, n)) = device.carried_out.iter().find(|(_, n)| **n > 1) {
                return Err(format!("{}: order {id} was carried out {n} times", device.name));
            }
            all += dropped + device.lost;
            self.tally.dropped += dropped;
        }
        let unanswered = self.server.unanswered()?;
        if unanswered > all {
            return Err(format!(
                "{unanswered} orders are not answered, and {all} messages were dropped or lost"
            ));
        }
        self.server.check()?;
        self.server.check_gaps(self.has_broker)
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Speak(n) => {
                if !self.settles {
                    let burst = if self.random.u8(..) < 8 { self.random.u32(20..120) } else { 1 };
                    for _ in 0..burst {
                        let (now, marker) = (self.now_of(n), self.marker());
                        self.devices[n].speak(now, marker, &mut self.random)?;
                    }
                    self.pump(n)?;
                    let pause = self.random.u64(MINUTE..2 * HOUR);
                    self.at(pause, Event::Speak(n));
                }
            }
            Event::Work(n, left) => {
                if !self.settles {
                    let now = self.now_of(n);
                    let markers = &mut self.markers;
                    let mut next = || {
                        *markers += 1;
                        *markers
                    };
                    self.devices[n].work(now, &mut next, &mut self.random)?;
                    self.pump(n)?;
                    let pause = if left > 0 { 30 * SECOND } else { self.random.u64(HOUR..20 * HOUR) };
                    self.at(pause, Event::Work(n, if left > 0 { left - 1 } else { 6 }));
                }
            }
            Event::Look(n) => {
                self.links[n].looks = false;
                let now_ns = self.boot_ns();
                self.devices[n].write(now_ns);
                if self.links[n].is_open && self.devices[n].still_ns(now_ns) > STALL_NS {
                    self.note(|_| format!("{n}: nothing is acknowledged"));
                    self.hang_up(n);
                }
                self.pump(n)?;
                if self.devices[n].waiting() > 0 {
                    self.look(n, 20 * SECOND);
                }
            }
            Event::Connect(n) => {
                self.links[n].connects = false;
                self.connect(n)?;
            }
            Event::Up(n, link, leaf, bytes) => {
                self.links[n].under_way = self.links[n].under_way.saturating_sub(1);
                self.arrived(n, link, leaf, bytes);
                self.pump(n)?;
            }
            Event::Down(n, link, bytes) => {
                if self.links[n].is_open && self.links[n].number == link && !self.links[n].broken {
                    let (now, stored) = (self.now_of(n), &self.server.stored);
                    let markers = &mut self.markers;
                    let mut next = || {
                        *markers += 1;
                        *markers
                    };
                    self.devices[n].hear(now, &bytes, &mut next, &|marker| stored.contains_key(&marker))?;
                    self.pump(n)?;
                }
            }
            Event::Deliver(arrived) => {
                if self.server.is_up() {
                    self.inbox.push(arrived);
                    self.store_soon();
                } else {
                    self.at(10 * SECOND, Event::Deliver(arrived));
                }
            }
            Event::Store => self.store()?,
            Event::Greet(n, link) => {
                if self.server.is_up() {
                    let now_ms = self.server_ms();
                    for bytes in self.server.waiting(n, now_ms)? {
                        self.send_down(n, link, bytes);
                    }
                }
            }
            Event::Fault => {
                if !self.settles {
                    self.fault();
                    let pause = self.random.u64(10 * MINUTE..6 * HOUR);
                    self.at(pause, Event::Fault);
                }
            }
            Event::Kill(n) => self.kill_agent(n),
            Event::Heal(n) => self.links[n].broken = false,
            Event::Start(n) => {
                if !self.devices[n].is_up() {
                    let now_ns = self.boot_ns();
                    self.devices[n].start(now_ns, &mut self.random)?;
                    self.connect_in(n, SECOND);
                    self.look(n, SECOND);
                }
            }
            Event::StartServer => {
                if !self.server.is_up() {
                    self.server.start();
                }
            }
            Event::Room(n) => self.devices[n].set_disk_full(false),
            Event::Order => {
                if !self.settles {
                    let n = self.random.usize(..DEVICES);
                    if self.server.order(n, self.server_ms())? {
                        self.tally.orders += 1;
                        self.at(SECOND, Event::Greet(n, self.links[n].number));
                    }
                    let pause = self.random.u64(HOUR..8 * HOUR);
                    self.at(pause, Event::Order);
                }
            }
            Event::Check => {
                self.devices.iter().try_for_each(Device::check_disk)?;
                self.server.check()?;
                self.at(6 * HOUR, Event::Check);
            }
        }
        Ok(())
    }

    fn connect(&mut self, n: usize) -> Result<(), String> {
        if !self.devices[n].is_up() || self.links[n].is_open {
            return Ok(());
        }
        if self.links[n].broken || !(self.has_broker || self.server.is_up()) {
            let pause = self.random.u64(SECOND..MINUTE);
            self.connect_in(n, pause);
            return Ok(());
        }
        let link = &mut self.links[n];
        link.number += 1;
        (link.is_open, link.under_way, link.up_ms, link.down_ms) = (true, 0, 0, 0);
        let number = link.number;
        self.devices[n].connected();
        self.at(200, Event::Greet(n, number));
        self.pump(n)?;
        self.look(n, 20 * SECOND);
        Ok(())
    }

    /// Tries to connect in a while, unless that is so already.
    fn connect_in(&mut self, n: usize, pause_ms: u64) {
        if !std::mem::replace(&mut self.links[n].connects, true) {
            self.at(pause_ms, Event::Connect(n));
        }
    }

    /// Looks after a device in a while, unless somebody does already.
    fn look(&mut self, n: usize, pause_ms: u64) {
        if !std::mem::replace(&mut self.links[n].looks, true) {
            self.at(pause_ms, Event::Look(n));
        }
    }

    /// The connection ends; what is on it may still arrive.
    fn hang_up(&mut self, n: usize) {
        self.links[n].is_open = false;
        let pause = self.random.u64(500..MINUTE);
        self.connect_in(n, pause);
    }

    fn pump(&mut self, n: usize) -> Result<(), String> {
        if !self.links[n].is_open {
            return Ok(());
        }
        let mut sent = Vec::new();
        let room = LINK_MAX.saturating_sub(self.links[n].under_way);
        let now_ns = self.boot_ns();
        self.devices[n].pump(now_ns, &mut |leaf, bytes| {
            let has_room = sent.len() < room;
            if has_room {
                sent.push((leaf, bytes));
            }
            has_room
        })?;
        for (leaf, bytes) in sent {
            let link = &mut self.links[n];
            link.under_way += 1;
            link.up_ms = link.up_ms.max(self.now_ms + self.random.u64(5..300));
            let (number, pause) = (link.number, link.up_ms - self.now_ms);
            self.at(pause, Event::Up(n, number, leaf, bytes));
        }
        Ok(())
    }

    /// Something came out of a link: to the server itself, or to the broker, which keeps it.
    fn arrived(&mut self, device: usize, number: u64, leaf: Leaf, bytes: Vec<u8>) {
        let link = &self.links[device];
        let ended = !link.is_open || link.number != number;
        // Of a connection that broke, what was on it may have come through before.
        if link.broken || (ended && self.random.bool()) {
            return;
        }
        let arrived = Arrived { device, leaf, bytes };
        if self.has_broker {
            let late = self.random.u8(..) < 26;
            let delay = if late { self.random.u64(SECOND..5 * MINUTE) } else { 10 };
            if self.random.u8(..) < 6 {
                self.tally.duplicates += 1;
                let later = self.random.u64(10..HOUR);
                self.at(later, Event::Deliver(arrived.clone()));
            }
            self.at(delay, Event::Deliver(arrived));
        } else if self.server.is_up() && !ended {
            self.inbox.push(arrived);
            self.store_soon();
        }
    }

    fn store_soon(&mut self) {
        if !self.stores {
            self.stores = true;
            self.at(5, Event::Store);
        }
    }

    fn store(&mut self) -> Result<(), String> {
        self.stores = false;
        let batch = std::mem::take(&mut self.inbox);
        if !self.server.is_up() {
            self.again(batch);
            return Ok(());
        }
        let fails = !self.settles && self.random.u16(..) < 300;
        let acks = self.server.take(&batch, self.server_ms(), !fails)?;
        if fails {
            self.again(batch);
            if self.random.bool() {
                self.kill_server();
            }
            return Ok(());
        }
        // Killed between the commit and the answers.
        if !self.settles && self.random.u16(..) < 300 {
            if self.has_broker && self.random.bool() {
                self.again(batch);
            }
            self.kill_server();
            return Ok(());
        }
        for (device, bytes) in acks {
            let number = self.links[device].number;
            self.send_down(device, number, bytes);
        }
        Ok(())
    }

    /// A broker gives again what was not answered; without one a device sends it again itself.
    fn again(&mut self, batch: Vec<Arrived>) {
        if self.has_broker {
            for arrived in batch {
                self.at(SECOND, Event::Deliver(arrived));
            }
        } else {
            for device in batch.iter().map(|one| one.device).collect::<std::collections::BTreeSet<_>>() {
                self.hang_up(device);
            }
        }
    }

    fn send_down(&mut self, n: usize, number: u64, bytes: Vec<u8>) {
        // A broker takes what a device that is away does not get.
        if self.random.u8(..) < 4 && !self.settles {
            return;
        }
        let link = &mut self.links[n];
        link.down_ms = link.down_ms.max(self.now_ms + self.random.u64(5..300));
        let pause = link.down_ms - self.now_ms;
        self.at(pause, Event::Down(n, number, bytes));
    }

    fn fault(&mut self) {
        let n = self.random.usize(..DEVICES);
        // Most are short, some are days.
        let long = |random: &mut fastrand::Rng, most: u64| SECOND << random.u32(..(most / SECOND).ilog2());
        match self.random.u8(..20) {
            0..8 => {
                self.tally.partitions += 1;
                self.links[n].broken = true;
                if self.random.bool() {
                    self.hang_up(n);
                }
                let time = long(&mut self.random, 4 * DAY);
                self.note(|_| format!("{n}: the link breaks for {} s", time / SECOND));
                self.at(time, Event::Heal(n));
            }
            8..12 => self.kill_agent(n),
            12..14 => {
                self.devices[n].set_disk_full(true);
                let time = long(&mut self.random, 6 * HOUR);
                self.note(|_| format!("{n}: the disk is full for {} s", time / SECOND));
                // Somebody looks, and kills the agent.
                if self.random.bool() {
                    self.at(time / 2, Event::Kill(n));
                }
                self.at(time, Event::Room(n));
                self.look(n, SECOND);
            }
            14..16 => {
                let by = i64::try_from(long(&mut self.random, 400 * DAY)).unwrap_or(0);
                self.devices[n].clock_off_ms += if self.random.bool() { by } else { -by };
            }
            16..19 => self.kill_server(),
            _ => {
                let by = i64::try_from(long(&mut self.random, 2 * DAY)).unwrap_or(0);
                self.server_clock_off_ms = if self.random.bool() { by } else { -by };
            }
        }
    }

    fn kill_agent(&mut self, n: usize) {
        if self.settles || !self.devices[n].is_up() {
            return;
        }
        self.tally.agent_crashes += 1;
        let torn = self.random.bool().then(|| {
            let len = self.random.usize(1..60);
            std::iter::repeat_with(|| self.random.u8(..)).take(len).collect()
        });
        self.note(|_| format!("{n}: the agent is killed"));
        self.devices[n].kill(torn);
        self.links[n].is_open = false;
        let time = SECOND << self.random.u32(..12);
        self.at(time, Event::Start(n));
    }

    fn kill_server(&mut self) {
        if !self.server.is_up() {
            return;
        }
        self.tally.server_crashes += 1;
        self.note(|_| "the server is killed".to_owned());
        self.server.kill();
        let batch = std::mem::take(&mut self.inbox);
        self.again(batch);
        if !self.has_broker {
            (0..DEVICES)
                .filter(|n| self.links[*n].is_open)
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|n| self.hang_up(n));
        }
        let time = SECOND << self.random.u32(..12);
        self.at(time, Event::StartServer);
    }

    fn marker(&mut self) -> Marker {
        self.markers += 1;
        self.markers
    }

    fn boot_ns(&self) -> u64 {
        (self.now_ms - BEGIN + HOUR) * 1_000_000
    }

    fn now_of(&self, n: usize) -> Now {
        let unix_ms = self.now_ms.saturating_add_signed(self.devices[n].clock_off_ms);
        Now { boot_ns: self.boot_ns(), unix_ms }
    }

    fn server_ms(&self) -> u64 {
        self.now_ms.saturating_add_signed(self.server_clock_off_ms)
    }

    fn at(&mut self, pause_ms: u64, event: Event) {
        self.queue.push(self.now_ms + pause_ms, event);
    }

    fn note(&self, text: impl FnOnce(&Self) -> String) {
        if self.verbose {
            println!("{:>10} s {}", (self.now_ms - BEGIN) / SECOND, text(self));
        }
    }
}
