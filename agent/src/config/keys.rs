//! Every key of the configuration, once: `behaveguard init`, the checks, `docs/configuration.md` and the names of
//! environment variables come from here.

use std::fmt::{self, Write as _};

use agent_ebpf::watched::WATCHED_MAX;

use super::contain::CONTAIN_KEYS;
use super::sinks::SINK_KEYS;

/// What an environment variable that overrides a key begins with.
pub const ENVIRONMENT: &str = "BEHAVEGUARD_";

/// How a rule of containment is shown in the template.
const CONTAIN: &str = r#"
# What is done to programs that alarm, nothing by default; docs/operations.md says what to think of first.
#[[contain]]
#program = "nginx.service"
#action = "deny_egress"
"#;

/// How a sink is shown in the template: which keys it has depends on its kind, so each kind has its example.
const SINKS: &str = r#"
# Where alerts go beside the fleet, up to 8; a gateway with one needs no fleet. docs/configuration.md has every key.
#[[sink]]
#kind = "syslog"
#address = "udp://logs.example.org:514"

#[[sink]]
#kind = "file"
#path = "/var/log/behaveguard/alerts.json"

#[[sink]]
#kind = "exec"
#command = ["/usr/local/bin/on-alert"]
#severity = "HIGH"

#[[sink]]
#kind = "webhook"
#url = "https://alerts.example.org/behaveguard"
#token_file = "/etc/behaveguard/webhook.token"
"#;

/// Longest line of what `behaveguard init` writes.
const LINE_MAX: usize = 118;

/// What a key may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A whole number.
    Number(u32, u32),
    /// A time in seconds.
    Time(u64, u64),
    /// A size in bytes.
    Size(u64, u64),
    /// A size in bytes that is a power of two.
    Ring(u64, u64),
    /// In words.
    Words(&'static str),
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Number(min, max) => write!(f, "a whole number from {min} to {max}"),
            Self::Time(min, max) => {
                write!(f, "a time from {} to {}, e.g. \"30s\" or \"5m\"", time(min), time(max))
            }
            Self::Size(min, max) => {
                write!(f, "a size from {} to {}, e.g. \"512KiB\" or \"32MiB\"", size(min), size(max))
            }
            Self::Ring(min, max) => {
                write!(
                    f,
                    "a size from {} to {} that is a power of two, e.g. \"512KiB\" or \"1MiB\"",
                    size(min),
                    size(max)
                )
            }
            Self::Words(words) => f.write_str(words),
        }
    }
}

/// When a changed value is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// On SIGHUP.
    Reload,
    /// When the agent starts again.
    Restart,
}

/// One key.
#[derive(Debug)]
pub struct Key {
    /// With its table, e.g. `alerts.dedup`.
    pub name: &'static str,
    /// As TOML.
    pub default: &'static str,
    /// What it may hold.
    pub form: Form,
    /// When a change is used.
    pub applied: Applied,
    /// What it is, and what happens beyond it.
    pub text: &'static str,
}

impl Key {
    /// The environment variable that overrides it, e.g. `BEHAVEGUARD_ALERTS_DEDUP`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{ENVIRONMENT}{}", self.name.replace('.', "_").to_uppercase())
    }
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

use Applied::{Reload, Restart};
use Form::{Number, Ring, Size, Time, Words};

