//! What traits are in plain words, for the explanation.

use crate::novelty::Kind;

/// Traits whose value is kept as text.
const TEXTS_MAX: usize = 24;

/// A trait's value in plain words.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) id: u64,
    pub(super) text: String,
    pub(super) first_ns: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Texts(heapless::Vec<Shown, TEXTS_MAX>);

impl Texts {
    pub(super) fn get(&self, id: u64) -> Option<&Shown> {
        self.0.iter().find(|shown| shown.id == id)
    }

    /// Keeps one that is not there yet; gives how many found no room. A call needs none: its number names it.
    pub(super) fn keep(&mut self, shown: Shown) -> u64 {
        if Kind::of(shown.id) == Some(Kind::Syscall) {
            return 0;
        }
        u64::from(self.0.push(shown).is_err())
    }
}

#[cfg(test)]
mod tests {
    use crate::event::{Comm, Event, EventKind, SyscallWindow};
    use crate::novelty::{Kind, trait_id};
    use crate::syscalls;
    use crate::window::Window;

    #[test]
    fn every_call_of_a_full_window_is_named_and_takes_no_room_for_texts() {
        let mut window = Window::new(1, 0);
        let mut part = SyscallWindow::empty(1, 0);
        part.calls[..100].fill(1);
        window.add_syscalls(&part);
        let kind = EventKind::Open { path: "/etc/shadow".try_into().unwrap(), flags: 0, sensitive: true };
        let open = Event { boot_ns: 1, tgid: 1, tid: 1, uid: 0, comm: Comm::new(), kind };
        let opened = window.add(&open).unwrap();
        assert_eq!(window.text(opened), Some("/etc/shadow"));
        for slot in 0..100 {
            let name = syscalls::name(slot);
            assert_eq!(window.text(trait_id(Kind::Syscall, name)), Some(name));
        }
    }
}
