//! A device that reaches its fleet only, so that an intruder goes nowhere from it: `<state>/quarantine.json`.
//!
//! ```text
//! order of the fleet, or `behaveguard quarantine begin` ─► Quarantine ─► reachable() ─► map of the kernel's egress program
//!                                  uplink: where the fleet is ──┘
//! ```
//! It ends when somebody ends it, or when its time is over, also on a device that cannot reach its fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use agent_ebpf::records::{PORTS, REACHABLE_MAX};
use serde::{Deserialize, Serialize};

use crate::clock::Now;
use crate::files;
use crate::vitals;

/// Networks that the operator may name.
pub const NETWORKS_MAX: usize = 16;

/// Addresses of the fleet that are remembered, and name servers that are asked; further ones are not reached.
const ADDRESSES_MAX: usize = 16;
const _: () = assert!(NETWORKS_MAX + 2 * ADDRESSES_MAX <= REACHABLE_MAX as usize);

/// The port of name servers.
const DNS: u16 = 53;

/// Where name servers are written down: those that programs ask, and those that systemd-resolved asks for them.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Addresses with the same first bits; those of IPv4 as `::ffff:0:0/96`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: [u8; 16],
    bits: u32,
}

/// What may be reached: ports, all zero for any.
pub type Reachable = BTreeMap<Network, [u16; PORTS]>;

impl Network {
    /// One address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self { address: mapped(address), bits: 128 }
    }

    /// Address, and how many of its bits count.
    #[must_use]
    pub fn parts(&self) -> ([u8; 16], u32) {
        (self.address, self.bits)
    }

    /// Whether the address is one of them.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        let (ours, theirs) = (u128::from_be_bytes(self.address), u128::from_be_bytes(mapped(address)));
        (ours ^ theirs).leading_zeros() >= self.bits
    }
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, bits)| (a, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| "no address")?;
        let own = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(own), |bits| bits.parse().map_err(|_| "no number of bits"))?;
        let bits = if bits > own { return Err("more bits than an address has") } else { bits + 128 - own };
        let address = mapped(address);
        // What is beyond the bits would be somebody's slip.
        if (u128::from_be_bytes(address).trailing_zeros() + bits) < 128 {
            return Err("the address has bits beyond its network");
        }
        Ok(Self { address, bits })
    }
}

impl TryFrom<String> for Network {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, own) = match IpAddr::from(self.address).to_canonical() {
            // Fewer bits than those that say so are no network of IPv4.
            address @ IpAddr::V4(_) if self.bits >= 96 => (address, 32),
            _ => (IpAddr::from(self.address), 128),
        };
        let bits = self.bits + own - 128;
        if bits == own { write!(f, "{address}") } else { write!(f, "{address}/{bits}") }
    }
}

/// What may be reached: the operator's networks, the fleet, and the name servers, unless the fleet is found without them.
#[must_use]
pub fn reachable(networks: &[Network], fleet: &BTreeSet<SocketAddr>, resolvers: &[IpAddr]) -> Reachable {
    let mut all: Reachable =
        networks.iter().take(NETWORKS_MAX).map(|network| (*network, [0; PORTS])).collect();
    let fleet = fleet.iter().take(ADDRESSES_MAX).map(|at| (at.ip(), at.port()));
    let resolvers = resolvers.iter().take(ADDRESSES_MAX).map(|address| (*address, DNS));
    for (address, port) in fleet.chain(resolvers) {
        // The most exact entry counts: one of the fleet must not narrow what the operator allows.
        if networks.iter().any(|network| network.holds(address)) {
            continue;
        }
        let ports = all.entry(Network::of(address)).or_default();
        if !ports.contains(&port)
            && let Some(free) = ports.iter_mut().find(|port| **port == 0)
        {
            *free = port;
        }
    }
    all
}

/// Name servers of this machine that are not on it.
#[must_use]
pub fn resolvers() -> Vec<IpAddr> {
    let texts = RESOLVERS.iter().filter_map(|path| fs::read_to_string(path).ok());
    let mut all: Vec<IpAddr> = texts.flat_map(|text| named_in(&text)).collect();
    all.dedup();
    all
}

/// From the lines of resolv.conf(5).
fn named_in(text: &str) -> Vec<IpAddr> {
    let named = text.lines().filter_map(|line| line.trim_start().strip_prefix("nameserver"));
    // An address of the link may name its interface.
    let addresses = named.filter_map(|rest| rest.trim().split(['%', ' ', '\t']).next()?.parse().ok());
    addresses.filter(|address: &IpAddr| !address.is_loopback()).collect()
}

