//! Programs without a file: run from memory, or from a file that was removed before.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::{PERL, PYTHON, word};
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::sys;
use crate::simulate::table::{Act, Log, Need, Sign, Threat, Variant, tool};

pub(crate) const THREAT: Threat =
    Threat { name: "fileless-execution", techniques: &["T1620"], variants: VARIANTS };

const SEEN: Sign = Sign::Exec { path: None, fileless: true };

macro_rules! fileless {
    ($name:literal, $summary:literal, $needs:expr, $act:expr, $prepare:expr) => {
        Variant {
            name: $name,
            techniques: &["T1620"],
            summary: $summary,
            layer: "process_exec",
            needs: $needs,
            log: Log::No,
            prepare: $prepare,
            act: $act,
        }
    };
}

const PYTHON_SCRIPT: &str = "\
import os
f=os.memfd_create('payload',0)
os.write(f,open('/bin/true','rb').read())
os.execv('/proc/self/fd/%d'%f,['payload'])";

/// `memfd_create` by its number, which differs between architectures.
const PERL_SCRIPT: &str = "\
my $name='payload';my $nr=$ARGV[0];my $fd=syscall($nr,$name,0);open(my $m,'>&=',$fd) or exit 1;binmode $m;
open(my $t,'<','/bin/true') or exit 1;binmode $t;local $/;print $m scalar <$t>;$m->flush;
exec {\"/proc/self/fd/$fd\"} 'payload'";

const VARIANTS: &[Variant] = &[
    fileless!("memfd-exec", "memfd_create, and execve of /proc/self/fd", &[], Some(memfd), |stage| {
        Ok(stage.own(["path"])?.sign(SEEN))
    }),
    fileless!("memfd-execveat", "memfd_create, and execveat without a path", &[], Some(memfd), |stage| {
        Ok(stage.own(["descriptor"])?.sign(SEEN))
    }),
    fileless!("deleted-file", "a program removed before it is run", &[], Some(deleted), |stage| {
        let program = tool("true").ok_or_else(|| Problem::Needs("true".into()))?;
        let copy = stage.copy(program, "payload")?;
        Ok(stage.own([copy.display()])?.unprivileged().sign(SEEN))
    }),
    fileless!("python-memfd", "the same from python", &[PYTHON], None, |_| {
        Ok(Act::tool("python3", ["-c", PYTHON_SCRIPT])?.sign(SEEN))
    }),
    fileless!("perl-memfd", "the same from perl", &[PERL, Need::Tool("true", "coreutils")], None, |_| {
        let number = libc::SYS_memfd_create.to_string();
        Ok(Act::tool("perl", ["-MIO::Handle", "-e", PERL_SCRIPT, &number])?.sign(SEEN))
    }),
];

fn memfd(_: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let program = tool("true").ok_or_else(|| Problem::Needs("true".into()))?;
    let mut file = step("making a file in memory", sys::memfd(c"payload"))?;
    step("writing it", file.write_all(&step("reading true", fs::read(program))?))?;
    if word(words, 0)? == "descriptor" {
        return step("running it", Err(sys::execveat(&file)));
    }
    run(&file)
}

fn deleted(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let path = sandbox.path(word(words, 0)?)?;
    let file = step("opening it", File::open(&path))?;
    step("removing it", fs::remove_file(&path))?;
    run(&file)
}

fn run(file: &File) -> Result<(), Problem> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    step("running it", Err(Command::new(path).exec()))
}
