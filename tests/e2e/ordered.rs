//! What people ask of a device from afar: carried out by a real agent once, answered, and by nobody else's word.

use std::time::Duration;

use agent::capture::CaptureError;
use agent::pipeline::Output;
use agent::replay::replay;
use models::bundle::SigningKey;
use models::orders;
use models::wire::{Answer, Downlink, Errand, Order, Uplink, UplinkFrame, decode};
use rumqttc::Packet;
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::gateway::Gateway;
use tests::story::counter;
use tests::wait_for;

use crate::device::{Device, enroll};
use crate::needs_root;

/// Gives an order; its id.
fn order(fleet: &Fleet, device: &str, order: &Value) -> u64 {
    let (status, made) = fleet.post(&format!("devices/{device}/orders"), &json!({ "order": order })).unwrap();
    assert_eq!((status, &made["state"]), (202, &json!("waiting")), "{made}");
    made["id"].as_u64().unwrap()
}

fn state_of(fleet: &Fleet, device: &str, id: u64) -> Value {
    fleet.get(&format!("devices/{device}/orders/{id}")).unwrap()
}

/// The order once the device has answered.
fn answered(fleet: &Fleet, agent: &Agent, device: &str, id: u64) -> Value {
    let answered = wait_for("an answer", Duration::from_secs(40), || {
        let row = state_of(fleet, device, id);
        Ok((row["state"] != "waiting").then_some(row))
    });
    answered.unwrap_or_else(|error| panic!("{error}\n{}", agent.log()))
}

