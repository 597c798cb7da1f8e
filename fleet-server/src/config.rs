//! The operator's TOML file to a [`Config`], with every problem reported at once.

mod oidc;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use models::train::WINDOWS_MIN;
use toml::{Table, Value};

pub use oidc::OidcConfig;

/// Everything the operator can choose. Defaults are good for one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where devices connect. Port 0 takes a free one.
    pub mqtt: SocketAddr,
    /// Where people and enrolling devices connect.
    pub web: SocketAddr,
    /// The host name or address told to devices; by default what `mqtt` and `web` listen on.
    pub public_host: Option<String>,
    /// Host names and addresses in the server's certificate, besides `public_host`.
    pub names: Vec<String>,
    /// Windows needed before a program's first baseline is trained.
    pub learn_windows: u32,
    /// Windows kept per device and program; more drops the oldest.
    pub windows_max: u32,
    /// Programs learned per device; the windows of further ones are dropped.
    pub programs_max: u32,
    /// Alerts kept; more drops the oldest.
    pub alerts_max: u32,
    /// Events kept; more drops the oldest.
    pub events_max: u32,
    /// Captures of devices that are kept, each of 8 MiB at most; more drops the oldest.
    pub captures_max: u32,
    /// A device whose last heartbeat is older is silent, in seconds.
    pub silent_after_s: u32,
    /// Devices connected at once.
    pub mqtt_connections_max: u32,
    /// Web connections at once.
    pub web_connections_max: u32,
    /// How long a bundle is valid, in days.
    pub bundle_days: u32,
    /// How long a device's certificate is valid, in hours; the device renews it when two thirds have passed.
    pub certificate_hours: u32,
    /// Entries of the audit log that are kept; more drops the oldest.
    pub audit_max: u32,
    /// Requests that one client may make in a minute.
    pub requests_per_minute: u32,
    /// Alerts, events and entries of the audit log that are older are dropped, in days.
    pub retain_days: Option<u32>,
    /// The broker that devices connect to instead of to this server.
    pub external: Option<External>,
    /// The address of the PostgreSQL server that has the data instead of a file.
    pub postgres: Option<String>,
    /// The file of the key that signs baselines and orders, when it is not in the state folder.
    pub signing_key: Option<PathBuf>,
    /// Where people sign in, beside those who have a token.
    pub oidc: Option<OidcConfig>,
}

/// A broker of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Its host name or address, as its certificate has it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether it has shared subscriptions, so that several servers share the load.
    pub shared: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mqtt: SocketAddr::from(([127, 0, 0, 1], 8883)),
            web: SocketAddr::from(([127, 0, 0, 1], 8443)),
            public_host: None,
            names: ["localhost", "127.0.0.1", "::1"].map(Into::into).to_vec(),
            learn_windows: 240,
            windows_max: 4096,
            programs_max: 512,
            alerts_max: 1_000_000,
            events_max: 100_000,
            captures_max: 64,
            silent_after_s: 180,
            mqtt_connections_max: 2048,
            web_connections_max: 256,
            bundle_days: 365,
            certificate_hours: 720,
            audit_max: 1_000_000,
            requests_per_minute: 100,
            retain_days: None,
            external: None,
            postgres: None,
            signing_key: None,
            oidc: None,
        }
    }
}

/// One thing wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key it is about; empty when the file is no TOML.
    pub key: String,
    /// What is wrong and what would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() { f.write_str(&self.text) } else { write!(f, "`{}`: {}", self.key, self.text) }
    }
}

