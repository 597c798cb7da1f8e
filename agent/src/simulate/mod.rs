//! `behaveguard simulate`: real attacks, without harm, to see whether an alarm works.
//!
//! ```text
//! simulator ─► one stage per variant (own network and mounts) ─► actor: a tool, or a copy of this binary
//!     ▲                       │ report, proof
//!     └───────────────────────┘
//! ```
//! Everything that is touched goes through [`sandbox::Sandbox`]; what a variant needs, does and must look like to the
//! kernel side is in [`table`].

pub mod evasion;
mod family;
mod listener;
pub mod report;
mod ring;
pub mod sandbox;
pub mod stage;
mod sys;
pub mod table;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use models::chain::chain;

use self::evasion::{EVASIONS, Evasion};
use self::report::{Outcome, Report};
use self::sandbox::{Problem, Sandbox};
pub use self::sys::is_root;
use self::table::{Log, THREATS, Threat, Variant};

/// Exit code for a command line that cannot be understood, from sysexits(3).
const USAGE: u8 = 64;
/// A stage gets so long, and then so long to clean up.
const LIMIT_MS: u64 = 10_000;
const CLEANUP_MS: u64 = 1000;
const TICK_MS: u64 = 10;

const HELP: &str = "\
Each variant runs in a process of its own, on loopback, in temporary folders and, as root, in network and mount \
namespaces of its own; it refuses to touch anything else, removes what it made, and takes at most ten seconds. \
A variant whose tool is missing is skipped, and said so.

  behaveguard simulate --list
  behaveguard simulate reverse-shell dns-tunnelling
  behaveguard simulate credential-dumping --variant open-shadow
  behaveguard simulate --all --json | jq 'select(.outcome != \"done\")'
  behaveguard simulate --evasive --all

With --evasive what is enacted are ways to escape notice, each with what is seen of it and what is not, and hidden in \
--json names the records that are not there.

Names are plain words: nothing needs quoting. With --json each line is one object: threat, variant, techniques, pid, \
ppid, executable, layer, expected (each record with its path, address or victim), alert, outcome, and reason unless \
done. Exit code: 0 when all that ran were done, 1 when one failed or it was interrupted, 64 for bad usage.";

/// What to simulate.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Options {
    /// Threats; see `--list`.
    threats: Vec<String>,
    /// All of them.
    #[arg(long, conflicts_with = "threats")]
    all: bool,
    /// Show threats and variants, and what each needs.
    #[arg(long)]
    list: bool,
    /// Only this variant of the threats named.
    #[arg(long)]
    variant: Option<String>,
    /// Evasions instead of threats: how an attacker who has read our source would try not to be seen.
    #[arg(long)]
    evasive: bool,
    /// Attack this agent too: trace it, hold it up, kill it. It must be started again by what runs it.
    #[arg(long, value_name = "PID", requires = "evasive")]
    agent: Option<u32>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
    /// Be the stage of this variant.
    #[arg(long, hide = true)]
    stage: Option<String>,
    /// Do the act of this variant.
    #[arg(long, hide = true)]
    act: Option<String>,
    /// The simulator's process id, for a stage or an act.
    #[arg(long, hide = true, default_value_t = 0)]
    owner: u32,
}

/// Does what was asked for.
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    let fail = |code: u8, text: String| {
        eprintln!("behaveguard: {text}");
        ExitCode::from(code)
    };
    if let Some(id) = &options.act {
        return match act(id, options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => fail(1, chain(&problem)),
        };
    }
    if let Some(id) = &options.stage {
        let Some((threat, variant)) = table::find(id) else {
            return fail(USAGE, format!("there is no {id}"));
        };
        let report = stage::play(threat, variant, options, &stop_signals());
        // A simulator that was killed reads no more.
        let _ = writeln!(io::stdout(), "{}", serde_json::to_string(&report).unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    let chosen = match choose(options) {
        Ok(chosen) => chosen,
        Err(text) => return fail(USAGE, text),
    };
    if options.list {
        // A reader that has left, as `head` does, is no mistake.
        let _ = io::stdout().write_all(list(&chosen, options).as_bytes());
        return ExitCode::SUCCESS;
    }
    simulate(&chosen, options)
}

type Chosen = Vec<(&'static Threat, &'static Variant)>;

fn choose(options: &Options) -> Result<Chosen, String> {
    let (kind, known): (_, Vec<&Threat>) = if options.evasive {
        ("evasion", EVASIONS.iter().map(|evasion| &evasion.threat).collect())
    } else {
        ("threat", THREATS.iter().collect())
    };
    if let Some(unknown) = options.threats.iter().find(|name| known.iter().all(|known| known.name != *name)) {
        let names: Vec<_> = known.iter().map(|known| known.name).collect();
        return Err(format!("there is no {kind} {unknown}; there are: {}", names.join(" ")));
    }
    let everything = options.all || options.list && options.threats.is_empty();
    if !everything && options.threats.is_empty() {
        return Err(format!("name {kind}s, or say --all, or look with --list"));
    }
    let threats =
        known.into_iter().filter(|known| everything || options.threats.iter().any(|name| name == known.name));
    let all = threats.flat_map(|threat| threat.variants.iter().map(move |variant| (threat, variant)));
    let wanted = options.variant.as_deref();
    let chosen: Chosen = all.filter(|(_, variant)| wanted.is_none_or(|name| name == variant.name)).collect();
    match wanted {
        Some(name) if chosen.is_empty() => Err(format!("there is no variant {name} of these {kind}s")),
        _ => Ok(chosen),
    }
}

fn evasion_of(threat: &Threat) -> Option<&'static Evasion> {
    EVASIONS.iter().find(|evasion| evasion.threat.name == threat.name)
}

