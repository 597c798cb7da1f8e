//! What is told about each variant, for people and as JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sandbox::Problem;
use super::table::{Act, Sign, Threat, Variant};

/// How a variant ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "snake_case")]
pub enum Outcome {
    /// It was done, which was proven.
    Done,
    /// This machine lacks something.
    Skipped(String),
    /// It should have been done and was not.
    Failed(String),
}

impl Outcome {
    /// Missing things are no failures.
    #[must_use]
    pub fn of(problem: &Problem) -> Self {
        match problem {
            Problem::Needs(_) => Self::Skipped(problem.to_string()),
            other => Self::Failed(models::chain::chain(other)),
        }
    }
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// What the attacker wants.
    pub threat: String,
    /// The way.
    pub variant: String,
    /// ATT&CK.
    pub techniques: Vec<String>,
    /// The acting process; it, or one that it started, does what is expected.
    pub pid: Option<u32>,
    /// Its parent.
    pub ppid: Option<u32>,
    /// What it runs.
    pub executable: Option<PathBuf>,
    /// The layer that must see it.
    pub layer: String,
    /// Every record that must be there; see [`Sign`].
    pub expected: Vec<Value>,
    /// What is expected, in words.
    pub alert: String,
    /// What happens and is not reported, of an evasion.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<Value>,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Report {
    /// Of a variant that was not begun.
    #[must_use]
    pub fn new(threat: &Threat, variant: &Variant) -> Self {
        Self {
            threat: threat.name.into(),
            variant: variant.name.into(),
            techniques: variant.techniques.iter().map(|&technique| technique.into()).collect(),
            pid: None,
            ppid: None,
            executable: None,
            layer: variant.layer.into(),
            expected: Vec::new(),
            hidden: Vec::new(),
            alert: String::new(),
            outcome: Outcome::Failed("it ended without a report".into()),
        }
    }

    /// `threat/variant`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.threat, self.variant)
    }

    /// The actor runs.
    pub fn started(&mut self, pid: u32, act: &Act) {
        self.pid = Some(pid);
        self.ppid = Some(std::process::id());
        self.executable = Some(act.program.clone());
        let value = |sign: &Sign| {
            let mut value = serde_json::to_value(sign).unwrap_or_default();
            value["layer"] = sign.layer().into();
            value
        };
        self.expected = act.expected.iter().map(value).collect();
        self.hidden = act.hidden.iter().map(value).collect();
        let first = act.expected.iter().take(3).map(ToString::to_string);
        self.alert = first.collect::<Vec<_>>().join("; ");
    }

    /// For people.
    #[must_use]
    pub fn line(&self) -> String {
        let name = self.name();
        match &self.outcome {
            Outcome::Done => format!(
                "done     {name:42} {:22} process {}: {}",
                self.techniques.join(" "),
                self.pid.unwrap_or(0),
                self.alert
            ),
            Outcome::Skipped(why) => format!("skipped  {name:42} {why}"),
            Outcome::Failed(why) => format!("failed   {name:42} {why}"),
        }
    }
}
