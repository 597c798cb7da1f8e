//! Who may use the API, how often, and what is written down about it.

use serde_json::{Value, json};
use tests::fleet::{Fleet, ON_POSTGRES};

#[test]
fn the_api_answers_only_who_has_the_token_and_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    for path in
        ["alerts", "devices", "training", "counters", "alerts/1", "stream", "users", "audit", "metrics"]
    {
        let (status, body) = fleet.ask(path, "not the token").unwrap();
        assert_eq!((status, body["code"].as_str()), (401, Some("unauthorized")), "{path}");
    }
    let token = fleet.token().unwrap();
    for (path, expected) in [
        ("health", 200),
        ("alerts", 200),
        ("devices", 200),
        ("devices/none", 404),
        ("alerts/99", 404),
        ("alerts/x", 400),
        ("alerts?limit=many", 400),
        ("alerts?colour=red", 400),
        ("nothing", 404),
    ] {
        let (status, body) = fleet.ask(path, &token).unwrap();
        assert_eq!(status, expected, "{path}: {body}");
        if status != 200 {
            // RFC 9457, with a hint.
            assert_eq!(body["status"], status, "{path}: {body}");
            let texts = ["type", "title", "detail", "code", "hint"];
            assert!(texts.iter().all(|name| body[name].is_string()), "{path}: {body}");
        }
    }
}

#[test]
fn each_role_may_do_what_it_is_for_and_every_change_is_in_the_audit_log() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let owner = fleet.token().unwrap();
    let viewer = fleet.command(&["user", "add", "vera"]).unwrap();
    let analyst = fleet.command(&["user", "add", "anna", "--role", "analyst"]).unwrap();
    let send = |method: &str, path: &str, body: Option<Value>, token: &str| {
        fleet.send(method, path, body.as_ref(), token).unwrap()
    };
    let train = json!({ "device": "gw", "program_key": "0" });
    for (method, path, body, [as_viewer, as_analyst, as_owner]) in [
        ("GET", "alerts", None, [200, 200, 200]),
        ("GET", "me", None, [200, 200, 200]),
        ("POST", "training", Some(train), [403, 404, 404]),
        ("POST", "devices/gw/release", Some(json!({ "containment": 1 })), [403, 404, 404]),
        ("POST", "devices/gw/revoke", None, [403, 403, 404]),
        ("PATCH", "devices/gw", Some(json!({ "group": "g" })), [403, 403, 404]),
        ("GET", "tokens", None, [403, 403, 200]),
        ("GET", "users", None, [403, 403, 200]),
        ("GET", "audit", None, [403, 403, 200]),
    ] {
        for (token, expected) in [(&viewer, as_viewer), (&analyst, as_analyst), (&owner, as_owner)] {
            let (status, answer) = send(method, path, body.clone(), token);
            assert_eq!(status, expected, "{method} {path}: {answer}");
        }
    }
    assert_eq!(send("GET", "me", None, &analyst).1, json!({ "name": "anna", "role": "analyst" }));

    // Made over the API, a token works at once, and is worth nothing the moment it is removed.
    let (status, made) = send("POST", "users/vera/tokens", Some(json!({ "label": "wall screen" })), &owner);
    assert_eq!(status, 201, "{made}");
    let second = made["token"].as_str().unwrap();
    assert_eq!(send("GET", "alerts", None, second).0, 200);
    let id = made["id"].as_str().unwrap();
    assert_eq!(send("DELETE", &format!("users/vera/tokens/{id}"), None, &owner).0, 204);
    assert_eq!(send("GET", "alerts", None, second).0, 401);
    assert_eq!(send("PUT", "users/vera", Some(json!({ "role": "analyst" })), &owner).0, 204);
    assert_eq!(send("GET", "me", None, &viewer).1["role"], "analyst");
    fleet.command(&["user", "remove", "vera"]).unwrap();
    assert_eq!(send("GET", "alerts", None, &viewer).0, 401);
    assert_eq!(send("PUT", "users/owner", Some(json!({ "role": "viewer" })), &owner).0, 409);
    assert!(fleet.command(&["user", "add", "owner"]).is_err(), "a name of the server's own");

    // Hashes only: no token can be found in the database.
    let files = ["fleet.db", "fleet.db-wal"].into_iter().filter(|_| std::env::var_os(ON_POSTGRES).is_none());
    for file in files {
        let bytes = std::fs::read(fleet.state().join(file)).unwrap();
        for secret in [&viewer, &analyst, &owner] {
            assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{file}");
        }
    }
    let (_, audit) = send("GET", "audit", None, &owner);
    let entries: Vec<_> = audit["audit"].as_array().unwrap().iter().rev().collect();
    let told: Vec<_> = entries
        .iter()
        .map(|entry| ["who", "action", "target", "detail"].map(|key| entry[key].as_str().unwrap()))
        .collect();
    assert_eq!(
        told,
        [
            ["local", "user.set", "vera", "viewer"],
            ["local", "user.set", "anna", "analyst"],
            ["owner", "user.token.create", "vera", "wall screen"],
            ["owner", "user.token.delete", "vera", id],
            ["owner", "user.set", "vera", "analyst"],
            ["local", "user.delete", "vera", ""],
        ],
        "refused changes are no changes"
    );
    assert_eq!(entries[2]["from"], "127.0.0.1");
}

#[test]
fn a_client_beyond_its_rate_is_told_when_to_come_back_and_others_are_not_held_up() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start_with(&dir.path().join("fleet"), 60, "requests_per_minute = 5\n").unwrap();
    let owner = fleet.token().unwrap();
    let other = fleet.command(&["user", "add", "vera"]).unwrap();
    let refused =
        (0..8).map(|_| fleet.ask("me", &owner).unwrap()).filter(|(status, _)| *status == 429).count();
    assert_eq!(refused, 3);
    assert_eq!(fleet.ask("me", &other).unwrap().0, 200);
    // Guesses are counted by address, and enrolling with a good token is not held up by the rate.
    let guesses = (0..8).map(|_| fleet.ask("me", "guess").unwrap().0);
    assert_eq!(guesses.filter(|status| *status == 401).count(), 5);
    assert_eq!(fleet.ask("health", "").unwrap().0, 200);
}
