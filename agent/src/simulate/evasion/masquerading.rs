//! Masquerading: the act of one program under the name of another.

use std::fs::File;

use super::Evasion;
use crate::simulate::family::{BASH, SH, SHADOW, path_of, success_of_root, word};
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::sys;
use crate::simulate::table::{Act, Need, Sign, Threat, Variant};

pub(crate) const EVASION: Evasion = Evasion {
    threat: Threat { name: "masquerading", techniques: &["T1036"], variants: VARIANTS },
    seen: "the executable behind the name: a program is its unit and the path of its file, and another path is a program that nobody knows. Putting a file in another's place by a mount is itself an act",
    unseen: "that a learned file was overwritten with another, until it does what the learned one never did",
};

const VARIANTS: &[Variant] = &[
    Variant::new(
        "thread-name",
        &["T1036.004"],
        "calls itself kworker/0:1, as a kernel thread is named",
        "file",
        &[],
        Some(renamed),
        |stage| {
            let act = stage.own([SHADOW])?.sign(Sign::sensitive(SHADOW));
            Ok(act.proof(success_of_root(stage)))
        },
    ),
    Variant::new(
        "program-name",
        &["T1036.005"],
        "a file named sshd, in a temporary folder",
        "file",
        &[],
        Some(open),
        |stage| {
            let act = stage.own_as("sshd", [SHADOW])?.sign(Sign::sensitive(SHADOW));
            Ok(act.proof(success_of_root(stage)))
        },
    ),
    Variant::new(
        "first-argument",
        &["T1036.011"],
        "cat that says it is /usr/sbin/sshd",
        "file",
        &[BASH],
        None,
        |stage| {
            let cat = path_of("cat")?;
            let act =
                Act::tool("bash", ["-c", &format!("exec -a /usr/sbin/sshd {cat} {SHADOW} > /dev/null")])?;
            Ok(act.sign(Sign::exec(cat)).sign(Sign::sensitive(SHADOW)).proof(success_of_root(stage)))
        },
    ),
    Variant::new(
        "mounted-over",
        &["T1036.005"],
        "cat mounted over sleep, in a mount namespace of its own",
        "file",
        &[Need::Root, SH, Need::Tool("mount", "mount")],
        None,
        |_| {
            let (cat, sleep) = (path_of("cat")?, path_of("sleep")?);
            let act =
                Act::script(format!("mount --bind {cat} {sleep} && exec {sleep} {SHADOW} > /dev/null"))?;
            let signs = [Sign::Mount { path: sleep.clone() }, Sign::exec(sleep), Sign::sensitive(SHADOW)];
            Ok(act.signs(signs))
        },
    ),
];

fn renamed(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    step("taking a name", sys::set_thread_name(c"kworker/0:1"))?;
    open(sandbox, words)
}

fn open(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    step("opening", File::open(sandbox.readable(word(words, 0)?)?)).map(drop)
}
