use super::*;

fn program() -> ProgramId {
    ProgramId { unit: "gw.service".into(), exe: "/usr/bin/gw".into(), script: None }
}

fn alert() -> UplinkFrame {
    UplinkFrame {
        epoch: 7,
        seq: 300,
        body: Uplink::Alert(Alert {
            unix_ms: 1,
            program: program(),
            pid: 42,
            comm: "gw".into(),
            score: 91.5,
            severity: Severity::Critical,
            techniques: vec!["T1003".into()],
            summary: "s".into(),
            reasons: vec![],
            generation: 2,
            detectors: vec![DetectorScore { name: "vae".into(), z: 8.0 }],
            suppressed_before: 0,
            degraded: vec![],
        }),
    }
}

#[test]
fn every_truncation_is_refused_and_nothing_may_follow() {
    let bytes = encode(&alert()).unwrap();
    assert_eq!(decode::<UplinkFrame>(&bytes).unwrap(), alert());
    for end in 0..bytes.len() {
        assert!(decode::<UplinkFrame>(&bytes[..end]).is_err(), "{end} bytes decoded");
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(decode::<UplinkFrame>(&longer), Err(WireError::Trailing(1)));
}

#[test]
fn the_bytes_of_an_alert_never_change() {
    let bytes = encode(&alert()).unwrap();
    assert_eq!(
        bytes,
        b"\x07\xac\x02\x00\x01\x0agw.service\x0b/usr/bin/gw\x00\x2a\x02gw\x00\x00\xb7\x42\x03\x01\x05T1003\x01s\x00\x02\x01\x03vae\x00\x00\x00\x41\x00\x00"
    );
}

#[test]
fn the_bytes_of_an_acknowledgement_never_change() {
    assert_eq!(encode(&Downlink::Ack { epoch: 1, seq: 128 }).unwrap(), b"\x00\x01\x80\x01");
}

#[test]
fn the_bytes_of_an_event_and_a_release_never_change() {
    let event = DeviceEvent {
        unix_ms: 1,
        kind: EventKind::Contained,
        program: Some(program()),
        containment: Some(3),
        text: "t".into(),
    };
    let frame = UplinkFrame { epoch: 7, seq: 1, body: Uplink::Event(event) };
    assert_eq!(
        encode(&frame).unwrap(),
        b"\x07\x01\x02\x01\x07\x01\x0agw.service\x0b/usr/bin/gw\x00\x01\x03\x01t"
    );
    assert_eq!(encode(&Downlink::Release { containment: 128 }).unwrap(), b"\x03\x80\x01");
}

#[test]
fn the_bytes_of_numbers_that_are_gone_never_change() {
    let message = Request::Gone { epoch: 7, from: 1, to: 300 };
    assert_eq!(encode(&message).unwrap(), b"\x03\x07\x01\xac\x02");
}

#[test]
fn the_bytes_of_a_take_back_never_change() {
    let message = Downlink::TakeBack { program: program(), generation: 128 };
    assert_eq!(encode(&message).unwrap(), b"\x04\x0agw.service\x0b/usr/bin/gw\x00\x80\x01");
}

#[test]
fn the_bytes_of_a_part_and_its_answer_never_change() {
    let part = Request::Part { order: 128, size: 300, offset: 1, data: vec![7, 8] };
    assert_eq!(encode(&part).unwrap(), b"\x04\x80\x01\xac\x02\x01\x02\x07\x08");
    let kept = |next| encode(&Downlink::Kept { order: 128, next }).unwrap();
    assert_eq!(kept(Some(300)), b"\x06\x80\x01\x01\xac\x02");
    assert_eq!(kept(None), b"\x06\x80\x01\x00");
}

#[test]
fn topics_name_one_device_and_one_leaf() {
    assert_eq!(parse_topic(&topic("gw-1", Leaf::Up)), Some(("gw-1", Leaf::Up)));
    for bad in ["bg/v1//up", "bg/v1/a/b/up", "bg/v1/a/nothing", "bg/v2/a/up", "bg/v1/a"] {
        assert_eq!(parse_topic(bad), None, "{bad}");
    }
}

#[test]
fn the_bytes_of_an_order_and_its_answer_never_change() {
    let order = |errand| encode(&Order { id: 128, errand }).unwrap();
    assert_eq!(order(Errand::Doctor), b"\x80\x01\x00");
    assert_eq!(order(Errand::LogLevel { level: LogLevel::Debug, for_s: 300 }), b"\x80\x01\x01\x03\xac\x02");
    assert_eq!(
        order(Errand::Relearn { program: program() }),
        b"\x80\x01\x02\x0agw.service\x0b/usr/bin/gw\x00"
    );
    assert_eq!(order(Errand::Configure { version: 2, text: "a=1".into() }), b"\x80\x01\x03\x02\x03a=1");
    assert_eq!(order(Errand::Quarantine { for_s: 300 }), b"\x80\x01\x04\xac\x02");
    assert_eq!(order(Errand::EndQuarantine), b"\x80\x01\x05");
    assert_eq!(order(Errand::Record { for_s: 300, bytes_max: 65_536 }), b"\x80\x01\x06\xac\x02\x80\x80\x04");
    assert_eq!(order(Errand::Processes), b"\x80\x01\x07");
    assert_eq!(order(Errand::Process { pid: 300 }), b"\x80\x01\x08\xac\x02");
    let file = SignedProgramFile { file: vec![1, 2], signature: vec![3] };
    assert_eq!(order(Errand::Update(file)), b"\x80\x01\x09\x02\x01\x02\x01\x03");
    assert_eq!(order(Errand::EndUpdate), b"\x80\x01\x0a");
    let signed = SignedOrder { order: vec![1, 2], signature: vec![3] };
    assert_eq!(encode(&Downlink::Order(signed)).unwrap(), b"\x05\x02\x01\x02\x01\x03");
    let answer = Answer { id: 128, unix_ms: 1, done: true, text: "t".into() };
    let frame = UplinkFrame { epoch: 7, seq: 1, body: Uplink::Answer(answer) };
    assert_eq!(encode(&frame).unwrap(), b"\x07\x01\x03\x80\x01\x01\x01\x01t");
}

#[test]
fn the_bytes_of_an_alarmed_window_never_change() {
    let window =
        TrainingWindow { unix_ms: 130, run: 2, vector: vec![(3, 1.0)], traits: vec![4], grams: vec![] };
    let alarmed = AlarmedWindow { program: program(), alerts: vec![128], window };
    let frame = UplinkFrame { epoch: 7, seq: 1, body: Uplink::Alarmed(alarmed) };
    assert_eq!(
        encode(&frame).unwrap(),
        b"\x07\x01\x04\x0agw.service\x0b/usr/bin/gw\x00\x01\x80\x01\x82\x01\x02\x01\x03\x00\x00\x80\x3f\x01\x04\x00"
    );
}