impl Config {
    /// Reads a configuration; missing keys keep their defaults.
    ///
    /// # Errors
    /// Every unknown key, wrong type and value out of range.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let table = text.parse::<Table>().map_err(|error| {
            vec![Problem { key: String::new(), text: format!("not TOML: {}", error.message()) }]
        })?;
        let mut reader = Reader { table, problems: Vec::new() };
        let mut config = Self::default();
        reader.address("mqtt", &mut config.mqtt);
        reader.address("web", &mut config.web);
        if let Some(host) = reader.text("public_host") {
            config.public_host = Some(host);
        }
        reader.names("names", &mut config.names);
        reader.number("learn_windows", WINDOWS_MIN as u32, 100_000, &mut config.learn_windows);
        reader.number("windows_max", 20, 100_000, &mut config.windows_max);
        reader.number("programs_max", 1, 10_000, &mut config.programs_max);
        reader.number("alerts_max", 100, 100_000_000, &mut config.alerts_max);
        reader.number("events_max", 100, 10_000_000, &mut config.events_max);
        reader.number("captures_max", 1, 10_000, &mut config.captures_max);
        reader.number("silent_after_s", 3, 604_800, &mut config.silent_after_s);
        reader.number("mqtt_connections_max", 1, 1_000_000, &mut config.mqtt_connections_max);
        reader.number("web_connections_max", 1, 100_000, &mut config.web_connections_max);
        reader.number("bundle_days", 1, 3650, &mut config.bundle_days);
        reader.number("certificate_hours", 1, 87_600, &mut config.certificate_hours);
        reader.number("audit_max", 1000, 100_000_000, &mut config.audit_max);
        reader.number("requests_per_minute", 1, 1_000_000, &mut config.requests_per_minute);
        if reader.table.contains_key("retain_days") {
            let mut days = 0;
            reader.number("retain_days", 1, 36_500, &mut days);
            config.retain_days = Some(days);
        }
        config.external = reader.broker();
        config.postgres = reader.store();
        config.signing_key = reader.path("signing_key");
        config.oidc = reader.oidc();
        reader.unknown();
        if config.windows_max < config.learn_windows {
            let text = format!("must be at least learn_windows ({})", config.learn_windows);
            reader.problems.push(Problem { key: "windows_max".into(), text });
        }
        if reader.problems.is_empty() { Ok(config) } else { Err(reader.problems) }
    }

    /// How long a device's certificate is valid.
    #[must_use]
    pub fn certificate_life(&self) -> Duration {
        Duration::from_secs(u64::from(self.certificate_hours) * 3600)
    }

    /// The host told to devices for something that listens on `bound`.
    #[must_use]
    pub fn host_for(&self, bound: SocketAddr) -> String {
        let host = match &self.public_host {
            Some(host) => host.clone(),
            None if bound.ip().is_unspecified() => "localhost".into(),
            None => bound.ip().to_string(),
        };
        host_and_port(&host, bound.port())
    }

    /// All names for the server's certificate, each once.
    #[must_use]
    pub fn certificate_names(&self) -> Vec<String> {
        let mut names = self.names.clone();
        names.extend(self.public_host.clone());
        for bound in [self.mqtt, self.web] {
            if !bound.ip().is_unspecified() {
                names.push(bound.ip().to_string());
            }
        }
        names.sort();
        names.dedup();
        names
    }
}

/// As one writes them together.
#[must_use]
pub fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

struct Reader {
    table: Table,
    problems: Vec<Problem>,
}

impl Reader {
    fn problem(&mut self, key: &str, text: impl Into<String>) {
        self.problems.push(Problem { key: key.into(), text: text.into() });
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.table.remove(key)? {
            Value::String(text) if is_host(&text) => Some(text),
            _ => {
                self.problem(key, "must be a host name or an address in quotes");
                None
            }
        }
    }

    fn path(&mut self, key: &str) -> Option<PathBuf> {
        match self.table.remove(key)? {
            Value::String(text) if text.starts_with('/') => Some(text.into()),
            _ => {
                self.problem(key, "must be an absolute path in quotes, e.g. \"/media/key/fleet.key\"");
                None
            }
        }
    }

    fn address(&mut self, key: &str, into: &mut SocketAddr) {
        let Some(value) = self.table.remove(key) else { return };
        match value.as_str().and_then(|text| text.parse().ok()) {
            Some(address) => *into = address,
            None => self.problem(key, "must be an address and a port in quotes, e.g. \"0.0.0.0:8883\""),
        }
    }

    fn number(&mut self, key: &str, min: u32, max: u32, into: &mut u32) {
        let Some(value) = self.table.remove(key) else { return };
        match value.as_integer().and_then(|value| u32::try_from(value).ok()) {
            Some(value) if (min..=max).contains(&value) => *into = value,
            _ => self.problem(key, format!("must be a whole number from {min} to {max}")),
        }
    }

    fn store(&mut self) -> Option<String> {
        let form = "a table: [store] and below it postgres = \"postgres://USER:PASSWORD@HOST/NAME\"";
        let mut keys = self.inner("store", form)??;
        let address = match keys.table.remove("postgres") {
            Some(Value::String(address)) if address.starts_with("postgres://") => Some(address),
            _ => {
                let text = "must be an address in quotes, e.g. \"postgres://fleet:PASSWORD@db.example.org/fleet?sslmode=require\"";
                keys.problem("postgres", text);
                None
            }
        };
        self.take_problems("store", keys);
        address
    }

