//! What the agent gives up once the kernel part runs, so that whoever takes it over through the network or a file that it
//! reads has little: capabilities, most system calls that change the machine, and writing files elsewhere.
//!
//! | given up | by whom | by |
//! |---|---|---|
//! | every capability but [`KEPT`], and CAP_KILL where programs may be stopped | all threads started from now on | capset(2) and the bounding set |
//! | starting programs, loading eBPF programs, mounts, namespaces, modules, tracing others, the clock, users and groups | the process | seccomp(2), EPERM |
//! | core files, and being read by others of its user | the process | prctl(2), PR_SET_DUMPABLE |
//! | writing or running files outside of what they need | the threads that talk to others | Landlock, kernel 5.13 |
//!
//! Landlock is not for the whole process: it would forbid to look at other processes in `/proc` (`ptrace(2)` access), which
//! is the agent's work. An agent with a sink that starts a program keeps what that program may need, and says so.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use landlock::{
    ABI, AccessFs, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus,
    path_beneath_rules,
};
use models::chain::chain;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use serde::{Deserialize, Serialize};

/// What is kept: filling the kernel's maps, and looking at other processes and the files that they name.
pub const KEPT: CapabilitySet =
    CapabilitySet::BPF.union(CapabilitySet::SYS_PTRACE).union(CapabilitySet::DAC_READ_SEARCH);

/// The newest rights that are asked for; an older kernel grants what it knows of.
const LANDLOCK: ABI = ABI::V5;

/// Commands of bpf(2) that give code to the kernel or put it somewhere, from the kernel's `enum bpf_cmd`.
const BPF_CODE: [u64; 8] = [
    5,  // BPF_PROG_LOAD
    8,  // BPF_PROG_ATTACH
    10, // BPF_PROG_TEST_RUN
    17, // BPF_RAW_TRACEPOINT_OPEN
    18, // BPF_BTF_LOAD
    28, // BPF_LINK_CREATE
    29, // BPF_LINK_UPDATE
    33, // BPF_ITER_CREATE
];

/// `kexec_file_load(2)`: libc 0.2 does not name it for aarch64 with musl.
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: i64 = 320;
#[cfg(target_arch = "aarch64")]
const KEXEC_FILE_LOAD: i64 = 294;

/// Calls that the agent never makes once it runs.
const REFUSED: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_init_module,
    libc::SYS_io_uring_setup,
    KEXEC_FILE_LOAD,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_settimeofday,
    libc::SYS_setuid,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// What was given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Names of the capabilities that are left, as in capabilities(7).
    pub capabilities: Vec<String>,
    /// Calls that the agent never makes are refused.
    pub calls_refused: bool,
    /// The threads that talk to others write and run only what they need.
    pub files_confined: bool,
    /// What could not be given up, and why.
    pub problems: Vec<String>,
}

/// No core file and no other process of the same user shows what is in memory: keys, and what programs did.
pub fn hide_memory() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::warn!("a core file could show keys: {error}");
    }
}

/// Gives up what the process does not need any more; before any thread is started that should not have it either. With
/// `programs`, a sink will start some, and nothing is given up that they inherit; with `signals`, processes may have to be
/// stopped or killed.
#[must_use]
pub fn process(state: &Path, programs: bool, signals: bool) -> Confinement {
    let mut confinement = Confinement::default();
    let mut keep = KEPT;
    if signals {
        keep |= CapabilitySet::KILL;
    }
    // Whose folder it is writes there without a capability; root in another's folder does not.
    let owner = std::fs::metadata(state).map(|folder| folder.uid());
    if owner.is_ok_and(|owner| owner != rustix::process::geteuid().as_raw()) {
        keep |= CapabilitySet::DAC_OVERRIDE;
        let problem = format!("{} belongs to another user, so CAP_DAC_OVERRIDE is kept", state.display());
        confinement.problems.push(problem);
    }
    if programs {
        let problem =
            "a sink starts programs, which would be confined too: only files are confined".to_owned();
        confinement.problems.push(problem);
    } else {
        if let Err(error) = capabilities_to(keep) {
            confinement.problems.push(format!("capabilities are kept: {error}"));
        }
        match refuse_calls(true) {
            Ok(()) => confinement.calls_refused = true,
            Err(error) => confinement.problems.push(format!("no call is refused: {}", chain(&error))),
        }
    }
    // It cannot be undone, so it is tried on a thread that ends.
    let tried = std::thread::scope(|scope| scope.spawn(|| thread(&[state])).join());
    match tried {
        Ok(Ok(())) => confinement.files_confined = true,
        Ok(Err(error)) => confinement.problems.push(error.to_string()),
        Err(_) => confinement.problems.push("files are not confined".to_owned()),
    }
    confinement.capabilities =
        names(capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted));
    confinement
}

/// Why files are not confined.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The kernel has it not.
    #[error("files are not confined: the kernel has no Landlock, or it is not among those of its `lsm=`")]
    Unsupported,
    /// It refuses.
    #[error("files are not confined")]
    Refused(#[from] RulesetError),
}

