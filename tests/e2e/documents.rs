//! The commands of the documents, run as they are written: in a network and with mounts of their own, so that the folders
//! of a real installation are nobody else's.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tests::process::binary;
use tests::{Failed, wait_for};

use crate::{enacting, needs_root};

/// What the shell says when a command is over; no program says this.
const OVER: &str = "@@over";
/// A command line that was not understood; see sysexits(3).
const USAGE: i32 = 64;

/// The `sh` blocks of a page, in order.
fn blocks(page: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page)).unwrap();
    let blocks = text.split("\n```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
    blocks.map(str::to_owned).collect()
}

/// A shell that is told one block after the other.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    said: String,
}

impl Shell {
    fn open(folder: &Path) -> Self {
        let programs = binary("behaveguard").unwrap().parent().unwrap().display().to_string();
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "bash"]).process_group(0);
        command.current_dir(folder).env("PATH", format!("{programs}:{path}")).env("HOME", folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut shell = Self { child, input, output: BufReader::new(output), said: String::new() };
        let own = "ip link set lo up && mkdir -p /etc/behaveguard && for folder in /var/lib /run /etc/behaveguard; do \
                   mount -t tmpfs tmpfs $folder; done && cp /etc/hosts hosts && echo 127.0.0.1 fleet.example.org >> hosts && \
                   mount --bind hosts /etc/hosts";
        assert_eq!(shell.tell(own).0, 0, "{}", shell.said);
        shell
    }

    /// Runs a block. Its exit code, and what it wrote.
    fn tell(&mut self, block: &str) -> (i32, String) {
        writeln!(self.input, "{{ {block}\n}} 2>&1\necho; echo {OVER} $?").unwrap();
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "the shell has ended: {}{said}",
                self.said
            );
            if let Some(code) = line.strip_prefix(OVER) {
                let _ = write!(self.said, "$ {block}\n{said}");
                return (code.trim().parse().unwrap(), said);
            }
            said += &line;
        }
    }

    /// Repeats a command until what it says will do.
    fn until(&mut self, within_s: u64, command: &str, will_do: impl Fn(&str) -> bool) -> String {
        let result = wait_for(command, Duration::from_secs(within_s), || {
            let (_, said) = self.tell(command);
            Ok(will_do(&said).then_some(said))
        });
        result.unwrap_or_else(|error: Failed| panic!("{error}: {}", self.said))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // With all that it left in the background.
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        let _ = self.child.wait();
    }
}

#[test]
fn the_tutorial_leads_to_an_acknowledged_alert_as_it_is_written() {
    needs_root();
    let _turn = enacting();
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Shell::open(dir.path());
    let blocks = blocks("docs/tutorial.md");
    let [fleet, learn, attack, work] = blocks.as_slice() else { panic!("the tutorial has other blocks now") };
    assert_eq!(shell.tell(fleet).0, 0, "{}", shell.said);
    shell.tell(learn);
    let status = "behaveguard --state agent status";
    shell.until(30, status, |said| said.contains("LEARNING"));
    shell.until(300, status, |said| said.contains("ACTIVE"));
    shell.tell(attack);
    shell.until(30, "behaveguard --state agent alerts", |said| said.contains("127.0.0.1 port 3333"));
    shell.until(30, work, |said| said.contains(r#""changed":1"#));
    // Its last words.
    assert_eq!(shell.tell("kill %3 %2 %1 && wait && cd .. && rm -r first-alert").0, 0, "{}", shell.said);
}

#[test]
fn the_commands_of_the_documents_run_as_they_are_written() {
    needs_root();
    let _turn = enacting();
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Shell::open(dir.path());
    // A second machine: what stands in the foreground there stays in the background here.
    let readme = blocks("README.md").into_iter().find(|block| block.contains("fleet.toml")).unwrap();
    assert_eq!(shell.tell(&readme.replace("behaveguard run  ", "behaveguard run & ")).0, 0, "{}", shell.said);
    shell.until(60, "behaveguard status", |said| said.contains("gw-2"));
    let mut run = 0;
    for page in ["docs/operations.md", "docs/troubleshooting.md", "docs/mqtt.md"] {
        for command in blocks(page).iter().flat_map(|block| block.lines()).filter(|line| is_run(line)) {
            let (code, said) = shell.tell(command);
            // Names and numbers are examples: what is not there is refused. What is not understood is a mistake of the page.
            assert!(code == 0 || code == 1, "{page}: {command}: {code}: {said}");
            assert_ne!(code, USAGE, "{page}: {command}: {said}");
            run += 1;
        }
    }
    assert!(run >= 18, "only {run} commands were run");
    let (code, said) = shell.tell("behaveguard-fleet user list --state /var/lib/behaveguard-fleet");
    assert!(code == 0 && said.contains("siem") && !said.contains("anna"), "{said}");
}

/// Ours, and none that another test runs for longer: servers, agents, and every simulation at once.
fn is_run(line: &str) -> bool {
    let ours = line.starts_with("behaveguard ") || line.starts_with("behaveguard-fleet ");
    let longer =
        ["fleet run", "behaveguard run", "--all", "enroll", "store import", "fleet broker", "fleet init"];
    ours && !longer.iter().any(|words| line.contains(words))
}
