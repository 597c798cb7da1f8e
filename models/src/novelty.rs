//! Categorical novelty: what a program did that it never did while it was learned.
//!
//! Each thing is a *trait*: a kind in the top byte and a hash of its value below. A bundle holds the sorted
//! traits seen while learning; a trait that is not among them is evidence worth its kind's points.

use crate::schema::Layer;

/// The kinds of traits, worth points when new (three are a decade of evidence; see [`crate::calibration::News`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A shell was started.
    Shell = 1,
    /// A program was started.
    Exec = 2,
    /// A sensitive file was opened.
    Sensitive = 3,
    /// A connection to a port (exact below 32768, one class above).
    Port = 4,
    /// A system call was made.
    Syscall = 5,
    /// A system folder was written to.
    SystemWrite = 6,
    /// User id 0 was gained.
    Root = 7,
    /// A Tor port was used.
    Tor = 8,
    /// A system tool of the watch list was run.
    Lolbin = 9,
    /// Another process was written into.
    Injection = 10,
    /// This process was written into.
    Injected = 11,
    /// A namespace was made or entered.
    Namespace = 12,
    /// Something was mounted.
    Mount = 13,
    /// The root directory or a release agent was changed.
    Breakout = 14,
    /// A file in a watched directory was removed, emptied or moved away.
    LogTamper = 15,
    /// Times of a file in a watched directory were set.
    Redate = 16,
    /// A kernel module or another kernel was loaded.
    Module = 17,
    /// An eBPF program was loaded or attached.
    Bpf = 18,
    /// A program was started whose file has no name.
    Fileless = 19,
    /// A DNS query was large enough to carry data.
    DnsTunnel = 20,
    /// Files or connections were used through `io_uring`.
    IoUring = 21,
    /// A capability was used.
    Capability = 22,
    /// So many bytes were read or written.
    Volume = 23,
    /// A program ran that has no baseline, in a unit whose others have.
    Stranger = 24,
    /// A file was given the set-user-id bit.
    SetUserId = 25,
    /// So many bytes were sent.
    Sent = 26,
    /// A program without a baseline ran from a folder that everyone may write to.
    Temporary = 27,
    /// Much was sent by a program over a connection that it neither made nor took.
    Relayed = 28,
}

const KINDS: [Kind; 28] = [
    Kind::Shell,
    Kind::Exec,
    Kind::Sensitive,
    Kind::Port,
    Kind::Syscall,
    Kind::SystemWrite,
    Kind::Root,
    Kind::Tor,
    Kind::Lolbin,
    Kind::Injection,
    Kind::Injected,
    Kind::Namespace,
    Kind::Mount,
    Kind::Breakout,
    Kind::LogTamper,
    Kind::Redate,
    Kind::Module,
    Kind::Bpf,
    Kind::Fileless,
    Kind::DnsTunnel,
    Kind::IoUring,
    Kind::Capability,
    Kind::Volume,
    Kind::Stranger,
    Kind::SetUserId,
    Kind::Sent,
    Kind::Temporary,
    Kind::Relayed,
];

