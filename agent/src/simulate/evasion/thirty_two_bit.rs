//! Calls by the 32-bit interface of x86-64, whose numbers and registers are others.

use super::Evasion;
use crate::simulate::family::{SHADOW, success_of_root, word};
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::sys;
use crate::simulate::table::{Log, Need, Sign, Threat, Variant};

pub(crate) const EVASION: Evasion = Evasion {
    threat: Threat { name: "thirty-two-bit-calls", techniques: &["T1106", "T1003"], variants: VARIANTS },
    seen: "an odd mixture and order of calls: each is counted under the 64-bit call of its number",
    unseen: "what it opens or connects to in that way",
};

const VARIANTS: &[Variant] = &[Variant {
    name: "open-shadow",
    techniques: &["T1106", "T1003.008"],
    summary: "opens /etc/shadow by int 0x80",
    layer: "syscall",
    needs: &[Need::ThirtyTwoBitCalls],
    log: Log::No,
    prepare: |stage| {
        // Number 5 is `open` there, and `fstat` among the 64-bit calls.
        let act = stage.own([SHADOW])?.sign(Sign::Calls { call: "fstat" });
        Ok(act.hides(Sign::sensitive(SHADOW)).proof(success_of_root(stage)))
    },
    act: Some(open),
}];

fn open(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    step("opening", sys::open_by_32_bit_call(&sandbox.readable(word(words, 0)?)?)).map(drop)
}
