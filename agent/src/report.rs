//! What commands print.

use std::error::Error;
use std::path::Path;

use agent::control::{self, Status};
use agent::explanations::{Explained, alert_id};
use agent::pipeline::Output;
use agent::replay::replay;
use agent::sinks::SinkState;
use models::bundle::Verified;
use models::explain::Part;
use models::wire::Alert;

/// One alert, for people.
pub(crate) fn alert(alert: &Alert) {
    println!("{} {:.0}  {} (process {})", alert.severity.as_str(), alert.score, alert.program, alert.pid);
    println!("    {}  {}", alert.techniques.join(" "), alert.summary);
    println!("    more: behaveguard explain --alert {}", alert_id(alert));
}

/// A verdict taken apart, for people: each block adds up to the number of the one before.
pub(crate) fn explained(explained: &Explained) -> String {
    let mut text = String::new();
    let why = &explained.explanation;
    let mut line = |line: String| text.extend([line.as_str(), "\n"]);
    let alert = explained.alert.as_ref().map_or("no alert".to_owned(), |id| format!("alert {id}"));
    line(format!(
        "{} {:.0}, {alert}: process {} ({}) of {}",
        explained.severity.as_str(),
        explained.score,
        explained.pid,
        explained.comm,
        explained.program
    ));
    line(format!("  {}", explained.summary));
    if let Some(p_max) = explained.p_max {
        line(format!("  statistical alerts were sent up to p {p_max:.1e} then"));
    }
    if !explained.techniques.is_empty() {
        line(format!("  techniques {}", explained.techniques.join(" ")));
    }
    let baseline = &explained.baseline;
    let [fit, variance, calibration] = baseline.windows;
    line(format!(
        "baseline generation {} {}, learned from {fit} + {variance} windows, calibrated on {calibration}",
        baseline.generation, baseline.state
    ));
    if !explained.degraded.is_empty() {
        line(format!("not fully seen: {}", explained.degraded.join(", ")));
    }
    line(format!(
        "p {:.1e}: 10^-{:.2}, with {:.2} by the detectors and {:.2} by what is new",
        why.p_value,
        why.statistical_decades + why.evidence_decades,
        why.statistical_decades,
        why.evidence_decades
    ));
    for evidence in &why.evidence {
        let when = evidence.first_boot_ns.map_or_else(
            || "in this window".to_owned(),
            |ns| format!("{:.1} s before the verdict", explained.boot_ns.saturating_sub(ns) as f64 / 1e9),
        );
        line(format!("  +{:.2}  {} {}, {when}", evidence.decades, evidence.technique, evidence.text));
    }
    if why.evidence_more > 0 {
        line(format!("  and {} more", why.evidence_more));
    }
    if why.whitelisted > 0 {
        line(format!("whitelisted, so not counted: {} acts", why.whitelisted));
    }
    match why.fused_z {
        Some(fused) => line(format!("detectors, fused z {fused:.2}:")),
        None => line("judged before the window's end, by what is new alone".to_owned()),
    }
    for detector in &why.detectors {
        line(format!(
            "  +{:.2}  {}: {:.4}, z {:.1}, weight {}",
            detector.share, detector.name, detector.raw, detector.z, detector.weight
        ));
        for part in &detector.parts {
            line(format!("      {:.4}  {}", part.contribution, shown(part)));
        }
        line(format!("      {:.4}  everything else", detector.rest));
    }
    text
}

fn shown(part: &Part) -> String {
    let mut text = format!("{}: {} {}", part.name, rounded(part.observed), part.unit);
    if let (Some(usual), Some(high)) = (part.usual, part.high) {
        text += &format!(", usually {}, rarely over {}", rounded(usual), rounded(high));
    }
    text
}

/// With about three digits.
fn rounded(value: f32) -> String {
    if value >= 100.0 || value == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
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

/// What is stopped or cut off.
pub(crate) fn contained(state: &Path, json: bool) -> Result<(), Box<dyn Error>> {
    let contained = control::status(state)?.contained;
    if json {
        println!("{}", serde_json::to_string_pretty(&contained)?);
        return Ok(());
    }
    for entry in &contained {
        println!("{entry}");
    }
    println!("{} contained", contained.len());
    Ok(())
}

/// How the agent is, for people or as JSON.
pub(crate) fn status(status: &Status, json: bool) -> Result<(), Box<dyn Error>> {
    if json {
        println!("{}", serde_json::to_string_pretty(status)?);
        return Ok(());
    }
    let beat = &status.heartbeat;
    match &status.fleet {
        Some(fleet) => {
            let link = if status.online { "linked to" } else { "no link to" };
            println!("{} {link} {fleet}, {} messages wait", status.device, beat.outbox_waiting);
        }
        None => println!("{} belongs to no fleet; the newest alerts are kept", status.device),
    }
    for sink in &status.sinks {
        let SinkState { name, delivered, waiting, dropped, failed, problem } = sink;
        println!("sink {name}: {delivered} delivered, {waiting} wait, {dropped} dropped, {failed} failed");
        if let Some(problem) = problem {
            println!("    {problem}");
        }
    }
    let confinement = &status.confinement;
    let kept = confinement.capabilities.join(", ");
    match (confinement.calls_refused, confinement.files_confined) {
        (true, true) => println!("confined: calls and files; capabilities {kept}"),
        (true, false) => println!("confined: calls; capabilities {kept}"),
        (false, true) => println!("confined: files of threads that talk to others"),
        (false, false) => println!("not confined"),
    }
    for problem in &confinement.problems {
        println!("    {problem}");
    }
    for entry in &status.contained {
        println!("contained: {entry}");
    }
    if let Some(held) = &status.quarantined {
        let left_s = held.left_s(agent::clock::now());
        println!("quarantined by {}: only the fleet is reached, for {left_s} s more", held.by);
    }
    if let Some(shed) = &status.shed {
        println!("over its CPU budget: {shed}");
    }
    if let Some(reloaded) = &status.reloaded {
        if let Some(refused) = &reloaded.refused {
            println!("the configuration stays as it was: {refused}");
        }
        if !reloaded.needs_restart.is_empty() {
            println!("changed, and used after a restart: {}", reloaded.needs_restart.join(", "));
        }
    }
    // In its first second it has done more than the clock's step can tell.
    let share = beat.cpu_ms as f64 * 100.0 / beat.uptime_ms.max(1000) as f64;
    println!("{} MiB, {share:.1} % CPU, up {} s", beat.rss_bytes / 1_048_576, beat.uptime_ms / 1000);
    match &status.alert_budget {
        Some(state) => println!(
            "statistical alerts are sent up to p {:.1e}, for {} false ones; first-time acts always",
            state.p_max, state.budget
        ),
        None => println!("alerts are sent from MEDIUM on: no alert budget"),
    }
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
        let promise = status.promises.iter().find(|promise| promise.program == program.program);
        for (promised, found) in promise.iter().filter(|promise| promise.broken).flat_map(|p| &p.exceeded) {
            let (promised, found) = (promised * 100.0, found * 100.0);
            println!(
                "         not as learned: {found:.1} % of windows are odder than {promised:.1} % should be"
            );
        }
    }
    if status.fleet.is_some() && status.samples == 0 && beat.programs.iter().any(|p| p.state != "ACTIVE") {
        println!("what is learned stays here: the fleet makes no baseline of it while `samples` is 0");
    }
    let lost = ["damaged", "dropped", "refused", "failed", "limited", "overflow", "errors", "rejected"];
    for (name, value) in &beat.counters {
        if *value > 0 && lost.iter().any(|word| name.contains(word)) {
            println!("{name} {value}");
        }
    }
    Ok(())
}