/// The table, for people or as one JSON object per line.
fn list(chosen: &Chosen, options: &Options) -> String {
    let mut text = String::new();
    if !options.json {
        let kind = if options.evasive { "evasion" } else { "threat" };
        text += &format!(
            "| {kind} | variant | techniques | layer | needs | what it does |\n|---|---|---|---|---|---|\n"
        );
    }
    for (threat, variant) in chosen {
        let needs: Vec<String> = variant.needs.iter().map(ToString::to_string).collect();
        text += &if options.json {
            let mut row = serde_json::json!({
                "threat": threat.name, "variant": variant.name, "techniques": variant.techniques,
                "layer": variant.layer, "needs": needs, "summary": variant.summary,
            });
            if let Some(evasion) = evasion_of(threat) {
                row["seen"] = evasion.seen.into();
                row["unseen"] = evasion.unseen.into();
            }
            format!("{row}\n")
        } else {
            let (techniques, needs) = (variant.techniques.join(" "), needs.join(", "));
            let (threat, name, layer, summary) = (threat.name, variant.name, variant.layer, variant.summary);
            format!("| {threat} | {name} | {techniques} | {layer} | {needs} | {summary} |\n")
        };
    }
    text
}

/// The act of a copy of this binary.
fn act(id: &str, options: &Options) -> Result<(), Problem> {
    let found = table::find(id).and_then(|(_, variant)| variant.act);
    let act = found.ok_or_else(|| Problem::Refused(id.to_owned()))?;
    // Only a stage's child acts, and a stage is its simulator's child.
    if sandbox::parent(std::os::unix::process::parent_id()) != Some(options.owner) {
        return Err(Problem::Refused("anything without a simulator".into()));
    }
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let (own, owners) = (network("self"), network(&options.owner.to_string()));
    // A user without rights may not look, and does nothing that needs a network of its own.
    let private = own.zip(owners).is_some_and(|(own, owners)| own != owners);
    act(&Sandbox::of(options.owner, private), &options.threats)
}

/// Set when the simulator shall stop.
fn stop_signals() -> Arc<AtomicBool> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let _ = signal_hook::flag::register(signal, Arc::clone(&stopped));
    }
    stopped
}

