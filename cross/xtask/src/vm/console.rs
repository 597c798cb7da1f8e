//! What a machine printed on its serial console, to results.

use crate::suite::Totals;

/// What began or ended, as `init.sh` prints it.
const MARK: &str = "@@vm ";

/// A layer and its hook, as `behaveguard doctor` tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) name: String,
    pub(super) backend: String,
    pub(super) failed: Vec<String>,
}

/// One program that ran in the machine.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) lines: Vec<String>,
    /// `None` when the machine ended first.
    pub(super) code: Option<i32>,
}

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Console {
    /// What `uname -r` said.
    pub(super) release: String,
    pub(super) parts: Vec<Part>,
    /// Lines outside of any part: the kernel's last words.
    pub(super) outside: Vec<String>,
    /// It did not end by itself.
    pub(super) hung: bool,
    /// How long the machine ran.
    pub(super) seconds: u64,
}

impl Console {
    /// Takes the next line.
    pub(super) fn line(&mut self, line: &str) {
        let line = line.trim_end();
        // A kernel or a program may leave the cursor in the middle of a line.
        let Some((before, mark)) = line.split_once(MARK) else { return self.text(line) };
        if !before.is_empty() {
            self.text(before);
        }
        let mut words = mark.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("kernel"), Some(release), _) => self.release = release.to_owned(),
            (Some("begin"), Some(name), _) => {
                self.parts.push(Part { name: name.to_owned(), ..Part::default() });
            }
            (Some("end"), Some(name), Some(code)) => {
                if let Some(part) = self.parts.last_mut().filter(|part| part.name == name) {
                    part.code = code.parse().ok();
                }
            }
            _ => self.text(line),
        }
    }

    fn text(&mut self, line: &str) {
        match self.parts.last_mut().filter(|part| part.code.is_none()) {
            Some(part) => part.lines.push(line.to_owned()),
            None => self.outside.push(line.to_owned()),
        }
    }

    /// A part by its name.
    pub(super) fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// What passed and failed of `expected`: a test harness's own counts, else one for each part. A part that did not
    /// end, or ended badly without saying what failed, is a failure.
    pub(super) fn totals(&self, expected: &[&str]) -> Totals {
        let mut all = Totals { failed: u64::from(self.hung), ..Totals::default() };
        for name in expected {
            let mut totals = Totals::default();
            let part = self.part(name);
            part.iter().flat_map(|part| &part.lines).for_each(|line| totals.add_line(line));
            let counted = totals.passed + totals.failed > 0;
            // A doctor that names no layer is no doctor.
            let empty = *name == "doctor" && self.layers().is_empty();
            match part.and_then(|part| part.code).filter(|_| !empty) {
                Some(0) if !counted => totals.passed = 1,
                Some(0) => {}
                _ if totals.failed == 0 => totals.failed = 1,
                _ => {}
            }
            all.add(&totals);
        }
        all
    }

    /// The layers of `behaveguard doctor`.
    pub(super) fn layers(&self) -> Vec<Layer> {
        let mut layers: Vec<Layer> = Vec::new();
        for line in self.part("doctor").iter().flat_map(|part| &part.lines) {
            if line.starts_with("map ") {
                break;
            }
            match line.strip_prefix(' ').map(str::trim_start) {
                Some(more) => {
                    if let (Some(layer), Some(failed)) = (layers.last_mut(), more.strip_prefix("not ")) {
                        layer.failed.push(failed.to_owned());
                    }
                }
                None => {
                    let mut words = line.split_whitespace();
                    if let (Some(name), Some(backend), None) = (words.next(), words.next(), words.next())
                        && name != "Linux"
                    {
                        let (name, backend) = (name.to_owned(), backend.to_owned());
                        layers.push(Layer { name, backend, failed: Vec::new() });
                    }
                }
            }
        }
        layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &str) -> Console {
        let mut console = Console::default();
        text.lines().for_each(|line| console.line(line));
        console
    }

    fn check(text: &str, passed: u64, failed: u64) {
        let totals = console(text).totals(&["tests", "agent"]);
        assert_eq!(totals, Totals { passed, failed }, "{text}");
    }

    #[test]
    fn tests_are_counted_by_their_harness_and_other_parts_by_their_exit_code() {
        let tests = "@@vm begin tests\r\ntest result: FAILED. 3 passed; 2 failed; 0 ignored\r\n@@vm end tests 101\r\n";
        check(&format!("{tests}@@vm begin agent\nhello\n@@vm end agent 0\n"), 4, 2);
        check(&format!("{tests}@@vm begin agent\n@@vm end agent 1\n"), 3, 3);
    }

    #[test]
    fn what_did_not_end_or_did_not_begin_has_failed() {
        check("", 0, 2);
        check("@@vm begin tests\nKernel panic", 0, 2);
        let silent = console("@@vm begin doctor\n@@vm end doctor 0");
        assert_eq!(silent.totals(&["doctor"]), Totals { passed: 0, failed: 1 });
        check(
            "@@vm begin tests\ntest result: ok. 3 passed; 0 failed\n@@vm begin agent\n@@vm end agent 0",
            4,
            1,
        );
        check("@@vm begin tests\n@@vm end tests 0\nno newline@@vm begin agent\n@@vm end agent 0", 2, 0);
    }

    #[test]
    fn the_layers_of_the_doctor_are_read_with_what_failed_and_why() {
        let text = "@@vm kernel 5.10.0\n@@vm begin doctor\nLinux 5.10.0\n\nsyscall           tp_btf/sys_enter\n\
                    dns               none\n                  not tail_call: load: no\n                  less is seen: all\n\n\
                    map                max entries   locked bytes\nWINDOWS 1 2\n@@vm end doctor 0\n";
        let console = console(text);
        let layers = console.layers();
        assert_eq!(console.release, "5.10.0");
        assert_eq!(console.totals(&["doctor"]), Totals { passed: 1, failed: 0 });
        assert_eq!(layers.len(), 2);
        assert_eq!((&*layers[0].name, &*layers[0].backend), ("syscall", "tp_btf/sys_enter"));
        assert_eq!(layers[1].failed, ["tail_call: load: no"]);
    }
}
