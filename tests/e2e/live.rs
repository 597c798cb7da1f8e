//! The live stream and the WebSocket, read by a real browser: nothing is missed and nothing comes twice.

use serde_json::json;
use tests::browser::Browser;
use tests::fleet::Fleet;

use crate::device::{Device, alert, enroll};

#[test]
fn who_comes_back_to_the_stream_is_told_what_came_meanwhile_and_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-a");
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    device.listen();
    let send = |seqs: std::ops::RangeInclusive<u64>| {
        for seq in seqs.clone() {
            device.publish_as("gw-a", &alert(seq, &format!("touched file {seq}; it never did before")));
        }
        device.acknowledged(*seqs.end()).unwrap();
    };
    send(1..=5);
    let browser = Browser::start(&dir.path().join("browser"), 800, 600).unwrap();
    browser.open(&fleet.url().unwrap()).unwrap();
    let token = fleet.token().unwrap();
    let open = format!(
        "window.got = [];
         window.socket = (after) => {{
             const socket = new WebSocket('wss://' + location.host + '/api/v1/ws/alerts' + after, ['behaveguard', 'token.{token}']);
             socket.onmessage = (message) => window.got.push(JSON.parse(message.data));
             socket.onopen = () => window.got.push({{ type: 'open', protocol: socket.protocol }});
             return socket;
         }};
         window.first = window.socket('?after=3');"
    );
    browser.run(&open).unwrap();
    browser.wait("window.got.filter(told => told.type === 'alert').length === 2").unwrap();
    assert_eq!(browser.eval("window.got[0]").unwrap(), json!({ "type": "open", "protocol": "behaveguard" }));
    send(6..=8);
    let ids = "window.got.filter(told => told.type === 'alert').map(told => told.data.id)";
    browser.wait(&format!("{ids}.length === 5")).unwrap();
    assert_eq!(browser.eval(ids).unwrap(), json!([4, 5, 6, 7, 8]));

    // Away, and back with the last id.
    browser.run("window.first.close(); window.last = window.got.filter(told => told.id).at(-1).id").unwrap();
    send(9..=11);
    browser.run("window.got = []; window.second = window.socket('?after=' + window.last)").unwrap();
    send(12..=12);
    browser.wait(&format!("{ids}.length === 4")).unwrap();
    assert_eq!(browser.eval(ids).unwrap(), json!([9, 10, 11, 12]));

    // The same as server-sent events, and the refusals.
    browser
        .run(&format!(
            "window.lines = ''; fetch('/api/v1/stream', {{ headers: {{ Authorization: 'Bearer {token}', 'Last-Event-ID': '10' }} }})
             .then(async (answer) => {{
                 const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
                 for (;;) {{ const {{ value, done }} = await reader.read(); if (done) return; window.lines += value; }}
             }})"
        ))
        .unwrap();
    browser.wait("(window.lines.match(/event: alert/g) || []).length === 2").unwrap();
    assert_eq!(
        browser.eval("window.lines.match(/^id: .*$/gm).map(line => line.split('.')[0])").unwrap(),
        json!(["id: 11", "id: 12"])
    );
    for (path, expected) in [("ws/alerts", 426), ("ws/alerts?after=x", 400), ("stream?after=1.2.3", 400)] {
        let (status, problem) = fleet.ask(path, &token).unwrap();
        assert_eq!(status, expected, "{path}: {problem}");
    }
    browser
        .run("window.refused = false; new WebSocket('wss://' + location.host + '/api/v1/ws/alerts', ['token.wrong']).onerror = () => { window.refused = true; }")
        .unwrap();
    browser.wait("window.refused").unwrap();
}
