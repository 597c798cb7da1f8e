//! What a first-time act suggests: MITRE ATT&CK (Enterprise, v17) techniques by the kind of the act and its value.

use crate::novelty::{self, Kind};
use crate::schema::{LOLBINS, NAMED};

/// Services by which one machine is worked on from another: T1021 and its sub-techniques.
const REMOTE_SERVICES: [(u16, &str); 10] = [
    (22, "T1021.004"),
    (23, "T1021"),
    (135, "T1021.003"),
    (139, "T1021.002"),
    (445, "T1021.002"),
    (3389, "T1021.001"),
    (5900, "T1021.005"),
    (5901, "T1021.005"),
    (5985, "T1021.006"),
    (5986, "T1021.006"),
];
/// Protocols that others hide in.
const APPLICATION_PROTOCOLS: [(u16, &str); 9] = [
    (21, "T1071.002"),
    (25, "T1071.003"),
    (53, "T1071.004"),
    (80, "T1071.001"),
    (443, "T1071.001"),
    (587, "T1071.003"),
    (1883, "T1071.005"),
    (8443, "T1071.001"),
    (8883, "T1071.005"),
];
/// Where mining pools listen for Stratum.
const MINING_PORTS: [u16; 7] = [3333, 5555, 7777, 14433, 14444, 45560, 45700];
/// Miners by the names that they are shipped under.
const MINERS: [&str; 8] =
    ["xmrig", "xmr-stak", "minerd", "cpuminer", "ccminer", "ethminer", "nbminer", "kinsing"];

/// Technique ids, most telling first; empty where none is suggested. `value` is the act in plain words, as in
/// [`crate::window::Window::text`].
#[must_use]
pub fn techniques(kind: Kind, value: &str) -> Vec<&'static str> {
    match kind {
        Kind::Shell => vec!["T1059"],
        Kind::Exec if is_miner(value) => vec!["T1496", "T1059"],
        Kind::Exec => vec!["T1059"],
        Kind::Stranger if is_miner(value) => vec!["T1496"],
        Kind::Stranger | Kind::Syscall => vec![],
        Kind::Sensitive => vec![of_file(value)],
        Kind::Port => of_port(value),
        Kind::SystemWrite if value.starts_with("/var/log/") => vec!["T1070.002", "T1565.001"],
        Kind::SystemWrite => vec!["T1565.001"],
        Kind::Root | Kind::Capability => vec!["T1068"],
        Kind::SetUserId => vec!["T1548.001"],
        Kind::Tor => vec!["T1090.003"],
        Kind::Lolbin => of_tool(value),
        Kind::Injection | Kind::Injected => vec!["T1055"],
        // In a user namespace of one's own begin most exploits of the kernel.
        Kind::Namespace if value.contains("user") => vec!["T1611", "T1068"],
        Kind::Namespace | Kind::Mount | Kind::Breakout => vec!["T1611"],
        Kind::LogTamper if value.starts_with("removed") => vec!["T1070.004"],
        Kind::LogTamper => vec!["T1070.002"],
        Kind::Redate => vec!["T1070.006"],
        Kind::Module => vec!["T1547.006"],
        Kind::Bpf => vec!["T1014", "T1547.006"],
        Kind::Fileless => vec!["T1620"],
        Kind::DnsTunnel => vec!["T1071.004", "T1048"],
        Kind::IoUring => vec!["T1106"],
        Kind::Volume => vec!["T1005"],
        Kind::Sent | Kind::Relayed => vec!["T1041", "T1048"],
        Kind::Temporary => vec!["T1036.005"],
    }
}

/// Whether a trait is a connection to a service by which one machine is worked on from another.
#[must_use]
pub fn is_remote_service(trait_id: u64) -> bool {
    // Only connections are worth the hashes.
    Kind::of(trait_id) == Some(Kind::Port)
        && REMOTE_SERVICES
            .iter()
            .any(|(port, _)| novelty::trait_id(Kind::Port, &port.to_string()) == trait_id)
}

fn of_file(path: &str) -> &'static str {
    let starts = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
    if starts(&["/proc/kcore", "/dev/"]) || path.starts_with("/proc/") && !path.ends_with("/shadow") {
        "T1003.007"
    } else if path.contains("/.ssh/") || starts(&["/etc/ssh/", "/etc/ssl/private/"]) {
        "T1552.004"
    } else if path.contains("/secrets/") || path.contains("/.aws/") || path.contains("/.kube/") {
        "T1552.001"
    } else {
        "T1003.008"
    }
}

/// `value` ends with the number, as in `10.1.2.3 port 22`.
fn of_port(value: &str) -> Vec<&'static str> {
    let port = value.rsplit(' ').next().and_then(|port| port.parse::<u16>().ok());
    let listed = |table: &[(u16, &'static str)]| {
        table.iter().find(|(known, _)| Some(*known) == port).map(|(_, technique)| vec![*technique])
    };
    if port.is_some_and(|port| MINING_PORTS.contains(&port)) {
        return vec!["T1496", "T1571"];
    }
    listed(&REMOTE_SERVICES).or_else(|| listed(&APPLICATION_PROTOCOLS)).unwrap_or_else(|| vec!["T1571"])
}

/// What the feature of this tool stands for, and that it is the system's own.
fn of_tool(name: &str) -> Vec<&'static str> {
    let feature = LOLBINS
        .contains(&name)
        .then(|| NAMED.iter().find(|feature| feature.name.strip_prefix("lolbin_") == Some(name)));
    let own = feature.flatten().map(|feature| feature.technique).filter(|id| !id.is_empty());
    own.into_iter().chain(["T1218"].into_iter().filter(|id| own != Some(*id))).collect()
}

fn is_miner(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    MINERS.iter().any(|miner| name.starts_with(miner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_decides_beside_its_kind() {
        for (kind, value, expected) in [
            (Kind::Port, "10.1.2.3 port 445", &["T1021.002"][..]),
            (Kind::Port, "fd00::1 port 3333", &["T1496", "T1571"]),
            (Kind::Port, "10.1.2.3 port 53", &["T1071.004"]),
            (Kind::Port, "10.1.2.3 port 4444", &["T1571"]),
            (Kind::Lolbin, "base64", &["T1140", "T1218"]),
            (Kind::Lolbin, "rclone", &["T1218"]),
            (Kind::Sensitive, "/etc/shadow", &["T1003.008"]),
            (Kind::Sensitive, "/proc/77/mem", &["T1003.007"]),
            (Kind::Sensitive, "/root/.ssh/id_ed25519", &["T1552.004"]),
            (Kind::LogTamper, "removed /var/log/syslog", &["T1070.004"]),
            (Kind::LogTamper, "emptied or cut /var/log/syslog", &["T1070.002"]),
            (Kind::SystemWrite, "/var/log/syslog", &["T1070.002", "T1565.001"]),
            (Kind::Namespace, "unshare(user)", &["T1611", "T1068"]),
            (Kind::Exec, "/tmp/xmrig", &["T1496", "T1059"]),
            (Kind::Syscall, "lseek", &[]),
        ] {
            assert_eq!(techniques(kind, value), expected, "{kind:?} {value}");
        }
    }
}
