//! System calls that neither the standard library nor rustix (as the agent has it) offers, each behind a safe function.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::ptr::null;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Sends a signal to every process of a group.
pub(super) fn kill_group(leader: u32, signal: i32) {
    if let Some(leader) = i32::try_from(leader).ok().filter(|leader| *leader > 1) {
        // SAFETY: the call takes integers and touches no memory.
        unsafe { libc::kill(-leader, signal) };
    }
}

/// Children whose parent ends become children of this process.
pub(super) fn adopt_orphans() -> io::Result<()> {
    // SAFETY: the option takes one integer.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }.into()).map(drop)
}

/// Ends every child of this process but one, and the orphans that come to it then.
pub(super) fn end_children(but: Option<u32>) {
    for _ in 0..20 {
        let own = std::process::id();
        let children =
            std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
        let others: Vec<i32> = children.filter(|pid| u32::try_from(*pid).ok() != but).collect();
        if others.is_empty() {
            return;
        }
        for pid in others {
            // SAFETY: both calls take integers; no status is asked for. A child's number is its own until it is waited for.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
        }
    }
}

/// The program gets `signal` when its parent ends, and at most `seconds` of processor time.
pub(super) fn bind_to_parent(command: &mut Command, signal: i32, seconds: u64) {
    let limit = libc::rlimit { rlim_cur: seconds, rlim_max: seconds };
    // SAFETY: between fork and exec only two system calls are made, of which one reads a value that was moved here.
    unsafe {
        command.pre_exec(move || {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0).into())?;
            check(libc::setrlimit(libc::RLIMIT_CPU, &raw const limit).into()).map(drop)
        });
    }
}

/// Sends a signal to a process.
pub(super) fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: the call takes integers and touches no memory.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// What this thread is called, for `ps` and the like.
pub(super) fn set_thread_name(name: &CStr) -> io::Result<()> {
    // SAFETY: the text is NUL-terminated.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }.into()).map(drop)
}

/// Leaves these namespaces for new ones.
pub(super) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: the call takes an integer; this process has one thread when it is made.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// `mount(2)` without data.
pub(super) fn mount(source: &CStr, target: &Path, kind: &CStr, flags: u64) -> io::Result<()> {
    let target = text(target)?;
    // SAFETY: the texts are NUL-terminated and outlive the call; no data is passed.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, null()) }.into())
        .map(drop)
}

/// The same folder in a second place.
pub(super) fn bind(from: &Path, to: &Path) -> io::Result<()> {
    mount(&text(from)?, to, c"", libc::MS_BIND)
}

/// Brings the loopback interface of this network namespace up.
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an `ifreq` is plain integers, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: the request is a valid `ifreq` that outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }.into())
        .map(drop)
}

/// `openat2(2)` for reading.
pub(super) fn openat2(path: &Path) -> io::Result<OwnedFd> {
    let path = text(path)?;
    let how = [u64::try_from(libc::O_RDONLY | libc::O_CLOEXEC).unwrap_or(0), 0, 0];
    // SAFETY: path and the three words of an `open_how` are valid for the call.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, path.as_ptr(), how.as_ptr(), size_of_val(&how))
    })?;
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whether this kernel takes the 32-bit calls of x86-64: it has the interface, and was not started without it.
pub(super) fn has_32_bit_calls() -> bool {
    let told = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let off = ["0", "n", "off", "false"].iter().any(|no| told.contains(&format!("ia32_emulation={no}")));
    cfg!(target_arch = "x86_64") && Path::new("/proc/sys/abi/vsyscall32").exists() && !off
}

/// `open(2)` for reading, by the 32-bit interface.
#[cfg(target_arch = "x86_64")]
pub(super) fn open_by_32_bit_call(path: &Path) -> io::Result<OwnedFd> {
    const OPEN: u64 = 5;
    let path = text(path)?;
    let bytes = path.as_bytes_with_nul();
    // A 32-bit call takes addresses below 4 GiB only.
    // SAFETY: new memory at an address that the kernel chooses; nothing of ours lies there.
    let low = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        )
    };
    if low == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut result = OPEN;
    // SAFETY: the new memory has room for the text. The call reads it and makes a descriptor; `rbx`, which the compiler
    // keeps for itself, is put back, and the registers that older kernels clear are given up.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), low.cast(), bytes.len());
        std::arch::asm!(
            "xchg rbx, {path}", "int 0x80", "xchg rbx, {path}",
            path = inout(reg) low.addr() => _,
            inout("rax") result,
            in("rcx") 0_u64,
            in("rdx") 0_u64,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
        libc::munmap(low, bytes.len());
    }
    #[allow(clippy::cast_possible_truncation, reason = "a 32-bit call gives 32 bits, negative for an error")]
    let fd = result as i32;
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// There is no such call here.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn open_by_32_bit_call(_: &Path) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A `ptrace` request without data that comes back.
pub(super) fn ptrace(request: u32, pid: u32, address: usize, data: u64) -> io::Result<()> {
    // SAFETY: none of the requests used here (attach, seize, poke, detach) writes to this process's memory.
    check(unsafe {
        libc::syscall(libc::SYS_ptrace, u64::from(request), u64::from(pid), address as u64, data)
    })
    .map(drop)
}

/// Waits until a traced process has stopped.
pub(super) fn wait_stopped(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: no status is asked for.
    check(unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) }.into()).map(drop)
}

/// Writes into another process at an address.
pub(super) fn process_vm_writev(pid: u32, address: usize, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: bytes.len() };
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: the local vector covers `bytes`, which is only read; the remote one is of the other process.
    check(
        unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) } as libc::c_long
    )
    .map(drop)
}

