//! What a 32-bit program does on a 64-bit kernel: other numbers, other registers, narrower words in memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use models::event::{EventKind, SyscallWindow, Tampering};
use models::syscalls;

use crate::acts::hooks;
use crate::{events, load_only, turn};

/// Assembled from the text beside it.
#[cfg(target_arch = "x86_64")]
const PROGRAM: &[u8] = include_bytes!("narrow/i386.elf");
#[cfg(target_arch = "aarch64")]
const PROGRAM: &[u8] = include_bytes!("narrow/arm.elf");

/// Runs it once; `None` where the kernel or the processor takes no 32-bit programs.
fn run(program: &PathBuf) -> Option<u32> {
    let mut child = match Command::new(program).stdout(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => return None,
        Err(error) => panic!("{error}"),
    };
    let pid = child.id();
    assert!(child.wait().expect("it ends").success());
    Some(pid)
}

#[test]
fn calls_of_a_32_bit_program_are_seen_under_their_own_names() {
    let _turn = turn();
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("narrow");
    fs::write(&program, PROGRAM).expect("writable");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("ours");
    if run(&program).is_none() {
        eprintln!("skipped: this kernel runs no 32-bit programs (CONFIG_IA32_EMULATION, CONFIG_COMPAT)");
        return;
    }
    // Classic tracepoints do not see such calls.
    for off in &hooks()[..2] {
        let off: Vec<&str> = off.iter().map(String::as_str).collect();
        let mut probe = load_only(&["file", "network", "anti_forensic", "dns"], &off);
        let pid = run(&program).expect("as before");
        let mut windows = probe.drain().expect("drained");
        let mut told = Vec::new();
        for event in events(&mut probe).into_iter().filter(|event| event.tgid == pid) {
            match event.kind {
                EventKind::Flush(window) => windows.push(*window),
                kind => told.push(kind),
            }
        }
        let opened = |wanted: &str| {
            told.iter()
                .any(|kind| matches!(kind, EventKind::Open { path, sensitive: true, .. } if path == wanted))
        };
        assert!(opened("/etc/shadow") && opened("/etc/gshadow"), "{off:?}: {told:?}");
        let removed = told.iter().any(|kind| {
            matches!(kind, EventKind::Tamper { how: Tampering::Removed, path } if path == "/var/log/behaveguard-narrow")
        });
        assert!(removed, "{off:?}: {told:?}");
        let ports: Vec<u16> = told
            .iter()
            .filter_map(|kind| match kind {
                EventKind::Connect { addr, port } if addr.is_loopback() => Some(*port),
                EventKind::Connect { addr, port } => panic!("nobody asked for {addr}:{port}"),
                _ => None,
            })
            .collect();
        assert_eq!(ports, [53, 5353], "connected, and a datagram; {off:?}");
        let asked: Vec<(u32, &str)> = told
            .iter()
            .filter_map(|kind| match kind {
                EventKind::Dns { bytes, question: Some(question), .. } => {
                    Some((*bytes, question.domain.as_str()))
                }
                EventKind::Dns { .. } => panic!("not understood: {kind:?}"),
                _ => None,
            })
            .collect();
        assert_eq!(asked, [(31, "first.example"), (32, "second.example")], "{off:?}: {told:?}");
        counted(&windows, pid);
    }
}

/// Each call as often as the program makes it.
fn counted(windows: &[SyscallWindow], pid: u32) {
    let mut sum = SyscallWindow::empty(pid, 0);
    windows.iter().filter(|window| window.tgid == pid).for_each(|window| sum.merge(window));
    let calls: BTreeMap<&str, u32> = sum
        .calls
        .iter()
        .enumerate()
        .filter(|(_, calls)| **calls > 0)
        .map(|(slot, calls)| (syscalls::name(slot), *calls))
        .collect();
    let wanted = [
        ("open", 1),
        ("openat", 1),
        ("unlink", 1),
        ("socket", 2),
        ("connect", 1),
        ("sendto", 1),
        ("sendmsg", 1),
        ("sendmmsg", 1),
        if cfg!(target_arch = "x86_64") { ("pipe", 1) } else { ("setreuid", 1) },
        ("exit", 1),
    ];
    for (name, times) in wanted {
        assert_eq!(calls.get(name), Some(&times), "{name}: {calls:?}");
    }
    // Number 5, which is `open` here, is `fstat` among the 64-bit calls of x86, and `setxattr` among those of ARM.
    assert!(!calls.contains_key("fstat") && !calls.contains_key("setxattr"), "{calls:?}");
    assert_eq!(sum.unmapped, 0, "{calls:?}");
}
