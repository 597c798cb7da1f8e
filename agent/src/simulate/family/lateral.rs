//! Lateral movement: the ways to log in to a neighbour, tried on several addresses of loopback.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::{BASH, NC, PYTHON, address};
use crate::simulate::listener::Talk;
use crate::simulate::sandbox::{Problem, Sandbox};
use crate::simulate::stage::Stage;
use crate::simulate::table::{Act, Log, Need, Proof, Sign, Threat, Variant};

/// SSH, SMB, remote desktop, WinRM.
const PORTS: [u16; 4] = [22, 445, 3389, 5985];

pub(crate) const THREAT: Threat =
    Threat { name: "lateral-movement", techniques: &["T1021"], variants: VARIANTS };

macro_rules! lateral {
    ($name:literal, $techniques:expr, $summary:literal, $needs:expr, $act:expr, $prepare:expr) => {
        Variant {
            name: $name,
            techniques: $techniques,
            summary: $summary,
            layer: "network",
            needs: $needs,
            log: Log::No,
            prepare: $prepare,
            act: $act,
        }
    };
}

const VARIANTS: &[Variant] = &[
    lateral!(
        "ssh-client",
        &["T1021.004"],
        "ssh to a neighbour",
        &[Need::Root, Need::Tool("ssh", "openssh-client")],
        None,
        |stage| {
            let to = stage.listen_at(neighbour(2).into(), 22, Talk::Say(b"SSH-2.0-simulation\r\n"))?;
            // Nobody's keys are looked at.
            let options = [
                "IdentityFile=none",
                "GlobalKnownHostsFile=/dev/null",
                "BatchMode=yes",
                "StrictHostKeyChecking=no",
                "UserKnownHostsFile=/dev/null",
                "ConnectTimeout=2",
            ];
            let mut words: Vec<&str> = options.iter().flat_map(|option| ["-o", option]).collect();
            words.extend(["-F", "/dev/null", "nobody@127.0.0.2", "true"]);
            Ok(Act::tool("ssh", words)?.sign(Sign::Connect { address: to }).proof(Proof::Connected(1)))
        }
    ),
    lateral!(
        "admin-ports",
        &["T1021.001", "T1021.002", "T1021.004", "T1021.006"],
        "SSH, SMB, remote desktop and WinRM of four neighbours",
        &[Need::Root],
        Some(knock),
        |stage| {
            let all = (2..6).flat_map(|host| PORTS.map(|port| (host, port)));
            let targets = open_doors(stage, all)?;
            let n = targets.len() as u64;
            Ok(stage.own(&targets)?.signs(connections(&targets)).proof(Proof::Connected(n)))
        }
    ),
    lateral!(
        "sweep",
        &["T1021.002", "T1046"],
        "port 445 of thirty neighbours, of which one answers",
        &[Need::Root],
        Some(knock),
        |stage| {
            open_doors(stage, [(9, 445)])?;
            let targets: Vec<SocketAddr> = (2..32).map(|host| (neighbour(host), 445).into()).collect();
            Ok(stage.own(&targets)?.signs(connections(&targets)).proof(Proof::Connected(1)))
        }
    ),
    lateral!(
        "nc-scan",
        &["T1021.004", "T1046"],
        "nc -z on ports 22, 445 and 3389",
        &[Need::Root, NC],
        None,
        |stage| {
            let targets = open_doors(stage, [(2, 22), (2, 445), (2, 3389)])?;
            let act = Act::tool("nc", ["-z", "-w", "1", "127.0.0.2", "22", "445", "3389"])?;
            Ok(act.signs(connections(&targets)).proof(Proof::Connected(3)))
        }
    ),
    lateral!(
        "bash-sweep",
        &["T1021.004", "T1046"],
        "bash opens /dev/tcp of four neighbours",
        &[Need::Root, BASH],
        None,
        |stage| {
            let targets = open_doors(stage, (2..6).map(|host| (host, 22)))?;
            let script = "for n in 2 3 4 5; do (: > /dev/tcp/127.0.0.$n/22); done";
            Ok(Act::tool("bash", ["-c", script])?.signs(connections(&targets)).proof(Proof::Connected(4)))
        }
    ),
    lateral!(
        "python-winrm",
        &["T1021.006"],
        "python tries WinRM on eight neighbours",
        &[Need::Root, PYTHON],
        None,
        |stage| {
            let targets = open_doors(stage, (2..10).map(|host| (host, 5985)))?;
            let script = "import socket\nfor n in range(2,10): socket.create_connection(('127.0.0.%d'%n,5985)).close()";
            Ok(Act::tool("python3", ["-c", script])?.signs(connections(&targets)).proof(Proof::Connected(8)))
        }
    ),
];

fn neighbour(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, host)
}

fn open_doors(
    stage: &mut Stage,
    doors: impl IntoIterator<Item = (u8, u16)>,
) -> Result<Vec<SocketAddr>, Problem> {
    doors
        .into_iter()
        .map(|(host, port)| stage.listen_at(neighbour(host).into(), port, Talk::Listen))
        .collect()
}

fn connections(targets: &[SocketAddr]) -> Vec<Sign> {
    targets.iter().map(|&address| Sign::Connect { address }).collect()
}

fn knock(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    for at in 0..words.len() {
        // Most of a sweep's doors are shut.
        drop(TcpStream::connect_timeout(&address(sandbox, words, at)?, Duration::from_millis(200)));
    }
    Ok(())
}