/// The keys outside of a table come first.
pub const KEYS: &[Key] = &[
    Key {
        name: "state",
        default: r#""/var/lib/behaveguard""#,
        form: Words("a path in quotes"),
        applied: Restart,
        text: "Keys, baselines and messages that wait for the fleet. Survives restarts.",
    },
    Key {
        name: "window",
        default: r#""30s""#,
        form: Time(1, 50),
        applied: Restart,
        text: "Length of a window. A baseline is only good for the length that it was learned with.",
    },
    Key {
        name: "watch",
        default: r#"["*"]"#,
        form: Words("a list of 1 to 256 patterns in quotes, none of them empty"),
        applied: Restart,
        text: "Programs to learn and judge: paths of executables or scripts, or systemd units; * stands for any \
               characters.",
    },
    Key {
        name: "heartbeat",
        default: r#""60s""#,
        form: Time(1, 3600),
        applied: Reload,
        text: "How often the fleet is told about this device.",
    },
    Key {
        name: "programs_max",
        default: "256",
        form: Number(1, 4096),
        applied: Restart,
        text: "Programs remembered. Idle ones without a baseline make room; the processes of further ones are counted, \
               not judged.",
    },
    Key {
        name: "processes_max",
        default: "4096",
        form: Number(16, 65_536),
        applied: Restart,
        text: "Processes remembered. Further ones are counted, not judged.",
    },
    Key {
        name: "outbox_max",
        default: r#""32MiB""#,
        form: Size(64 * KIB, 4 * GIB),
        applied: Restart,
        text: "Room on disk for messages that wait for the fleet (some 700 bytes an alert). When it is full, the lowest \
               severity goes first, of that the oldest, and is counted.",
    },
    Key {
        name: "models_max",
        default: r#""20MiB""#,
        form: Size(MIB, GIB),
        applied: Reload,
        text: "Room in memory for the models of all baselines together. The ones unused longest make room, and are read \
               again when their program is judged.",
    },
    Key {
        name: "memory_budget",
        default: r#""64MiB""#,
        form: Size(48 * MIB, 16 * GIB),
        applied: Restart,
        text: "Memory that the agent and its kernel maps may take: set the service's MemoryMax no lower. Sizes that are not \
               given follow from it in proportion: `programs_max`, `processes_max`, `models_max`, and of `kernel` \
               `processes_max`, `grams_max`, `learned_max`, `dns_sockets_max` and the rings. Their defaults are for 64MiB.",
    },
    Key {
        name: "cpu_budget",
        default: r#""20%""#,
        form: Words("\"unlimited\", or \"N%\" of one core, N a whole number from 1 to 1000"),
        applied: Reload,
        text: "CPU time that the agent may take, over a window. Beyond it, the evidence that costs most and tells least is \
               left out first: what the models say, then ordinary opens of files. `status`, the fleet and each alert are \
               told so, and such windows are not learned from.",
    },
    Key {
        name: "outbox_engine",
        default: r#""log""#,
        form: Words(r#""log", or "sled" in builds with the feature of that name"#),
        applied: Restart,
        text: "What keeps the messages that wait.",
    },
    Key {
        name: "alert_budget",
        default: r#""10 per device per day""#,
        form: Words(
            "\"unlimited\", or \"N per device per hour\", day, week or month (30 days), N a whole number from 1 to 10000",
        ),
        applied: Reload,
        text: "False alarms of the statistical detectors that may be sent. Only verdicts that this many normal windows \
               may reach are sent; `status` shows from which p-value. First-time acts that are MEDIUM by themselves are \
               sent under any budget. \"unlimited\" sends every verdict from MEDIUM on: one normal window in a hundred \
               may reach it.",
    },
    Key {
        name: "samples",
        default: "0",
        form: Number(0, 100),
        applied: Reload,
        text: "Percent of the windows of programs that are learned which the fleet is given to train on, in stretches of 20. \
               Above 0 also the windows of alarms, which are trained on when a person calls them false. 0 keeps all of them on the device: its fleet makes no baseline of \
               them, and `behaveguard train` still does. For a group: `behaveguard-fleet group configure`.",
    },
    Key {
        name: "lolbins",
        default: "[]",
        form: Words("a list of up to 64 file names in quotes, without folders"),
        applied: Reload,
        text: "Further tools whose start is evidence, by file name, such as \"rclone\". wget, curl, python, nc and the \
               like are watched always.",
    },
    Key {
        name: "redact",
        default: r#"["passw", "pwd", "passphrase", "secret", "token", "credential", "authorization", "apikey"]"#,
        form: Words("a list of up to 64 words in quotes"),
        applied: Reload,
        text: "Command lines are told, and captured, without the values of options, variables and headers whose name \
               contains one of these words, in any case and with or without dashes. The list replaces the default one. \
               [\"*\"] leaves only what the program is known by: its options without values, and its script.",
    },
    Key {
        name: "alerts.thresholds",
        default: "[40, 70, 90]",
        form: Words("three ascending numbers from 0 to 100"),
        applied: Reload,
        text: "Scores from which a verdict is MEDIUM, HIGH and CRITICAL.",
    },
    Key {
        name: "alerts.dedup",
        default: r#""300s""#,
        form: Time(0, 86_400),
        applied: Reload,
        text: "The same program and reason again within this time is one alert.",
    },
    Key {
        name: "alerts.per_minute",
        default: "10",
        form: Number(1, 1000),
        applied: Reload,
        text: "Alerts a minute over all programs. CRITICAL ones have as many again. The rest is counted, and told with \
               the next.",
    },
    Key {
        name: "quarantine.allowed",
        default: "false",
        form: Words("true or false"),
        applied: Restart,
        text: "Whether the fleet, and `behaveguard quarantine begin`, may cut this device off from everything but its fleet. \
               docs/operations.md says what is still reached then, and what it costs.",
    },
    Key {
        name: "quarantine.reachable",
        default: "[]",
        form: Words(
            "a list of up to 16 addresses or networks in quotes, e.g. \"192.0.2.7\" or \"2001:db8::/32\"",
        ),
        applied: Reload,
        text: "What is reached in quarantine beside the fleet, at any port: where operators log in from, say.",
    },
    Key {
        name: "update.keys",
        default: "[]",
        form: Words("a list of up to 4 Ed25519 public keys, each of 64 hexadecimal digits in quotes"),
        applied: Reload,
        text: "Who makes program files that the fleet may have this agent replaced by. Nobody by default: a fleet cannot put \
               programs on a device. `behaveguard-fleet build key` makes a pair.",
    },
    Key {
        name: "kernel.processes_max",
        default: "2048",
        form: Number(64, 65_536),
        applied: Restart,
        text: "Processes that make calls within one window. As for all sizes of the kernel's maps, `behaveguard doctor` \
               shows what it costs, and what finds no room is counted.",
    },
    Key {
        name: "kernel.grams_max",
        default: "65536",
        form: Number(1024, 4_194_304),
        applied: Restart,
        text: "Calls in order, six at a time, in the tables of all baselines together.",
    },
    Key {
        name: "kernel.learned_max",
        default: "16384",
        form: Number(1024, 4_194_304),
        applied: Restart,
        text: "The same of programs that are being learned, within one window.",
    },
    Key {
        name: "kernel.dns_sockets_max",
        default: "1024",
        form: Number(16, 65_536),
        applied: Restart,
        text: "Sockets connected to port 53. When it is full, the one not used for longest goes.",
    },
    Key {
        name: "kernel.urgent_ring",
        default: r#""256KiB""#,
        form: Ring(64 * KIB, 256 * MIB),
        applied: Restart,
        text: "Ring of records that do not wait, such as injection. One that finds no room is dropped and counted.",
    },
    Key {
        name: "kernel.bulk_ring",
        default: r#""1MiB""#,
        form: Ring(64 * KIB, 256 * MIB),
        applied: Restart,
        text: "Ring of the other records: opens and connections.",
    },
    Key {
        name: "kernel.opens_max",
        default: "256",
        form: Number(1, 1_000_000),
        applied: Restart,
        text: "Ordinary opens that one process may report within one window. The rest is counted, as `throttled`.",
    },
    Key {
        name: "kernel.connects_max",
        default: "512",
        form: Number(1, 1_000_000),
        applied: Restart,
        text: "Connections and sensitive opens that one process may report within one window.",
    },
    Key {
        name: "kernel.acts_max",
        default: "256",
        form: Number(1, 1_000_000),
        applied: Restart,
        text: "Records of each rare class, such as injection, that one process may report within one window.",
    },
    Key {
        name: "kernel.traces",
        default: r#"["/var/log", "/run/log"]"#,
        form: Words("a list of up to 8 absolute folders in quotes, each below 64 bytes"),
        applied: Restart,
        text: "Folders whose files keep traces: removing, emptying or redating one is evidence.",
    },
];

const _: () = assert!(WATCHED_MAX == 8, "the form of `kernel.traces` names it");

/// The key of this name.
///
/// # Panics
/// When there is none.
#[must_use]
pub(super) fn key(name: &str) -> &'static Key {
    let known = KEYS.iter().chain(SINK_KEYS).chain(CONTAIN_KEYS).find(|key| key.name == name);
    known.expect("only known keys are asked for")
}

