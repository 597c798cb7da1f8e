//! Release binaries for one target: by rustup's target where the toolchain has it, else by Debian's own compiler, which
//! builds the standard library for musl from Debian's sources of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{DistError, at};
use crate::tools::{self, Need};

/// Where binaries run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Triple {
    arch: Arch,
    musl: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Arch {
    X86_64,
    Aarch64,
}

/// The binaries of one target.
pub(super) struct Binaries {
    pub(super) agent: PathBuf,
    pub(super) fleet: PathBuf,
}

impl Triple {
    /// Every one.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [Arch::X86_64, Arch::Aarch64]
            .into_iter()
            .flat_map(|arch| [true, false].map(|musl| Self { arch, musl }))
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::all().find(|triple| triple.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        match (self.arch, self.musl) {
            (Arch::X86_64, true) => "x86_64-unknown-linux-musl",
            (Arch::X86_64, false) => "x86_64-unknown-linux-gnu",
            (Arch::Aarch64, true) => "aarch64-unknown-linux-musl",
            (Arch::Aarch64, false) => "aarch64-unknown-linux-gnu",
        }
    }

    /// As the kernel calls the processor.
    pub(super) fn machine(self) -> &'static str {
        match self.arch {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// As Debian calls it.
    pub(super) fn debian(self) -> &'static str {
        match self.arch {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }

    /// It needs no library of the machine.
    pub(super) fn is_static(self) -> bool {
        self.musl
    }

    /// Its programs run here.
    pub(super) fn is_native(self) -> bool {
        std::env::consts::ARCH == self.machine()
    }

    /// Runs a program of this target here, on an emulated processor if need be.
    pub(super) fn command(self, program: &Path) -> Result<Command, DistError> {
        if self.is_native() {
            return Ok(Command::new(program));
        }
        let (emulator, folder) = match self.arch {
            Arch::X86_64 => ("qemu-x86_64-static", "/usr/x86_64-linux-gnu"),
            Arch::Aarch64 => ("qemu-aarch64-static", "/usr/aarch64-linux-gnu"),
        };
        tools::install(&[Need {
            file: emulator,
            packages: &["qemu-user-static"],
            why: "asks binaries for another processor for their manual pages",
        }])?;
        let mut command = Command::new(emulator);
        command.args(["-L", folder]).arg(program);
        Ok(command)
    }
}

/// The C compiler for a processor, which also links.
const COMPILER_X86_64: &[Need] = &[Need {
    file: "x86_64-linux-gnu-gcc",
    packages: &["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
    why: "compiles C, and links, for x86-64",
}];
const COMPILER_AARCH64: &[Need] = &[Need {
    file: "aarch64-linux-gnu-gcc",
    packages: &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
    why: "compiles C, and links, for aarch64",
}];
/// musl for a processor.
const MUSL_X86_64: &[Need] = &[Need {
    file: "/usr/lib/x86_64-linux-musl/libc.a",
    packages: &["musl-dev:amd64"],
    why: "the C library of static binaries for x86-64",
}];
const MUSL_AARCH64: &[Need] = &[Need {
    file: "/usr/lib/aarch64-linux-musl/libc.a",
    packages: &["musl-dev:arm64"],
    why: "the C library of static binaries for aarch64",
}];
/// Debian's compiler and the sources of its standard library.
const DEBIAN: &[Need] = &[
    Need { file: "/usr/bin/rustc", packages: &["rustc-web"], why: "compiles for other targets" },
    Need { file: "/usr/bin/cargo", packages: &["cargo-web"], why: "the cargo of that compiler" },
    Need {
        file: "/etc/ssl/certs/ca-certificates.crt",
        packages: &["ca-certificates"],
        why: "that cargo fetches crates by HTTPS",
    },
    Need {
        file: "/usr/lib/rustlib/src/rust/library/std/Cargo.toml",
        packages: &["rust-web-src"],
        why: "Rust's standard library, built for musl here",
    },
];
const STD_X86_64: &[Need] = &[Need {
    file: "/usr/lib/rustlib/x86_64-unknown-linux-gnu/lib",
    packages: &["libstd-rust-web-dev:amd64"],
    why: "Rust's standard library for x86-64",
}];
const STD_AARCH64: &[Need] = &[Need {
    file: "/usr/lib/rustlib/aarch64-unknown-linux-gnu/lib",
    packages: &["libstd-rust-web-dev:arm64"],
    why: "Rust's standard library for aarch64",
}];

/// The agent's file, in bytes: gateways have little flash memory.
const AGENT_MAX: u64 = 12_000_000;

/// Builds agent and fleet server. Each by itself: one must be small, the other fast, and so must what they are linked with.
pub(super) fn release(root: &Path, triple: Triple) -> Result<Binaries, DistError> {
    println!("building {}", triple.name());
    let by_rustup = tools::toolchain_has(triple.name());
    install(triple, by_rustup)?;
    let agent =
        Part { package: "agent", binary: "behaveguard", profile: "release", std: "optimize_for_size" };
    let fleet = Part { package: "fleet-server", binary: "behaveguard-fleet", profile: "server", std: "" };
    let agent = agent.build(root, triple, by_rustup)?;
    let bytes = fs::metadata(&agent).map_err(|error| DistError::File(agent.clone(), error))?.len();
    // With rustup's standard library, which is not built for size, or another libc it is what it is.
    if triple.musl && !by_rustup && bytes > AGENT_MAX {
        return Err(DistError::TooLarge { file: agent, bytes, limit: AGENT_MAX });
    }
    Ok(Binaries { agent, fleet: fleet.build(root, triple, by_rustup)? })
}

/// One binary and how it is built.
struct Part {
    package: &'static str,
    binary: &'static str,
    /// In the workspace's `Cargo.toml`.
    profile: &'static str,
    /// Features of the standard library, where it is built here.
    std: &'static str,
}

impl Part {
    fn build(&self, root: &Path, triple: Triple, by_rustup: bool) -> Result<PathBuf, DistError> {
        let target = tools::target(root).join("dist-build");
        let mut cargo;
        let mut flags = remapped(root, &target);
        // A panic aborts, so nothing ever unwinds: an eighth of the binary.
        flags.push("-Cforce-unwind-tables=no".to_owned());
        if by_rustup {
            cargo = tools::plain_cargo(root);
        } else {
            cargo = tools::unknowing(Path::new("/usr/bin/cargo"), root);
            cargo.env("RUSTC", "/usr/bin/rustc").env_remove("RUSTUP_TOOLCHAIN");
        }
        cargo.env_remove("RUSTC_WORKSPACE_WRAPPER");
        let variable = triple.name().replace('-', "_");
        let gcc = format!("{}-linux-gnu-gcc", triple.machine());
        if triple.musl {
            let wrapper = format!("{}-linux-musl-gcc", triple.machine());
            cargo.env("REALGCC", &gcc).env(format!("CC_{variable}"), &wrapper);
            cargo.env(format!("AR_{variable}"), format!("{}-linux-gnu-ar", triple.machine()));
            flags.push("-Ctarget-feature=+crt-static".to_owned());
            if !by_rustup {
                // What rustup's target brings along comes from Debian: the start files and libc from musl, unwinding from LLVM.
                cargo.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=std,panic_abort");
                cargo.arg(format!("-Zbuild-std-features={}", self.std));
                cargo.env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), &wrapper);
                let unwinder = unwinder(&target, triple)?;
                flags.extend(
                    ["-Clink-self-contained=no", "-Crelocation-model=static", "-Clink-arg=-lgcc"]
                        .map(str::to_owned),
                );
                flags.push(format!("-L{}", unwinder.display()));
            }
        } else if !triple.is_native() {
            cargo.env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), &gcc);
        }
        let home = cargo_home();
        let c_flags = format!(
            "-ffile-prefix-map={}=/cargo -ffile-prefix-map={}=/behaveguard",
            home.display(),
            root.display()
        );
        cargo
            .env(format!("CARGO_TARGET_{}_RUSTFLAGS", variable.to_uppercase()), flags.join(" "))
            .env(format!("CFLAGS_{variable}"), c_flags)
            .env_remove("RUSTFLAGS")
            .args(["build", "--profile", self.profile, "--locked", "--target", triple.name(), "--target-dir"])
            .arg(&target)
            .args(["--package", self.package, "--bin", self.binary]);
        tools::run(&mut cargo)?;
        Ok(target.join(triple.name()).join(self.profile).join(self.binary))
    }
}

