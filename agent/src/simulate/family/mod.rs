//! One file per threat: its variants, what each makes ready, and what a copy of this binary does.

pub(super) mod credential;
pub(super) mod dns;
pub(super) mod escape;
pub(super) mod exfiltration;
pub(super) mod fileless;
pub(super) mod injection;
pub(super) mod lateral;
pub(super) mod lolbin;
pub(super) mod mining;
pub(super) mod privilege;
pub(super) mod shell;
pub(super) mod traces;
pub(super) mod uring;

use std::net::SocketAddr;

use super::sandbox::{Problem, Sandbox};
use super::stage::Stage;
use super::table::{Need, Proof, Sign, tool};

pub(super) const SH: Need = Need::Tool("sh", "dash");
pub(super) const BASH: Need = Need::Tool("bash", "bash");
pub(super) const PYTHON: Need = Need::Tool("python3", "python3");
const PERL: Need = Need::Tool("perl", "perl");
const NC: Need = Need::Tool("nc", "netcat-openbsd");
const CURL: Need = Need::Tool("curl", "curl");
const COREUTILS: Need = Need::Tool("truncate", "coreutils");

/// The file with the hashed passwords.
pub(super) const SHADOW: &str = "/etc/shadow";

/// An argument of an act.
pub(super) fn word(words: &[String], at: usize) -> Result<&str, Problem> {
    words.get(at).map(String::as_str).ok_or_else(|| Problem::Refused("an act without its arguments".into()))
}

/// An address among the arguments.
pub(super) fn address(sandbox: &Sandbox, words: &[String], at: usize) -> Result<SocketAddr, Problem> {
    let text = word(words, at)?;
    sandbox.address(text.parse().map_err(|_| Problem::Refused(text.to_owned()))?)
}

/// What proves an act for which only root has the right: success, or for others the attempt.
pub(super) fn success_of_root(stage: &Stage) -> Proof {
    if stage.sandbox.is_private() { Proof::Success } else { Proof::Ended }
}

/// Where a tool is, as text.
pub(super) fn path_of(name: &str) -> Result<String, Problem> {
    let path = tool(name).ok_or_else(|| Problem::Needs(name.to_owned()))?;
    Ok(path.display().to_string())
}

/// The program of this tool must be seen to start.
pub(super) fn started(name: &str) -> Result<Sign, Problem> {
    path_of(name).map(Sign::exec)
}
