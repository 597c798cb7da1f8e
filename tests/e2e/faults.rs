//! What operators meet: full disks, missing rights, missing fleets. Each says what to do, and nothing is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::gateway::Gateway;
use tests::process::binary;
use tests::story::counter;
use tests::{Failed, wait_for};

/// A small file system in memory, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&at).status().unwrap();
        assert!(mounted.success());
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_delays_messages_and_loses_none() {
    crate::needs_root();
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(dir.path().join("disk"));
    let fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let watch = Gateway::executable(&dir.path().join("gateway"));
    let mut agent = Agent::enroll(&disk.0, &watch, &fleet, "gw-full").unwrap();
    agent.run().unwrap();
    let gateway = Gateway::start(&dir.path().join("gateway")).unwrap();
    let status = |what: &str, good: &dyn Fn(&Value) -> bool| {
        wait_for(what, Duration::from_secs(40), || Ok(agent.status().ok().filter(|status| good(status))))
            .unwrap()
    };
    status("training windows", &|status| counter(status, "windows_trained") >= 2);
    let fill = disk.0.join("fill");
    // Fails when there is no room left, which is what it is for.
    let filled = fs::write(&fill, vec![0; 8 << 20]);
    assert!(filled.is_err());
    status("a failed write", &|status| counter(status, "outbox_failed") >= 3);
    fs::remove_file(&fill).unwrap();
    drop(gateway);
    let trained = |status: &Value| {
        let waiting = status["heartbeat"]["outbox_waiting"] == 0;
        waiting.then(|| counter(status, "windows_trained"))
    };
    let told = wait_for("delivery of everything", Duration::from_secs(60), || {
        let Ok(status) = agent.status() else { return Ok(None) };
        let row = fleet.get("training")?["training"][0].clone();
        let collected = row["windows_collected"].as_u64();
        Ok(trained(&status).filter(|n| Some(*n) == collected))
    });
    let told = told.unwrap_or_else(|error: Failed| panic!("{error}\n{}", agent.log()));
    assert!(told >= 5, "{told} windows");
    let end = agent.status().unwrap();
    for lost in ["unwritten_dropped", "outbox_dropped", "training_refused"] {
        assert_eq!(counter(&end, lost), 0, "{lost}");
    }
    let log = agent.log();
    assert!(log.contains("is the disk full or read-only?"), "{log}");
    assert!(log.contains("the outbox can be written again"), "{log}");
    assert_eq!(log.matches("is the disk full").count(), 1, "it is said once, not at every try:\n{log}");
    agent.stop().unwrap();
}

/// A file system in a file, which becomes read-only as one does whose disk fails; unmounted at the end.
struct FailingDisk(PathBuf);

