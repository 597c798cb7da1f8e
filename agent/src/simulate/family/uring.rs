//! Files and connections by io_uring, which no system call tracepoint sees. What each is about is promised where the kernel
//! tells it, since Linux 6.4.

use std::ffi::CString;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::{SHADOW, address, success_of_root, traces, word};
use crate::simulate::listener::Talk;
use crate::simulate::ring::{CONNECT, OPENAT, OPENAT2, Operation, RENAMEAT, Ring, SEND, UNLINKAT};
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::stage::Stage;
use crate::simulate::table::{Act, Log, Need, Proof, Sign, Threat, Variant};
use crate::vitals;

pub(crate) const THREAT: Threat =
    Threat { name: "io-uring-access", techniques: &["T1106", "T1003", "T1070", "T1041"], variants: VARIANTS };

macro_rules! uring {
    ($name:literal, $techniques:expr, $summary:literal, $needs:expr, $log:ident, $act:expr, $prepare:expr) => {
        Variant {
            name: $name,
            techniques: $techniques,
            summary: $summary,
            layer: "io_uring",
            needs: $needs,
            log: Log::$log,
            prepare: $prepare,
            act: Some($act),
        }
    };
}
pub(in crate::simulate) use uring;

const VARIANTS: &[Variant] = &[
    uring!(
        "open-shadow",
        &["T1106", "T1003.008"],
        "opens /etc/shadow by IORING_OP_OPENAT",
        &[Need::IoUring],
        No,
        open,
        |stage| { reader(stage, "openat", OPENAT) }
    ),
    uring!(
        "openat2-shadow",
        &["T1106", "T1003.008"],
        "the same by IORING_OP_OPENAT2",
        &[Need::IoUring],
        No,
        open,
        |stage| { reader(stage, "openat2", OPENAT2) }
    ),
    uring!(
        "polled-open-shadow",
        &["T1106", "T1003.008"],
        "the same, taken from the ring by a kernel thread",
        &[Need::IoUring],
        No,
        open,
        |stage| { reader(stage, "polled", OPENAT) }
    ),
    uring!(
        "unlink-log",
        &["T1106", "T1070.004"],
        "removes a log by IORING_OP_UNLINKAT",
        &[Need::Root, Need::IoUring],
        Private,
        unlink,
        |stage| on_log(stage, UNLINKAT, "removed", Proof::Gone)
    ),
    uring!(
        "rename-log",
        &["T1106", "T1070"],
        "gives a log another name by IORING_OP_RENAMEAT",
        &[Need::Root, Need::IoUring],
        Private,
        rename,
        |stage| on_log(stage, RENAMEAT, "renamed", Proof::Gone)
    ),
    uring!(
        "empty-log",
        &["T1106", "T1070.002"],
        "empties a log by IORING_OP_OPENAT",
        &[Need::Root, Need::IoUring],
        Private,
        empty,
        |stage| on_log(stage, OPENAT, "emptied", Proof::Empty)
    ),
    uring!(
        "connect-send",
        &["T1106", "T1041"],
        "connects and sends by IORING_OP_CONNECT and SEND",
        &[Need::IoUring],
        No,
        send,
        sender
    ),
];

/// Opens the file with the hashes.
fn reader(stage: &mut Stage, how: &str, operation: u8) -> Result<Act, Problem> {
    let act = stage.own([SHADOW, how])?.sign(Sign::Uring { operation });
    let act = act.signs(is_told().then(|| Sign::sensitive(SHADOW)));
    Ok(act.proof(success_of_root(stage)))
}

/// Does something to the log.
fn on_log(
    stage: &mut Stage,
    operation: u8,
    how: &'static str,
    proof: fn(PathBuf) -> Proof,
) -> Result<Act, Problem> {
    let log = stage.sandbox.log();
    let path = log.display().to_string();
    let act = stage.own([path.as_str()])?.sign(Sign::Uring { operation });
    Ok(act.signs(is_told().then_some(Sign::Tamper { how, path })).proof(proof(log)))
}

