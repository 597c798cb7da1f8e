//! `cargo xtask sim`: agents, their outboxes, a bad link, a broker and a fleet server on one clock that is made up, from one
//! seed. Thousands of days with crashes, partitions, full disks, wrong clocks, and messages that come late, twice or never.
//!
//! What runs is what ships: `agent::pipeline`, `agent::outgoing`, `agent::outbox`, `agent::uplink::Lanes`, `agent::done`,
//! `fleet_server::ingest` and `fleet_server::store` with SQLite. Made up are time, the wire, the broker, and when a disk is full.
//! Left out: TLS and MQTT packets, threads, PostgreSQL; the end-to-end tests have those.
//!
//! Last line: one JSON object. A seed that fails is printed; `--from SEED --seeds 1 --verbose` shows what happened.

mod device;
mod event;
mod faults;
mod link;
mod queue;
mod server;
mod tally;
mod world;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;

use tally::Tally;
use world::World;

/// Simulates a fleet.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed; by default another one each time.
    #[arg(long)]
    from: Option<u64>,
    /// How many seeds, each a world of its own.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// No further seed is begun after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Tells everything that happens.
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let from = arguments.from.unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    println!("seeds from {from}");
    let (next, total) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    #[expect(clippy::disallowed_methods, reason = "how long it may take is real time")]
    let begun = Instant::now();
    let is_over = || {
        let limit = arguments.seconds.map(Duration::from_secs);
        limit.is_some_and(|limit| begun.elapsed() >= limit)
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= arguments.seeds || is_over() {
                        return;
                    }
                    let seed = from + n;
                    let tally = World::new(seed, arguments.verbose).run();
                    for violation in &tally.violations {
                        println!("seed {seed}: {violation}");
                    }
                    total.lock().expect("no world panics").add(tally);
                }
            });
        }
    });
    let total = total.into_inner().expect("no world panics");
    println!(
        "{}",
        json!({
            "seeds": total.worlds,
            "device_days": total.device_days,
            "violations": total.violations.len(),
            "produced": total.produced,
            "stored": total.stored,
            "dropped_and_counted": total.dropped,
            "lost_with_a_crash": total.lost,
            "agent_crashes": total.agent_crashes,
            "server_crashes": total.server_crashes,
            "partitions": total.partitions,
            "duplicates_sent": total.duplicates,
            "orders": total.orders,
        })
    );
    if total.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
