//! Flooding: so much of what is harmless that the act might be lost in it.

use std::fs::File;
use std::sync::Arc;
use std::sync::Barrier;
use std::thread;

use super::Evasion;
use crate::simulate::family::{SH, SHADOW, success_of_root, word};
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::table::{Act, Sign, Threat, Variant};

const FILES: usize = 50_000;
const THREADS: usize = 200;
const TECHNIQUES: &[&str] = &["T1562.006", "T1003.008"];

pub(crate) const EVASION: Evasion = Evasion {
    threat: Threat { name: "flooding", techniques: &["T1562", "T1003"], variants: VARIANTS },
    seen: "the act: urgent records have a ring of their own, and each process a share of both; what is dropped or held back is counted and told with the window",
    unseen: "which ordinary files the flood opened, beyond its share",
};

const VARIANTS: &[Variant] = &[
    Variant::new(
        "many-files",
        TECHNIQUES,
        "opens /etc/shadow after 50,000 files that are not there",
        "file",
        &[],
        Some(many_files),
        |stage| {
            let act = stage.own([SHADOW])?.sign(Sign::sensitive(SHADOW));
            Ok(act.proof(success_of_root(stage)))
        },
    ),
    Variant::new(
        "many-processes",
        TECHNIQUES,
        "cat /etc/shadow after 300 processes that leave at once",
        "file",
        &[SH],
        None,
        |stage| {
            let script = format!(
                "n=0; while [ $n -lt 300 ]; do /bin/true; n=$((n+1)); done; cat {SHADOW} > /dev/null"
            );
            Ok(Act::script(script)?.sign(Sign::sensitive(SHADOW)).proof(success_of_root(stage)))
        },
    ),
    Variant::new(
        "many-threads",
        TECHNIQUES,
        "the last of 200 threads opens /etc/shadow",
        "file",
        &[],
        Some(many_threads),
        |stage| {
            let act = stage.own([SHADOW])?.sign(Sign::sensitive(SHADOW));
            Ok(act.proof(success_of_root(stage)))
        },
    ),
];

fn many_files(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let path = sandbox.readable(word(words, 0)?)?;
    let folder = sandbox.path("nowhere")?;
    for n in 0..FILES {
        if File::open(folder.join(n.to_string())).is_ok() {
            return Err(Problem::Unproven("a file is there that nobody made".into()));
        }
    }
    step("opening", File::open(path)).map(drop)
}

fn many_threads(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let path = sandbox.readable(word(words, 0)?)?;
    let together = Arc::new(Barrier::new(THREADS + 1));
    let wait = || {
        let together = Arc::clone(&together);
        thread::Builder::new().stack_size(64 * 1024).spawn(move || together.wait())
    };
    let threads = step("starting threads", (0..THREADS).map(|_| wait()).collect::<Result<Vec<_>, _>>())?;
    let opener = thread::spawn(move || File::open(path).map(drop));
    let opened = opener.join();
    together.wait();
    for thread in threads {
        let _ = thread.join();
    }
    step("opening", opened.unwrap_or_else(|_| Err(std::io::Error::other("the thread ended early"))))
}
