//! The operator's TOML file to a [`Config`], with every problem reported at once.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use agent_ebpf::watched::{Prefix, WATCHED_MAX};
use models::budget::{AlertBudget, BudgetError, Period};
use models::policy::Policy;
use models::program::ProgramId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::clock::nanoseconds;
use crate::probe::ProbeOptions;

/// Where the file is looked for.
pub const DEFAULT_PATH: &str = "/etc/behaveguard/agent.toml";

/// Everything the operator can choose. Defaults fit a gateway with 256 MB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Keys, baselines and the outbox.
    pub state: PathBuf,
    /// Length of a window.
    pub window: Duration,
    /// Programs that are learned and judged.
    pub watch: Vec<Pattern>,
    /// How often the fleet is told about this device.
    pub heartbeat: Duration,
    /// Programs remembered; the processes of further ones are not judged.
    pub programs_max: u32,
    /// Processes remembered; further ones are not judged.
    pub processes_max: u32,
    /// Bytes of messages kept while the link is down; one more drops the oldest.
    pub outbox_max: u64,
    /// Bytes of models in memory.
    pub models_max: u64,
    /// What keeps them.
    pub outbox_engine: OutboxEngine,
    /// When a verdict becomes an alert.
    pub policy: Policy,
    /// False alarms that may be sent; `None` sends every verdict from MEDIUM on.
    pub alert_budget: Option<AlertBudget>,
    /// Tools beside those of the feature schema whose start is evidence, by file name.
    pub lolbins: Vec<String>,
    /// Sizes of the kernel's maps, caps, and watched directories.
    pub kernel: Kernel,
}

/// Sizes of the kernel's maps, what one process may report per window, and directories whose files keep traces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Processes that make calls between two drains; further ones are counted, not seen.
    pub processes_max: u32,
    /// Grams of all tables together; a table without room is not used.
    pub grams_max: u32,
    /// Grams of learning processes between two drains; further ones are counted, not learned.
    pub learned_max: u32,
    /// Sockets connected to port 53; the one not used for longest goes.
    pub dns_sockets_max: u32,
    /// Bytes of the ring of urgent records, a power of two.
    pub urgent_ring: u64,
    /// Bytes of the ring of bulk records, a power of two.
    pub bulk_ring: u64,
    /// Ordinary opens that one process may report per window.
    pub opens_max: u32,
    /// Connections and sensitive opens that one process may report per window.
    pub connects_max: u32,
    /// Records of each rare class that one process may report per window.
    pub acts_max: u32,
    /// Directories whose files nobody should remove, empty or redate.
    pub traces: Vec<String>,
}

impl Default for Kernel {
    fn default() -> Self {
        let options = ProbeOptions::new(0);
        Self {
            processes_max: options.windows,
            grams_max: options.grams,
            learned_max: options.learned,
            dns_sockets_max: options.dns_sockets,
            urgent_ring: options.urgent_bytes.into(),
            bulk_ring: options.bulk_bytes.into(),
            opens_max: options.bulk_cap,
            connects_max: options.urgent_cap,
            acts_max: options.act_cap,
            traces: options.watched,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state: "/var/lib/behaveguard".into(),
            window: Duration::from_secs(30),
            watch: vec![Pattern("*".into())],
            heartbeat: Duration::from_secs(60),
            programs_max: 256,
            processes_max: 4096,
            outbox_max: 32 * 1024 * 1024,
            models_max: 20 * 1024 * 1024,
            outbox_engine: OutboxEngine::Log,
            policy: Policy::default(),
            alert_budget: Some(AlertBudget { alerts: 10, per: Period::Day }),
            lolbins: Vec::new(),
            kernel: Kernel::default(),
        }
    }
}

/// What `behaveguard init` writes: every key with its default, its unit and its range.
pub const TEMPLATE: &str = r#"# BehaveGuard agent. Every key is optional; these are the defaults.

