//! The MQTT endpoint: TLS, one task per connection, limits everywhere. Devices show a client certificate; programs that
//! listen have a user's name and token and are served by [`subscriber`].
//!
//! A connection's task does its own handshake, so that a client that says nothing delays nobody. Two limits apply:
//! connections that have not proved who they are yet, and connections in all; whoever is over one is closed at once.

pub mod codec;
mod connection;
mod subscriber;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::counters::Counter;
use crate::server::Shared;

/// From TCP accept to CONNECT.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that are still in their handshake.
const HANDSHAKES_MAX: usize = 256;

/// Takes connections until `stop` says true.
pub async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: TlsAcceptor,
    mut stop: watch::Receiver<bool>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let connections = Arc::new(Semaphore::new(shared.config.mqtt_connections_max as usize));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: wait for connections to end instead of spinning.
                log::warn!("accepting an MQTT connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handshake = Arc::clone(&handshakes).try_acquire_owned();
        let place = Arc::clone(&connections).try_acquire_owned();
        let (Ok(handshake), Ok(place)) = (handshake, place) else {
            shared.counters.bump(Counter::MqttOverLimit);
            continue;
        };
        let connection =
            connection::run(Arc::clone(&shared), tls.clone(), tcp, peer, handshake, stop.clone());
        tokio::spawn(async move {
            connection.await;
            drop(place);
        });
    }
}
