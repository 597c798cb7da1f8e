//! The process in which one variant is enacted: namespaces of its own, the listener, the actor, and the proof.
//!
//! The simulator starts one stage per variant. As root it has its own network and mounts, so that whatever it makes
//! is gone with it, also when it is killed.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::Options;
use super::listener::{self, Seen, Talk};
use super::report::{Outcome, Report};
use super::sandbox::{Problem, Sandbox, step};
use super::sys;
use super::table::{Act, Log, Proof, Threat, Variant, tool};

/// An actor gets so long; the simulator ends the whole stage a little later.
const LIMIT_MS: u64 = 8000;
/// An actor whose act is proven gets so long to end by itself.
const GRACE_MS: u64 = 500;
const TICK_MS: u64 = 10;
/// The user without rights.
const NOBODY: u32 = 65534;

/// The place of one variant.
#[derive(Debug)]
pub struct Stage {
    /// What may be touched.
    pub sandbox: Sandbox,
    id: String,
    seen: Arc<Seen>,
    victims: Vec<Child>,
    agent: Option<u32>,
    has_log: bool,
}

/// Plays one variant; its report goes to standard output.
pub(super) fn play(
    threat: &Threat,
    variant: &Variant,
    options: &Options,
    stopped: &Arc<AtomicBool>,
) -> Report {
    let mut report = Report::new(threat, variant);
    match Stage::open(options.owner, threat, variant) {
        Ok(mut stage) => {
            stage.agent = options.agent;
            if let Err(problem) = stage.run(variant, stopped, &mut report) {
                report.outcome = Outcome::of(&problem);
            }
        }
        Err(problem) => report.outcome = Outcome::of(&problem),
    }
    report
}

impl Stage {
    fn open(owner: u32, threat: &Threat, variant: &Variant) -> Result<Self, Problem> {
        let private = sys::is_root();
        step("becoming a parent of orphans", sys::adopt_orphans())?;
        if private {
            Self::separate(variant)?;
        }
        let sandbox = Sandbox::of(owner, private);
        let mut stage = Self {
            sandbox,
            id: format!("{}/{}", threat.name, variant.name),
            seen: Arc::default(),
            victims: Vec::new(),
            agent: None,
            has_log: false,
        };
        step("making the folder", fs::create_dir(sandbox.root()))?;
        step("entering the folder", std::env::set_current_dir(sandbox.root()))?;
        if private {
            step(
                "opening the folder",
                fs::set_permissions(sandbox.root(), fs::Permissions::from_mode(0o777)),
            )?;
        }
        if variant.log != Log::No {
            let mut file = step(
                "making the log",
                File::options().write(true).create_new(true).mode(0o644).open(sandbox.log()),
            )?;
            stage.has_log = true;
            step("writing the log", file.write_all(b"evidence of an intrusion\n"))?;
        }
        if variant.log == Log::Private {
            step("making a folder", fs::create_dir_all(sandbox.beside_log()))?;
        }
        Ok(stage)
    }

