//! A table of the configuration, emptied key by key, with what is wrong in it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use models::budget::{AlertBudget, BudgetError};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::keys::{ENVIRONMENT, Form, KEYS, Key, is_known, key};
use super::{OutboxEngine, Problem, parse_duration, parse_size};

/// A table whose keys are taken out one by one; what is left was not known.
pub(super) struct Reader {
    table: Table,
    /// The table's name with a dot; empty for the outermost.
    prefix: String,
    /// Names of keys that an environment variable holds.
    overridden: BTreeSet<&'static str>,
    pub(super) problems: Vec<Problem>,
}

impl Reader {
    /// The outermost table, with the environment's values in place of the file's.
    pub(super) fn new(mut table: Table, environment: &[(String, String)]) -> Self {
        let (mut overridden, mut problems) = (BTreeSet::new(), Vec::new());
        for (variable, text) in environment {
            let Some(key) = KEYS.iter().find(|key| key.variable() == *variable) else {
                problems.push(Problem { key: variable.clone(), text: unknown_variable(variable) });
                continue;
            };
            overridden.insert(key.name);
            let value = value_of(text);
            match key.name.split_once('.') {
                None => drop(table.insert(key.name.to_owned(), value)),
                Some((inner, short)) => {
                    let inner = table.entry(inner).or_insert_with(|| Value::Table(Table::new()));
                    // What is no table is a problem of its own.
                    if let Some(inner) = inner.as_table_mut() {
                        inner.insert(short.to_owned(), value);
                    }
                }
            }
        }
        Self { table, prefix: String::new(), overridden, problems }
    }

    /// A table that no environment variable reaches into.
    pub(super) fn of(table: Table, prefix: String) -> Self {
        Self { table, prefix, overridden: BTreeSet::new(), problems: Vec::new() }
    }

    /// A table in this one; its problems are handed over with [`Reader::end`].
    pub(super) fn inner(&mut self, name: &str) -> Self {
        let mut table = Table::new();
        self.put(name, "a table", &mut table, |value| value.try_into().ok());
        Self { overridden: self.overridden.clone(), ..Self::of(table, format!("{name}.")) }
    }

    /// Its problems are known already.
    fn has_problem(&self, name: &str) -> bool {
        self.problems.iter().any(|problem| problem.key == format!("{}{name}", self.prefix))
    }

    /// Says what a needed key must hold, unless what it holds was found wrong already.
    pub(super) fn missing(&mut self, name: &str) {
        if !self.has_problem(name) {
            let form = self.form(name);
            self.problem(name, format!("is needed: {form}"));
        }
    }

    /// What a key may hold.
    fn form(&self, name: &str) -> Form {
        self.known(name).form
    }

    /// What is left is not worth a word: what it may hold is not known.
    pub(super) fn ignore_rest(&mut self) {
        self.table.clear();
    }

    pub(super) fn problem(&mut self, name: &str, text: impl Into<String>) {
        let full = format!("{}{name}", self.prefix);
        let variable = self.overridden.get(full.as_str()).map(|known| key(known).variable());
        self.problems.push(Problem { key: variable.unwrap_or(full), text: text.into() });
    }

    /// Takes a value out.
    pub(super) fn raw(&mut self, name: &str) -> Option<Value> {
        self.table.remove(name)
    }

    /// Takes a value out; `read` makes of it what is kept, or finds it wrong.
    fn put<T>(
        &mut self,
        name: &str,
        form: impl fmt::Display,
        into: &mut T,
        read: impl FnOnce(Value) -> Option<T>,
    ) {
        let Some(value) = self.raw(name) else { return };
        match read(value) {
            Some(value) => *into = value,
            None => self.problem(name, format!("must be {form}")),
        }
    }

    pub(super) fn words<T: DeserializeOwned>(&mut self, name: &str, into: &mut T, good: impl Fn(&T) -> bool) {
        self.put(name, self.form(name), into, |value| value.try_into().ok().filter(good));
    }

    pub(super) fn number(&mut self, name: &str, into: &mut u32) {
        let Form::Number(min, max) = self.form(name) else { unreachable!("{name} is no number") };
        self.words(name, into, |n| (min..=max).contains(n));
    }

    pub(super) fn time(&mut self, name: &str, into: &mut Duration) {
        let form = self.form(name);
        let Form::Time(min, max) = form else { unreachable!("{name} is no time") };
        let range = Duration::from_secs(min)..=Duration::from_secs(max);
        let good = |time: &Duration| range.contains(time);
        self.put(name, form, into, |value| value.as_str().and_then(parse_duration).filter(good));
    }

    pub(super) fn size(&mut self, name: &str, into: &mut u64) {
        let form = self.form(name);
        let (min, max, is_ring) = match form {
            Form::Size(min, max) => (min, max, false),
            Form::Ring(min, max) => (min, max, true),
            _ => unreachable!("{name} is no size"),
        };
        let good = |size: &u64| (min..=max).contains(size) && (!is_ring || size.is_power_of_two());
        self.put(name, form, into, |value| value.as_str().and_then(parse_size).filter(good));
    }

