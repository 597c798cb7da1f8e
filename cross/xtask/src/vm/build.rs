//! The programs that run in the machines: built for this processor by the usual build, for another one by Debian's
//! cross compilers, linked statically.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{VmError, kernels::Arch};
use crate::tools::{self, FEATURES, Need, ToolError};

/// What was built.
pub(super) struct Built {
    /// The agent.
    pub(super) agent: PathBuf,
    /// `agent/tests/kernel`.
    pub(super) tests: PathBuf,
    /// It needs libraries of this machine.
    pub(super) native: bool,
}

/// What a foreign processor's build needs, by name.
struct Cross {
    triple: &'static str,
    linker: &'static str,
    needs: &'static [Need],
}

static AARCH64: Cross = Cross {
    triple: "aarch64-unknown-linux-gnu",
    linker: "aarch64-linux-gnu-gcc",
    needs: &[Need {
        file: "/usr/aarch64-linux-gnu/lib/libc.a",
        packages: &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        why: "compiles ring, and links, for aarch64",
    }],
};
static X86_64: Cross = Cross {
    triple: "x86_64-unknown-linux-gnu",
    linker: "x86_64-linux-gnu-gcc",
    needs: &[Need {
        file: "/usr/x86_64-linux-gnu/lib/libc.a",
        packages: &["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
        why: "compiles ring, and links, for x86-64",
    }],
};

/// Debian's compiler, whose standard library is packaged for every processor.
const COMPILER: &[Need] = &[
    Need { file: "/usr/bin/rustc", packages: &["rustc-web"], why: "compiles for other processors" },
    Need { file: "/usr/bin/cargo", packages: &["cargo-web"], why: "the cargo of that compiler" },
];
const LIBRARY_AARCH64: &[Need] = &[Need {
    file: "/usr/lib/rustlib/aarch64-unknown-linux-gnu/lib",
    packages: &["libstd-rust-web-dev:arm64"],
    why: "Rust's standard library for aarch64",
}];
const LIBRARY_X86_64: &[Need] = &[Need {
    file: "/usr/lib/rustlib/x86_64-unknown-linux-gnu/lib",
    packages: &["libstd-rust-web-dev:amd64"],
    why: "Rust's standard library for x86-64",
}];

/// Nothing here runs for long, and tract compiles three times as fast without optimisation. Only what reads the kernel's
/// type information at every load is worth it on an emulated processor.
const QUICKLY: [&str; 6] = [
    "profile.dev.opt-level=0",
    "profile.dev.package.models.opt-level=0",
    "profile.dev.package.aya.opt-level=2",
    "profile.dev.package.aya-obj.opt-level=2",
    "profile.dev.package.object.opt-level=1",
    "profile.dev.strip=true",
];

/// Installs what builds for these processors need.
pub(super) fn install(archs: &[Arch]) -> Result<(), ToolError> {
    tools::install(tools::BUILD)?;
    for arch in archs.iter().copied().filter(|arch| !is_native(*arch)) {
        let (cross, library) = cross(arch);
        tools::install(cross.needs)?;
        if tools::toolchain_has(cross.triple) {
            continue;
        }
        tools::install(COMPILER)?;
        if library.iter().any(|need| tools::find(need.file).is_none()) {
            println!("telling dpkg that packages for {} may be installed", arch.debian());
            tools::run(Command::new("dpkg").args(["--add-architecture", arch.debian()]))?;
        }
        tools::install(library)?;
    }
    Ok(())
}

/// Builds for this processor. Gives the tool that makes a state folder as well.
pub(super) fn native(root: &Path) -> Result<(Built, PathBuf), VmError> {
    println!("building the agent and its kernel tests for this machine");
    // The whole workspace, as the suite builds it: what was built there is not built again.
    let mut cargo = tools::cargo(root);
    let messages = messages(cargo.args(["test", "--workspace"]).args(FEATURES))?;
    let enrolled = executable_in(&messages, "example", "enrolled").ok_or(VmError::NotBuilt)?;
    Ok((built(&messages, true)?, enrolled))
}

/// Builds an example of this workspace, with the programs that it starts.
pub(super) fn example(root: &Path, name: &str) -> Result<PathBuf, VmError> {
    let mut cargo = tools::cargo(root);
    let build = ["build", "--workspace", "--bins", "--example", name, "--locked", "--quiet"];
    tools::run(cargo.args(build).args(FEATURES))?;
    Ok(tools::target(root).join("debug/examples").join(name))
}

/// Builds for another processor.
pub(super) fn foreign(root: &Path, arch: Arch) -> Result<Built, VmError> {
    println!("building the agent and its kernel tests for {}", arch.name());
    let (cross, _) = cross(arch);
    let mut cargo;
    if tools::toolchain_has(cross.triple) {
        cargo = tools::plain_cargo(root);
    } else {
        cargo = tools::unknowing(Path::new("/usr/bin/cargo"), root);
        cargo.env("RUSTC", "/usr/bin/rustc").env_remove("RUSTUP_TOOLCHAIN");
    }
    let variable = cross.triple.replace('-', "_").to_uppercase();
    cargo
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .args(["test", "--package", "agent", "--bin", "behaveguard", "--test", "kernel"])
        .args(["--target", cross.triple, "--target-dir"])
        .arg(tools::target(root).join("vm").join(arch.name()))
        .args(QUICKLY.iter().flat_map(|setting| ["--config", setting]))
        .env(format!("CARGO_TARGET_{variable}_LINKER"), cross.linker)
        .env(format!("CARGO_TARGET_{variable}_RUSTFLAGS"), "-Ctarget-feature=+crt-static")
        .env_remove("RUSTFLAGS");
    built(&messages(&mut cargo)?, false)
}

/// Whether programs for this processor run here.
pub(super) fn is_native(arch: Arch) -> bool {
    Arch::of(std::env::consts::ARCH) == Some(arch)
}

fn cross(arch: Arch) -> (&'static Cross, &'static [Need]) {
    match arch {
        Arch::X86_64 => (&X86_64, LIBRARY_X86_64),
        Arch::Aarch64 => (&AARCH64, LIBRARY_AARCH64),
    }
}

/// Builds and gives what cargo says about each artifact.
fn messages(cargo: &mut Command) -> Result<String, VmError> {
    cargo.args(["--no-run", "--locked", "--quiet", "--message-format", "json-render-diagnostics"]);
    let text = tools::words(cargo);
    let child = cargo.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = child.output().map_err(|error| ToolError::Start(text.clone(), error))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(ToolError::Failed(text, output.status).into())
    }
}

