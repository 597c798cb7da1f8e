//! Every key of the configuration with its value, its default, and where the value is from.

use serde::Serialize;
use toml::{Table, Value};

use crate::config::{self, Config, FOLLOWING, KEYS, Overlay, Problem};

/// What is in force.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Every key, in the template's order.
    pub keys: Vec<Setting>,
    /// The file's `[[contain]]` tables, as they stand there.
    pub contain: Vec<Table>,
    /// The file's `[[sink]]` tables, as they stand there.
    pub sinks: Vec<Table>,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// As in the file, with its table: `kernel.traces`.
    pub key: String,
    /// In use.
    pub value: Value,
    /// Without file and environment.
    pub default: Value,
    /// Who says so.
    pub from: Origin,
    /// The environment variable that overrides it.
    pub variable: String,
}

/// Where a value is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Nobody said otherwise.
    Default,
    /// The file.
    File,
    /// The fleet.
    Fleet,
    /// An environment variable.
    Environment,
    /// It follows from the memory budget.
    Budget,
}

/// What a configuration's text, the fleet's part and the environment come to.
///
/// # Errors
/// As [`Config::read_with`].
pub fn effective(
    text: &str,
    overlay: Option<&Overlay>,
    environment: &[(String, String)],
) -> Result<Settings, Vec<Problem>> {
    let budget = Config::read_with(text, overlay, environment)?.memory_budget;
    let fleet = overlay.map(Overlay::table).transpose()?.unwrap_or_default();
    let following = Config::within(budget);
    let mut file: Table = text.parse().unwrap_or_default();
    let mut tables = |name| file.remove(name).and_then(|tables| tables.try_into().ok()).unwrap_or_default();
    let (contain, sinks) = (tables("contain"), tables("sink"));
    let keys = KEYS.iter().map(|key| {
        let variable = key.variable();
        let default = config::value_of(key.default);
        let overriding = environment.iter().find(|(name, _)| *name == variable);
        let below = || {
            let of_fleet = within(&fleet, key.name).map(|value| (value, Origin::Fleet));
            of_fleet.or_else(|| within(&file, key.name).map(|value| (value, Origin::File)))
        };
        let (value, from) = match (overriding, below()) {
            (Some((_, text)), _) => (config::value_of(text), Origin::Environment),
            (None, Some((value, from))) => (value.clone(), from),
            (None, None) if budget != config::BUDGET && FOLLOWING.contains(&key.name) => {
                let value = following.following(key.name).map(|text| config::value_of(&text));
                (value.unwrap_or_else(|| default.clone()), Origin::Budget)
            }
            (None, None) => (default.clone(), Origin::Default),
        };
        Setting { key: key.name.to_owned(), value, default, from, variable }
    });
    Ok(Settings { keys: keys.collect(), contain, sinks })
}

/// A key's value, also of one in a table.
fn within<'a>(file: &'a Table, name: &str) -> Option<&'a Value> {
    match name.split_once('.') {
        None => file.get(name),
        Some((table, key)) => file.get(table)?.get(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_value_and_where_it_is_from() {
        let environment = [("BEHAVEGUARD_HEARTBEAT".to_owned(), "9s".to_owned())];
        let text = "window = \"5s\"\n[kernel]\ntraces = [\"/srv/log\"]\n[[sink]]\nkind = \"syslog\"\n";
        let fleet = Overlay { version: 3, text: "programs_max = 9\n[alerts]\nper_minute = 4\n".into() };
        let all = effective(text, Some(&fleet), &environment).unwrap();
        assert_eq!((all.keys.len(), all.sinks.len()), (KEYS.len(), 1));
        let one = |key: &str| all.keys.iter().find(|setting| setting.key == key).unwrap();
        assert_eq!((one("window").value.as_str(), one("window").from), (Some("5s"), Origin::File));
        assert_eq!(one("window").default.as_str(), Some("30s"));
        assert_eq!(
            (one("kernel.traces").from, one("alerts.thresholds").from),
            (Origin::File, Origin::Default)
        );
        assert_eq!((one("programs_max").from, one("alerts.per_minute").from), (Origin::Fleet, Origin::Fleet));
        assert_eq!(one("alerts.per_minute").value.as_integer(), Some(4));
        let heartbeat = one("heartbeat");
        assert_eq!((heartbeat.value.as_str(), heartbeat.from), (Some("9s"), Origin::Environment));
        assert_eq!(all.keys.iter().filter(|setting| setting.from == Origin::Default).count(), KEYS.len() - 5);
        assert_eq!(all.keys[0].key, "state", "in the template's order");
        let all = effective("memory_budget = \"48MiB\"\nprograms_max = 7\n", None, &[]).unwrap();
        let one = |key: &str| all.keys.iter().find(|setting| setting.key == key).unwrap();
        assert_eq!(
            (one("programs_max").value.as_integer(), one("programs_max").from),
            (Some(7), Origin::File)
        );
        let models = one("models_max");
        assert_eq!((models.value.as_str(), models.from), (Some("15360KiB"), Origin::Budget));
    }

    #[test]
    fn what_is_wrong_is_said_instead() {
        let problems = effective("windw = 1", None, &[]).unwrap_err();
        assert_eq!(problems[0].key, "windw");
    }
}