/// Has this thread, and those that it starts, write below these paths only, and run nothing. One that is not there yet is
/// made below the nearest folder that is.
///
/// # Errors
/// When the kernel cannot; nothing has changed then.
pub fn thread(writes: &[&Path]) -> Result<(), ThreadError> {
    let refused = AccessFs::from_write(LANDLOCK) | AccessFs::Execute;
    let there = writes.iter().filter_map(|path| path.ancestors().find(|path| path.exists()));
    let allowed = path_beneath_rules(there, AccessFs::from_write(LANDLOCK));
    let null = path_beneath_rules(["/dev/null"], AccessFs::WriteFile);
    let status = Ruleset::default()
        .handle_access(refused)?
        .create()?
        .add_rules(allowed)?
        .add_rules(null)?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced { Err(ThreadError::Unsupported) } else { Ok(()) }
}

/// The same for a thread that does its work all the same when the kernel cannot, which was said at the start.
pub fn thread_or_not(writes: &[&Path]) {
    if let Err(error) = thread(writes) {
        log::debug!("{}", chain(&error));
    }
}

fn capabilities_to(keep: CapabilitySet) -> std::io::Result<()> {
    let before = capabilities(None)?;
    let keep = before.permitted & keep;
    // The last one first needs CAP_SETPCAP, without which there is nothing to take from the set either.
    if before.effective.contains(CapabilitySet::SETPCAP) {
        for capability in (CapabilitySet::all() - keep).iter() {
            // A kernel that does not know it has it not in the set.
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
    let inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable })?)
}

fn names(set: CapabilitySet) -> Vec<String> {
    set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}

/// Has calls that are never made refused with EPERM, for this thread or the whole process.
fn refuse_calls(whole_process: bool) -> Result<(), seccompiler::Error> {
    let program = filter()?;
    if whole_process {
        seccompiler::apply_filter_all_threads(&program)
    } else {
        seccompiler::apply_filter(&program)
    }
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let command = |command| {
        let is = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, command)?;
        SeccompRule::new(vec![is])
    };
    let code = BPF_CODE.into_iter().map(command).collect::<Result<_, _>>()?;
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_bpf, code);
    #[cfg(target_arch = "x86_64")]
    rules.extend(
        [libc::SYS_fork, libc::SYS_vfork, libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_modify_ldt]
            .map(|call| (call, Vec::new())),
    );
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::ErrorKind;

    #[cfg(target_env = "gnu")]
    #[test]
    fn the_number_is_the_one_that_libc_has_where_it_has_one() {
        assert_eq!(KEXEC_FILE_LOAD, libc::SYS_kexec_file_load);
    }

    /// On a thread that ends, because it cannot be undone.
    fn on_a_thread(what: impl FnOnce() + Send) {
        std::thread::scope(|scope| scope.spawn(what).join()).unwrap();
    }

    #[test]
    fn what_the_agent_never_does_is_refused_and_its_work_is_not() {
        on_a_thread(|| {
            refuse_calls(false).unwrap();
            let refused = |error: std::io::Error| assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            refused(std::process::Command::new("true").spawn().unwrap_err());
            refused(rustix::process::chroot("/").unwrap_err().into());
            fs::read_link("/proc/self/exe").unwrap();
            std::thread::spawn(|| ()).join().unwrap();
            std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        });
        assert!(std::process::Command::new("true").status().unwrap().success(), "other threads go on");
    }

    #[test]
    fn a_confined_thread_writes_where_it_must_and_nowhere_else() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let later = own.path().join("not/there/yet");
        on_a_thread(|| {
            match thread(&[&later]) {
                Ok(()) => {}
                Err(error) => {
                    // Said, so that nobody takes this for a proof.
                    eprintln!("not tested here: {error}");
                    return;
                }
            }
            fs::create_dir_all(&later).unwrap();
            fs::write(later.join("alerts"), b"x").unwrap();
            fs::rename(later.join("alerts"), own.path().join("alerts")).unwrap();
            fs::remove_file(own.path().join("alerts")).unwrap();
            fs::write("/dev/null", b"x").unwrap();
            let error = fs::write(other.path().join("x"), b"x").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            let error = std::process::Command::new("true").spawn().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            fs::read("/etc/hostname").unwrap();
        });
        fs::write(other.path().join("x"), b"x").unwrap();
    }

    #[test]
    fn every_capability_but_three_is_given_up() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not tested here: it needs root");
            return;
        }
        on_a_thread(|| {
            capabilities_to(KEPT).unwrap();
            let sets = capabilities(None).unwrap();
            assert!(KEPT.contains(sets.permitted) && sets.effective == sets.permitted, "{sets:?}");
            assert!(sets.permitted.contains(CapabilitySet::SYS_PTRACE), "{sets:?}");
            let bounded = rustix::thread::capability_is_in_bounding_set(CapabilitySet::SYS_ADMIN);
            assert_eq!(bounded, Ok(false));
            assert!(
                set_capabilities(None, CapabilitySets { permitted: CapabilitySet::all(), ..sets }).is_err()
            );
        });
    }
}
