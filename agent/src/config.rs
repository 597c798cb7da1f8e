//! The operator's TOML file and environment to a [`Config`], with every problem reported at once.

mod budget;
mod contain;
mod keys;
mod overlay;
mod quarantine;
mod read;
mod reload;
mod sinks;
mod source;
mod update;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use agent_ebpf::watched::{Prefix, WATCHED_MAX};
use models::budget::{AlertBudget, Period};
use models::policy::Policy;
use models::program::ProgramId;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::clock::nanoseconds;
use crate::probe::ProbeOptions;
use crate::redact::WORDS;
pub use budget::BUDGET;
pub(crate) use budget::FOLLOWING;
pub use contain::{Action, CONTAIN_KEYS, ContainRule, RULES_MAX};
pub use keys::{Applied, ENVIRONMENT, Form, KEYS, Key, reference, template};
pub use overlay::{OVERLAY_FILE, Overlay};
pub use quarantine::QuarantineRule;
use read::Reader;
pub use read::environment;
pub(crate) use read::value_of;
pub use sinks::{SINK_KEYS, SINKS_MAX, SinkKind, SinkOptions, SyslogAddress};
pub use source::{Found, Source, SourceError};
pub use update::UpdateRule;

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
    /// Bytes that the agent and its maps may take; sizes that are not given follow from it.
    pub memory_budget: u64,
    /// Percent of one core that the agent may take before it gathers less evidence; `None` for any.
    pub cpu_budget: Option<u32>,
    /// What keeps them.
    pub outbox_engine: OutboxEngine,
    /// When a verdict becomes an alert.
    pub policy: Policy,
    /// False alarms that may be sent; `None` sends every verdict from MEDIUM on.
    pub alert_budget: Option<AlertBudget>,
    /// Percent of the windows of programs that are learned which the fleet is given. No part of a capture: no verdict depends on it.
    #[serde(skip)]
    pub samples: u32,
    /// Tools beside those of the feature schema whose start is evidence, by file name.
    pub lolbins: Vec<String>,
    /// Names whose values are taken out of command lines.
    pub redact: Vec<String>,
    /// Whether the device may be cut off, and what it reaches then. No part of a capture: no verdict depends on it.
    #[serde(skip)]
    pub quarantine: QuarantineRule,
    /// Whose program files it may be given. No part of a capture either.
    #[serde(skip)]
    pub update: UpdateRule,
    /// Sizes of the kernel's maps, caps, and watched directories.
    pub kernel: Kernel,
    /// What is done to programs that alarm.
    pub contain: Vec<ContainRule>,
    /// Where alerts go beside the fleet. No part of a capture: it may name secrets.
    #[serde(skip)]
    pub sinks: Vec<SinkOptions>,
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
            memory_budget: BUDGET,
            cpu_budget: Some(20),
            outbox_engine: OutboxEngine::Log,
            policy: Policy::default(),
            alert_budget: Some(AlertBudget { alerts: 10, per: Period::Day }),
            samples: 0,
            lolbins: Vec::new(),
            redact: WORDS.iter().map(|word| (*word).to_owned()).collect(),
            quarantine: QuarantineRule::default(),
            update: UpdateRule::default(),
            kernel: Kernel::default(),
            contain: Vec::new(),
            sinks: Vec::new(),
        }
    }
}

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
    /// Whether the program's executable, script or unit fits.
    #[must_use]
    pub fn fits(&self, program: &ProgramId) -> bool {
        let script = program.script.iter().any(|script| glob(&self.0, script));
        script || glob(&self.0, &program.exe) || glob(&self.0, &program.unit)
    }
}

