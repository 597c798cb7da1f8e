//! Commands that need neither a fleet nor root.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

use tests::process::binary;

fn behaveguard(arguments: &[&str]) -> Output {
    Command::new(binary("behaveguard").unwrap()).args(arguments).output().unwrap()
}

#[test]
fn a_configuration_is_checked_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("behaveguard.toml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "windw = \"5s\"\n[alerts]\nper_minute = 0\n").unwrap();
    let refused = behaveguard(&["config", "check", path]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("2 problems") && said.contains("`windw`: not a known key"), "{said}");
    assert!(said.contains("`alerts.per_minute`: must be a whole number from 1 to 1000"), "{said}");
    std::fs::write(&file, "window = \"5s\"\n").unwrap();
    assert!(behaveguard(&["config", "check", path]).status.success());
    let shown = behaveguard(&["--config", path, "config", "show"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains(&format!("window = \"5s\"  # {path}")), "{text}");
    assert!(text.contains("heartbeat = \"60s\"  # default"), "{text}");
    let json = behaveguard(&["--config", path, "config", "show", "--json"]);
    let all: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let window = all["keys"].as_array().unwrap().iter().find(|setting| setting["key"] == "window").unwrap();
    assert_eq!((&window["value"], &window["default"]), (&"5s".into(), &"30s".into()));
    let overridden = Command::new(binary("behaveguard").unwrap())
        .args(["--config", path, "config", "show"])
        .env("BEHAVEGUARD_WINDOW", "7s")
        .output()
        .unwrap();
    let text = String::from_utf8(overridden.stdout).unwrap();
    assert!(text.contains("window = \"7s\"  # BEHAVEGUARD_WINDOW"), "{text}");
    let missing = behaveguard(&["config", "check", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8(missing.stderr).unwrap().contains("/no/such/file: No such file"));
    assert_eq!(behaveguard(&["config", "chekc"]).status.code(), Some(64));
}

#[test]
fn an_agent_that_only_its_operator_can_help_says_so_by_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let file = dir.path().join("behaveguard.toml");
    let run = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let (file, state) = (file.to_str().unwrap(), state.to_str().unwrap());
        let ended = behaveguard(&["--config", file, "--state", state, "run"]);
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    let (code, said) = run("");
    assert!(
        code == Some(78) && said.contains("run `behaveguard enroll`, or configure one"),
        "{code:?} {said}"
    );
    let (code, said) = run("windw = \"5s\"\n");
    assert!(code == Some(78) && said.contains("`windw`: not a known key"), "{code:?} {said}");
}

#[test]
fn a_reader_that_ends_early_is_no_error() {
    let mut child = Command::new(binary("behaveguard").unwrap())
        .args(["simulate", "--list"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
    // A pipe holds 64 KB: what is said is repeated until it does not fit.
    let shell = format!(
        "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do {0} config show --json || exit 3; done",
        binary("behaveguard").unwrap().display()
    );
    let mut child = Command::new("sh")
        .args(["-c", &shell])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "{\n");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(ended.stderr).unwrap(), "", "it ends without a word");
}

#[test]
fn every_command_has_a_page_and_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    assert!(behaveguard(&["man", dir.path().to_str().unwrap()]).status.success());
    let completions = String::from_utf8(behaveguard(&["completions", "bash"]).stdout).unwrap();
    let help = String::from_utf8(behaveguard(&["--help"]).stdout).unwrap();
    let list = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<&str> = names.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"whitelist") && names.len() > 15, "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let page = std::fs::read_to_string(dir.path().join(format!("behaveguard-{name}.1"))).unwrap();
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}");
        assert!(completions.contains(&format!("behaveguard,{name})")), "{name}");
    }
    let refused = behaveguard(&["man", "/no/such/folder"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("/no/such/folder: No such file"));
}
