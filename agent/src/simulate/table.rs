//! The threats, their variants, and what the kernel must report of each.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::evasion::EVASIONS;
use super::family;
use super::sandbox::{Problem, Sandbox};
use super::stage::Stage;
use super::sys;

/// What an attacker wants, with the ways to get it.
#[derive(Debug)]
pub struct Threat {
    /// In kebab case.
    pub name: &'static str,
    /// ATT&CK techniques.
    pub techniques: &'static [&'static str],
    /// The ways.
    pub variants: &'static [Variant],
}

/// What a copy of this binary does with the words that its stage gives it.
pub type Deed = fn(&Sandbox, &[String]) -> Result<(), Problem>;

/// One way to enact a threat.
#[derive(Debug)]
pub struct Variant {
    /// In kebab case, once per threat.
    pub name: &'static str,
    /// ATT&CK techniques of this way.
    pub techniques: &'static [&'static str],
    /// One line.
    pub summary: &'static str,
    /// The layer that must see it.
    pub layer: &'static str,
    /// What the machine must have.
    pub needs: &'static [Need],
    /// Which log there must be to wipe.
    pub log: Log,
    /// Makes ready what the act needs, and says what to run and what must be seen.
    pub prepare: fn(&mut Stage) -> Result<Act, Problem>,
    /// What the copy of this binary does; `None` when a tool acts.
    pub act: Option<Deed>,
}

impl Variant {
    /// A variant that needs no log.
    pub(super) const fn new(
        name: &'static str,
        techniques: &'static [&'static str],
        summary: &'static str,
        layer: &'static str,
        needs: &'static [Need],
        act: Option<Deed>,
        prepare: fn(&mut Stage) -> Result<Act, Problem>,
    ) -> Self {
        Self { name, techniques, summary, layer, needs, log: Log::No, prepare, act }
    }
}

/// What a variant cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A program, and the Debian package that brings it.
    Tool(&'static str, &'static str),
    /// Root, for namespaces of its own.
    Root,
    /// User namespaces for everybody.
    UserNamespaces,
    /// The kernel's io_uring.
    IoUring,
    /// The 32-bit calls of x86-64.
    ThirtyTwoBitCalls,
}

/// A log to wipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// None.
    No,
    /// On a memory file system that only this variant sees as `/var`. Matched by its path.
    Private,
    /// A file with a name of its own in the real `/var/log`: only there does a descriptor lead to the directory.
    Real,
}

/// The folders in which tools are looked for: an operator's own `PATH` may begin with wrappers.
const FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// Where a tool is.
#[must_use]
pub fn tool(name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|file| file.is_file())
}

impl Need {
    /// What is missing, in words; `None` when it is there.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let there = match self {
            Self::Tool(name, _) => tool(name).is_some(),
            Self::Root => sys::is_root(),
            Self::UserNamespaces => {
                number("/proc/sys/user/max_user_namespaces").is_some_and(|max| max > 0)
                    && number("/proc/sys/kernel/unprivileged_userns_clone") != Some(0)
            }
            Self::IoUring => !matches!(number("/proc/sys/kernel/io_uring_disabled"), Some(1 | 2)),
            Self::ThirtyTwoBitCalls => sys::has_32_bit_calls(),
        };
        (!there).then(|| self.to_string())
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tool(name, package) => write!(f, "{name} (apt install {package})"),
            Self::Root => f.write_str("root"),
            Self::UserNamespaces => f.write_str("user namespaces (user.max_user_namespaces)"),
            Self::IoUring => f.write_str("io_uring (kernel.io_uring_disabled = 0)"),
            Self::ThirtyTwoBitCalls => f.write_str("x86-64 with 32-bit calls (CONFIG_IA32_EMULATION)"),
        }
    }
}

/// What is run, what must be seen of it, and what proves that it was done.
#[derive(Debug)]
pub struct Act {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// It runs as the user `nobody` when the simulator is root.
    pub unprivileged: bool,
    /// What the kernel side must report of this process or of those that it started.
    pub expected: Vec<Sign>,
    /// What happens and is not reported: what an evasion is for.
    pub hidden: Vec<Sign>,
    /// What proves it.
    pub proof: Proof,
}

