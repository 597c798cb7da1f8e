//! What the kernel programs count, and which struct fields they must be told the places of.

/// Classes of rare acts, each with a cap of its own.
pub const ACTS: usize = 7;

/// What is counted; one group of four counters each. `seen = submitted + dropped + throttled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Class {
    /// System calls. Only `dropped` is counted here (the window map was full): the windows hold the rest.
    Syscall = 0,
    /// Program replacements.
    Exec = 1,
    /// New processes.
    Fork = 2,
    /// Processes that left.
    Exit = 3,
    /// File opens.
    Open = 4,
    /// Connections.
    Connect = 5,
    /// Windows of processes that left. `throttled` ones stay in the map for the next drain, so nothing is lost.
    Flush = 6,
    /// Writes into other processes.
    Injection = 7,
    /// Namespaces, mounts, roots.
    Escape = 8,
    /// Files removed, emptied or redated that lie in a watched directory.
    AntiForensic = 9,
    /// The same of files whose directory the kernel could not tell. Apart, so that they cannot use up the cap of those
    /// that it could.
    Unplaced = 10,
    /// Messages to port 53.
    Dns = 11,
    /// Attempts to become user id 0.
    Privilege = 12,
    /// Modules, kernels and eBPF programs loaded.
    KernelLoad = 13,
}

impl Class {
    /// Every class, in the order of its counters.
    pub const ALL: [Self; 14] = [
        Self::Syscall,
        Self::Exec,
        Self::Fork,
        Self::Exit,
        Self::Open,
        Self::Connect,
        Self::Flush,
        Self::Injection,
        Self::Escape,
        Self::AntiForensic,
        Self::Unplaced,
        Self::Dns,
        Self::Privilege,
        Self::KernelLoad,
    ];

    /// Place of a rare act's cap in the window entry; `None` for the other classes.
    #[inline(always)]
    #[must_use]
    pub const fn act(self) -> Option<usize> {
        (self as usize).checked_sub(Self::Injection as usize)
    }

    /// The name used in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syscall => "syscall",
            Self::Exec => "exec",
            Self::Fork => "fork",
            Self::Exit => "exit",
            Self::Open => "open",
            Self::Connect => "connect",
            Self::Flush => "flush",
            Self::Injection => "injection",
            Self::Escape => "escape",
            Self::AntiForensic => "anti_forensic",
            Self::Unplaced => "unplaced",
            Self::Dns => "dns",
            Self::Privilege => "privilege",
            Self::KernelLoad => "kernel_load",
        }
    }
}

/// Places in the counter array: a [`Class`] times four plus one of the first four, or one of the others.
pub mod counter {
    /// Records that a hook began.
    pub const SEEN: u32 = 0;
    /// Records that entered a ring.
    pub const SUBMITTED: u32 = 1;
    /// Records that found a ring or map full.
    pub const DROPPED: u32 = 2;
    /// Records beyond a cap, or a process's further ones of a kind while the urgent ring was half full.
    pub const THROTTLED: u32 = 3;
    /// Threads that lost their cell in the table of previous calls to another one.
    pub const COLLISIONS: u32 = 60;
    /// Paths or addresses that were not in memory at the hook.
    pub const UNREADABLE: u32 = 61;
    /// Grams of learning processes that found their map full.
    pub const GRAMS_REFUSED: u32 = 62;
    /// Packets that left no contained control group, or no quarantined device.
    pub const EGRESS_DENIED: u32 = 63;
    /// Places for windows that neither map took back: gone until the agent starts again.
    pub const PLACES_LOST: u32 = 64;
    /// Counters in all.
    pub const LEN: u32 = 65;
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $structure:literal . $field:literal,)*) => {
        /// A struct field whose offset user space looks up in the kernel's type information.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Field { $(#[doc = concat!("`", $structure, ".", $field, "`.")] $name,)* }

        impl Field {
            /// Every field, in the order of their offsets in the global.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Structure and field, as the kernel names them.
            #[must_use]
            pub const fn names(self) -> (&'static str, &'static str) {
                match self { $(Self::$name => ($structure, $field),)* }
            }
        }
    };
}

fields! {
    TaskFs = "task_struct"."fs",
    TaskFiles = "task_struct"."files",
    TaskIoac = "task_struct"."ioac",
    TaskMm = "task_struct"."mm",
    MmArgStart = "mm_struct"."arg_start",
    MmArgEnd = "mm_struct"."arg_end",
    TaskNsproxy = "task_struct"."nsproxy",
    TaskCgroups = "task_struct"."cgroups",
    CssSetGroup = "css_set"."dfl_cgrp",
    CgroupNode = "cgroup"."kn",
    NodeName = "kernfs_node"."name",
    NodeParent = "kernfs_node"."parent",
    NodeParentRcu = "kernfs_node"."__parent",
    SignalIoac = "signal_struct"."ioac",
    IoacRead = "task_io_accounting"."rchar",
    IoacWritten = "task_io_accounting"."wchar",
    NsproxyMnt = "nsproxy"."mnt_ns",
    MntNs = "mnt_namespace"."ns",
    NsInum = "ns_common"."inum",
    FsPwd = "fs_struct"."pwd",
    PathDentry = "path"."dentry",
    PathMnt = "path"."mnt",
    MountMnt = "mount"."mnt",
    MountParent = "mount"."mnt_parent",
    MountPoint = "mount"."mnt_mountpoint",
    FilesFdt = "files_struct"."fdt",
    FdtFd = "fdtable"."fd",
    FdtMax = "fdtable"."max_fds",
    FilePath = "file"."f_path",
    FileInode = "file"."f_inode",
    DentryParent = "dentry"."d_parent",
    DentryInode = "dentry"."d_inode",
    DentryName = "dentry"."d_name",
    QstrName = "qstr"."name",
    InodeIno = "inode"."i_ino",
    InodeSb = "inode"."i_sb",
    SbDev = "super_block"."s_dev",
    SbMagic = "super_block"."s_magic",
    InodeNlink = "inode"."i_nlink",
    BprmFile = "linux_binprm"."file",
    SockFamily = "sock_common"."skc_family",
    SockPort = "sock_common"."skc_dport",
    SockAddr = "sock_common"."skc_daddr",
    SockAddr6 = "sock_common"."skc_v6_daddr",
    UringOpcode = "io_kiocb"."opcode",
    UringOpenDfd = "io_open"."dfd",
    UringOpenPath = "io_open"."filename",
    UringOpenHow = "io_open"."how",
    UringUnlinkDfd = "io_unlink"."dfd",
    UringUnlinkPath = "io_unlink"."filename",
    UringRenameDfd = "io_rename"."old_dfd",
    UringRenamePath = "io_rename"."oldpath",
    UringRenameNewDfd = "io_rename"."new_dfd",
    UringRenameNewPath = "io_rename"."newpath",
    UringConnectAddr = "io_connect"."addr",
    FilenameName = "filename"."name",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_classes_and_others_do_not_overlap() {
        for (place, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, place);
            assert!(class as u32 * 4 + counter::THROTTLED < counter::COLLISIONS);
        }
        const { assert!(counter::UNREADABLE < counter::LEN) };
    }

    #[test]
    fn every_rare_act_has_its_own_cap() {
        let places: [Option<usize>; 14] = Class::ALL.map(Class::act);
        assert!(places[..7].iter().all(Option::is_none));
        assert!(places[7..].iter().enumerate().all(|(n, place)| *place == Some(n) && n < ACTS));
    }
}