/// Connects and sends.
fn sender(stage: &mut Stage) -> Result<Act, Problem> {
    let to = stage.listen(stage.port(41_338), Talk::Listen)?;
    let signs = [Sign::Uring { operation: CONNECT }, Sign::Uring { operation: SEND }];
    let act = stage.own([to])?.signs(signs).signs(is_told().then_some(Sign::Connect { address: to }));
    Ok(act.proof(Proof::Received(4)))
}

/// Whether the kernel tells what an operation is about.
fn is_told() -> bool {
    let release = vitals::kernel();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(4))
}

fn text(path: PathBuf) -> Result<CString, Problem> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Problem::Refused(path.display().to_string()))
}

fn open(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let path = text(sandbox.readable(word(words, 0)?)?)?;
    let how = word(words, 1)?;
    let ring = step("making a ring", Ring::new(how == "polled"))?;
    let words = [0_u64; 3];
    let mut operation = Operation {
        opcode: OPENAT,
        fd: libc::AT_FDCWD,
        address: path.as_ptr() as u64,
        ..Operation::default()
    };
    if how == "openat2" {
        // The three words are an `open_how` for reading.
        (operation.opcode, operation.offset, operation.len) = (OPENAT2, words.as_ptr() as u64, 24);
    }
    // SAFETY: path and words live until the operation is over.
    step("opening", unsafe { ring.submit(operation) }).map(drop)
}

fn unlink(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    to_log(sandbox, words, Operation { opcode: UNLINKAT, ..Operation::default() })
}

fn rename(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let mut other = traces::log(sandbox, words)?.into_os_string();
    other.push(".1");
    let other = text(other.into())?;
    let len = libc::AT_FDCWD.cast_unsigned();
    // The new name lives until the operation is over.
    let operation =
        Operation { opcode: RENAMEAT, len, offset: other.as_ptr() as u64, ..Operation::default() };
    to_log(sandbox, words, operation)
}

fn empty(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let rw_flags = (libc::O_WRONLY | libc::O_TRUNC).cast_unsigned();
    to_log(sandbox, words, Operation { opcode: OPENAT, rw_flags, ..Operation::default() })
}

/// Does this to the log.
fn to_log(sandbox: &Sandbox, words: &[String], operation: Operation) -> Result<(), Problem> {
    let path = text(traces::log(sandbox, words)?)?;
    let ring = step("making a ring", Ring::new(false))?;
    let operation = Operation { fd: libc::AT_FDCWD, address: path.as_ptr() as u64, ..operation };
    // SAFETY: the path lives until the operation is over, and so does what the caller named.
    step("asking the ring", unsafe { ring.submit(operation) }).map(drop)
}

fn send(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let to: SocketAddr = address(sandbox, words, 0)?;
    let IpAddr::V4(ip) = to.ip() else { return Err(Problem::Refused(to.to_string())) };
    let ring = step("making a ring", Ring::new(false))?;
    // SAFETY: the call takes integers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return step("making a socket", Err(std::io::Error::last_os_error()));
    }
    let peer = libc::sockaddr_in {
        sin_family: 2,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(ip).to_be() },
        sin_zero: [0; 8],
    };
    let connect = Operation {
        opcode: CONNECT,
        fd,
        offset: size_of_val(&peer) as u64,
        address: (&raw const peer) as u64,
        ..Operation::default()
    };
    // SAFETY: the address lives until the operation is over.
    step("connecting", unsafe { ring.submit(connect) })?;
    let bytes = *b"loot";
    let send = Operation { opcode: SEND, fd, address: bytes.as_ptr() as u64, len: 4, ..Operation::default() };
    // SAFETY: the bytes live until the operation is over.
    step("sending", unsafe { ring.submit(send) }).map(drop)
}
