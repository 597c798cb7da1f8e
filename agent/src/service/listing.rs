//! What runs on this device, for whoever asks from afar.

use std::sync::PoisonError;

use models::program::ProgramId;
use models::wire::ANSWER_MAX;
use serde::Serialize;

use super::Service;
use crate::clock;
use crate::explanations::{Explained, Explanations, Score};
use crate::pipeline::Running;

/// One process.
#[derive(Debug, Serialize)]
struct Row<'a> {
    pid: u32,
    comm: &'a str,
    uid: u32,
    program: &'a ProgramId,
    program_key: String,
    state: &'static str,
    /// `null` when no window of it was judged.
    judged: Option<Judged>,
}

/// How it was judged last.
#[derive(Debug, Serialize)]
struct Judged {
    unix_ms: u64,
    score: f32,
    severity: &'static str,
    summary: String,
}

impl<'a> Row<'a> {
    fn new(running: Running<'a>, explanations: &Explanations) -> Self {
        let Running { pid, comm, uid, program, state } = running;
        // A verdict on one that had this number before is none on this.
        let last = explanations.process(pid).filter(|last| last.program == *program);
        let judged = last.map(|last| Judged {
            unix_ms: last.unix_ms,
            score: last.score,
            severity: last.severity.as_str(),
            summary: last.summary.clone(),
        });
        Self { pid, comm, uid, program, program_key: program.key(), state, judged }
    }
}

impl Service {
    /// `{"unix_ms", "processes": [...], "left_out"}`: the highest scores first, as many as an answer holds.
    pub(super) fn listed(&self) -> String {
        let unix_ms = clock::now().unix_ms;
        let explanations = self.watch.pipeline().explanations();
        let explanations = explanations.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = self.watch.pipeline().running(unix_ms / 1000).map(|one| Row::new(one, &explanations));
        json(unix_ms, rows.collect(), ANSWER_MAX)
    }
}

/// One process, how it was judged lately and why last.
#[derive(Debug, Serialize)]
struct Closer<'a> {
    unix_ms: u64,
    #[serde(flatten)]
    row: Row<'a>,
    /// Oldest first.
    scores: Vec<Score>,
    /// As `behaveguard explain --json` tells it; `null` when no window was judged, or it is too long to be sent.
    last: Option<&'a Explained>,
}

impl Service {
    /// What is known of one process.
    pub(super) fn judged_lately(&self, pid: u32) -> Result<String, String> {
        let unix_ms = clock::now().unix_ms;
        let explanations = self.watch.pipeline().explanations();
        let explanations = explanations.lock().unwrap_or_else(PoisonError::into_inner);
        let running = self.watch.pipeline().running(unix_ms / 1000).find(|one| one.pid == pid);
        let running = running.ok_or_else(|| format!("no process {pid} is watched here; ask what runs"))?;
        let last = explanations.process(pid).filter(|last| last.program == *running.program);
        let scores = last.map(|_| explanations.scores(pid).collect()).unwrap_or_default();
        let closer = Closer { unix_ms, row: Row::new(running, &explanations), scores, last };
        let text = |closer: &Closer<'_>| serde_json::to_string(closer).map_err(|error| error.to_string());
        let whole = text(&closer)?;
        if whole.len() <= ANSWER_MAX { Ok(whole) } else { text(&Closer { last: None, ..closer }) }
    }
}

fn json(unix_ms: u64, mut rows: Vec<Row<'_>>, max: usize) -> String {
    let score = |row: &Row<'_>| row.judged.as_ref().map_or(-1.0, |judged| judged.score);
    rows.sort_by(|a, b| score(b).total_cmp(&score(a)).then(a.pid.cmp(&b.pid)));
    let all = rows.len();
    // What is around the rows.
    let mut left = max.saturating_sub(100);
    let mut told = Vec::new();
    for row in &rows {
        let row = serde_json::to_string(row).unwrap_or_default();
        let Some(after) = left.checked_sub(row.len() + 1) else { break };
        left = after;
        told.push(row);
    }
    let left_out = all - told.len();
    format!("{{\"unix_ms\":{unix_ms},\"processes\":[{}],\"left_out\":{left_out}}}", told.join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_highest_scores_come_first_and_what_does_not_fit_is_counted() {
        let program = ProgramId { unit: "gw.service".into(), exe: "/usr/bin/gw".into(), script: None };
        let row = |pid: u32| {
            let summary = "opened the file \"a\"".to_owned();
            let judged = Judged { unix_ms: 1, score: pid as f32 / 10.0, severity: "LOW", summary };
            Row {
                pid,
                comm: "gw",
                uid: 0,
                program: &program,
                program_key: program.key(),
                state: "ACTIVE",
                judged: pid.is_multiple_of(2).then_some(judged),
            }
        };
        let check = |max: usize, first: &[u64], left_out: u64| {
            let text = json(9, (1..=300).map(row).collect(), max);
            let told: Value = serde_json::from_str(&text).unwrap();
            let pids: Vec<u64> =
                told["processes"].as_array().unwrap().iter().filter_map(|row| row["pid"].as_u64()).collect();
            assert!(text.len() <= max && pids.starts_with(first), "{} bytes: {pids:?}", text.len());
            assert_eq!((told["left_out"].as_u64(), pids.len() as u64), (Some(left_out), 300 - left_out));
        };
        check(1 << 20, &[300, 298, 296], 0);
        check(400, &[300], 299);
        check(50, &[], 300);
        assert!(json(9, (1..=300).map(row).collect(), ANSWER_MAX).len() > ANSWER_MAX - 400);
    }
}