/// Whether there is a key of this full name.
pub(super) fn is_known(name: &str) -> bool {
    KEYS.iter().any(|key| key.name == name)
}

/// What `behaveguard init` writes: every key with its default, its unit and its range, not in force.
#[must_use]
pub fn template() -> String {
    let mut text = "# BehaveGuard agent. Every key is optional; these are the defaults.\n".to_owned();
    let mut table = None;
    for key in KEYS {
        let (of, name) = key.name.split_once('.').map_or((None, key.name), |(of, name)| (Some(of), name));
        if let Some(of) = of.filter(|_| of != table) {
            let _ = write!(text, "\n[{of}]");
        }
        table = of;
        text.push('\n');
        let about = format!("{} It is {}.", key.text, key.form);
        wrapped(&about).for_each(|line| {
            let _ = writeln!(text, "# {line}");
        });
        let _ = writeln!(text, "#{name} = {}", key.default);
    }
    text.push_str(CONTAIN);
    text.push_str(SINKS);
    text
}

/// Keys as a table of `docs/configuration.md`.
#[must_use]
pub fn reference(keys: &[Key]) -> String {
    let mut text = String::from("| key | default | it must be | SIGHUP | |\n|---|---|---|---|---|\n");
    for key in keys {
        let applied = if key.applied == Reload { "applies it" } else { "needs a restart" };
        let cell = |text: &str| text.replace('|', "\\|");
        let (name, default, form) = (key.name, cell(key.default), cell(&key.form.to_string()));
        let _ = writeln!(text, "| `{name}` | `{default}` | {form} | {applied} | {} |", cell(key.text));
    }
    text
}

fn wrapped(text: &str) -> impl Iterator<Item = String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("it began with one");
        if last.is_empty() {
            last.push_str(word);
        } else if last.len() + 1 + word.len() + 2 <= LINE_MAX {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.into_iter()
}

fn time(seconds: u64) -> String {
    match seconds {
        0 => "0s".into(),
        s if s % 86_400 == 0 => format!("{}d", s / 86_400),
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s => format!("{s}s"),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        b if b % GIB == 0 => format!("{}GiB", b / GIB),
        b if b % MIB == 0 => format!("{}MiB", b / MIB),
        b => format!("{}KiB", b / KIB),
    }
}
