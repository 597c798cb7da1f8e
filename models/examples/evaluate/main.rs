//! A corpus of labelled traces to the quality of the original design, of ours, and of each detector alone.
//!
//! `evaluate [FILE]` reads the file, or standard input, and prints a table and one line of JSON. `cargo xtask eval`
//! runs it. Everything is seeded: the same corpus gives the same numbers.

mod corpus;
mod detectors;
mod metrics;

use std::fs::File;
use std::io::{self, BufReader};
use std::process::ExitCode;

use corpus::{Corpus, Program};
use detectors::Raw;
use metrics::Scored;
use models::calibration::{Calibration, DetectorCalibration, weight};

const TARGETS: [f64; 3] = [0.05, 0.01, 0.001];

/// One line of the table.
struct Row {
    set: String,
    program: String,
    config: String,
    weighted: bool,
    auc: f64,
    interval: (f64, f64),
    detection: [f64; 3],
    false_positives: [f64; 3],
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the evaluation failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let corpus = match std::env::args().nth(1) {
        Some(path) => corpus::parse(BufReader::new(File::open(path)?)),
        None => corpus::parse(std::io::stdin().lock()),
    };
    let rows = evaluate(corpus?);
    print!("{}", table(&rows));
    println!("{}", json(&rows));
    if rows.is_empty() {
        let needed = "no program could be scored. A line is `set program label split count syscalls` with tabs between, its \
                      label `normal` or an attack's name, its split `fit`, `calibrate` or `test`; a program needs two normal \
                      traces in `fit`, and in `test` a normal one and an attack";
        return Err(io::Error::new(io::ErrorKind::InvalidData, needed));
    }
    Ok(())
}

fn evaluate(corpus: Corpus) -> Vec<Row> {
    let mut rows = Vec::new();
    for ((set, name), mut program) in corpus {
        if let Err(reason) = prepare(&mut program) {
            eprintln!("{set}/{name}: skipped, {reason}");
            continue;
        }
        eprintln!(
            "{set}/{name}: {} traces to learn from, {} to calibrate, {} to score",
            program.fit.len(),
            program.calibrate.len(),
            program.test.len()
        );
        let (raws, original) = detectors::run(&program);
        let single: Vec<(String, Vec<(&Raw, f32)>)> =
            raws.iter().map(|raw| (raw.name.to_owned(), vec![(raw, 1.0)])).collect();
        let ours = raws.iter().map(|raw| (raw, weight(raw.name))).filter(|(_, weight)| *weight > 0.0);
        // What the agent runs on a device: of the order of calls, what the kernel's table gives; `ours` knows more of it.
        let on_device = ours.clone().filter(|(raw, _)| !["surprisal", "pairs"].contains(&raw.name));
        let ours = ours.filter(|(raw, _)| raw.name != "order");
        let configs = [
            ("original".to_owned(), vec![(&original, 1.0)]),
            ("ours".to_owned(), ours.collect()),
            ("agent".to_owned(), on_device.collect()),
        ];
        for weighted in [false, true] {
            for (config, raws) in configs.iter().chain(&single) {
                rows.push(row([&set, &name, config], &program, raws, weighted));
            }
        }
    }
    rows
}

/// Makes sure that every part has something; says why not otherwise.
fn prepare(program: &mut Program) -> Result<(), String> {
    program.fit.retain(|trace| !trace.symbols.is_empty());
    program.calibrate.retain(|trace| !trace.symbols.is_empty());
    if program.calibrate.is_empty() && program.fit.len() >= 2 {
        // Every fifth, so that a recording's drift is in both.
        let mut at = 0;
        let fit = std::mem::take(&mut program.fit);
        (program.calibrate, program.fit) = fit.into_iter().partition(|_| {
            at += 1;
            at % 5 == 0
        });
        if program.calibrate.is_empty() {
            program.calibrate.extend(program.fit.pop());
        }
    }
    let attacks = program.test.iter().filter(|trace| trace.attack).count();
    let normal = program.test.len() - attacks;
    if program.fit.is_empty() || program.calibrate.is_empty() || attacks == 0 || normal == 0 {
        return Err(format!(
            "{} normal traces to learn from, {} to calibrate, {normal} normal and {attacks} attacks to score: \
             each must be at least one",
            program.fit.len(),
            program.calibrate.len()
        ));
    }
    Ok(())
}

/// Fuses as the product does: calibrated z, weighted mean, p-value by the calibration traces.
fn row(names: [&str; 3], program: &Program, raws: &[(&Raw, f32)], weighted: bool) -> Row {
    let detectors = raws.iter().map(|(raw, weight)| {
        let spoken: Vec<f32> = raw.calibrate.iter().flatten().copied().collect();
        DetectorCalibration::fit(raw.name, *weight, &spoken)
    });
    let calibration = Calibration { detectors: detectors.collect(), ..Calibration::default() };
    // A trace on which no detector spoke is as odd as the middle of the calibration.
    let fuse = |at: usize, part: fn(&Raw) -> &[Option<f32>]| {
        let outputs: Vec<(&str, f32)> =
            raws.iter().filter_map(|(raw, _)| Some((raw.name, part(raw)[at]?))).collect();
        calibration.fuse(&outputs).unwrap_or(0.0)
    };
    let times = |count: u32| if weighted { count as usize } else { 1 };
    let fused = program
        .calibrate
        .iter()
        .enumerate()
        .flat_map(|(at, trace)| std::iter::repeat_n(fuse(at, |raw| &raw.calibrate), times(trace.count)));
    let promised = calibration.clone().with_fused(fused);
    let scored: Vec<Scored> = program
        .test
        .iter()
        .enumerate()
        .map(|(at, trace)| Scored {
            score: f64::from(fuse(at, |raw| &raw.test)),
            attack: trace.attack,
            weight: times(trace.count) as f64,
        })
        .collect();
    #[allow(clippy::cast_possible_truncation, reason = "it came from an f32")]
    let alarm = |target: f64| move |score: f64| promised.p_value(score as f32) <= target;
    let [set, name, config] = names.map(str::to_owned);
    Row {
        set,
        program: name,
        config,
        weighted,
        auc: metrics::auc(&scored),
        interval: metrics::interval(&scored, 0x5eed),
        detection: TARGETS.map(|rate| metrics::detection(&scored, rate)),
        false_positives: TARGETS.map(|target| metrics::share(&scored, false, alarm.clone()(target))),
    }
}

