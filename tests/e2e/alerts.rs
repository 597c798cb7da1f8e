//! Alerts are found by what is in them, grouped, worked on, and hidden by rules.

use std::path::Path;

use rumqttc::Packet;
use serde_json::{Value, json};
use tests::fleet::Fleet;

use crate::device::{Device, alert, enroll};
use models::wire::{Uplink, UplinkFrame};

/// Has a device say these, in order.
fn say(dir: &Path, fleet: &Fleet, device: &str, frames: &[UplinkFrame]) {
    let (identity, tls) = enroll(dir, fleet, device);
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    for frame in frames {
        device.publish_as(&device.name, frame);
        device.next(|packet| matches!(packet, Packet::PubAck(_)).then_some(())).unwrap();
    }
}

/// An alert of another program, with another reason.
fn other(seq: u64, exe: &str, reason: &str, score: f32) -> UplinkFrame {
    let mut frame = alert(seq, &format!("{exe} did {reason}"));
    let Uplink::Alert(body) = &mut frame.body else { unreachable!() };
    body.program.exe = exe.into();
    body.reasons[0].name = reason.into();
    body.score = score;
    body.severity =
        if score >= 90.0 { models::policy::Severity::Critical } else { models::policy::Severity::High };
    body.techniques = vec!["T1571".into()];
    frame
}

fn ids(answer: &Value) -> Vec<u64> {
    answer["alerts"].as_array().unwrap().iter().map(|alert| alert["id"].as_u64().unwrap()).collect()
}

#[test]
fn alerts_are_found_by_anything_in_them_in_pages_and_with_counts() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    say(
        dir.path(),
        &fleet,
        "gw-a",
        &[alert(1, "opened /etc/shadow"), other(2, "/usr/bin/nc", "first_port", 75.0)],
    );
    say(
        dir.path(),
        &fleet,
        "gw-b",
        &[alert(1, "opened /etc/shadow"), other(2, "/usr/bin/nc", "first_port", 95.0)],
    );
    fleet.command(&["device", "group", "gw-b", "pumps"]).unwrap();
    let token = fleet.token().unwrap();
    let change = |device: &str, body: &Value| {
        fleet.send("PATCH", &format!("devices/{device}"), Some(body), &token).unwrap().0
    };
    assert_eq!(change("gw-b", &json!({ "tags": ["roof", "spare", "roof"] })), 204);
    assert_eq!(change("gw-a", &json!({ "tags": ["roof-2"] })), 204);
    assert_eq!(fleet.get("devices/gw-b").unwrap()["tags"], json!(["roof", "spare"]));
    let tagged = fleet.get("devices?tag=roof").unwrap();
    assert_eq!(
        (tagged["devices"].as_array().unwrap().len(), &tagged["devices"][0]["id"]),
        (1, &json!("gw-b"))
    );
    let many: Vec<String> = (0..17).map(|n| format!("t{n}")).collect();
    assert_eq!(change("gw-a", &json!({ "tags": many })), 400);
    assert_eq!((change("gw-a", &json!({})), change("gw-a", &json!({ "tags": ["A b"] }))), (422, 400));
    assert_eq!(change("nobody", &json!({ "tags": [] })), 404);
    for (query, expected) in [
        ("tag=roof", &[3, 4][..]),
        ("tag=roof-2&q=shadow", &[1]),
        ("tag=roo", &[]),
        ("", &[1, 2, 3, 4][..]),
        ("q=shadow", &[1, 3]),
        ("q=/etc/sha*", &[1, 3]),
        ("q=/etc/sha", &[]),
        ("q=opened%20nc", &[]),
        ("q=T1571", &[2, 4]),
        ("q=first_port%20gw-b", &[4]),
        ("q=%22(", &[1, 2, 3, 4]),
        ("device=gw-a", &[1, 2]),
        ("group=pumps", &[3, 4]),
        ("technique=T1571", &[2, 4]),
        ("technique=T157", &[]),
        ("severity=CRITICAL", &[1, 3, 4]),
        ("severity=high&device=gw-a", &[1, 2]),
        ("state=new&limit=2", &[3, 4]),
        ("before=3&limit=1", &[2]),
        ("after=1&limit=2", &[2, 3]),
        ("until=1", &[]),
        ("since=1&q=nc&severity=CRITICAL", &[4]),
    ] {
        let answer = fleet.get(&format!("alerts?{query}")).unwrap();
        assert_eq!(ids(&answer), expected, "{query}");
    }
    let page = fleet.get("alerts?limit=2").unwrap();
    assert_eq!((&page["next_before"], &page["next_after"]), (&json!(3), &json!(4)));
    let facets = fleet.get("alerts/facets?q=nc").unwrap();
    assert_eq!((&facets["counted"], &facets["complete"]), (&json!(2), &json!(true)));
    let severities = json!([{ "value": "CRITICAL", "alerts": 1 }, { "value": "HIGH", "alerts": 1 }]);
    assert_eq!(facets["severity"], severities);
    assert_eq!(facets["program"][0]["text"], "/usr/bin/nc in pump.service");
    let key = facets["program"][0]["value"].as_str().unwrap();
    assert_eq!(ids(&fleet.get(&format!("alerts?program={key}")).unwrap()), [2, 4]);
    let token = fleet.token().unwrap();
    for bad in ["severity=LOUD", "state=done", "after=1&before=2", "since=noon"] {
        let (status, body) = fleet.ask(&format!("alerts?{bad}"), &token).unwrap();
        assert!([400, 422].contains(&status), "{bad}: {body}");
    }
}

