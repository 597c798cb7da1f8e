//! What the kernel shall do with the order of a process's calls.

use super::Program;

/// How the order of one process's calls is followed in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow {
    /// The process.
    pub tgid: u32,
    /// The kernel's number of its program's table.
    pub table: Option<u16>,
    /// Its grams are counted for learning.
    pub learn: bool,
}

/// What the kernel shall do with the order of this program's calls.
pub(super) fn how(program: &Program, tgid: u32) -> Follow {
    match &program.baseline {
        Some(baseline) if !program.learns() => Follow { tgid, table: baseline.table, learn: false },
        _ => Follow { tgid, table: None, learn: true },
    }
}
