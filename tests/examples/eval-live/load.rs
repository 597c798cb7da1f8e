//! Requests to the services, now few and now many.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::services::Services;

/// How long each rate lasts.
const PHASE: Duration = Duration::from_secs(20);
/// Pauses between requests: from a trickle to a burst.
const PAUSES_MS: [u64; 5] = [400, 80, 1500, 25, 250];

/// Clients; they end when this is dropped.
pub(crate) struct Loads {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Loads {
    pub(crate) fn start(services: &Services, dir: &Path) -> Self {
        let shell = |text: String| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &text]);
            command
        };
        let (nginx, redis, sshd, postgres) =
            (services.nginx, services.redis, services.sshd, services.postgres);
        let key = services.ssh_key.display().to_string();
        let known = dir.join("known_hosts").display().to_string();
        let ssh = format!(
            "ssh -q -p {sshd} -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile={known} root@127.0.0.1"
        );
        let stop = Arc::new(AtomicBool::new(false));
        let clients = [
            client(&stop, 0, move |n| {
                shell(format!(
                    "curl -s -o /dev/null 'http://127.0.0.1:{nginx}/[{}-{}].html'",
                    n % 45,
                    n % 45 + 5
                ))
            }),
            client(&stop, 1, move |n| {
                let test = ["set", "get", "incr", "lpush", "ping"][n % 5];
                shell(format!("redis-benchmark -p {redis} -n 200 -c 4 -t {test} -q"))
            }),
            client(&stop, 2, move |n| {
                // A login is heavy, so it waits longer than the others.
                let command = ["true", "uptime", "ls -l /var/log", "df -h"][n % 4];
                shell(format!("sleep 1; {ssh} '{command}'"))
            }),
            client(&stop, 3, move |n| {
                let query = [
                    "create table if not exists t (n int); insert into t select generate_series(1, 100)",
                    "select count(*), avg(n) from t",
                    "update t set n = n + 1 where n % 7 = 0",
                    "delete from t where n > 90",
                ][n % 4];
                shell(format!("psql -q -h 127.0.0.1 -p {postgres} -U postgres -c '{query}'"))
            }),
        ]
        .into();
        Self { stop, clients }
    }
}

fn client(
    stop: &Arc<AtomicBool>,
    shift: usize,
    command: impl Fn(usize) -> Command + Send + 'static,
) -> JoinHandle<()> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let begun_ns = agent::clock::boot_ns();
        let mut n = 0;
        while !stop.load(Relaxed) {
            let _ = command(n).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            n += 1;
            let passed = Duration::from_nanos(agent::clock::boot_ns() - begun_ns);
            let phase = usize::try_from(passed.as_secs() / PHASE.as_secs()).unwrap_or(0);
            thread::sleep(Duration::from_millis(PAUSES_MS[(phase + shift) % PAUSES_MS.len()]));
        }
    })
}

impl Drop for Loads {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}
