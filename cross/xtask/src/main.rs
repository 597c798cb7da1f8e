//! The project's own tasks.

mod bench;
mod demo;
mod ebpf;
mod eval;
mod suite;
mod tools;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

/// The project's own tasks.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Shows the main job: learns a service from real kernel events, attacks it, shows the alert.
    Demo {
        /// Passed on: --once, --outage, --state DIR; see `cargo xtask demo -- --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs the whole test suite; installs what it needs.
    Test {
        /// Only tests whose names contain this.
        filter: Option<String>,
    },
    /// Scores a corpus of traces with the original design, with ours and with each detector alone.
    Eval {
        /// Lines of `set program label split count syscalls`, separated by tabs; may be compressed with gzip.
        file: PathBuf,
    },
    /// Measures: `cargo xtask bench overhead`.
    Bench {
        /// What.
        bench: bench::Bench,
        /// Passed on: --rounds N.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Rebuilds the committed eBPF object.
    Ebpf {
        /// Compare with the committed object instead of replacing it.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().unwrap_or(root);
    match run(&root, Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(root: &Path, task: Task) -> Result<ExitCode, Box<dyn Error>> {
    match task {
        Task::Demo { arguments } => demo::run(root, &arguments)?,
        Task::Test { filter } => {
            let totals = suite::run(root, filter.as_deref())?;
            println!("{} passed, {} failed", totals.passed, totals.failed);
            return Ok(if totals.failed == 0 && totals.passed > 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Task::Eval { file } => eval::run(root, &file)?,
        Task::Bench { bench, arguments } => bench::run(root, bench, &arguments)?,
        Task::Ebpf { check } => ebpf::rebuild(root, check)?,
    }
    Ok(ExitCode::SUCCESS)
}
