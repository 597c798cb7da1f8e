//! What a group's configuration may hold, and what changes from one version to the next.

use std::collections::BTreeMap;

use models::orders::KEYS_OF_DEVICES;
pub use models::wire::CONFIGURATION_MAX;
use toml::{Table, Value};

/// A key whose value is another.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyChange {
    /// With its table, e.g. `alerts.dedup`.
    pub key: String,
    /// `None` where there was none.
    pub before: Option<Value>,
    /// `None` where there is none any more.
    pub after: Option<Value>,
}

/// Checks what can be checked without a device: whether each key and value is good the devices say.
///
/// # Errors
/// A sentence that says what to change.
pub fn check(text: &str) -> Result<(), String> {
    if text.len() > CONFIGURATION_MAX {
        return Err(format!(
            "a configuration of {} bytes is over the limit of {CONFIGURATION_MAX}",
            text.len()
        ));
    }
    let table: Table = text.parse().map_err(|error| format!("it is not TOML: {error}"))?;
    match KEYS_OF_DEVICES.iter().find(|name| table.contains_key(**name)) {
        Some(name) => Err(format!("`{name}` is for a device's own file: a fleet cannot set it")),
        None => Ok(()),
    }
}

/// Keys that differ, by name. A text that is no TOML has none.
pub fn changes(before: &str, after: &str) -> Vec<KeyChange> {
    let (before, after) = (flat(before), flat(after));
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let of = |key: &String| KeyChange {
        key: key.clone(),
        before: before.get(key).cloned(),
        after: after.get(key).cloned(),
    };
    keys.into_iter().map(of).filter(|change| change.before != change.after).collect()
}

/// Every value with the names of the tables that it is in.
fn flat(text: &str) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let mut open = vec![(String::new(), text.parse::<Table>().unwrap_or_default())];
    while let Some((prefix, table)) = open.pop() {
        for (name, value) in table {
            match value {
                Value::Table(inner) => open.push((format!("{prefix}{name}."), inner)),
                value => drop(all.insert(format!("{prefix}{name}"), value)),
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_configuration_of_a_group_is_refused_with_what_to_change() {
        assert_eq!(check("heartbeat = \"60s\"\n[alerts]\nper_minute = 3"), Ok(()));
        assert_eq!(check(""), Ok(()));
        assert!(check("heartbeat = ").unwrap_err().starts_with("it is not TOML"));
        assert!(check("[[sink]]\nkind = \"exec\"").unwrap_err().contains("`sink`"));
        assert!(check(&"#".repeat(CONFIGURATION_MAX + 1)).unwrap_err().contains("over the limit"));
    }

    #[test]
    fn changes_are_told_key_by_key_also_in_tables() {
        let before = "window = \"30s\"\nheartbeat = \"60s\"\n[alerts]\nper_minute = 3\ndedup = \"60s\"";
        let after =
            "heartbeat = \"60s\"\nlolbins = [\"nc\"]\n[alerts]\nper_minute = 4\ndedup = \"60s\" # as before";
        let told: Vec<_> = changes(before, after)
            .into_iter()
            .map(|change| (change.key, change.before.is_some(), change.after.is_some()))
            .collect();
        let key = |name: &str| name.to_owned();
        assert_eq!(
            told,
            [
                (key("alerts.per_minute"), true, true),
                (key("lolbins"), false, true),
                (key("window"), true, false)
            ]
        );
    }
}
