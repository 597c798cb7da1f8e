//! `cargo xtask test`: formatting, lints and every test of the workspace, closed by one line of totals.

mod lints;

use std::{
    fmt,
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::SystemTime,
};

use crate::tools::{self, FEATURES, Need, ToolError};

/// How a run ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Tests and checks that passed.
    pub(crate) passed: u64,
    /// Tests and checks that failed; a target that does not build counts as one.
    pub(crate) failed: u64,
}

impl Totals {
    /// Reads one line of what the test harness prints.
    pub(crate) fn add_line(&mut self, line: &str) {
        let Some(result) = line.trim_start().strip_prefix("test result: ") else { return };
        let number = |what: &str| {
            let before = result.split(what).next().filter(|before| before.len() < result.len())?;
            before.trim_end().rsplit(' ').next()?.parse::<u64>().ok()
        };
        self.passed += number(" passed").unwrap_or(0);
        self.failed += number(" failed").unwrap_or(0);
    }

    /// Reads the last line of a task of ours: `5 passed, 1 failed`.
    pub(crate) fn add_closing(&mut self, line: &str) {
        let mut words = line.split([' ', ',']).filter(|word| !word.is_empty());
        if let (Some(passed), Some("passed"), Some(failed), Some("failed"), None) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        {
            self.passed += passed.parse().unwrap_or(0);
            self.failed += failed.parse().unwrap_or(1);
        }
    }

    /// Adds the totals of a part.
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// A command that failed without a failed test has failed all the same.
    fn ended(&mut self, command: &str, status: ExitStatus) {
        if !status.success() && self.failed == 0 {
            println!("check {command} ... FAILED: {status}");
            self.failed = 1;
        }
    }

    fn add_check(&mut self, name: &str, outcome: Result<(), impl fmt::Display>) {
        match outcome {
            Ok(()) => {
                println!("check {name} ... ok");
                self.passed += 1;
            }
            Err(error) => {
                println!("check {name} ... FAILED: {error}");
                self.failed += 1;
            }
        }
    }
}

/// For the tests of the dashboard.
const BROWSER: &[Need] = &[
    Need { file: "/usr/bin/chromium", packages: &["chromium"], why: "a real browser shows the dashboard" },
    Need {
        file: "/usr/bin/chromedriver",
        packages: &["chromium-driver"],
        why: "tells the browser what to do",
    },
];

/// For the example of a program that listens.
const LISTENER: &[Need] = &[Need {
    file: "/usr/lib/python3/dist-packages/paho",
    packages: &["python3-paho-mqtt"],
    why: "a program of others listens to alerts",
}];

/// Brokers of others, which a fleet may have its devices behind.
const BROKERS: &[Need] = &[
    Need { file: "/usr/sbin/mosquitto", packages: &["mosquitto"], why: "a broker that devices are behind" },
    Need { file: "/usr/sbin/nats-server", packages: &["nats-server"], why: "another one" },
];

/// A mail server for the tests of notifications.
const MAIL: &[Need] = &[Need {
    file: "/usr/lib/python3/dist-packages/aiosmtpd",
    packages: &["python3-aiosmtpd"],
    why: "takes mails about alerts",
}];

/// The database that several servers share.
const DATABASE: &[Need] = &[
    Need { file: "/usr/lib/postgresql", packages: &["postgresql"], why: "a database that servers share" },
    Need { file: "createdb", packages: &["postgresql-client-common"], why: "makes databases in it" },
    Need { file: "openssl", packages: &["openssl"], why: "makes its certificate" },
];

/// For the checkers that come as Python packages.
const PYTHON: &[Need] = &[Need {
    file: "/usr/share/doc/python3-venv",
    packages: &["python3-venv"],
    why: "installs the checkers of the API and of the dashboard",
}];

/// Sends the API what its description allows, and what it does not.
const OF_API: &str = "schemathesis==4.32.5";

/// Makes an identity provider that people sign in at.
const OF_SIGN_IN: [&str; 2] = ["authlib==1.9.10", "flask==3.1.3"];

/// Brings axe.min.js, which finds what assistive technology could not use. The browser runs it, so nothing else is needed.
const OF_DASHBOARD: &str = "axe-playwright-python==0.1.8";

