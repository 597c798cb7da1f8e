//! Beginning and end of a run, and what is looked at with each window.

use std::thread;
use std::time::Duration;

use models::chain::chain;
use models::wire::EventKind;

use super::Service;
use crate::clock;
use crate::run_mark::Found;
use crate::shedding::Shed;
use crate::vitals;

/// How long the fleet may take to store what is said at the end.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The wall clock was set when it moved this much against the clock of intervals.
const CLOCK_SET_MS: i64 = 60_000;

impl Service {
    /// Tells what the last run left to be told, and that this one began.
    pub(super) fn began(&mut self, last_run: Found) {
        for (kind, text) in last_run {
            self.event(kind, None, None, text);
        }
        let text = format!("version {} on Linux {}", env!("CARGO_PKG_VERSION"), vitals::kernel());
        self.event(EventKind::Started, None, None, text);
        // What was denied is denied again, before the first window ends.
        self.look_after_contained();
        self.resume_quarantine();
        self.resume_captures();
        self.resume_update();
    }

    /// Tells that the run ends because it was asked to, and gives the fleet a moment to hear it.
    pub(super) fn ends(&mut self) {
        self.end_recording();
        let why = if self.ends_for_update {
            "another program file is to be run"
        } else {
            "the agent was asked to stop"
        };
        self.event(EventKind::Stopped, None, None, why.to_owned());
        let deadline_ns = clock::boot_ns() + clock::nanoseconds(LAST_WORD);
        while self.online && self.outgoing.disk().waiting() > 0 && clock::boot_ns() < deadline_ns {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What is looked at when a window has ended.
    pub(super) fn window_ended(&mut self) {
        self.windows_ended += 1;
        self.look_after_update();
        self.look_after_recording();
        self.take_back();
        self.look_after_contained();
        self.keep_cpu_budget();
        self.look_at_clock();
    }

    fn keep_cpu_budget(&mut self) {
        let (budget, before) = (self.config.cpu_budget, self.shedding.shed());
        let Some((shed, share)) = self.shedding.measure(budget, vitals::cpu_ms(), clock::boot_ns()) else {
            return;
        };
        if let Err(error) = self.watch.shed(shed) {
            log::error!("leaving evidence out: {}", chain(&error));
        }
        let text = format!("the agent took {share:.0} % of a core: {}", shed.text());
        // Steps between are for the log; the fleet is told when it begins and when it is over.
        if before == Shed::Nothing || shed == Shed::Nothing {
            self.event(EventKind::Shedding, None, None, text);
        } else {
            log::warn!("{text}");
        }
    }

    fn look_at_clock(&mut self) {
        let offset = clock_offset();
        let moved = offset.saturating_sub(self.clock_offset);
        if moved.abs() >= CLOCK_SET_MS {
            let way = if moved > 0 { "forward" } else { "back" };
            let text = format!("the wall clock was set {way} by {} s", moved.abs() / 1000);
            self.event(EventKind::ClockSet, None, None, text);
        }
        self.clock_offset = offset;
    }
}

/// Wall clock minus the clock of intervals, milliseconds.
pub(super) fn clock_offset() -> i64 {
    let now = clock::now();
    let whole = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    whole(now.unix_ms).saturating_sub(whole(now.boot_ns / 1_000_000))
}