/// An id that one of the calls that set user ids is given; each must fail for a user without rights.
#[derive(Clone, Copy, Debug)]
pub(super) enum Become {
    /// `setuid(0)`.
    Setuid,
    /// `setreuid(0, 0)`.
    Setreuid,
    /// `setresuid(0, 0, 0)`.
    Setresuid,
    /// `setfsuid(0)`, which reports nothing.
    Setfsuid,
}

/// Asks for user id 0.
pub(super) fn ask_for_root(how: Become) -> io::Result<()> {
    // SAFETY: these calls take integers only.
    check(unsafe {
        match how {
            Become::Setuid => libc::syscall(libc::SYS_setuid, 0),
            Become::Setreuid => libc::syscall(libc::SYS_setreuid, 0, 0),
            Become::Setresuid => libc::syscall(libc::SYS_setresuid, 0, 0, 0),
            Become::Setfsuid => libc::syscall(libc::SYS_setfsuid, 0),
        }
    })
    .map(drop)
}

/// `pivot_root(2)`.
pub(super) fn pivot_root(new: &Path, old: &Path) -> io::Result<()> {
    let (new, old) = (text(new)?, text(old)?);
    // SAFETY: both texts are NUL-terminated and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, new.as_ptr(), old.as_ptr()) }).map(drop)
}

/// A file system of memory by the newer calls: `fsopen`, `fsconfig`, `fsmount`, `move_mount`.
pub(super) fn mount_by_descriptor(target: &Path) -> io::Result<()> {
    const CREATE: i32 = 6;
    const FROM_EMPTY_PATH: i32 = 4;
    let target = text(target)?;
    let owned = |fd: libc::c_long| -> OwnedFd {
        // SAFETY: the descriptor is new and owned by nobody else.
        unsafe { OwnedFd::from_raw_fd(fd as i32) }
    };
    // SAFETY: the text is NUL-terminated.
    let context = owned(check(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0) })?);
    // SAFETY: this command takes neither key nor value.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, null::<u8>(), null::<u8>(), 0)
    })?;
    // SAFETY: the call takes integers.
    let tree = owned(check(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 0, 0) })?);
    // SAFETY: both texts are NUL-terminated and outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            FROM_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Code that is offered to the kernel in a way that cannot work.
#[derive(Clone, Copy, Debug)]
pub(super) enum Code {
    /// A module behind descriptor -1.
    FinitModule,
    /// A module of no bytes.
    InitModule,
    /// An eBPF program of no bytes.
    Bpf,
}

/// Offers code to the kernel; it always refuses.
pub(super) fn offer_code(code: Code) -> io::Error {
    // SAFETY: descriptor, addresses and sizes are invalid or zero, so each call fails before it reads anything.
    let result = unsafe {
        match code {
            Code::FinitModule => libc::syscall(libc::SYS_finit_module, -1, c"".as_ptr(), 0),
            Code::InitModule => libc::syscall(libc::SYS_init_module, null::<u8>(), 0, c"".as_ptr()),
            Code::Bpf => libc::syscall(libc::SYS_bpf, 5, null::<u8>(), 0),
        }
    };
    match check(result) {
        Ok(_) => io::Error::other("the kernel took it"),
        Err(error) => error,
    }
}

/// `unlinkat(2)` by a directory's descriptor.
pub(super) fn unlinkat(folder: &File, name: &CStr) -> io::Result<()> {
    // SAFETY: the text is NUL-terminated.
    check(unsafe { libc::unlinkat(folder.as_raw_fd(), name.as_ptr(), 0) }.into()).map(drop)
}

/// Sets the times of a file, by its path, to 2001.
pub(super) fn redate(path: &Path) -> io::Result<()> {
    let path = text(path)?;
    let times = [libc::timespec { tv_sec: 978_307_200, tv_nsec: 0 }; 2];
    // SAFETY: the text is NUL-terminated, and two times are what the call reads.
    check(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) }.into()).map(drop)
}

/// Makes a hole of a file's first bytes; its length stays.
pub(super) fn punch_hole(file: &File, len: i64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the call takes integers.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, len) }.into()).map(drop)
}

/// A file that lies in memory only.
pub(super) fn memfd(name: &CStr) -> io::Result<File> {
    // SAFETY: the text is NUL-terminated.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), 0) }.into())?;
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(unsafe { File::from_raw_fd(fd as i32) })
}

/// Replaces this program by the file behind a descriptor; comes back only when that fails.
pub(super) fn execveat(file: &File) -> io::Error {
    let arguments = [c"payload".as_ptr(), null()];
    let environment = [null::<libc::c_char>()];
    // SAFETY: both lists end with a null pointer, and their texts with a NUL.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Standard input, output and error become this descriptor.
pub(super) fn become_stdio(fd: i32) -> io::Result<()> {
    for standard in 0..3 {
        // SAFETY: the call takes integers; the standard library keeps no state about these three.
        check(unsafe { libc::dup2(fd, standard) }.into())?;
    }
    Ok(())
}

/// Sends a file's bytes to a socket inside the kernel.
pub(super) fn sendfile(to: i32, from: &File, len: usize) -> io::Result<usize> {
    // SAFETY: no offset is passed, so only integers are.
    let sent =
        check(unsafe { libc::sendfile(to, from.as_raw_fd(), std::ptr::null_mut(), len) } as libc::c_long)?;
    usize::try_from(sent).map_err(io::Error::other)
}
