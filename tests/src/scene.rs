//! Fifty services of one kind, each a program of its own, and baselines learned from them here.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent::config::{Config, Pattern};
use agent::files;
use agent::local::Local;

use agent::train::{collect, file_of};
use models::program::ProgramId;
use models::train::{self, TrainOptions};

use crate::agent::Agent;
use crate::fleet::Fleet;
use crate::gateway::Gateway;
use crate::{Failed, wait_for};

const WINDOW: Duration = Duration::from_secs(1);

/// The services, and a bundle for each.
#[derive(Debug)]
pub struct Scene {
    dir: PathBuf,
    services: Vec<Gateway>,
    /// In the order of the services.
    programs: Vec<ProgramId>,
    /// A state folder with the baselines of all.
    learned: PathBuf,
    runs: usize,
}

impl Scene {
    /// Starts them, and watches them for long enough to learn each.
    ///
    /// # Errors
    /// When something does not start or does not happen.
    pub fn learn(dir: &Path, n: usize) -> Result<Self, Failed> {
        let dir = dir.join("services");
        let folder = |at: usize| dir.join(at.to_string());
        let services: Vec<Gateway> = (0..n)
            .map(|at| Gateway::start_every(&folder(at), Duration::from_millis(200)))
            .collect::<Result<_, _>>()?;
        let watch = vec![Pattern(format!("{}/*", dir.display()))];
        let config = Config { watch, window: WINDOW, ..Config::default() };
        eprintln!("watching {n} services for 60 s");
        let collected = collect(&config, Duration::from_secs(60), &mut |_, _| {})
            .map_err(|error| Failed::new("watching", models::chain::chain(&error)))?;
        let mut found: Vec<_> = collected.into_programs().collect();
        let learned = dir.join("learned");
        let failed = |error: &dyn std::fmt::Display| Failed::new("making a baseline", error);
        let local = Local::create(&learned).map_err(|error| failed(&error))?;
        let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (mut programs, mut all) = (Vec::new(), Vec::new());
        eprintln!("learning them");
        for at in 0..n {
            let exe = Gateway::executable(&folder(at)).to_string_lossy().into_owned();
            let place = found.iter().position(|(program, _)| program.exe == exe);
            let place = place.ok_or_else(|| Failed(format!("{exe} was not seen")))?;
            let (program, windows) = found.swap_remove(place);
            programs.push(program);
            all.extend(windows);
        }
        // They are of one kind, so one training does for all: each has its own bundle.
        let options = TrainOptions { now_unix_s, ..TrainOptions::default() };
        let trained = train::fit(&all, &options, &mut |_| {}).map_err(|error| failed(&error))?;
        for program in &programs {
            let raw = trained.clone().seal(program.clone(), 1, 0..now_unix_s + 86_400, local.key());
            local.store(program, &raw).map_err(|error| failed(&error))?;
        }
        Ok(Self { dir, services, programs, learned, runs: 0 })
    }

    /// An agent with the baselines of the first `n` services.
    ///
    /// # Errors
    /// When something does not start or does not happen.
    pub fn agent(&mut self, n: usize, fleet: Option<&Fleet>) -> Result<Agent, Failed> {
        self.runs += 1;
        let dir = self.dir.join(format!("agent-{}", self.runs));
        let config = format!(
            "watch = [{:?}]\nwindow = \"1s\"\nalert_budget = \"unlimited\"\n\
             [alerts]\ndedup = \"0s\"\nper_minute = 1000\n",
            format!("{}/*/benign-gateway", self.dir.display()),
        );
        let agent = match fleet {
            Some(fleet) => Agent::enroll_with(&dir, &config, fleet, "bench")?,
            None => {
                let alerts = dir.join("alerts.json");
                Agent::alone(&dir, &format!("{config}[[sink]]\nkind = \"file\"\npath = {alerts:?}\n"))?
            }
        };
        let (from, to) = (self.learned.join("local"), agent.state().join("local"));
        files::make_private_dir(&to).map_err(|error| Failed::new(to.display(), error))?;
        let programs = self.programs.iter().take(n);
        for file in programs.map(|program| file_of(&from, program)).chain([from.join("key")]) {
            let to = to.join(file.file_name().unwrap_or_default());
            fs::copy(&file, to).map_err(|error| Failed::new(file.display(), error))?;
        }
        Ok(agent)
    }

    /// Resident memory with this many baselines in use, in MiB: after half a minute of windows, and the highest.
    ///
    /// # Errors
    /// When something does not start or does not happen.
    pub fn memory(&mut self, n: usize) -> Result<(f64, f64), Failed> {
        let mut agent = self.agent(n, None)?;
        agent.run()?;
        wait_until_active(&mut agent, n)?;
        std::thread::sleep(Duration::from_secs(30));
        agent.check()?;
        let id = agent.id()?;
        let memory = (status_mib(id, "VmRSS:")?, status_mib(id, "VmHWM:")?);
        agent.stop()?;
        Ok(memory)
    }

