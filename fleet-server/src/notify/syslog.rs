//! Alerts as syslog messages (RFC 5424) over TLS (RFC 5425) or TCP, in plain words, as CEF or as OCSF.
//!
//! Each message has its length before it, and a connection carries those of one delivery. Syslog acknowledges nothing: what
//! was written and closed without an error counts as delivered.

use std::fmt::Write as _;
use std::sync::Arc;

use models::chain::chain;
use models::policy::Severity;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::{Message, TEST, TIMEOUT, counted};
use crate::clock;
use crate::store::{Channel, Format, StoredAlert};
use crate::trust;

/// Security messages, RFC 5424 section 6.2.1.
const FACILITY: u8 = 10;

/// Where messages go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address<'a> {
    tls: bool,
    host: &'a str,
    /// Host and port.
    authority: &'a str,
}

impl<'a> Address<'a> {
    /// Reads `syslog+tls://host:port` or `syslog+tcp://host:port`; `None` when it is none of these.
    pub(super) fn parse(url: &'a str) -> Option<Self> {
        let (tls, authority) = match url.strip_prefix("syslog+tls://") {
            Some(rest) => (true, rest),
            None => (false, url.strip_prefix("syslog+tcp://")?),
        };
        let (host, port) = authority.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let good = port.parse::<u16>().is_ok_and(|port| port > 0) && !host.is_empty();
        (good && !host.contains(['/', '@', ' '])).then_some(Self { tls, host, authority })
    }
}

/// Writes what is to be told, and closes the connection.
///
/// # Errors
/// Why it did not arrive.
pub(super) async fn send(
    channel: &Channel,
    address: Address<'_>,
    message: &Message<'_>,
) -> Result<(), String> {
    let mut bytes = Vec::new();
    for text in messages(channel.config.format, message, clock::unix_ms()) {
        bytes.extend_from_slice(format!("{} {text}", text.len()).as_bytes());
    }
    let url = &channel.config.url;
    let failed = |error: &dyn std::error::Error| format!("{url}: {}", chain(error));
    let work = async {
        let mut stream = TcpStream::connect(address.authority).await.map_err(|error| failed(&error))?;
        if !address.tls {
            stream.write_all(&bytes).await.map_err(|error| failed(&error))?;
            return stream.shutdown().await.map_err(|error| failed(&error));
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trust::roots(channel.config.ca_pem.as_deref())?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(address.host.to_owned()).map_err(|error| failed(&error))?;
        let connector = TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name, stream).await.map_err(|error| failed(&error))?;
        stream.write_all(&bytes).await.map_err(|error| failed(&error))?;
        stream.flush().await.map_err(|error| failed(&error))?;
        stream.shutdown().await.map_err(|error| failed(&error))
    };
    tokio::time::timeout(TIMEOUT, work).await.unwrap_or_else(|_| Err(format!("{url}: it took too long")))
}

fn messages(format: Format, message: &Message<'_>, now_ms: u64) -> Vec<String> {
    match message {
        Message::One(alert) => vec![of_alert(format, alert)],
        Message::Digest { newest, counts } => {
            let text = format!("{}; the newest {} follow", counted(*counts), newest.len());
            let all = newest.iter().map(|alert| of_alert(format, alert));
            std::iter::once(header(5, now_ms, "-", "digest", "-", &text)).chain(all).collect()
        }
        Message::Test => {
            vec![header(6, now_ms, "-", "test", "-", TEST)]
        }
    }
}

fn of_alert(format: Format, stored: &StoredAlert) -> String {
    let alert = &stored.alert;
    // MEDIUM is a warning, HIGH an error and CRITICAL is critical, RFC 5424 section 6.2.1.
    let level = match alert.severity {
        Severity::Critical => 2,
        Severity::High => 3,
        _ => 4,
    };
    let (data, text) = match format {
        Format::Cef => ("-".to_owned(), cef(stored)),
        Format::Ocsf => ("-".to_owned(), ocsf(stored).to_string()),
        Format::Syslog | Format::Json | Format::Slack | Format::Teams | Format::Mail => {
            (structured(stored), alert.summary.clone())
        }
    };
    header(level, alert.unix_ms, &stored.device, alert.severity.as_str(), &data, &text)
}