# Keys, baselines and messages that wait for the fleet. Survives restarts.
#state = "/var/lib/behaveguard"

# Length of a window: 1s to 50s. A baseline is only good for the length that it was learned with.
#window = "30s"

# Programs to learn and judge: executable paths or systemd units; * stands for any characters.
#watch = ["*"]

# How often the fleet is told about this device: 1s to 1h.
#heartbeat = "60s"

# Programs remembered, 1 to 4096. The processes of further ones are counted, not judged.
#programs_max = 256

# Processes remembered, 16 to 65536. Further ones are counted, not judged.
#processes_max = 4096

# Room for messages that wait for the fleet, 64KiB to 4GiB (some 700 bytes an alert). When it is full, the oldest goes.
#outbox_max = "32MiB"

# Room in memory for the models of all baselines together, 1MiB to 1GiB. The ones unused longest make room, and are read
# again when their program is judged.
#models_max = "20MiB"

# What keeps them: "log", or "sled" in builds with the feature of that name.
#outbox_engine = "log"

# False alarms of the statistical detectors that may be sent: "unlimited", or "N per device per hour", day, week or month
# (30 days), N up to 10000. Only verdicts that this many normal windows may reach are sent; `status` shows from which
# p-value. First-time acts that are MEDIUM by themselves are sent under any budget. "unlimited" sends every verdict from
# MEDIUM on: one normal window in a hundred may reach it.
#alert_budget = "10 per device per day"

# Further tools whose start is evidence, by file name, such as "rclone"; up to 64. wget, curl, python, nc and the like
# are watched always.
#lolbins = []

[alerts]
# Scores (0 to 100) from which a verdict is MEDIUM, HIGH and CRITICAL, ascending.
#thresholds = [40, 70, 90]

# The same program and reason again within this time is one alert: 0s to 24h.
#dedup = "300s"

# Alerts a minute over all programs, 1 to 1000. CRITICAL ones have as many again.
#per_minute = 10

[kernel]
# Sizes of the kernel's maps; `behaveguard doctor` shows what they cost. What finds no room is counted, see `status`.
# Processes that make calls within one window, 64 to 65536.
#processes_max = 2048

# Calls in order, six at a time, in the tables of all baselines together, 1024 to 4194304.
#grams_max = 65536

# The same of programs that are being learned, within one window, 1024 to 4194304.
#learned_max = 16384

# Sockets connected to port 53, 16 to 65536. When it is full, the one not used for longest goes.
#dns_sockets_max = 1024

# Rings of records, 64KiB to 256MiB, a power of two.
#urgent_ring = "256KiB"
#bulk_ring = "1MiB"

# What one process may report within one window, 1 to 1000000: ordinary opens; connections and sensitive opens; records
# of each rare class, such as injection. The rest is counted, as `throttled`.
#opens_max = 256
#connects_max = 512
#acts_max = 256

# Folders whose files keep traces: removing, emptying or redating one is evidence. Up to 8, each below 64 bytes.
#traces = ["/var/log", "/run/log"]
"#;

/// What keeps the messages that wait for the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutboxEngine {
    /// Segment files of our own.
    Log,
    /// sled; only in builds with that feature.
    #[cfg(feature = "sled")]
    Sled,
}

/// A program pattern: `*` stands for any characters, everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pattern(pub String);

impl Pattern {
    /// Whether the program's executable or unit fits.
    #[must_use]
    pub fn fits(&self, program: &ProgramId) -> bool {
        glob(&self.0, &program.exe) || glob(&self.0, &program.unit)
    }
}