    fn broker(&mut self) -> Option<External> {
        let form = "a table: [broker] and below it external = \"mqtts://HOST:PORT\"";
        let mut keys = self.inner("broker", form)??;
        let shared = match keys.table.remove("shared") {
            None => true,
            Some(Value::Boolean(shared)) => shared,
            Some(_) => {
                keys.problem("shared", "must be true or false");
                true
            }
        };
        let url = keys.table.remove("external");
        let parsed = url.as_ref().and_then(Value::as_str).and_then(broker_address);
        if parsed.is_none() {
            keys.problem(
                "external",
                "must be an address in quotes, e.g. \"mqtts://broker.example.org:8883\"",
            );
        }
        self.take_problems("broker", keys);
        parsed.map(|(host, port)| External { host, port, shared })
    }

    /// A table in this one: nothing when it is missing, `None` in it when it is no table.
    #[allow(clippy::option_option, reason = "two ways of not being there that lead to different problems")]
    fn inner(&mut self, key: &str, form: &str) -> Option<Option<Self>> {
        match self.table.remove(key)? {
            Value::Table(table) => Some(Some(Self { table, problems: Vec::new() })),
            _ => {
                self.problem(key, format!("must be {form}"));
                Some(None)
            }
        }
    }

    /// What was wrong in a table in this one.
    fn take_problems(&mut self, table: &str, mut of: Self) {
        of.unknown();
        for Problem { key, text } in of.problems {
            self.problem(&format!("{table}.{key}"), text);
        }
    }

    /// What nobody took.
    fn unknown(&mut self) {
        for key in self.table.keys() {
            self.problems.push(Problem { key: key.clone(), text: "not a known key".into() });
        }
    }

    fn names(&mut self, key: &str, into: &mut Vec<String>) {
        let Some(value) = self.table.remove(key) else { return };
        let list = value.as_array().and_then(|list| {
            let texts = list.iter().map(|name| name.as_str().map(str::to_string));
            texts.collect::<Option<Vec<_>>>()
        });
        match list {
            Some(list) if (1..=64).contains(&list.len()) && list.iter().all(|name| is_host(name)) => {
                *into = list;
            }
            _ => self.problem(key, "must be a list of 1 to 64 host names or addresses in quotes"),
        }
    }
}

/// `mqtts://HOST[:PORT]`; an IPv6 address in brackets.
fn broker_address(url: &str) -> Option<(String, u16)> {
    let rest = url.strip_prefix("mqtts://")?;
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(8883), |port| port.parse().ok().filter(|port| *port > 0))?;
    is_host(host).then(|| (host.to_owned(), port))
}

/// Whether it is a host name or an address.
#[must_use]
pub fn is_host(text: &str) -> bool {
    let name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    text.parse::<std::net::IpAddr>().is_ok()
        || ((1..=253).contains(&text.len()) && text.bytes().all(name) && !text.starts_with(['-', '.']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_at_once() {
        let problems =
            Config::parse("mqtt = 5\nlearn_windows = 3\nlern = 1\nnames = [\"a b\"]\npublic_host = \"x/y\"")
                .unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["mqtt", "public_host", "names", "learn_windows", "lern"]);
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Config::parse(""), Ok(Config::default()));
        let config = Config::parse("web = \"0.0.0.0:0\"\nlearn_windows = 60").unwrap();
        assert_eq!((config.web.port(), config.learn_windows), (0, 60));
        assert_eq!(config.host_for("0.0.0.0:7".parse().unwrap()), "localhost:7");
        assert_eq!(config.host_for("[::1]:7".parse().unwrap()), "[::1]:7");
    }

    #[test]
    fn a_broker_of_others_is_named_by_its_address() {
        let external = |text: &str| Config::parse(&format!("[broker]\n{text}")).map(|config| config.external);
        let is = |host: &str, port, shared| Ok(Some(External { host: host.into(), port, shared }));
        assert_eq!(external("external = \"mqtts://b.example\""), is("b.example", 8883, true));
        assert_eq!(external("external = \"mqtts://[::1]:1\"\nshared = false"), is("::1", 1, false));
        for bad in ["mqtt://b", "mqtts://b:0", "mqtts://b:x", "mqtts://", "mqtts://b/c", "mqtts://[::1"] {
            assert_eq!(
                external(&format!("external = {bad:?}")).unwrap_err()[0].key,
                "broker.external",
                "{bad}"
            );
        }
        assert_eq!(external("shared = 1\nother = 1").unwrap_err().len(), 3);
        let store = Config::parse("[store]\npostgres = \"postgres://a@b/c\"").unwrap().postgres;
        assert_eq!(store.as_deref(), Some("postgres://a@b/c"));
        assert_eq!(Config::parse("[store]\npostgres = \"b\"\nfile = 1").unwrap_err().len(), 2);
        assert_eq!(Config::parse("broker = 1").unwrap_err()[0].key, "broker");
    }

    #[test]
    fn a_file_that_is_no_toml_says_so() {
        assert_eq!(Config::parse("= 1").unwrap_err()[0].key, "");
    }
}
