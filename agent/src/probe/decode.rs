//! Ring-buffer bytes to [`Event`]s.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_ebpf::records::{
    Act, Class, Connect, Dns, Escape, Exec, Flush, Follow, Fork, Header, Inject, KIND_CONNECT, KIND_DNS,
    KIND_ESCAPE, KIND_EXEC, KIND_EXIT, KIND_FLUSH, KIND_FORK, KIND_INJECT, KIND_KERNEL_LOAD, KIND_OPEN,
    KIND_PRIVILEGE, KIND_TAMPER, Open, PLACE_WATCHED, REPLACED, Tamper, VOLUME_UNKNOWN, Window,
};
use agent_ebpf::{bigram, dns, gram};
use models::event::{
    Comm, DnsQuestion, Event, EventKind, GroupText, PathText, SyscallWindow, Tampering, Volume, clipped,
};
use models::sequence::{GramWindow, Sums, summed};
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
    /// A call that its kind of record is not made for.
    #[error("a record of kind {kind} cannot be about call {call}")]
    Call {
        /// The kind in its header.
        kind: u32,
        /// As recorded.
        call: u32,
    },
    /// Neither IPv4 nor IPv6, or a port beyond 65535.
    #[error("a connection with family {family} and port {port}")]
    Address {
        /// As recorded.
        family: u32,
        /// As recorded.
        port: u32,
    },
}

/// One record: the event, its class, and what is still to be found out about its path.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) event: Event,
    pub(super) class: Class,
    pub(super) unplaced: Option<Unplaced>,
}

/// A path that the record does not give in full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unplaced {
    /// Directory that it starts from, or the file itself when it is empty.
    pub(super) dfd: i32,
    /// The kernel found it in a watched directory; else the agent must say.
    pub(super) watched: bool,
}

/// Turns one record into an event.
///
/// # Errors
///
/// When the bytes are not a record of this build.
pub fn decode(record: &[u8]) -> Result<Event, DecodeError> {
    read(record).map(|record| record.event)
}