impl Act {
    /// Runs a program.
    pub fn new<S: Into<String>>(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = S>) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self {
            program: program.into(),
            arguments,
            unprivileged: false,
            expected: vec![],
            hidden: vec![],
            proof: Proof::Success,
        }
    }

    /// Runs a tool.
    ///
    /// # Errors
    /// When it is not there.
    pub fn tool<S: Into<String>>(
        name: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Self, Problem> {
        let program = tool(name).ok_or_else(|| Problem::Needs(name.to_owned()))?;
        Ok(Self::new(program, arguments))
    }

    /// Runs a script of `sh`.
    ///
    /// # Errors
    /// When there is no `sh`.
    pub fn script(text: impl Into<String>) -> Result<Self, Problem> {
        Self::tool("sh", ["-c".to_owned(), text.into()])
    }

    /// This must be seen.
    #[must_use]
    pub fn sign(mut self, sign: Sign) -> Self {
        self.expected.push(sign);
        self
    }

    /// All of these must be seen.
    #[must_use]
    pub fn signs(mut self, signs: impl IntoIterator<Item = Sign>) -> Self {
        self.expected.extend(signs);
        self
    }

    /// This happens and is not reported.
    #[must_use]
    pub fn hides(mut self, sign: Sign) -> Self {
        self.hidden.push(sign);
        self
    }

    /// This proves it.
    #[must_use]
    pub fn proof(mut self, proof: Proof) -> Self {
        self.proof = proof;
        self
    }

    /// As a user without rights.
    #[must_use]
    pub fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        self
    }
}

/// What proves that an act was done, independently of what the agent sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It ended with success.
    Success,
    /// It ended: the attempt is the act.
    Ended,
    /// The listener was connected to so often.
    Connected(u64),
    /// The listener received so many bytes.
    Received(u64),
    /// A shell answered the listener.
    Answered,
    /// The file is there no more.
    Gone(PathBuf),
    /// The file is there and holds nothing.
    Empty(PathBuf),
}

/// One record, or one number of a window, that the kernel side must report.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Sign {
    /// A program was started.
    Exec {
        /// Its path as given; `None` when that says nothing.
        path: Option<String>,
        /// It has no file.
        fileless: bool,
    },
    /// A file was opened.
    Open {
        /// Its path.
        path: String,
        /// It counts as sensitive.
        sensitive: bool,
    },
    /// A connection was asked for.
    Connect {
        /// To whom.
        address: SocketAddr,
    },
    /// Bytes were sent, at least so many.
    Sent {
        /// Together with those that it started.
        bytes: u64,
    },
    /// Another process was taken hold of or written into.
    Inject {
        /// That process.
        victim: u32,
        /// By which call.
        call: &'static str,
    },
    /// A namespace was made or entered.
    Namespace {
        /// `CLONE_NEW*` bits, at least these.
        flags: u64,
    },
    /// Something was mounted.
    Mount {
        /// Where; empty when the call does not tell.
        path: String,
    },
    /// The root was changed.
    ChangeRoot {
        /// By which call.
        call: &'static str,
        /// The new one.
        path: String,
    },
    /// A release agent was written.
    ReleaseAgent {
        /// Its path.
        path: String,
    },
    /// A log was removed, emptied, renamed or redated.
    Tamper {
        /// Which of these.
        how: &'static str,
        /// The log.
        path: String,
    },
    /// Queries were sent.
    Dns {
        /// To whom.
        address: SocketAddr,
        /// The registered name in them; none where only their number and size can be seen.
        domain: Option<&'static str>,
    },
    /// User id 0 was asked for.
    Privilege {
        /// By which call.
        call: &'static str,
    },
    /// Code was offered to the kernel.
    KernelLoad {
        /// By which call.
        call: &'static str,
    },
    /// An operation was given to io_uring.
    Uring {
        /// Its number.
        operation: u8,
    },
    /// A call was counted.
    Calls {
        /// Its name.
        call: &'static str,
    },
}

impl Sign {
    /// A file that only a thief opens.
    pub fn sensitive(path: impl Into<String>) -> Self {
        Self::Open { path: path.into(), sensitive: true }
    }

    /// A program that has a file.
    pub fn exec(path: impl Into<String>) -> Self {
        Self::Exec { path: Some(path.into()), fileless: false }
    }

