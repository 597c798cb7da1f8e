//! Cryptomining: a pool is logged in to, and a processor is kept busy for half a second.

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::{NC, PYTHON, SH, address};
use crate::clock;
use crate::simulate::listener::Talk;
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::table::{Act, Log, Proof, Sign, Threat, Variant};

const LOGIN: &str = r#"{"id":1,"method":"mining.subscribe","params":["simulation"]}"#;
const JOB: &[u8] = b"{\"id\":1,\"result\":[],\"error\":null}\n";
const BUSY_NS: u64 = 500_000_000;

pub(crate) const THREAT: Threat = Threat { name: "cryptomining", techniques: &["T1496"], variants: VARIANTS };

macro_rules! mine {
    ($name:literal, $techniques:expr, $port:literal, $summary:literal, $needs:expr, $act:expr, |$stage:ident, $to:ident| $run:expr) => {
        Variant {
            name: $name,
            techniques: $techniques,
            summary: $summary,
            layer: "network",
            needs: $needs,
            log: Log::No,
            prepare: |$stage| {
                let $to = $stage.listen($stage.port($port), Talk::Say(JOB))?;
                let act: Act = $run;
                let act = act.sign(Sign::Connect { address: $to });
                Ok(act.proof(Proof::Connected(1)))
            },
            act: $act,
        }
    };
}

const VARIANTS: &[Variant] = &[
    mine!(
        "static-stratum",
        &["T1496"],
        3333,
        "a program of its own logs in to port 3333 and computes",
        &[],
        Some(mine),
        |stage, to| { stage.own([to])? }
    ),
    mine!(
        "xmrig",
        &["T1496"],
        14_444,
        "the same under the name of a known miner",
        &[],
        Some(mine),
        |stage, to| {
            let act = stage.own_as("xmrig", [to])?;
            let path = act.program.display().to_string();
            act.sign(Sign::exec(path))
        }
    ),
    mine!(
        "tor-proxy",
        &["T1496", "T1090.003"],
        9050,
        "the same by way of a Tor proxy's port",
        &[],
        Some(mine),
        |stage, to| { stage.own([to])? }
    ),
    mine!(
        "python-stratum",
        &["T1496"],
        3333,
        "python logs in and computes",
        &[PYTHON],
        None,
        |_stage, to| {
            let script = format!(
                "import hashlib,socket,time\ns=socket.create_connection(('{}',{}))\ns.sendall(b'{LOGIN}\\n')\ns.recv(99)\n\
             end=time.time()+0.5\nh=b''\nwhile time.time()<end: h=hashlib.sha256(h).digest()",
                to.ip(),
                to.port()
            );
            Act::tool("python3", ["-c", &script])?
        }
    ),
    mine!("nc-stratum", &["T1496"], 3333, "nc logs in", &[SH, NC], None, |_stage, to| {
        Act::script(format!("echo '{LOGIN}' | nc -N {} {}", to.ip(), to.port()))?
    }),
];

fn mine(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let mut pool = step("connecting", TcpStream::connect(address(sandbox, words, 0)?))?;
    step("logging in", pool.write_all(format!("{LOGIN}\n").as_bytes()))?;
    step("waiting for work", pool.read(&mut [0; 128]))?;
    let (end, mut sum) = (clock::boot_ns() + BUSY_NS, 0_u64);
    while clock::boot_ns() < end {
        for n in 0..10_000 {
            sum = black_box(sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n));
        }
    }
    Ok(())
}
