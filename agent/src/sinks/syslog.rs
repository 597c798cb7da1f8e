//! Alerts as syslog messages of RFC 5424, as datagrams or, over TCP, each with its length before it (RFC 6587 section 3.4.1).

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use models::policy::Severity;

use super::{Deliver, Failure, Item};
use crate::config::SyslogAddress;

/// Security messages, RFC 5424 section 6.2.1.
const FACILITY: u8 = 10;
/// Every receiver should take as much, RFC 5424 section 6.1.
const DATAGRAM_MAX: usize = 2048;
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Syslog {
    address: SyslogAddress,
    link: Option<Link>,
}

enum Link {
    Unix(UnixDatagram),
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Syslog {
    pub(super) fn new(address: SyslogAddress) -> Self {
        Self { address, link: None }
    }

    fn send(&mut self, message: &str) -> io::Result<()> {
        let link = match self.link.take().filter(Link::is_open) {
            Some(link) => link,
            None => Link::open(&self.address)?,
        };
        link.send(message)?;
        self.link = Some(link);
        Ok(())
    }
}

impl Link {
    fn open(address: &SyslogAddress) -> io::Result<Self> {
        Ok(match address {
            SyslogAddress::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_write_timeout(Some(TIMEOUT))?;
                socket.connect(path)?;
                Self::Unix(socket)
            }
            SyslogAddress::Udp(host) => {
                let to = resolve(host)?;
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                socket.connect(to)?;
                Self::Udp(socket)
            }
            SyslogAddress::Tcp(host) => {
                let stream = TcpStream::connect_timeout(&resolve(host)?, TIMEOUT)?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                Self::Tcp(stream)
            }
        })
    }

    /// A stream that its server closed would swallow the next message.
    fn is_open(&self) -> bool {
        let Self::Tcp(stream) = self else { return true };
        let mut stream = stream;
        let nothing = stream.set_nonblocking(true).and_then(|()| stream.read(&mut [0; 64]));
        let open = match nothing {
            Ok(n) => n > 0,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        open && stream.set_nonblocking(false).is_ok()
    }

    fn send(&self, message: &str) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.send(shortened(message).as_bytes()).map(|_| ()),
            Self::Udp(socket) => socket.send(shortened(message).as_bytes()).map(|_| ()),
            Self::Tcp(stream) => {
                let mut stream = stream;
                stream.write_all(format!("{} {message}", message.len()).as_bytes())
            }
        }
    }
}

impl Deliver for Syslog {
    fn deliver(&mut self, item: &Item) -> Result<(), Failure> {
        self.send(&message(item)).map_err(|error| {
            let to = match &self.address {
                SyslogAddress::Unix(path) => path.display().to_string(),
                SyslogAddress::Udp(host) | SyslogAddress::Tcp(host) => host.clone(),
            };
            Failure::Later(format!("syslog to {to}: {error}"))
        })
    }
}

fn resolve(host: &str) -> io::Result<std::net::SocketAddr> {
    host.to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

fn shortened(message: &str) -> &str {
    &message[..message.floor_char_boundary(DATAGRAM_MAX)]
}

/// `<PRI>1 TIME HOST APP PROCID MSGID [DATA] BOM TEXT`.
fn message(item: &Item) -> String {
    let alert = &item.alert;
    let priority = FACILITY * 8 + severity_of(alert.severity);
    let time = i64::try_from(alert.unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let time = time.map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"));
    let mut text = format!(
        "<{priority}>1 {time} {} behaveguard {} {} ",
        item.device,
        std::process::id(),
        alert.severity.as_str()
    );
    let score = format!("{:.0}", alert.score);
    let (pid, program, techniques) =
        (alert.pid.to_string(), alert.program.to_string(), alert.techniques.join(","));
    // 32473 stands for an example in place of an enterprise's number, RFC 5612.
    text.push_str("[behaveguard@32473");
    for (name, value) in [
        ("id", &*item.id),
        ("score", &score),
        ("program", &program),
        ("pid", &pid),
        ("techniques", &techniques),
    ] {
        let _ = write!(text, " {name}=\"{}\"", escaped(value));
    }
    let line = alert.summary.replace(['\n', '\r'], " ");
    let _ = write!(text, "] \u{feff}{line}");
    text
}

/// `MEDIUM` is a warning, `HIGH` an error and `CRITICAL` is critical, RFC 5424 section 6.2.1.
fn severity_of(severity: Severity) -> u8 {
    match severity {
        Severity::Critical => 2,
        Severity::High => 3,
        Severity::Medium => 4,
        Severity::Low => 5,
    }
}

/// RFC 5424 section 6.3.3.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for letter in value.chars() {
        if matches!(letter, '"' | '\\' | ']') {
            text.push('\\');
        }
        text.push(if letter.is_control() { ' ' } else { letter });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::item;
    use super::*;
    use std::io::BufRead as _;
    use std::net::TcpListener;

    #[test]
    fn a_message_has_the_form_of_rfc_5424() {
        let mut item = item(Severity::Critical, "a \"shell\"]\nnew");
        item.alert.program.exe = "/opt/a\"b]c\\d".into();
        let text = message(&item);
        let (pid, id) = (std::process::id(), &item.id);
        let expected = format!(
            "<82>1 2023-11-14T22:13:20.123Z gw-1 behaveguard {pid} CRITICAL [behaveguard@32473 id=\"{id}\" score=\"92\" \
             program=\"/opt/a\\\"b\\]c\\\\d in gw.service\" pid=\"7\" techniques=\"T1059\"] \u{feff}a \"shell\"] new"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn datagrams_are_cut_at_a_letter() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = SyslogAddress::Udp(socket.local_addr().unwrap().to_string());
        let mut syslog = Syslog::new(address);
        syslog.deliver(&item(Severity::High, &"ä".repeat(3000))).unwrap();
        let mut buffer = [0; 4096];
        let n = socket.recv(&mut buffer).unwrap();
        assert!(n <= DATAGRAM_MAX && n > DATAGRAM_MAX - 2);
        assert!(std::str::from_utf8(&buffer[..n]).unwrap().ends_with('ä'));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut syslog = Syslog::new(SyslogAddress::Unix(path));
        syslog.deliver(&item(Severity::High, "x")).unwrap();
        let n = socket.recv(&mut buffer).unwrap();
        assert!(buffer[..n].starts_with(b"<83>1 "));
    }

    #[test]
    fn a_server_that_was_away_gets_the_next_message() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut syslog = Syslog::new(SyslogAddress::Tcp(listener.local_addr().unwrap().to_string()));
        for n in 0..3 {
            let item = item(Severity::High, &format!("number {n}"));
            syslog.deliver(&item).unwrap();
            let (stream, _) = listener.accept().unwrap();
            let mut reader = io::BufReader::new(&stream);
            let mut length = Vec::new();
            reader.read_until(b' ', &mut length).unwrap();
            let length: usize = std::str::from_utf8(&length).unwrap().trim().parse().unwrap();
            let mut text = vec![0; length];
            reader.read_exact(&mut text).unwrap();
            assert!(String::from_utf8(text).unwrap().ends_with(&format!("number {n}")));
            drop(reader);
            drop(stream);
            // The end of the stream must have come before the next one is sent.
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(listener);
        let refused = syslog.deliver(&item(Severity::High, "x"));
        assert!(matches!(refused, Err(Failure::Later(reason)) if reason.starts_with("syslog to 127.0.0.1:")));
    }
}
