//! What an operator puts beside a broker, so that it takes this fleet's devices and nobody else: its certificate, and a
//! configuration for those brokers that we test with.

use std::path::{Path, PathBuf};

use crate::files::write_private;
use crate::pki::{Pki, PkiError};

/// Their names.
pub const FILES: [&str; 6] =
    ["ca.pem", "broker.pem", "broker.key", "mosquitto.conf", "mosquitto.acl", "nats-server.conf"];

/// Writes them into a folder; `names` are those by which devices and servers call the broker.
///
/// # Errors
/// When a file cannot be written, or a name is none.
pub fn write(folder: &Path, names: &[String], port: u16, pki: &Pki, now_unix_s: u64) -> Result<(), PkiError> {
    let (certificate, key) = pki.sign_broker(names, now_unix_s)?;
    let at = folder.display();
    let fleet = Pki::BROKER_CLIENT;
    let mosquitto = format!(
        "# Mosquitto 2 for BehaveGuard: `mosquitto -c mosquitto.conf`, or include it from /etc/mosquitto/conf.d.\n\
         listener {port}\ncafile {at}/ca.pem\ncertfile {at}/broker.pem\nkeyfile {at}/broker.key\n\
         # A device is who its certificate says.\nrequire_certificate true\nuse_identity_as_username true\n\
         allow_anonymous false\nacl_file {at}/mosquitto.acl\n\
         # Turns revoked and replaced devices away: fetch this list from the fleet server every day, https://FLEET:8443/api/v1/crl.pem,\n\
         # and restart the broker when it changed. A list that is 30 days old turns everybody away.\n\
         # crlfile {at}/crl.pem\n\
         # Messages that a server may be storing at once, and that may wait for it.\n\
         max_inflight_messages 1000\nmax_queued_messages 100000\n"
    );
    let acl = format!(
        "# A device writes and reads its own topics.\npattern write bg/v1/%u/up\npattern write bg/v1/%u/req\n\
         pattern read bg/v1/%u/down\n\n# The fleet servers.\nuser {fleet}\ntopic read bg/v1/+/up\ntopic read bg/v1/+/req\n\
         topic write bg/v1/+/down\ntopic write bg-feed/v1/#\n"
    );
    // NATS 2.9 has no users per certificate's common name: whoever has a certificate of this fleet may use every topic.
    let nats = format!(
        "# NATS Server 2.9 or newer for BehaveGuard: `nats-server -c nats-server.conf`. It keeps no device from another's topics,\n\
         # and has no shared subscriptions: say `shared = false` in [broker] of every fleet server.\n\
         server_name: behaveguard\njetstream {{ store_dir: \"{at}/jetstream\" }}\nmqtt {{\n  port: {port}\n  tls {{\n    \
         ca_file: \"{at}/ca.pem\"\n    cert_file: \"{at}/broker.pem\"\n    key_file: \"{at}/broker.key\"\n    verify: true\n  }}\n  \
         max_ack_pending: 1000\n}}\n"
    );
    let texts = [pki.ca_pem(), &certificate, &key, &mosquitto, &acl, &nats];
    for (name, text) in FILES.into_iter().zip(texts) {
        let path: PathBuf = folder.join(name);
        write_private(&path, text.as_bytes()).map_err(|source| PkiError::File { path, source })?;
    }
    Ok(())
}
