//! A ring of io_uring with room for one operation at a time: enough to do without system calls what they would do.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Operations, by the kernel's numbers.
pub(super) const CONNECT: u8 = 16;
pub(super) const OPENAT: u8 = 18;
pub(super) const SEND: u8 = 26;
pub(super) const OPENAT2: u8 = 28;
pub(super) const RENAMEAT: u8 = 35;
pub(super) const UNLINKAT: u8 = 36;

const SETUP_SQPOLL: u32 = 2;
const ENTER_GETEVENTS: u32 = 1;
const ENTER_SQ_WAKEUP: u32 = 2;
const OFF_SQ: i64 = 0;
const OFF_CQ: i64 = 0x800_0000;
const OFF_SQES: i64 = 0x1000_0000;
const PAGE: usize = 4096;

/// A submission: the fields of `io_uring_sqe` that are used here.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Operation {
    pub(super) opcode: u8,
    pub(super) flags: u8,
    pub(super) priority: u16,
    pub(super) fd: i32,
    /// `off`, or `addr2`.
    pub(super) offset: u64,
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) rw_flags: u32,
    pub(super) user_data: u64,
    pub(super) rest: [u64; 3],
}

const _: () = assert!(size_of::<Operation>() == 64);

/// The ring.
pub(super) struct Ring {
    fd: OwnedFd,
    submissions: *mut u8,
    completions: *mut u8,
    entries: *mut u8,
    /// `io_uring_params`: 10 words, offsets of the submission ring from the 10th, of the completion ring from the 20th.
    parameters: [u32; 30],
}

impl Ring {
    /// A ring; with `polled` a thread of the kernel takes operations from it without a call.
    pub(super) fn new(polled: bool) -> io::Result<Self> {
        let mut parameters = [0_u32; 30];
        if polled {
            // Flags, and milliseconds until the thread sleeps.
            (parameters[2], parameters[4]) = (SETUP_SQPOLL, 2000);
        }
        // SAFETY: the parameters have the 120 bytes of an `io_uring_params`, and outlive the call.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let map = |offset| {
            // SAFETY: a new mapping at an address that the kernel chooses; four entries fit in a page.
            let at = unsafe {
                libc::mmap(
                    null_mut(),
                    PAGE,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_POPULATE,
                    fd.as_raw_fd(),
                    offset,
                )
            };
            if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast::<u8>()) }
        };
        let (submissions, completions, entries) = (map(OFF_SQ)?, map(OFF_CQ)?, map(OFF_SQES)?);
        Ok(Self { fd, submissions, completions, entries, parameters })
    }

    /// A counter of one of the rings, by its place in the parameters.
    fn counter(&self, ring: *mut u8, place: usize) -> &AtomicU32 {
        let offset = self.parameters[place] as usize;
        assert!(offset + 4 <= PAGE, "the kernel keeps the counters in the first page");
        // SAFETY: the offset lies in the mapping, which lives until the process ends, and is aligned to four bytes.
        unsafe { AtomicU32::from_ptr(ring.add(offset).cast()) }
    }

    /// Does one operation and gives its result.
    ///
    /// # Safety
    /// What the operation points to must be valid until this returns.
    pub(super) unsafe fn submit(&self, operation: Operation) -> io::Result<i32> {
        let tail = self.counter(self.submissions, 11);
        let (at, mask) =
            (tail.load(Ordering::Relaxed), self.counter(self.submissions, 12).load(Ordering::Relaxed));
        let index = at & mask;
        // SAFETY: four entries of 64 bytes fit in the page, and the array of indices lies in the first one.
        unsafe {
            self.entries.cast::<Operation>().add(index as usize & 3).write(operation);
            let array = self.submissions.add(self.parameters[16] as usize).cast::<u32>();
            array.add(index as usize & 3).write_volatile(index);
        }
        tail.store(at.wrapping_add(1), Ordering::Release);
        let polled = self.parameters[2] & SETUP_SQPOLL != 0;
        let flags = if polled { ENTER_SQ_WAKEUP } else { ENTER_GETEVENTS };
        let asleep = self.counter(self.submissions, 14).load(Ordering::Acquire) & 1 != 0;
        if !polled || asleep {
            let wanted = u32::from(!polled);
            // SAFETY: the call takes integers; no signal mask is passed.
            let entered = unsafe {
                libc::syscall(
                    libc::SYS_io_uring_enter,
                    self.fd.as_raw_fd(),
                    1,
                    wanted,
                    flags,
                    0_usize,
                    0_usize,
                )
            };
            if entered < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let (head, end) = (self.counter(self.completions, 20), self.counter(self.completions, 21));
        let at = head.load(Ordering::Relaxed);
        for _ in 0..500 {
            if end.load(Ordering::Acquire) != at {
                let mask = self.counter(self.completions, 22).load(Ordering::Relaxed);
                let place = self.parameters[25] as usize + (at & mask) as usize * 16 + 8;
                assert!(place + 4 <= PAGE, "eight completions fit in a page");
                // SAFETY: the place lies in the mapping; the kernel has written this completion.
                let result = unsafe { self.completions.add(place).cast::<i32>().read_volatile() };
                head.store(at.wrapping_add(1), Ordering::Release);
                return if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}
