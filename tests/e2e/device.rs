//! A device without a kernel part: an enrolled identity and a plain MQTT client that says what it is told to say.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, SystemTime};

use agent::enroll::Identity;
use models::policy::Severity;
use models::program::ProgramId;
use models::wire::{self, Alert, Downlink, Leaf, Reason, Request, Uplink, UplinkFrame};
use rumqttc::{Client, ConnectionError, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use rustls::ClientConfig;
use tests::agent::Agent;
use tests::fleet::Fleet;

/// A client that is connected, or was refused.
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) client: Client,
    events: Receiver<Result<Event, ConnectionError>>,
}

/// Enrols a device in `dir`; gives its identity and TLS set-up.
pub(crate) fn enroll(dir: &Path, fleet: &Fleet, name: &str) -> (Identity, ClientConfig) {
    let state = Agent::enroll(&dir.join(name), Path::new("/nothing"), fleet, name).unwrap().state();
    let identity = Identity::load(&state).unwrap();
    let tls = identity.tls(&state).unwrap();
    (identity, tls)
}

impl Device {
    /// Connects with this TLS set-up.
    pub(crate) fn connect(identity: &Identity, tls: ClientConfig) -> Self {
        Self::connect_as(identity, tls, None)
    }

    /// The same with a user's name and token.
    pub(crate) fn connect_as(identity: &Identity, tls: ClientConfig, user: Option<(&str, &str)>) -> Self {
        let mut options = MqttOptions::new(&identity.device, &identity.host, identity.port);
        if let Some((name, token)) = user {
            options.set_credentials(name, token);
        }
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(tls))));
        options.set_max_packet_size(128 * 1024, 128 * 1024);
        let (client, mut connection) = Client::new(options, 100);
        let (tell, events) = channel();
        std::thread::spawn(move || {
            while let Ok(event) = connection.recv() {
                let ends = event.is_err();
                if tell.send(event).is_err() || ends {
                    return;
                }
            }
        });
        Self { name: identity.device.clone(), client, events }
    }

    /// The first packet that `wanted` picks, or why the connection ended.
    pub(crate) fn next<T>(&self, wanted: impl Fn(Packet) -> Option<T>) -> Result<T, String> {
        let until = SystemTime::now() + Duration::from_secs(60);
        loop {
            let left = until.duration_since(SystemTime::now()).unwrap_or_default();
            match self.events.recv_timeout(left) {
                Ok(Ok(Event::Incoming(packet))) => {
                    if let Some(found) = wanted(packet) {
                        return Ok(found);
                    }
                }
                Ok(Ok(Event::Outgoing(_))) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(RecvTimeoutError::Timeout) => panic!("nothing came in time"),
                Err(RecvTimeoutError::Disconnected) => return Err("the connection has ended".into()),
            }
        }
    }

    /// Waits for the server's welcome.
    pub(crate) fn welcome(&self) -> Result<(), String> {
        self.next(|packet| matches!(packet, Packet::ConnAck(_)).then_some(()))
    }

    /// Subscribes to its own topic.
    pub(crate) fn listen(&self) {
        self.client.subscribe(wire::topic(&self.name, Leaf::Down), QoS::AtLeastOnce).unwrap();
    }

    /// Publishes to the `up` topic of any device.
    pub(crate) fn publish_as(&self, owner: &str, frame: &UplinkFrame) {
        let bytes = wire::encode(frame).unwrap();
        self.client.publish(wire::topic(owner, Leaf::Up), QoS::AtLeastOnce, false, bytes).unwrap();
    }

    /// Publishes a request of its own.
    pub(crate) fn ask(&self, request: &Request) {
        let bytes = wire::encode(request).unwrap();
        self.client.publish(wire::topic(&self.name, Leaf::Req), QoS::AtLeastOnce, false, bytes).unwrap();
    }

    /// Waits until everything up to `seq` is acknowledged end to end.
    pub(crate) fn acknowledged(&self, seq: u64) -> Result<(), String> {
        self.next(|packet| match packet {
            Packet::Publish(publish) => match wire::decode::<Downlink>(&publish.payload) {
                Ok(Downlink::Ack { seq: acked, .. }) => (acked >= seq).then_some(()),
                _ => None,
            },
            _ => None,
        })
    }
}

/// An alert of a made-up program.
pub(crate) fn alert(seq: u64, summary: &str) -> UplinkFrame {
    let program = ProgramId { unit: "pump.service".into(), exe: "/usr/bin/pump".into(), script: None };
    let reason = Reason {
        layer: "file".into(),
        name: "first_sensitive_file".into(),
        text: summary.into(),
        share: 1.0,
    };
    let body = Uplink::Alert(Alert {
        unix_ms: 1_800_000_000_000 + seq,
        program,
        pid: 7,
        comm: "pump".into(),
        score: 93.0,
        severity: Severity::Critical,
        techniques: vec!["T1003.008".into()],
        summary: summary.into(),
        reasons: vec![reason],
        generation: 1,
        detectors: vec![],
        suppressed_before: 0,
        degraded: vec![],
    });
    UplinkFrame { epoch: 1, seq, body }
}
