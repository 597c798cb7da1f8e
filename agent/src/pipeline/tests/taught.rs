//! What alarmed is given away once, so that a false alarm teaches the next baseline.

use models::novelty::{Kind, trait_id};
use models::wire::AlarmedWindow;

use super::bench::fitted;
use super::*;

fn shifted(window: &mut SyscallWindow) {
    window.calls.fill(0);
    window.calls[1] = 3000;
}

fn alarmed(outputs: Vec<Output>) -> Vec<AlarmedWindow> {
    let alarmed = outputs.into_iter().filter_map(|output| match output {
        Output::Alarmed(window) => Some(*window),
        _ => None,
    });
    alarmed.collect()
}

fn times(outputs: &[Output]) -> Vec<u64> {
    let times = outputs.iter().filter_map(|output| match output {
        Output::Alert(alert) => Some(alert.unix_ms),
        _ => None,
    });
    times.collect()
}

#[test]
fn a_false_alarm_is_none_for_the_baseline_that_was_taught_by_it() {
    let mut bench = Bench::new(|config| config.policy.dedup_ns = 0);
    let windows = bench.normal_windows();
    let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
    let teach = |bench: &mut Bench, accepted: &[_]| {
        bench.bundle = Some(seal(&fitted(&windows, accepted), program("/usr/bin/gw"), &key));
        bench.activate_again();
    };
    teach(&mut bench, &[]);
    let mut accepted = Vec::new();
    for _ in 0..3 {
        let mut told = times(&bench.open(GATEWAY, "/etc/shadow", true));
        let outputs = bench.close_with(&[GATEWAY], shifted);
        told.extend(times(&outputs));
        let found = alarmed(outputs);
        let [window] = &found[..] else { panic!("{found:?}") };
        assert_eq!((&window.alerts, window.program.exe.as_str()), (&told, "/usr/bin/gw"));
        assert_eq!(told.len(), 2, "what was opened, and how it went on");
        assert!(window.window.vector.len() > 2 && window.window.grams.is_empty(), "{window:?}");
        assert!(window.window.traits.contains(&trait_id(Kind::Sensitive, "/etc/shadow")), "{window:?}");
        accepted.push(window.window.clone());
    }
    assert_eq!(alarmed(bench.close(&[GATEWAY])), [], "a quiet window is nobody's business");

    teach(&mut bench, &accepted);
    assert_eq!(alerts(bench.open(GATEWAY, "/etc/shadow", true)), []);
    assert_eq!(bench.close_with(&[GATEWAY], shifted), []);
    assert_eq!(alerts(bench.open(GATEWAY, "/etc/sudoers", true)).len(), 1, "nothing else was taught");
}

#[test]
fn a_window_that_the_models_are_not_asked_about_is_learned_and_one_with_less_in_it_is_not() {
    let mut bench = Bench::new(|_| {});
    bench.pipeline.set_degraded(vec!["models".into()]);
    assert!(matches!(&bench.close(&[GATEWAY])[..], [Output::Train(_)]), "a busy device learns too");
    bench.pipeline.set_degraded(vec!["file".into(), "models".into()]);
    assert_eq!(bench.close(&[GATEWAY]), []);
    assert_eq!(bench.pipeline.counters().windows_degraded, 1);
}

#[test]
fn what_is_left_of_a_window_that_alarmed_teaches_by_its_acts_alone() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    assert_eq!(alerts(bench.open(GATEWAY, "/etc/shadow", true)).len(), 1);
    bench.pipeline.set_degraded(vec!["file".into()]);
    let found = alarmed(bench.close(&[GATEWAY]));
    assert!(found.len() == 1 && found[0].window.vector.is_empty(), "{found:?}");
    bench.pipeline.set_degraded(vec![]);
    // It ends without another call.
    assert_eq!(alerts(bench.open(GATEWAY, "/etc/sudoers", true)).len(), 1);
    let found = alarmed(bench.step(Input::Close { closed_ns: 900 * bench::SECOND, syscalls: vec![] }));
    let traits = &found[0].window.traits;
    assert!(traits.contains(&trait_id(Kind::Sensitive, "/etc/sudoers")), "{found:?}");
}
