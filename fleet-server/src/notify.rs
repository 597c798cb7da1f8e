//! Tells people outside of the dashboard: alerts to webhooks, signed, to syslog and by mail; tried again, a flood as one digest.
//!
//! ```text
//! put_alert ──► notices (in its transaction) ──► due, oldest first ──► single posts within the rate, else one digest
//!                     ▲                                                        │
//!                     └── waits 5 s, 10 s, … 1 h, given up after a day ◄── failed
//! ```

mod mail;
mod syslog;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use models::chain::chain;
use models::policy::Severity;
use ring::hmac;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clock;
use crate::counters::Counter;
use crate::server::Shared;
use crate::store::{self, Channel, Format, MailConfig, Notice, StoreError, StoredAlert};
use crate::{trust, web};

/// How often is looked for something due.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Alerts in one digest at most; the rest comes with the next.
const DIGEST_MAX: u32 = 1000;

/// Alerts that a digest shows.
const SHOWN: usize = 10;

/// How long one post may take.
const TIMEOUT: Duration = Duration::from_secs(10);

const RETRY_MIN_MS: u64 = 5000;
const RETRY_MAX_MS: u64 = 3_600_000;

/// What could not be told for a day is given up.
const GIVEN_UP_MS: u64 = 86_400_000;

const MINUTE_MS: u64 = 60_000;

/// What a test says.
const TEST: &str = "BehaveGuard can reach this channel.";

/// What is posted.
enum Message<'a> {
    One(&'a StoredAlert),
    Digest { newest: &'a [StoredAlert], counts: [usize; 3] },
    Test,
}

/// Works until the server stops. A channel that hangs holds up no other.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut busy = HashSet::new();
    let mut working = JoinSet::new();
    let mut rates: HashMap<u64, (u64, u32)> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            Some(done) = working.join_next() => {
                if let Ok((id, posts)) = done {
                    busy.remove(&id);
                    rates.entry(id).or_insert((clock::unix_ms(), 0)).1 += posts;
                }
                continue;
            }
            _ = stop.wait_for(|stop| *stop) => return,
        }
        if shared.standing().channels.is_empty() || !shared.store.leads() {
            continue;
        }
        let channels = match shared.store.read(store::channels).await {
            Ok(channels) => channels,
            Err(error) => {
                log::error!("reading the notification channels: {}", chain(&error));
                continue;
            }
        };
        rates.retain(|id, _| channels.iter().any(|channel| channel.id == *id));
        for channel in channels {
            if channel.waiting == 0 || !busy.insert(channel.id) {
                continue;
            }
            let now_ms = clock::unix_ms();
            let rate = rates.entry(channel.id).or_insert((now_ms, 0));
            if now_ms.abs_diff(rate.0) >= MINUTE_MS {
                *rate = (now_ms, 0);
            }
            let left = channel.config.per_minute.saturating_sub(rate.1);
            let shared = Arc::clone(&shared);
            working.spawn(async move {
                let id = channel.id;
                let posts = work(&shared, channel, left).await.unwrap_or_else(|error| {
                    log::error!("telling a channel: {}", chain(&error));
                    0
                });
                (id, posts)
            });
        }
    }
}

/// Tells one channel what is due, within what is left of its rate; gives how often it was posted to.
async fn work(shared: &Arc<Shared>, channel: Channel, left: u32) -> Result<u32, StoreError> {
    let id = channel.id;
    let now_ms = clock::unix_ms();
    let due = shared.store.read(move |c| store::due(c, id, now_ms, DIGEST_MAX)).await?;
    if due.is_empty() || left == 0 {
        return Ok(0);
    }
    // The last post of a minute tells of all that is left.
    let singles = if due.len() as u32 <= left { due.len() } else { left as usize - 1 };
    let mut posts = 0;
    for notice in &due[..singles] {
        posts += 1;
        if !tell(shared, &channel, std::slice::from_ref(notice)).await? {
            return Ok(posts);
        }
    }
    if let Some(rest) = due.get(singles..).filter(|rest| !rest.is_empty()) {
        posts += 1;
        tell(shared, &channel, rest).await?;
    }
    Ok(posts)
}