/// [`TEMPLATE`] with every key in force.
pub(crate) fn spelled_out() -> String {
    let key =
        |line: &'static str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
    TEMPLATE.lines().map(|line| format!("{}\n", key(line))).collect()
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
            vec![Problem { key: String::new(), text: format!("not TOML: {}", error.to_string().trim()) }]
        })?;
        let mut config = Self::default();
        let mut keys = Keys { table, prefix: "", problems: Vec::new() };
        keys.value("state", "a path in quotes", &mut config.state, |_| true);
        keys.duration("window", 1, 50, &mut config.window);
        let mut watch: Vec<String> = config.watch.iter().map(|pattern| pattern.0.clone()).collect();
        keys.value(
            "watch",
            "a list of 1 to 256 patterns in quotes, none of them empty",
            &mut watch,
            |list| (1..=256).contains(&list.len()) && list.iter().all(|pattern| !pattern.is_empty()),
        );
        config.watch = watch.into_iter().map(Pattern).collect();
        keys.duration("heartbeat", 1, 3600, &mut config.heartbeat);
        keys.number("programs_max", 1, 4096, &mut config.programs_max);
        keys.number("processes_max", 16, 65_536, &mut config.processes_max);
        keys.size("models_max", 1024 * 1024, 1024 * 1024 * 1024, &mut config.models_max);
        keys.size("outbox_max", 64 * 1024, 4 * 1024 * 1024 * 1024, &mut config.outbox_max);
        keys.engine("outbox_engine", &mut config.outbox_engine);
        keys.budget("alert_budget", &mut config.alert_budget);
        keys.value(
            "lolbins",
            "a list of up to 64 file names in quotes, without folders",
            &mut config.lolbins,
            |list| list.len() <= 64 && list.iter().all(|name| !name.is_empty() && !name.contains('/')),
        );
        let alerts = keys.table("alerts");
        let kernel = keys.table("kernel");
        let mut problems = keys.rest();

        let mut keys = Keys { table: alerts, prefix: "alerts.", problems: Vec::new() };
        keys.value(
            "thresholds",
            "three ascending numbers from 0 to 100",
            &mut config.policy.thresholds,
            |[medium, high, critical]| {
                0.0 <= *medium && medium <= high && high <= critical && *critical <= 100.0
            },
        );
        let mut dedup = Duration::from_nanos(config.policy.dedup_ns);
        keys.duration("dedup", 0, 86_400, &mut dedup);
        config.policy.dedup_ns = nanoseconds(dedup);
        keys.number("per_minute", 1, 1000, &mut config.policy.per_minute);
        problems.extend(keys.rest());

        let mut keys = Keys { table: kernel, prefix: "kernel.", problems: Vec::new() };
        let kernel = &mut config.kernel;
        keys.number("processes_max", 64, 65_536, &mut kernel.processes_max);
        keys.number("grams_max", 1024, 4_194_304, &mut kernel.grams_max);
        keys.number("learned_max", 1024, 4_194_304, &mut kernel.learned_max);
        keys.number("dns_sockets_max", 16, 65_536, &mut kernel.dns_sockets_max);
        keys.ring("urgent_ring", &mut kernel.urgent_ring);
        keys.ring("bulk_ring", &mut kernel.bulk_ring);
        keys.number("opens_max", 1, 1_000_000, &mut kernel.opens_max);
        keys.number("connects_max", 1, 1_000_000, &mut kernel.connects_max);
        keys.number("acts_max", 1, 1_000_000, &mut kernel.acts_max);
        let form = format!("a list of up to {WATCHED_MAX} absolute folders in quotes, each below 64 bytes");
        keys.value("traces", &form, &mut kernel.traces, |list| {
            list.len() <= WATCHED_MAX && list.iter().all(|folder| Prefix::new(folder).is_some())
        });
        problems.extend(keys.rest());
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// How to load the kernel part.
    #[must_use]
    pub fn probe(&self, own_tgid: u32) -> ProbeOptions {
        let kernel = &self.kernel;
        // The ranges keep both far below.
        let bytes = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
        ProbeOptions {
            own_tgid,
            windows: kernel.processes_max,
            grams: kernel.grams_max,
            learned: kernel.learned_max,
            dns_sockets: kernel.dns_sockets_max,
            urgent_bytes: bytes(kernel.urgent_ring),
            bulk_bytes: bytes(kernel.bulk_ring),
            bulk_cap: kernel.opens_max,
            urgent_cap: kernel.connects_max,
            act_cap: kernel.acts_max,
            watched: kernel.traces.clone(),
            ..ProbeOptions::new(own_tgid)
        }
    }

    /// Whether this program is learned and judged.
    #[must_use]
    pub fn watches(&self, program: &ProgramId) -> bool {
        self.watch.iter().any(|pattern| pattern.fits(program))
    }
}

