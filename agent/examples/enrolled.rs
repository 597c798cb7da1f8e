//! Writes the state folder of an enrolled device that has a baseline for one program, without any fleet.
//!
//! `enrolled STATE EXE [SCRIPT]`. `cargo xtask vm` gives such a folder to machines that have no network. The program
//! was learned as one that opens `/etc/hostname` and does little else. `ALSO=49` in the environment adds the same for as
//! many programs of other names, to see what baselines cost.

use std::error::Error;
use std::path::Path;

use agent::enroll::Identity;
use agent::files;
use models::bundle::SigningKey;
use models::event::{Comm, Event, EventKind, PathText, SyscallWindow};
use models::features;
use models::program::{NO_UNIT, ProgramId, hex};
use models::train::{self, TrainOptions, Trained};
use models::window::Window;
use models::wire::TrainingWindow;
use rcgen::{CertificateParams, DnType, KeyPair};

const DEVICE: &str = "vm";
const SECOND: u64 = 1_000_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state, exe, script @ ..] = &arguments[..] else { return Err("enrolled STATE EXE [SCRIPT]".into()) };
    let program = ProgramId { unit: NO_UNIT.into(), exe: exe.clone(), script: script.first().cloned() };
    let signing = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).ok_or("no signing key")?;
    let trained = baseline()?;
    let state = Path::new(state);
    let also: u32 = std::env::var("ALSO").ok().map_or(Ok(0), |n| n.parse())?;
    let other = |n| ProgramId { exe: format!("{exe}-{n}"), ..program.clone() };
    for program in std::iter::once(program.clone()).chain((0..also).map(other)) {
        let folder = state.join("baselines").join(program.key());
        let raw = trained.clone().seal(program, 1, 0..u64::MAX, &signing);
        files::make_private_dir(&folder)?;
        files::write_private(&folder.join("active.bgb"), &raw)?;
    }
    // One certificate stands for the device and for its authority: no fleet will ever see it.
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, DEVICE);
    let certificate = params.self_signed(&key)?.pem();
    let identity = Identity {
        device: DEVICE.into(),
        host: "127.0.0.1".into(),
        port: 1,
        bundle_keys: vec![hex(&signing.public().0)],
        url: String::new(),
        renew_after_unix_s: 0,
    };
    for (name, bytes) in [
        ("device.key", key.serialize_pem().into_bytes()),
        ("device.pem", certificate.clone().into_bytes()),
        ("ca.pem", certificate.into_bytes()),
        ("identity.json", serde_json::to_vec_pretty(&identity)?),
    ] {
        files::write_private(&state.join(name), &bytes)?;
    }
    Ok(())
}

fn baseline() -> Result<Trained, Box<dyn Error>> {
    let windows: Vec<TrainingWindow> = (0..80).map(window).collect();
    let options = TrainOptions { vae_steps: 300, lstm_steps: 40, ..TrainOptions::default() };
    Ok(train::fit(&windows, &options, &mut |_| {})?)
}

/// One window of the program, a little different every time.
fn window(at: u32) -> TrainingWindow {
    let opened_ns = u64::from(at) * SECOND;
    let mut window = Window::new(1, opened_ns);
    let path = PathText::try_from("/etc/hostname").expect("a path is longer than this");
    let _ = window.add(&Event {
        boot_ns: opened_ns + 1,
        tgid: 1,
        tid: 1,
        uid: 0,
        comm: Comm::try_from("sh").expect("a name is longer than this"),
        kind: EventKind::Open { path, flags: 0, sensitive: false },
    });
    let mut calls = SyscallWindow::empty(1, 1);
    calls.calls[0] = 40 + at * 7 % 5;
    calls.calls[1] = 20;
    calls.bigrams[3] = 30;
    calls.active[0] = 0b1011;
    window.add_syscalls(&calls);
    window.closed_ns = opened_ns + SECOND;
    let vector = features::to_sparse(&features::extract(&window));
    TrainingWindow {
        unix_ms: u64::from(at) * 1000,
        run: 1,
        vector,
        traits: window.traits().to_vec(),
        grams: Vec::new(),
    }
}
