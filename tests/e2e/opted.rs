//! What a device learns of stays on it until its group opts in, with a command beside the server.

use std::fs;
use std::time::Duration;

use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::gateway::Gateway;
use tests::story::counter;
use tests::wait_for;

use crate::needs_root;

#[test]
fn windows_come_up_when_the_group_opted_in_and_not_before() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let watched = Gateway::executable(&dir.path().join("gateway"));
    // The heartbeat is slow: what is asked comes at once and not with it.
    let config = format!("watch = [{watched:?}]\nwindow = \"1s\"\nheartbeat = \"600s\"\n");
    let mut agent = Agent::enroll_with(&dir.path().join("gw"), &config, &fleet, "gw").unwrap();
    let _gateway = Gateway::start(&dir.path().join("gateway")).unwrap();
    agent.run().unwrap();
    let held_back = |agent: &Agent| counter(&agent.status().unwrap_or_default(), "training_not_sampled");
    wait_for("windows that stay", Duration::from_secs(60), || Ok((held_back(&agent) >= 5).then_some(())))
        .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    assert_eq!(fleet.windows_collected(), None);
    let said = agent.command(&["status"]).unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("the fleet makes no baseline of it while `samples` is 0"), "{said}");

    let file = dir.path().join("plant.toml");
    fs::write(&file, "samples = 100 # all of it\n").unwrap();
    let configure = |more: &[&str]| {
        let file = file.to_string_lossy();
        fleet.command(&[&["group", "configure", "default", &*file], more].concat())
    };
    let told = configure(&["--dry-run"]).unwrap();
    assert_eq!(told.trim(), "samples: not named -> 100\non 1 devices of group default; nothing was changed");
    assert_eq!(fleet.get("groups/default/configurations").unwrap()["versions"].as_array().unwrap().len(), 0);
    assert!(configure(&[]).unwrap().contains("configuration 1 of group default, which has 1 devices"));
    wait_for("windows that come", Duration::from_secs(60), || {
        Ok(fleet.windows_collected().filter(|windows| *windows > 0))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    assert!(configure(&[]).unwrap().contains("has this configuration already"));
    assert_eq!(fleet.command(&["group", "show", "default"]).unwrap().trim(), "samples = 100 # all of it");
    let log = fleet.get("audit").unwrap();
    let entry = log["audit"].as_array().unwrap().iter().find(|row| row["action"] == "group.configure");
    assert_eq!(entry.unwrap()["who"], "local", "{log}");

    // What cannot be a group's configuration is refused with what to change, and the one before stays.
    fs::write(&file, "state = \"/elsewhere\"").unwrap();
    let refused = configure(&[]).unwrap_err().to_string();
    assert!(refused.contains("`state` is for a device's own file"), "{refused}");
    fs::write(&file, "#".repeat(20_000)).unwrap();
    let refused = configure(&[]).unwrap_err().to_string();
    assert!(refused.contains("over the limit of 16384"), "{refused}");
    assert_eq!(fleet.command(&["group", "show", "default"]).unwrap().trim(), "samples = 100 # all of it");
    agent.stop().unwrap();
}
