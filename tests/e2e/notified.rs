//! Channels that people are told through: what is posted, what happens when nobody answers, and in a flood.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rumqttc::Packet;
use serde_json::{Value, json};
use tests::fleet::Fleet;
use tests::wait_for;

use crate::device::{Device, alert, enroll};

/// A server that answers every post with one status, and gives what it got: head lines and body.
struct Hook {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    posts: Receiver<(Vec<String>, Value)>,
}

impl Hook {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let status = Arc::new(AtomicU16::new(200));
        let (tell, posts) = channel();
        let answer = Arc::clone(&status);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut head = Vec::new();
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                        break;
                    }
                    head.push(line.trim().to_ascii_lowercase());
                }
                let Some(length) = head.iter().find_map(|line| line.strip_prefix("content-length: ")) else {
                    continue;
                };
                let mut body = vec![0; length.parse().unwrap()];
                reader.read_exact(&mut body).unwrap();
                let status = answer.load(Relaxed);
                write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .unwrap();
                if tell.send((head, serde_json::from_slice(&body).unwrap())).is_err() {
                    return;
                }
            }
        });
        Self { address, status, posts }
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    fn next(&self) -> (Vec<String>, Value) {
        self.posts.recv_timeout(Duration::from_secs(60)).expect("a post")
    }

    fn nothing(&self) -> bool {
        self.posts.recv_timeout(Duration::from_millis(1500)).is_err()
    }
}

fn tell(device: &Device, seq: u64, text: &str) {
    device.publish_as(&device.name, &alert(seq, text));
    device.next(|packet| matches!(packet, Packet::PubAck(_)).then_some(())).unwrap();
}

#[test]
fn a_channel_is_told_of_what_it_is_for_signed_and_again_until_it_takes_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    let (hook, other) = (Hook::start(), Hook::start());
    let make = |body: Value| fleet.post("channels", &body).unwrap();
    let (status, made) = make(json!({ "name": "on-call", "url": hook.url(), "severity": "CRITICAL" }));
    assert_eq!(status, 201, "{made}");
    let secret = made["secret"].as_str().unwrap().to_owned();
    let filtered =
        json!({ "name": "pumps", "url": other.url(), "format": "slack", "matcher": { "exe": "/opt/*" } });
    assert_eq!(make(filtered).0, 201);
    assert_eq!(make(json!({ "name": "on-call", "url": hook.url() })).0, 409, "the name is taken");
    for bad in [
        json!({ "name": "x", "url": "ftp://h" }),
        json!({ "name": "X", "url": hook.url() }),
        json!({ "name": "x", "url": hook.url(), "severity": "LOUD" }),
        json!({ "name": "x", "url": hook.url(), "format": "cef" }),
        json!({ "name": "x", "url": "syslog+tls://siem.example:6514", "format": "slack" }),
        json!({ "name": "x", "url": "syslog+tls://siem.example" }),
    ] {
        assert!([400, 422].contains(&make(bad.clone()).0), "{bad}");
    }
    // The test button says what became of it.
    assert_eq!(fleet.post("channels/1/test", &json!({})).unwrap().1["delivered"], true);
    assert_eq!(hook.next().1["type"], "test");

    tell(&device, 1, "opened /etc/shadow");
    let (head, body) = hook.next();
    assert_eq!((&body["type"], &body["alert"]["summary"]), (&json!("alert"), &json!("opened /etc/shadow")));
    let signed = head.iter().find_map(|line| line.strip_prefix("behaveguard-signature: t=")).unwrap();
    let (at, mac) = signed.split_once(",v1=").unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    let mac = data_encoding::HEXLOWER.decode(mac.as_bytes()).unwrap();
    ring::hmac::verify(&key, format!("{at}.{body}").as_bytes(), &mac)
        .expect("the signature of time and body");
    assert!(other.nothing(), "an alert that the channel is not for");

    // Refused, it is tried again; the server is killed in between.
    hook.status.store(500, Relaxed);
    tell(&device, 2, "started a shell");
    assert_eq!(hook.next().1["alert"]["id"], 2);
    wait_for("the reason", Duration::from_secs(10), || {
        let channels = fleet.get("channels")?;
        Ok((channels["channels"][0]["error"].to_string().contains("answered 500")).then_some(()))
    })
    .unwrap();
    let (status, told) = fleet.post("channels/1/test", &json!({})).unwrap();
    assert_eq!((status, &told["delivered"]), (200, &json!(false)), "{told}");
    hook.next();
    fleet.kill().unwrap();
    fleet.restart().unwrap();
    hook.status.store(200, Relaxed);
    let (_, again) = hook.next();
    assert_eq!(again["alert"]["id"], 2, "{again}");
    wait_for("the end", Duration::from_secs(10), || {
        let channel = fleet.get("channels")?["channels"][0].clone();
        Ok((channel["waiting"] == 0 && channel["delivered"] == 2 && channel["error"].is_null()).then_some(()))
    })
    .unwrap();
    assert!(hook.nothing());
}

