//! Which hooks each layer may use, best first.

use agent_ebpf::records::WRITTEN;
use models::wire::LayerState;

/// What a backend needs to know from the kernel's type information.
#[derive(Clone, Copy)]
pub(super) enum Needs {
    /// Nothing.
    Nothing,
    /// Offsets in `task_struct`.
    Task,
    /// The offset of `linux_binprm.filename`.
    Filename,
}

/// Where a program is attached.
#[derive(Clone, Copy)]
pub(super) enum Hook {
    /// A tracepoint with typed arguments. The minimum kernel version is 5.5.
    Btf(&'static str),
    /// A raw tracepoint. The minimum kernel version is 4.17.
    Raw(&'static str),
    /// The entry of a kernel function. Needs CONFIG_KPROBES.
    Kprobe(&'static str),
    /// Category and name. The minimum kernel version is 4.7.
    Classic(&'static str, &'static str),
}

/// One way to see a layer: all of its programs, or it does not count.
pub(super) struct Backend {
    pub(super) name: &'static str,
    pub(super) programs: &'static [(&'static str, Hook)],
    pub(super) needs: Needs,
}

/// A layer that wants the arguments of some system calls: by tail call from the dispatcher, else by the classic
/// tracepoint of each call.
pub(super) struct CallLayer {
    pub(super) name: &'static str,
    /// Backends that are better than looking at calls.
    pub(super) better: &'static [Backend],
    /// Calls of the schema, by name.
    pub(super) calls: &'static [&'static str],
    /// Newer calls, whose numbers are the same everywhere.
    pub(super) also: &'static [(u16, &'static str)],
    /// Where the program of the layer before calls this one; at each of its calls when absent.
    pub(super) behind: Option<u32>,
    pub(super) btf: &'static str,
    pub(super) raw: &'static str,
    pub(super) classic: &'static str,
}

/// A layer with hooks of its own.
pub(super) struct HookLayer {
    pub(super) name: &'static str,
    pub(super) backends: &'static [Backend],
}

macro_rules! one {
    ($name:literal, $program:literal, $hook:expr, $needs:ident) => {
        Backend { name: $name, programs: &[($program, $hook)], needs: Needs::$needs }
    };
}

use Hook::{Btf, Classic, Kprobe, Raw};

/// The first of these is the dispatcher of the [`CALL_LAYERS`].
pub(super) const HOOK_LAYERS: &[HookLayer] = &[
    HookLayer {
        name: "syscall",
        backends: &[
            one!("tp_btf/sys_enter", "sys_enter_btf", Btf("sys_enter"), Nothing),
            one!("raw_tp/sys_enter", "sys_enter_raw", Raw("sys_enter"), Nothing),
        ],
    },
    HookLayer {
        name: "process_exec",
        backends: &[
            one!("tp_btf/sched_process_exec", "exec_btf", Btf("sched_process_exec"), Filename),
            one!("raw_tp/sched_process_exec", "exec_raw", Raw("sched_process_exec"), Filename),
            one!("tracepoint/sched_process_exec", "exec_tp", Classic("sched", "sched_process_exec"), Nothing),
        ],
    },
    HookLayer {
        name: "process_fork",
        backends: &[
            one!("tp_btf/task_newtask", "fork_newtask_btf", Btf("task_newtask"), Task),
            one!("tp_btf/sched_process_fork", "fork_sched_btf", Btf("sched_process_fork"), Task),
            one!("tracepoint/task_newtask", "fork_tp", Classic("task", "task_newtask"), Nothing),
        ],
    },
    HookLayer {
        name: "process_exit",
        backends: &[
            one!("tp_btf/sched_process_exit", "exit_btf", Btf("sched_process_exit"), Nothing),
            one!("raw_tp/sched_process_exit", "exit_raw", Raw("sched_process_exit"), Nothing),
            one!("tracepoint/sched_process_exit", "exit_tp", Classic("sched", "sched_process_exit"), Nothing),
        ],
    },
    HookLayer {
        name: "capability",
        backends: &[
            // Since 6.14.
            one!("tp_btf/cap_capable", "capable_btf", Btf("cap_capable"), Nothing),
            one!("raw_tp/cap_capable", "capable_raw", Raw("cap_capable"), Nothing),
            one!("kprobe/cap_capable", "capable_probe", Kprobe("cap_capable"), Nothing),
        ],
    },
];