    /// Network and mounts that nobody else has.
    fn separate(variant: &Variant) -> Result<(), Problem> {
        if sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET).is_err() {
            return Err(Problem::Needs("namespaces (CAP_SYS_ADMIN)".into()));
        }
        let quiet = libc::MS_NOSUID | libc::MS_NODEV;
        step("separating mounts", sys::mount(c"none", Path::new("/"), c"", libc::MS_REC | libc::MS_PRIVATE))?;
        step("mounting /tmp", sys::mount(c"simulation", Path::new("/tmp"), c"tmpfs", quiet))?;
        if variant.log == Log::Private {
            step("mounting /var", sys::mount(c"simulation", Path::new("/var"), c"tmpfs", quiet))?;
            step("making /var/log", fs::create_dir_all("/var/log"))?;
        }
        step("starting loopback", sys::loopback_up())
    }

    /// A port to listen on: this one, where nobody else can want it; else one that is free.
    #[must_use]
    pub fn port(&self, wanted: u16) -> u16 {
        if self.sandbox.is_private() { wanted } else { 0 }
    }

    /// Starts a listener on 127.0.0.1.
    ///
    /// # Errors
    /// When the port is taken or not allowed.
    pub fn listen(&self, port: u16, talk: Talk) -> Result<SocketAddr, Problem> {
        self.listen_at(Ipv4Addr::LOCALHOST.into(), port, talk)
    }

    /// Starts a listener.
    ///
    /// # Errors
    /// When the address is taken or not allowed.
    pub fn listen_at(&self, ip: IpAddr, port: u16, talk: Talk) -> Result<SocketAddr, Problem> {
        let address = self.sandbox.address((ip, port).into())?;
        step(format!("listening on {address}"), listener::tcp(address, talk, &self.seen))
    }

    /// Starts a listener for datagrams.
    ///
    /// # Errors
    /// When the address is taken or not allowed.
    pub fn datagrams(&self, ip: IpAddr, port: u16) -> Result<SocketAddr, Problem> {
        let address = self.sandbox.address((ip, port).into())?;
        step(format!("listening on {address}"), listener::udp(address, &self.seen))
    }

    /// A child that waits, to be taken hold of.
    ///
    /// # Errors
    /// When it does not start.
    pub fn victim(&mut self) -> Result<u32, Problem> {
        let sleep = tool("sleep").ok_or_else(|| Problem::Needs("sleep".into()))?;
        let mut command = Command::new(sleep);
        command.arg("20").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::bind_to_parent(&mut command, libc::SIGKILL, 10);
        let child = step("starting a victim", command.spawn())?;
        let pid = child.id();
        self.victims.push(child);
        Ok(pid)
    }

    /// The agent that the user named.
    ///
    /// # Errors
    /// When none was, or it is something else.
    pub fn agent(&self) -> Result<u32, Problem> {
        let named = self.agent.ok_or_else(|| Problem::Needs("--agent PID, the agent to try it on".into()))?;
        self.sandbox.agent(named)
    }

    /// A file in the folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, name: &str, bytes: &[u8]) -> Result<String, Problem> {
        let path = self.sandbox.path(name)?;
        step("writing a file", fs::write(&path, bytes))?;
        Ok(path.display().to_string())
    }

    /// A program copied into the folder.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn copy(&self, from: impl AsRef<Path>, name: &str) -> Result<PathBuf, Problem> {
        let to = self.sandbox.path(name)?;
        step("copying a program", fs::copy(from, &to))?;
        step("making it executable", fs::set_permissions(&to, fs::Permissions::from_mode(0o755)))?;
        Ok(to)
    }

    /// This binary under a harmless name, doing this variant's act.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn own<S: ToString>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Act, Problem> {
        self.own_as("update-helper", arguments)
    }

    /// The same under another name.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn own_as<S: ToString>(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Act, Problem> {
        let program = self.copy("/proc/self/exe", name)?;
        let mut words = vec!["simulate".to_owned(), "--act".to_owned(), self.id.clone()];
        words.extend(["--owner".to_owned(), self.sandbox.owner().to_string()]);
        words.push("--".to_owned());
        words.extend(arguments.into_iter().map(|word| word.to_string()));
        Ok(Act::new(program, words))
    }

    fn run(&mut self, variant: &Variant, stopped: &AtomicBool, report: &mut Report) -> Result<(), Problem> {
        let act = (variant.prepare)(self)?;
        let complaints = self.sandbox.path("complaints")?;
        let stderr = step("making a file", File::create(&complaints))?;
        let mut command = Command::new(&act.program);
        command.args(&act.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        command.env("HOME", self.sandbox.root()).env("RUST_LOG", "error");
        // Python would leave compiled modules beside its own.
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        if act.unprivileged && sys::is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        sys::bind_to_parent(&mut command, libc::SIGKILL, 10);
        let mut child = step(format!("starting {}", act.program.display()), command.spawn())?;
        report.started(child.id(), &act);
        let ended = self.watch(&mut child, &act.proof, stopped);
        let _ = child.kill();
        let _ = child.wait();
        let said = fs::read_to_string(&complaints).unwrap_or_default();
        let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
        if let Some(needed) = said.strip_prefix("behaveguard: needs ") {
            return Err(Problem::Needs(needed.to_owned()));
        }
        let ended = step("waiting", ended)?;
        if self.proven(&act.proof, ended) {
            report.outcome = Outcome::Done;
            return Ok(());
        }
        let how = match ended {
            None if stopped.load(Ordering::SeqCst) => "interrupted".to_owned(),
            None => format!("took longer than {} s", LIMIT_MS / 1000),
            Some(status) => format!("{status}, and nothing proves that it was done"),
        };
        Err(Problem::Unproven(if said.is_empty() { how } else { format!("{how}: {said}") }))
    }

    /// Waits until the act is proven or its time is over. `None` when it still runs.
    fn watch(
        &self,
        child: &mut Child,
        proof: &Proof,
        stopped: &AtomicBool,
    ) -> std::io::Result<Option<ExitStatus>> {
        let (mut waited, mut enough) = (0, LIMIT_MS);
        let mut ended = None;
        while waited < enough && !stopped.load(Ordering::SeqCst) {
            if ended.is_none() {
                ended = child.try_wait()?;
                // What it sent may still be on its way.
                if ended.is_some() {
                    enough = enough.min(waited + GRACE_MS);
                }
            }
            if self.proven(proof, ended) {
                if ended.is_some() {
                    break;
                }
                enough = enough.min(waited + GRACE_MS * 4);
            }
            thread::sleep(Duration::from_millis(TICK_MS));
            waited += TICK_MS;
        }
        Ok(ended)
    }

    fn proven(&self, proof: &Proof, ended: Option<ExitStatus>) -> bool {
        match proof {
            Proof::Success => ended.is_some_and(|status| status.success()),
            Proof::Ended => ended.is_some(),
            Proof::Connected(n) => self.seen.connected.load(Ordering::SeqCst) >= *n,
            Proof::Received(n) => self.seen.received.load(Ordering::SeqCst) >= *n,
            Proof::Answered => self.seen.answered.load(Ordering::SeqCst),
            Proof::Gone(path) => ended.is_some() && !path.exists(),
            Proof::Empty(path) => ended.is_some() && fs::metadata(path).is_ok_and(|found| found.len() == 0),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for victim in &mut self.victims {
            let _ = victim.kill();
            let _ = victim.wait();
        }
        sys::end_children(None);
        // Both carry the owner's process id, and were made by this stage.
        let _ = std::env::set_current_dir("/");
        let _ = fs::remove_dir_all(self.sandbox.root());
        if self.has_log {
            let _ = fs::remove_file(self.sandbox.log());
        }
    }
}
