//! Ring-buffer bytes to [`Event`]s.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_ebpf::records::{
    Connect, Exec, Flush, Fork, Header, KIND_CONNECT, KIND_EXEC, KIND_EXIT, KIND_FLUSH, KIND_FORK, KIND_OPEN,
    Open, Window, WindowKey,
};
use models::event::{Comm, Event, EventKind, PathText, SyscallWindow};
use zerocopy::FromBytes;

/// Why a record is not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer or more bytes than its kind has.
    #[error("a record of kind {kind} cannot have {len} bytes")]
    Length {
        /// The kind in its header, 0 when even that is cut.
        kind: u32,
        /// How many bytes came.
        len: usize,
    },
    /// Another build wrote it.
    #[error("unknown record kind {0}")]
    Kind(u32),
    /// Neither IPv4 nor IPv6, or a port beyond 65535.
    #[error("a connection with family {family} and port {port}")]
    Address {
        /// As recorded.
        family: u32,
        /// As recorded.
        port: u32,
    },
}

/// Turns one record into an event.
///
/// # Errors
///
/// When the bytes are not a record of this build.
pub fn decode(record: &[u8]) -> Result<Event, DecodeError> {
    let (header, _) =
        Header::read_from_prefix(record).map_err(|_| DecodeError::Length { kind: 0, len: record.len() })?;
    let kind = match header.kind {
        KIND_EXEC => EventKind::Exec { path: path_text(&whole::<Exec>(&header, record)?.filename) },
        KIND_FORK => EventKind::Fork { child: whole::<Fork>(&header, record)?.child },
        KIND_EXIT => {
            whole::<Header>(&header, record)?;
            EventKind::Exit
        }
        KIND_OPEN => {
            let open = whole::<Open>(&header, record)?;
            EventKind::Open { path: path_text(&open.path), flags: open.flags, sensitive: open.sensitive != 0 }
        }
        KIND_CONNECT => connect(&whole(&header, record)?)?,
        KIND_FLUSH => {
            let flush = whole::<Flush>(&header, record)?;
            EventKind::Flush(Box::new(window(flush.key, &flush.window)))
        }
        other => return Err(DecodeError::Kind(other)),
    };
    Ok(Event {
        boot_ns: header.boot_ns,
        tgid: header.tgid,
        tid: header.tid,
        uid: header.uid,
        comm: comm_text(&header.comm),
        kind,
    })
}

/// A window entry as the pipeline knows it.
#[must_use]
pub fn window(key: WindowKey, window: &Window) -> SyscallWindow {
    SyscallWindow {
        tgid: key.tgid,
        epoch: key.epoch,
        first_ns: window.first_ns,
        last_ns: window.last_ns,
        calls: window.calls.to_vec(),
        unmapped: window.unmapped,
        bigrams: window.bigrams.to_vec(),
        active: window.active,
    }
}

fn whole<T: FromBytes>(header: &Header, record: &[u8]) -> Result<T, DecodeError> {
    T::read_from_bytes(record).map_err(|_| DecodeError::Length { kind: header.kind, len: record.len() })
}

fn connect(record: &Connect) -> Result<EventKind, DecodeError> {
    let wrong = DecodeError::Address { family: record.family, port: record.port };
    let port = u16::try_from(record.port).map_err(|_| wrong)?;
    let [a, b, c, d, ..] = record.addr;
    let addr = match i32::try_from(record.family) {
        Ok(libc::AF_INET) => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        Ok(libc::AF_INET6) => IpAddr::V6(Ipv6Addr::from(record.addr)),
        _ => return Err(wrong),
    };
    Ok(EventKind::Connect { addr, port })
}

fn path_text(bytes: &[u8]) -> PathText {
    let mut text = PathText::new();
    // A replacement character is longer than the byte it replaces; what no longer fits is left out.
    let _ = lossy(bytes).chars().try_for_each(|c| text.push(c));
    text
}

fn comm_text(bytes: &[u8]) -> Comm {
    let mut text = Comm::new();
    let _ = lossy(bytes).chars().try_for_each(|c| text.push(c));
    text
}

fn lossy(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn header(kind: u32) -> Header {
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"cat\xff");
        Header { boot_ns: 5, kind, tgid: 7, tid: 8, uid: 9, comm }
    }

    fn samples() -> Vec<Vec<u8>> {
        let mut path = [0xaa; 256];
        path[..12].copy_from_slice(b"/etc/shadow\0");
        let connect = |family, addr| Connect { header: header(KIND_CONNECT), family, port: 443, addr };
        let key = WindowKey { tgid: 7, epoch: 3 };
        vec![
            Exec { header: header(KIND_EXEC), filename: path }.as_bytes().to_vec(),
            Fork { header: header(KIND_FORK), child: 11, _pad: 0 }.as_bytes().to_vec(),
            header(KIND_EXIT).as_bytes().to_vec(),
            Open { header: header(KIND_OPEN), dfd: -100, flags: 1, sensitive: 1, _pad: 0, path }
                .as_bytes()
                .to_vec(),
            connect(2, [127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).as_bytes().to_vec(),
            connect(10, [1; 16]).as_bytes().to_vec(),
            Flush { header: header(KIND_FLUSH), key, window: Window::EMPTY }.as_bytes().to_vec(),
        ]
    }

    #[test]
    fn every_kind_decodes() {
        let events: Vec<_> = samples().iter().map(|s| decode(s).unwrap()).collect();
        assert!(events.iter().all(|e| (e.boot_ns, e.tgid, e.tid, e.uid) == (5, 7, 8, 9)));
        assert_eq!(events[0].comm, "cat\u{fffd}");
        assert!(matches!(&events[0].kind, EventKind::Exec { path } if path == "/etc/shadow"));
        assert_eq!(events[1].kind, EventKind::Fork { child: 11 });
        assert_eq!(events[2].kind, EventKind::Exit);
        assert!(matches!(&events[3].kind, EventKind::Open { sensitive: true, flags: 1, .. }));
        assert_eq!(events[4].kind, EventKind::Connect { addr: Ipv4Addr::LOCALHOST.into(), port: 443 });
        assert!(matches!(&events[6].kind, EventKind::Flush(w) if w.tgid == 7 && w.epoch == 3));
    }

    #[test]
    fn every_truncation_and_extension_is_an_error() {
        for sample in samples() {
            for len in 0..sample.len() {
                assert!(matches!(decode(&sample[..len]), Err(DecodeError::Length { .. })), "{len} bytes");
            }
            let mut longer = sample;
            longer.push(0);
            assert!(matches!(decode(&longer), Err(DecodeError::Length { .. })));
        }
    }

    #[test]
    fn unknown_kinds_and_families_are_errors() {
        assert_eq!(decode(header(99).as_bytes()), Err(DecodeError::Kind(99)));
        let odd = Connect { header: header(KIND_CONNECT), family: 1, port: 70_000, addr: [0; 16] };
        assert_eq!(decode(odd.as_bytes()), Err(DecodeError::Address { family: 1, port: 70_000 }));
    }
}
