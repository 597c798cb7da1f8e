//! Where alerts go beside the fleet: the `[[sink]]` tables of the configuration.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use models::policy::Severity;
use serde::{Deserialize, Serialize};
use toml::Value;

use super::Problem;
use super::keys::{Applied, Form, Key};
use super::read::{Reader, tables};

/// Sinks of one agent.
pub const SINKS_MAX: usize = 8;

/// The keys of a `[[sink]]`; which are needed follows from `kind`.
pub const SINK_KEYS: &[Key] = &[
    Key {
        name: "sink.kind",
        default: "",
        form: Form::Words("\"syslog\", \"file\", \"exec\" or \"webhook\""),
        applied: Applied::Reload,
        text: "What takes the alerts. Needed.",
    },
    Key {
        name: "sink.name",
        default: "its kind",
        form: Form::Words("1 to 32 of a-z, 0-9 and -, and no other sink's"),
        applied: Applied::Reload,
        text: "How `behaveguard status` and the counters name it.",
    },
    Key {
        name: "sink.severity",
        default: "\"MEDIUM\"",
        form: Form::Words("\"MEDIUM\", \"HIGH\" or \"CRITICAL\""),
        applied: Applied::Reload,
        text: "Alerts below are not given to it.",
    },
    Key {
        name: "sink.queue_max",
        default: "1000",
        form: Form::Number(1, 100_000),
        applied: Applied::Reload,
        text: "Alerts that wait for it in memory. With one more, the oldest of the lowest severity goes, and is counted.",
    },
    Key {
        name: "sink.address",
        default: "\"unix:/dev/log\"",
        form: Form::Words("\"unix:PATH\", \"udp://HOST:PORT\" or \"tcp://HOST:PORT\""),
        applied: Applied::Reload,
        text: "syslog: where messages of RFC 5424 go, over TCP each with its length before it (RFC 6587).",
    },
    Key {
        name: "sink.path",
        default: "",
        form: Form::Words("an absolute path in quotes"),
        applied: Applied::Reload,
        text: "file: one alert a line, as JSON. Needed.",
    },
    Key {
        name: "sink.size_max",
        default: "\"10MiB\"",
        form: Form::Size(64 * 1024, 4 << 30),
        applied: Applied::Reload,
        text: "file: beyond this it becomes PATH.1, and a new one is begun.",
    },
    Key {
        name: "sink.files_max",
        default: "5",
        form: Form::Number(1, 100),
        applied: Applied::Reload,
        text: "file: how many are kept, with the newest; one more removes the oldest.",
    },
    Key {
        name: "sink.command",
        default: "",
        form: Form::Words("a list of an absolute path and its arguments, in quotes"),
        applied: Applied::Reload,
        text: "exec: is started for each alert, which it reads as JSON from standard input. Needed.",
    },
    Key {
        name: "sink.url",
        default: "",
        form: Form::Words("an address that begins with \"https://\" or \"http://\""),
        applied: Applied::Reload,
        text: "webhook: is sent each alert by POST, as JSON. Needed.",
    },
    Key {
        name: "sink.token_file",
        default: "none",
        form: Form::Words("an absolute path in quotes"),
        applied: Applied::Reload,
        text: "webhook: what is in this file is sent as bearer token.",
    },
    Key {
        name: "sink.ca_file",
        default: "\"/etc/ssl/certs/ca-certificates.crt\"",
        form: Form::Words("an absolute path in quotes"),
        applied: Applied::Reload,
        text: "webhook: certificates of whom to trust, PEM.",
    },
    Key {
        name: "sink.timeout",
        default: "\"10s\"",
        form: Form::Time(1, 300),
        applied: Applied::Reload,
        text: "exec and webhook: after this long it has failed; a command is killed with its children.",
    },
];

/// One sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkOptions {
    /// No other has it.
    pub name: String,
    /// Alerts below are not given to it.
    pub severity: Severity,
    /// Alerts that wait for it at most.
    pub queue_max: u32,
    /// What takes them.
    pub kind: SinkKind,
}