fn program_state(agent: &Agent) -> String {
    let status = agent.status().unwrap_or_default();
    status["heartbeat"]["programs"][0]["state"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn an_agent_carries_orders_out_once_also_those_that_were_given_while_it_was_away() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 40).unwrap();
    let _gateway = Gateway::start(&dir.path().join("gateway")).unwrap();
    let watched = Gateway::executable(&dir.path().join("gateway"));
    let mut agent = Agent::enroll(&dir.path().join("gw"), &watched, &fleet, "gw").unwrap();
    agent.run().unwrap();
    wait_for("ACTIVE", Duration::from_secs(240), || Ok((program_state(&agent) == "ACTIVE").then_some(())))
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", fleet.get("training").unwrap(), agent.log()));

    let row = answered(&fleet, &agent, "gw", order(&fleet, "gw", &json!({ "kind": "doctor" })));
    let told = row["answer"].as_str().unwrap();
    for part in ["syscall", "tp_btf", "locked bytes", "ACTIVE 1", "kernel_exec_seen"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!((&row["state"], &row["by"]), (&json!("done"), &json!("owner")));

    // What it follows, and how that was judged last, once a window has ended.
    let told = wait_for("a verdict", Duration::from_secs(60), || {
        let row = answered(&fleet, &agent, "gw", order(&fleet, "gw", &json!({ "kind": "processes" })));
        let told: Value = serde_json::from_str(row["answer"].as_str().unwrap()).unwrap();
        Ok((told["processes"][0]["judged"]["score"].is_number()).then_some(told))
    });
    let told = told.unwrap();
    let one = &told["processes"][0];
    assert_eq!((&one["program"]["exe"], &one["state"]), (&json!(watched), &json!("ACTIVE")), "{told}");
    assert_eq!(told["left_out"], 0);

    // The level holds for its time, and no longer.
    assert!(!agent.log().contains("DEBUG"));
    let asked = json!({ "kind": "log_level", "level": "debug", "for_s": 2 });
    let row = answered(&fleet, &agent, "gw", order(&fleet, "gw", &asked));
    assert_eq!(row["answer"], "logs from debug on for 2 s");
    wait_for("the end of the level", Duration::from_secs(30), || {
        Ok(agent.log().contains("the time of the fleet's log level is over").then_some(()))
    })
    .unwrap();

    // While it is away the order waits; then the program is learned anew, from windows that come after it.
    let key = fleet.get("training").unwrap()["training"][0]["program"]["key"].as_str().unwrap().to_owned();
    agent.stop().unwrap();
    let id = order(&fleet, "gw", &json!({ "kind": "relearn", "program_key": key }));
    agent.run().unwrap();
    let row = answered(&fleet, &agent, "gw", id);
    assert_eq!(row["state"], "done", "{row}");
    assert_eq!(program_state(&agent), "LEARNING", "{}", agent.log());
    let collected = fleet.get("training").unwrap()["training"][0]["windows_collected"].as_u64().unwrap();
    assert!(collected < 40, "{collected} windows, some from before");

    let unknown =
        fleet.post("devices/gw/orders", &json!({ "order": { "kind": "relearn", "program_key": "no" } }));
    assert_eq!(unknown.unwrap().0, 404);
    let unknown = fleet.post("devices/nobody/orders", &json!({ "order": { "kind": "doctor" } }));
    assert_eq!(unknown.unwrap().0, 404);
    let audit = fleet.get("audit?limit=1000").unwrap();
    let about = audit["audit"].as_array().unwrap().iter().filter(|entry| entry["action"] == "device.order");
    assert!(about.clone().count() >= 3 && about.clone().all(|entry| entry["target"] == "gw"), "{audit}");

    // What it carried out it remembers over restarts, and no order came twice into its log.
    let status = agent.status().unwrap();
    assert_eq!((counter(&status, "orders_rejected"), counter(&status, "orders_refused")), (0, 0));
    let log = agent.log();
    assert_eq!(log.matches(&format!("order {id} of the fleet")).count(), 1, "{log}");
    agent.stop().unwrap();
}

/// Waits until all of a capture is here; its size.
fn captured(fleet: &Fleet, agent: &Agent, path: &str) -> u64 {
    let whole = wait_for("the capture", Duration::from_secs(90), || {
        let capture = &fleet.get(path)?["capture"];
        Ok((capture["size"].is_u64() && capture["stored"] == capture["size"])
            .then(|| capture["size"].as_u64().unwrap()))
    });
    whole.unwrap_or_else(|error| panic!("{error}\n{}", agent.log()))
}

#[test]
fn what_an_agent_recorded_is_replayed_elsewhere_also_when_it_was_killed_meanwhile() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let _gateway = Gateway::start(&dir.path().join("gateway")).unwrap();
    let watched = Gateway::executable(&dir.path().join("gateway"));
    let mut agent = Agent::enroll(&dir.path().join("gw"), &watched, &fleet, "gw").unwrap();
    agent.run().unwrap();
    wait_for("the gateway", Duration::from_secs(60), || {
        Ok((program_state(&agent) == "LEARNING").then_some(()))
    })
    .unwrap();
    let taken = |path: &str, size: u64| {
        let (status, bytes) = fleet.file(&format!("{path}/capture")).unwrap();
        assert_eq!((status, bytes.len() as u64), (200, size));
        let file = dir.path().join("taken.bgc");
        std::fs::write(&file, bytes).unwrap();
        file
    };

    let asked = |for_s: u32| json!({ "kind": "record", "for_s": for_s, "bytes_max": 8 << 20 });
    let id = order(&fleet, "gw", &asked(5));
    let row = answered(&fleet, &agent, "gw", id);
    assert_eq!((&row["state"], &row["capture"]), (&json!("done"), &Value::Null), "{row}");
    let second = answered(&fleet, &agent, "gw", order(&fleet, "gw", &asked(5)));
    assert_eq!(second["answer"], format!("order {id} is being recorded: ask again when it has ended"));
    assert_eq!(second["state"], "refused");
    let path = format!("devices/gw/orders/{id}");
    let file = taken(&path, captured(&fleet, &agent, &path));
    // Who was there before the recording began is known in it.
    let mut windows = 0;
    let summary = replay(&file, &[], &mut |output| match output {
        Output::Train(of) if of.program.exe.as_str() == watched.to_str().unwrap() => {
            windows += of.windows.len();
        }
        _ => {}
    });
    let summary = summary.unwrap();
    assert!(windows >= 3 && summary.steps > 10 && !summary.full, "{windows} windows, {summary:?}");
    let output = agent.command(&["replay", file.to_str().unwrap()]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = fleet.events("gw").unwrap();
    let told: Vec<_> = told.iter().filter(|event| event["kind"] == "recorded").collect();
    assert!(told.len() == 1 && told[0]["text"].as_str().unwrap().contains(" ended; "), "{told:?}");

    // One that is cut short is sent as far as it came.
    let id = order(&fleet, "gw", &asked(3600));
    assert_eq!(answered(&fleet, &agent, "gw", id)["state"], "done");
    let own = dir.path().join(format!("gw/state/captures/{id}"));
    wait_for("something to send", Duration::from_secs(60), || {
        Ok((std::fs::metadata(&own).is_ok_and(|file| file.len() > 16 << 10)).then_some(()))
    })
    .unwrap();
    agent.kill().unwrap();
    agent.run().unwrap();
    let path = format!("devices/gw/orders/{id}");
    let file = taken(&path, captured(&fleet, &agent, &path));
    let cut = replay(&file, &[], &mut |_| {}).unwrap_err();
    assert!(matches!(cut, CaptureError::Damaged { entries: 10.., .. }), "{cut}");

    // What the fleet has the device keeps no longer, and what is removed here is gone.
    wait_for("an empty folder", Duration::from_secs(20), || {
        let left = std::fs::read_dir(own.parent().unwrap()).unwrap().count();
        Ok((left == 0).then_some(()))
    })
    .unwrap();
    let capture = format!("{path}/capture");
    let token = fleet.token().unwrap();
    assert_eq!(fleet.send("DELETE", &capture, None, &token).unwrap().0, 204);
    assert_eq!(fleet.file(&capture).unwrap().0, 404);
    let audit = fleet.get("audit?limit=100").unwrap();
    let acts: Vec<_> = audit["audit"].as_array().unwrap().iter().map(|entry| &entry["action"]).collect();
    for act in ["capture.download", "capture.delete"] {
        assert!(acts.contains(&&json!(act)), "{audit}");
    }
    agent.stop().unwrap();
}

#[test]
fn a_group_s_configuration_reaches_its_devices_and_what_they_cannot_use_changes_nothing() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let config = "watch = [\"/nothing\"]\nwindow = \"1s\"\nheartbeat = \"2s\"\n[alerts]\nper_minute = 7\n";
    let mut agent = Agent::enroll_with(&dir.path().join("gw"), config, &fleet, "gw").unwrap();
    agent.run().unwrap();
    let configure = |text: &str, over: Option<u64>| {
        fleet.post("groups/default/configurations", &json!({ "text": text, "over": over })).unwrap()
    };
    let spread = |agent: &Agent, wanted: Value| {
        let reached = wait_for("the devices", Duration::from_secs(40), || {
            let page = fleet.get("groups/default/configurations")?;
            Ok((page["spread"] == wanted).then_some(page))
        });
        reached.unwrap_or_else(|error| panic!("{error}\n{}", agent.log()))
    };
    let shown = |agent: &Agent, key: &str| {
        let output = agent.command(&["config", "show", "--json"]).unwrap();
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        let keys = shown["keys"].as_array().unwrap().clone();
        keys.into_iter().find(|one| one["key"] == key).unwrap()
    };

    let text = "heartbeat = \"1s\"\nwindow = \"2s\"\n[alerts]\nper_minute = 9\n";
    let preview = fleet.post("groups/default/configurations/preview", &json!({ "text": text })).unwrap().1;
    assert_eq!((preview["devices"].as_u64(), preview["changes"].as_array().unwrap().len()), (Some(1), 3));
    let (status, made) = configure(text, Some(0));
    assert_eq!(status, 201, "{made}");
    let first = made["version"].as_u64().unwrap();
    let page = spread(&agent, json!({ "devices": 1, "applied": 1, "refused": 0 }));
    assert_eq!(
        page["versions"][0]["changes"][0],
        json!({ "key": "alerts.per_minute", "before": null, "after": 9 })
    );
    let orders = fleet.get("devices/gw/orders").unwrap();
    let told = orders["orders"][0]["answer"].as_str().unwrap();
    assert_eq!(told, format!("version {first} is in use; these need a restart of the agent: window"));
    for (key, value, from) in [
        ("heartbeat", json!("1s"), "fleet"),
        ("alerts.per_minute", json!(9), "fleet"),
        ("watch", json!(["/nothing"]), "file"),
    ] {
        let one = shown(&agent, key);
        assert_eq!((&one["value"], &one["from"]), (&value, &json!(from)), "{key}");
    }

    // What it cannot use changes nothing, and it says why.
    assert_eq!(configure("[[sink]]\nkind = \"exec\"", None).0, 422);
    assert_eq!(configure("heartbeat = ", None).0, 422);
    assert_eq!(configure("", Some(first + 1)).0, 409, "somebody else changed it");
    assert_eq!(configure("heartbeat = \"1s\"\nhartbeat = 3", Some(first)).0, 201);
    spread(&agent, json!({ "devices": 1, "applied": 0, "refused": 1 }));
    let orders = fleet.get("devices/gw/orders").unwrap();
    let why = orders["orders"][0]["answer"].as_str().unwrap();
    assert!(why.contains("`hartbeat`: not a known key"), "{why}");
    assert_eq!(shown(&agent, "alerts.per_minute")["value"], 9);

    // Who is moved by a command beside the server is asked by the server that runs.
    let asked = json!({ "text": "heartbeat = \"2s\"" });
    assert_eq!(fleet.post("groups/plant/configurations", &asked).unwrap().0, 201);
    fleet.command(&["device", "group", "gw", "plant"]).unwrap();
    wait_for("the group's configuration", Duration::from_secs(40), || {
        let page = fleet.get("groups/plant/configurations")?;
        Ok((page["spread"] == json!({ "devices": 1, "applied": 1, "refused": 0 })).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    assert_eq!(shown(&agent, "heartbeat")["value"], "2s");
    assert_eq!(shown(&agent, "alerts.per_minute")["value"], 7, "the other group's is over");
    fleet.command(&["device", "group", "gw", "default"]).unwrap();
    spread(&agent, json!({ "devices": 1, "applied": 0, "refused": 1 }));
    assert_eq!(configure("window = \"2s\"\n[alerts]\nper_minute = 9", None).0, 201);
    spread(&agent, json!({ "devices": 1, "applied": 1, "refused": 0 }));

    // After a restart it still counts; an empty one gives the file its word back.
    agent.stop().unwrap();
    agent.run().unwrap();
    wait_for("the agent", Duration::from_secs(20), || Ok(agent.status().ok())).unwrap();
    assert!(agent.log().contains("in windows of 2s"), "{}", agent.log());
    assert_eq!(configure("", None).0, 201);
    spread(&agent, json!({ "devices": 1, "applied": 1, "refused": 0 }));
    let one = shown(&agent, "alerts.per_minute");
    assert_eq!((&one["value"], &one["from"]), (&json!(7), &json!("file")));
    agent.stop().unwrap();
}

#[test]
fn an_order_is_signed_for_its_device_and_repeated_until_it_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let (identity, tls) = enroll(dir.path(), &fleet, "gw-1");
    let keys = identity.keyring().unwrap();
    let id = order(&fleet, "gw-1", &json!({ "kind": "doctor" }));
    let signed = |device: &Device| {
        device
            .next(|packet| match packet {
                Packet::Publish(publish) => match decode(&publish.payload).ok()? {
                    Downlink::Order(signed) => Some(signed),
                    _ => None,
                },
                _ => None,
            })
            .unwrap()
    };
    let connect = || {
        let device = Device::connect(&identity, tls.clone());
        device.welcome().unwrap();
        device.listen();
        device
    };
    let device = connect();
    let first = signed(&device);
    let wanted = Order { id, errand: Errand::Doctor };
    assert_eq!(orders::open("gw-1", &first, &keys, &orders::Done::default()), Ok(wanted));
    assert!(orders::open("gw-2", &first, &keys, &orders::Done::default()).is_err());
    // Nobody else's key will do, e.g. that of another fleet.
    let other = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
    let forged = orders::sign("gw-1", &Order { id: 99, errand: Errand::Doctor }, &other).unwrap();
    assert!(orders::open("gw-1", &forged, &keys, &orders::Done::default()).is_err());
    drop(device);
    let device = connect();
    assert_eq!(signed(&device), first, "it was not answered");

    let answer = |text: &str| Answer { id, unix_ms: 5, done: true, text: text.to_owned() };
    for (seq, text) in [(1, "all is well"), (2, "once more")] {
        device.publish_as("gw-1", &UplinkFrame { epoch: 1, seq, body: Uplink::Answer(answer(text)) });
    }
    let row = wait_for("the answer", Duration::from_secs(20), || {
        let row = state_of(&fleet, "gw-1", id);
        Ok((row["state"] == "done").then_some(row))
    });
    assert_eq!(row.unwrap()["answer"], "all is well", "the first counts");

    // One that waits can be taken back; one that was answered cannot.
    let second = order(&fleet, "gw-1", &json!({ "kind": "log_level", "level": "debug", "for_s": 60 }));
    let token = fleet.token().unwrap();
    let cancel =
        |id: u64| fleet.send("DELETE", &format!("devices/gw-1/orders/{id}"), None, &token).unwrap().0;
    assert_eq!((cancel(second), cancel(second), cancel(id)), (204, 404, 404));
    let bad = json!({ "order": { "kind": "log_level", "level": "debug", "for_s": 86_401 } });
    assert_eq!(fleet.post("devices/gw-1/orders", &bad).unwrap().0, 400);
}
