//! Alerts as mail, by SMTP with TLS: at once (`smtps://`, RFC 8314) or by STARTTLS (`smtp+starttls://`, RFC 3207), never without.

use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::{Message as Mail, SmtpTransport, Transport as _};
use models::chain::chain;

use super::{Message, TEST, TIMEOUT, counted, lines, plain};
use crate::store::{Channel, MailConfig};
use crate::trust;

/// Whom one channel tells, at most.
pub(super) const TO_MAX: usize = 20;

/// A subject longer than this is cut.
const SUBJECT_MAX: usize = 120;

/// Where mail is handed over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address<'a> {
    /// TLS from the first byte.
    at_once: bool,
    host: &'a str,
    port: u16,
}

impl<'a> Address<'a> {
    /// Reads `smtps://host[:465]` or `smtp+starttls://host[:587]`; `None` when it is neither.
    pub(super) fn parse(url: &'a str) -> Option<Self> {
        let (at_once, authority) = match url.strip_prefix("smtps://") {
            Some(rest) => (true, rest),
            None => (false, url.strip_prefix("smtp+starttls://")?),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|port| *port > 0)?),
            _ => (authority, if at_once { 465 } else { 587 }),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        (!host.is_empty() && !host.contains(['/', '@', ' ', '?'])).then_some(Self { at_once, host, port })
    }
}

/// What is wrong with whom mail is from or for.
pub(super) fn problem(mail: Option<&MailConfig>) -> Option<&'static str> {
    let Some(mail) = mail else {
        return Some("mail with from and to must be given for a mail server's address");
    };
    let is_mailbox = |text: &String| text.parse::<Mailbox>().is_ok();
    if !is_mailbox(&mail.from) || !(1..=TO_MAX).contains(&mail.to.len()) || !mail.to.iter().all(is_mailbox) {
        return Some("mail.from must be a mail address, and mail.to a list of 1 to 20");
    }
    (mail.user.is_some() != mail.password.is_some()).then_some("mail.user and mail.password belong together")
}

/// Hands a mail to the server, which accepts it for all receivers.
///
/// # Errors
/// Why it was not accepted.
pub(super) async fn send(
    channel: &Channel,
    address: &Address<'_>,
    message: &Message<'_>,
    web_url: &str,
) -> Result<(), String> {
    let config = channel.config.mail.as_ref().ok_or("the channel does not say whom to tell")?;
    let url = channel.config.url.clone();
    let mail = written(config, message, web_url)?;
    let mut tls = TlsParameters::builder(address.host.to_owned()).certificate_store(CertificateStore::None);
    for der in trust::roots(channel.config.ca_pem.as_deref())? {
        // Of a system's many authorities some may be of a kind that is not known here.
        if let Ok(certificate) = Certificate::from_der(der.to_vec()) {
            tls = tls.add_root_certificate(certificate);
        }
    }
    let tls = tls.build_rustls().map_err(|error| format!("{url}: {}", chain(&error)))?;
    let tls = if address.at_once { Tls::Wrapper(tls) } else { Tls::Required(tls) };
    let mut transport =
        SmtpTransport::builder_dangerous(address.host).port(address.port).tls(tls).timeout(Some(TIMEOUT));
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        transport = transport.credentials(Credentials::new(user.clone(), password.clone()));
    }
    let transport = transport.build();
    let sent = tokio::task::spawn_blocking(move || transport.send(&mail));
    match sent.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{url}: {}", chain(&error))),
        Err(error) => Err(error.to_string()),
    }
}

fn written(config: &MailConfig, message: &Message<'_>, web_url: &str) -> Result<Mail, String> {
    let mailbox = |text: &str| text.parse::<Mailbox>().map_err(|error| format!("{text}: {error}"));
    let mut mail = Mail::builder().from(mailbox(&config.from)?).subject(subject(message));
    for to in &config.to {
        mail = mail.to(mailbox(to)?);
    }
    let text = lines(message, web_url).join("\r\n\r\n") + "\r\n";
    mail.body(text).map_err(|error| chain(&error))
}

fn subject(message: &Message<'_>) -> String {
    let text = match message {
        Message::One(stored) => {
            let alert = &stored.alert;
            format!("{} on {}: {}", alert.severity.as_str(), stored.device, plain(&alert.summary))
        }
        Message::Digest { counts, .. } => counted(*counts),
        Message::Test => TEST.to_owned(),
    };
    text.chars().take(SUBJECT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_tls_in_one_of_two_ways_and_a_port() {
        let of = |url| Address::parse(url).map(|address| (address.at_once, address.host, address.port));
        assert_eq!(of("smtps://mail.example"), Some((true, "mail.example", 465)));
        assert_eq!(of("smtp+starttls://[::1]:2525"), Some((false, "::1", 2525)));
        assert_eq!(of("smtp+starttls://mail.example"), Some((false, "mail.example", 587)));
        for bad in ["smtp://mail", "smtps://", "smtps://a@b", "smtps://a:0", "smtps://a:x", "smtps://a/b"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn whom_mail_is_for_is_checked() {
        let mail = |from: &str, to: &[&str], user: Option<&str>| MailConfig {
            from: from.into(),
            to: to.iter().map(|to| (*to).to_owned()).collect(),
            user: user.map(str::to_owned),
            password: None,
        };
        assert_eq!(problem(Some(&mail("bg@example.org", &["SOC <soc@example.org>"], None))), None);
        assert!(problem(None).is_some() && problem(Some(&mail("bg", &["a@b.c"], None))).is_some());
        assert!(problem(Some(&mail("a@b.c", &[], None))).is_some());
        assert!(problem(Some(&mail("a@b.c", &["a@b.c\r\nBcc: x@y.z"], None))).is_some());
        assert!(problem(Some(&mail("a@b.c", &["a@b.c"], Some("user")))).is_some());
    }
}