/// What takes alerts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkKind {
    /// RFC 5424.
    Syslog(SyslogAddress),
    /// JSON lines.
    File {
        /// Where.
        path: PathBuf,
        /// Bytes of one file.
        size_max: u64,
        /// Files kept.
        files_max: u32,
    },
    /// A program for each alert.
    Exec {
        /// Its path and arguments.
        command: Vec<String>,
        /// How long it may take.
        timeout: Duration,
    },
    /// HTTP.
    Webhook {
        /// Where.
        url: String,
        /// File with a bearer token.
        token_file: Option<PathBuf>,
        /// File with the certificates that are trusted.
        ca_file: PathBuf,
        /// How long it may take.
        timeout: Duration,
    },
}

impl SinkKind {
    /// Whether it starts programs.
    #[must_use]
    pub fn starts_programs(&self) -> bool {
        matches!(self, Self::Exec { .. })
    }
}

/// Where a syslog server listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyslogAddress {
    /// Datagrams to a socket of the file system.
    Unix(PathBuf),
    /// Datagrams to host and port.
    Udp(String),
    /// A stream to host and port.
    Tcp(String),
}

impl SyslogAddress {
    fn parse(text: &str) -> Option<Self> {
        let host_and_port = |rest: &str| {
            let (host, port) = rest.rsplit_once(':')?;
            (!host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| rest.to_owned())
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        if let Some(rest) = text.strip_prefix("udp://") {
            return host_and_port(rest).map(Self::Udp);
        }
        text.strip_prefix("tcp://").and_then(host_and_port).map(Self::Tcp)
    }
}

/// Reads what stands under `sink`.
pub(super) fn read(value: Option<Value>, problems: &mut Vec<Problem>) -> Vec<SinkOptions> {
    let sinks = tables("sink", value, SINKS_MAX, problems, one);
    let mut names = BTreeSet::new();
    for sink in &sinks {
        if !names.insert(&sink.name) {
            let text = format!("two sinks are called `{}`: give each a name of its own", sink.name);
            problems.push(Problem { key: "sink.name".into(), text });
        }
    }
    sinks
}

fn one(keys: &mut Reader) -> Option<SinkOptions> {
    let mut kind = String::new();
    keys.words("kind", &mut kind, |_| true);
    let mut name = kind.clone();
    keys.words("name", &mut name, |name| {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=32).contains(&name.len()) && name.chars().all(good)
    });
    let mut severity = "MEDIUM".to_owned();
    keys.words("severity", &mut severity, |text| Severity::from_word(text).is_some());
    let severity = Severity::from_word(&severity).unwrap_or(Severity::Medium);
    let mut queue_max = 1000;
    keys.number("queue_max", &mut queue_max);
    let mut timeout = Duration::from_secs(10);
    if matches!(&*kind, "exec" | "webhook") {
        keys.time("timeout", &mut timeout);
    }
    let kind = match &*kind {
        "syslog" => {
            let mut address = "unix:/dev/log".to_owned();
            keys.words("address", &mut address, |text| SyslogAddress::parse(text).is_some());
            SyslogAddress::parse(&address).map(SinkKind::Syslog)
        }
        "file" => {
            let (mut size_max, mut files_max) = (10 << 20, 5);
            keys.size("size_max", &mut size_max);
            keys.number("files_max", &mut files_max);
            needed_path(keys, "path").map(|path| SinkKind::File { path, size_max, files_max })
        }
        "exec" => {
            let mut command: Vec<String> = Vec::new();
            keys.words("command", &mut command, |list| {
                list.first().is_some_and(|path| path.starts_with('/'))
            });
            if command.is_empty() {
                keys.missing("command");
            }
            Some(SinkKind::Exec { command, timeout })
        }
        "webhook" => {
            let mut url = String::new();
            keys.words("url", &mut url, |url| url.starts_with("https://") || url.starts_with("http://"));
            if url.is_empty() {
                keys.missing("url");
            }
            let token_file = path(keys, "token_file");
            let ca_file =
                path(keys, "ca_file").unwrap_or_else(|| "/etc/ssl/certs/ca-certificates.crt".into());
            Some(SinkKind::Webhook { url, token_file, ca_file, timeout })
        }
        _ => {
            keys.missing("kind");
            keys.ignore_rest();
            None
        }
    };
    kind.map(|kind| SinkOptions { name, severity, queue_max, kind })
}

fn path(keys: &mut Reader, name: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    keys.words(name, &mut path, |path| path.is_absolute());
    path.is_absolute().then_some(path)
}