/// For the simulated attacks: without one of these its variants are skipped, and the test of the probe fails.
pub(crate) const SIMULATOR: &[Need] = &[
    Need { file: "/usr/bin/python3", packages: &["python3"], why: "simulated attacks that a script makes" },
    Need { file: "/usr/bin/perl", packages: &["perl"], why: "the same in another language" },
    Need { file: "nc", packages: &["netcat-openbsd"], why: "reverse shells and uploads by nc" },
    Need { file: "nc.traditional", packages: &["netcat-traditional"], why: "a reverse shell by nc -e" },
    Need { file: "socat", packages: &["socat"], why: "a reverse shell by socat" },
    Need {
        file: "/usr/bin/faketime",
        packages: &["faketime"],
        why: "clocks that jump and certificates that expire",
    },
    Need { file: "/usr/sbin/mkfs.ext4", packages: &["e2fsprogs"], why: "a file system that loses its power" },
    Need { file: "/usr/sbin/ip", packages: &["iproute2"], why: "gives a network namespace an interface" },
    Need { file: "curl", packages: &["curl"], why: "uploads and downloads by a system tool" },
    Need { file: "wget", packages: &["wget"], why: "a download by a system tool" },
    Need { file: "crontab", packages: &["cron"], why: "a list of periodic jobs" },
    Need { file: "xxd", packages: &["xxd"], why: "decodes a payload" },
    Need { file: "ssh", packages: &["openssh-client"], why: "lateral movement to a neighbour on loopback" },
    Need {
        file: "strace",
        packages: &["strace"],
        why: "observes the simulated attacks independently of the agent",
    },
];

/// Everything that the tests need.
const NEEDS: [&[Need]; 8] = [tools::BUILD, BROWSER, LISTENER, BROKERS, DATABASE, MAIL, PYTHON, SIMULATOR];

/// Runs everything, and the kernel tests also on other kernels, with `all` on every one. With `filter`, only the tests whose names contain it, on the
/// machine's own kernel.
///
/// # Errors
///
/// When a tool is missing and cannot be installed, or cargo cannot be started.
pub(crate) fn run(root: &Path, filter: Option<&str>, all: bool) -> Result<Totals, ToolError> {
    let begun = SystemTime::now();
    let told = |done: &str| {
        println!("{done}: {} s since the start", begun.elapsed().unwrap_or_default().as_secs());
    };
    tools::install(NEEDS.iter().copied().flatten())?;
    install_checkers(root)?;
    tools::mount_tracefs();
    told("installed");
    let mut totals = Totals::default();
    if filter.is_none() {
        lints::install(root, &mut totals);
        totals.add_check("formatting", tools::run(tools::cargo(root).args(["fmt", "--all", "--check"])));
    }
    // The end-to-end tests start the binaries, which cargo does not build for tests of other packages. With all targets, so that
    // dependencies have the features that tests want and are not compiled twice.
    let build = ["build", "--workspace", "--all-targets", "--locked"];
    let warnings = lints::build(tools::cargo(root).args(build).args(FEATURES))?;
    if filter.is_none() {
        totals.add_check("lints", warnings);
    }
    told("built");
    if filter.is_some() {
        let filter: Vec<_> = filter.iter().flat_map(|filter| ["--", filter]).collect();
        totals.add(&aloud(&mut tests(root, &[], &filter))?);
        told("tested");
        return Ok(totals);
    }
    // Other kernels take what the tests leave of the processors, which must not be too little for their training. The kernel's
    // tests want these for themselves: they flood it. The end-to-end tests wait for windows and timeouts more than they compute,
    // so all others run beside them.
    let machines = Aside::start(root, "vm", 5, vec![machines(root, all)])?;
    totals.add(&aloud(&mut tests(root, &["--test", "kernel"], &[]))?);
    told("tested on this kernel");
    let others = ["--lib", "--bins", "--example", "evaluate", "--test", "proof", "--test", "tidy"];
    let others = vec![tests(root, &others, &[]), tests(root, &["--doc"], &[])];
    let others = Aside::start(root, "others", 15, others)?;
    let threads = 2 * std::thread::available_parallelism().map_or(1, usize::from);
    let mut end_to_end = tests(root, &["--test", "e2e"], &[]);
    totals.add(&aloud(end_to_end.env("RUST_TEST_THREADS", threads.to_string()))?);
    told("tested end to end");
    totals.add(&others.finish()?);
    told("tested");
    totals.add(&machines.finish()?);
    told("tested on other kernels");
    Ok(totals)
}

/// `cargo test` of these targets, all of them when none is named.
fn tests(root: &Path, targets: &[&str], rest: &[&str]) -> Command {
    let mut command = tools::cargo(root);
    command
        .args(["test", "--workspace", "--locked", "--no-fail-fast"])
        .args(FEATURES)
        .args(targets)
        .args(rest);
    command
}