    /// Has one of them do what it never did.
    ///
    /// # Errors
    /// When it has ended.
    pub fn attack(&mut self, at: usize) -> Result<(), Failed> {
        let n = self.services.len();
        self.services[at % n].attack()
    }

    /// Seconds from the start of an agent until its first alert is written down, while a service does what it never did all
    /// the time.
    ///
    /// # Errors
    /// When something does not start or does not happen.
    pub fn start(&mut self, n: usize) -> Result<f64, Failed> {
        let mut agent = self.agent(n, None)?;
        let alerts = agent.state().with_file_name("alerts.json");
        let begun = SystemTime::now();
        agent.run()?;
        loop {
            if fs::metadata(&alerts).is_ok_and(|file| file.len() > 0) {
                break;
            }
            let passed = begun.elapsed().unwrap_or_default();
            if passed > Duration::from_secs(60) {
                agent.check()?;
                return Err(Failed(format!("no alert within {} s:\n{}", passed.as_secs(), agent.log())));
            }
            self.services[0].attack()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        let passed = begun.elapsed().unwrap_or_default().as_secs_f64();
        agent.stop()?;
        Ok(passed)
    }

    /// Seconds from an act to its alert's arrival at the fleet server, ascending.
    ///
    /// # Errors
    /// When something does not start or does not happen.
    pub fn alerts(&mut self, attacks: usize) -> Result<Vec<f64>, Failed> {
        let fleet = Fleet::start(&self.dir.join("fleet"), 10_000)?;
        let mut agent = self.agent(50, Some(&fleet))?;
        agent.run()?;
        wait_until_active(&mut agent, 50)?;
        let mut told_ms = Vec::new();
        for at in 0..attacks {
            // Not in step with the windows.
            std::thread::sleep(Duration::from_millis(230 + 37 * (at as u64 % 11)));
            told_ms.push(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as f64);
            self.services[at % 50].attack()?;
        }
        std::thread::sleep(Duration::from_secs(3));
        let alerts = fleet.alerts("bench")?;
        let mut latency = Vec::new();
        for (at, told_ms) in told_ms.iter().enumerate() {
            let pid = self.services[at % 50].id();
            let arrived = alerts.iter().filter(|alert| alert["pid"] == pid).filter_map(|alert| {
                let arrived_ms = alert["received_unix_ms"].as_f64()?;
                (arrived_ms >= *told_ms).then_some(arrived_ms)
            });
            let first = arrived.fold(f64::INFINITY, f64::min);
            latency.push((first - told_ms) / 1000.0);
        }
        agent.stop()?;
        latency.sort_by(f64::total_cmp);
        Ok(latency)
    }
}

/// Waits until the baselines of so many programs are in use.
///
/// # Errors
/// When that does not happen within a minute.
pub fn wait_until_active(agent: &mut Agent, n: usize) -> Result<(), Failed> {
    wait_for("the use of the baselines", Duration::from_secs(60), || {
        agent.check()?;
        let Ok(status) = agent.status() else { return Ok(None) };
        let programs = status["heartbeat"]["programs"].as_array().cloned().unwrap_or_default();
        let active = programs.iter().filter(|program| program["state"] == "ACTIVE").count();
        Ok((active >= n).then_some(()))
    })
}

/// A line of `/proc/PID/status` in kB, as MiB.
///
/// # Errors
/// When the process or the line is not there.
pub fn status_mib(id: u32, field: &str) -> Result<f64, Failed> {
    let path = format!("/proc/{id}/status");
    let file = fs::File::open(&path).map_err(|error| Failed::new(&path, error))?;
    let line = BufReader::new(file).lines().map_while(Result::ok).find(|line| line.starts_with(field));
    let kib = line.and_then(|line| line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()));
    kib.map(|kib| kib / 1024.0).ok_or_else(|| Failed(format!("{path} has no {field}")))
}

/// CPU time of all threads so far, in seconds.
///
/// # Errors
/// When the process is not there.
pub fn cpu_s(id: u32) -> Result<f64, Failed> {
    let path = format!("/proc/{id}/stat");
    let text = fs::read_to_string(&path).map_err(|error| Failed::new(&path, error))?;
    // The name may hold spaces; fields 14 and 15 are ticks in user mode and in the kernel.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = rest.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum();
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// How often its threads together went to sleep so far, which is how often they were woken.
///
/// # Errors
/// When the process is not there.
pub fn wake_ups(id: u32) -> Result<u64, Failed> {
    let path = format!("/proc/{id}/task");
    let threads = fs::read_dir(&path).map_err(|error| Failed::new(&path, error))?;
    // A thread may end meanwhile.
    let texts = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let count = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    };
    Ok(texts.filter_map(count).sum())
}