pub(super) fn read(record: &[u8]) -> Result<Record, DecodeError> {
    let (header, _) =
        Header::read_from_prefix(record).map_err(|_| DecodeError::Length { kind: 0, len: record.len() })?;
    let mut unplaced = None;
    let (class, kind) = match header.kind {
        KIND_EXEC => {
            let exec = whole::<Exec>(&header, record)?;
            let path = path_text(&exec.filename);
            // Where the kernel could not look at the file, its path must do.
            let fileless = exec.unlinked == 1 || exec.unlinked != 0 && is_descriptor(&path);
            let len = (exec.arguments_len as usize).min(exec.arguments.len());
            let arguments = clipped(&String::from_utf8_lossy(&exec.arguments[..len]));
            let [above, own] = exec.groups.each_ref().map(|name| lossy(name));
            let group = if own.is_empty() { GroupText::new() } else { clipped(&format!("{above}/{own}")) };
            (Class::Exec, EventKind::Exec { path, arguments, fileless, group })
        }
        KIND_FORK => (Class::Fork, EventKind::Fork { child: whole::<Fork>(&header, record)?.child }),
        KIND_EXIT => {
            whole::<Header>(&header, record)?;
            (Class::Exit, EventKind::Exit)
        }
        KIND_OPEN => {
            let open = whole::<Open>(&header, record)?;
            let (flags, sensitive, path) = (open.flags, open.sensitive != 0, path_text(&open.path));
            if !path.is_empty() && !path.starts_with('/') {
                unplaced = Some(Unplaced { dfd: open.dfd, watched: false });
            }
            (Class::Open, EventKind::Open { path, flags, sensitive })
        }
        KIND_CONNECT => {
            let connect = whole::<Connect>(&header, record)?;
            let addr = address(connect.family, connect.port, &connect.addr)?;
            let wrong = DecodeError::Address { family: connect.family, port: connect.port };
            let port = u16::try_from(connect.port).map_err(|_| wrong)?;
            (Class::Connect, EventKind::Connect { addr, port })
        }
        KIND_FLUSH => {
            let flush = whole::<Flush>(&header, record)?;
            (Class::Flush, EventKind::Flush(Box::new(window(&flush.window))))
        }
        KIND_INJECT => {
            let inject = whole::<Inject>(&header, record)?;
            let call = call(&header, inject.call)?;
            (Class::Injection, EventKind::Inject { call, victim: inject.victim })
        }
        KIND_ESCAPE => (Class::Escape, escape(&header, &whole(&header, record)?)?),
        KIND_TAMPER => {
            let tamper = whole::<Tamper>(&header, record)?;
            let (watched, path) = (tamper.place == PLACE_WATCHED, path_text(&tamper.path));
            if !watched || !path.starts_with('/') {
                unplaced = Some(Unplaced { dfd: tamper.dfd, watched });
            }
            let class = if watched { Class::AntiForensic } else { Class::Unplaced };
            (class, EventKind::Tamper { how: tampering(&header, &tamper)?, path })
        }
        KIND_DNS => {
            let sent = whole::<Dns>(&header, record)?;
            let addr = address(sent.family, 53, &sent.addr)?;
            let question =
                sent.message.get(..sent.taken as usize).and_then(dns::question).map(|found| DnsQuestion {
                    domain: found.domain().try_into().unwrap_or_default(),
                    name_len: u16::try_from(found.name().len()).unwrap_or(u16::MAX),
                    entropy: found.entropy,
                    tcp: found.over_tcp,
                });
            (Class::Dns, EventKind::Dns { addr, bytes: sent.len, question })
        }
        KIND_PRIVILEGE => {
            let call = call(&header, whole::<Act>(&header, record)?.call)?;
            (Class::Privilege, EventKind::Privilege { call })
        }
        KIND_KERNEL_LOAD => {
            let call = call(&header, whole::<Act>(&header, record)?.call)?;
            (Class::KernelLoad, EventKind::KernelLoad { call })
        }
        other => return Err(DecodeError::Kind(other)),
    };
    let (comm, boot_ns) = (comm_text(&header.comm), header.boot_ns);
    let event = Event { boot_ns, tgid: header.tgid, tid: header.tid, uid: header.uid, comm, kind };
    Ok(Record { event, class, unplaced })
}

/// A window entry as the pipeline knows it.
#[must_use]
pub fn window(window: &Window) -> SyscallWindow {
    let (grams, learned) = order(window);
    let (mut calls, mut bigrams, mut unmapped) =
        (window.calls.to_vec(), window.bigrams.to_vec(), window.unmapped);
    for (gram, _, count) in usual(window) {
        match gram::latest(gram) {
            Some(slot) => {
                calls[usize::from(slot)] = calls[usize::from(slot)].saturating_add(count);
                if let Some(previous) = gram::before_latest(gram) {
                    let pairs = &mut bigrams[bigram::bucket(previous, slot)];
                    *pairs = pairs.saturating_add(count);
                }
            }
            None => unmapped = unmapped.saturating_add(count),
        }
    }
    SyscallWindow {
        tgid: window.key.tgid,
        epoch: window.key.epoch,
        first_ns: window.first_ns,
        last_ns: window.last_ns,
        calls,
        unmapped,
        bigrams,
        active: window.active,
        active_before: 0,
        bytes_sent: window.bytes_sent,
        bytes_recv: window.bytes_recv,
        uring: window.uring,
        uring_ops: window.uring_ops,
        capabilities: window.capabilities,
        volume: match window.volume {
            [VOLUME_UNKNOWN, _] | [_, VOLUME_UNKNOWN] => None,
            [read, written] => Some(Volume { read, written }),
        },
        grams,
        learned,
    }
}

/// The grams that a window counted itself, each with what the table holds for it and how often it came.
fn usual(window: &Window) -> impl Iterator<Item = (u64, u8, u32)> {
    let counted = window.usual.iter().zip(window.usual_counts).filter(|(_, count)| *count > 0);
    counted.filter_map(|(kept, count)| gram::of_usual(*kept).map(|(gram, steps)| (gram, steps, count)))
}

