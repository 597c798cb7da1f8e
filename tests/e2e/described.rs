//! The API does what its description says, and nothing else: a checker from outside reads it and tries.

use std::process::Command;

use serde_json::json;
use tests::fleet::Fleet;
use tests::process::checker;

use crate::device::{Device, alert, enroll};

/// Requests per operation and phase.
const EXAMPLES: &str = "15";

#[test]
fn every_operation_answers_as_its_description_says_whatever_it_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    device.listen();
    for seq in 1..=3 {
        device.publish_as("gw-a", &alert(seq, "opened the sensitive file /etc/shadow; it never did before"));
    }
    device.acknowledged(3).unwrap();
    let url = format!("{}/api/v1/openapi.json", fleet.url().unwrap());
    let ask = || {
        Command::new(checker("bin/st").unwrap())
            .args([
                "--config-file",
                concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/schemathesis.toml"),
                "--no-color",
            ])
            .args(["run", &url, "--max-examples", EXAMPLES, "--seed", "1"])
            // These never end.
            .args(["--exclude-path", "/api/v1/stream", "--exclude-path", "/api/v1/ws/alerts"])
            .arg("--header")
            .arg(format!("Authorization: Bearer {}", fleet.token().unwrap()))
            .arg("--tls-verify")
            .arg(fleet.state().join("ca.pem"))
            .current_dir(dir.path())
            .env_remove("HTTPS_PROXY")
            .output()
            .unwrap()
    };
    let mut output = ask();
    // A machine with too much to do gives up TLS handshakes after ten seconds; that says nothing of the answers.
    if String::from_utf8_lossy(&output.stdout).contains("Network Error") {
        output = ask();
    }
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    let tried = told.lines().find(|line| line.contains(" generated, ")).unwrap_or_default();
    let tried: u32 = tried.trim().split(' ').next().unwrap().parse().unwrap();
    assert!(tried > 1000, "{told}");
}

#[test]
fn the_description_is_open_and_names_every_operation_once() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (status, described) = fleet.ask("openapi.json", "").unwrap();
    assert_eq!((status, &described["openapi"]), (200, &json!("3.1.0")));
    let paths = described["paths"].as_object().unwrap();
    let operations: Vec<_> = paths.values().flat_map(|path| path.as_object().unwrap().values()).collect();
    let mut names: Vec<_> = operations.iter().map(|one| one["operationId"].as_str().unwrap()).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert!(all >= 45 && names.len() == all, "{names:?}");
    for one in &operations {
        assert!(one["summary"].as_str().is_some_and(|text| text.ends_with('.')), "{one}");
        assert!(one["responses"]["503"].is_object() || one["operationId"] == "system_openapi", "{one}");
    }
    let audit = &described["paths"]["/api/v1/audit"]["get"];
    assert_eq!(audit["description"], "Needs the role admin.");
    assert_eq!(audit["security"], json!([{ "bearer": [] }]));
    assert!(described["paths"]["/api/v1/health"]["get"]["security"].is_null());
}
