//! A package of another processor, in a machine of that processor, against a fleet server on this one.
//!
//! Both sides are in a network namespace of their own. QEMU shows the host to the machine as 10.0.2.2; in the namespace that
//! address is a loopback address too, so the server's certificate and tokens name it for both.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use super::{
    CONFIG_FOLDER, Image, VmError,
    boot::{self, Machine},
    build,
    kernels::{self, Arch, Kernel, NETWORK_MODULES},
};
use crate::tools::{self, Need};

const NEEDS: &[Need] =
    &[Need { file: "/usr/sbin/ip", packages: &["iproute2"], why: "gives the machine's network a namespace" }];

/// Its modules are plain files.
const VERSION: &str = "6.1";

/// How long the fleet server may take to start, in seconds.
const START_S: u32 = 60;

/// A network namespace, removed at the end.
struct Namespace(String);

impl Namespace {
    fn make() -> Result<Self, VmError> {
        let name = format!("behaveguard-{}", std::process::id());
        tools::run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self(name);
        for command in [&["link", "set", "lo", "up"][..], &["addr", "add", "10.0.2.2/32", "dev", "lo"]] {
            tools::run(Command::new("ip").args(["-netns", &namespace.0]).args(command))?;
        }
        Ok(namespace)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// The fleet server and who asks it, killed when it has not ended by itself.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has what this Debian package installs enrol, learn, and tell of an attack.
///
/// # Errors
///
/// When something is missing, or the fleet server does not get the alert.
pub(crate) fn deliver(root: &Path, package: &Path) -> Result<(), VmError> {
    let arch = Arch::Aarch64;
    tools::install(super::NEEDS)?;
    tools::install(NEEDS)?;
    tools::install(boot::needs(arch))?;
    let vm = tools::target(root).join("vm");
    let kernel = Kernel { arch, version: VERSION };
    let fetched = kernel.fetch(&vm)?;
    let dir = vm.join("delivery");
    let _ = fs::remove_dir_all(&dir);
    kernels::make(&dir)?;
    let host = build::example(root, "vm-fleet")?;
    let namespace = Namespace::make()?;
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace.0]).arg(host).arg(&dir).stdin(Stdio::null());
    let text = tools::words(&command);
    let started = command.spawn().map_err(|error| tools::ToolError::Start(text, error))?;
    let mut server = Server(started);
    let token = dir.join("token");
    for _ in 0..START_S {
        if token.exists() {
            break;
        }
        thread::sleep(Duration::from_secs(1));
    }
    let mut image = Image::default();
    image.file("init", 0o755, include_bytes!("init.sh"));
    image.copy(&fetched.busybox, "bin/busybox")?;
    image.copy(&token, "etc/token")?;
    image.file("etc/shadow", 0o600, b"root:*:1::::::\n");
    image.file("etc/hostname", 0o644, b"vm\n");
    image.file("bin/delivery.sh", 0o755, include_bytes!("delivery.sh"));
    image.file("bin/gateway.sh", 0o755, include_bytes!("gateway.sh"));
    for module in NETWORK_MODULES {
        let file = fetched.modules.join(module);
        if file.exists() {
            image.copy(&file, &format!("modules/{module}"))?;
        }
    }
    for folder in ["proc", "sys", "dev", "tmp", "run/log", "var/log", "usr/bin"] {
        image.folder(folder);
    }
    let unpacked = dir.join("package");
    tools::run(Command::new("dpkg").arg("-x").arg(package).arg(&unpacked))?;
    image.copy(&unpacked.join("usr/bin/behaveguard"), "bin/behaveguard")?;
    image.copy_all(&unpacked.join(CONFIG_FOLDER), CONFIG_FOLDER)?;
    let initramfs = dir.join("initramfs");
    image.finish(&initramfs)?;
    println!("booting Linux {VERSION} on {} with {}", arch.name(), package.display());
    let mut seen = |line: &str| println!("  {line}");
    let machine =
        Machine { namespace: Some(&namespace.0), ..Machine::new(arch, &fetched.vmlinuz, &initramfs) };
    let console = boot::boot(&machine, &mut seen)?;
    let totals = console.totals(&["delivery"]);
    if totals.failed > 0 {
        return Err(VmError::NotDelivered("see what the machine printed".to_owned()));
    }
    let ended = server.0.wait().map_err(|error| VmError::NotDelivered(error.to_string()))?;
    if ended.success() { Ok(()) } else { Err(VmError::NotDelivered(format!("the fleet side: {ended}"))) }
}
