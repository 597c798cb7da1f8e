//! Alerts by what is in them, in pages, with counts of what else there is.

use std::collections::HashMap;

use models::policy::Severity;

use super::sql::{Cell, Connection, Dialect, ToCell};

use super::alerts::{ALERT, StoredAlert, WorkState, read, severity_of};
use super::words::split;
use super::{StoreError, int};

/// Alerts that facets are counted over at most: the newest that fit.
pub const FACETS_OVER: usize = 10_000;

/// Values of one facet that are shown; the most frequent.
const VALUES_MAX: usize = 20;

/// Words of one search at most.
const WORDS_MAX: usize = 16;

/// Which alerts; what is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AlertFilter {
    /// Of this device.
    pub device: Option<String>,
    /// Of devices that are in this group now.
    pub group: Option<String>,
    /// Of devices that have this tag now.
    pub tag: Option<String>,
    /// Of this program, by its key.
    pub program: Option<String>,
    /// With this technique.
    pub technique: Option<String>,
    /// At least so severe.
    pub severity: Option<Severity>,
    /// In this state.
    pub state: Option<WorkState>,
    /// That this user works on.
    pub assignee: Option<String>,
    /// Of this incident.
    pub incident: Option<u64>,
    /// Stored at or after, milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Stored before.
    pub until_ms: Option<u64>,
    /// With these words; `*` at the end of one stands for any ending.
    pub words: Option<String>,
    /// Also those that a rule hides.
    pub suppressed: bool,
}

/// Which part of what fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// The newest, newest last.
    Newest,
    /// The first behind this id, in ascending order.
    After(u64),
    /// The newest before this id, newest last.
    Before(u64),
}

/// How often each value comes.
pub type Facet = Vec<(String, u64)>;

/// Counts over what fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facets {
    /// Alerts that were counted.
    pub counted: u64,
    /// Whether these are all that fit.
    pub complete: bool,
    /// By severity, as words.
    pub severity: Facet,
    /// By state.
    pub state: Facet,
    /// By device.
    pub device: Facet,
    /// By program: its key and its text, separated by a space.
    pub program: Facet,
    /// By technique.
    pub technique: Facet,
}

struct Where {
    joins: &'static str,
    clauses: Vec<&'static str>,
    values: Vec<Cell<'static>>,
}

impl Where {
    fn add(&mut self, clause: &'static str, value: impl ToCell) {
        self.clauses.push(clause);
        self.values.push(value.to_cell().owned());
    }

    fn sql(&self) -> String {
        let all = if self.clauses.is_empty() { "TRUE".to_owned() } else { self.clauses.join(" AND ") };
        format!("{} WHERE {all}", self.joins)
    }
}

fn of_filter(dialect: Dialect, filter: &AlertFilter) -> Where {
    let mut found = Where { joins: "", clauses: Vec::new(), values: Vec::new() };
    if let Some(words) = filter.words.as_deref().and_then(|words| match_words(dialect, words)) {
        found.joins = " JOIN alert_words w ON w.rowid = a.id";
        match dialect {
            Dialect::Sqlite => found.add("w.alert_words MATCH ?", words),
            Dialect::Postgres => found.add("w.words @@ to_tsquery('simple', ?)", words),
        }
    }
    if let Some(device) = &filter.device {
        found.add("a.device = ?", device.clone());
    }
    if let Some(group) = &filter.group {
        found.add("a.device IN (SELECT id FROM devices WHERE grp = ?)", group.clone());
    }
    if let Some(tag) = &filter.tag {
        found.add("a.device IN (SELECT id FROM devices WHERE instr(tags, ?) > 0)", format!(" {tag} "));
    }
    if let Some(program) = &filter.program {
        found.add("a.program_key = ?", program.clone());
    }
    if let Some(technique) = &filter.technique {
        found.add("instr(a.techniques, ?) > 0", format!(" {technique} "));
    }
    match filter.severity {
        None | Some(Severity::Low | Severity::Medium) => {}
        // Each as the partial index has it.
        Some(Severity::High) => found.clauses.push("a.severity >= 2"),
        Some(Severity::Critical) => found.clauses.push("a.severity >= 3"),
    }
    if let Some(state) = filter.state {
        found.add("a.state = ?", state.number());
    }
    if let Some(assignee) = &filter.assignee {
        found.add("a.assignee = ?", assignee.clone());
    }
    if let Some(incident) = filter.incident {
        found.add("a.incident = ?", int(incident));
    }
    if let Some(since_ms) = filter.since_ms {
        found.add("a.received_ms >= ?", int(since_ms));
    }
    if let Some(until_ms) = filter.until_ms {
        found.add("a.received_ms < ?", int(until_ms));
    }
    if !filter.suppressed {
        found.clauses.push("a.suppressed IS NULL");
    }
    found
}

