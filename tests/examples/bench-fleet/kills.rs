//! A server that is killed every few seconds under load: nothing acknowledged is missing, and nothing comes twice.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rusqlite::Connection;
use serde_json::json;
use tests::Failed;
use tests::fleet::Fleet;

use crate::device::{Devices, Identity, Load};

/// How long the server lives, in milliseconds.
const LIVES_MS: std::ops::Range<u64> = 500..6000;

pub(crate) fn run(state: &Path, identities: Vec<Identity>, how_long: Duration) -> Result<(), Failed> {
    let n = identities.len();
    let mut fleet = Fleet::start_with(
        state,
        1000,
        &format!("mqtt_connections_max = {}\nalerts_max = 100000000\n", 2 * n + 100),
    )?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failed::new("starting a runtime", error))?;
    let devices = Devices::that_come_back(&fleet.mqtt()?, identities)?;
    runtime.block_on(devices.connect())?;
    devices.load(Load::Full);
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let began = SystemTime::now();
    let mut kills = 0;
    while began.elapsed().unwrap_or_default() < how_long {
        std::thread::sleep(Duration::from_millis(random.u64(LIVES_MS)));
        fleet.kill()?;
        kills += 1;
        fleet.restart()?;
        if kills % 10 == 0 {
            eprintln!("{kills} kills, {} of {} alerts acknowledged", devices.durable(), devices.sent());
        }
    }
    devices.load(Load::None);
    devices.settle()?;
    let (sent, acknowledged) = (devices.sent(), devices.durable());
    fleet.stop()?;
    let database =
        Connection::open(state.join("fleet.db")).map_err(|error| Failed::new("the store", error))?;
    // Numbers begin at 1 and have no gap, so the highest of each device is how many it sent.
    let counted = database.query_row(
        "SELECT sum(n), sum(most), sum(n <> most OR n <> apart) FROM (SELECT count(*) AS n, max(seq) AS most,
             count(DISTINCT seq) AS apart FROM alerts GROUP BY device, epoch)",
        [],
        |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)),
    );
    let (stored, highest, uneven) = counted.map_err(|error| Failed::new("the store", error))?;
    let missing = acknowledged.saturating_sub(stored.unsigned_abs());
    println!(
        "{}",
        json!({
            "devices": n, "kills": kills, "seconds": began.elapsed().unwrap_or_default().as_secs(),
            "connections": n as u64 + devices.reconnected(), "sent": sent, "acknowledged": acknowledged,
            "stored": stored, "missing": missing, "twice": stored - highest, "devices_with_gaps": uneven,
        })
    );
    if missing == 0 && stored == highest && uneven == 0 && sent == stored.unsigned_abs() {
        Ok(())
    } else {
        Err(Failed("alerts are missing, or came twice".into()))
    }
}
