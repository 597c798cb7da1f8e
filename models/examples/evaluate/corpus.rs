//! Lines of text to traces, grouped by set and program.

use std::collections::BTreeMap;

use models::event::SyscallWindow;
use models::features::{self, Vector};
use models::schema::{self, BIGRAMS};
use models::sequence::{START, Symbol};
use models::syscalls;
use models::window::Window;

/// Calls in a short window, and how far apart two of them begin.
const WINDOW: usize = 100;
const STRIDE: usize = 50;

/// One trace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trace {
    /// An attack, or normal.
    pub(crate) attack: bool,
    /// How often this very trace was recorded.
    pub(crate) count: u32,
    /// Its calls, by raw name.
    pub(crate) symbols: Vec<Symbol>,
    /// Its calls, by schema slot.
    slots: Vec<u16>,
}

/// All traces of one program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    /// Normal traces to learn from.
    pub(crate) fit: Vec<Trace>,
    /// Normal traces to calibrate with.
    pub(crate) calibrate: Vec<Trace>,
    /// Traces to score.
    pub(crate) test: Vec<Trace>,
}

/// Set and program to traces.
pub(crate) type Corpus = BTreeMap<(String, String), Program>;

/// Reads `set program label split count syscalls`, separated by tabs; lines that are not that are told and left out.
pub(crate) fn parse(text: &str) -> Corpus {
    let mut corpus = Corpus::new();
    let mut names: BTreeMap<String, (Symbol, u16)> = BTreeMap::new();
    for (number, line) in
        text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty())
    {
        let fields: Vec<&str> = line.split('\t').collect();
        let [set, program, label, split, count, calls] = fields[..] else {
            eprintln!("line {}: {} fields instead of 6, left out", number + 1, fields.len());
            continue;
        };
        let attack = label != "normal";
        if attack && split != "test" {
            eprintln!("line {}: an attack in `{split}`, left out", number + 1);
            continue;
        }
        let entry = corpus.entry((set.to_owned(), program.to_owned())).or_default();
        let part = match split {
            "fit" => &mut entry.fit,
            "calibrate" => &mut entry.calibrate,
            "test" => &mut entry.test,
            other => {
                eprintln!("line {}: no split is called `{other}`, left out", number + 1);
                continue;
            }
        };
        let (symbols, slots) = calls.split_whitespace().map(|name| code(&mut names, name)).unzip();
        part.push(Trace { attack, count: count.parse().unwrap_or(1).max(1), symbols, slots });
    }
    corpus
}

/// A symbol for the raw name, numbered as names appear, and its slot. Names beyond the reach of a symbol share one.
fn code(names: &mut BTreeMap<String, (Symbol, u16)>, name: &str) -> (Symbol, u16) {
    if let Some(code) = names.get(name) {
        return *code;
    }
    let symbol = Symbol::try_from(names.len()).unwrap_or(Symbol::MAX).min(START - 1);
    let code = (symbol, syscalls::slot_of_any(name).unwrap_or(syscalls::UNMAPPED));
    names.insert(name.to_owned(), code);
    code
}

impl Trace {
    /// The whole trace as one window.
    pub(crate) fn whole(&self) -> Vector {
        vector(&self.slots)
    }

    /// The trace in short windows; at least one.
    pub(crate) fn windows(&self) -> Vec<Vector> {
        let last = self.slots.len().saturating_sub(WINDOW);
        let starts = (0..=last).step_by(STRIDE);
        starts.map(|from| vector(&self.slots[from..self.slots.len().min(from + WINDOW)])).collect()
    }
}

/// The product's features of some calls. The corpus has no clock, so the time features are left at zero.
fn vector(slots: &[u16]) -> Vector {
    let mut counts = SyscallWindow::empty(1, 0);
    for slot in slots {
        match counts.calls.get_mut(usize::from(*slot)) {
            Some(count) => *count += 1,
            None => counts.unmapped += 1,
        }
    }
    for pair in slots.windows(2).filter(|pair| !pair.contains(&syscalls::UNMAPPED)) {
        counts.bigrams[(usize::from(pair[0]) * 337 + usize::from(pair[1])) % BIGRAMS] += 1;
    }
    let mut window = Window::new(1, 0);
    window.add_syscalls(&counts);
    let mut vector = features::extract(&window);
    vector[schema::index("window_duration_ms")..].fill(0.0);
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_lines_are_read_and_bad_ones_left_out() {
        let text = "# head\na\tb\tnormal\tfit\t3\tread stat64 strange\na\tb\tattack:X\tfit\t1\tread\nrubbish\n\
                    a\tb\tattack:X\ttest\tmany\t\na\tb\tnormal\tlater\t1\tread\n";
        let corpus = parse(text);
        let program = &corpus[&("a".to_owned(), "b".to_owned())];
        assert_eq!((program.fit.len(), program.calibrate.len(), program.test.len()), (1, 0, 1));
        let trace = &program.fit[0];
        assert_eq!((trace.count, &trace.symbols[..]), (3, &[0, 1, 2][..]));
        assert_eq!(trace.slots, [0, 4, syscalls::UNMAPPED]);
        assert_eq!(program.test[0].windows().len(), 1, "an empty trace is one empty window");
    }

    #[test]
    fn windows_overlap_by_half() {
        let trace = Trace { attack: false, count: 1, symbols: vec![0; 260], slots: vec![0; 260] };
        assert_eq!(trace.windows().len(), 4);
        assert_eq!(trace.windows()[0], trace.whole());
    }
}
