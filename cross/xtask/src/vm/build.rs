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

const AARCH64: Cross = Cross {
    triple: "aarch64-unknown-linux-gnu",
    linker: "aarch64-linux-gnu-gcc",
    needs: &[Need {
        file: "/usr/aarch64-linux-gnu/lib/libc.a",
        packages: &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        why: "compiles ring, and links, for aarch64",
    }],
};
const X86_64: Cross = Cross {
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

/// Nothing here runs for long, and tract compiles three times as fast without optimisation.
const QUICKLY: [&str; 8] = [
    "--config",
    "profile.dev.opt-level=0",
    "--config",
    "profile.dev.package.\"*\".opt-level=0",
    "--config",
    "profile.dev.package.models.opt-level=0",
    "--config",
    "profile.dev.strip=true",
];

/// Builds the agent and its kernel tests.
pub(super) fn build(root: &Path, arch: Arch) -> Result<Built, VmError> {
    println!("building the agent and its kernel tests for {}", arch.name());
    tools::install(tools::BUILD)?;
    let native = Arch::of(std::env::consts::ARCH) == Some(arch);
    let mut cargo = if native {
        let mut cargo = tools::cargo(root);
        // The whole workspace, as the suite builds it: what was built there is not built again.
        cargo.args(["test", "--workspace"]).args(FEATURES);
        cargo
    } else {
        foreign(root, arch)?
    };
    cargo.args(["--no-run", "--locked", "--quiet", "--message-format", "json-render-diagnostics"]);
    let text = tools::words(&cargo);
    let child = cargo.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = child.output().map_err(|error| ToolError::Start(text.clone(), error))?;
    if !output.status.success() {
        return Err(ToolError::Failed(text, output.status).into());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let find = |kind, name| messages.lines().find_map(|line| executable(line, kind, name));
    match (find("bin", "behaveguard"), find("test", "kernel")) {
        (Some(agent), Some(tests)) => Ok(Built { agent, tests, native }),
        _ => Err(VmError::NotBuilt),
    }
}

fn foreign(root: &Path, arch: Arch) -> Result<Command, VmError> {
    let (cross, library) = match arch {
        Arch::X86_64 => (X86_64, LIBRARY_X86_64),
        Arch::Aarch64 => (AARCH64, LIBRARY_AARCH64),
    };
    tools::install(cross.needs)?;
    let mut cargo;
    if toolchain_has(cross.triple) {
        cargo = tools::cargo(root);
    } else {
        tools::install(COMPILER)?;
        if library.iter().any(|need| tools::find(need.file).is_none()) {
            println!("telling dpkg that packages for {} may be installed", arch.debian());
            tools::run(Command::new("dpkg").args(["--add-architecture", arch.debian()]))?;
        }
        tools::install(library)?;
        cargo = tools::cargo_at(Path::new("/usr/bin/cargo"), root);
        cargo.env("RUSTC", "/usr/bin/rustc").env_remove("RUSTUP_TOOLCHAIN");
    }
    let variable = cross.triple.replace('-', "_").to_uppercase();
    cargo
        .args(["test", "--package", "agent", "--bin", "behaveguard", "--test", "kernel"])
        .args(["--target", cross.triple, "--target-dir"])
        .arg(tools::target(root).join("vm").join(arch.name()))
        .args(QUICKLY)
        .env(format!("CARGO_TARGET_{variable}_LINKER"), cross.linker)
        .env(format!("CARGO_TARGET_{variable}_RUSTFLAGS"), "-Ctarget-feature=+crt-static")
        .env_remove("RUSTFLAGS");
    Ok(cargo)
}

/// Whether the toolchain in use can build for `triple`, as rustup's can where the target was added.
fn toolchain_has(triple: &str) -> bool {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    sysroot.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Path::new(&sysroot).join("lib/rustlib").join(triple).join("lib").exists()
    })
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
