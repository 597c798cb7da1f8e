//! One table of all 427 features: name, block, unit, cap, layer, ATT&CK technique and phrase.
//!
//! The vector's order and names are the original design's. Explanations and `docs/features.md` come from here.

use crate::syscalls;

/// Windows in the sequence the LSTM sees.
pub const SEQUENCE: usize = 10;

/// System call slots: x86-64 numbers 0 to 334.
pub const SYSCALL_SLOTS: usize = 335;
/// Buckets of hashed call pairs.
pub const BIGRAMS: usize = 50;
/// All features.
pub const FEATURES: usize = SYSCALL_SLOTS + BIGRAMS + NAMED.len();
/// Changes whenever a feature's meaning does; a bundle for another schema is refused.
pub const SCHEMA_ID: u32 = 0x0427_0001;

/// A part of the kernel side that sees one kind of behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    /// System call counts and pairs.
    Syscall,
    /// Connections and bytes.
    Network,
    /// Files opened, written and removed.
    File,
    /// Programs run, children, privileges.
    Process,
    /// One process writing into another.
    Injection,
    /// Leaving a container.
    Escape,
    /// System tools used as weapons.
    Lolbin,
    /// Removing traces.
    AntiForensic,
    /// Data in DNS queries.
    Dns,
}

impl Layer {
    /// The name used in alerts, metrics and documents.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syscall => "syscall",
            Self::Network => "network",
            Self::File => "file",
            Self::Process => "process",
            Self::Injection => "injection",
            Self::Escape => "container-escape",
            Self::Lolbin => "lolbin",
            Self::AntiForensic => "anti-forensic",
            Self::Dns => "dns-tunnel",
        }
    }
}

/// A feature's unit before it is divided by its cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A share of the window's calls.
    Share,
    /// A number of things.
    Count,
    /// A number per second.
    PerSecond,
    /// Bytes per second.
    BytesPerSecond,
    /// Bytes.
    Bytes,
    /// 0 or 1.
    Flag,
    /// Bits per character.
    Bits,
    /// Milliseconds.
    Milliseconds,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Feature {
    /// The original design's name.
    pub name: &'static str,
    /// Which layer measures it.
    pub layer: Layer,
    /// Unit of the raw value.
    pub unit: Unit,
    /// The raw value at which the feature saturates at 1.
    pub cap: f32,
    /// ATT&CK technique that a high value suggests; empty where none does.
    pub technique: &'static str,
    /// What to tell a person.
    pub phrase: &'static str,
}

const fn row(
    name: &'static str,
    layer: Layer,
    unit: Unit,
    cap: f32,
    technique: &'static str,
    phrase: &'static str,
) -> Feature {
    Feature { name, layer, unit, cap, technique, phrase }
}

/// Index of the first bigram bucket.
pub const BIGRAM_BASE: usize = SYSCALL_SLOTS;
/// Index of the first named feature.
pub const NAMED_BASE: usize = SYSCALL_SLOTS + BIGRAMS;

