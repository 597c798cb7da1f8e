//! What commands print.

use std::error::Error;
use std::path::Path;

use agent::control::Status;
use agent::pipeline::Output;
use agent::replay::replay;
use models::bundle::Verified;
use models::wire::Alert;

/// One alert, for people.
pub(crate) fn alert(alert: &Alert) {
    println!("{} {:.0}  {} (process {})", alert.severity.as_str(), alert.score, alert.program, alert.pid);
    println!("    {}  {}", alert.techniques.join(" "), alert.summary);
}

/// What a capture gives when it is judged again.
pub(crate) fn replayed(file: &Path, baselines: &[Verified], json: bool) -> Result<(), Box<dyn Error>> {
    let mut alerts = 0;
    let summary = replay(file, baselines, &mut |output| {
        let Output::Alert(found) = output else { return };
        alerts += 1;
        match serde_json::to_string(&found) {
            Ok(line) if json => println!("{line}"),
            _ => alert(&found),
        }
    })?;
    for missing in &summary.missing {
        eprintln!("behaveguard: the baseline of {missing} was used then: name it with --bundle");
    }
    if summary.full {
        eprintln!("behaveguard: recording ended when the file had its full size");
    }
    if json {
        return Ok(());
    }
    if let Some(origin) = summary.origin {
        println!("recorded by {} on Linux {} ({})", origin.agent, origin.kernel, origin.arch);
    }
    println!(
        "{} inputs, {} windows judged, {} learned, {alerts} alerts",
        summary.steps, summary.counters.windows_judged, summary.counters.windows_trained
    );
    Ok(())
}

/// How the agent is, for people or as JSON.
pub(crate) fn status(status: &Status, json: bool) -> Result<(), Box<dyn Error>> {
    if json {
        println!("{}", serde_json::to_string_pretty(status)?);
        return Ok(());
    }
    let beat = &status.heartbeat;
    let link = if status.online { "linked to" } else { "no link to" };
    println!("{} {link} {}, {} messages wait", status.device, status.fleet, beat.outbox_waiting);
    let share = beat.cpu_ms as f64 * 100.0 / beat.uptime_ms.max(1) as f64;
    println!("{} MiB, {share:.1} % CPU, up {} s", beat.rss_bytes / 1_048_576, beat.uptime_ms / 1000);
    for layer in &beat.layers {
        let backend = if layer.backend.is_empty() { "not seen" } else { &layer.backend };
        println!("layer {:16} {backend}", layer.layer);
        for (backend, reason) in &layer.failed {
            println!("                not {backend}: {reason}");
        }
        let unseen = agent::probe::unseen(layer);
        if !unseen.is_empty() {
            println!("                less is seen: {unseen}");
        }
    }
    for program in &beat.programs {
        println!("{:8} generation {} {}", program.state, program.generation, program.program);
    }
    let lost = ["damaged", "dropped", "refused", "failed", "limited", "overflow", "errors", "rejected"];
    for (name, value) in &beat.counters {
        if *value > 0 && lost.iter().any(|word| name.contains(word)) {
            println!("{name} {value}");
        }
    }
    Ok(())
}
