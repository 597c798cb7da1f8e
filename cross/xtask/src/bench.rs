//! `cargo xtask bench NAME`: measurements that take machine time and are no tests.

use std::{path::Path, process::Command};

use clap::ValueEnum;

use crate::tools::{self, FEATURES, Need, ToolError};

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Bench {
    /// What watching costs each system call and whole workloads, against nothing, an empty program and bpftrace.
    Overhead,
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
    let program = match bench {
        Bench::Overhead => {
            tools::install(OVERHEAD)?;
            "behaveguard-overhead"
        }
    };
    tools::run(tools::cargo(root).args(["build", "--workspace", "--locked"]).args(FEATURES))?;
    tools::run(Command::new(tools::target(root).join("debug").join(program)).args(arguments))
}
