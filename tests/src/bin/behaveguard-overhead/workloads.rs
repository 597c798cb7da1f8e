//! What is slowed down: loops, processes, files, a compiler, a server under load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tests::process::Process;
use tests::{Failed, wait_for};

/// Calls of the loop.
pub(crate) const GETPPID_CALLS: u32 = 1_000_000;
/// By then the agent has seen the start of a process.
const FOLLOWED_WITHIN: Duration = Duration::from_millis(200);
const EXECS: u32 = 300;
/// Blocks that `dd` copies: each is a read and a write.
const BLOCKS: u32 = 300_000;
const FOLDERS: u32 = 60;
const FILES: u32 = 50;
const FUNCTIONS: u32 = 1500;
const REQUESTS: u32 = 40_000;

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Workload {
    /// One call that does nothing, again and again.
    Getppid,
    /// 600,000 small reads and writes.
    Dd,
    /// Processes that end at once.
    Exec,
    /// A tree of files found and read.
    Find,
    /// A C compiler.
    Compile,
    /// A Redis server that answers 20 clients.
    Requests,
}

/// All of them.
pub(crate) const WORKLOADS: [Workload; 6] =
    [Workload::Getppid, Workload::Dd, Workload::Exec, Workload::Find, Workload::Compile, Workload::Requests];

impl Workload {
    /// As in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Getppid => "getppid",
            Self::Dd => "dd",
            Self::Exec => "exec",
            Self::Find => "find",
            Self::Compile => "compile",
            Self::Requests => "requests",
        }
    }

    /// How often it runs in a round: what is over in a moment is disturbed by whatever else happens in that moment.
    pub(crate) fn times(self) -> u32 {
        match self {
            Self::Find => 8,
            Self::Getppid | Self::Dd | Self::Exec => 4,
            Self::Requests => 2,
            Self::Compile => 1,
        }
    }
}

/// What a run took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// By the clock.
    pub(crate) wall: Duration,
    /// CPU time of what was measured, in user and kernel mode.
    pub(crate) cpu: Duration,
}

impl Cost {
    /// Keeps the lower of both, each for itself; zero means not measured yet.
    pub(crate) fn keep_lower(&mut self, other: Self) {
        let lower = |mine: Duration, other: Duration| if mine.is_zero() { other } else { mine.min(other) };
        self.wall = lower(self.wall, other.wall);
        self.cpu = lower(self.cpu, other.cpu);
    }
}

/// What the workloads work on.
pub(crate) struct Workloads {
    tree: PathBuf,
    source: PathBuf,
    redis: Process,
    redis_port: String,
}