#[test]
fn the_same_on_many_devices_and_a_chain_on_one_are_incidents_that_are_worked_on_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let token = fleet.token().unwrap();
    let patch = |path: &str, body: Value| fleet.send("PATCH", path, Some(&body), &token).unwrap();
    say(
        dir.path(),
        &fleet,
        "gw-a",
        &[other(1, "/bin/a", "first_shell", 75.0), other(2, "/bin/b", "first_port", 95.0)],
    );
    say(dir.path(), &fleet, "gw-b", &[other(1, "/bin/c", "first_file", 75.0)]);
    say(dir.path(), &fleet, "gw-c", &[other(1, "/bin/c", "first_file", 75.0)]);

    let incidents = fleet.get("incidents").unwrap();
    let told: Vec<_> = incidents["incidents"]
        .as_array()
        .unwrap()
        .iter()
        .map(|incident| {
            json!([
                incident["id"],
                incident["alerts"],
                incident["devices"],
                incident["title"],
                incident["severity"]
            ])
        })
        .collect();
    assert_eq!(
        told,
        [
            json!([2, 2, 2, "/bin/c did first_file", "HIGH"]),
            json!([1, 2, 1, "/bin/b did first_port", "CRITICAL"]),
        ]
    );
    assert_eq!(fleet.get("incidents/2").unwrap()["devices"], json!(["gw-b", "gw-c"]));
    // Rarity: by program and act, over the fleet.
    let rare = fleet.get("alerts/1").unwrap();
    assert_eq!(rare["rarity"]["text"], "none of 2 other devices did the same");
    assert_eq!(fleet.get("alerts/3").unwrap()["rarity"]["text"], "1 of 2 other devices did the same");

    let (status, answer) =
        patch("alerts/1", json!({ "state": "acknowledged", "assignee": "anna", "comment": "looking" }));
    assert_eq!((status, &answer["changed"]), (200, &json!(1)), "{answer}");
    let seen = fleet.get("alerts/1").unwrap();
    assert_eq!((&seen["state"], &seen["assignee"]), (&json!("acknowledged"), &json!("anna")));
    assert_eq!(
        (&seen["comments"][0]["who"], &seen["comments"][0]["text"]),
        (&json!("owner"), &json!("looking"))
    );
    assert_eq!(ids(&fleet.get("alerts?assignee=anna").unwrap()), [1]);
    assert_eq!(patch("alerts/1", json!({ "assignee": null })).0, 200);
    assert_eq!(fleet.get("alerts/1").unwrap()["assignee"], Value::Null);
    // All or none.
    assert_eq!(patch("alerts", json!({ "ids": [1, 99], "state": "resolved" })).0, 404);
    assert_eq!(fleet.get("alerts/1").unwrap()["state"], "acknowledged");
    assert_eq!(patch("alerts", json!({ "ids": [1, 2], "state": "resolved" })).1["changed"], 2);
    assert_eq!(
        patch("incidents/2", json!({ "state": "false_positive", "comment": "the new release" })).1["changed"],
        2
    );
    assert_eq!(ids(&fleet.get("alerts?state=false_positive").unwrap()), [3, 4]);
    assert_eq!(fleet.get("alerts/4").unwrap()["comments"][0]["text"], "the new release");
    for bad in
        [json!({}), json!({ "state": "done" }), json!({ "comment": " " }), json!({ "assignee": "An na" })]
    {
        assert!([400, 422].contains(&patch("alerts/1", bad.clone()).0), "{bad}");
    }
    // A closed incident takes no more: what comes next is a new one.
    say(dir.path(), &fleet, "gw-d", &[other(1, "/bin/c", "first_file", 75.0)]);
    assert_eq!(fleet.get("alerts/5").unwrap()["incident"], 3);
    let actions = fleet.get("audit").unwrap()["audit"].to_string();
    assert!(
        actions.contains("incident.work") && actions.contains("state false_positive, a comment"),
        "{actions}"
    );
}

