//! An agent that is given more to see than its CPU budget allows.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::process::Process;
use tests::{Failed, wait_for};

/// Opens files in ever new processes: what one process may tell of has a bound of its own.
const STORM: &str = "while :; do (read -r line < /etc/hostname); done";

#[test]
fn evidence_is_left_out_while_the_budget_is_exceeded_and_gathered_again_afterwards() {
    crate::needs_root();
    let _turn = crate::enacting();
    let dir = tempfile::tempdir().unwrap();
    let shell = dir.path().join("storm");
    fs::copy("/bin/bash", &shell).unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let config = |budget: &str| {
        format!("watch = [{shell:?}]\nwindow = \"1s\"\nheartbeat = \"2s\"\ncpu_budget = {budget:?}\n")
    };
    let mut agent = Agent::enroll_with(&dir.path().join("agent"), &config("3%"), &fleet, "busy").unwrap();
    agent.run().unwrap();
    wait_for("its start", Duration::from_secs(20), || Ok(agent.status().ok())).unwrap();
    let left_out = |agent: &mut Agent| {
        agent.check()?;
        Ok::<_, Failed>(agent.status()?["shed"].as_str().map(str::to_owned))
    };
    let told = |text: &str| {
        let fits = |event: &Value| event["text"].as_str().is_some_and(|said| said.ends_with(text));
        wait_for(text, Duration::from_secs(20), || {
            Ok(fleet.events("busy").unwrap_or_default().into_iter().find(fits))
        })
        .unwrap_or_else(|error| panic!("{error}: {:#?}", fleet.events("busy")))
    };
    let log = dir.path().join("storm.log");
    let storm = [(); 3].map(|()| Process::start(&shell, &["-c", STORM], &log, Stdio::null()).unwrap());
    wait_for("ordinary opens to be left out", Duration::from_secs(30), || {
        let said = left_out(&mut agent)?;
        Ok(said.filter(|said| said.contains("ordinary opens of files are not told")))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    assert_eq!(told("first-time acts alone are judged")["kind"], "shedding");
    drop(storm);
    // The agent sees whatever other tests do at the same time, too: for that there is room from now on.
    agent.configure(&config("300%")).unwrap();
    agent.signal(Signal::HUP).unwrap();
    wait_for("all evidence again", Duration::from_secs(60), || {
        Ok(left_out(&mut agent)?.is_none().then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    told("all evidence is gathered");
    agent.stop().unwrap();
}
