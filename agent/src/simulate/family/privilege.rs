//! Privilege escalation: a user without rights asks for root, or makes what would give it.

use super::{PYTHON, word};
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::sys::{self, Become};
use crate::simulate::table::{Act, Log, Need, Proof, Sign, Threat, Variant, tool};

/// `CLONE_NEWUSER`.
const NEW_USER: u64 = 0x1000_0000;

pub(crate) const THREAT: Threat =
    Threat { name: "privilege-escalation", techniques: &["T1068", "T1548"], variants: VARIANTS };

macro_rules! ask {
    ($name:literal, $call:literal) => {
        Variant {
            name: $name,
            techniques: &["T1068"],
            summary: concat!("a user without rights calls ", $call, "(0)"),
            layer: "privilege",
            needs: &[],
            log: Log::No,
            prepare: |stage| Ok(stage.own([$call])?.unprivileged().sign(Sign::Privilege { call: $call })),
            act: Some(ask),
        }
    };
}

const VARIANTS: &[Variant] = &[
    ask!("setuid", "setuid"),
    ask!("setreuid", "setreuid"),
    ask!("setresuid", "setresuid"),
    ask!("setfsuid", "setfsuid"),
    Variant {
        name: "python-setuid",
        techniques: &["T1068"],
        summary: "the same from python",
        layer: "privilege",
        needs: &[PYTHON],
        log: Log::No,
        prepare: |_| {
            let script =
                "import os\ntry: os.setuid(0)\nexcept PermissionError: pass\nelse: raise SystemExit(1)";
            let act = Act::tool("python3", ["-c", script])?.unprivileged();
            Ok(act.sign(Sign::Privilege { call: "setuid" }))
        },
        act: None,
    },
    Variant {
        name: "user-namespace",
        techniques: &["T1068"],
        summary: "a user without rights becomes root of a user namespace, where most kernel exploits begin",
        layer: "container_escape",
        needs: &[Need::Tool("unshare", "util-linux"), Need::UserNamespaces],
        log: Log::No,
        prepare: |_| {
            let act = Act::tool("unshare", ["--user", "--map-root-user", "true"])?.unprivileged();
            Ok(act.sign(Sign::Namespace { flags: NEW_USER }).proof(Proof::Success))
        },
        act: None,
    },
    Variant {
        name: "chmod-setuid",
        techniques: &["T1548.001"],
        summary: "chmod 4755 on a copy of true, where set-user-id has no effect",
        layer: "privilege",
        needs: &[Need::Tool("chmod", "coreutils")],
        log: Log::No,
        prepare: |stage| {
            let program = tool("true").ok_or_else(|| Problem::Needs("true".into()))?;
            let copy = stage.copy(program, "helper")?;
            let act = Act::tool("chmod", ["4755", &copy.display().to_string()])?;
            Ok(act.sign(Sign::Privilege { call: "fchmodat" }))
        },
        act: None,
    },
];

/// Success is when the kernel refuses.
fn ask(_: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let how = match word(words, 0)? {
        "setuid" => Become::Setuid,
        "setreuid" => Become::Setreuid,
        "setresuid" => Become::Setresuid,
        "setfsuid" => Become::Setfsuid,
        other => return Err(Problem::Refused(other.to_owned())),
    };
    match sys::ask_for_root(how) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        Ok(()) if matches!(how, Become::Setfsuid) => Ok(()),
        Ok(()) => Err(Problem::Unproven("the kernel let it become root".into())),
        error => step("asking", error),
    }
}