/// The name of the layer that counts bytes.
pub(super) const NETWORK_BYTES: &str = "network_bytes";

/// The layers of the dispatcher.
pub(super) const CALL_LAYERS: &[CallLayer] = &[
    CallLayer {
        name: "file",
        better: &[],
        calls: &["open", "openat", "creat"],
        also: &[(437, "openat2")],
        behind: None,
        btf: "open_btf",
        raw: "open_raw",
        classic: "open_tp",
    },
    CallLayer {
        name: "file_write",
        better: &[],
        calls: &["open", "openat", "creat"],
        also: &[(437, "openat2")],
        behind: Some(WRITTEN),
        btf: "written_btf",
        raw: "written_raw",
        classic: "written_tp",
    },
    CallLayer {
        name: "network",
        better: &[],
        calls: &["connect"],
        also: &[],
        behind: None,
        btf: "connect_btf",
        raw: "connect_raw",
        classic: "connect_tp",
    },
    CallLayer {
        name: "injection",
        better: &[],
        calls: &["ptrace", "process_vm_writev"],
        also: &[],
        behind: None,
        btf: "inject_btf",
        raw: "inject_raw",
        classic: "inject_tp",
    },
    CallLayer {
        name: "container_escape",
        better: &[],
        calls: &["setns", "unshare", "clone", "pivot_root", "chroot", "mount"],
        also: &[(428, "open_tree"), (429, "move_mount"), (430, "fsopen"), (432, "fsmount"), (435, "clone3")],
        behind: None,
        btf: "escape_btf",
        raw: "escape_raw",
        classic: "escape_tp",
    },
    CallLayer {
        name: "anti_forensic",
        better: &[],
        calls: &[
            "unlink",
            "unlinkat",
            "truncate",
            "ftruncate",
            "fallocate",
            "rename",
            "renameat",
            "renameat2",
            "utime",
            "utimes",
            "futimesat",
            "utimensat",
        ],
        also: &[],
        behind: None,
        btf: "tamper_btf",
        raw: "tamper_raw",
        classic: "tamper_tp",
    },
    CallLayer {
        name: "dns",
        better: &[],
        calls: &["sendto", "sendmsg", "sendmmsg", "writev"],
        also: &[],
        behind: None,
        btf: "send_btf",
        raw: "send_raw",
        classic: "send_tp",
    },
    CallLayer {
        name: NETWORK_BYTES,
        better: &[
            // Since 6.3.
            Backend {
                name: "tp_btf/sock_send_length",
                programs: &[("sent_btf", Btf("sock_send_length")), ("received_btf", Btf("sock_recv_length"))],
                needs: Needs::Nothing,
            },
            Backend {
                name: "raw_tp/sock_send_length",
                programs: &[("sent_raw", Raw("sock_send_length")), ("received_raw", Raw("sock_recv_length"))],
                needs: Needs::Nothing,
            },
        ],
        calls: &["recvfrom", "recvmsg"],
        also: &[],
        behind: None,
        btf: "recv_btf",
        raw: "recv_raw",
        classic: "recv_tp",
    },
    CallLayer {
        name: "privilege",
        better: &[],
        calls: &["setuid", "setreuid", "setresuid", "setfsuid", "chmod", "fchmod", "fchmodat"],
        also: &[(452, "fchmodat2")],
        behind: None,
        btf: "become_btf",
        raw: "become_raw",
        classic: "become_tp",
    },
    CallLayer {
        name: "kernel_load",
        better: &[],
        calls: &["init_module", "finit_module", "kexec_load", "kexec_file_load", "bpf"],
        also: &[],
        behind: None,
        btf: "load_btf",
        raw: "load_raw",
        classic: "load_tp",
    },
    CallLayer {
        name: "io_uring",
        better: &[
            // Since 6.4.
            one!("tp_btf/io_uring_submit_req", "submit_btf", Btf("io_uring_submit_req"), Nothing),
            one!("raw_tp/io_uring_submit_req", "submit_raw", Raw("io_uring_submit_req"), Nothing),
        ],
        calls: &[],
        also: &[(425, "io_uring_setup"), (426, "io_uring_enter")],
        behind: None,
        btf: "uring_btf",
        raw: "uring_raw",
        classic: "uring_tp",
    },
];

/// Backend of a [`CallLayer`] behind the dispatcher.
pub(super) const TAIL_CALL: &str = "tail_call";
/// Backend of a [`CallLayer`] without the dispatcher.
pub(super) const CLASSIC: &str = "tracepoint/syscalls";

