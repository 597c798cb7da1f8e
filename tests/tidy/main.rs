//! Rules about the tree itself: documents in step with the code, promises with tests, files of one job.

mod commands;
mod programs;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use models::program::hex;
use models::schema::{self, FEATURES, NAMED, NAMED_BASE};

/// Longer files need the word `Longer` and a reason in their first lines.
const LINES_MAX: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Pages for people, by their path.
fn pages() -> Vec<String> {
    let names = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".md"));
    let mut pages: Vec<String> = names.map(|name| format!("docs/{name}")).collect();
    pages.push("README.md".to_owned());
    pages.sort();
    pages
}

/// A page that is made from the code is as the code says; `UPDATE_DOCS` makes it so. `test` is what runs the caller.
fn generated(page: &str, test: &str, text: &str) {
    let path = root().join(page);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, text).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == text,
        "run `UPDATE_DOCS=1 cargo xtask test {test}` and commit docs/"
    );
}

/// Every Rust source of the workspace.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    for folder in ["agent", "agent-ebpf", "cross", "fleet-server", "models", "tests"] {
        walk(&root().join(folder), &mut paths);
    }
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Names of all tests.
fn tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for (_, text) in sources() {
        let after = text.split("#[test]").skip(1);
        tests.extend(after.filter_map(|rest| Some(rest.split_once("fn ")?.1.split_once('(')?.0.to_owned())));
    }
    tests
}

#[test]
fn every_promise_in_the_specification_names_a_test_that_exists() {
    let tests = tests();
    let specification = read("docs/specification.md");
    let mut named = 0;
    for row in specification.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| promise")) {
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test is named for: {row}");
        for name in names {
            assert!(tests.contains(name), "there is no test `{name}`, named for: {row}");
            named += 1;
        }
    }
    assert!(named >= 20, "only {named} tests are named");
}

#[test]
fn every_row_about_an_attacker_names_tests_that_exist() {
    let tests = tests();
    let text = read("docs/security.md");
    let (_, rest) = text.split_once("## Who may attack").unwrap();
    let (table, _) = rest.split_once("\n## ").unwrap();
    let rows: Vec<&str> =
        table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attacker")).collect();
    assert!(rows.len() >= 8, "{rows:?}");
    for row in rows {
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        assert!(cell.contains('`'), "no test is named for: {row}");
    }
    let words = text.split('`').skip(1).step_by(2);
    for name in words.filter(|word| word.matches('_').count() >= 4) {
        assert!(tests.contains(name), "there is no test `{name}`");
    }
}

#[test]
fn every_crate_that_runs_as_root_is_reviewed() {
    let page = read("docs/dependencies.md");
    for manifest in ["agent", "models", "agent-ebpf"] {
        let manifest: toml::Table = read(&format!("{manifest}/Cargo.toml")).parse().unwrap();
        let ours = ["agent", "models", "agent-ebpf"];
        for name in
            manifest["dependencies"].as_table().unwrap().keys().filter(|name| !ours.contains(&name.as_str()))
        {
            let row = page.lines().find(|line| {
                let names = line.strip_prefix("| ").and_then(|rest| rest.split_once(" |"));
                names.is_some_and(|(names, _)| names.split(", ").any(|known| known == name))
            });
            assert!(
                row.is_some() || page.contains(&format!("`{name}` (")),
                "docs/dependencies.md does not name {name}"
            );
        }
    }
}

#[test]
fn the_wire_format_is_described_as_it_is() {
    let hash = hex(&models::bundle::sha256(read("models/src/wire.rs").as_bytes()));
    assert!(
        read("docs/wire-format.md").contains(&hash),
        "models/src/wire.rs changed: bring docs/wire-format.md up to date and write `sha256 {hash}` into it"
    );
}

#[test]
fn every_operation_of_the_api_has_a_line_for_people() {
    let page = read("docs/api.md");
    let description = fleet_server::web::description();
    let missing: Vec<String> = description["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| (path, method.to_uppercase()))
        })
        // One line may name two methods, and what may stand behind the `?`.
        .filter(|(path, method)| {
            let names = |line: &str| {
                let at = line.find(path.as_str()).map(|at| &line[at + path.len()..]);
                line.starts_with("| ")
                    && line.contains(&format!("`{method}"))
                    && at.is_some_and(|rest| rest.starts_with(['`', '?']))
            };
            !page.lines().any(names)
        })
        .map(|(path, method)| format!("{method} {path}"))
        .collect();
    assert!(missing.is_empty(), "docs/api.md has no line for {missing:?}");
}

