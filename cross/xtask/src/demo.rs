//! `cargo xtask demo`: builds everything and starts the demo program.

use std::path::Path;
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
    tools::run(Command::new(tools::target(root).join("debug/behaveguard-demo")).args(arguments))
}
