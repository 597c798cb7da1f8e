//! What traits are in plain words, for the explanation.

use crate::novelty::{Kind, trait_id};
use crate::schema::SYSCALL_SLOTS;
use crate::syscalls;

use super::Window;

impl Window {
    /// The value of a trait in plain words, where it was kept.
    #[must_use]
    pub fn text(&self, id: u64) -> Option<&str> {
        if Kind::of(id) == Some(Kind::Syscall) {
            let mut names = (0..SYSCALL_SLOTS).map(syscalls::name);
            return names.find(|name| trait_id(Kind::Syscall, name) == id);
        }
        self.texts.get(id).map(|shown| &*shown.text)
    }

    /// The command line of the program whose start a trait is, where it was kept.
    #[must_use]
    pub fn command(&self, id: u64) -> Option<&str> {
        self.commands.get(id)
    }

    /// `CLOCK_BOOTTIME` at a trait's first event in this window, nanoseconds; `None` for what was only counted.
    #[must_use]
    pub fn first_ns(&self, id: u64) -> Option<u64> {
        self.texts.get(id).map(|shown| shown.first_ns).filter(|ns| *ns > 0)
    }
}

/// Traits whose value is kept as text.
const TEXTS_MAX: usize = 24;

/// A trait's value in plain words.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) id: u64,
    pub(super) text: Box<str>,
    pub(super) first_ns: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Texts(Vec<Shown>);

impl Texts {
    pub(super) fn get(&self, id: u64) -> Option<&Shown> {
        self.0.iter().find(|shown| shown.id == id)
    }

    /// Keeps one that is not there yet; gives how many found no room. A call needs none: its number names it.
    pub(super) fn keep(&mut self, id: u64, text: &str, first_ns: u64) -> u64 {
        if Kind::of(id) == Some(Kind::Syscall) {
            return 0;
        }
        if self.0.len() >= TEXTS_MAX {
            return 1;
        }
        self.0.push(Shown { id, text: text.into(), first_ns });
        0
    }
}

/// Command lines kept.
const COMMANDS_MAX: usize = 8;

/// Command lines of programs that were started, by the trait that each is evidence of.
#[derive(Clone, Debug, Default)]
pub(super) struct Commands(Vec<(u64, String)>);

impl Commands {
    pub(super) fn get(&self, id: u64) -> Option<&str> {
        self.0.iter().find(|(of, _)| *of == id).map(|(_, command)| command.as_str())
    }

    /// Keeps the first of a trait; gives how many found no room.
    pub(super) fn keep(&mut self, id: u64, arguments: &str) -> u64 {
        if arguments.is_empty() || self.get(id).is_some() {
            return 0;
        }
        if self.0.len() >= COMMANDS_MAX {
            return 1;
        }
        self.0.push((id, command_line(arguments)));
        0
    }
}

/// Characters of a command line that are told.
const SHOWN_MAX: usize = 160;

/// A command line for people, whose arguments a NUL ends: with quotes where an argument has spaces, and cut where it is
/// long.
fn command_line(arguments: &str) -> String {
    let mut line = String::new();
    for argument in arguments.split_terminator('\0') {
        if !line.is_empty() {
            line.push(' ');
        }
        let quotes = argument.is_empty() || argument.contains(char::is_whitespace);
        if quotes {
            line.push('\'');
        }
        line.extend(argument.chars().map(|c| if c.is_control() { ' ' } else { c }));
        if quotes {
            line.push('\'');
        }
    }
    if let Some((end, _)) = line.char_indices().nth(SHOWN_MAX) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::{COMMANDS_MAX, SHOWN_MAX, command_line};
    use crate::event::{Comm, Event, EventKind, SyscallWindow};
    use crate::novelty::{Kind, trait_id};
    use crate::syscalls;
    use crate::window::Window;

    #[test]
    fn command_lines_are_quoted_and_cut_and_few_are_kept() {
        assert_eq!(command_line("sh\0-c\0id; ls\n\0\0"), "sh -c 'id; ls ' ''");
        assert_eq!(command_line(""), "");
        let long = command_line(&"ä".repeat(500));
        assert_eq!((long.chars().count(), long.ends_with('…')), (SHOWN_MAX + 1, true));
        let mut window = Window::new(1, 0);
        for n in 0..=COMMANDS_MAX {
            window.program_started(&format!("/opt/{n}"), &format!("{n}"));
        }
        window.program_started("/opt/0", "another time");
        let id = |n: usize| trait_id(Kind::Exec, &format!("/opt/{n}"));
        assert_eq!((window.command(id(0)), window.command(id(COMMANDS_MAX))), (Some("0"), None));
        assert_eq!(window.overflow, 1);
    }

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