/// The features after the frequencies, in vector order.
pub const NAMED: [Feature; 42] = {
    use Layer::{AntiForensic, Dns, Escape, File, Injection, Lolbin, Network, Process, Syscall};
    use Unit::{Bits, Bytes, BytesPerSecond, Count, Flag, Milliseconds, PerSecond, Share};
    [
        row("unique_remote_ips", Network, Count, 50.0, "T1021", "distinct remote addresses"),
        row("unique_remote_ports", Network, Count, 50.0, "T1571", "distinct remote ports"),
        row("outbound_connection_rate", Network, PerSecond, 20.0, "T1021", "outbound connections a second"),
        row("bytes_sent_per_second", Network, BytesPerSecond, 1_000_000.0, "T1041", "bytes sent a second"),
        row(
            "bytes_recv_per_second",
            Network,
            BytesPerSecond,
            1_000_000.0,
            "T1105",
            "bytes received a second",
        ),
        row("is_using_tor_port", Network, Flag, 1.0, "T1090.003", "a connection to a Tor port"),
        row("is_connecting_to_rfc1918", Network, Flag, 1.0, "T1021", "a connection to a private address"),
        row("avg_dns_query_size", Dns, Bytes, 512.0, "T1071.004", "average DNS query size"),
        row("dns_query_rate", Dns, PerSecond, 20.0, "T1071.004", "DNS queries a second"),
        row("max_dns_payload_bytes", Dns, Bytes, 512.0, "T1048", "largest DNS query"),
        row("unique_files_opened", File, Count, 50.0, "T1083", "distinct files opened"),
        row("files_in_system_dirs", File, Count, 50.0, "T1083", "files opened in system folders"),
        row("executable_files_opened", File, Count, 50.0, "T1083", "program files opened"),
        row("files_written_count", File, Count, 50.0, "T1565.001", "files opened for writing"),
        row("entropy_of_file_paths", File, Bits, 8.0, "", "randomness of file names"),
        row("log_deletion_count", AntiForensic, Count, 5.0, "T1070.002", "log files removed or emptied"),
        row("timestamp_modification_count", AntiForensic, Count, 5.0, "T1070.006", "file times set by hand"),
        row("child_processes_spawned", Process, Count, 20.0, "T1059", "child processes started"),
        row("is_shell_spawned", Process, Flag, 1.0, "T1059", "a shell was started"),
        row("privilege_escalation_attempt", Process, Flag, 1.0, "T1068", "a change to user id 0"),
        row("is_injection_target", Injection, Flag, 1.0, "T1055", "another process wrote into this one"),
        row("namespace_change_count", Escape, Count, 5.0, "T1611", "changes of namespace"),
        row("pivot_root_attempt", Escape, Flag, 1.0, "T1611", "a change of the root file system"),
        row("lolbin_execution_count", Lolbin, Count, 10.0, "T1218", "system tools run that attackers like"),
        row("lolbin_wget", Lolbin, Count, 10.0, "T1105", "wget was run"),
        row("lolbin_curl", Lolbin, Count, 10.0, "T1105", "curl was run"),
        row("lolbin_python", Lolbin, Count, 10.0, "T1059.006", "python was run"),
        row("lolbin_perl", Lolbin, Count, 10.0, "T1059", "perl was run"),
        row("lolbin_bash", Lolbin, Count, 10.0, "T1059.004", "bash was run"),
        row("lolbin_nc", Lolbin, Count, 10.0, "T1095", "nc was run"),
        row("lolbin_ncat", Lolbin, Count, 10.0, "T1095", "ncat was run"),
        row("lolbin_socat", Lolbin, Count, 10.0, "T1095", "socat was run"),
        row("lolbin_base64", Lolbin, Count, 10.0, "T1140", "base64 was run"),
        row("lolbin_xxd", Lolbin, Count, 10.0, "T1140", "xxd was run"),
        row("lolbin_dd", Lolbin, Count, 10.0, "T1006", "dd was run"),
        row("lolbin_crontab", Lolbin, Count, 10.0, "T1053.003", "crontab was run"),
        row("lolbin_at", Lolbin, Count, 10.0, "T1053.002", "at was run"),
        row("lolbin_systemctl", Lolbin, Count, 10.0, "T1543.002", "systemctl was run"),
        row("lolbin_chmod", Lolbin, Count, 10.0, "T1222.002", "chmod was run"),
        row("window_duration_ms", Syscall, Milliseconds, 60_000.0, "", "length of the window"),
        row("events_per_second", Syscall, PerSecond, 1000.0, "T1496", "system calls a second"),
        row("cpu_time_ratio", Syscall, Share, 1.0, "T1496", "share of 100 ms slots with activity"),
    ]
};

/// The tools of the `lolbin_*` features, in vector order.
pub const LOLBINS: [&str; 15] = [
    "wget",
    "curl",
    "python",
    "perl",
    "bash",
    "nc",
    "ncat",
    "socat",
    "base64",
    "xxd",
    "dd",
    "crontab",
    "at",
    "systemctl",
    "chmod",
];

/// Ports that count as Tor.
pub const TOR_PORTS: [u16; 4] = [9001, 9030, 9050, 9051];

/// Index of a named feature.
///
/// # Panics
/// When no feature has this name; the names are compiled in, so a test finds that.
#[must_use]
pub fn index(name: &str) -> usize {
    let at = NAMED.iter().position(|feature| feature.name == name);
    NAMED_BASE + at.unwrap_or_else(|| panic!("no feature is called `{name}`"))
}

/// A feature's name, for all 427.
#[must_use]
pub fn name(index: usize) -> String {
    if index < BIGRAM_BASE {
        format!("syscall_{}", syscalls::name(index))
    } else if index < NAMED_BASE {
        format!("bigram_{}", index - BIGRAM_BASE)
    } else {
        NAMED[index - NAMED_BASE].name.to_owned()
    }
}

/// The layer that measures a feature.
#[must_use]
pub fn layer(index: usize) -> Layer {
    if index < NAMED_BASE { Layer::Syscall } else { NAMED[index - NAMED_BASE].layer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vector_has_427_values_with_427_names() {
        assert_eq!(FEATURES, 427);
        let names: std::collections::BTreeSet<_> = (0..FEATURES).map(name).collect();
        assert_eq!(names.len(), FEATURES);
    }

    #[test]
    fn blocks_have_the_original_sizes() {
        assert_eq!(index("unique_remote_ips"), 385);
        assert_eq!(index("unique_files_opened"), 395);
        assert_eq!(index("child_processes_spawned"), 402);
        assert_eq!(index("window_duration_ms"), 424);
    }

    #[test]
    fn every_tool_has_its_feature() {
        for tool in LOLBINS {
            assert!(index(&format!("lolbin_{tool}")) > index("lolbin_execution_count"));
        }
    }
}
