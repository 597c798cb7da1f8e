//! The project's own tasks.

mod bench;
mod demo;
mod dist;
mod ebpf;
mod eval;
mod suite;
mod tools;
mod vm;

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
        /// Boots every kernel that `vm --all` does, not only two.
        #[arg(long, conflicts_with = "filter")]
        all: bool,
    },
    /// Scores a corpus of traces with the original design, with ours and with each detector alone.
    Eval {
        /// Lines of `set program label split count syscalls`, separated by tabs; may be compressed with gzip.
        file: PathBuf,
    },
    /// Learns real services under load, watches them while nothing happens, and attacks them in every simulated way.
    EvalLive {
        /// Passed on: --learn S, --quiet S, --units N, --threat NAME, --record DIR.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measures: `cargo xtask bench overhead | flood | agent | soak | infer`.
    Bench {
        /// What.
        bench: bench::Bench,
        /// Passed on: --rounds N.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Agents, outboxes, a bad link, a broker and a fleet server on one made-up clock: thousands of days from printed seeds.
    Sim {
        /// Passed on: --seeds N, --from SEED, --seconds S, --verbose.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Gives every reader of outside bytes bytes that nobody would send.
    Fuzz {
        /// Passed on: --time 60s, --executions N, --target NAME.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Boots Debian kernels in QEMU and runs the kernel tests and the agent inside; installs what it needs.
    Vm {
        /// x86_64 or aarch64; without it both.
        #[arg(long)]
        arch: Option<String>,
        /// 5.10, 6.1, 6.12, or sid for the newest that Debian has; may be given more than once.
        #[arg(long)]
        kernel: Vec<String>,
        /// Every kernel; without it, and without the others, the two of a usual test run.
        #[arg(long, conflicts_with_all = ["arch", "kernel"])]
        all: bool,
    },
    /// Builds what users install: static binaries, archives, Debian packages, bill of materials, checksums.
    Dist {
        /// Only this target, e.g. aarch64-unknown-linux-musl; may be given more than once. Without it all four.
        #[arg(long)]
        target: Vec<String>,
        /// Install, start and purge the packages for this processor in a fresh Debian below the target folder.
        #[arg(long)]
        check: bool,
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
        Task::Test { filter, all } => {
            return Ok(closing(&suite::run(root, filter.as_deref(), all)?));
        }
        Task::Vm { arch, kernel, all } => {
            let kernels = vm::choose(arch.as_deref(), &kernel, all)?;
            return Ok(closing(&vm::run(root, &kernels)?));
        }
        Task::Eval { file } => eval::run(root, &file)?,
        Task::EvalLive { arguments } => eval::live(root, &arguments)?,
        Task::Sim { arguments } => bench::example(root, "sim", &arguments)?,
        Task::Fuzz { arguments } => bench::example(root, "fuzz", &arguments)?,
        Task::Bench { bench, arguments } => bench::run(root, bench, &arguments)?,
        Task::Dist { target, check } => dist::run(root, &target, check)?,
        Task::Ebpf { check } => ebpf::rebuild(root, check)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the totals as the last line. A run in which nothing passed has failed.
fn closing(totals: &suite::Totals) -> ExitCode {
    println!("{} passed, {} failed", totals.passed, totals.failed);
    if totals.failed == 0 && totals.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
