//! Namespaces: another process number, another root, another name for a file.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use super::Evasion;
use crate::simulate::family::{SH, SHADOW, word};
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::sys;
use crate::simulate::table::{Act, Need, Proof, Sign, Threat, Variant};

/// Longer than the agent lets ordinary records wait: what a name means to this process can be asked only while it is there.
const HOLD: Duration = Duration::from_millis(500);
const NEW_PIDS: u64 = 0x2000_0000;
const NEW_USERS: u64 = 0x1000_0000;
const UNSHARE: Need = Need::Tool("unshare", "util-linux");

pub(crate) const EVASION: Evasion = Evasion {
    threat: Threat { name: "namespaces", techniques: &["T1611", "T1564"], variants: VARIANTS },
    seen: "making or entering a namespace, and the process under its number outside; a sensitive file under any name that a mount or a link gives it, for a process that is there for a quarter of a second",
    unseen: "which file that was, when the process has left before the agent looked",
};

const VARIANTS: &[Variant] = &[
    Variant::new(
        "process-number",
        &["T1564"],
        "opens /etc/shadow as process 1 of a namespace",
        "container_escape",
        &[Need::Root, UNSHARE],
        None,
        |_| {
            let act = Act::tool("unshare", ["--fork", "--pid", "cat", SHADOW])?;
            Ok(act.sign(Sign::Namespace { flags: NEW_PIDS }).sign(Sign::sensitive(SHADOW)))
        },
    ),
    Variant::new(
        "own-user",
        &["T1611"],
        "tries the same as root of a user namespace, without being root",
        "container_escape",
        &[Need::UserNamespaces, UNSHARE],
        None,
        |_| {
            let act = Act::tool("unshare", ["--user", "--map-root-user", "cat", SHADOW])?;
            let act = act.sign(Sign::Namespace { flags: NEW_USERS }).sign(Sign::sensitive(SHADOW));
            Ok(act.unprivileged().proof(Proof::Ended))
        },
    ),
    Variant::new(
        "other-name",
        &["T1564"],
        "binds /etc/shadow to a file named notes and reads that",
        "container_escape",
        &[Need::Root, SH, Need::Tool("mount", "mount")],
        None,
        |stage| {
            let notes = stage.file("notes", b"")?;
            let script = format!("mount --bind {SHADOW} {notes} && {{ read -r line; sleep 0.5; }} < {notes}");
            Ok(Act::script(script)?.sign(Sign::Mount { path: notes }).sign(Sign::sensitive(SHADOW)))
        },
    ),
    Variant::new(
        "other-root",
        &["T1564"],
        "reads /srv/shadow, below a root of its own where /srv is /etc",
        "container_escape",
        &[Need::Root],
        Some(below_other_root),
        |stage| {
            let root = stage.sandbox.path("root")?;
            step("making folders", fs::create_dir_all(root.join("srv")))?;
            let path = root.display().to_string();
            let act = stage.own([path.clone()])?.sign(Sign::ChangeRoot { call: "chroot", path });
            Ok(act.sign(Sign::sensitive(SHADOW)))
        },
    ),
];

fn below_other_root(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let root = sandbox.path(word(words, 0)?)?;
    step("leaving the mount namespace", sys::unshare(libc::CLONE_NEWNS))?;
    step("mounting", sys::bind(Path::new("/etc"), &root.join("srv")))?;
    step("changing the root", std::os::unix::fs::chroot(&root))?;
    let file = step("opening", File::open("/srv/shadow"))?;
    std::thread::sleep(HOLD);
    drop(file);
    Ok(())
}
