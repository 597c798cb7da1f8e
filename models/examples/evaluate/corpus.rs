//! Lines of text to traces, grouped by set and program.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

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

/// Traces of one program that are kept for each part, and in the test part for each class: more are thinned evenly.
/// They are what a quarter of an hour scores.
const TRACES_MAX: usize = 6000;
/// A trace counts so often at most.
const COUNT_MAX: u32 = 10_000;
/// Lines whose mistake is told; of more only the number.
const TOLD_MAX: usize = 20;

/// Reads `set program label split count syscalls`, separated by tabs; lines that are not that are told and left out.
///
/// # Errors
/// When the text cannot be read.
pub(crate) fn parse(mut text: impl BufRead) -> io::Result<Corpus> {
    let mut corpus = Corpus::new();
    let mut names: BTreeMap<String, (Symbol, u16)> = BTreeMap::new();
    let (mut bytes, mut number, mut wrong) = (Vec::new(), 0, 0);
    while text.read_until(b'\n', &mut bytes)? > 0 {
        number += 1;
        let line = String::from_utf8_lossy(&bytes);
        let line = line.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n']);
        let read = if line.starts_with('#') || line.is_empty() {
            Ok(())
        } else {
            take(line, &mut corpus, &mut names)
        };
        if let Err(reason) = read {
            wrong += 1;
            if wrong <= TOLD_MAX {
                eprintln!("line {number}: {reason}");
            }
        }
        bytes.clear();
    }
    if wrong > TOLD_MAX {
        eprintln!("and {} lines more that are not as they should be", wrong - TOLD_MAX);
    }
    for ((set, name), program) in &mut corpus {
        let before = program.fit.len() + program.calibrate.len() + program.test.len();
        program.fit = thinned(std::mem::take(&mut program.fit));
        program.calibrate = thinned(std::mem::take(&mut program.calibrate));
        let (attacks, normal) = std::mem::take(&mut program.test).into_iter().partition(|trace| trace.attack);
        program.test = [thinned(normal), thinned(attacks)].concat();
        let after = program.fit.len() + program.calibrate.len() + program.test.len();
        if after < before {
            eprintln!(
                "{set}/{name}: {after} of {before} traces are used, at most {TRACES_MAX} for each part"
            );
        }
    }
    Ok(corpus)
}

/// Reads one line into its program.
fn take(line: &str, corpus: &mut Corpus, names: &mut BTreeMap<String, (Symbol, u16)>) -> Result<(), String> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [set, program, label, split, count, calls] = fields[..] else {
        return Err(format!("{} fields instead of 6, left out", fields.len()));
    };
    let attack = label != "normal";
    if attack && split != "test" {
        return Err(format!("an attack in `{split}`, left out"));
    }
    if !["fit", "calibrate", "test"].contains(&split) {
        return Err(format!("no split is called `{split}`, left out"));
    }
    let times = count.parse().ok().filter(|times| (1..=COUNT_MAX).contains(times));
    let (symbols, slots) = calls.split_whitespace().map(|name| code(names, name)).unzip();
    let entry = corpus.entry((set.to_owned(), program.to_owned())).or_default();
    let part = match split {
        "fit" => &mut entry.fit,
        "calibrate" => &mut entry.calibrate,
        _ => &mut entry.test,
    };
    part.push(Trace { attack, count: times.unwrap_or(1), symbols, slots });
    let told = || format!("`{count}` is no count from 1 to {COUNT_MAX}: the trace counts once");
    times.map(|_| ()).ok_or_else(told)
}

/// At most [`TRACES_MAX`], from the whole length.
fn thinned(traces: Vec<Trace>) -> Vec<Trace> {
    let all = traces.len();
    let kept = all.min(TRACES_MAX);
    let keeps = move |at: usize| at * kept / all != (at + 1) * kept / all;
    traces.into_iter().enumerate().filter(|(at, _)| keeps(*at)).map(|(_, trace)| trace).collect()
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
        let corpus = parse(text.as_bytes()).unwrap();
        let program = &corpus[&("a".to_owned(), "b".to_owned())];
        assert_eq!((program.fit.len(), program.calibrate.len(), program.test.len()), (1, 0, 1));
        let trace = &program.fit[0];
        assert_eq!((trace.count, &trace.symbols[..]), (3, &[0, 1, 2][..]));
        assert_eq!(trace.slots, [0, 4, syscalls::UNMAPPED]);
        assert_eq!(program.test[0].windows().len(), 1, "an empty trace is one empty window");
    }

    #[test]
    fn line_ends_counts_and_bytes_of_any_kind_are_read() {
        let text =
            b"\xef\xbb\xbfa\tb\tnormal\tfit\t0\tread close\r\na\tb\tnormal\tfit\t4294967296\tre\xffd\r\n\
            a\tb\tattack\ttest\t2\tread\r\n";
        let corpus = parse(&text[..]).unwrap();
        let program = &corpus[&("a".to_owned(), "b".to_owned())];
        assert_eq!(program.fit.iter().map(|trace| trace.count).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(program.fit[0].slots.len(), 2);
        assert_eq!((program.fit[1].slots[0], program.test[0].count), (syscalls::UNMAPPED, 2));
    }

    #[test]
    fn of_too_many_traces_the_whole_length_is_kept_evenly() {
        let text: String = (0..2 * TRACES_MAX + 2)
            .map(|at| format!("a\tb\tnormal\tfit\t{}\tread\n", 1 + at / (TRACES_MAX + 1)))
            .chain((0..3).map(|_| "a\tb\tattack\ttest\t1\tread\n".to_owned()))
            .collect();
        let program = &parse(text.as_bytes()).unwrap()[&("a".to_owned(), "b".to_owned())];
        assert_eq!((program.fit.len(), program.test.len()), (TRACES_MAX, 3));
        assert_eq!(program.fit.iter().filter(|trace| trace.count == 1).count(), TRACES_MAX / 2);
    }

    #[test]
    fn windows_overlap_by_half() {
        let trace = Trace { attack: false, count: 1, symbols: vec![0; 260], slots: vec![0; 260] };
        assert_eq!(trace.windows().len(), 4);
        assert_eq!(trace.windows()[0], trace.whole());
    }
}