fn table(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<10} {:<12} {:<11} {:<8} {:>6} {:>15} {:>6} {:>6} {:>6}   {:>6} {:>6} {:>6}\n",
        "set", "program", "config", "traces", "AUC", "95 %", "dr 5%", "1%", ".1%", "fpr 5%", "1%", ".1%"
    );
    for row in rows {
        let [d5, d1, d01] = row.detection.map(|rate| 100.0 * rate);
        let [f5, f1, f01] = row.false_positives.map(|rate| 100.0 * rate);
        out += &format!(
            "{:<10} {:<12} {:<11} {:<8} {:>6.3} {:>7.3}-{:<7.3} {d5:>6.1} {d1:>6.1} {d01:>6.1}   {f5:>6.1} {f1:>6.1} \
             {f01:>6.1}\n",
            row.set,
            row.program,
            row.config,
            if row.weighted { "natural" } else { "unique" },
            row.auc,
            row.interval.0,
            row.interval.1,
        );
    }
    out
}

fn json(rows: &[Row]) -> String {
    let quote = |text: &str| {
        let escaped = text.chars().flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            c if c.is_control() => vec![' '],
            c => vec![c],
        });
        format!("\"{}\"", escaped.collect::<String>())
    };
    let one = |row: &Row| {
        let ([d5, d1, d01], [f5, f1, f01]) = (row.detection, row.false_positives);
        format!(
            "{{\"set\":{},\"program\":{},\"config\":{},\"weighted\":{},\"auc\":{:.5},\"auc_lo\":{:.5},\"auc_hi\":{:.5},\
             \"dr_5\":{d5:.5},\"dr_1\":{d1:.5},\"dr_01\":{d01:.5},\
             \"fpr_at_5\":{f5:.5},\"fpr_at_1\":{f1:.5},\"fpr_at_01\":{f01:.5}}}",
            quote(&row.set),
            quote(&row.program),
            quote(&row.config),
            row.weighted,
            row.auc,
            row.interval.0,
            row.interval.1,
        )
    };
    format!("{{\"rows\":[{}]}}", rows.iter().map(one).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two programs with a loop of calls each; attacks run another loop. A third program is too small.
    fn corpus() -> String {
        let mut random = fastrand::Rng::with_seed(3);
        let mut text = "# set\tprogram\tlabel\tsplit\tcount\tsyscalls\n".to_owned();
        let mut push = |program: &str, label: &str, split: &str, n: usize, calls: &[&str]| {
            for _ in 0..n {
                let length = random.usize(20..60);
                let trace: Vec<&str> = (0..if calls.is_empty() { 0 } else { length })
                    .map(|at| calls[if random.u8(..9) == 0 { 0 } else { at % calls.len() }])
                    .collect();
                text += &format!("tiny\t{program}\t{label}\t{split}\t2\t{}\n", trace.join(" "));
            }
        };
        for (program, calls) in
            [("web", ["accept4", "read", "write"]), ("\"old\"", ["socketcall", "stat64", "mmap2"])]
        {
            push(program, "normal", "fit", 50, &calls);
            push(program, "normal", "calibrate", 20, &calls);
            push(program, "normal", "test", 30, &calls);
            push(program, "attack:Shell", "test", 10, &["fork", "execve", "odd_call", "wait4"]);
        }
        push("web", "normal", "test", 3, &[]);
        push("small", "normal", "fit", 1, &["read"]);
        push("small", "attack:Shell", "test", 1, &["execve"]);
        push("few", "normal", "fit", 6, &["read", "close"]);
        push("few", "normal", "test", 3, &["read", "close"]);
        push("few", "attack:Shell", "test", 2, &["fork", "execve"]);
        text
    }

    #[test]
    fn a_tiny_corpus_of_any_names_is_evaluated_from_end_to_end() {
        let rows = evaluate(corpus::parse(corpus().as_bytes()).unwrap());
        let of = |program: &str, config: &str| {
            rows.iter().filter(|row| row.program == program && row.config == config).collect::<Vec<_>>()
        };
        for program in ["web", "\"old\"", "few"] {
            let ours = of(program, "ours");
            assert_eq!(ours.len(), 2, "unique and natural");
            assert!(ours.iter().all(|row| row.auc > 0.99), "{program}: {}", ours[0].auc);
            assert!(ours[0].interval.0 <= ours[0].auc && ours[0].auc <= ours[0].interval.1 + 1e-9);
            assert_eq!(of(program, "original").len(), 2);
        }
        assert!(of("small", "ours").is_empty(), "a program with nothing to calibrate is skipped");
        assert!(
            of("few", "vae").is_empty() && !of("few", "surprisal").is_empty(),
            "what needs more is left out"
        );
        assert!(of("web", "ours")[0].false_positives[1] <= 0.1);
        let json = json(&rows);
        assert!(json.starts_with("{\"rows\":[{\"set\":\"tiny\"") && json.contains(r#""program":"\"old\"""#));
        assert_eq!(table(&rows).lines().count(), rows.len() + 1);
    }
}
