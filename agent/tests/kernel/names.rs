//! The same acts by another name or another way: links, mounts, relative paths, datagrams, `write`.

use std::ffi::CString;
use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use agent::probe::Probe;
use models::event::{Event, EventKind, Tampering};

use crate::acts::{Sleeper, balanced, hooks, query};
use crate::{events, load_only, load_with, turn};

#[test]
fn a_log_on_a_file_system_mounted_below_a_watched_directory_is_watched() {
    let _turn = turn();
    let folder = tempfile::tempdir().expect("a folder");
    let mounted = folder.path().join("mounted");
    fs::create_dir(&mounted).expect("writable");
    let target = CString::new(mounted.as_os_str().as_encoded_bytes()).expect("no NUL");
    // SAFETY: all are C strings that outlive the call; the file system is empty and goes below.
    let done =
        unsafe { libc::mount(c"test".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    let watched = folder.path().to_string_lossy().into_owned();
    let mut probe = load_with(|options| options.watched = vec![watched]);
    let log = mounted.join("log");
    fs::write(&log, "evidence\n").expect("writable");
    let file = fs::File::options().write(true).open(&log).expect("it is there");
    file.set_len(0).expect("writable");
    let mut truncate = Command::new("truncate").args(["-s", "0"]).arg(&log).spawn().expect("it starts");
    assert!(truncate.wait().expect("it ends").success());
    let events = events(&mut probe);
    drop(file);
    // SAFETY: a C string that outlives the call.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    let seen = events.iter().any(|event| {
        event.tgid == std::process::id()
            && matches!(&event.kind, EventKind::Tamper { how: Tampering::Emptied, path } if Path::new(path.as_str()) == log)
    });
    assert!(seen, "{events:?}");
    // The tool's descriptor is gone with it, so nobody could be asked: the kernel side was sure of it.
    let seen = events.iter().any(|event| {
        event.tgid == truncate.id() && matches!(event.kind, EventKind::Tamper { how: Tampering::Emptied, .. })
    });
    assert!(seen, "{events:?}");
}

#[test]
fn a_sensitive_file_is_seen_by_every_other_name() {
    let _turn = turn();
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join("notes");
    std::os::unix::fs::symlink("/etc/shadow", &link).expect("writable");
    let sleeper = Sleeper::start();
    let victim = sleeper.0.id();
    let mut probe = load_only(&["file", "file_write", "injection"], &[]);
    let link = link.display();
    // What it says tells that all is done, and it stays until it is answered.
    let script = format!(
        "cat {link} /etc/../etc//shadow > /dev/null; cd /proc/{victim} && : 3<>mem; echo; read answer"
    );
    let mut shell = Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    shell.stdout.take().expect("piped").read_exact(&mut [0]).expect("it says that it is done");
    let events = events(&mut probe);
    let unchecked = probe.counters().expect("read").unchecked;
    drop(shell.stdin.take());
    shell.wait().expect("it ends");
    let sensitive = |wanted: &str| {
        let open =
            |e: &&Event| matches!(&e.kind, EventKind::Open { path, sensitive: true, .. } if path == wanted);
        // Others on the machine may read it too.
        events.iter().filter(|e| ["cat", "sh"].contains(&e.comm.as_str())).filter(open).count()
    };
    assert_eq!(sensitive("/etc/shadow"), 2, "{unchecked} unchecked: {events:?}");
    assert_eq!(sensitive(&format!("/proc/{victim}/mem")), 1, "{events:?}");
    let held = |e: &Event| {
        e.tgid == shell.id() && matches!(e.kind, EventKind::Inject { victim: v, .. } if v == victim)
    };
    assert!(events.iter().any(held));
}

#[test]
fn datagrams_with_an_address_are_connections_once_per_window() {
    let _turn = turn();
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    let to = server.local_addr().expect("bound");
    for off in hooks() {
        let off: Vec<&str> = off.iter().map(String::as_str).collect();
        let mut probe = load_only(&["network", "dns"], &off);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
        let send = || (0..20).for_each(|_| assert_eq!(socket.send_to(b"loot", to).expect("sent"), 4));
        let told = |probe: &mut Probe| {
            send();
            let mine = |e: &&Event| {
                e.tgid == std::process::id()
                    && matches!(e.kind, EventKind::Connect { port, .. } if port == to.port())
            };
            events(probe).iter().filter(mine).count()
        };
        assert_eq!((told(&mut probe), told(&mut probe)), (1, 0), "{off:?}");
        probe.drain().expect("drained");
        assert_eq!(told(&mut probe), 1, "{off:?}");
        balanced(&mut probe);
    }
}

#[test]
fn what_write_sends_to_port_53_is_counted_where_the_kernel_tells_of_bytes() {
    let _turn = turn();
    let Ok(_server) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)) else {
        return println!("port 53 is taken: not checked");
    };
    for off in [vec![], vec!["network_bytes:tp_btf/sock_send_length"]] {
        let mut probe = load_with(|o| o.forced_off = off.iter().map(|s| (*s).to_owned()).collect());
        let bytes = probe.layers().iter().find(|layer| layer.layer == "network_bytes").expect("listed");
        if !bytes.backend.ends_with("sock_send_length") {
            return println!("not on this kernel: {}", bytes.backend);
        }
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
        socket.connect((Ipv4Addr::LOCALHOST, 53)).expect("connected");
        let message = [7_u8; 150];
        // SAFETY: the buffer is as long as the call is told.
        let sent = unsafe { libc::write(socket.as_raw_fd(), message.as_ptr().cast(), message.len()) };
        assert_eq!(sent, 150);
        socket.send(&query("once.example")).expect("sent");
        let events = events(&mut probe);
        let mine: Vec<_> = events
            .iter()
            .filter(|e| e.tgid == std::process::id())
            .filter_map(|e| match &e.kind {
                EventKind::Dns { bytes, question, .. } => Some((*bytes, question.is_some())),
                _ => None,
            })
            .collect();
        assert_eq!(mine.len(), 2, "each message once: {mine:?}");
        assert_eq!(mine[0], (150, false));
        assert!(mine[1].1, "{mine:?}");
    }
}
