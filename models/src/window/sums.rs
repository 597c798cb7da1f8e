use crate::schema::LOLBINS;

/// Sums and flags of a window.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(
    missing_docs,
    reason = "each is the raw value of the feature of nearly the same name in `schema`, or evidence"
)]
pub struct Sums {
    pub connections: u32,
    pub bytes_sent: u64,
    pub bytes_recv: u64,
    pub tor_port: bool,
    pub rfc1918: bool,
    pub dns_queries: u32,
    pub dns_bytes: u64,
    pub dns_bytes_max: u32,
    pub system_dir_files: u32,
    pub executables_opened: u32,
    pub files_written: u32,
    pub path_entropy_sum: f32,
    pub paths: u32,
    pub log_deletions: u32,
    pub time_changes: u32,
    pub accepts: u32,
    pub uring: u32,
    pub children: u32,
    pub shell: bool,
    pub root_gained: bool,
    pub injected: bool,
    pub namespace_changes: u32,
    pub pivot_root: bool,
    pub lolbins: [u16; LOLBINS.len()],
}

impl Sums {
    /// Adds what a child did for this process. What the kernel counts (bytes, accepted connections, `io_uring`) is counted
    /// by process, and stays the child's.
    pub(super) fn absorb(&mut self, child: &Self) {
        for (mine, theirs) in [
            (&mut self.connections, child.connections),
            (&mut self.dns_queries, child.dns_queries),
            (&mut self.system_dir_files, child.system_dir_files),
            (&mut self.executables_opened, child.executables_opened),
            (&mut self.files_written, child.files_written),
            (&mut self.paths, child.paths),
            (&mut self.log_deletions, child.log_deletions),
            (&mut self.time_changes, child.time_changes),
            (&mut self.children, child.children),
            (&mut self.namespace_changes, child.namespace_changes),
        ] {
            *mine = mine.saturating_add(theirs);
        }
        self.dns_bytes = self.dns_bytes.saturating_add(child.dns_bytes);
        self.dns_bytes_max = self.dns_bytes_max.max(child.dns_bytes_max);
        self.path_entropy_sum += child.path_entropy_sum;
        self.tor_port |= child.tor_port;
        self.rfc1918 |= child.rfc1918;
        self.shell |= child.shell;
        self.root_gained |= child.root_gained;
        self.injected |= child.injected;
        self.pivot_root |= child.pivot_root;
        for (mine, theirs) in self.lolbins.iter_mut().zip(child.lolbins) {
            *mine = mine.saturating_add(theirs);
        }
    }
}