/// What people type, as the index wants it: every word must be there, and `*` at a word's end stands for any ending.
/// Without it the index need not gather every word with that beginning, which a million alerts would show.
fn match_words(dialect: Dialect, text: &str) -> Option<String> {
    let words: Vec<_> = text
        .split_whitespace()
        .map(|word| word.replace('"', ""))
        .filter(|word| word.chars().any(char::is_alphanumeric))
        .take(WORDS_MAX)
        .map(|word| {
            let beginning = word.strip_suffix('*');
            match dialect {
                Dialect::Sqlite => {
                    format!(
                        "\"{}\"{}",
                        beginning.unwrap_or(&word),
                        if beginning.is_some() { "*" } else { "" }
                    )
                }
                // Words that follow one another, as SQLite's quotes mean.
                Dialect::Postgres => split(&word).join(" <-> ") + if beginning.is_some() { ":*" } else { "" },
            }
        })
        .collect();
    let and = if dialect == Dialect::Sqlite { " " } else { " & " };
    (!words.is_empty()).then(|| words.join(and))
}

/// Alerts that fit, in ascending order of their ids.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn find_alerts(
    c: &Connection,
    filter: &AlertFilter,
    page: Page,
    limit: u32,
) -> Result<Vec<StoredAlert>, StoreError> {
    let mut wanted = of_filter(c.dialect(), filter);
    let order = match page {
        Page::Newest => "DESC",
        Page::After(id) => {
            wanted.add("a.id > ?", int(id));
            "ASC"
        }
        Page::Before(id) => {
            wanted.add("a.id < ?", int(id));
            "DESC"
        }
    };
    // The index of words knows its own order, and finds the newest without looking at all that fit.
    let by = if wanted.joins.is_empty() { "a.id" } else { "w.rowid" };
    let sql = format!("{ALERT}{} ORDER BY {by} {order} LIMIT {limit}", wanted.sql());
    let mut query = c.prepare_cached(&sql)?;
    let mut rows = query.query(wanted.values)?;
    let mut alerts = Vec::new();
    while let Some(row) = rows.next()? {
        alerts.push(read(&row)?);
    }
    if order == "DESC" {
        alerts.reverse();
    }
    Ok(alerts)
}

/// Counts over the newest [`FACETS_OVER`] alerts that fit.
///
/// # Errors
/// When the database fails.
pub fn facets(c: &Connection, filter: &AlertFilter) -> Result<Facets, StoreError> {
    let wanted = of_filter(c.dialect(), filter);
    let by = if wanted.joins.is_empty() { "a.id" } else { "w.rowid" };
    let sql = format!(
        "SELECT a.severity, a.state, a.device, a.program_key, a.program, a.techniques FROM alerts a{} ORDER BY {by} DESC LIMIT {}",
        wanted.sql(),
        FACETS_OVER + 1
    );
    let mut query = c.prepare_cached(&sql)?;
    let mut rows = query.query(wanted.values)?;
    let mut counted = 0;
    let mut severity = HashMap::new();
    let mut state = HashMap::new();
    let mut device = HashMap::new();
    let mut program = HashMap::new();
    let mut technique = HashMap::new();
    while let Some(row) = rows.next()? {
        if counted == FACETS_OVER {
            counted += 1;
            break;
        }
        counted += 1;
        *severity.entry(severity_of(row.get(0)?).as_str().to_owned()).or_insert(0) += 1;
        *state.entry(WorkState::of_number(row.get(1)?).as_str().to_owned()).or_insert(0) += 1;
        *device.entry(row.get::<String>(2)?).or_insert(0) += 1;
        let text = format!("{} {}", row.get::<String>(3)?, row.get::<String>(4)?);
        *program.entry(text).or_insert(0) += 1;
        for id in row.get::<String>(5)?.split_whitespace() {
            *technique.entry(id.to_owned()).or_insert(0) += 1;
        }
    }
    Ok(Facets {
        counted: counted.min(FACETS_OVER) as u64,
        complete: counted <= FACETS_OVER,
        severity: most(severity),
        state: most(state),
        device: most(device),
        program: most(program),
        technique: most(technique),
    })
}

fn most(counts: HashMap<String, u64>) -> Facet {
    let mut counts: Facet = counts.into_iter().collect();
    counts.sort_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
    counts.truncate(VALUES_MAX);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_is_never_an_error_of_the_index() {
        let sqlite = |text| match_words(Dialect::Sqlite, text);
        let postgres = |text| match_words(Dialect::Postgres, text);
        assert_eq!(sqlite("opened /etc/sha*"), Some("\"opened\" \"/etc/sha\"*".into()));
        assert_eq!(sqlite("NEAR( \"x\" OR *"), Some("\"NEAR(\" \"x\" \"OR\"".into()));
        assert_eq!(postgres("Opened /etc/sha*"), Some("opened & etc <-> sha:*".into()));
        assert_eq!(postgres("a'b & !x | (c:*)"), Some("a <-> b & x & c".into()));
        for nothing in ["", "  ", "\"", "- * ()"] {
            assert_eq!((sqlite(nothing), postgres(nothing)), (None, None), "{nothing}");
        }
    }
}