/// One thing wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key or environment variable that it is about; empty when the file is no TOML.
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
        Self::read(text, &[])
    }

    /// Reads a configuration whose values are overridden by those of environment variables, see [`Key::variable`].
    ///
    /// # Errors
    /// As [`Config::parse`], and every variable that names no key.
    pub fn read(text: &str, environment: &[(String, String)]) -> Result<Self, Vec<Problem>> {
        Self::read_with(text, None, environment)
    }

    /// The same, with what the fleet says over what the text says.
    ///
    /// # Errors
    /// As [`Config::read`], and what the fleet may not say.
    pub fn read_with(
        text: &str,
        overlay: Option<&Overlay>,
        environment: &[(String, String)],
    ) -> Result<Self, Vec<Problem>> {
        let mut table = parse(text)?;
        if let Some(overlay) = overlay {
            overlay::put_over(&mut table, overlay.table()?);
        }
        let mut keys = Reader::new(table, environment);
        let mut budget = BUDGET;
        keys.size("memory_budget", &mut budget);
        let mut config = Self::within(budget);
        keys.words("state", &mut config.state, |_| true);
        keys.time("window", &mut config.window);
        let mut watch: Vec<String> = config.watch.iter().map(|pattern| pattern.0.clone()).collect();
        keys.words("watch", &mut watch, |list| {
            (1..=256).contains(&list.len()) && list.iter().all(|pattern| !pattern.is_empty())
        });
        config.watch = watch.into_iter().map(Pattern).collect();
        keys.time("heartbeat", &mut config.heartbeat);
        keys.number("programs_max", &mut config.programs_max);
        keys.number("processes_max", &mut config.processes_max);
        keys.size("models_max", &mut config.models_max);
        keys.size("outbox_max", &mut config.outbox_max);
        keys.share("cpu_budget", &mut config.cpu_budget);
        keys.engine("outbox_engine", &mut config.outbox_engine);
        keys.budget("alert_budget", &mut config.alert_budget);
        keys.number("samples", &mut config.samples);
        keys.words("lolbins", &mut config.lolbins, |list| {
            list.len() <= 64 && list.iter().all(|name| !name.is_empty() && !name.contains('/'))
        });
        keys.words("redact", &mut config.redact, |list| {
            list.len() <= 64 && list.iter().all(|word| !word.is_empty() && word.len() <= 64)
        });
        let (mut alerts, mut quarantine) = (keys.inner("alerts"), keys.inner("quarantine"));
        let (mut update, mut kernel) = (keys.inner("update"), keys.inner("kernel"));
        let (contain, sinks) = (keys.raw("contain"), keys.raw("sink"));
        let mut problems = keys.end();

        alerts.words("thresholds", &mut config.policy.thresholds, |[medium, high, critical]| {
            0.0 <= *medium && medium <= high && high <= critical && *critical <= 100.0
        });
        let mut dedup = Duration::from_nanos(config.policy.dedup_ns);
        alerts.time("dedup", &mut dedup);
        config.policy.dedup_ns = nanoseconds(dedup);
        alerts.number("per_minute", &mut config.policy.per_minute);
        problems.extend(alerts.end());

        config.quarantine.read(&mut quarantine);
        problems.extend(quarantine.end());
        config.update.read(&mut update);
        problems.extend(update.end());

        let into = &mut config.kernel;
        kernel.number("processes_max", &mut into.processes_max);
        kernel.number("grams_max", &mut into.grams_max);
        kernel.number("learned_max", &mut into.learned_max);
        kernel.number("dns_sockets_max", &mut into.dns_sockets_max);
        kernel.size("urgent_ring", &mut into.urgent_ring);
        kernel.size("bulk_ring", &mut into.bulk_ring);
        kernel.number("opens_max", &mut into.opens_max);
        kernel.number("connects_max", &mut into.connects_max);
        kernel.number("acts_max", &mut into.acts_max);
        kernel.words("traces", &mut into.traces, |list| {
            list.len() <= WATCHED_MAX && list.iter().all(|folder| Prefix::new(folder).is_some())
        });
        problems.extend(kernel.end());
        config.contain = contain::read(contain, &mut problems);
        config.sinks = sinks::read(sinks, &mut problems);
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
            deny_egress: self.quarantine.allowed
                || self.contain.iter().any(|rule| rule.action == Action::DenyEgress),
            ..ProbeOptions::new(own_tgid)
        }
    }

    /// Whether this program is learned and judged.
    #[must_use]
    pub fn watches(&self, program: &ProgramId) -> bool {
        self.watch.iter().any(|pattern| pattern.fits(program))
    }
}