/// A quarantine that holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Since when, milliseconds since 1970.
    pub unix_ms: u64,
    /// For how long from then, in seconds.
    pub for_s: u32,
    /// Who wanted it.
    pub by: String,
    boot_id: String,
    /// When it is over, on the clock of intervals of that boot.
    until_ns: u64,
    /// The same on the wall clock, for other boots.
    until_unix_ms: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Kept {
    held: Option<Held>,
    /// Where the fleet was last found: after a restart in quarantine it is found no other way.
    fleet: BTreeSet<SocketAddr>,
}

/// Whether this device is quarantined, and where its fleet is.
#[derive(Debug)]
pub struct Quarantine {
    path: PathBuf,
    kept: Kept,
}

impl Quarantine {
    /// What held when the agent stopped, and still does. A damaged file is logged and holds nothing.
    #[must_use]
    pub fn open(state: &Path, now: Now) -> Self {
        let path = state.join("quarantine.json");
        let read = match fs::read(&path) {
            Ok(raw) => serde_json::from_slice(&raw).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
            Err(error) => Err(error),
        };
        let mut kept: Kept = read.unwrap_or_else(|error| {
            log::error!("{} cannot be used: {error}; the device is not quarantined", path.display());
            Kept::default()
        });
        if let Some(held) = &mut kept.held {
            held.after_boot(now, &vitals::boot_id());
        }
        Self { path, kept }
    }

    /// What holds.
    #[must_use]
    pub fn held(&self) -> Option<&Held> {
        self.kept.held.as_ref()
    }

    /// Where the fleet was last found.
    #[must_use]
    pub fn fleet(&self) -> &BTreeSet<SocketAddr> {
        &self.kept.fleet
    }

    /// Begins one, in place of one that holds.
    ///
    /// # Errors
    /// When it cannot be written down; then it does not begin: it would end with the agent.
    pub fn begin(&mut self, for_s: u32, by: &str, now: Now) -> io::Result<()> {
        let held = Held {
            unix_ms: now.unix_ms,
            for_s,
            by: by.to_owned(),
            boot_id: vitals::boot_id(),
            until_ns: now.boot_ns.saturating_add(u64::from(for_s) * 1_000_000_000),
            until_unix_ms: now.unix_ms.saturating_add(u64::from(for_s) * 1000),
        };
        self.write(Kept { held: Some(held), fleet: self.kept.fleet.clone() })
    }

    /// Ends it, and gives what held. A full disk must not keep a device cut off: what cannot be written down is logged, and holds
    /// again after a restart until its time is over.
    pub fn end(&mut self) -> Option<Held> {
        let held = self.kept.held.take()?;
        if let Err(error) = self.write(self.kept.clone()) {
            log::error!("{}: {error}: the quarantine's end is forgotten at a restart", self.path.display());
        }
        Some(held)
    }

    /// The fleet was found; whether that is news.
    ///
    /// # Errors
    /// When it cannot be written down; it is known until a restart.
    pub fn found(&mut self, fleet: BTreeSet<SocketAddr>) -> io::Result<bool> {
        if fleet == self.kept.fleet {
            return Ok(false);
        }
        if fleet.len() > ADDRESSES_MAX {
            log::warn!(
                "the fleet has {} addresses: in quarantine {ADDRESSES_MAX} of them are reached",
                fleet.len()
            );
        }
        self.kept.fleet = fleet;
        self.write(self.kept.clone()).map(|()| true)
    }

    fn write(&mut self, kept: Kept) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(&kept).map_err(io::Error::other)?;
        files::write_private(&self.path, &json)?;
        self.kept = kept;
        Ok(())
    }
}

impl Held {
    /// How much of its time is left, in seconds; 0 when it is over.
    #[must_use]
    pub fn left_s(&self, now: Now) -> u64 {
        self.until_ns.saturating_sub(now.boot_ns).div_ceil(1_000_000_000)
    }