#[test]
fn a_rule_says_beforehand_what_it_would_have_hidden_and_hides_that_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let post = |path: &str, body: Value| fleet.post(path, &body).unwrap();
    say(
        dir.path(),
        &fleet,
        "gw-a",
        &[other(1, "/opt/backup/run", "first_file", 75.0), alert(2, "something else")],
    );
    let matcher = json!({ "exe": "/opt/backup/*", "reason": "first_file", "max_score": 80 });
    let (status, preview) = post("suppressions/preview", matcher.clone());
    assert_eq!((status, &preview["text"]), (200, &json!("would have hidden 1 of the last 2")), "{preview}");
    assert_eq!(ids(&preview), [1]);
    let rule = json!({ "matcher": matcher, "why": "nightly backup, change 1142", "ttl_s": 86400 });
    let (status, made) = post("suppressions", rule);
    assert_eq!(status, 201, "{made}");
    say(
        dir.path(),
        &fleet,
        "gw-b",
        &[
            other(1, "/opt/backup/run", "first_file", 79.0),
            other(2, "/opt/backup/run", "first_file", 81.0),
            other(3, "/opt/backup/run", "first_port", 75.0),
        ],
    );
    assert_eq!(ids(&fleet.get("alerts").unwrap()), [1, 2, 4, 5], "3 is hidden");
    let all = fleet.get("alerts?suppressed=true").unwrap();
    assert_eq!(ids(&all), [1, 2, 3, 4, 5], "nothing is lost");
    assert_eq!((&all["alerts"][2]["suppressed"], &all["alerts"][2]["incident"]), (&made["id"], &Value::Null));
    let listed = fleet.get("suppressions").unwrap();
    assert_eq!(
        (&listed["suppressions"][0]["hidden"], &listed["suppressions"][0]["by"]),
        (&json!(1), &json!("owner"))
    );
    let id = made["id"].as_u64().unwrap();
    let token = fleet.token().unwrap();
    assert_eq!(fleet.send("DELETE", &format!("suppressions/{id}"), None, &token).unwrap().0, 204);
    say(dir.path(), &fleet, "gw-c", &[other(1, "/opt/backup/run", "first_file", 79.0)]);
    assert_eq!(ids(&fleet.get("alerts?device=gw-c").unwrap()), [6]);
    for bad in [
        json!({}),
        json!({ "max_score": 50 }),
        json!({ "exe": "/x", "max_score": 101 }),
        json!({ "exee": "/x" }),
    ] {
        assert!([400, 422].contains(&post("suppressions/preview", bad.clone()).0), "{bad}");
    }
}

#[test]
fn the_oldest_alerts_make_room_with_all_that_belongs_to_them() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start_with(&dir.path().join("fleet"), 60, "alerts_max = 100\n").unwrap();
    let frames: Vec<_> =
        (1..=103).map(|seq| other(seq, &format!("/bin/p{seq}"), "first_file", 75.0)).collect();
    say(dir.path(), &fleet, "gw-a", &frames[..1]);
    say(&dir.path().join("b"), &fleet, "gw-b", &frames[1..]);
    let kept = fleet.get("alerts?limit=1000").unwrap();
    assert_eq!(ids(&kept), (4..=103).collect::<Vec<_>>());
    assert!(
        ids(&fleet.get("alerts?q=p1%20did").unwrap()).iter().all(|id| *id > 3),
        "no word of a dropped one is found"
    );
    let incidents = fleet.get("incidents").unwrap();
    let incidents = incidents["incidents"].as_array().unwrap();
    assert_eq!(incidents.len(), 1, "that of the first device went with its alert: {incidents:?}");
    assert_eq!(incidents[0]["alerts"], 100);
    assert_eq!(fleet.counter("alerts_dropped").unwrap(), 3);
}