    pub(super) fn engine(&mut self, name: &str, into: &mut OutboxEngine) {
        let Some(value) = self.raw(name) else { return };
        match value.as_str() {
            Some("log") => *into = OutboxEngine::Log,
            #[cfg(feature = "sled")]
            Some("sled") => *into = OutboxEngine::Sled,
            #[cfg(not(feature = "sled"))]
            Some("sled") => self.problem(name, "must be \"log\"; this build has no other engine"),
            _ => self.problem(name, format!("must be {}", self.form(name))),
        }
    }

    pub(super) fn budget(&mut self, name: &str, into: &mut Option<AlertBudget>) {
        let Some(value) = self.raw(name) else { return };
        match value.as_str() {
            Some("unlimited") => *into = None,
            Some(text) => match text.parse() {
                Ok(budget) => *into = Some(budget),
                Err(error) => self.problem(name, format!("{error}, or \"unlimited\"")),
            },
            None => self.problem(name, format!("{}, or \"unlimited\"", BudgetError::Form)),
        }
    }

    /// A share of one core; `None` when it may be any.
    pub(super) fn share(&mut self, name: &str, into: &mut Option<u32>) {
        let form = self.form(name);
        self.put(name, form, into, |value| match value.as_str()? {
            "unlimited" => Some(None),
            text => {
                let percent = text.strip_suffix('%')?.trim_end().parse().ok()?;
                (1..=1000).contains(&percent).then_some(Some(percent))
            }
        });
    }

    /// What was wrong; keys that nobody took are.
    pub(super) fn end(mut self) -> Vec<Problem> {
        let unknown: Vec<String> = self.table.keys().cloned().collect();
        for name in unknown {
            let hint = if !self.prefix.is_empty() && is_known(&name) {
                format!("not a known key: `{name}` stands before the first [section] of the file")
            } else {
                "not a known key; `behaveguard init --print` shows all".to_owned()
            };
            self.problem(&name, hint);
        }
        self.problems
    }

    fn known(&self, name: &str) -> &'static Key {
        key(&format!("{}{name}", self.prefix))
    }
}

/// Reads tables of one name, each begun with `[[name]]`; problems name which of several it is.
pub(super) fn tables<T>(
    name: &str,
    value: Option<Value>,
    max: usize,
    problems: &mut Vec<Problem>,
    one: impl Fn(&mut Reader) -> Option<T>,
) -> Vec<T> {
    let tables: Vec<Table> = match value.map(Value::try_into) {
        None => return Vec::new(),
        Some(Ok(tables)) => tables,
        Some(Err(_)) => {
            let text = format!("must be tables, each begun with [[{name}]]");
            problems.push(Problem { key: name.into(), text });
            return Vec::new();
        }
    };
    if tables.len() > max {
        problems.push(Problem { key: name.into(), text: format!("must be at most {max} tables") });
    }
    let mut read = Vec::new();
    for (n, table) in (1..).zip(tables) {
        let mut reader = Reader::of(table, format!("{name}."));
        read.extend(one(&mut reader));
        let named =
            |problem: Problem| Problem { text: format!("of {name} {n}: {}", problem.text), ..problem };
        problems.extend(reader.end().into_iter().map(named));
    }
    read
}

/// Which variables are meant for the configuration.
pub fn environment() -> Vec<(String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let mut found: Vec<(String, String)> = std::env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .filter(|(name, _)| name.starts_with(ENVIRONMENT))
        .collect();
    found.sort();
    found
}

/// What a variable holds is TOML; a text may do without quotes.
pub(crate) fn value_of(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok().filter(|table| table.len() == 1);
    parsed.and_then(|mut table| table.remove("value")).unwrap_or_else(|| Value::String(text.to_owned()))
}

fn unknown_variable(variable: &str) -> String {
    let distance = |key: &&Key| strsim::levenshtein(&key.variable(), variable);
    let nearest = KEYS.iter().min_by_key(distance).map(Key::variable).unwrap_or_default();
    format!("no key of the configuration has this name; the nearest is {nearest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_holds_toml_or_a_bare_text() {
        assert_eq!(value_of("5"), Value::Integer(5));
        assert_eq!(value_of("30s"), Value::String("30s".into()));
        assert_eq!(value_of("\"30s\""), Value::String("30s".into()));
        assert_eq!(value_of("/var/lib/x"), Value::String("/var/lib/x".into()));
        assert_eq!(value_of("[\"a\"]").as_array().map(Vec::len), Some(1));
        // More than a value is none.
        assert_eq!(value_of("1\nstate = 2"), Value::String("1\nstate = 2".into()));
    }

    #[test]
    fn the_nearest_name_is_the_one_with_the_fewest_differences() {
        assert!(unknown_variable("BEHAVEGUARD_WINDW").ends_with("BEHAVEGUARD_WINDOW"));
    }
}
