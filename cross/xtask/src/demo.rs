//! `cargo xtask demo`: builds everything and starts the demo program.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tools::{self, FEATURES, ToolError};

/// Runs the demo to its end.
///
/// # Errors
///
/// When something is missing and cannot be installed, or the build or the demo fails.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<(), ToolError> {
    tools::install(tools::BUILD)?;
    println!("building agent, fleet server and demo; the first time takes some minutes");
    tools::run(tools::cargo(root).args(["build", "--workspace", "--locked"]).args(FEATURES))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    tools::run(Command::new(target.join("debug/behaveguard-demo")).args(arguments))
}