/// What is not seen, or seen less well, with a backend; empty where nothing better could be had.
#[must_use]
pub fn unseen(layer: &LayerState) -> &'static str {
    match (layer.layer.as_str(), layer.backend.as_str()) {
        ("syscall", "") => "no call is counted: frequencies, pairs, rates and activity stay zero",
        ("process_exec", "") => "programs started, tools of the watch list, programs without a file",
        ("process_exec", "tracepoint/sched_process_exec") => {
            "a deleted program is known by its path only, not by its file"
        }
        ("process_fork", "") => "children; what a child does before its first program is not its parent's",
        ("process_exit", "") => "the last window of a process that left is judged with the next drain",
        ("capability", "") => "which capabilities are used",
        ("capability", "kprobe/cap_capable") => {
            "which capabilities others than root use, and whether root had those that it asked for"
        }
        ("file", "") => "files opened, and sensitive ones among them",
        ("file_write", "") => {
            "memory of other processes written by path, release agents, logs emptied by open"
        }
        ("network", "") => "connections, and the DNS queries of connected sockets",
        ("injection", "") => "ptrace and process_vm_writev",
        ("container_escape", "") => "namespaces, mounts and changes of the root directory",
        ("anti_forensic", "") => "files removed, cut, renamed or redated in watched directories",
        ("dns", "") => "DNS queries; bytes sent where the kernel has no tracepoint for them",
        (NETWORK_BYTES, "") => "bytes sent and received",
        (NETWORK_BYTES, TAIL_CALL | CLASSIC) => {
            "bytes are what calls asked for, not what was moved; read and write on sockets are not counted, nor are DNS queries sent so"
        }
        ("privilege", "") => "attempts to become user id 0, and programs that let others do so",
        ("kernel_load", "") => "modules, other kernels and eBPF programs loaded",
        ("io_uring", "") => "work given to io_uring",
        ("io_uring", TAIL_CALL | CLASSIC) => {
            "which operations io_uring was given, on which file or address, and those a kernel thread takes from the ring without a call"
        }
        (_, CLASSIC) => {
            "calls of 32-bit programs; and every call of every process on the machine becomes slower"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documented;

    #[test]
    fn every_layer_says_what_is_missed_without_it() {
        let names = HOOK_LAYERS.iter().map(|l| l.name).chain(CALL_LAYERS.iter().map(|l| l.name));
        for layer in names {
            let state = LayerState { layer: layer.to_owned(), ..LayerState::default() };
            assert!(!unseen(&state).is_empty(), "{layer}");
        }
    }

    #[test]
    fn no_call_belongs_to_two_layers() {
        let mut calls: Vec<_> = CALL_LAYERS
            .iter()
            .filter(|layer| layer.behind.is_none())
            .flat_map(|layer| layer.calls.iter().copied().chain(layer.also.iter().map(|(_, name)| *name)))
            .collect();
        let all = calls.len();
        calls.sort_unstable();
        calls.dedup();
        assert_eq!(calls.len(), all, "the dispatcher's array holds one program per call");
    }

    /// Every layer with its hooks, best first.
    fn hooks() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
        let names = |backends: &'static [Backend]| backends.iter().map(|backend| backend.name);
        let own = HOOK_LAYERS.iter().map(move |layer| (layer.name, names(layer.backends).collect()));
        let calls = CALL_LAYERS.iter().map(move |layer| {
            let both = [TAIL_CALL, CLASSIC];
            (layer.name, names(layer.better).chain(both).collect())
        });
        own.chain(calls)
    }

    #[test]
    fn the_documented_hooks_are_those_of_the_code() {
        let mut rows = Vec::new();
        for (layer, hooks) in hooks() {
            for hook in hooks.into_iter().chain([""]) {
                let state = LayerState { layer: layer.into(), backend: hook.into(), failed: Vec::new() };
                let shown = if hook.is_empty() { "none".to_owned() } else { format!("`{hook}`") };
                let unseen = unseen(&state);
                assert!(!hook.is_empty() || !unseen.is_empty(), "{layer} without a hook loses something");
                rows.push(format!("| `{layer}` | {shown} | {unseen} |"));
            }
        }
        let head = "| layer | hook | less is seen |\n|---|---|---|\n";
        documented::table("kernels.md", head, &rows, "documented_hooks");
    }
}
