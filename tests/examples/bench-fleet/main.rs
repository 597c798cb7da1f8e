//! `cargo xtask bench fleet`: how many devices and alerts one shipped fleet server takes, on this machine's cores.
//!
//! Devices are simulated in this process, each with a certificate, a TLS connection and the real protocol. The server
//! is the binary beside this one, with its embedded broker and store. Last line: one JSON object.

mod device;
mod kills;
mod people;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Parser;
use device::{Devices, Load};
use fleet_server::counters::Counters;
use fleet_server::names::{DeviceId, GroupId};
use fleet_server::pki::Pki;
use fleet_server::store::{self, NewToken};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tests::Failed;
use tests::fleet::Fleet;

/// How many devices and alerts one fleet server takes.
#[derive(Debug, Parser)]
struct Arguments {
    /// Devices that are connected at once.
    #[arg(long, default_value_t = 10_000)]
    devices: usize,
    /// Alerts a second that all devices together send for the latencies: more than the 5,000 that must be durable, since what is on
    /// its way at the end does not count.
    #[arg(long, default_value_t = 5200)]
    rate: u64,
    /// Seconds of that.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Alerts that are stored before searches and the restart are timed.
    #[arg(long, default_value_t = 1_000_000)]
    alerts: u64,
    /// Alerts that the server keeps (`alerts_max`); with fewer than are stored, each new one drops the oldest.
    #[arg(long, default_value_t = 100_000_000)]
    kept: u32,
    /// Kills the server again and again for so many seconds while devices send what they can, and measures nothing.
    #[arg(long, default_value_t = 0)]
    kills: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe bench failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn failed(what: &str) -> impl Fn(&dyn std::fmt::Display) -> Failed + '_ {
    move |error| Failed::new(what, error)
}

fn run(arguments: &Arguments) -> Result<(), Failed> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .map_err(|error| failed("raising the limit of open files")(&error))?;
    let dir = tempfile::tempdir().map_err(|error| failed("making a temporary folder")(&error))?;
    let state = dir.path().join("fleet");
    let identities = enrol(&state, arguments.devices)?;
    if arguments.kills > 0 {
        return kills::run(&state, identities, Duration::from_secs(arguments.kills));
    }
    let connections = arguments.devices + 100;
    let config = format!("mqtt_connections_max = {connections}\nalerts_max = {}\n", arguments.kept);
    let mut fleet = Fleet::start_with(&state, 1000, &config)?;
    let empty_mib = fleet.resident_mib()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("starting a runtime")(&error))?;

    let devices = Devices::new(&fleet.mqtt()?, identities)?;
    let began = SystemTime::now();
    runtime.block_on(devices.connect())?;
    eprintln!("{} devices connected in {:.0} s", arguments.devices, seconds(began));
    // Two heartbeats of each.
    std::thread::sleep(Duration::from_secs(65));
    let online = fleet.get("health")?["devices_online"].as_u64().unwrap_or(0);
    let rss_mib = fleet.resident_mib()?;
    let per_device_kib = (rss_mib - empty_mib) * 1024.0 / arguments.devices as f64;
    eprintln!(
        "{online} online, {rss_mib:.0} MiB resident ({empty_mib:.0} without devices, {per_device_kib:.1} KiB each)"
    );

    let people = people::Watch::start(&fleet)?;
    let began = SystemTime::now();
    devices.load(Load::Paced { per_s: arguments.rate });
    std::thread::sleep(Duration::from_secs(arguments.seconds));
    devices.load(Load::None);
    let sent = devices.sent();
    let behind = sent - devices.durable();
    let paced_s = seconds(began);
    let durable_alerts_per_s = devices.durable() as f64 / paced_s;
    let (durable_p50_ms, durable_p99_ms) = devices.latency_ms();
    let api_p99_ms = people.stop();
    eprintln!(
        "{durable_alerts_per_s:.0} alerts/s acknowledged as durable over {paced_s:.0} s ({sent} sent, {behind} behind at the end); \
         sent to acknowledged p50 {durable_p50_ms:.1} ms, p99 {durable_p99_ms:.0} ms; API p99 {api_p99_ms:.1} ms"
    );

    devices.settle()?;
    let (began, before) = (SystemTime::now(), devices.durable());
    devices.load(Load::Full);
    std::thread::sleep(Duration::from_secs(20));
    devices.load(Load::None);
    let most_alerts_per_s = (devices.durable() - before) as f64 / seconds(began);
    eprintln!("at most {most_alerts_per_s:.0} alerts/s");
    devices.settle()?;
    while devices.durable() < arguments.alerts {
        devices.load(Load::Full);
        std::thread::sleep(Duration::from_secs(1));
    }
    devices.load(Load::None);
    devices.settle()?;
    let stored = devices.durable();
    let (search_ms, searches) = people::searches(&fleet)?;
    for (query, ms) in &searches {
        eprintln!("{ms:8.1} ms  {query}");
    }
    let disk_mib = fs::metadata(state.join("fleet.db")).map_or(0, |file| file.len()) / 1_048_576;
    let loaded_mib = fleet.resident_mib()?;
    fleet.kill()?;
    let began = SystemTime::now();
    fleet.restart()?;
    let restart_s = seconds(began);
    eprintln!("{stored} alerts stored ({disk_mib} MiB), killed and back in {restart_s:.2} s");
    fleet.stop()?;
    println!(
        "{}",
        json!({
            "devices": online,
            "rss_mib": round(rss_mib),
            "rss_mib_loaded": round(loaded_mib),
            "kib_per_device": round(per_device_kib),
            "durable_alerts_per_s": durable_alerts_per_s.round(),
            "durable_p99_ms": round(durable_p99_ms),
            "most_alerts_per_s": most_alerts_per_s.round(),
            "api_p99_ms": round(api_p99_ms),
            "alerts": stored,
            "disk_mib": disk_mib,
            "search_ms": round(search_ms),
            "restart_s": (restart_s * 100.0).round() / 100.0,
        })
    );
    Ok(())
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn seconds(since: SystemTime) -> f64 {
    since.elapsed().unwrap_or_default().as_secs_f64()
}

