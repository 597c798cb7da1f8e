//! `cargo xtask eval FILE` and `cargo xtask eval-live`: how well attacks are told from what is normal, on a corpus of
//! recorded calls and on live services.

use std::{
    fs::File,
    io,
    path::Path,
    process::{Command, Stdio},
};

use crate::suite::SIMULATOR;
use crate::tools::{self, FEATURES, Need, ToolError};

/// To read a compressed corpus.
const GZIP: &[Need] = &[Need { file: "gzip", packages: &["gzip"], why: "reads a compressed corpus" }];

/// What a gzip file begins with (RFC 1952).
const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Builds the evaluation and gives it the corpus, which may be compressed.
///
/// The development profile already builds the models and what they call with full optimisation, so a tree that was
/// tested has nothing left to compile but the evaluation itself.
///
/// # Errors
///
/// When the file cannot be read, or the build or the evaluation fails.
pub(crate) fn run(root: &Path, file: &Path) -> Result<(), ToolError> {
    let failed = |error| ToolError::Read(file.to_owned(), error);
    let compressed = is_gzip(File::open(file).map_err(failed)?).map_err(failed)?;
    tools::install(tools::BUILD)?;
    // Everything with the features of a test run: alone, the models would be built with others, and tract once more.
    let mut build = tools::cargo(root);
    build.args(["build", "--workspace", "--example", "evaluate", "--locked", "--quiet"]).args(FEATURES);
    tools::run(&mut build)?;
    let mut evaluate = Command::new(tools::target(root).join("debug/examples/evaluate"));
    if !compressed {
        return tools::run(evaluate.stdin(File::open(file).map_err(failed)?));
    }
    tools::install(GZIP)?;
    let mut gzip = Command::new("gzip");
    gzip.args(["--decompress", "--stdout"]).stdin(File::open(file).map_err(failed)?).stdout(Stdio::piped());
    let text = tools::words(&gzip);
    let mut child = gzip.spawn().map_err(|e| ToolError::Start(text.clone(), e))?;
    let output = child.stdout.take().expect("stdout is piped");
    let evaluated = tools::run(evaluate.stdin(output));
    let status = child.wait().map_err(|e| ToolError::Start(text.clone(), e))?;
    evaluated?;
    if status.success() { Ok(()) } else { Err(ToolError::Failed(text, status)) }
}

/// What runs in the units; the simulator's tools are [`SIMULATOR`].
const SERVICES: &[Need] = &[
    Need { file: "/usr/sbin/nginx", packages: &["nginx-light"], why: "a web server" },
    Need {
        file: "/usr/bin/redis-server",
        packages: &["redis-server", "redis-tools"],
        why: "a key-value store",
    },
    Need { file: "/usr/sbin/sshd", packages: &["openssh-server"], why: "logins" },
    Need { file: "/usr/lib/postgresql", packages: &["postgresql"], why: "a database" },
    Need { file: "/usr/bin/psql", packages: &["postgresql-client"], why: "queries it" },
    Need { file: "make", packages: &["make"], why: "builds a package again and again" },
];

/// Builds everything and evaluates detection on this machine's own behaviour. Needs root.
///
/// # Errors
///
/// When something is missing and cannot be installed, or the build or the evaluation fails.
pub(crate) fn live(root: &Path, arguments: &[String]) -> Result<(), ToolError> {
    tools::install(tools::BUILD)?;
    tools::install(SIMULATOR)?;
    tools::install(SERVICES)?;
    let mut build = tools::cargo(root);
    build
        .args(["build", "--workspace", "--bins", "--example", "eval-live", "--locked", "--quiet"])
        .args(FEATURES);
    tools::run(&mut build)?;
    tools::run(Command::new(tools::target(root).join("debug/examples/eval-live")).args(arguments))
}

fn is_gzip(mut file: impl io::Read) -> io::Result<bool> {
    let mut head = [0; 2];
    match file.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        other => other.map(|()| head == MAGIC),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_named_before_anything_is_built() {
        let error = run(Path::new("/nowhere"), Path::new("/no/such/corpus.tsv")).unwrap_err().to_string();
        assert!(error.starts_with("reading /no/such/corpus.tsv: No such file"), "{error}");
    }

    #[test]
    fn compression_is_told_by_the_first_bytes_not_by_the_name() {
        for (bytes, gzip) in [(&b"\x1f\x8b\x08"[..], true), (b"# set", false), (b"", false), (b"\x1f", false)]
        {
            assert_eq!(is_gzip(bytes).unwrap(), gzip, "{bytes:?}");
        }
    }
}
