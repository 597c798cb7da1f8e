//! What the operator expects is no alert, and everything else is.

use super::*;
use crate::whitelist::{Act, Wanted, What};

/// A learned program, and a pipeline that expects this of it.
fn expecting(what: Option<What>) -> (Bench, Arc<Mutex<Whitelist>>) {
    let mut bench = Bench::new(|config| config.policy.dedup_ns = 0);
    bench.learn();
    let list = Arc::new(Mutex::new(Whitelist::default()));
    if let Some(what) = what {
        list.lock().unwrap().add(wanted(what), 0, 0).unwrap();
    }
    bench.pipeline.set_whitelist(Arc::clone(&list));
    (bench, list)
}

fn wanted(what: What) -> Wanted {
    let reason = "the nightly backup".to_owned();
    Wanted {
        program: "/usr/bin/gw".into(),
        unit: "*".into(),
        script: None,
        what,
        reason,
        expires_unix_s: None,
    }
}

/// Calls in another measure than was learned.
fn odd(bench: &mut Bench) -> Vec<Alert> {
    alerts(bench.close_with(&[GATEWAY], |window| {
        window.calls.fill(0);
        window.calls[1] = 3000;
    }))
}

#[test]
fn an_expected_act_is_no_news_and_every_other_is() {
    let (mut bench, list) = expecting(None);
    let [alert] = &alerts(bench.open(GATEWAY, "/etc/shadow", true))[..] else { panic!("no alert") };
    let explained = bench.pipeline.explanations().lock().unwrap().process(GATEWAY).cloned().unwrap();
    assert_eq!(explained.alert, Some(crate::explanations::alert_id(alert)));
    let wish = Wanted::of(&explained, "the nightly backup".into(), None);
    let What::Acts(acts) = &wish.what else { panic!("{wish:?}") };
    assert_eq!(acts, &[Act { text: "opened the sensitive file /etc/shadow".into(), ..acts[0].clone() }]);
    list.lock().unwrap().add(wish, 0, 0).unwrap();
    bench.close(&[GATEWAY]);

    assert_eq!(bench.open(GATEWAY, "/etc/shadow", true), []);
    assert_eq!(alerts(bench.close(&[GATEWAY])), []);
    assert!(bench.pipeline.counters().acts_whitelisted >= 1, "it is counted");
    let explained = bench.pipeline.explanations().lock().unwrap().process(GATEWAY).cloned().unwrap();
    assert_eq!(explained.explanation.whitelisted, 1, "and said");
    let [alert] = &alerts(bench.open(GATEWAY, "/etc/sudoers", true))[..] else { panic!("no alert") };
    assert!(alert.summary.contains("/etc/sudoers") && !alert.summary.contains("shadow"), "{alert:?}");
}

#[test]
fn expected_statistics_leave_acts_to_be_told() {
    let (mut bench, _) = expecting(None);
    assert_eq!(odd(&mut bench).len(), 1, "without an entry it is odd");
    let (mut bench, _) = expecting(Some(What::Statistics));
    assert_eq!(odd(&mut bench), []);
    assert_eq!(alerts(bench.open(GATEWAY, "/etc/shadow", true)).len(), 1);
}

#[test]
fn of_a_program_of_which_everything_is_expected_nothing_is_told_but_counted() {
    let (mut bench, list) = expecting(Some(What::Everything));
    assert_eq!(bench.open(GATEWAY, "/etc/shadow", true), []);
    assert_eq!(odd(&mut bench), []);
    assert_eq!(bench.pipeline.counters().alerts_whitelisted, 2);
    list.lock().unwrap().remove(1).unwrap();
    assert_eq!(alerts(bench.open(GATEWAY, "/etc/sudoers", true)).len(), 1, "from then on it is told again");
}

#[test]
fn an_unlearned_program_of_a_learned_unit_is_expected_the_same_way() {
    const OTHER: u32 = 300;
    let tell = |wish: Option<Wanted>| {
        let (mut bench, list) = expecting(None);
        bench.pipeline.lookup_mut().0.insert(OTHER, found("/usr/bin/gw-other"));
        if let Some(wish) = wish {
            list.lock().unwrap().add(wish, 0, 0).unwrap();
        }
        alerts(bench.open(OTHER, "/etc/shadow", true)).len()
    };
    let act = Act::parse("first_sensitive_file=/etc/shadow").unwrap();
    let wish = Wanted { program: "/usr/bin/gw-o*".into(), ..wanted(What::Acts(vec![act])) };
    assert_eq!((tell(None), tell(Some(wish))), (1, 0));
}