/// A table whose keys are taken out one by one; what is left was not known.
struct Keys {
    table: Table,
    prefix: &'static str,
    problems: Vec<Problem>,
}

impl Keys {
    fn problem(&mut self, key: &str, text: String) {
        self.problems.push(Problem { key: format!("{}{key}", self.prefix), text });
    }

    fn value<T: DeserializeOwned>(&mut self, key: &str, form: &str, into: &mut T, good: impl Fn(&T) -> bool) {
        let Some(value) = self.table.remove(key) else { return };
        match value.try_into::<T>() {
            Ok(value) if good(&value) => *into = value,
            _ => self.problem(key, format!("must be {form}")),
        }
    }

    fn number(&mut self, key: &str, min: u32, max: u32, into: &mut u32) {
        let form = format!("a whole number from {min} to {max}");
        self.value(key, &form, into, |n| (min..=max).contains(n));
    }

    fn duration(&mut self, key: &str, min_s: u64, max_s: u64, into: &mut Duration) {
        let Some(value) = self.table.remove(key) else { return };
        let range = Duration::from_secs(min_s)..=Duration::from_secs(max_s);
        match value.as_str().and_then(parse_duration) {
            Some(value) if range.contains(&value) => *into = value,
            _ => {
                self.problem(
                    key,
                    format!("must be a time from {min_s}s to {max_s}s, e.g. \"30s\" or \"5m\""),
                );
            }
        }
    }

    fn size(&mut self, key: &str, min: u64, max: u64, into: &mut u64) {
        let Some(value) = self.table.remove(key) else { return };
        match value.as_str().and_then(parse_size) {
            Some(value) if (min..=max).contains(&value) => *into = value,
            _ => {
                let (min, max) = (min / 1024, max / 1024 / 1024);
                self.problem(key, format!("must be a size from {min}KiB to {max}MiB, e.g. \"32MiB\""));
            }
        }
    }

    fn ring(&mut self, key: &str, into: &mut u64) {
        let before = *into;
        self.size(key, 64 * 1024, 256 * 1024 * 1024, into);
        if !into.is_power_of_two() {
            *into = before;
            self.problem(key, "must be a power of two, e.g. \"512KiB\" or \"1MiB\"".into());
        }
    }

    fn engine(&mut self, key: &str, into: &mut OutboxEngine) {
        let Some(value) = self.table.remove(key) else { return };
        match value.as_str() {
            Some("log") => *into = OutboxEngine::Log,
            #[cfg(feature = "sled")]
            Some("sled") => *into = OutboxEngine::Sled,
            _ if cfg!(feature = "sled") => self.problem(key, "must be \"log\" or \"sled\"".into()),
            _ => self.problem(key, "must be \"log\"; this build has no other engine".into()),
        }
    }

    fn budget(&mut self, key: &str, into: &mut Option<AlertBudget>) {
        let Some(value) = self.table.remove(key) else { return };
        match value.as_str() {
            Some("unlimited") => *into = None,
            Some(text) => match text.parse() {
                Ok(budget) => *into = Some(budget),
                Err(error) => self.problem(key, format!("{error}, or \"unlimited\"")),
            },
            None => self.problem(key, format!("{}, or \"unlimited\"", BudgetError::Form)),
        }
    }

