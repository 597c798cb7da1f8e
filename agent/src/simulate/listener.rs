//! The other end: what attackers would have on the internet, here on loopback and inside the simulator.

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// What a shell is told; the quotes keep the command itself from looking like the answer.
const COMMANDS: &[u8] = b"echo behaveguard-\"simulation\"\nexit\n";
const ANSWER: &[u8] = b"behaveguard-simulation";

/// How the listener talks.
#[derive(Clone, Copy, Debug)]
pub enum Talk {
    /// It takes what comes.
    Listen,
    /// It says this first.
    Say(&'static [u8]),
    /// It tells a shell to answer and to leave.
    Command,
    /// It answers any request with two bytes, after what is uploaded.
    Http,
}

/// What came in.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Connections, or datagrams.
    pub connected: AtomicU64,
    /// Bytes.
    pub received: AtomicU64,
    /// A shell answered.
    pub answered: AtomicBool,
}

/// Listens for connections until this process ends.
pub(super) fn tcp(address: SocketAddr, talk: Talk, seen: &Arc<Seen>) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let (bound, seen) = (listener.local_addr()?, Arc::clone(seen));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let seen = Arc::clone(&seen);
            thread::spawn(move || {
                let _ = serve(stream, talk, &seen);
                seen.connected.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    Ok(bound)
}

fn serve(mut stream: TcpStream, talk: Talk, seen: &Seen) -> std::io::Result<()> {
    match talk {
        Talk::Say(words) => stream.write_all(words)?,
        Talk::Command => stream.write_all(COMMANDS)?,
        Talk::Listen | Talk::Http => {}
    }
    let mut tail = Vec::new();
    let mut buffer = [0; 16 * 1024];
    let (mut came, mut whole) = (0, None);
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        seen.received.fetch_add(n as u64, Ordering::SeqCst);
        came += n;
        match talk {
            // A client that was greeted has nothing more to wait for.
            Talk::Say(_) => return Ok(()),
            Talk::Http => {
                if whole.is_none() {
                    tail.extend(&buffer[..n]);
                    let Some(end) = tail.windows(4).position(|part| part == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&tail[..end]).to_ascii_lowercase();
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
                    whole = Some(length.and_then(|n| n.trim().parse::<usize>().ok()).unwrap_or(0) + end + 4);
                    if head.contains("100-continue") {
                        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                    }
                }
                if whole.is_some_and(|whole| came >= whole) {
                    return stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n#\n");
                }
            }
            Talk::Listen | Talk::Command => {
                tail.extend(&buffer[..n]);
                if tail.windows(ANSWER.len()).any(|part| part == ANSWER) {
                    seen.answered.store(true, Ordering::SeqCst);
                }
                let keep = tail.len().min(ANSWER.len());
                tail.drain(..tail.len() - keep);
            }
        }
    }
}

/// Takes datagrams until this process ends.
pub(super) fn udp(address: SocketAddr, seen: &Arc<Seen>) -> std::io::Result<SocketAddr> {
    let socket = UdpSocket::bind(address)?;
    let (bound, seen) = (socket.local_addr()?, Arc::clone(seen));
    thread::spawn(move || {
        let mut buffer = [0; 64 * 1024];
        while let Ok((n, _)) = socket.recv_from(&mut buffer) {
            seen.connected.fetch_add(1, Ordering::SeqCst);
            seen.received.fetch_add(n as u64, Ordering::SeqCst);
        }
    });
    Ok(bound)
}
