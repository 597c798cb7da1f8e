//! Container escape: namespaces, mounts, another root, a release agent, code for the kernel.

use std::fs;

use super::word;
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::stage::Stage;
use crate::simulate::sys::{self, Code};
use crate::simulate::table::{Act, Log, Need, Sign, Threat, Variant};

/// `CLONE_NEWNS`, `CLONE_NEWUTS`, `CLONE_NEWNET`.
const NEW_MOUNTS: u64 = 0x0002_0000;
const NEW_NAMES: u64 = 0x0400_0000;
const NEW_NETWORK: u64 = 0x4000_0000;
const UTIL_LINUX: &str = "util-linux";

pub(crate) const THREAT: Threat =
    Threat { name: "container-escape", techniques: &["T1611", "T1547.006"], variants: VARIANTS };

macro_rules! escape {
    ($name:literal, $summary:literal, $needs:expr, $act:expr, $prepare:expr) => {
        Variant {
            name: $name,
            techniques: &["T1611"],
            summary: $summary,
            layer: "container_escape",
            needs: $needs,
            log: Log::No,
            prepare: $prepare,
            act: $act,
        }
    };
}

macro_rules! load {
    ($name:literal, $summary:literal, $call:literal) => {
        Variant {
            name: $name,
            techniques: &["T1547.006"],
            summary: $summary,
            layer: "kernel_load",
            needs: &[],
            log: Log::No,
            prepare: |stage| Ok(stage.own([$call])?.sign(Sign::KernelLoad { call: $call })),
            act: Some(offer),
        }
    };
}

const VARIANTS: &[Variant] = &[
    escape!(
        "unshare",
        "unshare --mount --uts",
        &[Need::Root, Need::Tool("unshare", UTIL_LINUX)],
        None,
        |_| {
            let act = Act::tool("unshare", ["--mount", "--uts", "true"])?;
            Ok(act.sign(Sign::Namespace { flags: NEW_MOUNTS | NEW_NAMES }))
        }
    ),
    escape!(
        "nsenter",
        "nsenter into the namespaces of a child",
        &[Need::Root, Need::Tool("nsenter", UTIL_LINUX)],
        None,
        |stage| {
            let target = stage.victim()?.to_string();
            let act = Act::tool("nsenter", ["--target", &target, "--mount", "--net", "true"])?;
            Ok(act.sign(Sign::Namespace { flags: NEW_MOUNTS }).sign(Sign::Namespace { flags: NEW_NETWORK }))
        }
    ),
    escape!(
        "bind-mount",
        "mount --bind of one temporary folder on another",
        &[Need::Root, Need::Tool("mount", "mount")],
        None,
        |stage| {
            let (from, to) = (folder(stage, "host")?, folder(stage, "inside")?);
            Ok(Act::tool("mount", ["--bind", &from, &to])?.sign(Sign::Mount { path: to }))
        }
    ),
    escape!(
        "mount-by-descriptor",
        "a memory file system by fsopen, fsmount and move_mount",
        &[Need::Root],
        Some(mount),
        |stage| {
            let to = folder(stage, "inside")?;
            Ok(stage.own([to.clone()])?.sign(Sign::Mount { path: to }))
        }
    ),
    escape!(
        "pivot-root",
        "pivot_root into a temporary folder, in a mount namespace of its own",
        &[Need::Root],
        Some(pivot),
        |stage| {
            let to = folder(stage, "root")?;
            let act = stage.own([to.clone()])?.sign(Sign::Namespace { flags: NEW_MOUNTS });
            Ok(act.sign(Sign::ChangeRoot { call: "pivot_root", path: to }))
        }
    ),
    escape!("release-agent", "writes a file named release_agent", &[], Some(agent), |stage| {
        let path = stage.sandbox.path("release_agent")?.display().to_string();
        Ok(stage.own([path.clone()])?.sign(Sign::ReleaseAgent { path }))
    }),
    escape!(
        "chroot",
        "chroot into a temporary folder",
        &[Need::Root],
        Some(|sandbox, words| {
            step("changing the root", std::os::unix::fs::chroot(sandbox.path(word(words, 0)?)?))
        }),
        |stage| {
            let to = folder(stage, "root")?;
            Ok(stage.own([to.clone()])?.sign(Sign::ChangeRoot { call: "chroot", path: to }))
        }
    ),
    load!("finit-module", "finit_module(-1), which must fail", "finit_module"),
    load!("init-module", "init_module of no bytes, which must fail", "init_module"),
    load!("bpf-program", "bpf(BPF_PROG_LOAD) of no bytes, which must fail", "bpf"),
];

fn folder(stage: &Stage, name: &str) -> Result<String, Problem> {
    let path = stage.sandbox.path(name)?;
    step("making a folder", fs::create_dir(&path))?;
    Ok(path.display().to_string())
}

fn mount(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    step("mounting", sys::mount_by_descriptor(&sandbox.path(word(words, 0)?)?))
}

fn pivot(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let new = sandbox.path(word(words, 0)?)?;
    step("leaving the mount namespace", sys::unshare(libc::CLONE_NEWNS))?;
    step("mounting", sys::mount(c"simulation", &new, c"tmpfs", 0))?;
    let old = new.join("old");
    step("making a folder", fs::create_dir(&old))?;
    step("changing the root", sys::pivot_root(&new, &old))
}

fn agent(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    step("writing", fs::write(sandbox.path(word(words, 0)?)?, "#!/bin/false\n"))
}

/// Success is when the kernel refuses.
fn offer(_: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let code = match word(words, 0)? {
        "finit_module" => Code::FinitModule,
        "init_module" => Code::InitModule,
        "bpf" => Code::Bpf,
        other => return Err(Problem::Refused(other.to_owned())),
    };
    match sys::offer_code(code).raw_os_error() {
        Some(_) => Ok(()),
        None => Err(Problem::Unproven("the kernel took it".into())),
    }
}
