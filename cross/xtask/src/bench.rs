//! `cargo xtask bench NAME`: measurements that take machine time and are no tests.

use std::{path::Path, process::Command};

use clap::ValueEnum;

use crate::tools::{self, FEATURES, Need, ToolError};

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Bench {
    /// What watching costs each system call and whole workloads, against nothing, an empty program and bpftrace.
    Overhead,
    /// Floods at full size: 200,000 processes, a fork bomb, 10,000 threads, and full speed on every CPU for a minute.
    Flood,
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

/// Builds everything and measures.
///
/// # Errors
///
/// When something is missing and cannot be installed, or the build or the bench fails.
pub(crate) fn run(root: &Path, bench: Bench, arguments: &[String]) -> Result<(), ToolError> {
    tools::install(tools::BUILD)?;
    match bench {
        Bench::Overhead => {
            tools::install(OVERHEAD)?;
            tools::run(tools::cargo(root).args(["build", "--workspace", "--locked"]).args(FEATURES))?;
            tools::run(Command::new(tools::target(root).join("debug/behaveguard-overhead")).args(arguments))
        }
        Bench::Flood => {
            let mut test = tools::cargo(root);
            test.args(["test", "--workspace", "--locked", "--test", "kernel"]).args(FEATURES);
            tools::run(test.args(["--", "floods", "--nocapture"]).args(arguments).env("FLOOD_FULL", "1"))
        }
    }
}