/// The same names of files in every binary, wherever it was built.
fn remapped(root: &Path, target: &Path) -> Vec<String> {
    // The last one that fits wins: the target folder may lie in the root.
    [(root, "/behaveguard"), (target, "/target"), (&cargo_home(), "/cargo")]
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
        .into()
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    std::env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from)
}

fn install(triple: Triple, by_rustup: bool) -> Result<(), DistError> {
    tools::install(tools::BUILD)?;
    let (compiler, musl, library) = match triple.arch {
        Arch::X86_64 => (COMPILER_X86_64, MUSL_X86_64, STD_X86_64),
        Arch::Aarch64 => (COMPILER_AARCH64, MUSL_AARCH64, STD_AARCH64),
    };
    tools::install(compiler)?;
    let foreign = if triple.musl { musl } else { library };
    if !triple.is_native() && foreign.iter().any(|need| tools::find(need.file).is_none()) {
        println!("telling dpkg that packages for {} may be installed", triple.debian());
        tools::run(Command::new("dpkg").args(["--add-architecture", triple.debian()]))?;
    }
    if triple.musl {
        tools::install(musl)?;
    }
    if !by_rustup {
        tools::install(DEBIAN)?;
        if !triple.musl {
            tools::install(library)?;
        }
    }
    Ok(())
}

/// The folder with LLVM's `libunwind.a` for a processor, taken out of Debian's package: the packages of two processors
/// cannot be installed beside each other.
fn unwinder(target: &Path, triple: Triple) -> Result<PathBuf, DistError> {
    let folder = target.join("unwinder").join(triple.debian());
    let library = folder.join("libunwind.a");
    if library.exists() {
        return Ok(folder);
    }
    at(&folder, std::fs::create_dir_all(&folder))?;
    tools::run(Command::new("apt-get").args(["update", "--quiet"]))?;
    // Debian 12 has 14, Debian 13 has 19.
    let package = |version: &&str| {
        let name = format!("libunwind-{version}-dev:{}", triple.debian());
        let mut apt = Command::new("apt-get");
        apt.current_dir(&folder).args(["download", "--quiet", "-o", "APT::Sandbox::User=root", &name]);
        tools::run(&mut apt)
    };
    ["14", "16", "19", "17", "18", "20", "21"]
        .iter()
        .find_map(|version| package(version).ok())
        .ok_or(DistError::Check("Debian has none of the packages libunwind-14-dev to libunwind-21-dev"))?;
    let script =
        "dpkg -x libunwind-*.deb x && cp x/usr/lib/llvm-*/lib/libunwind.a . && rm -r x libunwind-*.deb";
    tools::run(Command::new("sh").current_dir(&folder).args(["-ec", script]))?;
    Ok(folder)
}
