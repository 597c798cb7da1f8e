//! Mimicry: calls in no order that the program does not make itself (Wagner and Soto, CCS 2002).

use std::fs::File;
use std::io::Read as _;

use super::Evasion;
use crate::simulate::family::{PYTHON, SHADOW, started, success_of_root, word};
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::table::{Act, Log, Sign, Threat, Variant};

/// Ordinary calls before and after the act.
const ROUNDS: usize = 2000;

pub(crate) const EVASION: Evasion = Evasion {
    threat: Threat { name: "mimicry", techniques: &["T1003", "T1496"], variants: VARIANTS },
    seen: "what the act is about: a file, an address, a program or a right that is new to this program, however common the order of its calls",
    unseen: "an act that needs nothing new (the same files, peers and kinds of calls, used for something else) and is not unusual by its numbers",
};

const VARIANTS: &[Variant] = &[
    Variant {
        name: "padded-open",
        techniques: &["T1003.008"],
        summary: "opens /etc/shadow among thousands of ordinary opens and reads",
        layer: "file",
        needs: &[],
        log: Log::No,
        prepare: |stage| {
            let act = stage.own([SHADOW])?.sign(Sign::sensitive(SHADOW));
            Ok(act.proof(success_of_root(stage)))
        },
        act: Some(padded),
    },
    Variant {
        name: "nothing-new",
        techniques: &["T1496"],
        summary: "python computes hashes with what it loads anyway, and tells nobody",
        layer: "process_exec",
        needs: &[PYTHON],
        log: Log::No,
        prepare: |_| {
            let script = "import hashlib,socket,time\nuntil=time.monotonic()+1\nfound=b''\nwhile time.monotonic()<until: found=hashlib.sha256(found).digest()\ntime.sleep(0.6)";
            Ok(Act::tool("python3", ["-c", script])?.sign(started("python3")?))
        },
        act: None,
    },
];

fn padded(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let path = sandbox.readable(word(words, 0)?)?;
    let ordinary = || -> std::io::Result<()> {
        for _ in 0..ROUNDS {
            let mut file = File::open("/dev/null")?;
            file.metadata()?;
            file.read_to_end(&mut Vec::new())?;
        }
        Ok(())
    };
    step("doing ordinary things", ordinary())?;
    step("opening", File::open(path)).map(drop)?;
    step("doing ordinary things", ordinary())
}