/// Enrols devices in the server's folder, as the server does. They share one key, which saves ten thousand of them
/// and costs the server nothing less.
fn enrol(state: &Path, count: usize) -> Result<Vec<device::Identity>, Failed> {
    let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    fleet_server::files::make_state_dir(state).map_err(|error| failed("making the state folder")(&error))?;
    let names = ["localhost", "127.0.0.1"].map(String::from);
    let pki = Pki::open(state, &names, now_s).map_err(|error| failed("making certificates")(&error))?;
    let connection = store::open_alone(state).map_err(|error| failed("opening the store")(&error))?;
    let hash = [7; 32];
    let uses = u32::try_from(count).unwrap_or(u32::MAX);
    let group = GroupId::default();
    let token = NewToken { hash, group, device: None, uses, expires_s: now_s + 3600, by: "bench".into() };
    let key = rcgen::KeyPair::generate().map_err(|error| failed("making a key")(&error))?;
    let request = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .map_err(|error| failed("making a signing request")(&error))?;
    let key = Arc::new(key.serialize_der());
    let life = Duration::from_secs(30 * 86_400);
    let (mut identities, mut enrolled) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for n in 0..count {
        let device =
            DeviceId::parse(&format!("gw-{n:05}")).map_err(|error| failed("naming a device")(&error))?;
        let signed = pki
            .sign_device(&device, &request, now_s, life)
            .map_err(|error| failed("signing a certificate")(&error))?;
        enrolled.push((device.clone(), signed.clone()));
        let (ca_pem, key) = (pki.ca_pem().to_owned(), Arc::clone(&key));
        identities.push(device::Identity { name: device.to_string(), certificate: signed.pem, key, ca_pem });
    }
    let counters = Counters::default();
    let put = store::alone(&connection, |c| {
        store::add_token(c, &token, now_s)?;
        enrolled.iter().try_for_each(|(device, signed)| {
            store::enrol(c, &counters, hash, device, signed, now_s * 1000).map(|_| ())
        })
    });
    put.map_err(|error| failed("enrolling")(&error))?;
    Ok(identities)
}