impl Workloads {
    /// Makes a tree, a source file and a server.
    pub(crate) fn prepare(dir: &Path) -> Result<Self, Failed> {
        let failed = |error| Failed::new("preparing the workloads", error);
        let tree = dir.join("tree");
        for folder in 0..FOLDERS {
            let folder = tree.join(folder.to_string());
            fs::create_dir_all(&folder).map_err(failed)?;
            for file in 0..FILES {
                fs::write(folder.join(file.to_string()), [b'x'; 2048]).map_err(failed)?;
            }
        }
        let source = dir.join("program.c");
        let functions: Vec<String> = (0..FUNCTIONS)
            .map(|n| {
                format!(
                    "int f{n}(int x) {{ for (int i = 0; i < x; i++) x += i * {n} ^ x >> 3; return x; }}\n"
                )
            })
            .collect();
        fs::write(&source, functions.concat()).map_err(failed)?;
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(failed)?;
        let redis_port = free.local_addr().map_err(failed)?.port().to_string();
        drop(free);
        let arguments = ["--port", &redis_port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let mut redis = Process::start(
            Path::new("/usr/bin/redis-server"),
            &arguments,
            &dir.join("redis.log"),
            Stdio::null(),
        )?;
        let port: u16 = redis_port.parse().map_err(|error| Failed::new("the server's port", error))?;
        wait_for("the server", Duration::from_secs(10), || {
            redis.check()?;
            Ok(std::net::TcpStream::connect(("127.0.0.1", port)).ok())
        })?;
        Ok(Self { tree, source, redis, redis_port })
    }

    /// Runs one and says what it took.
    pub(crate) fn run(&self, workload: Workload) -> Result<Cost, Failed> {
        match workload {
            Workload::Getppid => getppid(),
            Workload::Dd => {
                let count = format!("count={BLOCKS}");
                command("dd", &["if=/dev/zero", "of=/dev/null", "bs=1", &count])
            }
            Workload::Exec => measured(|| {
                for _ in 0..EXECS {
                    start("/bin/true", &[])?;
                }
                Ok(())
            }),
            Workload::Find => {
                let tree = self.tree.to_string_lossy();
                command("find", &[&tree, "-type", "f", "-exec", "cat", "{}", "+"])
            }
            Workload::Compile => {
                let source = self.source.to_string_lossy();
                command("cc", &["-O1", "-c", "-o", "/dev/null", &source])
            }
            Workload::Requests => {
                let before = cpu_of(self.redis.id())?;
                let requests = REQUESTS.to_string();
                let arguments = ["-p", &self.redis_port, "-n", &requests, "-c", "20", "-t", "set", "-q"];
                let cost = command("redis-benchmark", &arguments)?;
                Ok(Cost { cpu: cost.cpu + cpu_of(self.redis.id())?.saturating_sub(before), ..cost })
            }
        }
    }
}

/// The loop, in a process of its own: a program that was started while the agent runs is followed as every other is.
fn getppid() -> Result<Cost, Failed> {
    let this = std::env::current_exe().map_err(|error| Failed::new("finding this program", error))?;
    let output = Command::new(this)
        .arg("--loop")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failed::new("starting the loop", error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers =
        text.split_whitespace().filter_map(|number| number.parse().ok()).map(Duration::from_nanos);
    match (numbers.next(), numbers.next()) {
        (Some(wall), Some(cpu)) => Ok(Cost { wall, cpu }),
        _ => Err(Failed(format!("the loop ended with {}", output.status))),
    }
}

/// What that process does: lets the agent see its start, then takes its own time.
pub(crate) fn measure_loop() {
    std::thread::sleep(FOLLOWED_WITHIN);
    let (wall, cpu) = (clock(ClockId::Monotonic), clock(ClockId::ThreadCPUTime));
    for _ in 0..GETPPID_CALLS {
        std::hint::black_box(rustix::process::getppid());
    }
    let wall = clock(ClockId::Monotonic).saturating_sub(wall);
    let cpu = clock(ClockId::ThreadCPUTime).saturating_sub(cpu);
    println!("{} {}", wall.as_nanos(), cpu.as_nanos());
}

/// A clock's time.
pub(crate) fn clock(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn command(program: &str, arguments: &[&str]) -> Result<Cost, Failed> {
    measured(|| start(program, arguments))
}

/// The CPU time of children that were waited for, and this process's.
fn measured(work: impl FnOnce() -> Result<(), Failed>) -> Result<Cost, Failed> {
    let (wall, cpu) = (clock(ClockId::Monotonic), children_cpu()?);
    work()?;
    Ok(Cost {
        wall: clock(ClockId::Monotonic).saturating_sub(wall),
        cpu: children_cpu()?.saturating_sub(cpu),
    })
}

fn start(program: &str, arguments: &[&str]) -> Result<(), Failed> {
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| Failed::new(format!("starting {program}"), error))?;
    if status.success() { Ok(()) } else { Err(Failed(format!("{program} ended with {status}"))) }
}

/// This process and the children that it waited for: fields 14 to 17 of `/proc/self/stat`, in ticks of 10 ms.
fn children_cpu() -> Result<Duration, Failed> {
    ticks("self", 11..15)
}

/// CPU time of another process.
pub(crate) fn cpu_of(pid: u32) -> Result<Duration, Failed> {
    ticks(&pid.to_string(), 11..13)
}

fn ticks(process: &str, fields: std::ops::Range<usize>) -> Result<Duration, Failed> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).map_err(|error| Failed::new(&path, error))?;
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let numbers: Vec<u64> = after.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    let ticks: u64 = numbers.get(fields).unwrap_or_default().iter().sum();
    Ok(Duration::from_millis(ticks * 10))
}