/// `cargo xtask vm`. Not by the file that this process was started from: the tests' build has put another in its place.
fn machines(root: &Path, all: bool) -> Command {
    let mut command = tools::unknowing(&tools::target(root).join("debug/xtask"), root);
    command.arg("vm").args(all.then_some("--all"));
    command
}

/// Runs tests to their end and shows what they say as they say it.
fn aloud(command: &mut Command) -> Result<Totals, ToolError> {
    let text = tools::words(command);
    let failed = |error| ToolError::Start(text.clone(), error);
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let output = child.stdout.take().expect("stdout is piped");
    let mut totals = Totals::default();
    for line in BufReader::new(output).lines() {
        let line = line.map_err(failed)?;
        println!("{line}");
        totals.add_line(&line);
    }
    totals.ended(&text, child.wait().map_err(failed)?);
    Ok(totals)
}

/// Commands one after the other, beside others and with less of the processors.
struct Aside {
    log: PathBuf,
    /// Each command, and how it ended.
    ended: JoinHandle<Result<Vec<(String, ExitStatus)>, ToolError>>,
}

impl Aside {
    fn start(root: &Path, name: &str, niceness: u8, commands: Vec<Command>) -> Result<Self, ToolError> {
        let dir = tools::target(root).join("suite");
        let log = dir.join(format!("{name}.log"));
        let read = |error| ToolError::Read(log.clone(), error);
        std::fs::create_dir_all(&dir).map_err(read)?;
        let out = File::create(&log).map_err(read)?;
        let run = move || {
            let one = |command: Command| {
                let mut nice = tools::niced(niceness, &command);
                let text = tools::words(&nice);
                let failed = |error| ToolError::Start(text.clone(), error);
                let (stdout, stderr) = (out.try_clone().map_err(failed)?, out.try_clone().map_err(failed)?);
                let status = nice.stdin(Stdio::null()).stdout(stdout).stderr(stderr).status();
                let status = status.map_err(failed)?;
                Ok((text, status))
            };
            commands.into_iter().map(one).collect()
        };
        Ok(Self { log, ended: thread::spawn(run) })
    }

    /// Waits, shows what they said, and gives what passed and failed.
    fn finish(self) -> Result<Totals, ToolError> {
        let ended = self.ended.join().expect("nothing here panics")?;
        let said =
            std::fs::read_to_string(&self.log).map_err(|error| ToolError::Read(self.log.clone(), error))?;
        print!("{said}");
        let mut totals = Totals::default();
        said.lines().for_each(|line| totals.add_line(line));
        totals.add_closing(said.lines().last().unwrap_or_default());
        for (command, status) in ended {
            totals.ended(&command, status);
        }
        Ok(totals)
    }
}

/// Installs the checkers into an environment of their own, `checkers` in the target folder, where tests look for them.
fn install_checkers(root: &Path) -> Result<(), ToolError> {
    let dir = tools::target(root).join("checkers");
    let wanted = [&[OF_API, OF_DASHBOARD], &OF_SIGN_IN[..]].concat().join("\n");
    let done = dir.join("installed");
    if std::fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    println!("installing the checkers of the API and of the dashboard");
    tools::run(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(&dir))?;
    let pip = || {
        let mut pip = Command::new(dir.join("bin/pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check"]);
        pip
    };
    tools::run(pip().arg(OF_API).args(OF_SIGN_IN))?;
    tools::run(pip().args(["--no-deps", OF_DASHBOARD, "--target"]).arg(dir.join("axe")))?;
    std::fs::write(&done, wanted).map_err(|error| ToolError::Read(done, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], passed: u64, failed: u64) {
        let mut totals = Totals::default();
        lines.iter().for_each(|line| totals.add_line(line));
        assert_eq!(totals, Totals { passed, failed }, "{lines:?}");
    }

    #[test]
    fn the_last_line_of_a_task_is_read() {
        let closing = |line: &str| {
            let mut totals = Totals::default();
            totals.add_closing(line);
            (totals.passed, totals.failed)
        };
        assert_eq!(closing("40 passed, 2 failed"), (40, 2));
        assert_eq!(closing("dpkg: error"), (0, 0));
        assert_eq!(closing("test result: 4 passed, 0 failed"), (0, 0));
    }

    #[test]
    fn totals_add_up_over_targets_and_ignore_other_lines() {
        check(
            &[
                "test a_test ... ok",
                "test result: ok. 49 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s",
                "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
                "5 passed, 1 failed",
            ],
            52,
            2,
        );
    }
}
