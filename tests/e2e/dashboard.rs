//! The dashboard in a real browser: signs in, shows what is there, and shows what comes without being asked again.

use std::path::Path;
use std::time::Duration;

use models::wire::{self, Answer, DeviceEvent, Downlink, EventKind, Request, Uplink, UplinkFrame};
use rumqttc::Packet;
use serde_json::json;
use tests::browser::Browser;
use tests::fleet::Fleet;
use tests::process::checker;

use crate::device::{Device, alert, enroll};

#[test]
fn an_alert_appears_without_reloading_and_nothing_in_it_is_run() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    device.listen();
    device.publish_as("gw-a", &alert(1, "opened the sensitive file /etc/shadow; it never did before"));
    device.acknowledged(1).unwrap();

    let browser = Browser::start(&dir.path().join("browser"), 1280, 900).unwrap();
    browser.open(&fleet.url().unwrap()).unwrap();
    browser.eval("document.getElementById('token').value = 'wrong'").unwrap();
    browser.eval("document.querySelector('#sign-in button').click()").unwrap();
    browser.wait("document.getElementById('refused').textContent.includes('not accepted')").unwrap();
    let refused = browser.complaints().unwrap();
    assert!(refused.iter().all(|line| line["message"].to_string().contains("401")), "{refused:?}");

    // A link with the token signs in; only the part after # changes, so it is opened from another page.
    browser.open("about:blank").unwrap();
    browser.open(&format!("{}/#token={}", fleet.url().unwrap(), fleet.token().unwrap())).unwrap();
    browser.wait("document.getElementById('link').textContent === 'live'").unwrap();
    assert_eq!(browser.eval("location.hash").unwrap(), "", "the token stays in the address");
    browser.wait(&shown("/etc/shadow")).unwrap();
    browser.wait("document.querySelector('.tile strong').textContent === '1 / 1'").unwrap();

    browser.eval("window.here = 'not reloaded'").unwrap();
    device.publish_as("gw-a", &alert(2, "<img src=x onerror=\"window.run = 1\"> came while you looked"));
    browser.wait(&shown("came while you looked")).unwrap();
    assert_eq!(browser.eval("window.here").unwrap(), "not reloaded");
    assert_eq!(
        browser.eval("window.run === undefined && !document.querySelector('#alerts img')").unwrap(),
        true
    );
    // What the agent did comes the same way; the button asks the device to undo it.
    let event = DeviceEvent {
        unix_ms: 1_800_000_000_003,
        kind: EventKind::Contained,
        program: None,
        containment: Some(9),
        text: "9: stop of process 7, <b>pump</b>".into(),
    };
    device.publish_as("gw-a", &UplinkFrame { epoch: 1, seq: 3, body: Uplink::Event(event) });
    browser.wait("document.querySelector('#events li[data-kind=contained] button') !== null").unwrap();
    assert_eq!(browser.eval("document.querySelector('#events b') === null").unwrap(), true);
    browser.eval("document.querySelector('#events li[data-kind=contained] button').click()").unwrap();
    let asked = device.next(|packet| match packet {
        Packet::Publish(publish) => match wire::decode::<Downlink>(&publish.payload) {
            Ok(Downlink::Release { containment }) => Some(containment),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(asked, Ok(9));

    let first = "document.querySelector('#alerts li').textContent";
    assert_eq!(browser.eval(&format!("{first}.includes('CRITICAL 93')")).unwrap(), true);
    assert_eq!(browser.eval(&format!("{first}.includes('T1003.008')")).unwrap(), true);

    let complaints = browser.complaints().unwrap();
    assert!(complaints.is_empty(), "{complaints:?}");
    assert!(browser.picture().unwrap().len() > 10_000);
    keep_picture(&browser, "live");
}

/// Whether an alert with this text is shown.
fn shown(text: &str) -> String {
    format!(
        "[...document.querySelectorAll('#alerts li[data-id]')].some(item => item.textContent.includes({text:?}))"
    )
}

/// Opens a page of the dashboard and waits for its title and something on it.
pub(crate) fn go(browser: &Browser, hash: &str, title: &str, wanted: &str) {
    browser.eval(&format!("location.hash = {hash:?}")).unwrap();
    let there =
        format!("document.querySelector('#page h1')?.textContent.startsWith({title:?}) && !!({wanted})");
    browser.wait(&there).unwrap_or_else(|error| {
        panic!("{hash}: {error}\n{}", browser.eval("document.body.innerText").unwrap());
    });
}

/// Keeps a picture of the window for people: `target/tmp/dashboard-<name>.png`.
pub(crate) fn keep_picture(browser: &Browser, name: &str) {
    let png = data_encoding::BASE64.decode(browser.picture().unwrap().as_bytes()).unwrap();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("dashboard-{name}.png"));
    std::fs::write(file, png).unwrap();
}

/// What people with assistive technology could not use, by the rules of WCAG 2.2 AA that axe knows.
pub(crate) fn check_accessibility(browser: &Browser, pages: &[(&str, &str)]) {
    let axe = checker("axe/axe_playwright_python/axe.min.js").unwrap();
    browser.run(&std::fs::read_to_string(axe).unwrap()).unwrap();
    for (hash, title) in pages {
        go(browser, hash, title, "true");
        browser.run("window.found = null").unwrap();
        let run = "axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] })
            .then((result) => { window.found = result.violations.map((one) => one.id + ': ' + one.help + ': ' +
                one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200) + ' ' + node.failureSummary).join(' | ')); })";
        browser.run(run).unwrap();
        browser.wait("window.found !== null").unwrap();
        assert_eq!(browser.eval("window.found.join('\\n')").unwrap(), "", "{hash}");
    }
}

