//! Low and slow: so little at a time that no window is unusual by its numbers.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use super::Evasion;
use crate::simulate::family::{SHADOW, address, success_of_root, word};
use crate::simulate::listener::Talk;
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::table::{Log, Proof, Sign, Threat, Variant};

const PAUSE: Duration = Duration::from_millis(300);
const DRIPS: usize = 6;
const DRIP: &[u8; 16] = b"sixteen bytes of";

pub(crate) const EVASION: Evasion = Evasion {
    threat: Threat { name: "low-and-slow", techniques: &["T1029", "T1003"], variants: VARIANTS },
    seen: "the first time of each thing, whatever its number or rate: the peer, the file, the program",
    unseen: "how much it comes to, over peers and files that the program uses anyway",
};

const VARIANTS: &[Variant] = &[
    Variant {
        name: "drip",
        techniques: &["T1029"],
        summary: "sends sixteen bytes at a time to somebody new",
        layer: "network",
        needs: &[],
        log: Log::No,
        prepare: |stage| {
            let to = stage.listen(stage.port(41_337), Talk::Listen)?;
            let bytes = (DRIPS * DRIP.len()) as u64;
            let act = stage.own([to])?.sign(Sign::Connect { address: to }).sign(Sign::Sent { bytes });
            Ok(act.proof(Proof::Received(bytes)))
        },
        act: Some(drip),
    },
    Variant {
        name: "one-at-a-time",
        techniques: &["T1003.008"],
        summary: "opens /etc/shadow, waits, then /etc/gshadow",
        layer: "file",
        needs: &[],
        log: Log::No,
        prepare: |stage| {
            let other = "/etc/gshadow";
            let act = stage.own([SHADOW, other])?.sign(Sign::sensitive(SHADOW)).sign(Sign::sensitive(other));
            Ok(act.proof(success_of_root(stage)))
        },
        act: Some(one_at_a_time),
    },
];

fn drip(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let mut stream = step("connecting", TcpStream::connect(address(sandbox, words, 0)?))?;
    for _ in 0..DRIPS {
        step("sending", stream.write_all(DRIP))?;
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn one_at_a_time(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let open = |at| step("opening", File::open(sandbox.readable(word(words, at)?)?)).map(drop);
    // Who may not open the first may still try the second.
    let first = open(0);
    thread::sleep(PAUSE * 3);
    first.and(open(1))
}
