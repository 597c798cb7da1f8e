//! What is done to a program that alarms: the `[[contain]]` tables of the configuration. None by default.

use std::fmt;

use models::policy::Severity;
use serde::{Deserialize, Serialize};
use toml::Value;

use super::keys::{Applied, Form, Key};
use super::read::{Reader, tables};
use super::{Pattern, Problem};

/// Rules of one agent.
pub const RULES_MAX: usize = 32;

/// The keys of a `[[contain]]`.
pub const CONTAIN_KEYS: &[Key] = &[
    Key {
        name: "contain.program",
        default: "",
        form: Form::Words("a pattern in quotes"),
        applied: Applied::Reload,
        text: "Whom it is about: an executable's path or a systemd unit; * stands for any characters. Needed. The first \
               rule that fits an alert counts.",
    },
    Key {
        name: "contain.action",
        default: "",
        form: Form::Words("\"deny_egress\", \"stop\" or \"kill\""),
        applied: Applied::Reload,
        text: "What is done. Needed. deny_egress: its service, or session, sends nothing to other machines. stop: the \
               process stands still (SIGSTOP). kill: it ends (SIGKILL), which nobody can undo. The first rule of an action \
               needs a restart: the agent gives up what it is not configured to use.",
    },
    Key {
        name: "contain.severity",
        default: "\"CRITICAL\"",
        form: Form::Words("\"MEDIUM\", \"HIGH\" or \"CRITICAL\""),
        applied: Applied::Reload,
        text: "Alerts below do nothing.",
    },
];

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The control group of its service or session sends nothing to other machines.
    DenyEgress,
    /// SIGSTOP.
    Stop,
    /// SIGKILL.
    Kill,
}

impl Action {
    fn from_word(text: &str) -> Option<Self> {
        [Self::DenyEgress, Self::Stop, Self::Kill].into_iter().find(|action| action.to_string() == text)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DenyEgress => "deny_egress",
            Self::Stop => "stop",
            Self::Kill => "kill",
        })
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainRule {
    /// Whom it is about.
    pub program: Pattern,
    /// What is done.
    pub action: Action,
    /// Alerts below do nothing.
    pub severity: Severity,
}

/// Reads what stands under `contain`.
pub(super) fn read(value: Option<Value>, problems: &mut Vec<Problem>) -> Vec<ContainRule> {
    tables("contain", value, RULES_MAX, problems, one)
}

fn one(keys: &mut Reader) -> Option<ContainRule> {
    let (mut program, mut action, mut severity) = (String::new(), String::new(), "CRITICAL".to_owned());
    keys.words("program", &mut program, |pattern| !pattern.is_empty());
    keys.words("action", &mut action, |text| Action::from_word(text).is_some());
    keys.words("severity", &mut severity, |text| Severity::from_word(text).is_some());
    for (name, value) in [("program", &program), ("action", &action)] {
        if value.is_empty() {
            keys.missing(name);
        }
    }
    Some(ContainRule {
        program: Pattern(program),
        action: Action::from_word(&action)?,
        severity: Severity::from_word(&severity)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn rules_are_read_in_order_and_what_is_wrong_is_named() {
        let text = "[[contain]]\nprogram = \"nginx.service\"\naction = \"deny_egress\"\n\
                    [[contain]]\nprogram = \"/usr/bin/*\"\naction = \"stop\"\nseverity = \"HIGH\"\n";
        let rules = Config::parse(text).unwrap().contain;
        let told: Vec<_> = rules.iter().map(|r| (r.program.0.as_str(), r.action, r.severity)).collect();
        assert_eq!(
            told,
            [
                ("nginx.service", Action::DenyEgress, Severity::Critical),
                ("/usr/bin/*", Action::Stop, Severity::High)
            ]
        );
        for (text, key, said) in [
            ("action = \"stop\"", "contain.program", "of contain 1: is needed"),
            ("program = \"a\"", "contain.action", "is needed: \"deny_egress\""),
            ("program = \"a\"\naction = \"freeze\"", "contain.action", "must be \"deny_egress\""),
            ("program = \"a\"\naction = \"kill\"\nseverity = \"LOW\"", "contain.severity", "must be"),
            ("program = \"a\"\naction = \"kill\"\nfor = 1", "contain.for", "not a known key"),
        ] {
            let problems = Config::parse(&format!("[[contain]]\n{text}\n")).unwrap_err();
            assert_eq!((problems.len(), &*problems[0].key), (1, key), "{text}: {problems:?}");
            assert!(problems[0].text.contains(said), "{text}: {}", problems[0]);
        }
        assert!(Config::parse("").unwrap().contain.is_empty(), "off by default");
    }
}
