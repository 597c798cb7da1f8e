//! The dashboard in a real browser: signs in, shows what is there, and shows what comes without being asked again.

use models::wire::{self, DeviceEvent, Downlink, EventKind, Uplink, UplinkFrame};
use rumqttc::Packet;
use tests::browser::Browser;
use tests::fleet::Fleet;

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
    let shown = |text: &str| {
        format!(
            "[...document.querySelectorAll('#alerts li[data-id]')].some(item => item.textContent.includes({text:?}))"
        )
    };
    browser.wait(&shown("/etc/shadow")).unwrap();
    browser.wait("document.querySelector('#devices li').dataset.state === 'online'").unwrap();

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
    let wide =
        browser.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth").unwrap();
    let which = browser.eval("[...document.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.tagName + e.id).join(' ')").unwrap();
    assert_eq!(wide, 0, "the page scrolls sideways because of {which}");
}
