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
}

const KINDS: [Kind; 9] = [
    Kind::Shell,
    Kind::Exec,
    Kind::Sensitive,
    Kind::Port,
    Kind::Syscall,
    Kind::SystemWrite,
    Kind::Root,
    Kind::Tor,
    Kind::Lolbin,
];

impl Kind {
    /// The kind of a trait; `None` for one of a later version.
    #[must_use]
    pub fn of(trait_id: u64) -> Option<Self> {
        KINDS.into_iter().find(|kind| *kind as u64 == trait_id >> 56)
    }

    /// Points when new.
    #[must_use]
    pub fn points(self) -> f32 {
        match self {
            Self::Sensitive => 12.0,
            Self::Root | Self::Tor => 10.0,
            Self::Shell => 8.0,
            Self::Exec | Self::Port | Self::SystemWrite | Self::Lolbin => 4.0,
            Self::Syscall => 1.0,
        }
    }

    /// A verdict on this does not wait for the window's end.
    #[must_use]
    pub fn is_decisive(self) -> bool {
        matches!(self, Self::Sensitive | Self::Root | Self::Tor)
    }

    /// Which layer sees it.
    #[must_use]
    pub fn layer(self) -> Layer {
        match self {
            Self::Shell | Self::Exec | Self::Root => Layer::Process,
            Self::Sensitive | Self::SystemWrite => Layer::File,
            Self::Port | Self::Tor => Layer::Network,
            Self::Syscall => Layer::Syscall,
            Self::Lolbin => Layer::Lolbin,
        }
    }

    /// ATT&CK technique, empty where none is suggested.
    #[must_use]
    pub fn technique(self) -> &'static str {
        match self {
            Self::Shell | Self::Exec => "T1059",
            Self::Sensitive => "T1003.008",
            Self::Port => "T1571",
            Self::Syscall => "",
            Self::SystemWrite => "T1565.001",
            Self::Root => "T1068",
            Self::Tor => "T1090.003",
            Self::Lolbin => "T1218",
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