fn simulate(chosen: &Chosen, options: &Options) -> ExitCode {
    let stopped = stop_signals();
    let _ = sys::adopt_orphans();
    let (mut done, mut skipped, mut failed) = (0, 0, 0);
    let mut told = "";
    for (threat, variant) in chosen {
        if stopped.load(Ordering::SeqCst) {
            break;
        }
        if let (false, Some(evasion)) = (options.json || told == threat.name, evasion_of(threat)) {
            told = threat.name;
            let (seen, unseen) = (evasion.seen, evasion.unseen);
            if writeln!(io::stdout(), "{told}\n  is seen: {seen}\n  is not seen: {unseen}").is_err() {
                return ExitCode::FAILURE;
            }
        }
        let report = variant_of(threat, variant, options, &stopped);
        match report.outcome {
            Outcome::Done => done += 1,
            Outcome::Skipped(_) => skipped += 1,
            Outcome::Failed(_) => failed += 1,
        }
        let line =
            if options.json { serde_json::to_string(&report).unwrap_or_default() } else { report.line() };
        if writeln!(io::stdout(), "{line}").is_err() {
            return ExitCode::FAILURE;
        }
    }
    if !options.json {
        println!("{done} done, {skipped} skipped, {failed} failed");
    }
    if failed > 0 || stopped.load(Ordering::SeqCst) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// One variant, from its stage's start until nothing of it is left.
fn variant_of(
    threat: &'static Threat,
    variant: &'static Variant,
    options: &Options,
    stopped: &AtomicBool,
) -> Report {
    let mut report = Report::new(threat, variant);
    let missing: Vec<String> = variant.needs.iter().filter_map(|need| need.missing()).collect();
    if !missing.is_empty() {
        report.outcome = Outcome::of(&Problem::Needs(missing.join(", ")));
        return report;
    }
    match play(threat, variant, options, stopped) {
        Ok(Some(played)) => played,
        Ok(None) => report,
        Err(error) => {
            report.outcome = Outcome::Failed(format!("starting its stage: {error}"));
            report
        }
    }
}

fn play(
    threat: &Threat,
    variant: &Variant,
    options: &Options,
    stopped: &AtomicBool,
) -> io::Result<Option<Report>> {
    let left = Leftovers::of(variant)?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["simulate", "--stage", &format!("{}/{}", threat.name, variant.name)]);
    command.args(["--owner", &std::process::id().to_string()]);
    if let Some(agent) = options.agent {
        command.args(["--evasive", "--agent", &agent.to_string()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    // It cleans up when this process is killed.
    sys::bind_to_parent(&mut command, libc::SIGTERM, 60);
    let mut stage = command.spawn()?;
    left.stage.store(stage.id() as usize, Ordering::SeqCst);
    let mut waited = 0;
    while stage.try_wait()?.is_none() {
        let over = waited >= LIMIT_MS || stopped.load(Ordering::SeqCst);
        if over {
            sys::kill_group(stage.id(), libc::SIGTERM);
            thread::sleep(Duration::from_millis(TICK_MS * 5));
        }
        if waited >= LIMIT_MS + CLEANUP_MS {
            break;
        }
        thread::sleep(Duration::from_millis(TICK_MS));
        waited += if over { CLEANUP_MS / 10 } else { TICK_MS };
        waited = if over { waited.max(LIMIT_MS) } else { waited };
    }
    // Whoever still has the pipe is ended first, so that reading cannot wait.
    let output = stage.stdout.take();
    drop(left);
    let _ = stage.wait();
    let mut text = String::new();
    if let Some(mut output) = output {
        io::Read::read_to_string(&mut output, &mut text)?;
    }
    Ok(text.lines().find_map(|line| serde_json::from_str(line).ok()))
}

/// What a stage leaves when it could not clean up itself: ended and removed when this goes.
struct Leftovers {
    stage: AtomicUsize,
    sandbox: Sandbox,
    log: bool,
}

impl Leftovers {
    /// Nothing may be there yet: what is removed later must be of this run.
    fn of(variant: &Variant) -> io::Result<Self> {
        let sandbox = Sandbox::of(std::process::id(), sys::is_root());
        let log = variant.log == Log::Real;
        for path in [Some(sandbox.root()), log.then(|| sandbox.log())].into_iter().flatten() {
            if path.symlink_metadata().is_ok() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, path.display().to_string()));
            }
        }
        Ok(Self { stage: AtomicUsize::new(0), sandbox, log })
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        if let Ok(stage @ 1..) = u32::try_from(self.stage.load(Ordering::SeqCst)) {
            sys::kill_group(stage, libc::SIGKILL);
            sys::end_children(Some(stage));
        }
        if !self.sandbox.is_private() {
            let _ = fs::remove_dir_all(self.sandbox.root());
        }
        if self.log {
            let _ = fs::remove_file(self.sandbox.log());
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::documented;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn chosen(line: &str) -> Result<Vec<String>, String> {
        let words = std::iter::once("simulate").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let chosen = choose(&line.options)?;
        Ok(chosen.iter().map(|(threat, variant)| format!("{}/{}", threat.name, variant.name)).collect())
    }

    #[test]
    fn unknown_threats_and_variants_are_refused_with_what_there_is() {
        let all: usize = THREATS.iter().map(|threat| threat.variants.len()).sum();
        assert_eq!(chosen("--all").unwrap().len(), all);
        assert_eq!(chosen("--list").unwrap().len(), all);
        assert_eq!(chosen("reverse-shell --variant static").unwrap(), ["reverse-shell/static"]);
        assert!(chosen("nonsense").unwrap_err().contains("io-uring-access"));
        assert!(chosen("reverse-shell --variant rm").unwrap_err().contains("no variant rm"));
        assert!(chosen("").unwrap_err().contains("--list"));
        assert!(chosen("--all reverse-shell").is_err());
        assert_eq!(chosen("--evasive mimicry").unwrap(), ["mimicry/padded-open", "mimicry/nothing-new"]);
        assert!(chosen("--evasive reverse-shell").unwrap_err().contains("no evasion reverse-shell"));
        assert!(chosen("mimicry").is_err() && chosen("--all --agent 7").is_err());
    }

    #[test]
    fn nobody_but_a_simulator_makes_the_binary_act() {
        let words = ["simulate", "--act", "credential-dumping/open-shadow", "--", "/etc/shadow"];
        let line = Line::try_parse_from(words).unwrap();
        let refused = act(line.options.act.as_deref().unwrap(), &line.options);
        assert!(matches!(refused, Err(Problem::Refused(_))), "{refused:?}");
    }

    #[test]
    fn the_documented_threats_are_those_of_the_code() {
        let head = "| threat | technique | variants |\n|---|---|---|\n";
        let row = |threat: &Threat| {
            let variants: Vec<_> = threat.variants.iter().map(|variant| variant.name).collect();
            let (name, techniques) = (threat.name, threat.techniques.join(" "));
            format!("| {name} | {techniques} | {} |", variants.join(", "))
        };
        let rows: Vec<String> = THREATS.iter().map(row).collect();
        documented::table("operations.md", head, &rows, "documented_threats");
    }
}
