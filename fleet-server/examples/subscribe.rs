//! Prints every alert of a fleet as it comes, read from postcard:
//! `cargo run --example subscribe -- HOST PORT ca.pem USER TOKEN`.
//!
//! A program of yours needs `rumqttc`, `postcard` and the two structures in `models::feed` and `models::wire`.

use std::error::Error;

use models::feed::FeedAlert;
use rumqttc::{Client, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, ca, user, token] = &arguments[..] else {
        return Err("usage: subscribe HOST PORT ca.pem USER TOKEN".into());
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut options = MqttOptions::new(user, host, port.parse()?);
    options.set_credentials(user, token);
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(std::sync::Arc::new(tls))));
    let (client, mut connection) = Client::new(options, 10);
    for event in connection.iter() {
        match event? {
            Event::Incoming(Packet::ConnAck(_)) => {
                client.subscribe("bg-feed/v1/alert/#", QoS::AtLeastOnce)?;
            }
            Event::Incoming(Packet::SubAck(_)) => println!("listening"),
            Event::Incoming(Packet::Publish(message)) => {
                let told: FeedAlert = postcard::from_bytes(&message.payload)?;
                println!(
                    "{} {} {} {}",
                    told.id,
                    told.device,
                    told.alert.severity.as_str(),
                    told.alert.summary
                );
            }
            _ => {}
        }
    }
    Ok(())
}