    fn table(&mut self, key: &str) -> Table {
        let mut table = Table::new();
        self.value(key, "a table", &mut table, |_| true);
        table
    }

    fn rest(mut self) -> Vec<Problem> {
        let unknown: Vec<String> = self.table.keys().cloned().collect();
        for key in unknown {
            self.problem(&key, "not a known key; `behaveguard init --print` shows all".into());
        }
        self.problems
    }
}

/// A whole number with `ms`, `s`, `m`, `h` or `d`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

/// A whole number with `KiB`, `MiB` or `GiB`.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit_bytes = match unit {
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        "GiB" => 1024 * 1024 * 1024,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_bytes)
}

/// Greedy matching of `*`, without recursion: on a mismatch the last `*` takes one more byte.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_at_once() {
        let text = "window = \"2h\"\nwatch = []\nwacht = 1\nprograms_max = \"many\"\n\
                    [alerts]\nthresholds = [90, 70, 40]\nper_minut = 1";
        let keys: Vec<_> = Config::parse(text).unwrap_err().into_iter().map(|problem| problem.key).collect();
        assert_eq!(
            keys,
            ["window", "watch", "programs_max", "wacht", "alerts.thresholds", "alerts.per_minut"]
        );
    }

    #[test]
    fn the_template_holds_every_key_with_its_default() {
        assert_eq!(Config::parse(TEMPLATE), Ok(Config::default()));
        let uncommented = spelled_out();
        assert_eq!(Config::parse(&uncommented), Ok(Config::default()));
        assert_eq!(uncommented.lines().filter(|line| line.contains(" = ")).count(), 24);
    }

    #[test]
    fn sizes_of_the_kernels_maps_are_checked() {
        let text = "[kernel]\nurgent_ring = \"300KiB\"\ntraces = [\"log\"]\nacts_max = 0\ngrams_max = 2048";
        let problems = Config::parse(text).unwrap_err();
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["kernel.urgent_ring", "kernel.acts_max", "kernel.traces"]);
        let config = Config::parse("[kernel]\nbulk_ring = \"2MiB\"\ntraces = [\"/srv/log\"]").unwrap();
        let options = config.probe(7);
        assert_eq!((options.bulk_bytes, options.watched), (2 * 1024 * 1024, vec!["/srv/log".to_owned()]));
    }

    #[test]
    fn a_budget_is_taken_or_refused_with_the_reason() {
        let budget = |text: &str| Config::parse(&format!("alert_budget = {text}")).map(|c| c.alert_budget);
        assert_eq!(budget("\"unlimited\""), Ok(None));
        assert_eq!(budget("\"1 per device per week\""), Ok("1 per device per week".parse().ok()));
        for (text, reason) in
            [("\"0 per device per day\"", "silence"), ("1", "must be like"), ("\"\"", "unlimited")]
        {
            let problems = budget(text).unwrap_err();
            assert!(problems[0].text.contains(reason), "{}", problems[0]);
        }
    }

    #[test]
    fn a_file_that_is_no_toml_says_so() {
        assert!(Config::parse("= 1").unwrap_err()[0].text.starts_with("not TOML"));
    }

    #[test]
    fn patterns_fit_executables_or_units() {
        let program = ProgramId { unit: "gw.service".into(), exe: "/usr/bin/gw-core".into(), script: None };
        for (pattern, fits) in [
            ("*", true),
            ("gw.service", true),
            ("/usr/bin/gw*", true),
            ("/usr/*/gw-*re", true),
            ("gw", false),
            ("/usr/bin/gw", false),
            ("*x*", false),
        ] {
            assert_eq!(Pattern(pattern.into()).fits(&program), fits, "{pattern}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(parse_duration("5m"), Some(Duration::from_secs(300)));
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        for bad in ["5", "m", "", "5 m", "-1s", "99999999999999999999s", "1.5s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
