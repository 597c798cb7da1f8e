//! Every key of the configuration with its value, its default, and where the value is from.

use serde::Serialize;
use toml::{Table, Value};

use crate::config::{self, Config, Problem};

/// One key.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// As in the file, with its table: `kernel.traces`.
    pub key: String,
    /// In use.
    pub value: Value,
    /// Without the file.
    pub default: Value,
    /// The file names it.
    pub from_file: bool,
}

/// Every key in the order of the template, for a configuration's text.
///
/// # Errors
/// As [`Config::parse`].
pub fn effective(text: &str) -> Result<Vec<Setting>, Vec<Problem>> {
    Config::parse(text)?;
    let given = flat(&text.parse().unwrap_or_default());
    let all = defaults().into_iter().map(|(key, default)| {
        let found = given.iter().find(|(known, _)| *known == key).map(|(_, value)| value.clone());
        Setting { from_file: found.is_some(), value: found.unwrap_or_else(|| default.clone()), key, default }
    });
    Ok(all.collect())
}

/// The template's keys and values, in its order.
fn defaults() -> Vec<(String, Value)> {
    let mut table = String::new();
    let mut ordered = Vec::new();
    // A key stands in one line, so that each line is TOML by itself.
    for line in config::spelled_out().lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = format!("{name}.");
        } else {
            let line: Table = line.parse().unwrap_or_default();
            ordered.extend(line.into_iter().map(|(key, value)| (format!("{table}{key}"), value)));
        }
    }
    ordered
}

/// Keys of tables with the table's name before them.
fn flat(table: &Table) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                flat.extend(inner.iter().map(|(name, value)| (format!("{key}.{name}"), value.clone())));
            }
            value => flat.push((key.clone(), value.clone())),
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TEMPLATE;

    #[test]
    fn every_key_has_its_value_and_where_it_is_from() {
        let all = effective("window = \"5s\"\n[kernel]\ntraces = [\"/srv/log\"]\n").unwrap();
        assert_eq!(
            all.len(),
            TEMPLATE.lines().filter(|line| line.starts_with('#') && line.contains(" = ")).count()
        );
        let one = |key: &str| all.iter().find(|setting| setting.key == key).unwrap();
        assert_eq!((one("window").value.as_str(), one("window").from_file), (Some("5s"), true));
        assert_eq!(one("window").default.as_str(), Some("30s"));
        assert!(one("kernel.traces").from_file && !one("alerts.thresholds").from_file);
        assert_eq!(all.iter().filter(|setting| setting.from_file).count(), 2);
        assert_eq!(all[0].key, "state", "in the template's order");
    }

    #[test]
    fn what_is_wrong_is_said_instead() {
        let problems = effective("windw = 1").unwrap_err();
        assert_eq!(problems[0].key, "windw");
    }
}