fn built(messages: &str, native: bool) -> Result<Built, VmError> {
    match (executable_in(messages, "bin", "behaveguard"), executable_in(messages, "test", "kernel")) {
        (Some(agent), Some(tests)) => Ok(Built { agent, tests, native }),
        _ => Err(VmError::NotBuilt),
    }
}

fn executable_in(messages: &str, kind: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| executable(line, kind, name))
}

/// The program that one of cargo's messages tells of, if it is the wanted one and no test harness of it.
fn executable(message: &str, kind: &str, name: &str) -> Option<PathBuf> {
    let has = |text: &str| message.contains(text);
    let wanted = has(&format!("\"kind\":[\"{kind}\"]")) && has(&format!("\"name\":\"{name}\""));
    let harness = has("\"test\":true},\"features\"");
    if !wanted || (kind == "bin" && harness) {
        return None;
    }
    let path = message.split_once("\"executable\":\"")?.1.split('"').next()?;
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_from_its_own_tests_and_from_others() {
        let message = |kind: &str, name: &str, test: bool| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\"target\":{{\"kind\":[\"{kind}\"],\"name\":\"{name}\",\"test\":true}},\
                 \"profile\":{{\"opt_level\":\"1\",\"test\":{test}}},\"features\":[],\"executable\":\"/t/{name}\",\"fresh\":true}}"
            )
        };
        let check = |message: &str, kind, name, path: Option<&str>| {
            assert_eq!(executable(message, kind, name), path.map(PathBuf::from), "{message}");
        };
        check(&message("bin", "behaveguard", false), "bin", "behaveguard", Some("/t/behaveguard"));
        check(&message("bin", "behaveguard", true), "bin", "behaveguard", None);
        check(&message("test", "kernel", true), "test", "kernel", Some("/t/kernel"));
        check(&message("bin", "other", false), "bin", "behaveguard", None);
        check("{\"kind\":[\"test\"],\"name\":\"kernel\",\"executable\":null}", "test", "kernel", None);
    }
}