/// What the window says of the order of calls: its sums by its table, and what it counted itself of the grams that are learned.
fn order(window: &Window) -> (Option<GramWindow>, Vec<(u64, u32)>) {
    let mut sums =
        Sums { calls: window.grams.into(), misses: window.misses.into(), surprisal: window.surprisal };
    let (Follow { table, learner }, mut learned) = (window.usual_of, Vec::new());
    for (gram, steps, count) in usual(window) {
        // What was counted by another table than the last does not belong to its sums.
        if table == window.table {
            sums.add(Some(steps), count.into());
        }
        if learner != 0 {
            learned.push((gram, count));
        }
    }
    let kinds = Sums {
        calls: window.kinds.into(),
        misses: window.kinds_missed.into(),
        surprisal: window.kinds_surprisal,
    };
    let grams = (window.table != 0 && sums.calls > 0).then(|| GramWindow {
        table: window.table,
        sums,
        kinds,
        strange: window.strange.iter().take(window.misses as usize).copied().collect(),
    });
    (grams, summed(learned))
}

fn whole<T: FromBytes>(header: &Header, record: &[u8]) -> Result<T, DecodeError> {
    T::read_from_bytes(record).map_err(|_| DecodeError::Length { kind: header.kind, len: record.len() })
}

fn call(header: &Header, call: u32) -> Result<u16, DecodeError> {
    u16::try_from(call).map_err(|_| DecodeError::Call { kind: header.kind, call })
}

fn escape(header: &Header, record: &Escape) -> Result<EventKind, DecodeError> {
    let number = call(header, record.call)?;
    let path = path_text(&record.path);
    Ok(match models::event::call_name(number) {
        "setns" | "unshare" | "clone" | "clone3" => {
            EventKind::Namespace { call: number, flags: record.flags }
        }
        "pivot_root" | "chroot" => EventKind::ChangeRoot { call: number, path },
        "open" | "creat" | "openat" | "openat2" => EventKind::ReleaseAgent { path },
        "mount" | "open_tree" | "move_mount" | "fsopen" | "fsmount" => {
            EventKind::Mount { call: number, source: path_text(&record.source), target: path }
        }
        _ => return Err(DecodeError::Call { kind: header.kind, call: record.call }),
    })
}

fn tampering(header: &Header, record: &Tamper) -> Result<Tampering, DecodeError> {
    Ok(match models::event::call_name(call(header, record.call)?) {
        "unlink" | "unlinkat" => Tampering::Removed,
        "truncate" | "ftruncate" | "fallocate" | "open" | "creat" | "openat" | "openat2" => {
            Tampering::Emptied
        }
        "rename" | "renameat" | "renameat2" if record.flags & REPLACED != 0 => Tampering::Replaced,
        "rename" | "renameat" | "renameat2" => Tampering::Renamed,
        "utime" | "utimes" | "futimesat" | "utimensat" => Tampering::Redated,
        _ => return Err(DecodeError::Call { kind: header.kind, call: record.call }),
    })
}

/// `/proc/<pid>/fd/<n>`, `/proc/<pid>/exe` and `/dev/fd/<n>`: what a program without a file is started by.
fn is_descriptor(path: &str) -> bool {
    path.starts_with("/dev/fd/")
        || path
            .strip_prefix("/proc/")
            .and_then(|rest| rest.split_once('/'))
            .is_some_and(|(_, rest)| rest.starts_with("fd/") || rest == "exe")
}

