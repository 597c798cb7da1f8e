//! People who look while devices tell, and who search in what was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tests::Failed;
use tests::fleet::Fleet;

/// What a dashboard asks for.
const QUESTIONS: [&str; 5] = [
    "alerts?limit=50",
    "alerts/1",
    "incidents?limit=20",
    "devices/gw-00007",
    "alerts?severity=CRITICAL&limit=50",
];

/// What an analyst looks for.
const SEARCHES: [&str; 9] = [
    "alerts?q=object-4711&limit=50",
    "alerts?q=never%20did%20before&limit=50",
    "alerts?q=program-17%20T1059&limit=50",
    "alerts?severity=CRITICAL&limit=50",
    "alerts?device=gw-00001&severity=HIGH&limit=50",
    "alerts?technique=T1620&state=new&limit=50",
    "alerts?q=object-99&severity=CRITICAL&limit=50",
    "alerts?group=default&limit=50&before=1000",
    "alerts/facets?q=object-47",
];

/// Asks one question after the other, on a connection that is kept.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    asking: JoinHandle<Vec<Timed>>,
}

impl Watch {
    pub(crate) fn start(fleet: &Fleet) -> Result<Self, Failed> {
        let asker = fleet.asker()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let asking = std::thread::spawn(move || {
            let mut times = Vec::new();
            for question in QUESTIONS.iter().cycle() {
                if stopped.load(Relaxed) {
                    break;
                }
                let began = SystemTime::now();
                if let Err(error) = asker.get(question) {
                    eprintln!("{question}: {error}");
                }
                times.push((*question, began.elapsed().unwrap_or_default().as_secs_f64() * 1000.0));
                std::thread::sleep(Duration::from_millis(20));
            }
            times
        });
        Ok(Self { stop, asking })
    }

    /// The 99th percentile in milliseconds; that of each question is told.
    pub(crate) fn stop(self) -> f64 {
        self.stop.store(true, Relaxed);
        let times = self.asking.join().unwrap_or_default();
        for question in QUESTIONS {
            let of_it = times.iter().filter(|(asked, _)| *asked == question).map(|(_, ms)| *ms).collect();
            eprintln!("{:8.1} ms p99  {question}", percentile(of_it, 0.99));
        }
        percentile(times.into_iter().map(|(_, ms)| ms).collect(), 0.99)
    }
}

/// A search and how many milliseconds it took.
pub(crate) type Timed = (&'static str, f64);

/// How long searches take: the slowest, and each, as the median of some.
pub(crate) fn searches(fleet: &Fleet) -> Result<(f64, Vec<Timed>), Failed> {
    let asker = fleet.asker()?;
    let mut found = Vec::new();
    for search in SEARCHES {
        let mut times = Vec::new();
        for _ in 0..7 {
            let began = SystemTime::now();
            asker.get(search)?;
            times.push(began.elapsed().unwrap_or_default().as_secs_f64() * 1000.0);
        }
        found.push((search, percentile(times, 0.5)));
    }
    let slowest = found.iter().map(|(_, ms)| *ms).fold(0.0, f64::max);
    Ok((slowest, found))
}

fn percentile(mut times: Vec<f64>, share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = (times.len() as f64 * share) as usize;
    times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
