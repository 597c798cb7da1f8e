//! Who may use the API, how often, and what is written down about it.

use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serde_json::{Value, json};
use tests::fleet::{Fleet, ON_POSTGRES};
use tests::process::binary;
use tests::wait_for;

/// Whether a handshake in one version of TLS begins.
fn speaks(fleet: &Fleet, address: &str, version: &'static rustls::SupportedProtocolVersion) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(fleet.state().join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    while connection.is_handshaking() {
        if connection.complete_io(&mut tcp).is_err() {
            return false;
        }
    }
    true
}

#[test]
fn the_fleet_speaks_tls_1_3_and_nothing_older() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let web = fleet.url().unwrap().trim_start_matches("https://").to_owned();
    for address in [fleet.mqtt().unwrap(), web] {
        assert!(speaks(&fleet, &address, &rustls::version::TLS13), "{address}");
        assert!(!speaks(&fleet, &address, &rustls::version::TLS12), "{address}");
    }
}

#[test]
fn what_the_fleet_server_holds_in_memory_is_in_no_core_file_and_not_for_others_of_its_user() {
    const NOBODY: u32 = 65_534;
    crate::needs_root();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("fleet");
    for folder in [dir.path(), &state] {
        std::fs::create_dir_all(folder).unwrap();
        std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // Where the programs are built another user may not look.
    let program = dir.path().join("behaveguard-fleet");
    std::fs::copy(binary("behaveguard-fleet").unwrap(), &program).unwrap();
    let mut server = Command::new(&program)
        .args(["run", "--state"])
        .arg(&state)
        .args(["--mqtt", "127.0.0.1:0", "--web", "127.0.0.1:0"])
        .uid(NOBODY)
        .gid(NOBODY)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the server", Duration::from_secs(20), || {
        Ok(state.join("addresses.json").exists().then_some(()))
    })
    .unwrap();
    // What may be dumped belongs to the user that runs it, see proc(5).
    let of = |name: &str| std::fs::metadata(format!("/proc/{}/{name}", server.id())).unwrap().uid();
    let owners = (of("mem"), of("environ"));
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(owners, (0, 0));
}

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
        ("POST", "devices/gw/orders", Some(json!({ "order": { "kind": "doctor" } })), [403, 404, 404]),
        ("POST", "groups/g/configurations", Some(json!({ "text": "", "over": 99 })), [403, 403, 409]),
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
