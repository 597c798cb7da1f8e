//! Process injection: into a child that only sleeps, the bytes that are there already.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use super::{PYTHON, SH, word};
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::sys;
use crate::simulate::table::{Act, Log, Need, Sign, Threat, Variant};

const ATTACH: u32 = 16;
const DETACH: u32 = 17;
const POKE: u32 = 5;
const SEIZE: u32 = 0x4206;

pub(crate) const THREAT: Threat =
    Threat { name: "process-injection", techniques: &["T1055"], variants: VARIANTS };

macro_rules! own {
    ($name:literal, $technique:literal, $summary:literal, $call:literal, $act:expr) => {
        Variant {
            name: $name,
            techniques: &[$technique],
            summary: $summary,
            layer: "injection",
            needs: &[],
            log: Log::No,
            prepare: |stage| {
                let victim = stage.victim()?;
                Ok(stage.own([victim])?.sign(Sign::Inject { victim, call: $call }))
            },
            act: Some($act),
        }
    };
}

macro_rules! by_tool {
    ($name:literal, $summary:literal, $needs:expr, $tool:literal, |$victim:ident| $arguments:expr) => {
        Variant {
            name: $name,
            techniques: &["T1055.009"],
            summary: $summary,
            layer: "injection",
            needs: $needs,
            log: Log::No,
            prepare: |stage| {
                let $victim = stage.victim()?;
                Ok(Act::tool($tool, $arguments)?.sign(Sign::Inject { victim: $victim, call: "openat" }))
            },
            act: None,
        }
    };
}

const DD: Need = Need::Tool("dd", "coreutils");

const VARIANTS: &[Variant] = &[
    own!("ptrace-attach", "T1055.008", "attaches to a child and lets it go", "ptrace", attach),
    own!("ptrace-seize", "T1055.008", "seizes a child", "ptrace", |sandbox, words| {
        step("seizing", sys::ptrace(SEIZE, victim(sandbox, words)?, 0, 0))
    }),
    own!("ptrace-poke", "T1055.008", "attaches, and writes a word over itself", "ptrace", poke),
    own!(
        "memory-file",
        "T1055.009",
        "writes a byte over itself by /proc/PID/mem",
        "openat",
        |sandbox, words| {
            let victim = victim(sandbox, words)?;
            rewrite(&format!("/proc/{victim}/mem"), victim)
        }
    ),
    own!(
        "thread-memory-file",
        "T1055.009",
        "the same by /proc/PID/task/TID/mem",
        "openat",
        |sandbox, words| {
            let victim = victim(sandbox, words)?;
            rewrite(&format!("/proc/{victim}/task/{victim}/mem"), victim)
        }
    ),
    own!(
        "process-vm-writev",
        "T1055",
        "the same by process_vm_writev",
        "process_vm_writev",
        |sandbox, words| {
            let victim = victim(sandbox, words)?;
            let (at, word) = writable(victim)?;
            step("writing", sys::process_vm_writev(victim, at, &word[..1]))
        }
    ),
    by_tool!(
        "python-memory-file",
        "python opens /proc/PID/mem for writing",
        &[PYTHON],
        "python3",
        |victim| ["-c".to_owned(), format!("open('/proc/{victim}/mem', 'r+b', buffering=0).close()")]
    ),
    by_tool!("dd-memory-file", "dd of=/proc/PID/mem without a block", &[DD], "dd", |victim| {
        [format!("of=/proc/{victim}/mem"), "if=/dev/null".into(), "count=0".into(), "conv=notrunc".into()]
    }),
    by_tool!("relative-memory-file", "dd of=mem, from within /proc/PID", &[SH, DD], "sh", |victim| {
        ["-c".to_owned(), format!("cd /proc/{victim} && dd of=mem if=/dev/null count=0 conv=notrunc")]
    }),
];

/// The process named by the first argument, when it may be taken hold of.
pub(super) fn victim(sandbox: &Sandbox, words: &[String]) -> Result<u32, Problem> {
    let text = word(words, 0)?;
    sandbox.victim(text.parse().map_err(|_| Problem::Refused(text.to_owned()))?)
}

fn attach(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let victim = victim(sandbox, words)?;
    step("attaching", sys::ptrace(ATTACH, victim, 0, 0))?;
    step("waiting", sys::wait_stopped(victim))?;
    step("detaching", sys::ptrace(DETACH, victim, 0, 0))
}

fn poke(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let victim = victim(sandbox, words)?;
    step("attaching", sys::ptrace(ATTACH, victim, 0, 0))?;
    step("waiting", sys::wait_stopped(victim))?;
    let (at, word) = writable(victim)?;
    step("writing", sys::ptrace(POKE, victim, at, u64::from_ne_bytes(word)))?;
    step("detaching", sys::ptrace(DETACH, victim, 0, 0))
}

/// A place in the victim's writable memory, and what is there.
fn writable(victim: u32) -> Result<(usize, [u8; 8]), Problem> {
    let maps = step("reading its map", fs::read_to_string(format!("/proc/{victim}/maps")))?;
    let line = maps.lines().find(|line| line.contains(" rw-p "));
    let start = line.and_then(|line| usize::from_str_radix(line.split('-').next()?, 16).ok());
    let at = start.ok_or_else(|| Problem::Unproven("the victim has no writable memory".into()))?;
    let memory = step("opening its memory", File::open(format!("/proc/{victim}/mem")))?;
    let mut word = [0; 8];
    step("reading its memory", memory.read_exact_at(&mut word, at as u64))?;
    Ok((at, word))
}

fn rewrite(path: &str, victim: u32) -> Result<(), Problem> {
    let (at, word) = writable(victim)?;
    let memory = step("opening its memory", File::options().read(true).write(true).open(path))?;
    step("writing", memory.write_all_at(&word[..1], at as u64))
}
