//! A Debian that systemd boots, and Debian packages in use there: installed, started, killed, attacked in little memory,
//! upgraded, removed and purged.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    VmError,
    boot::{self, Machine},
    kernels::{self, Arch, make, write},
};
use crate::tools::{self, Need};

const NEEDS: &[Need] = &[
    Need { file: "/usr/sbin/debootstrap", packages: &["debootstrap"], why: "makes the Debian to install in" },
    Need { file: "/usr/sbin/mke2fs", packages: &["e2fsprogs"], why: "makes its disk" },
];

/// What it holds beyond the smallest system; the last name ends with the processor's.
const INCLUDED: &str = "systemd,systemd-sysv,udev,procps,curl,ca-certificates,python3-minimal,netcat-openbsd,initramfs-tools,linux-image-cloud-";

/// Emulated, and it starts a whole Debian.
const LIMIT: Duration = Duration::from_secs(3000);

/// Runs the script once the machine is up, and switches it off.
const UNIT: &str = "[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo; echo @@vm begin packages; sh /packages/check.sh 2>&1; echo @@vm end packages $?'
ExecStopPost=systemctl poweroff --force --force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
TimeoutStartSec=infinity
";

/// Installs, uses and purges these packages by a script, in a machine of this processor.
///
/// # Errors
///
/// When something is missing, or the script says that something is not as it should be.
pub(crate) fn run_packages(root: &Path, packages: &[PathBuf], script: &[u8]) -> Result<(), VmError> {
    tools::install(super::NEEDS)?;
    tools::install(NEEDS)?;
    let arch = Arch::native();
    tools::install(boot::needs(arch))?;
    let folder = tools::target(root).join("vm/debian");
    make(&folder)?;
    let fresh = folder.join("fresh");
    // The last thing that debootstrap installs.
    if !fresh.join("initrd.img").exists() {
        let _ = fs::remove_dir_all(&fresh);
        let codename =
            tools::output(Command::new("sh").args(["-c", ". /etc/os-release; echo $VERSION_CODENAME"]))?;
        let mut debootstrap = Command::new("/usr/sbin/debootstrap");
        debootstrap.arg("--variant=minbase").arg(format!("--include={INCLUDED}{}", arch.debian()));
        tools::run(debootstrap.arg(codename.trim()).arg(&fresh).arg(kernels::archive()?))?;
    }
    let inside = fresh.join("packages");
    let _ = fs::remove_dir_all(&inside);
    make(&inside)?;
    for package in packages {
        let to = inside.join(package.file_name().unwrap_or_default());
        fs::copy(package, to).map_err(|error| VmError::File(package.clone(), error))?;
    }
    write(&inside.join("check.sh"), script)?;
    write(&fresh.join("etc/systemd/system/check.service"), UNIT.as_bytes())?;
    write(&fresh.join("etc/hostname"), b"packaged\n")?;
    let disk = folder.join("disk");
    let _ = fs::remove_file(&disk);
    // Sparse: as large as what is in it.
    tools::run(
        Command::new("/usr/sbin/mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&fresh).arg(&disk).arg("2G"),
    )?;
    println!("booting Debian with {} packages", packages.len());
    let (kernel, initramfs) = (fresh.join("vmlinuz"), fresh.join("initrd.img"));
    let machine = Machine {
        disk: Some(&disk),
        words: "root=/dev/vda rw quiet systemd.show_status=no systemd.wants=check.service panic=1",
        limit: LIMIT,
        ..Machine::new(arch, &kernel, &initramfs)
    };
    let console = boot::boot(&machine, &mut |line| println!("  {line}"))?;
    fs::remove_file(&disk).map_err(|error| VmError::File(disk, error))?;
    if console.totals(&["packages"]).failed > 0 { Err(VmError::Packages) } else { Ok(()) }
}