/// Posts one alert or a digest; `false` when that failed.
async fn tell(shared: &Arc<Shared>, channel: &Channel, notices: &[Notice]) -> Result<bool, StoreError> {
    let (Some(first), Some(last)) = (notices.first(), notices.last()) else { return Ok(true) };
    let ids: Vec<u64> = notices.iter().rev().take(SHOWN).map(|notice| notice.alert).collect();
    let alerts = shared
        .store
        .read(move |c| {
            ids.iter().filter_map(|id| store::alert(c, *id).transpose()).collect::<Result<Vec<_>, _>>()
        })
        .await?;
    let message = match (&alerts[..], notices.len()) {
        // It made room for others meanwhile.
        ([], _) => None,
        ([alert], 1) => Some(Message::One(alert)),
        (newest, _) => {
            let count = |severity| notices.iter().filter(|notice| notice.severity == severity).count();
            let counts = [Severity::Critical, Severity::High, Severity::Medium].map(count);
            Some(Message::Digest { newest, counts })
        }
    };
    let result = match message {
        None => Ok(()),
        Some(message) => deliver(shared, channel, &message, first.id).await,
    };
    let (id, first, tries, last) = (channel.id, first.id, first.tries, last.id);
    match result {
        Ok(()) => {
            shared.counters.add(Counter::NoticesDelivered, notices.len() as u64);
            shared.store.write(move |c| store::delivered(c, id, last)).await?;
            Ok(true)
        }
        Err(why) => {
            shared.counters.bump(Counter::NoticesFailed);
            let wait_ms = (RETRY_MIN_MS << tries.min(20)).min(RETRY_MAX_MS);
            log::warn!("channel {}: {why}; trying again in {} s", channel.name, wait_ms / 1000);
            let now_ms = clock::unix_ms();
            let counters = Arc::clone(&shared.counters);
            let (due_ms, oldest_ms) = (now_ms + wait_ms, now_ms.saturating_sub(GIVEN_UP_MS));
            shared
                .store
                .write(move |c| store::failed(c, &counters, id, first, due_ms, oldest_ms, &why))
                .await?;
            Ok(false)
        }
    }
}

/// Posts a message that says only that it is a test.
///
/// # Errors
/// Why it did not arrive.
pub(crate) async fn test(shared: &Shared, channel: &Channel) -> Result<(), String> {
    deliver(shared, channel, &Message::Test, 0).await
}

/// What is wrong with an address, or with a form that is not for it.
pub(crate) fn problem(url: &str, format: Format, mail: Option<&MailConfig>) -> Option<&'static str> {
    let host = ["https://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let is_web = host.is_some_and(|host| !host.is_empty() && !host.starts_with('/'));
    let is_syslog = syslog::Address::parse(url).is_some();
    if mail::Address::parse(url).is_some() {
        return if format == Format::Mail {
            mail::problem(mail)
        } else {
            Some("format must be mail for a mail server")
        };
    }
    match format {
        _ if !is_web && !is_syslog => Some(
            "url must be https:// or http:// and a host, syslog+tls:// or syslog+tcp:// with host and port, or smtps:// or \
             smtp+starttls:// with a host",
        ),
        _ if mail.is_some() => Some("mail is for a mail server's address: smtps:// or smtp+starttls://"),
        Format::Mail => Some("format mail is for a mail server's address: smtps:// or smtp+starttls://"),
        Format::Json | Format::Slack | Format::Teams if is_syslog => {
            Some("format must be syslog, cef or ocsf for a syslog address")
        }
        Format::Syslog | Format::Cef if is_web => {
            Some("format must be json, slack, teams or ocsf for a web address")
        }
        _ => None,
    }
}

async fn deliver(
    shared: &Shared,
    channel: &Channel,
    message: &Message<'_>,
    delivery: u64,
) -> Result<(), String> {
    let web_url = &shared.addresses.web_url;
    if let Some(address) = mail::Address::parse(&channel.config.url) {
        return mail::send(channel, &address, message, web_url).await;
    }
    match syslog::Address::parse(&channel.config.url) {
        Some(address) => syslog::send(channel, address, message).await,
        None => post(channel, body(channel.config.format, message, web_url), delivery).await,
    }
}

async fn post(channel: &Channel, body: String, delivery: u64) -> Result<(), String> {
    let channel = channel.clone();
    let posted = tokio::task::spawn_blocking(move || post_blocking(&channel, &body, delivery));
    posted.await.unwrap_or_else(|error| Err(error.to_string()))
}