#[test]
fn a_flood_of_alerts_comes_as_one_digest() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    let hook = Hook::start();
    let channel = json!({ "name": "chat", "url": hook.url(), "per_minute": 3 });
    assert_eq!(fleet.post("channels", &channel).unwrap().0, 201);
    for seq in 1..=50 {
        device.publish_as("gw-a", &alert(seq, "the same"));
    }
    let mut told = 0;
    let mut posts = 0;
    while told < 50 && posts < 4 {
        let (_, body) = hook.next();
        posts += 1;
        told += if body["type"] == "digest" { body["alerts"].as_u64().unwrap() } else { 1 };
        assert!(body["type"] != "digest" || body["newest"].as_array().unwrap().len() <= 10);
    }
    // What came while the third was posted waits for the next minute.
    assert!(posts <= 3, "{posts} posts for {told} alerts");
    let waiting = fleet.get("channels").unwrap()["channels"][0]["waiting"].as_u64().unwrap();
    assert!(told + waiting >= 50, "{told} told, {waiting} wait");
}

/// A receiver of syslog over TLS: gives all that each connection said, and the certificate to trust.
fn collector() -> (SocketAddr, String, Receiver<String>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, said) = channel();
    std::thread::spawn(move || {
        for tcp in listener.incoming() {
            let tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut text = String::new();
            // One that does not trust the certificate says nothing.
            let read = rustls::StreamOwned::new(tls, tcp.unwrap()).read_to_string(&mut text);
            if read.is_ok() && tell.send(text).is_err() {
                return;
            }
        }
    });
    (address, made.cert.pem(), said)
}

#[test]
fn a_log_server_is_told_over_tls_in_the_form_it_reads() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    let (address, ca_pem, said) = collector();
    let url = format!("syslog+tls://localhost:{}", address.port());
    for format in ["syslog", "cef", "ocsf"] {
        let channel = json!({ "name": format, "url": url, "format": format, "ca_pem": ca_pem });
        assert_eq!(fleet.post("channels", &channel).unwrap().0, 201);
    }
    // Who does not show the certificate that is trusted is told nothing.
    let stranger = json!({ "name": "stranger", "url": url, "ca_pem": collector().1 });
    let id = fleet.post("channels", &stranger).unwrap().1["id"].as_u64().unwrap();
    let (_, told) = fleet.post(&format!("channels/{id}/test"), &json!({})).unwrap();
    assert!(told["delivered"] == false && told["error"].to_string().contains("certificate"), "{told}");

    tell(&device, 1, "opened /etc/shadow");
    let mut forms: Vec<String> = Vec::new();
    for _ in 0..3 {
        let text = said.recv_timeout(Duration::from_secs(60)).expect("a message");
        let (length, message) = text.split_once(' ').unwrap();
        assert_eq!(length.parse::<usize>().unwrap(), message.len(), "RFC 6587: the length comes first");
        assert!(
            message.starts_with("<82>1 ") && message.contains(" gw-a behaveguard-fleet - CRITICAL "),
            "{message}"
        );
        forms.push(message.split_once('\u{feff}').unwrap().1.to_owned());
    }
    assert!(forms.iter().any(|text| text == "opened /etc/shadow"), "{forms:?}");
    assert!(forms.iter().any(|text| text.starts_with("CEF:0|BehaveGuard|")), "{forms:?}");
    let ocsf = forms.iter().find_map(|text| serde_json::from_str::<Value>(text).ok()).unwrap();
    assert_eq!((&ocsf["class_uid"], &ocsf["device"]["hostname"]), (&json!(2004), &json!("gw-a")));
}
