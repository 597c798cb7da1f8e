//! Credential dumping: hashed passwords, and the memory of processes that know some.

use std::fs::File;
use std::time::Duration;

use super::{PERL, PYTHON, SH, SHADOW, success_of_root, word};
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::stage::Stage;
use crate::simulate::sys;
use crate::simulate::table::{Act, Log, Need, Sign, Threat, Variant};

/// Longer than the agent lets ordinary records wait.
const HOLD: Duration = Duration::from_millis(500);

pub(crate) const THREAT: Threat =
    Threat { name: "credential-dumping", techniques: &["T1003"], variants: VARIANTS };

/// A tool that opens the file with the hashes and keeps nothing.
macro_rules! reader {
    ($name:literal, $summary:literal, $needs:expr, $tool:literal, $arguments:expr) => {
        Variant {
            name: $name,
            techniques: &["T1003.008"],
            summary: $summary,
            layer: "file",
            needs: $needs,
            log: Log::No,
            prepare: |stage| {
                let act = Act::tool($tool, $arguments)?.sign(Sign::sensitive(SHADOW));
                Ok(act.proof(success_of_root(stage)))
            },
            act: None,
        }
    };
}

/// A copy of this binary that opens a file, given as words.
macro_rules! opener {
    ($name:literal, $technique:literal, $summary:literal, $prepare:expr, $act:expr) => {
        Variant {
            name: $name,
            techniques: &[$technique],
            summary: $summary,
            layer: "file",
            needs: &[],
            log: Log::No,
            prepare: $prepare,
            act: Some($act),
        }
    };
}

const VARIANTS: &[Variant] = &[
    reader!("cat-shadow", "cat /etc/shadow to nowhere", &[], "cat", [SHADOW]),
    reader!("cp-shadow", "cp /etc/shadow /dev/null", &[], "cp", [SHADOW, "/dev/null"]),
    reader!(
        "dd-shadow",
        "dd opens /etc/shadow and copies no block",
        &[],
        "dd",
        ["if=/etc/shadow", "of=/dev/null", "count=0"]
    ),
    reader!(
        "python-shadow",
        "python opens /etc/shadow",
        &[PYTHON],
        "python3",
        ["-c", "open('/etc/shadow', 'rb').close()"]
    ),
    reader!(
        "perl-shadow",
        "perl opens /etc/shadow",
        &[PERL],
        "perl",
        ["-e", "open(my $f, '<', '/etc/shadow') or exit 1"]
    ),
    reader!("relative-shadow", "cat shadow, from within /etc", &[SH], "sh", ["-c", "cd /etc && cat shadow"]),
    opener!("open-shadow", "T1003.008", "a program of its own opens /etc/shadow", shadow, open),
    Variant {
        name: "open-shadow-32-bit",
        techniques: &["T1003.008", "T1106"],
        summary: "the same by int 0x80, a 32-bit call",
        layer: "file",
        needs: &[Need::ThirtyTwoBitCalls],
        log: Log::No,
        prepare: shadow,
        act: Some(open_by_32_bit_call),
    },
    opener!("openat2-shadow", "T1003.008", "the same by openat2", shadow, open_by_openat2),
    opener!(
        "symlink-shadow",
        "T1003.008",
        "a link in a temporary folder leads to /etc/shadow",
        |stage| {
            let link = stage.sandbox.path("notes")?;
            step("linking", std::os::unix::fs::symlink(SHADOW, &link))?;
            let act = stage.own([link.display()])?.proof(success_of_root(stage));
            Ok(act.sign(Sign::sensitive(SHADOW)))
        },
        open_and_stay
    ),
    opener!(
        "process-memory",
        "T1003.007",
        "opens the memory of a child for reading",
        |stage| process(stage, "mem", true),
        open_of_victim
    ),
    opener!(
        "process-environment",
        "T1003.007",
        "opens the environment of a child",
        |stage| process(stage, "environ", false),
        open_of_victim
    ),
    Variant {
        name: "grep-memory",
        techniques: &["T1003.007"],
        summary: "dd opens the memory of a child and copies no block",
        layer: "file",
        needs: &[Need::Tool("dd", "coreutils")],
        log: Log::No,
        prepare: |stage| {
            let path = format!("/proc/{}/mem", stage.victim()?);
            let act = Act::tool("dd", [format!("if={path}"), "of=/dev/null".into(), "count=0".into()])?;
            Ok(act.sign(Sign::sensitive(path)))
        },
        act: None,
    },
];

fn shadow(stage: &mut Stage) -> Result<Act, Problem> {
    Ok(stage.own([SHADOW])?.sign(Sign::sensitive(SHADOW)).proof(success_of_root(stage)))
}

fn open(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let path = sandbox.readable(word(words, 0)?)?;
    step("opening", File::open(path)).map(drop)
}

/// What a link means in this process's mount namespace can be asked only while it is there.
fn open_and_stay(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    open(sandbox, words)?;
    std::thread::sleep(HOLD);
    Ok(())
}

fn open_by_openat2(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let path = sandbox.readable(word(words, 0)?)?;
    step("opening", sys::openat2(&path)).map(drop)
}

fn open_by_32_bit_call(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    step("opening", sys::open_by_32_bit_call(&sandbox.readable(word(words, 0)?)?)).map(drop)
}

fn process(stage: &mut Stage, file: &str, sensitive: bool) -> Result<Act, Problem> {
    let victim = stage.victim()?;
    let path = format!("/proc/{victim}/{file}");
    Ok(stage.own([victim.to_string(), file.to_owned()])?.sign(Sign::Open { path, sensitive }))
}

fn open_of_victim(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let victim = super::injection::victim(sandbox, words)?;
    let file = word(words, 1)?;
    if !["mem", "environ"].contains(&file) {
        return Err(Problem::Refused(file.to_owned()));
    }
    step("opening", File::open(format!("/proc/{victim}/{file}"))).map(drop)
}