/// `<PRI>1 TIME HOST APP PROCID MSGID DATA BOM TEXT`.
fn header(level: u8, unix_ms: u64, host: &str, id: &str, data: &str, text: &str) -> String {
    let time = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let time = time.map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"));
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("<{}>1 {time} {host} behaveguard-fleet - {id} {data} \u{feff}{line}", FACILITY * 8 + level)
}

/// What is told beside the sentence. 32473 stands for an example in place of an enterprise's number, RFC 5612.
fn structured(stored: &StoredAlert) -> String {
    let alert = &stored.alert;
    let (id, score, pid) = (stored.id.to_string(), format!("{:.0}", alert.score), alert.pid.to_string());
    let (program, techniques) = (alert.program.to_string(), alert.techniques.join(","));
    let mut text = String::from("[behaveguard@32473");
    for (name, value) in [
        ("id", &*id),
        ("group", &stored.group),
        ("score", &score),
        ("program", &program),
        ("pid", &pid),
        ("techniques", &techniques),
    ] {
        let _ = write!(text, " {name}=\"");
        for c in value.chars().filter(|c| !c.is_control()) {
            // RFC 5424 section 6.3.3.
            if matches!(c, '"' | '\\' | ']') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
    }
    text + "]"
}

/// ArcSight Common Event Format, version 0.
fn cef(stored: &StoredAlert) -> String {
    let alert = &stored.alert;
    let head = |text: &str| text.replace('\\', "\\\\").replace('|', "\\|");
    let value = |text: &str| text.replace('\\', "\\\\").replace('=', "\\=").replace('\n', "\\n");
    let class = alert.techniques.first().map_or("anomaly", String::as_str);
    let (score, unit, exe) = (alert.score / 10.0, &alert.program.unit, &alert.program.exe);
    let mut text = format!(
        "CEF:0|BehaveGuard|BehaveGuard|{}|{}|{}|{score:.0}|",
        env!("CARGO_PKG_VERSION"),
        head(class),
        head(&alert.summary)
    );
    let (time, id, pid) = (alert.unix_ms.to_string(), stored.id.to_string(), alert.pid.to_string());
    let (techniques, score) = (alert.techniques.join(","), format!("{:.1}", alert.score));
    let fields = [
        ("rt", &*time),
        ("externalId", &id),
        ("dvchost", &stored.device),
        ("deviceProcessName", exe),
        ("dvcpid", &pid),
        ("cat", alert.severity.as_str()),
        ("cs1Label", "unit"),
        ("cs1", unit),
        ("cs2Label", "techniques"),
        ("cs2", &techniques),
        ("cs3Label", "group"),
        ("cs3", &stored.group),
        ("cfp1Label", "score"),
        ("cfp1", &score),
        ("msg", &alert.summary),
    ];
    let fields: Vec<String> = fields.iter().map(|(name, text)| format!("{name}={}", value(text))).collect();
    text += &fields.join(" ");
    text
}

/// Open Cybersecurity Schema Framework 1.3: a detection finding, class 2004.
pub(super) fn ocsf(stored: &StoredAlert) -> Value {
    let alert = &stored.alert;
    let (severity_id, severity) = match alert.severity {
        Severity::Critical => (5, "Critical"),
        Severity::High => (4, "High"),
        _ => (3, "Medium"),
    };
    let attacks: Vec<Value> =
        alert.techniques.iter().map(|id| json!({ "technique": { "uid": id }, "version": "16" })).collect();
    let exe = &alert.program.exe;
    let name = exe.rsplit('/').next().unwrap_or(exe);
    json!({
        "category_uid": 2, "class_uid": 2004, "activity_id": 1, "type_uid": 200_401,
        "time": alert.unix_ms, "severity_id": severity_id, "severity": severity, "status_id": 1,
        "message": alert.summary,
        "risk_score": alert.score.round() as u64,
        "metadata": {
            "version": "1.3.0", "uid": stored.id.to_string(), "logged_time": stored.received_ms,
            "product": { "name": "BehaveGuard", "vendor_name": "BehaveGuard", "version": env!("CARGO_PKG_VERSION") },
        },
        "finding_info": {
            "uid": stored.id.to_string(), "title": alert.summary, "created_time": alert.unix_ms, "attacks": attacks,
        },
        "device": { "hostname": stored.device, "type_id": 0, "groups": [{ "name": stored.group }] },
        "evidences": [{ "process": {
            "pid": alert.pid, "name": alert.comm,
            "file": { "name": name, "path": exe, "type_id": 1 },
        } }],
        "unmapped": { "unit": alert.program.unit, "reasons": alert.reasons.iter().map(|reason| &reason.text).collect::<Vec<_>>() },
    })
}

#[cfg(test)]
mod tests {
    use models::program::ProgramId;
    use models::wire::Alert;

    use super::*;
    use crate::store::WorkState;

    fn stored(summary: &str) -> StoredAlert {
        let alert = Alert {
            unix_ms: 1_800_000_000_123,
            program: ProgramId { unit: "a=b.service".into(), exe: "/usr/bin/pump".into(), script: None },
            pid: 7,
            comm: "pump".into(),
            score: 93.0,
            severity: Severity::Critical,
            techniques: vec!["T1003.008".into()],
            summary: summary.into(),
            reasons: vec![],
            generation: 1,
            detectors: vec![],
            suppressed_before: 0,
            degraded: vec![],
        };
        StoredAlert {
            id: 5,
            device: "gw-a".into(),
            group: "pumps".into(),
            received_ms: 1_800_000_000_200,
            state: WorkState::New,
            assignee: None,
            incident: None,
            suppressed: None,
            alert,
        }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        let tls = Address { tls: true, host: "siem.example", authority: "siem.example:6514" };
        assert_eq!(Address::parse("syslog+tls://siem.example:6514"), Some(tls));
        assert_eq!(Address::parse("syslog+tcp://[::1]:601").map(|address| address.host), Some("::1"));
        for bad in [
            "syslog+tls://siem.example",
            "syslog+tls://:6514",
            "syslog+tls://h:0",
            "syslog+tls://u@h:1",
            "https://h:1",
        ] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_message_is_as_rfc_5424_has_it_and_nothing_of_a_device_ends_a_field() {
        let text = of_alert(Format::Syslog, &stored("read \"x\"]\n<1>1 fake"));
        assert!(
            text.starts_with(
                "<82>1 2027-01-15T08:00:00.123Z gw-a behaveguard-fleet - CRITICAL [behaveguard@32473 id=\"5\""
            ),
            "{text}"
        );
        assert!(
            text.ends_with("] \u{feff}read \"x\"]  <1>1 fake")
                || text.ends_with("] \u{feff}read \"x\"] <1>1 fake"),
            "{text}"
        );
        assert!(!text.contains('\n'));
    }

    #[test]
    fn cef_escapes_what_would_end_a_field() {
        let text = of_alert(Format::Cef, &stored("a|b=c\\d"));
        let cef = text.split_once('\u{feff}').unwrap().1;
        assert!(
            cef.starts_with("CEF:0|BehaveGuard|BehaveGuard|") && cef.contains("|T1003.008|a\\|b=c\\\\d|9|"),
            "{cef}"
        );
        assert!(cef.contains(" cs1=a\\=b.service ") && cef.ends_with("msg=a|b\\=c\\\\d"), "{cef}");
    }

    #[test]
    fn ocsf_is_a_detection_finding() {
        let value = ocsf(&stored("read /etc/shadow"));
        assert_eq!(
            (&value["class_uid"], &value["type_uid"], &value["severity_id"]),
            (&json!(2004), &json!(200_401), &json!(5))
        );
        assert_eq!(value["finding_info"]["attacks"][0]["technique"]["uid"], "T1003.008");
        assert_eq!(value["evidences"][0]["process"]["file"]["name"], "pump");
    }
}
