//! Anti-forensics: a log is removed, emptied, renamed or redated, by its path and by descriptors.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use super::{COREUTILS, SH, word};
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::stage::Stage;
use crate::simulate::sys;
use crate::simulate::table::{Act, Log, Need, Proof, Sign, Threat, Variant};

/// So long a descriptor stays open: the agent looks up its name afterwards.
const HOLD: Duration = Duration::from_millis(300);
const REMOVED: &str = "removed";
const EMPTIED: &str = "emptied";
const RENAMED: &str = "renamed";
const REPLACED: &str = "replaced";
const REDATED: &str = "redated";

pub(crate) const THREAT: Threat =
    Threat { name: "anti-forensics", techniques: &["T1070"], variants: VARIANTS };

/// A tool wipes the log: `$log` is where it lies, `$how` what must be seen.
macro_rules! tool {
    ($name:literal, $technique:literal, $log:ident, $summary:literal, $how:expr, $proof:expr, |$stage:ident, $path:ident| $act:expr) => {
        Variant {
            name: $name,
            techniques: &[$technique],
            summary: $summary,
            layer: "anti_forensic",
            needs: &[Need::Root, SH, COREUTILS],
            log: Log::$log,
            prepare: |$stage| {
                let $path = $stage.sandbox.log().display().to_string();
                let act: Act = $act;
                Ok(act.sign(Sign::Tamper { how: $how, path: $path.clone() }).proof(($proof)($path.into())))
            },
            act: None,
        }
    };
}

/// A copy of this binary wipes the log.
macro_rules! own {
    ($name:literal, $technique:literal, $log:ident, $summary:literal, $how:expr, $proof:expr, $act:expr) => {
        Variant {
            name: $name,
            techniques: &[$technique],
            summary: $summary,
            layer: "anti_forensic",
            needs: &[Need::Root],
            log: Log::$log,
            prepare: |stage| {
                let path = stage.sandbox.log();
                let act = stage.own([path.display()])?;
                Ok(act
                    .sign(Sign::Tamper { how: $how, path: path.display().to_string() })
                    .proof(($proof)(path)))
            },
            act: Some($act),
        }
    };
}

fn success(_: PathBuf) -> Proof {
    Proof::Success
}

const VARIANTS: &[Variant] = &[
    tool!("rm", "T1070.004", Private, "rm", REMOVED, Proof::Gone, |_stage, path| Act::tool(
        "rm",
        ["-f", &path]
    )?),
    tool!("redirect", "T1070.002", Private, ": > log", EMPTIED, Proof::Empty, |_stage, path| {
        Act::script(format!(": > {path}"))?
    }),
    tool!("truncate", "T1070.002", Real, "truncate -s 0", EMPTIED, Proof::Empty, |_stage, path| {
        Act::tool("truncate", ["-s", "0", &path])?
    }),
    tool!("shred", "T1070.004", Private, "shred -u", RENAMED, Proof::Gone, |_stage, path| {
        Act::tool("shred", ["-u", "-n", "1", &path])?
    }),
    tool!("mv", "T1070.002", Private, "mv to another name", RENAMED, Proof::Gone, |_stage, path| {
        Act::tool("mv", [&path, &format!("{path}.1")])?
    }),
    tool!("touch", "T1070.006", Real, "touch --date", REDATED, success, |_stage, path| {
        Act::tool("touch", ["--date=2001-01-01", &path])?
    }),
    tool!(
        "dotdot-path",
        "T1070.004",
        Private,
        "rm /var/tmp/../log/...",
        REMOVED,
        Proof::Gone,
        |_stage, path| { Act::tool("rm", ["-f", &path.replace("/var/log", "/var/tmp/../log")])? }
    ),
    tool!(
        "symlink-path",
        "T1070.002",
        Private,
        ": > a link in a temporary folder",
        EMPTIED,
        Proof::Empty,
        |stage, path| {
            let link = stage.sandbox.path("notes")?;
            step("linking", std::os::unix::fs::symlink(&path, &link))?;
            // The link means something in this shell's mount namespace only, so it stays to be asked.
            Act::script(format!(": > {}; sleep 0.5", link.display()))?
        }
    ),
    own!("ftruncate", "T1070.002", Real, "ftruncate", EMPTIED, Proof::Empty, |sandbox, words| {
        empty(sandbox.path(word(words, 0)?)?)
    }),
    own!(
        "ftruncate-on-mount",
        "T1070.002",
        Private,
        "ftruncate, on a file system mounted below the log folder",
        EMPTIED,
        Proof::Empty,
        |sandbox, words| { empty(sandbox.path(word(words, 0)?)?) }
    ),
    own!(
        "unlinkat",
        "T1070.004",
        Real,
        "unlinkat by the folder's descriptor",
        REMOVED,
        Proof::Gone,
        |sandbox, words| {
            let path = sandbox.path(word(words, 0)?)?;
            let folder = step("opening the folder", File::open("/var/log"))?;
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let name = std::ffi::CString::new(name).map_err(|_| Problem::Refused(name.to_owned()))?;
            step("removing", sys::unlinkat(&folder, &name))?;
            std::thread::sleep(HOLD);
            Ok(())
        }
    ),
    own!("utimensat", "T1070.006", Private, "utimensat", REDATED, success, |sandbox, words| {
        step("redating", sys::redate(&sandbox.path(word(words, 0)?)?))
    }),
    own!(
        "punch-hole",
        "T1070.002",
        Real,
        "fallocate makes a hole of it",
        EMPTIED,
        success,
        |sandbox, words| {
            let path = sandbox.path(word(words, 0)?)?;
            let file = step("opening", File::options().write(true).open(path))?;
            step("making a hole", sys::punch_hole(&file, 4096))?;
            std::thread::sleep(HOLD);
            Ok(())
        }
    ),
    own!(
        "replace",
        "T1070.002",
        Private,
        "an empty file renamed over it",
        REPLACED,
        Proof::Empty,
        |sandbox, words| {
            let path = sandbox.path(word(words, 0)?)?;
            let empty = sandbox.path(sandbox.beside_log().join("empty"))?;
            step("making a file", File::create(&empty))?;
            step("renaming", fs::rename(empty, path))
        }
    ),
    Variant {
        name: "overwrite",
        techniques: &["T1070.002"],
        summary: "dd writes zeros over it",
        layer: "file",
        needs: &[Need::Root, COREUTILS],
        log: Log::Private,
        prepare: |stage: &mut Stage| {
            let path = stage.sandbox.log().display().to_string();
            let act =
                Act::tool("dd", ["if=/dev/zero", &format!("of={path}"), "bs=25", "count=1", "conv=notrunc"])?;
            Ok(act.sign(Sign::Open { path, sensitive: false }))
        },
        act: None,
    },
];

fn empty(path: PathBuf) -> Result<(), Problem> {
    let file = step("opening", File::options().write(true).open(path))?;
    step("emptying", file.set_len(0))?;
    std::thread::sleep(HOLD);
    Ok(())
}

/// The path of the log, checked; for acts in other files.
pub(super) fn log(sandbox: &Sandbox, words: &[String]) -> Result<PathBuf, Problem> {
    sandbox.path(word(words, 0)?)
}