    /// After a restart of the machine the wall clock says how much is left. It may be wrong, so it is never more than the whole.
    fn after_boot(&mut self, now: Now, boot_id: &str) {
        if self.boot_id == boot_id {
            return;
        }
        let left_ms = self.until_unix_ms.saturating_sub(now.unix_ms).min(u64::from(self.for_s) * 1000);
        self.until_ns = now.boot_ns.saturating_add(left_ms * 1_000_000);
        boot_id.clone_into(&mut self.boot_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn networks_are_read_and_what_is_none_is_refused() {
        for text in ["192.0.2.7", "10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "::1", "::/0"] {
            assert_eq!(network(text).to_string(), text);
        }
        assert_eq!(network("192.0.2.7/32"), Network::of([192, 0, 2, 7].into()));
        for text in
            ["", "gw", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.1/8", "2001:db8::1/32", "10.0.0.0/-1"]
        {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        assert!(network("10.0.0.0/8").holds([10, 255, 0, 1].into()));
        assert!(!network("10.0.0.0/8").holds([11, 0, 0, 1].into()));
        assert!(!network("10.0.0.0/8").holds("::10.0.0.1".parse().unwrap()), "that is no mapped one");
        assert!(network("::/0").holds([1, 2, 3, 4].into()));
    }

    #[test]
    fn the_fleet_its_name_servers_and_the_operators_networks_are_reached() {
        let fleet = ["192.0.2.1:8883", "192.0.2.1:8443", "10.1.1.1:8883"];
        let fleet = fleet.iter().map(|text| text.parse().unwrap()).collect();
        let resolvers = [[192, 0, 2, 1].into(), [192, 0, 2, 53].into()];
        let all = reachable(&[network("10.0.0.0/8")], &fleet, &resolvers);
        let of = |text: &str| all.get(&network(text)).copied();
        assert_eq!(of("192.0.2.1"), Some([8443, 8883, 53, 0]));
        assert_eq!(of("192.0.2.53"), Some([53, 0, 0, 0]));
        assert_eq!(of("10.0.0.0/8"), Some([0; PORTS]), "any port");
        assert_eq!(of("10.1.1.1"), None, "else it would be less than its network");
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn no_more_is_reached_than_the_kernels_map_holds() {
        let networks: Vec<_> = (0..20).map(|n| network(&format!("10.{n}.0.0/16"))).collect();
        let fleet = (0..99).map(|n| SocketAddr::from(([192, 0, 2, n], 1))).collect();
        let resolvers: Vec<_> = (0..99).map(|n| IpAddr::from([198, 51, 100, n])).collect();
        assert_eq!(reachable(&networks, &fleet, &resolvers).len(), NETWORKS_MAX + 2 * ADDRESSES_MAX);
    }

    #[test]
    fn name_servers_of_other_machines_are_found() {
        let text = "# by hand\nnameserver 192.0.2.53\n nameserver fe80::1%eth0\nsearch nameserver\nnameserver 127.0.0.53\nnameserver x\n";
        let expected: Vec<IpAddr> = vec![[192, 0, 2, 53].into(), "fe80::1".parse().unwrap()];
        assert_eq!(named_in(text), expected);
    }

    #[test]
    fn it_holds_over_a_restart_and_ends_by_any_clock() {
        let dir = tempfile::tempdir().unwrap();
        let at = |boot_s: u64, unix_s: u64| Now { boot_ns: boot_s * 1_000_000_000, unix_ms: unix_s * 1000 };
        let mut quarantine = Quarantine::open(dir.path(), at(5, 100));
        assert!(quarantine.held().is_none() && quarantine.end().is_none());
        quarantine.begin(60, "the fleet", at(5, 100)).unwrap();
        let fleet: BTreeSet<SocketAddr> = ["192.0.2.1:8883".parse().unwrap()].into();
        assert!(quarantine.found(fleet.clone()).unwrap());
        assert!(!quarantine.found(fleet.clone()).unwrap());
        // The same boot: the wall clock says nothing.
        let again = Quarantine::open(dir.path(), at(25, 9_999));
        assert_eq!((again.held().unwrap().left_s(at(25, 9_999)), again.fleet()), (40, &fleet));
        assert_eq!(again.held().unwrap().left_s(at(65, 0)), 0);
        // Another boot.
        let mut held = again.held().unwrap().clone();
        held.after_boot(at(1, 120), "another");
        assert_eq!(held.left_s(at(1, 120)), 40);
        let mut wrong = again.held().unwrap().clone();
        wrong.after_boot(at(1, 0), "another");
        assert_eq!(wrong.left_s(at(1, 0)), 60, "a clock that begins in 1970 does not hold it for ever");
        let mut quarantine = Quarantine::open(dir.path(), at(25, 100));
        assert_eq!(quarantine.end().unwrap().by, "the fleet");
        assert!(Quarantine::open(dir.path(), at(25, 100)).held().is_none());
        fs::write(dir.path().join("quarantine.json"), "{").unwrap();
        assert!(Quarantine::open(dir.path(), at(25, 100)).held().is_none());
    }
}