    /// The layer that reports it.
    #[must_use]
    pub fn layer(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "process_exec",
            Self::Open { .. } => "file",
            Self::Connect { .. } => "network",
            Self::Sent { .. } => "network_bytes",
            Self::Inject { .. } => "injection",
            Self::Namespace { .. }
            | Self::Mount { .. }
            | Self::ChangeRoot { .. }
            | Self::ReleaseAgent { .. } => "container_escape",
            Self::Tamper { .. } => "anti_forensic",
            Self::Dns { .. } => "dns",
            Self::Privilege { .. } => "privilege",
            Self::KernelLoad { .. } => "kernel_load",
            Self::Uring { .. } => "io_uring",
            Self::Calls { .. } => "syscall",
        }
    }
}

/// What an alert should show.
impl std::fmt::Display for Sign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exec { fileless: true, .. } => f.write_str("started a program without a file"),
            Self::Exec { path, .. } => write!(f, "started {}", path.as_deref().unwrap_or("a program")),
            Self::Open { path, sensitive: true } => write!(f, "opened the sensitive file {path}"),
            Self::Open { path, .. } => write!(f, "opened {path}"),
            Self::Connect { address } => write!(f, "connected to {} port {}", address.ip(), address.port()),
            Self::Sent { bytes } => write!(f, "sent {bytes} bytes or more"),
            Self::Inject { victim, call } => write!(f, "took hold of process {victim} by {call}"),
            Self::Namespace { .. } => f.write_str("made or entered a namespace"),
            Self::Mount { path } => write!(f, "mounted on {path}"),
            Self::ChangeRoot { call, path } => write!(f, "made {path} its root by {call}"),
            Self::ReleaseAgent { path } => write!(f, "wrote the release agent {path}"),
            Self::Tamper { how, path } => write!(f, "{how} the log {path}"),
            Self::Dns { address, domain: Some(domain) } => {
                write!(f, "sent queries below {domain} to {}", address.ip())
            }
            Self::Dns { address, domain: None } => write!(f, "sent queries to {}", address.ip()),
            Self::Privilege { call } => write!(f, "asked for root by {call}"),
            Self::KernelLoad { call } => write!(f, "offered code to the kernel by {call}"),
            Self::Uring { operation } => write!(f, "gave operation {operation} to io_uring"),
            Self::Calls { call } => write!(f, "called {call}"),
        }
    }
}

/// Every threat.
pub static THREATS: &[Threat] = &[
    family::credential::THREAT,
    family::shell::THREAT,
    family::lateral::THREAT,
    family::exfiltration::THREAT,
    family::privilege::THREAT,
    family::injection::THREAT,
    family::escape::THREAT,
    family::lolbin::THREAT,
    family::traces::THREAT,
    family::dns::THREAT,
    family::mining::THREAT,
    family::fileless::THREAT,
    family::uring::THREAT,
];

/// A variant by `threat/variant`, or by `evasion/variant`.
#[must_use]
pub fn find(id: &str) -> Option<(&'static Threat, &'static Variant)> {
    let (threat, variant) = id.split_once('/')?;
    let evasions = EVASIONS.iter().map(|evasion| &evasion.threat);
    let threat = THREATS.iter().chain(evasions).find(|known| known.name == threat)?;
    Some((threat, threat.variants.iter().find(|known| known.name == variant)?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_threat_has_three_variants_with_names_of_their_own() {
        assert_eq!(THREATS.len(), 13);
        assert!(THREATS.iter().all(|threat| threat.variants.len() >= 3));
        let mut names = BTreeSet::new();
        for threat in THREATS.iter().chain(EVASIONS.iter().map(|evasion| &evasion.threat)) {
            for variant in threat.variants {
                assert!(names.insert((threat.name, variant.name)), "{}/{}", threat.name, variant.name);
                let kebab = |name: &str| {
                    name.chars().all(|c| c == '-' || c.is_ascii_lowercase() || c.is_ascii_digit())
                };
                assert!(kebab(variant.name) && kebab(threat.name), "{}", variant.name);
                assert!(!variant.techniques.is_empty() && !variant.summary.is_empty());
                let known =
                    |technique: &str| threat.techniques.iter().any(|mine| technique.starts_with(mine));
                assert!(variant.techniques.iter().any(|technique| known(technique)), "{}", variant.name);
                if variant.log != Log::No {
                    assert!(variant.needs.contains(&Need::Root), "{}", variant.name);
                }
            }
        }
    }
}
