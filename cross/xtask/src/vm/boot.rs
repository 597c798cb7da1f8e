//! Starts a machine in QEMU and reads its serial console until it ends.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use super::{VmError, console::Console, kernels::Arch};
use crate::tools::{self, Need, ToolError};

/// What a machine with its whole system in memory may take.
const LIMIT: Duration = Duration::from_secs(2400);

/// The emulator of each processor.
pub(super) fn needs(arch: Arch) -> &'static [Need] {
    match arch {
        Arch::X86_64 => &[Need {
            file: "qemu-system-x86_64",
            packages: &["qemu-system-x86"],
            why: "boots other kernels (x86-64)",
        }],
        Arch::Aarch64 => &[Need {
            file: "qemu-system-aarch64",
            packages: &["qemu-system-arm"],
            why: "boots other kernels (aarch64)",
        }],
    }
}

/// A machine to boot.
pub(super) struct Machine<'a> {
    pub(super) arch: Arch,
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    /// The first disk.
    pub(super) disk: Option<&'a Path>,
    /// Has a network that leads into this network namespace.
    pub(super) namespace: Option<&'a str>,
    /// What the kernel is told beside the console.
    pub(super) words: &'a str,
    /// A machine that runs this long is taken for one that hangs.
    pub(super) limit: Duration,
}

impl<'a> Machine<'a> {
    /// One whose whole system is in its initramfs.
    pub(super) fn new(arch: Arch, kernel: &'a Path, initramfs: &'a Path) -> Self {
        let words = "quiet loglevel=1 panic=1 lsm=landlock,lockdown,yama,bpf";
        Self { arch, kernel, initramfs, disk: None, namespace: None, words, limit: LIMIT }
    }
}

/// Boots and waits for the end. Each line goes to `seen` as well.
///
/// Emulated in software: a machine that offers `/dev/kvm` need not let it work.
pub(super) fn boot(machine: &Machine<'_>, seen: &mut dyn FnMut(&str)) -> Result<Console, VmError> {
    let (program, model, serial): (_, &[&str], _) = match machine.arch {
        Arch::X86_64 => ("qemu-system-x86_64", &["-M", "q35"], "ttyS0"),
        Arch::Aarch64 => ("qemu-system-aarch64", &["-M", "virt", "-cpu", "cortex-a57"], "ttyAMA0"),
    };
    // A machine must end also when this task was killed.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL"]);
    let network: &[&str] = match machine.namespace {
        None => &["-nic", "none"],
        Some(name) => {
            qemu.args(["ip", "netns", "exec", name]);
            &["-netdev", "user,id=host", "-device", "virtio-net-device,netdev=host"]
        }
    };
    qemu.arg(program).args(model).args(network);
    if let Some(disk) = machine.disk {
        qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()));
    }
    qemu.args(["-accel", "tcg", "-smp", "2", "-m", "1024", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(machine.kernel)
        .arg("-initrd")
        .arg(machine.initramfs)
        .args(["-append", &format!("console={serial} {}", machine.words)]);
    follow(&mut qemu, machine.limit, seen)
}

/// Runs a machine to its end, or to the limit.
fn follow(machine: &mut Command, limit: Duration, seen: &mut dyn FnMut(&str)) -> Result<Console, VmError> {
    let text = tools::words(machine);
    let started = |error| ToolError::Start(text.clone(), error);
    let mut child = machine.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(started)?;
    let output = child.stdout.take().expect("stdout is piped");
    let (lines_out, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        // What is not UTF-8 must not end the reading.
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if lines_out.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut console = Console::default();
    let begun = now();
    let hung = loop {
        match lines.recv_timeout(limit.saturating_sub(begun.elapsed())) {
            Ok(line) => {
                seen(line.trim_end());
                console.line(&line);
            }
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    if hung {
        println!("the machine did not end within {limit:?}: stopping it");
        child.kill().map_err(started)?;
    }
    child.wait().map_err(started)?;
    let _ = reader.join();
    console.hung = hung;
    console.seconds = begun.elapsed().as_secs();
    Ok(console)
}

#[allow(clippy::disallowed_methods, reason = "a real machine is waited for")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::Totals;

    fn check(script: &str, passed: u64, failed: u64) {
        let mut lines = 0;
        let mut machine = Command::new("sh");
        let console = follow(machine.args(["-c", script]), Duration::from_millis(500), &mut |_| lines += 1);
        assert_eq!(console.unwrap().totals(&["agent"]), Totals { passed, failed }, "{script}");
        assert!(lines > 0);
    }

    #[test]
    fn a_machine_that_hangs_is_stopped_and_has_failed() {
        check("echo @@vm begin agent; exec sleep 600", 0, 2);
        check("echo @@vm begin agent; echo @@vm end agent 0; exec sleep 600", 1, 1);
        check("echo @@vm begin agent", 0, 1);
    }
}