fn needed_path(keys: &mut Reader, name: &str) -> Option<PathBuf> {
    let path = path(keys, name);
    if path.is_none() {
        keys.missing(name);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn each_kind_is_read_with_its_defaults() {
        let text = "[[sink]]\nkind = \"syslog\"\n[[sink]]\nkind = \"syslog\"\nname = \"far\"\naddress = \"tcp://[::1]:601\"\n\
                    [[sink]]\nkind = \"file\"\npath = \"/var/log/alerts.json\"\nseverity = \"HIGH\"\nqueue_max = 7\n\
                    [[sink]]\nkind = \"exec\"\ncommand = [\"/bin/cat\"]\ntimeout = \"2s\"\n\
                    [[sink]]\nkind = \"webhook\"\nurl = \"https://example.org/hook\"\n";
        let sinks = Config::parse(text).unwrap().sinks;
        assert_eq!(sinks[0].kind, SinkKind::Syslog(SyslogAddress::Unix("/dev/log".into())));
        assert_eq!(sinks[1].kind, SinkKind::Syslog(SyslogAddress::Tcp("[::1]:601".into())));
        assert_eq!((sinks[2].severity, sinks[2].queue_max), (Severity::High, 7));
        let file = SinkKind::File { path: "/var/log/alerts.json".into(), size_max: 10 << 20, files_max: 5 };
        assert_eq!(sinks[2].kind, file);
        let names: Vec<&str> = sinks.iter().map(|sink| sink.name.as_str()).collect();
        assert_eq!(names, ["syslog", "far", "file", "exec", "webhook"]);
    }

    #[test]
    fn the_defaults_in_the_table_are_those_in_force() {
        for (kind, keys) in [
            ("syslog", &["severity", "queue_max", "address"][..]),
            ("file\"\npath = \"/a", &["severity", "queue_max", "size_max", "files_max"]),
            ("exec\"\ncommand = [\"/a\"]\nname = \"exec", &["timeout"]),
            ("webhook\"\nurl = \"https://a", &["timeout", "ca_file"]),
        ] {
            let bare = format!("[[sink]]\nkind = \"{kind}\"\n");
            let default = |name: &str| {
                let key = SINK_KEYS.iter().find(|key| key.name == format!("sink.{name}")).unwrap();
                format!("{name} = {}\n", key.default)
            };
            let spelled: String = keys.iter().copied().map(default).collect();
            assert_eq!(Config::parse(&bare), Config::parse(&(bare.clone() + &spelled)), "{spelled}");
        }
    }

    #[test]
    fn what_is_wrong_or_missing_is_named_with_its_sink() {
        for (text, key, said) in [
            ("kind = \"mail\"", "sink.kind", "of sink 1: is needed: \"syslog\""),
            ("", "sink.kind", "is needed"),
            ("kind = \"file\"", "sink.path", "is needed: an absolute path"),
            ("kind = \"file\"\npath = \"x\"", "sink.path", "must be an absolute path"),
            ("kind = \"exec\"\ncommand = [\"cat\"]", "sink.command", "must be a list of an absolute path"),
            ("kind = \"webhook\"\nurl = \"ftp://x\"", "sink.url", "must be an address"),
            ("kind = \"syslog\"\naddress = \"udp://x\"", "sink.address", "must be \"unix:PATH\""),
            ("kind = \"syslog\"\npath = \"/x\"", "sink.path", "not a known key"),
            ("kind = \"syslog\"\nname = \"A b\"", "sink.name", "must be 1 to 32"),
            ("kind = \"syslog\"\n[[sink]]\nkind = \"syslog\"", "sink.name", "two sinks are called `syslog`"),
        ] {
            let problems = Config::parse(&format!("[[sink]]\n{text}\n")).unwrap_err();
            assert_eq!((problems.len(), &*problems[0].key), (1, key), "{text}: {problems:?}");
            assert!(problems[0].text.contains(said), "{text}: {}", problems[0]);
        }
        let problems = Config::parse("sink = 1").unwrap_err();
        assert!(problems[0].text.contains("[[sink]]"));
        let nine = "[[sink]]\nkind = \"syslog\"\n".repeat(9);
        assert!(Config::parse(&nine).unwrap_err()[0].text.contains("at most 8"));
    }
}
