//! `cargo xtask bench NAME`: measurements that take machine time and are no tests.

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::ValueEnum;

use crate::dist;
use crate::tools::{self, FEATURES, Need, ToolError};

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Bench {
    /// What watching costs each system call and whole workloads, against nothing, an empty program and bpftrace.
    Overhead,
    /// Floods at full size: 200,000 processes, a fork bomb, 10,000 threads, and full speed on every CPU for a minute.
    Flood,
    /// The shipped static agent: its size, memory, idle CPU, time to an alert, and how fast what waited reaches the fleet.
    Agent,
    /// An agent that is killed 500 times under load, and one that is left alone for an hour.
    Soak,
    /// The shipped fleet server under ten thousand simulated devices: memory, durable alerts a second, API, search, restart.
    Fleet,
    /// One window through the detectors of a bundle, beside ONNX Runtime where it can be installed.
    Infer,
}

const OVERHEAD: &[Need] = &[
    Need {
        file: "/usr/bin/bpftrace",
        packages: &["bpftrace"],
        why: "the peer that is measured beside the agent",
    },
    Need {
        file: "/usr/bin/redis-server",
        packages: &["redis-server", "redis-tools"],
        why: "a server under load",
    },
];

/// Where there is no `ensurepip`, a virtual environment has no pip.
const PYTHON: &[Need] = &[
    Need { file: "python3", packages: &["python3"], why: "runs ONNX Runtime" },
    Need {
        file: "/usr/share/python-wheels",
        packages: &["python3-venv"],
        why: "a place of its own for ONNX Runtime",
    },
];

/// Builds everything and measures.
///
/// # Errors
///
/// When something is missing and cannot be installed, or the build or the bench fails.
pub(crate) fn run(root: &Path, bench: Bench, arguments: &[String]) -> Result<(), Box<dyn Error>> {
    tools::install(tools::BUILD)?;
    match bench {
        Bench::Overhead => {
            tools::install(OVERHEAD)?;
            tools::mount_tracefs();
            tools::run(shipped(root, "behaveguard-overhead")?.args(arguments))?;
        }
        Bench::Flood => {
            let mut test = tools::cargo(root);
            test.args(["test", "--workspace", "--locked", "--test", "kernel"]).args(FEATURES);
            tools::run(test.args(["--", "floods", "--nocapture"]).args(arguments).env("FLOOD_FULL", "1"))?;
        }
        Bench::Agent => tools::run(shipped(root, "examples/bench-agent")?.args(arguments))?,
        Bench::Fleet => tools::run(shipped(root, "examples/bench-fleet")?.args(arguments))?,
        Bench::Soak => tools::run(shipped(root, "examples/soak")?.args(arguments))?,
        Bench::Infer => {
            // As the agent is built that is shipped: for size, which is another program than one for speed.
            let mut build = tools::cargo(root);
            tools::run(build.args([
                "build",
                "--release",
                "--package",
                "agent",
                "--example",
                "infer",
                "--locked",
            ]))?;
            let folder = tools::target(root).join("onnxruntime");
            let mut infer = Command::new(tools::target(root).join("release/examples/infer"));
            match onnx_runtime(&folder) {
                Ok(python) => _ = infer.arg(python),
                Err(error) => println!("without ONNX Runtime, which cannot be installed: {error}"),
            }
            tools::run(infer.args(arguments))?;
        }
    }
    Ok(())
}

/// Builds one example of the tests and runs it.
///
/// # Errors
///
/// When something is missing and cannot be installed, or the build or the example fails.
pub(crate) fn example(root: &Path, name: &str, arguments: &[String]) -> Result<(), Box<dyn Error>> {
    tools::install(tools::BUILD)?;
    let mut build = tools::cargo(root);
    tools::run(build.args(["build", "--workspace", "--example", name, "--locked"]).args(FEATURES))?;
    tools::run(Command::new(tools::target(root).join("debug/examples").join(name)).args(arguments))?;
    Ok(())
}

/// A bench, by its place among what is built, beside the binaries that users get.
fn shipped(root: &Path, bench: &str) -> Result<Command, Box<dyn Error>> {
    let shipped = dist::for_this_machine(root)?;
    let mut build = tools::cargo(root);
    tools::run(build.args(["build", "--workspace", "--all-targets", "--locked"]).args(FEATURES))?;
    let folder = tools::target(root).join("shipped");
    let debug = tools::target(root).join("debug");
    std::fs::create_dir_all(&folder)?;
    let bench = debug.join(bench);
    let copied = |program: &Path| folder.join(program.file_name().unwrap_or_default());
    for program in [&bench, &debug.join("benign-gateway")].into_iter().chain(&shipped) {
        std::fs::copy(program, copied(program))?;
    }
    Ok(Command::new(copied(&bench)))
}

/// A Python with ONNX Runtime in a folder of its own, made when it is not there.
fn onnx_runtime(folder: &Path) -> Result<PathBuf, ToolError> {
    let python = folder.join("bin/python");
    let works =
        Command::new(&python).args(["-c", "import numpy, onnxruntime"]).stderr(Stdio::null()).status();
    if works.is_ok_and(|status| status.success()) {
        return Ok(python);
    }
    tools::install(PYTHON)?;
    tools::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))?;
    tools::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "numpy", "onnxruntime"]))?;
    Ok(python)
}