/// A text as TOML, or the one problem that it is none.
fn parse(text: &str) -> Result<Table, Vec<Problem>> {
    text.parse::<Table>().map_err(|error| {
        vec![Problem { key: String::new(), text: format!("not TOML: {}", error.to_string().trim()) }]
    })
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
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
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
        let template = template();
        assert_eq!(Config::parse(&template), Ok(Config::default()));
        let uncomment = |line: &str| format!("{}\n", line.strip_prefix('#').unwrap_or(line));
        let keys: String = template.lines().filter(|line| !line.starts_with("# ")).map(uncomment).collect();
        let read = Config::parse(&keys).unwrap();
        assert_eq!(read.sinks.len(), 4, "an example of each kind");
        assert_eq!(read.contain.len(), 1);
        assert_eq!(Config { sinks: vec![], contain: vec![], ..read }, Config::default(), "{keys}");
        assert!(template.lines().all(|line| line.len() <= 120));
    }

    #[test]
    fn what_is_wrong_is_answered_with_the_form_in_the_table() {
        // Every key is asked for: a map is no value of any of them.
        for key in KEYS {
            let text = match key.name.split_once('.') {
                Some((table, name)) => format!("[{table}]\n{name} = {{}}\n"),
                None => format!("{} = {{}}\n", key.name),
            };
            let problems = Config::parse(&text).unwrap_err();
            assert_eq!((problems.len(), &*problems[0].key), (1, key.name));
            let said = &problems[0].text;
            let budget = key.name == "alert_budget" && said.contains("per device per");
            assert!(budget || *said == format!("must be {}", key.form), "{}: {said}", key.name);
        }
    }

    #[test]
    fn a_reload_applies_what_the_table_says() {
        for key in KEYS {
            let other = match key.form {
                Form::Number(min, max) => if key.default == min.to_string() { max } else { min }.to_string(),
                Form::Time(_, max) => format!("\"{max}s\""),
                Form::Size(min, _) | Form::Ring(min, _) => format!("\"{}KiB\"", min / 1024),
                Form::Words(_) => match key.name {
                    "state" => "\"/srv/other\"",
                    "alert_budget" | "cpu_budget" => "\"unlimited\"",
                    "alerts.thresholds" => "[1, 2, 3]",
                    "outbox_engine" if cfg!(feature = "sled") => "\"sled\"",
                    "outbox_engine" => continue,
                    "quarantine.allowed" => "true",
                    "quarantine.reachable" => "[\"192.0.2.7\"]",
                    "update.keys" => "[\"0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f\"]",
                    _ => "[\"/other\"]",
                }
                .replace("/other\"]", if key.name == "lolbins" { "other\"]" } else { "/other\"]" }),
            };
            let text = match key.name.split_once('.') {
                Some((table, name)) => format!("[{table}]\n{name} = {other}\n"),
                None => format!("{} = {other}\n", key.name),
            };
            let new = Config::parse(&text).unwrap();
            if key.name == "memory_budget" {
                assert!(Config::default().differing(&new).len() > 1, "others follow from it");
                continue;
            }
            assert_eq!(Config::default().differing(&new), [key.name], "{text}");
            let applied =
                if Config::default().reloaded(&new) == new { Applied::Reload } else { Applied::Restart };
            assert_eq!(applied, key.applied, "{}", key.name);
        }
        let new = Config::parse("[[sink]]\nkind = \"syslog\"\n").unwrap();
        assert_eq!(Config::default().reloaded(&new), new);
    }

    #[test]
    fn the_environment_overrides_the_file_and_is_named_when_it_is_wrong() {
        let environment = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let given = environment(&[
            ("BEHAVEGUARD_WINDOW", "5s"),
            ("BEHAVEGUARD_KERNEL_ACTS_MAX", "7"),
            ("BEHAVEGUARD_LOLBINS", "[\"rclone\"]"),
        ]);
        let config = Config::read("window = \"6s\"\nheartbeat = \"7s\"\n", &given).unwrap();
        assert_eq!((config.window, config.heartbeat), (Duration::from_secs(5), Duration::from_secs(7)));
        assert_eq!((config.kernel.acts_max, &config.lolbins[..]), (7, &["rclone".to_owned()][..]));
        let wrong = environment(&[("BEHAVEGUARD_ALERTS_DEDUP", "soon"), ("BEHAVEGUARD_WINDW", "5s")]);
        let problems = Config::read("", &wrong).unwrap_err();
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(told[0].starts_with("`BEHAVEGUARD_WINDW`: no key of the configuration has this name; the nearest is BEHAVEGUARD_WINDOW"), "{told:?}");
        assert!(told[1].starts_with("`BEHAVEGUARD_ALERTS_DEDUP`: must be a time from 0s to 1d"), "{told:?}");
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
    fn a_key_below_a_section_that_belongs_above_it_is_told_so() {
        let told = |text: &str| Config::parse(text).unwrap_err()[0].to_string();
        let misplaced = told("[kernel]\nwatch = [\"/usr/bin/pump\"]");
        assert!(misplaced.contains("`watch` stands before the first [section]"), "{misplaced}");
        assert!(told("[kernel]\nwacth = 1").contains("--print"));
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
    fn patterns_fit_executables_or_scripts_or_units() {
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
        let program = ProgramId { script: Some("/usr/local/bin/pump".into()), ..program };
        assert!(Pattern("*/pump".into()).fits(&program) && !Pattern("*/pumps".into()).fits(&program));
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