fn address(family: u32, port: u32, addr: &[u8; 16]) -> Result<IpAddr, DecodeError> {
    let [a, b, c, d, ..] = *addr;
    match i32::try_from(family) {
        Ok(libc::AF_INET) => Ok(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
        Ok(libc::AF_INET6) => Ok(IpAddr::V6(Ipv6Addr::from(*addr))),
        _ => Err(DecodeError::Address { family, port }),
    }
}

fn path_text(bytes: &[u8]) -> PathText {
    clipped(&lossy(bytes))
}

fn comm_text(bytes: &[u8]) -> Comm {
    clipped(&lossy(bytes))
}

fn lossy(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
}

#[cfg(test)]
mod tests {
    use agent_ebpf::records::WindowKey;
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
            Exec {
                header: header(KIND_EXEC),
                unlinked: 1,
                arguments_len: 0,
                groups: [[0; 96]; 2],
                filename: path,
                arguments: [0; 256],
            }
            .as_bytes()
            .to_vec(),
            Fork { header: header(KIND_FORK), child: 11, _pad: 0 }.as_bytes().to_vec(),
            header(KIND_EXIT).as_bytes().to_vec(),
            Open { header: header(KIND_OPEN), dfd: -100, flags: 1, sensitive: 1, _pad: 0, path }
                .as_bytes()
                .to_vec(),
            connect(2, [127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).as_bytes().to_vec(),
            connect(10, [1; 16]).as_bytes().to_vec(),
            Flush { header: header(KIND_FLUSH), window: Window { key, ..Window::EMPTY } }.as_bytes().to_vec(),
            Inject { header: header(KIND_INJECT), call: 310, victim: 12, request: 0 }.as_bytes().to_vec(),
            Escape { header: header(KIND_ESCAPE), call: 429, fd: -1, flags: 0, path, source: [0; 256] }
                .as_bytes()
                .to_vec(),
            Tamper { header: header(KIND_TAMPER), call: 263, dfd: 3, flags: 0, place: 1, path }
                .as_bytes()
                .to_vec(),
            Dns {
                header: header(KIND_DNS),
                family: 2,
                len: 400,
                taken: 288,
                _pad: 0,
                addr: [9; 16],
                message: [0; 288],
            }
            .as_bytes()
            .to_vec(),
            Act { header: header(KIND_PRIVILEGE), call: 105, argument: 0 }.as_bytes().to_vec(),
            Act { header: header(KIND_KERNEL_LOAD), call: 321, argument: 5 }.as_bytes().to_vec(),
        ]
    }

    #[test]
    fn what_a_window_counted_itself_is_part_of_its_sums_and_of_what_is_learned() {
        let counted = |table, learner| {
            let mut window =
                Window { table, learner, usual_of: Follow { table: 3, learner: 4 }, ..Window::EMPTY };
            (window.grams, window.misses, window.surprisal) = (10, 1, 300);
            (window.kinds, window.kinds_missed, window.kinds_surprisal) = (4, 1, 280);
            (window.usual[7], window.usual_counts[7]) = (gram::usual(50, 20), 5);
            (window.usual[9], window.usual_counts[9]) = (gram::usual(40, 255), 2);
            // Kept, and not met since; and the same gram twice, by two threads at once.
            window.usual[1] = gram::usual(60, 1);
            (window.usual[6], window.usual_counts[6]) = (gram::usual(50, 20), 1);
            order(&window)
        };
        let (grams, learned) = counted(3, 4);
        let grams = grams.unwrap();
        assert_eq!(grams.sums, Sums { calls: 18, misses: 1, surprisal: 300 + 6 * 20 + 2 * 255 });
        assert_eq!(grams.kinds, Sums { calls: 4, misses: 1, surprisal: 280 }, "each was looked up once");
        assert_eq!(learned, [(40, 2), (50, 6)]);
        let (grams, learned) = counted(8, 4);
        assert_eq!(grams.unwrap().sums, Sums { calls: 10, misses: 1, surprisal: 300 }, "another table's");
        assert_eq!(learned.len(), 2);
        assert!(counted(0, 4).0.is_none());
        let mut window = Window { table: 3, usual_of: Follow { table: 3, learner: 0 }, ..Window::EMPTY };
        window.surprisal = u64::MAX;
        (window.usual[0], window.usual_counts[0]) = (gram::usual(1, 255), u32::MAX);
        assert_eq!(order(&window).0.unwrap().sums.surprisal, u64::MAX, "whatever a record says");
    }

    #[test]
    fn a_gram_that_a_window_counted_itself_is_a_call_and_a_pair() {
        let mut window = Window::EMPTY;
        let of = |calls: &[u16]| calls.iter().fold(gram::EMPTY, |gram, slot| gram::roll(gram, *slot));
        for (at, (calls, count)) in
            [(&[3, 1, 4][..], 5), (&[4][..], 1), (&[4, u16::MAX][..], 7), (&[u16::MAX, 4][..], 2)]
                .into_iter()
                .enumerate()
        {
            (window.usual[at], window.usual_counts[at]) = (gram::usual(of(calls), 0), count);
        }
        (window.calls[4], window.unmapped, window.bigrams[bigram::bucket(1, 4)]) = (10, 20, 30);
        let window = super::window(&window);
        assert_eq!((window.calls[4], window.unmapped, window.total()), (18, 27, 45));
        assert_eq!((window.bigrams[bigram::bucket(1, 4)], window.bigrams.iter().sum()), (35, 35));
    }

    #[test]
    fn every_kind_decodes() {
        let events: Vec<_> = samples().iter().map(|s| decode(s).unwrap()).collect();
        assert!(events.iter().all(|e| (e.boot_ns, e.tgid, e.tid, e.uid) == (5, 7, 8, 9)));
        assert_eq!(events[0].comm, "cat\u{fffd}");
        assert!(
            matches!(&events[0].kind, EventKind::Exec { path, fileless: true, .. } if path == "/etc/shadow")
        );
        assert_eq!(events[1].kind, EventKind::Fork { child: 11 });
        assert_eq!(events[2].kind, EventKind::Exit);
        assert!(matches!(&events[3].kind, EventKind::Open { sensitive: true, flags: 1, .. }));
        assert_eq!(events[4].kind, EventKind::Connect { addr: Ipv4Addr::LOCALHOST.into(), port: 443 });
        assert!(matches!(&events[6].kind, EventKind::Flush(w) if w.tgid == 7 && w.epoch == 3));
        assert_eq!(events[7].kind, EventKind::Inject { call: 310, victim: 12 });
        assert!(
            matches!(&events[8].kind, EventKind::Mount { call: 429, target, .. } if target == "/etc/shadow")
        );
        assert!(matches!(&events[9].kind, EventKind::Tamper { how: Tampering::Removed, .. }));
        assert!(matches!(&events[10].kind, EventKind::Dns { bytes: 400, question: None, .. }));
        assert_eq!(events[11].kind, EventKind::Privilege { call: 105 });
        assert_eq!(events[12].kind, EventKind::KernelLoad { call: 321 });
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
    fn without_a_look_at_the_file_its_path_decides() {
        for (path, fileless) in
            [("/proc/self/fd/3", true), ("/dev/fd/9", true), ("/proc/7/exe", true), ("/usr/bin/fd", false)]
        {
            let mut filename = [0; 256];
            filename[..path.len()].copy_from_slice(path.as_bytes());
            let mut arguments = [b'x'; 256];
            arguments[..5].copy_from_slice(b"cat\0-");
            let header = header(KIND_EXEC);
            let mut groups = [[0; 96]; 2];
            groups[1][..4].copy_from_slice(b"gw\0x");
            let record = Exec { header, unlinked: 2, arguments_len: 5, groups, filename, arguments };
            let (path, arguments) = (path.try_into().unwrap(), "cat\0-".try_into().unwrap());
            let expected = EventKind::Exec { path, arguments, fileless, group: "/gw".try_into().unwrap() };
            assert_eq!(decode(record.as_bytes()).unwrap().kind, expected);
        }
    }

    #[test]
    fn a_record_about_a_call_of_another_layer_is_an_error() {
        let odd = Tamper { header: header(KIND_TAMPER), call: 1, dfd: 0, flags: 0, place: 1, path: [0; 256] };
        assert_eq!(decode(odd.as_bytes()), Err(DecodeError::Call { kind: KIND_TAMPER, call: 1 }));
    }

    #[test]
    fn unknown_kinds_and_families_are_errors() {
        assert_eq!(decode(header(99).as_bytes()), Err(DecodeError::Kind(99)));
        let odd = Connect { header: header(KIND_CONNECT), family: 1, port: 70_000, addr: [0; 16] };
        assert_eq!(decode(odd.as_bytes()), Err(DecodeError::Address { family: 1, port: 70_000 }));
    }
}
