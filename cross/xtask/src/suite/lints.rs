//! The lints: clippy compiles our crates, so that its warnings come with the build, and again from what was built before.

use std::{
    fmt,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::Totals;
use crate::tools::{self, ToolError};

/// How many warnings there were, each shown as it came.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Warnings(usize);

impl fmt::Display for Warnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} warnings, shown above", self.0)
    }
}

/// Brings what formats and lints. Where rustup is not, it must be there.
pub(super) fn install(root: &Path, totals: &mut Totals) {
    for (component, file) in [("rustfmt", "rustfmt"), ("clippy", "clippy-driver")] {
        if tools::toolchain_program(file).is_some() {
            continue;
        }
        println!("installing the toolchain's {component}");
        let mut add = Command::new("rustup");
        totals.add_check(component, tools::run(add.current_dir(root).args(["component", "add", component])));
    }
}

/// Builds to the end; the warnings of our own crates are the inner error.
///
/// # Errors
///
/// When cargo does not start, or something does not compile.
pub(super) fn build(cargo: &mut Command) -> Result<Result<(), Warnings>, ToolError> {
    cargo.args(["--message-format", "json"]);
    let text = tools::words(cargo);
    let failed = |error| ToolError::Start(text.clone(), error);
    let mut child = cargo.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let output = child.stdout.take().expect("stdout is piped");
    let mut warnings = 0;
    for line in BufReader::new(output).lines() {
        if let Some(rendered) = diagnostic(&line.map_err(failed)?) {
            eprint!("{rendered}");
            warnings += 1;
        }
    }
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        return Err(ToolError::Failed(text, status));
    }
    Ok(if warnings == 0 { Ok(()) } else { Err(Warnings(warnings)) })
}

/// A warning or error as a person reads it, if this message of cargo's is one.
fn diagnostic(message: &str) -> Option<String> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message["reason"] != "compiler-message" {
        return None;
    }
    Some(message["message"]["rendered"].as_str().unwrap_or("a message that cannot be shown\n").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_shown_and_counted_and_nothing_else_is() {
        let warning =
            r#"{"reason":"compiler-message","message":{"level":"warning","rendered":"warning: unused\n"}}"#;
        assert_eq!(diagnostic(warning).as_deref(), Some("warning: unused\n"));
        assert_eq!(diagnostic(r#"{"reason":"compiler-artifact","fresh":true}"#), None);
        assert_eq!(diagnostic("Compiling"), None);
    }
}
