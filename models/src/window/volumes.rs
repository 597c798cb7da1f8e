//! How much was moved in a window, as traits.

use crate::event::Volume;
use crate::novelty::Kind;

use super::words::decades;
use super::{SENT_FROM, Sums, Window};

/// The smallest volume that is a trait, bytes.
const VOLUME_FROM: u64 = 1_000_000;

impl Window {
    /// Adds what was read and written in this window, in bytes. Each decade from a megabyte on is a trait, so that less than
    /// what was usual is nothing new.
    pub fn moved(&mut self, volume: Volume) {
        for (bytes, verb) in [(volume.read, "read"), (volume.written, "wrote")] {
            for decade in decades(VOLUME_FROM).take_while(|decade| *decade <= bytes) {
                let text = format!("{verb} {} MB", bytes / 1_000_000);
                self.note(Kind::Volume, &format!("{verb} {decade}"), &text);
            }
        }
    }

    /// Adds that the process, which started its program in this window, sent over connections that it was given, if it sent much
    /// and neither made nor took one: so a tool that every script uses carries data away where a shell has put a socket for its
    /// output.
    pub fn relayed(&mut self) {
        let Sums { bytes_sent, connections, accepts, .. } = self.sums;
        if bytes_sent >= SENT_FROM && connections == 0 && accepts == 0 {
            self.note(Kind::Relayed, "relayed", &format!("{} kB", bytes_sent / 1000));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Comm, Event, EventKind, SyscallWindow};
    use crate::novelty::trait_id;

    #[test]
    fn a_volume_is_new_only_by_its_decade() {
        let traits = |read, written| {
            let mut window = Window::new(1, 0);
            window.moved(Volume { read, written });
            window.traits().to_vec()
        };
        assert!(traits(999_999, 0).is_empty());
        assert_eq!(traits(1_000_000, 0), traits(9_999_999, 0));
        let usual = traits(30_000_000, 2_000_000);
        assert_eq!(usual.len(), 3);
        assert!(traits(5_000_000, 0).iter().all(|id| usual.contains(id)), "less is nothing new");
        assert!(!traits(100_000_000, 0).iter().all(|id| usual.contains(id)));
        assert!(traits(u64::MAX, u64::MAX).len() < 32);
    }

    #[test]
    fn what_was_sent_by_who_made_no_connection_was_relayed() {
        let relayed = |bytes_sent, connects: bool| {
            let mut window = Window::new(1, 0);
            window.add_syscalls(&SyscallWindow { bytes_sent, ..SyscallWindow::empty(1, 1) });
            if connects {
                let kind = EventKind::Connect { addr: "10.0.0.1".parse().unwrap(), port: 443 };
                window.add(&Event { boot_ns: 1, tgid: 1, tid: 1, uid: 0, comm: Comm::new(), kind });
            }
            window.relayed();
            window.text(trait_id(Kind::Relayed, "relayed")).map(str::to_owned)
        };
        assert_eq!(relayed(1_500_000, false).as_deref(), Some("1500 kB"));
        assert_eq!((relayed(99_999, false), relayed(1_500_000, true)), (None, None));
    }
}
