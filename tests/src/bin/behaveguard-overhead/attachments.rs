//! What is attached while a workload runs.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::time::ClockId;
use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::process::Process;
use tests::{Failed, wait_for};

use crate::empty::Empty;
use crate::workloads::{Workload, clock, cpu_of};

/// Every program is learned, with the defaults, but in windows of 5 s: six times as many drains.
const CONFIG: &str = "watch = [\"*\"]\nwindow = \"5s\"\nheartbeat = \"5s\"\nsamples = 100\n";
/// No baseline is trained meanwhile.
const LEARN_WINDOWS: u32 = 100_000;
/// The simplest question that a peer can be asked.
const COUNT: &str =
    "tracepoint:raw_syscalls:sys_enter { @[pid] = count(); } BEGIN { printf(\"attached\\n\"); }";

/// What is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Attachment {
    /// Nothing.
    Nothing,
    /// A program on `tp_btf/sys_enter` that does nothing.
    Empty,
    /// The agent.
    Agent,
    /// `bpftrace`, counting calls per process.
    Bpftrace,
}

impl Attachment {
    /// In the order in which they take turns.
    pub(crate) const ALL: [Self; 4] = [Self::Nothing, Self::Empty, Self::Agent, Self::Bpftrace];

    /// As in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Empty => "empty",
            Self::Agent => "agent",
            Self::Bpftrace => "bpftrace",
        }
    }

    /// Peers are compared on the cost of a call. The workloads tell what the agent costs, beside what no hook on every
    /// call can go below.
    pub(crate) fn compared_on(self, workload: Workload) -> bool {
        workload == Workload::Getppid || self != Self::Bpftrace
    }
}

/// Something attached; it ends when this is dropped.
pub(crate) enum Attached {
    Nothing,
    #[allow(dead_code, reason = "held so that it stays attached")]
    Empty(Empty),
    Agent {
        since: Duration,
        cpu: Duration,
    },
    Bpftrace(Process),
}

/// What the agent took and lost over all rounds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Of one CPU.
    pub(crate) share: f64,
    /// How long it ran.
    pub(crate) seconds: f64,
    /// Records that found a ring or map full.
    pub(crate) drops: u64,
}

/// What attachments need.
pub(crate) struct Attachments {
    // Before the fleet, so that the agent ends first.
    agent: Agent,
    _fleet: Fleet,
    dir: std::path::PathBuf,
    cpu: Duration,
    time: Duration,
    drops: u64,
}

impl Attachments {
    /// A fleet server for the agent, which runs all the time.
    pub(crate) fn prepare(dir: &Path) -> Result<Self, Failed> {
        let fleet = Fleet::start(&dir.join("fleet"), LEARN_WINDOWS)?;
        let agent = Agent::enroll_with(&dir.join("agent"), CONFIG, &fleet, "bench")?;
        let (cpu, time) = (Duration::ZERO, Duration::ZERO);
        Ok(Self { agent, _fleet: fleet, dir: dir.to_owned(), cpu, time, drops: 0 })
    }

    /// Attaches and waits until it is.
    pub(crate) fn attach(&mut self, attachment: Attachment) -> Result<Attached, Failed> {
        match attachment {
            Attachment::Nothing => Ok(Attached::Nothing),
            Attachment::Empty => {
                Empty::attach().map(Attached::Empty).map_err(|error| Failed::new("the empty program", error))
            }
            Attachment::Agent => {
                self.agent.run()?;
                wait_for("the agent's status", Duration::from_secs(30), || {
                    self.agent.check()?;
                    Ok(self.agent.status().ok())
                })?;
                // Loading and verifying is not watching.
                Ok(Attached::Agent { since: clock(ClockId::Monotonic), cpu: cpu_of(self.agent.id()?)? })
            }
            Attachment::Bpftrace => {
                let log = self.dir.join("bpftrace.log");
                let _ = std::fs::remove_file(&log);
                let mut process =
                    Process::start(Path::new("/usr/bin/bpftrace"), &["-e", COUNT], &log, Stdio::null())?;
                wait_for("bpftrace", Duration::from_secs(30), || {
                    process.check()?;
                    Ok(process.tail().contains("attached").then_some(()))
                })?;
                Ok(Attached::Bpftrace(process))
            }
        }
    }

    /// Detaches, and keeps what the agent took.
    pub(crate) fn detach(&mut self, attached: Attached) -> Result<(), Failed> {
        match attached {
            Attached::Nothing | Attached::Empty(_) => Ok(()),
            Attached::Agent { since, cpu } => {
                let counters = self.agent.status()?["heartbeat"]["counters"].clone();
                let list = counters.as_array().cloned().unwrap_or_default();
                self.drops += list
                    .iter()
                    .filter(|counter| counter[0].as_str().is_some_and(|name| name.ends_with("_dropped")))
                    .filter_map(|counter| counter[1].as_u64())
                    .sum::<u64>();
                self.cpu += cpu_of(self.agent.id()?)?.saturating_sub(cpu);
                self.time += clock(ClockId::Monotonic).saturating_sub(since);
                self.agent.stop()
            }
            Attached::Bpftrace(process) => process.stop(),
        }
    }

    /// Over all rounds.
    pub(crate) fn agent_usage(&self) -> Usage {
        let seconds = self.time.as_secs_f64();
        let share = if seconds > 0.0 { self.cpu.as_secs_f64() / seconds } else { 0.0 };
        Usage { share, seconds, drops: self.drops }
    }
}
