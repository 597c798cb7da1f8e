//! People sign in at an identity provider, with a browser.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tests::browser::Browser;
use tests::fleet::Fleet;
use tests::process::{Process, checker};
use tests::{Failed, wait_for};

use crate::dashboard::keep_picture;

const SECRET: &str = "what-only-both-know";

/// Starts the provider in `dir`; gives what the fleet server's configuration says of it.
fn provider(dir: &Path) -> (Process, String) {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let file = |name: &str| dir.join(name).display().to_string();
    fs::write(file("certificate"), certificate.pem()).unwrap();
    fs::write(file("key"), key.serialize_pem()).unwrap();
    fs::write(file("secret"), format!("{SECRET}\n")).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/identity-provider.py");
    let python = checker("bin/python").unwrap();
    let (arguments, log) = ([script, &file("certificate"), &file("key"), SECRET], dir.join("port"));
    let mut server = Process::start(&python, &arguments, &log, Stdio::null()).unwrap();
    let port = wait_for("the identity provider", Duration::from_secs(30), || {
        server.check()?;
        let said = fs::read_to_string(&log).unwrap_or_default();
        let port = said.split_once('\n').and_then(|(first, _)| first.trim().parse::<u16>().ok());
        Ok(port)
    });
    let config = format!(
        "[oidc]\nissuer = \"https://localhost:{}\"\nclient_id = \"behaveguard\"\nca_file = {:?}\n\
         client_secret_file = {:?}\n[oidc.roles]\nanalyst = [\"soc\"]\nadmin = [\"fleet-admins\"]\n",
        port.unwrap(),
        file("certificate"),
        file("secret"),
    );
    (server, config)
}

/// Goes from the sign-in page to the provider, says a name there, and comes back.
fn go_as(browser: &Browser, fleet: &Fleet, name: &str) -> Result<(), Failed> {
    browser.open(&format!("{}/?{name}", fleet.url()?))?;
    browser.wait("!document.getElementById('elsewhere').hidden")?;
    browser.run("document.querySelector('#elsewhere a').click()")?;
    browser.wait("document.title === 'Who are you?'")?;
    browser.run(&format!(
        "document.querySelector('input').value = '{name}'; document.querySelector('button').click()"
    ))
}

#[test]
fn people_sign_in_at_their_provider_with_the_role_of_their_group_and_nobody_with_a_bad_token() {
    let dir = tempfile::tempdir().unwrap();
    let (_provider, config) = provider(dir.path());
    let fleet = Fleet::start_with(&dir.path().join("fleet"), 1000, &config).unwrap();
    let browser = Browser::start(&dir.path().join("browser"), 1280, 900).unwrap();
    let is_live = "document.getElementById('link').textContent === 'live'";

    for (who, role) in [("anna", "analyst"), ("carol", "admin")] {
        go_as(&browser, &fleet, who).unwrap();
        browser.wait(is_live).unwrap();
        let token = browser.eval("sessionStorage.getItem('token')").unwrap();
        let token = token.as_str().unwrap();
        let (status, me) = fleet.ask("me", token).unwrap();
        assert_eq!((status, &me["role"]), (200, &role.into()), "{me}");
        assert!(me["name"].as_str().unwrap().starts_with(&format!("{who}-")), "{me}");
        assert_eq!(browser.eval("document.cookie").unwrap(), "", "what was kept for the way is gone");
        browser.run("document.getElementById('sign-out').click()").unwrap();
        wait_for("the end of the session", Duration::from_secs(20), || {
            Ok((fleet.ask("me", token)?.0 == 401).then_some(()))
        })
        .unwrap();
    }

    let refused = |who: &str, why: &str| {
        go_as(&browser, &fleet, who).unwrap();
        browser.wait("document.getElementById('refused')?.textContent.length > 0").unwrap();
        let told = browser.eval("document.getElementById('refused').textContent").unwrap();
        assert!(told.as_str().unwrap().contains(why), "{who}: {told}");
    };
    refused("bob", "in none of the groups");
    keep_picture(&browser, "signed-in-nowhere");
    refused("anna-nonce", "another nonce");
    refused("anna-audience", "InvalidAudience");
    refused("anna-issuer", "InvalidIssuer");
    refused("anna-key", "InvalidSignature");
    refused("anna-late", "ExpiredSignature");
    // A code that somebody else brought.
    let before = fleet.counter("sign_in_refused").unwrap();
    fleet.file("oidc/callback?code=x&state=y").unwrap();
    assert_eq!(fleet.counter("sign_in_refused").unwrap(), before + 1);
    assert_eq!((fleet.counter("signed_in").unwrap(), before), (2, 6));

    let users = fleet.get("users").unwrap()["users"].clone();
    assert_eq!(users.as_array().unwrap().len(), 2, "{users}");
    let audit = fleet.get("audit?limit=10").unwrap().to_string();
    assert_eq!(audit.matches("user.sign_in").count(), 2, "{audit}");
}
