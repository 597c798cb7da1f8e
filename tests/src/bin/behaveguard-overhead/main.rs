//! What watching costs: `cargo xtask bench overhead` builds everything and starts this.
//!
//! In each round, each attachment in turn is set up and every workload runs under it; the best of all rounds counts,
//! for the machine may be busy with other things. The last line is one JSON object.

mod attachments;
mod empty;
mod workloads;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use tests::Failed;

use attachments::{Attachment, Attachments};
use workloads::{Cost, WORKLOADS, Workload, Workloads};

/// Measures what watching costs, against nothing, an empty program and bpftrace.
#[derive(Parser)]
struct Arguments {
    /// Rounds; the best of them counts.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Only this workload; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Workload>,
    /// Be the process that makes the calls of `getppid`.
    #[arg(long = "loop", hide = true)]
    measure_loop: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.measure_loop {
        workloads::measure_loop();
        return ExitCode::SUCCESS;
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe bench failed: {error}");
            ExitCode::FAILURE
        }
    }
}

type Best = BTreeMap<(Workload, Attachment), Cost>;

fn run(arguments: &Arguments) -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failed("loading kernel programs needs root: run it with sudo".into()));
    }
    let dir = tempfile::tempdir().map_err(|error| Failed::new("making a temporary folder", error))?;
    let workloads = Workloads::prepare(dir.path())?;
    let mut attachments = Attachments::prepare(dir.path())?;
    let mut best = Best::new();
    for round in 1..=arguments.rounds.max(1) {
        for attachment in Attachment::ALL {
            let attached = attachments.attach(attachment)?;
            for workload in WORKLOADS {
                let wanted = arguments.only.is_empty() || arguments.only.contains(&workload);
                let times = if wanted && attachment.compared_on(workload) { workload.times() } else { 0 };
                for _ in 0..times {
                    let cost = workloads.run(workload)?;
                    best.entry((workload, attachment)).or_default().keep_lower(cost);
                }
            }
            attachments.detach(attached)?;
        }
        eprintln!("round {round} of {}", arguments.rounds);
    }
    report(&best, &attachments);
    Ok(())
}

fn report(best: &Best, attachments: &Attachments) {
    let cost = |workload, attachment| best.get(&(workload, attachment)).copied().unwrap_or_default();
    let per_call = |attachment| {
        nanoseconds(cost(Workload::Getppid, attachment).cpu) / f64::from(workloads::GETPPID_CALLS)
    };
    let base = per_call(Attachment::Nothing);
    println!("{:12} {:>16} {:>14}", "attached", "ns per getppid", "added");
    for attachment in Attachment::ALL {
        let all = per_call(attachment);
        println!("{:12} {all:>16.1} {:>14.1}", attachment.name(), all - base);
    }
    println!(
        "\n{:12} {:>12} {:>12} {:>12} {:>10} {:>10} {:>10}",
        "workload", "nothing, ms", "empty, ms", "agent, ms", "empty", "agent", "of CPU"
    );
    let ratio = |a: Duration, b: Duration| if b.is_zero() { 0.0 } else { a.as_secs_f64() / b.as_secs_f64() };
    let mut slowdown = serde_json::Map::new();
    let (mut slowdown_cpu, mut slowdown_empty) = (slowdown.clone(), slowdown.clone());
    for workload in WORKLOADS.into_iter().filter(|workload| {
        *workload != Workload::Getppid && best.contains_key(&(*workload, Attachment::Agent))
    }) {
        let [nothing, empty, agent] =
            [Attachment::Nothing, Attachment::Empty, Attachment::Agent].map(|a| cost(workload, a));
        let [floor, wall, cpu] =
            [ratio(empty.wall, nothing.wall), ratio(agent.wall, nothing.wall), ratio(agent.cpu, nothing.cpu)];
        println!(
            "{:12} {:>12.1} {:>12.1} {:>12.1} {floor:>10.3} {wall:>10.3} {cpu:>10.3}",
            workload.name(),
            nanoseconds(nothing.wall) / 1e6,
            nanoseconds(empty.wall) / 1e6,
            nanoseconds(agent.wall) / 1e6
        );
        slowdown.insert(workload.name().into(), rounded(wall));
        slowdown_cpu.insert(workload.name().into(), rounded(cpu));
        slowdown_empty.insert(workload.name().into(), rounded(floor));
    }
    let added: serde_json::Map<String, Value> = Attachment::ALL
        .into_iter()
        .filter(|attachment| *attachment != Attachment::Nothing)
        .map(|attachment| (attachment.name().into(), rounded(per_call(attachment) - base)))
        .collect();
    let usage = attachments.agent_usage();
    println!(
        "\nagent: {:.2} % of one CPU over {:.0} s of these workloads",
        usage.share * 100.0,
        usage.seconds
    );
    println!(
        "{}",
        json!({
            "added_ns": added,
            "slowdown": slowdown,
            "slowdown_cpu": slowdown_cpu,
            "slowdown_empty": slowdown_empty,
            "agent_cpu_share": rounded(usage.share),
            "drops": usage.drops,
        })
    );
}

fn rounded(number: f64) -> Value {
    json!((number * 1000.0).round() / 1000.0)
}

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}
