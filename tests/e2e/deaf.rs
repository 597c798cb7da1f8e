//! A broker that takes everything and stores nothing: it welcomes, confirms each packet, and never says that it is stored.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::gateway::Gateway;
use tests::story::counter;
use tests::{Failed, wait_for};

use crate::needs_root;

type Stream = StreamOwned<ServerConnection, TcpStream>;

/// One packet of MQTT 3.1.1: its first byte and what follows the length.
fn packet(stream: &mut Stream) -> std::io::Result<(u8, Vec<u8>)> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    let first = byte[0];
    let (mut len, mut shift) = (0_usize, 0);
    loop {
        stream.read_exact(&mut byte)?;
        len |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    Ok((first, body))
}

/// Confirms every packet, until the connection ends.
fn confirm(mut stream: Stream) -> std::io::Result<()> {
    loop {
        let (first, body) = packet(&mut stream)?;
        let answer: Vec<u8> = match first >> 4 {
            1 => vec![0x20, 2, 0, 0],
            3 => {
                let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
                vec![0x40, 2, body[2 + topic], body[3 + topic]]
            }
            8 => vec![0x90, 3, body[0], body[1], 1],
            12 => vec![0xd0, 0],
            _ => continue,
        };
        stream.write_all(&answer)?;
        stream.flush()?;
    }
}

#[test]
fn a_broker_that_never_says_stored_is_left_and_everything_is_sent_again() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let watch = Gateway::executable(&dir.path().join("gateway"));
    let mut agent = Agent::enroll(&dir.path().join("agent"), &watch, &fleet, "gw-deaf").unwrap();
    let address = fleet.mqtt().unwrap();
    fleet.stop().unwrap();
    let certificate = CertificateDer::from_pem_file(fleet.state().join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(fleet.state().join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let (listener, config) = (TcpListener::bind(&address).unwrap(), Arc::new(config));
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&stopped);
    let deaf = std::thread::spawn(move || {
        let mut connections = 0;
        for tcp in listener.incoming().map_while(Result::ok) {
            if stop.load(Relaxed) {
                break;
            }
            connections += 1;
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            // It ends when the agent goes.
            let _ = confirm(StreamOwned::new(connection, tcp));
        }
        connections
    });
    agent.run().unwrap();
    let gateway = Gateway::start(&dir.path().join("gateway")).unwrap();
    let told = wait_for("that the agent leaves", Duration::from_secs(90), || {
        agent.check()?;
        let Ok(status) = agent.status() else { return Ok(None) };
        Ok((counter(&status, "uplink_stalled") > 0).then(|| counter(&status, "windows_trained")))
    });
    let told = told.unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    assert!(told >= 20, "{told} windows");
    let log = agent.log();
    assert!(log.contains("the fleet acknowledged nothing for"), "{log}");
    stopped.store(true, Relaxed);
    // The listener wakes up, and is gone with its last connection.
    agent.stop().unwrap();
    let _ = TcpStream::connect(&address);
    assert!(deaf.join().unwrap() >= 1);
    fleet.restart().unwrap();
    agent.run().unwrap();
    drop(gateway);
    let sent = wait_for("delivery of everything", Duration::from_secs(60), || {
        let (Ok(status), Some(collected)) = (agent.status(), fleet.windows_collected()) else {
            return Ok(None);
        };
        let waits = status["heartbeat"]["outbox_waiting"] != 0;
        // Those of the first run are among them.
        Ok((!waits && collected >= told + counter(&status, "windows_trained")).then_some(collected))
    });
    sent.unwrap_or_else(|error: Failed| panic!("{error}\n{}", agent.log()));
    assert_eq!(fleet.counter("frames_missing").unwrap(), 0);
    agent.stop().unwrap();
}