impl Kind {
    /// The kind of a trait; `None` for one of a later version.
    #[must_use]
    pub fn of(trait_id: u64) -> Option<Self> {
        KINDS.into_iter().find(|kind| *kind as u64 == trait_id >> 56)
    }

    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.into_iter()
    }

    /// The kind with this [`Kind::name`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.name() == name)
    }

    /// Points when new.
    #[must_use]
    pub fn points(self) -> f32 {
        match self {
            Self::Sensitive
            | Self::Injection
            | Self::Injected
            | Self::Breakout
            | Self::Module
            | Self::Fileless => 12.0,
            Self::Root
            | Self::Tor
            | Self::Namespace
            | Self::Mount
            | Self::LogTamper
            | Self::Bpf
            | Self::SetUserId => 10.0,
            Self::Shell | Self::Redate | Self::DnsTunnel => 8.0,
            Self::IoUring | Self::Relayed => 6.0,
            Self::Exec | Self::Port | Self::SystemWrite | Self::Lolbin | Self::Stranger | Self::Temporary => {
                4.0
            }
            Self::Capability | Self::Volume | Self::Sent => 2.0,
            Self::Syscall => 1.0,
        }
    }

    /// Whether it is about how a program works and not what it does to others: the statistical detectors look at the same.
    #[must_use]
    pub fn is_faint(self) -> bool {
        matches!(self, Self::Syscall | Self::Capability | Self::Volume | Self::Sent)
    }

    /// A verdict on this does not wait for the window's end.
    #[must_use]
    pub fn is_decisive(self) -> bool {
        matches!(
            self,
            Self::Sensitive
                | Self::Root
                | Self::Tor
                | Self::Injection
                | Self::Injected
                | Self::Namespace
                | Self::Mount
                | Self::Breakout
                | Self::LogTamper
                | Self::Redate
                | Self::Module
                | Self::Bpf
                | Self::Fileless
                | Self::SetUserId
        )
    }

    /// Whether it says something about a program that has no baseline, when no learned program of its unit does it. Which
    /// calls, capabilities and files a program uses is its own matter.
    #[must_use]
    pub fn tells_of_strangers(self) -> bool {
        !matches!(self, Self::Syscall | Self::Capability | Self::Volume | Self::SystemWrite | Self::Exec)
    }

    /// Which layer sees it.
    #[must_use]
    pub fn layer(self) -> Layer {
        match self {
            Self::Shell
            | Self::Exec
            | Self::Root
            | Self::Module
            | Self::Bpf
            | Self::Fileless
            | Self::Capability
            | Self::Stranger
            | Self::SetUserId
            | Self::Temporary => Layer::Process,
            Self::Sensitive | Self::SystemWrite | Self::Volume => Layer::File,
            Self::Port | Self::Tor | Self::Sent | Self::Relayed => Layer::Network,
            Self::Syscall | Self::IoUring => Layer::Syscall,
            Self::Lolbin => Layer::Lolbin,
            Self::Injection | Self::Injected => Layer::Injection,
            Self::Namespace | Self::Mount | Self::Breakout => Layer::Escape,
            Self::LogTamper | Self::Redate => Layer::AntiForensic,
            Self::DnsTunnel => Layer::Dns,
        }
    }

    /// The evidence's name in an alert.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shell => "first_shell",
            Self::Exec => "first_program",
            Self::Sensitive => "first_sensitive_file",
            Self::Port => "first_port",
            Self::Syscall => "first_syscall",
            Self::SystemWrite => "first_system_write",
            Self::Root => "first_root",
            Self::Tor => "first_tor_port",
            Self::Lolbin => "first_lolbin",
            Self::Injection => "first_injection",
            Self::Injected => "first_injected",
            Self::Namespace => "first_namespace_change",
            Self::Mount => "first_mount",
            Self::Breakout => "first_breakout",
            Self::LogTamper => "first_log_tampering",
            Self::Redate => "first_time_change",
            Self::Module => "first_kernel_module",
            Self::Bpf => "first_bpf",
            Self::Fileless => "first_fileless_program",
            Self::DnsTunnel => "first_large_dns_query",
            Self::IoUring => "first_io_uring",
            Self::Capability => "first_capability",
            Self::Volume => "first_volume",
            Self::Stranger => "first_in_unit",
            Self::SetUserId => "first_set_user_id",
            Self::Sent => "first_bytes_sent",
            Self::Temporary => "first_temporary_program",
            Self::Relayed => "first_bytes_relayed",
        }
    }

    /// Plain words for this trait with its value.
    #[must_use]
    pub fn sentence(self, value: &str) -> String {
        match self {
            Self::Shell => format!("started a shell ({value}); it never did before"),
            Self::Exec => format!("started {value}; it never did before"),
            Self::Sensitive => format!("opened the sensitive file {value}; it never did before"),
            Self::Port => format!("connected to {value}; it never used this port before"),
            Self::Syscall => format!("made the system call {value}; it never did before"),
            Self::SystemWrite => format!("opened {value} for writing; it never wrote there before"),
            Self::Root => format!("gained root ({value}); it never did before"),
            Self::Tor => format!("connected to the Tor port {value}; it never did before"),
            Self::Lolbin => format!("ran the system tool {value}; it never did before"),
            Self::Injection => format!("took hold of or wrote into {value}; it never did before"),
            Self::Injected => {
                format!("was taken hold of or written into by {value}; that never happened before")
            }
            Self::Namespace => format!("changed its namespaces by {value}; it never did before"),
            Self::Mount => format!("mounted {value}; it never did before"),
            Self::Breakout => format!("reached out of its root: {value}; it never did before"),
            Self::LogTamper => format!("{value}; it never touched logs this way before"),
            Self::Redate => format!("set the times of {value} by hand; it never did before"),
            Self::Module => format!("loaded code into the kernel by {value}; it never did before"),
            Self::Bpf => format!("loaded or attached an eBPF program ({value}); it never did before"),
            Self::Fileless => format!(
                "started a program that lies in memory only or was deleted ({value}); it never did before"
            ),
            Self::DnsTunnel => {
                format!("sent a DNS query large enough to carry data: {value}; it never did before")
            }
            Self::IoUring => {
                format!("gave work to io_uring instead of making calls ({value}); it never did before")
            }
            Self::Stranger => format!("{value} ran, which was never learned in this unit"),
            Self::SetUserId => format!("gave a file the set-user-id bit by {value}; it never did before"),
            Self::Sent => format!("sent {value} in one window; it never sent that much before"),
            Self::Relayed => {
                format!(
                    "sent {value} over a connection that whoever started it had made; it never did before"
                )
            }
            Self::Temporary => {
                format!("ran from {value}, a folder that everyone may write to; no program of this unit did")
            }
            Self::Volume => format!("{value} in one window; it never moved that much before"),
            Self::Capability => format!("used the capability {value}; it never did before"),
        }
    }
}

/// A trait from its kind and value: FNV-1a, 56 bits.
#[must_use]
pub fn trait_id(kind: Kind, value: &str) -> u64 {
    let hash = value.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (kind as u64) << 56 | (hash ^ hash >> 56) & (u64::MAX >> 8)
}

/// A trait in JSON: 16 hexadecimal digits, because a number there keeps 53 bits only.
pub mod trait_hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error};

    /// Writes one.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(id: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{id:016x}"))
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is no hexadecimal number of 64 bits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trait_keeps_its_kind() {
        for kind in KINDS {
            assert_eq!(Kind::of(trait_id(kind, "/bin/sh")), Some(kind));
        }
        assert_eq!(Kind::of(200 << 56), None);
    }
}
