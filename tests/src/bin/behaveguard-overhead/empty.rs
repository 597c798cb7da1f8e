//! The cheapest thing that can be attached to every system call: two instructions on `tp_btf/sys_enter`.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

use aya_obj::btf::{Btf, BtfKind};

const PROG_LOAD: libc::c_int = 5;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const PROG_TYPE_TRACING: u32 = 26;
const TRACE_RAW_TP: u32 = 23;
/// `r0 = 0; exit`.
const PROGRAM: [u64; 2] = [0xb7, 0x95];

/// Attached until it is dropped.
pub(crate) struct Empty {
    _program: OwnedFd,
    _link: OwnedFd,
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`, up to `attach_btf_id`.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u64; 2],
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// The same for `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
struct Open {
    name: u64,
    prog_fd: u32,
    _pad: u32,
}

impl Empty {
    /// Loads and attaches it.
    pub(crate) fn attach() -> io::Result<Self> {
        let btf = Btf::from_sys_fs().map_err(io::Error::other)?;
        let attach_btf_id =
            btf.id_by_type_name_kind("btf_trace_sys_enter", BtfKind::Typedef).map_err(io::Error::other)?;
        let license = CString::new("GPL")?;
        let load = Load {
            prog_type: PROG_TYPE_TRACING,
            insn_cnt: 2,
            insns: PROGRAM.as_ptr().expose_provenance() as u64,
            license: license.as_ptr().expose_provenance() as u64,
            expected_attach_type: TRACE_RAW_TP,
            attach_btf_id,
            ..Load::default()
        };
        let program = bpf(PROG_LOAD, &load)?;
        let prog_fd = u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&program)).map_err(io::Error::other)?;
        let link = bpf(RAW_TRACEPOINT_OPEN, &Open { name: 0, prog_fd, _pad: 0 })?;
        Ok(Self { _program: program, _link: link })
    }
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are those of the command; what they point to lives until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel made this descriptor just now, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