#[test]
fn every_page_shows_what_it_is_for_and_an_analyst_works_through_it() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let mut devices = Vec::new();
    for (name, seqs) in [("gw-a", 1..=6), ("gw-b", 1..=2)] {
        let (identity, tls) = enroll(dir.path(), &fleet, name);
        let device = Device::connect(&identity, tls);
        device.welcome().unwrap();
        device.listen();
        for seq in seqs.clone() {
            let mut frame = alert(seq, &format!("touched /srv/file-{seq}; it never did before"));
            if let Uplink::Alert(alert) = &mut frame.body {
                alert.program.exe = format!("/usr/bin/program-{}", seq % 3);
                alert.score = 60.0 + 6.0 * seq as f32;
                let severities = [models::policy::Severity::Medium, models::policy::Severity::High];
                alert.severity = severities[seq as usize % 2];
            }
            device.publish_as(name, &frame);
        }
        device.acknowledged(*seqs.end()).unwrap();
        devices.push(device);
    }
    let analyst = fleet.command(&["user", "add", "anna", "--role", "analyst"]).unwrap();
    let browser = Browser::start(&dir.path().join("browser"), 1280, 1000).unwrap();
    browser.open(&format!("{}/#token={analyst}", fleet.url().unwrap())).unwrap();
    browser.wait("document.getElementById('link').textContent === 'live'").unwrap();
    go(
        &browser,
        "#/",
        "Overview",
        "document.querySelectorAll('.heat rect').length === 5 && document.querySelector('.bars rect')",
    );
    keep_picture(&browser, "overview");

    go(&browser, "#/alerts", "Alerts", "document.querySelectorAll('#alerts li[data-id]').length === 8");
    keep_picture(&browser, "alerts");
    browser.eval("document.getElementById('words').value = 'file-6'").unwrap();
    browser.eval("document.querySelector('form.filters button').click()").unwrap();
    browser.wait("document.querySelectorAll('#alerts li[data-id]').length === 1 && location.hash.includes('q=file-6')").unwrap();
    browser.eval("document.querySelector('#alerts a').click()").unwrap();
    browser.wait("document.querySelector('#reasons li') && document.body.innerText.includes('none of 1 other device did the same')").unwrap();
    let press = |text: &str| {
        let button = format!(
            "[...document.querySelectorAll('#page button')].find(b => b.textContent === {text:?}).click()"
        );
        browser.eval(&button).unwrap();
    };
    press("acknowledged");
    browser.wait("document.querySelector('[aria-pressed=true]')?.textContent === 'acknowledged'").unwrap();
    browser.eval("document.getElementById('comment').value = 'is this <i>ours</i>?'").unwrap();
    press("Say it");
    browser.wait("document.getElementById('comments').innerText.includes('is this <i>ours</i>?')").unwrap();
    browser.eval("document.getElementById('suppress').open = true").unwrap();
    browser
        .wait("document.getElementById('suppress').innerText.includes('would have hidden 2 of the last 8')")
        .unwrap();
    keep_picture(&browser, "alert");
    browser.eval("document.getElementById('why').value = 'a release'").unwrap();
    press("Hide them");
    browser.wait("document.getElementById('said').textContent.includes('are hidden from now on')").unwrap();

    go(&browser, "#/incidents", "Incidents", "document.querySelectorAll('#page tbody tr').length >= 1");
    keep_picture(&browser, "incidents");
    go(&browser, "#/incidents/1", "Incident 1", "document.querySelectorAll('#alerts li').length > 1");
    go(&browser, "#/devices", "Devices", "document.querySelectorAll('#devices li').length === 2");
    keep_picture(&browser, "devices");
    go(&browser, "#/devices/gw-a", "gw-a", "document.querySelectorAll('#alerts li').length === 6");
    press("Ask how it is");
    browser
        .wait("document.querySelector('#orders li[data-order=waiting]')?.innerText.includes('by anna')")
        .unwrap();
    press("Take back");
    browser.wait("document.querySelector('#orders').innerText.includes('Nothing.')").unwrap();
    press("Log more");
    browser
        .wait("document.querySelector('#orders').innerText.includes('log from debug on for 600 s: waiting')")
        .unwrap();
    browser.eval("document.getElementById('pid').value = 7").unwrap();
    press("Ask about it");
    browser
        .wait("document.querySelector('#orders').innerText.includes('how process 7 was judged: waiting')")
        .unwrap();
    let order = fleet.get("devices/gw-a/orders").unwrap()["orders"][0]["id"].as_u64().unwrap();
    let last = json!({ "summary": "opened a file", "explanation": { "detectors": [
        { "name": "vae", "z": 4.25, "weight": 0.5, "share": 2.125 }], "evidence": [{ "text": "never <b>before</b>" }] } });
    let text = json!({ "pid": 7, "comm": "pump", "uid": 0, "state": "ACTIVE", "last": last,
        "program": { "unit": "pump.service", "exe": "/usr/bin/pump", "script": null },
        "scores": [{ "unix_ms": 1_800_000_000_000_u64, "score": 3.5 }, { "unix_ms": 1_800_000_030_000_u64, "score": 72.0 }] });
    let answer = Answer { id: order, unix_ms: 1_800_000_000_000, done: true, text: text.to_string() };
    devices[0].publish_as("gw-a", &UplinkFrame { epoch: 1, seq: 7, body: Uplink::Answer(answer) });
    browser
        .wait("document.querySelectorAll('.lately circle').length === 2 && document.querySelector('.lately').innerText.includes('never <b>before</b>')")
        .unwrap();
    press("Record what it judges");
    browser
        .wait("document.querySelector('#orders').innerText.includes('record for 120 s: waiting')")
        .unwrap();
    let order = fleet.get("devices/gw-a/orders").unwrap()["orders"][0]["id"].as_u64().unwrap();
    let answer = Answer { id: order, unix_ms: 1_800_000_000_000, done: true, text: "records".into() };
    devices[0].publish_as("gw-a", &UplinkFrame { epoch: 1, seq: 8, body: Uplink::Answer(answer) });
    browser.wait("document.querySelector('#orders').innerText.includes('record for 120 s: done')").unwrap();
    for offset in [0, 2000] {
        devices[0].ask(&Request::Part { order, size: 4000, offset, data: vec![7; 2000] });
    }
    browser.wait("document.querySelector('#orders').innerText.includes('Take the capture (4 KiB)')").unwrap();
    keep_picture(&browser, "device");
    press("Take the capture (4 KiB)");
    tests::wait_for("the download", Duration::from_secs(20), || {
        Ok(fleet.get("audit")?.to_string().contains("capture.download").then_some(()))
    })
    .unwrap();
    press("Remove it");
    browser.wait("!document.querySelector('#orders').innerText.includes('Take the capture')").unwrap();
    go(&browser, "#/groups/default", "Group default", "document.body.innerText.includes('2 devices')");
    assert_eq!(browser.eval("document.querySelector('textarea') === null").unwrap(), true, "for admins only");
    go(&browser, "#/baselines", "Baselines", "document.body.innerText.includes('No program is learned yet')");
    keep_picture(&browser, "baselines");
    go(&browser, "#/settings", "Settings", "document.body.innerText.includes('a release')");
    assert_eq!(
        browser.eval("document.body.innerText.includes('Audit log')").unwrap(),
        false,
        "for admins only"
    );
    go(&browser, "#/nowhere", "Not found", "true");
    browser.eval("document.getElementById('sign-out').click()").unwrap();
    browser.wait("!document.getElementById('sign-in').hidden").unwrap();
    browser.open("about:blank").unwrap();
    browser.open(&format!("{}/#token={}", fleet.url().unwrap(), fleet.token().unwrap())).unwrap();
    browser.wait("document.getElementById('link').textContent === 'live'").unwrap();
    go(&browser, "#/settings", "Settings", "document.body.innerText.includes('alert.work')");
    press("Make one");
    browser.wait("document.querySelector('.secret code')?.textContent.length > 100").unwrap();
    let put = |field: &str, text: &str| {
        let input = format!("document.getElementById({field:?}).value = {text:?}");
        browser.eval(&input).unwrap();
    };
    put("channel-name", "pager");
    put("channel-url", "https://127.0.0.1:9/alerts");
    press("Add the channel");
    browser.wait("document.querySelector('#channels .secret code')?.textContent.length > 20").unwrap();
    press("Show it in the list");
    browser.wait("document.querySelector('#channels tbody')?.innerText.includes('HIGH and above')").unwrap();
    press("Test");
    browser.wait("document.getElementById('said').textContent.includes('pager did not take it')").unwrap();
    keep_picture(&browser, "settings");

    go(&browser, "#/groups/default", "Group default", "document.querySelector('textarea')");
    browser.eval("document.querySelector('textarea').value = 'heartbeat = \"30s\"'").unwrap();
    press("Preview");
    browser.wait("document.body.innerText.includes('2 devices would be asked to use it')").unwrap();
    press("Give it to the group");
    browser.wait("document.querySelector('#versions li')?.innerText.includes('heartbeat')").unwrap();
    keep_picture(&browser, "group");

    go(&browser, "#/rollouts", "Rollouts", "document.body.innerText.includes('Nothing was rolled out yet')");
    check_accessibility(
        &browser,
        &[
            ("#/", "Overview"),
            ("#/alerts", "Alerts"),
            ("#/alerts/1", "HIGH"),
            ("#/incidents", "Incidents"),
            ("#/incidents/1", "Incident 1"),
            ("#/devices", "Devices"),
            ("#/devices/gw-a", "gw-a"),
            ("#/groups/default", "Group default"),
            ("#/baselines", "Baselines"),
            ("#/rollouts", "Rollouts"),
            ("#/updates", "Updates"),
            ("#/settings", "Settings"),
        ],
    );
    let complaints = browser.complaints().unwrap();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn the_dashboard_fits_a_phone() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) =
        enroll(dir.path(), &fleet, "gateway-with-a-long-name-in-the-basement-of-plant-seven");
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    device.listen();
    device.publish_as(&identity.device, &alert(1, &"a very long path /".repeat(20)));
    device.acknowledged(1).unwrap();
    let browser = Browser::start(&dir.path().join("browser"), 500, 800).unwrap();
    browser.open(&format!("{}/#token={}", fleet.url().unwrap(), fleet.token().unwrap())).unwrap();
    browser.wait("document.querySelectorAll('#alerts li[data-id]').length === 1").unwrap();
    for hash in ["#/alerts", "#/alerts/1", "#/devices", "#/groups/default", "#/", "#/settings"] {
        browser.eval(&format!("location.hash = {hash:?}")).unwrap();
        browser.wait("document.querySelectorAll('#page h1').length === 1").unwrap();
        let wide = browser
            .eval("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            .unwrap();
        let which = browser.eval("[...document.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.tagName + e.id).join(' ')").unwrap();
        assert_eq!(wide, 0, "{hash} scrolls sideways because of {which}");
    }
}
