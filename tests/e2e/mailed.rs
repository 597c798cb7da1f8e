//! Alerts as mail, to a real mail server.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tests::fleet::Fleet;
use tests::process::Process;
use tests::wait_for;

use crate::device::{Device, alert, enroll};

/// The mails that came, in their order: the line with sender and receivers, and the mail.
fn mails(folder: &Path) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let read = |file: std::path::PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        let (head, mail) = text.split_once('\n').unwrap();
        (format!("{} {head}", file.display()), mail.to_owned())
    };
    files.into_iter().map(read).collect()
}

#[test]
fn an_alert_comes_as_mail_over_tls_and_never_without() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    fs::write(file("certificate"), certificate.pem()).unwrap();
    fs::write(file("key"), key.serialize_pem()).unwrap();
    let folder = dir.path().join("mails");
    fs::create_dir(&folder).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/mail-server.py");
    let log = dir.path().join("ports");
    let arguments = [script, &file("certificate"), &file("key"), &file("mails")];
    let mut server = Process::start("/usr/bin/python3".as_ref(), &arguments, &log, Stdio::null()).unwrap();
    let ports = wait_for("the mail server", Duration::from_secs(20), || {
        server.check()?;
        let said = fs::read_to_string(&log).unwrap_or_default();
        let ports: Vec<u16> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        Ok((ports.len() == 2 && said.ends_with('\n')).then_some(ports))
    })
    .unwrap();

    let make = |name: &str, url: String, password: &str| {
        let body = json!({
            "name": name, "url": url, "ca_pem": certificate.pem(), "severity": "CRITICAL",
            "mail": { "from": "BehaveGuard <bg@example.org>", "to": ["soc@example.org", "ops@example.org"],
                      "user": "behaveguard", "password": password },
        });
        let (status, made) = fleet.post("channels", &body).unwrap();
        assert_eq!(status, 201, "{made}");
        made["id"].as_u64().unwrap()
    };
    let test = |id: u64| fleet.post(&format!("channels/{id}/test"), &Value::Null).unwrap().1;
    let wrong = make("wrong", format!("smtps://127.0.0.1:{}", ports[0]), "guessed");
    let refused = test(wrong);
    assert!(
        refused["delivered"] == false && refused["error"].as_str().unwrap().contains("smtps://"),
        "{refused}"
    );
    // A server that speaks without TLS is not spoken to.
    let plain = make("plain", format!("smtps://127.0.0.1:{}", ports[1]), "a secret");
    assert_eq!(test(plain)["delivered"], false);
    for id in [wrong, plain] {
        let token = fleet.token().unwrap();
        assert_eq!(fleet.send("DELETE", &format!("channels/{id}"), None, &token).unwrap().0, 204);
    }
    let first = make("first", format!("smtps://127.0.0.1:{}", ports[0]), "a secret");
    let second = make("second", format!("smtp+starttls://127.0.0.1:{}", ports[1]), "a secret");
    for id in [first, second] {
        let told = test(id);
        assert_eq!(told["delivered"], true, "{told}");
    }
    assert_eq!(mails(&folder).len(), 2);
    let listed = fleet.get("channels").unwrap();
    assert!(!listed.to_string().contains("a secret"), "{listed}");

    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    device.publish_as("gw-a", &alert(1, "opened the sensitive file /etc/shadow"));
    let came = wait_for("both mails", Duration::from_secs(20), || {
        let came = mails(&folder);
        Ok((came.len() == 4).then_some(came))
    })
    .unwrap();
    for (head, mail) in &came[2..] {
        assert!(head.ends_with("-tls bg@example.org soc@example.org ops@example.org"), "{head}");
        assert!(mail.contains("Subject: CRITICAL on gw-a: opened the sensitive file /etc/shadow"), "{mail}");
        assert!(mail.contains("/#/alerts/1"), "{mail}");
    }
}