#[test]
fn the_feature_table_is_the_one_in_the_code() {
    let mut text = String::from(
        "# Features\n\nThe vector of 427 values, each in 0 to 1: the raw value divided by its cap, at most 1. Made from \
         `models/src/schema.rs`;\nafter a change there run `UPDATE_DOCS=1 cargo xtask test feature_table`.\n\n",
    );
    text += &format!(
        "- 0 to {}: share of each system call in the window's calls; the slot is the x86-64 number, by name on every \
         architecture. Calls above 334 share the slot of the call they replace (`models/src/syscalls.rs`).\n",
        schema::BIGRAM_BASE - 1
    );
    text += &format!(
        "- {} to {}: share of pairs of consecutive calls of one thread, bucket `(a * 337 + b) mod 50`.\n",
        schema::BIGRAM_BASE,
        NAMED_BASE - 1
    );
    text += &format!("- {NAMED_BASE} to {}:\n\n", FEATURES - 1);
    text += "| index | name | layer | unit | cap | ATT&CK | meaning |\n|---|---|---|---|---|---|---|\n";
    for (index, feature) in (NAMED_BASE..).zip(NAMED) {
        text += &format!(
            "| {index} | {} | {} | {:?} | {} | {} | {} |\n",
            feature.name,
            feature.layer.as_str(),
            feature.unit,
            feature.cap,
            feature.technique,
            feature.phrase
        );
    }
    generated("docs/features.md", "feature_table", &text);
}

#[test]
fn the_configuration_reference_is_the_one_in_the_code() {
    let mut text = String::from(
        "# Configuration of the agent\n\nOne TOML file, `/etc/behaveguard/agent.toml` unless `--config` names another; every key \
         is optional. Made from\n`agent/src/config/`; after a change there run `UPDATE_DOCS=1 cargo xtask test configuration_reference`.\n\n\
         - `behaveguard init` writes a file with every key and its default, `behaveguard config check` says everything that is \
         wrong\n  with one, and `behaveguard config show` what is in force and where each value is from.\n\
         - A key that is not known, of the wrong type or out of range is an error that names it and what it must be. The agent \
         does not\n  start with one (exit code 78), and a running one keeps what it has.\n\
         - An environment variable overrides a key: `BEHAVEGUARD_` and the key in capitals, with `_` for the dot, e.g.\n  \
         `BEHAVEGUARD_KERNEL_ACTS_MAX=64`. It holds TOML; a text may do without quotes. One that names no key is an error.\n\
         - SIGHUP (`systemctl reload behaveguard`) reads file and environment again. What can be changed is; what needs a restart is \
         named\n  in the log and by `behaveguard status`. A bad file changes nothing.\n\
         - Sizes are whole numbers with KiB, MiB or GiB; times have ms, s, m, h or d.\n\n",
    );
    text += &agent::config::reference(agent::config::KEYS);
    text += "\n## Sinks\n\nEach `[[sink]]` table, up to 8, is told of alerts beside the fleet, or in its place: an agent with one runs without \
             an enrolment.\nEach has a queue in memory and a thread of its own. An alert that was not taken is offered again after 0.5 s \
             to 60 s, doubled each\ntime and spread; what waits when the agent ends has two seconds. Environment variables do not reach \
             into them.\n\n";
    text += &agent::config::reference(agent::config::SINK_KEYS);

    text += "\n- Every sink but syslog gets one JSON object: `id`, `device` and the alert as in [wire-format.md](wire-format.md).\n\
             - syslog: facility 10 (authpriv), severity 2 for CRITICAL, 3 for HIGH, 4 for MEDIUM, `[behaveguard@32473 id score program pid \
             techniques]`\n  and the sentence. Datagrams are cut at 2048 bytes (RFC 5424 section 6.1).\n\
             - exec: `ALERT_ID`, `ALERT_SEVERITY`, `ALERT_SCORE`, `ALERT_PROGRAM`, `ALERT_PID` and `ALERT_SUMMARY` are in its environment. Exit \
             code 75 asks to\n  be started again, any other but 0 counts the alert as failed.\n\
             - webhook: 2xx is taken; 408, 429 and 5xx are tried again; anything else, redirects too, counts as failed.\n\n\
             ## Containment\n\nEach `[[contain]]` table, up to 32, is a rule; without one the agent only watches. See \
             [operations.md](operations.md).\n\n";
    text += &agent::config::reference(agent::config::CONTAIN_KEYS);
    generated("docs/configuration.md", "configuration_reference", &text);
}

#[test]
fn no_file_is_longer_than_600_lines_without_a_reason_in_its_head() {
    for (path, text) in sources() {
        let head: Vec<&str> = text.lines().take(12).collect();
        let explained = head.iter().any(|line| line.contains("Longer than"));
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX || explained, "{} has {lines} lines", path.display());
    }
}

#[test]
fn unsafe_stays_where_it_is_argued() {
    for (path, text) in sources() {
        let shown = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("unsafe {")) {
            // The compiler's own lint wants the argument; this one keeps the word out of other crates.
            let allowed = [
                "agent-ebpf/src/programs/",
                "agent/src/probe/",
                "agent/tests/",
                "agent/src/simulate",
                "models/src/lanes/",
                "tests/src/bin/behaveguard-overhead/",
                "tests/tidy/",
            ];
            assert!(allowed.iter().any(|folder| shown.starts_with(folder)), "{shown}:{}: {line}", at + 1);
        }
    }
}
