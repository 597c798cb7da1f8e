//! A small service as a gateway has many: reads a sensor, writes its state, reports to a local port, and sleeps.
//!
//! `benign-gateway FOLDER [TICK_MS]`. `attack <port>` on its standard input makes it do what an intruder would, without harm. It ends with its input.
#![forbid(unsafe_code)]

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;
use std::{fs, io, thread};

fn main() -> io::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let folder = Path::new(&folder);
    let tick = std::env::args().nth(2).and_then(|ms| ms.parse().ok()).unwrap_or(100);
    let collector = collector()?;
    let (tell, told) = channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    serve(folder, collector, Duration::from_millis(tick), &told)
}

fn serve(folder: &Path, collector: SocketAddr, tick: Duration, told: &Receiver<String>) -> io::Result<()> {
    // A fixed start gives every run the same work; the steps make windows differ as those of real services do.
    let mut state: u64 = 0x5eed;
    loop {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        work(folder, collector, (state >> 33) as u32)?;
        match told.recv_timeout(tick) {
            Ok(line) => {
                if let Some(port) = line.strip_prefix("attack ").and_then(|port| port.parse().ok()) {
                    attack(port);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn work(folder: &Path, collector: SocketAddr, random: u32) -> io::Result<()> {
    let readings = 1 + random % 6;
    let mut sum = 0;
    for _ in 0..readings {
        sum += fs::read("/proc/loadavg")?.len();
    }
    if random.is_multiple_of(3) {
        let next = folder.join("state.new");
        fs::write(&next, format!("{sum}\n"))?;
        fs::rename(&next, folder.join("state"))?;
    }
    if random.is_multiple_of(4) {
        let mut stream = TcpStream::connect(collector)?;
        writeln!(stream, "load {sum}")?;
    }
    if random.is_multiple_of(11) {
        // Not every machine has one.
        let _ = fs::read("/etc/hosts");
    }
    Ok(())
}

/// Listens as a collector on the same gateway would.
fn collector() -> io::Result<SocketAddr> {
    // A fixed port below the ephemeral range, as services have; another one when it is taken.
    let free = (28_080..28_180).find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
    let listener = free.ok_or_else(|| io::Error::other("no port from 28080 to 28179 is free"))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = stream.take(1024).read_to_end(&mut Vec::new());
        }
    });
    Ok(address)
}

/// Each part may fail, as an intruder's attempts do: trying is what counts.
fn attack(port: u16) {
    if let Err(error) = fs::read("/etc/shadow") {
        println!("reading /etc/shadow: {error}");
    }
    if let Err(error) = Command::new("/bin/sh").args(["-c", "exit 0"]).stdin(Stdio::null()).status() {
        println!("starting a shell: {error}");
    }
    if let Err(error) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
        println!("connecting to port {port}: {error}");
    }
}