impl FailingDisk {
    fn mount(image: &Path, at: PathBuf) -> Self {
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().unwrap();
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        };
        fs::create_dir_all(&at).unwrap();
        fs::write(image, vec![0; 32 << 20]).unwrap();
        let (image, folder) = (image.to_string_lossy().into_owned(), at.to_string_lossy().into_owned());
        run("/usr/sbin/mkfs.ext4", &["-q", "-F", &image]);
        run("mount", &["-o", "loop", &image, &folder]);
        Self(at)
    }

    fn fail(&self) {
        let failed = Command::new("mount").args(["-o", "remount,abort"]).arg(&self.0).status().unwrap();
        assert!(failed.success());
        assert!(fs::write(self.0.join("x"), b"x").is_err(), "it can still be written");
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_becomes_read_only_keeps_nothing_from_the_fleet() {
    crate::needs_root();
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let watch = Gateway::executable(&dir.path().join("gateway"));
    let folder = dir.path().join("agent");
    let disk = FailingDisk::mount(&dir.path().join("image"), folder.join("state"));
    let mut agent = Agent::enroll(&folder, &watch, &fleet, "gw-ro").unwrap();
    agent.run().unwrap();
    let gateway = Gateway::start(&dir.path().join("gateway")).unwrap();
    wait_for("windows", Duration::from_secs(40), || Ok(fleet.windows_collected().filter(|n| *n >= 3)))
        .unwrap();
    disk.fail();
    let bypassed = |status: &Value| counter(status, "outbox_bypassed");
    wait_for("messages past the disk", Duration::from_secs(60), || {
        Ok(agent.status().ok().filter(|status| bypassed(status) >= 5))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    drop(gateway);
    let all = wait_for("delivery of everything", Duration::from_secs(60), || {
        let Ok(status) = agent.status() else { return Ok(None) };
        let there = fleet.windows_collected() >= Some(counter(&status, "windows_trained"));
        Ok((status["heartbeat"]["outbox_waiting"] == 0 && there).then_some(status))
    });
    let all = all.unwrap_or_else(|error: Failed| panic!("{error}\n{}", agent.log()));
    for lost in ["unwritten_dropped", "outbox_dropped", "training_refused"] {
        assert_eq!(counter(&all, lost), 0, "{lost}");
    }
    let log = agent.log();
    assert_eq!(log.matches("is the disk full or read-only?").count(), 1, "{log}");
    agent.stop().unwrap();
}

#[test]
fn each_mistake_is_named_with_what_to_do_about_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("bad.toml");
    fs::write(&config, "window = \"2h\"\nwacht = 1\n[alerts]\nper_minute = 0\n").unwrap();
    let config = config.to_string_lossy().into_owned();
    let state = dir.path().join("state").to_string_lossy().into_owned();
    let missing = dir.path().join("missing.toml").to_string_lossy().into_owned();
    for (arguments, code, words) in [
        (
            &["--config", &config, "run"][..],
            78,
            &["has 3 problems", "`window`", "`wacht`", "`alerts.per_minute`"][..],
        ),
        (&["--config", &missing, "run"], 1, &["missing.toml", "No such file"]),
        (&["--state", &state, "status"], 1, &["no agent runs", "behaveguard run"]),
        (&["--state", &state, "explain", "--pid", "1"], 1, &["no agent runs", "behaveguard run"]),
        (&["explain"], 64, &["--alert", "--pid"]),
        (
            &["--state", &state, "enroll", "--token", &config],
            1,
            &["no enrolment token", "behaveguard-fleet token create"],
        ),
        (&["enrol"], 64, &["unrecognized subcommand"]),
        (&["alerts", "--last", "soon"], 64, &["30m, 1h or 2d"]),
    ] {
        let (found, text) = run(Path::new(&binary("behaveguard").unwrap()), arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{arguments:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn without_an_enrolment_or_a_second_time_the_agent_says_what_to_do() {
    crate::needs_root();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state").to_string_lossy().into_owned();
    let behaveguard = binary("behaveguard").unwrap();
    let (code, text) = run(&behaveguard, &["--state", &state, "run"]);
    assert_eq!(code, Some(78));
    assert!(text.contains("is not enrolled") && text.contains("run `behaveguard enroll`"), "{text}");
    assert!(text.contains("[[sink]]"), "{text}");

    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let mut agent = Agent::enroll(&dir.path().join("agent"), Path::new("/nothing"), &fleet, "gw-a").unwrap();
    agent.run().unwrap();
    wait_for("the agent", Duration::from_secs(20), || Ok(agent.status().ok())).unwrap();
    let again = agent.command(&["run"]).unwrap();
    let text = String::from_utf8_lossy(&again.stderr);
    assert!(!again.status.success() && text.contains("another agent uses the state folder"), "{text}");
    agent.stop().unwrap();
}

#[test]
fn the_doctor_names_each_layers_hook_and_what_the_maps_cost() {
    crate::needs_root();
    let behaveguard = binary("behaveguard").unwrap();
    let output = Command::new(&behaveguard).args(["doctor", "--json"]).output().unwrap();
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let layers = findings["layers"].as_array().unwrap();
    assert!(layers.len() >= 14, "{layers:?}");
    for layer in layers {
        let missed = layer["unseen"] != "";
        assert!(layer["backend"] != "" || missed, "a layer that is not there misses nothing: {layer}");
    }
    let urgent = findings["maps"].as_array().unwrap().iter().find(|map| map["name"] == "URGENT").unwrap();
    assert!(urgent["locked_bytes"].as_u64().unwrap() >= 256 * 1024, "{urgent}");
    let (code, text) = run(&behaveguard, &["doctor"]);
    assert!(code == Some(0) && text.contains("sys_enter") && text.contains("locked bytes"), "{text}");
}

#[test]
fn without_root_the_agent_says_what_it_needs() {
    crate::needs_root();
    let dir = tempfile::tempdir().unwrap();
    let behaveguard = dir.path().join("behaveguard");
    fs::copy(binary("behaveguard").unwrap(), &behaveguard).unwrap();
    for path in [dir.path(), &behaveguard] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, mode).unwrap();
    }
    let config = dir.path().join("agent.toml");
    fs::write(&config, "[[sink]]\nkind = \"file\"\npath = \"/tmp/nobody/alerts\"\n").unwrap();
    let command = format!("{} --config {} --state /tmp/nobody run", behaveguard.display(), config.display());
    let (code, text) = run(Path::new("/bin/su"), &["-s", "/bin/sh", "nobody", "-c", &command]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("needs root, or CAP_BPF with CAP_PERFMON"), "{text}");
    // Also where it comes no further than its own folder.
    let command = format!("{} --config {} --state /root/state run", behaveguard.display(), config.display());
    let (code, text) = run(Path::new("/bin/su"), &["-s", "/bin/sh", "nobody", "-c", &command]);
    assert!(
        code == Some(1) && text.contains("/root/state") && text.contains("run it as root, with sudo"),
        "{text}"
    );
}

fn run(program: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.code(), text)
}