fn post_blocking(channel: &Channel, body: &str, delivery: u64) -> Result<(), String> {
    let config = &channel.config;
    let mut builder = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(TIMEOUT));
    if config.url.starts_with("https://") {
        builder = builder.tls_config(trust::tls(config.ca_pem.as_deref())?);
    }
    let client = builder.build().new_agent();
    let request = client
        .post(&config.url)
        .content_type("application/json")
        .header("BehaveGuard-Delivery", format!("{}-{delivery}", channel.id))
        .header("BehaveGuard-Signature", signature(&channel.secret, clock::unix_s(), body));
    let status = request.send(body).map_err(|error| format!("{}: {}", config.url, chain(&error)))?.status();
    if status.is_success() { Ok(()) } else { Err(format!("{} answered {status}", config.url)) }
}

/// `t=<seconds since 1970>,v1=<HMAC-SHA256 of "<t>.<body>", hexadecimal>`: the time keeps an old post from being sent again.
fn signature(secret: &str, now_s: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{now_s}.{body}").as_bytes());
    format!("t={now_s},v1={}", models::program::hex(tag.as_ref()))
}

fn body(format: Format, message: &Message<'_>, web_url: &str) -> String {
    let value = match format {
        Format::Json | Format::Syslog | Format::Cef | Format::Mail => as_json(message),
        Format::Ocsf => match message {
            Message::One(alert) => syslog::ocsf(alert),
            Message::Digest { newest, .. } => newest.iter().map(syslog::ocsf).collect(),
            Message::Test => as_json(message),
        },
        Format::Slack => json!({ "text": lines(message, web_url).join("\n") }),
        Format::Teams => {
            let texts: Vec<Value> = lines(message, web_url)
                .into_iter()
                .map(|text| json!({ "type": "TextBlock", "text": text, "wrap": true }))
                .collect();
            json!({ "type": "message", "attachments": [{
                "contentType": "application/vnd.microsoft.card.adaptive",
                "content": { "type": "AdaptiveCard", "version": "1.4", "body": texts },
            }] })
        }
    };
    value.to_string()
}

fn as_json(message: &Message<'_>) -> Value {
    let view =
        |alert: &StoredAlert| serde_json::from_slice::<Value>(&web::alert_json(alert)).unwrap_or_default();
    match message {
        Message::One(alert) => json!({ "type": "alert", "alert": view(alert) }),
        Message::Digest { newest, counts: [critical, high, medium] } => json!({
            "type": "digest",
            "alerts": critical + high + medium,
            "critical": critical,
            "high": high,
            "medium": medium,
            "newest": newest.iter().map(view).collect::<Vec<_>>(),
        }),
        Message::Test => json!({ "type": "test", "text": TEST }),
    }
}

fn lines(message: &Message<'_>, web_url: &str) -> Vec<String> {
    let line = |stored: &StoredAlert| {
        let alert = &stored.alert;
        let (severity, score) = (alert.severity.as_str(), alert.score);
        let what = plain(&format!("{}: {}", alert.program, alert.summary));
        format!("{severity} {score:.0} on {}: {what} ({web_url}/#/alerts/{})", stored.device, stored.id)
    };
    match message {
        Message::One(alert) => vec![line(alert)],
        Message::Digest { newest, counts } => {
            let head = format!("{}. The newest:", counted(*counts));
            std::iter::once(head).chain(newest.iter().map(line)).collect()
        }
        Message::Test => vec![TEST.into()],
    }
}

/// How many alerts of each severity a digest is about.
fn counted([critical, high, medium]: [usize; 3]) -> String {
    let all = critical + high + medium;
    format!("{all} alerts: {critical} CRITICAL, {high} HIGH, {medium} MEDIUM")
}

/// Paths and summaries come from devices: nothing in them may become a link, a mention or a format.
fn plain(text: &str) -> String {
    let escape = |c: char| match c {
        '<' => '‹',
        '>' => '›',
        '*' | '_' | '`' | '~' | '[' | ']' | '&' | '@' => ' ',
        c if c.is_control() => ' ',
        c => c,
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_time_and_the_body() {
        // As `printf '1800000000.{}' | openssl dgst -sha256 -hmac key` says.
        let expected = "t=1800000000,v1=7321475872b03ff21bdc2dfd86ea2d99ec29c479fbe4a77aa6acf4509505493f";
        assert_eq!(signature("key", 1_800_000_000, "{}"), expected);
    }

    #[test]
    fn nothing_that_a_device_tells_becomes_a_link_or_a_mention() {
        let shown = plain("<!channel> [x](http://evil) @all *b* \u{7}");
        assert!(shown.starts_with("‹!channel›"), "{shown}");
        assert!(!shown.contains(['<', '>', '[', ']', '@', '*', '\u{7}']), "{shown}");
    }
}
