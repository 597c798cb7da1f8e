mod bench;
mod children;
mod secrets;
mod taught;
mod whitelisted;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use models::bundle::SigningKey;
use models::event::{Arguments, GroupText, PathText};
use models::policy::Severity;
use models::program::NO_UNIT;
use models::sequence::WINDOW_GRAMS_MAX;

use models::features;

use super::training::batches;
use super::*;
use crate::processes::{Found, Identity};
use bench::{Bench, GATEWAY, TABLE, alerts, found, program, seal, usual_gram};

#[test]
fn a_learned_program_is_quiet_until_it_opens_a_sensitive_file() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    for _ in 0..20 {
        assert_eq!(bench.open(GATEWAY, "/var/lib/gw/state", false).len(), 0);
        assert_eq!(alerts(bench.close(&[GATEWAY])), []);
    }
    let found = alerts(bench.open(GATEWAY, "/etc/shadow", true));
    let [alert] = &found[..] else { panic!("{found:?}") };
    assert!(alert.severity >= Severity::High && alert.score >= 70.0, "{alert:?}");
    assert_eq!(alert.techniques, ["T1003.008"]);
    assert!(alert.summary.contains("/etc/shadow"), "{}", alert.summary);
    assert_eq!((alert.pid, alert.generation, alert.program.exe.as_str()), (GATEWAY, 1, "/usr/bin/gw"));
    assert_eq!(bench.pipeline.programs(0)[0].state, "ACTIVE");
}

#[test]
fn what_a_seldom_program_does_while_its_unit_is_learned_is_no_news_later() {
    const SELDOM: u32 = 300;
    let mut bench = Bench::new(|_| {});
    bench.pipeline.lookup_mut().0.insert(SELDOM, found("/usr/bin/gw-rotate"));
    bench.open(SELDOM, "/etc/shadow", true);
    bench.close(&[SELDOM]);
    bench.learn();
    assert_eq!(bench.open(SELDOM, "/etc/shadow", true).len(), 0);
    // What it did not do then is.
    assert_eq!(alerts(bench.open(SELDOM, "/etc/sudoers", true)).len(), 1);
}

#[test]
fn what_a_program_does_before_it_becomes_another_is_learned() {
    let mut bench = Bench::new(|_| {});
    let become_another = |bench: &mut Bench, shell: &str| {
        bench.open(GATEWAY, "/var/lib/gw/state", false);
        alerts(bench.exec(GATEWAY, shell)).len()
    };
    assert_eq!(become_another(&mut bench, "/bin/sh"), 0);
    bench.learn();
    assert_eq!(become_another(&mut bench, "/bin/sh"), 0);
    assert_eq!(become_another(&mut bench, "/bin/zsh"), 1, "another shell is news");
}

#[test]
fn few_calls_are_judged_by_first_time_acts_alone() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    let few = |calls: u32| {
        move |window: &mut SyscallWindow| {
            window.calls.fill(0);
            window.calls[1] = calls;
        }
    };
    assert_eq!(alerts(bench.close_with(&[GATEWAY], few(3))), [], "the rest of a life says little");
    let many = alerts(bench.close_with(&[GATEWAY], few(3000)));
    assert_eq!(many.len(), 1, "the same in earnest is odd");
}

#[test]
fn the_window_of_a_process_is_its_life_learned_or_judged() {
    const CHILD: u32 = 301;
    let mut bench = Bench::new(|_| {});
    bench.pipeline.lookup_mut().0.insert(CHILD, found("/usr/bin/gw"));
    let life = |bench: &mut Bench| {
        bench.event(GATEWAY, EventKind::Fork { child: CHILD });
        let mut part = SyscallWindow::empty(CHILD, 1);
        part.calls[0] = 10;
        bench.event(CHILD, EventKind::Flush(Box::new(part)));
        bench.event(CHILD, EventKind::Exit);
    };
    life(&mut bench);
    let duration = models::schema::NAMED_BASE
        + models::schema::NAMED.iter().position(|feature| feature.name == "window_duration_ms").unwrap();
    let trained = bench.close(&[]);
    let [Output::Train(training)] = &trained[..] else { panic!("{trained:?}") };
    let vector = features::from_sparse(&training.windows[0].vector).unwrap();
    // It was born and left within this second; its window is not the epoch.
    assert!(vector[duration] < 0.5 / 60.0, "{}", vector[duration]);
}

#[test]
fn a_life_across_the_end_of_an_epoch_is_one_window() {
    const CHILD: u32 = 301;
    let mut bench = Bench::new(|config| config.window = Duration::from_secs(1));
    bench.pipeline.lookup_mut().0.insert(CHILD, found("/usr/bin/gw"));
    bench.event(GATEWAY, EventKind::Fork { child: CHILD });
    assert_eq!(bench.close(&[CHILD]), [], "it goes on");
    let trained = bench.close_with(&[CHILD], |window| window.epoch = 2);
    let [Output::Train(training)] = &trained[..] else { panic!("{trained:?}") };
    let vector = features::from_sparse(&training.windows[0].vector).unwrap();
    assert!(vector[models::schema::index("window_duration_ms")] > 1.9 / 60.0);
    // Three slots of 100 ms in each of the two epochs.
    assert_eq!(vector[models::schema::index("cpu_time_ratio")], 0.3);
    assert!(matches!(&bench.close(&[CHILD])[..], [Output::Train(_)]), "from now on every epoch is a window");
    // What is left at its end is too short to be compared with whole windows; its acts count.
    bench.event(CHILD, EventKind::Flush(Box::new(SyscallWindow::empty(CHILD, 4))));
    bench.event(CHILD, EventKind::Exit);
    assert_eq!(bench.close(&[CHILD]), []);
}

#[test]
fn a_restart_forgets_neither_seldom_programs_nor_promises_nor_the_budget() {
    const SELDOM: u32 = 300;
    let read = |bench: &mut Bench| {
        bench.pipeline.lookup_mut().0.insert(SELDOM, found("/usr/bin/gw-update"));
        let found = alerts(bench.open(SELDOM, "/etc/shadow", true)).len();
        bench.close(&[SELDOM]);
        found
    };
    let mut bench = Bench::new(|_| {});
    read(&mut bench);
    bench.learn();
    for _ in 0..30 {
        bench.open(GATEWAY, "/var/lib/gw/state", false);
        bench.close(&[GATEWAY]);
    }
    assert_eq!(read(&mut bench), 0, "it did so before anything was learned");
    let memory = bench.pipeline.memory();
    let (promise, budget) = (bench.pipeline.promises(), bench.pipeline.budget());
    let mut restarted = Bench::new(|_| {});
    restarted.bundle = bench.bundle.take();
    restarted.pipeline.remember(memory.clone());
    assert_eq!(
        restarted.pipeline.memory(),
        memory,
        "also when the agent stops before its baselines are there"
    );
    restarted.activate_again();
    assert_eq!((restarted.pipeline.promises(), restarted.pipeline.budget()), (promise.clone(), budget));
    assert!(promise[0].windows > 20);
    assert_eq!(read(&mut restarted), 0);
    let mut forgetful = Bench::new(|_| {});
    forgetful.bundle = restarted.bundle.take();
    forgetful.activate_again();
    assert_eq!(read(&mut forgetful), 1, "without it, it would be a stranger");
}

#[test]
fn what_one_program_of_a_unit_does_is_no_excuse_for_another() {
    const STRANGER: u32 = 300;
    let mut bench = Bench::new(|_| {});
    bench.open(GATEWAY, "/etc/shadow", true);
    let connect = |port| EventKind::Connect { addr: [10, 9, 8, 7].into(), port };
    for port in [22, 443] {
        bench.event(GATEWAY, connect(port));
    }
    bench.learn();
    assert_eq!(bench.open(GATEWAY, "/etc/shadow", true), [], "it was learned so");
    bench.pipeline.lookup_mut().0.insert(STRANGER, found("/usr/bin/gw-update"));
    bench.event(STRANGER, connect(443));
    assert!(matches!(&bench.close(&[STRANGER])[..], [Output::Train(_)]), "a common port");
    bench.event(STRANGER, connect(22));
    let found_at_end = alerts(bench.close(&[STRANGER]));
    assert_eq!(found_at_end[0].techniques[0], "T1021.004", "{found_at_end:?}");
    let found = alerts(bench.open(STRANGER, "/etc/shadow", true));
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn a_program_that_was_never_learned_is_judged_by_what_its_unit_does() {
    const STRANGER: u32 = 300;
    const ELSEWHERE: u32 = 301;
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.pipeline.lookup_mut().0.insert(STRANGER, found("/usr/bin/gw-update"));
    let of_none = ProgramId { unit: NO_UNIT.into(), ..program("/usr/bin/gw-elsewhere") };
    let of_none = Identity::Program(Found { program: of_none, comm: "gw".into(), start_ticks: 5 });
    bench.pipeline.lookup_mut().0.insert(ELSEWHERE, of_none);
    // Its calls and files are its own matter; being there is not worth an alert alone.
    assert_eq!(bench.open(STRANGER, "/opt/update/list", false).len(), 0);
    let trained = bench.close(&[STRANGER]);
    assert!(matches!(&trained[..], [Output::Train(_)]), "{trained:?}");
    let found = alerts(bench.open(STRANGER, "/etc/shadow", true));
    let [alert] = &found[..] else { panic!("{found:?}") };
    assert!(alert.severity >= Severity::High, "{alert:?}");
    assert_eq!((alert.generation, alert.techniques[0].as_str()), (0, "T1003.008"));
    assert!(alert.reasons.iter().any(|reason| reason.name == "first_in_unit"), "{alert:?}");
    // What was worth an alert is not learned from, and what comes after it is.
    assert_eq!(alerts(bench.close(&[STRANGER])), []);
    assert_eq!(bench.pipeline.counters().windows_alarmed, 1);
    bench.open(STRANGER, "/opt/update/list", false);
    assert!(matches!(&bench.close(&[STRANGER])[..], [Output::Train(_)]));
    // Programs of no unit have nothing in common.
    assert_eq!(bench.open(ELSEWHERE, "/etc/shadow", true).len(), 0);
}

#[test]
fn contributions_add_up_to_what_every_detector_gave() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    for _ in 0..12 {
        bench.open(GATEWAY, "/var/lib/gw/state", false);
        bench.close(&[GATEWAY]);
    }
    bench.open(GATEWAY, "/etc/shadow", true);
    let sums = bench.table.sums_of(&[(usual_gram(), 50), (1, 4)]);
    let sent = alerts(bench.close_with(&[GATEWAY], |window| {
        window.calls[59] = 9;
        window.grams =
            Some(models::sequence::GramWindow { table: TABLE, sums, kinds: sums, strange: vec![] });
    }));
    let kept = bench.pipeline.explanations();
    let kept = kept.lock().unwrap();
    let last = kept.process(GATEWAY).unwrap();
    let names: Vec<&str> = last.explanation.detectors.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["vae", "lstm", "nearest", "repertoire", "order"]);
    for one in &last.explanation.detectors {
        assert!(!one.parts.is_empty(), "{one:?}");
        let sum: f32 = one.parts.iter().map(|part| part.contribution).sum::<f32>() + one.rest;
        assert!((sum - one.raw).abs() <= 1e-4 * one.raw.abs() + 1e-6, "{}: {sum} of {}", one.name, one.raw);
    }
    assert_eq!((last.baseline.state.as_str(), last.baseline.windows), ("ACTIVE", [48, 16, 16]));
    for alert in sent {
        let explained = kept.alert(&crate::explanations::alert_id(&alert)).unwrap();
        assert_eq!((explained.score, &explained.summary), (alert.score, &alert.summary));
    }
}

#[test]
fn models_make_room_for_others_and_come_back_when_their_program_is_judged() {
    const OTHER: u32 = 101;
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.pipeline.lookup_mut().0.insert(OTHER, found("/usr/bin/gw-2"));
    let trained = Bench::new(|_| {}).train();
    let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
    let other = seal(&trained, program("/usr/bin/gw-2"), &key);
    bench.pipeline.switch(Baseline::load(&other).unwrap(), &mut Vec::new()).unwrap();
    let both = bench.pipeline.model_bytes() as u64;
    // Room for one of the two.
    bench.pipeline.config.models_max = both * 3 / 4;
    let known = [bench.bundle.clone().unwrap(), other];
    let broken = Arc::new(AtomicBool::new(false));
    let is_broken = Arc::clone(&broken);
    let asked = Arc::new(AtomicUsize::new(0));
    let asks = Arc::clone(&asked);
    bench.pipeline.set_shelf(Box::new(move |program, generation| {
        asks.fetch_add(1, Relaxed);
        let damaged = is_broken.load(Relaxed);
        let kept = known.iter().find(|verified| {
            (&verified.manifest().program, verified.manifest().generation) == (program, generation)
        });
        kept.filter(|_| !damaged).map(|verified| Detectors::load(verified).unwrap())
    }));
    let spoke = |bench: &Bench, tgid| {
        let kept = bench.pipeline.explanations();
        let last = kept.lock().unwrap().process(tgid).unwrap().clone();
        last.explanation.detectors.iter().any(|one| one.name == "vae")
    };
    for round in 1..=3 {
        for tgid in [GATEWAY, OTHER] {
            bench.open(tgid, "/var/lib/gw/state", false);
            bench.close(&[tgid]);
            assert!(spoke(&bench, tgid), "{round} {tgid}");
            assert!(bench.pipeline.model_bytes() as u64 <= both * 3 / 4);
        }
    }
    let counters = *bench.pipeline.counters();
    // One of them had to go at the start.
    assert!((5..=6).contains(&counters.models_loaded), "{counters:?}");
    assert_eq!(counters.models_evicted, counters.models_loaded + 1);
    assert_eq!(counters.models_missing, 0);
    // Twice in a row is no reason to read again; what cannot be read is judged without, and counted.
    bench.close(&[OTHER]);
    assert_eq!(bench.pipeline.counters().models_loaded, counters.models_loaded);
    broken.store(true, Relaxed);
    bench.close(&[GATEWAY]);
    assert_eq!(bench.pipeline.counters().models_missing, 1);
    assert!(!spoke(&bench, GATEWAY));
    // It is not read again for every window, and is when it may have been mended.
    let tries = asked.load(Relaxed);
    bench.close(&[GATEWAY]);
    assert_eq!((asked.load(Relaxed), bench.pipeline.counters().models_missing), (tries, 2));
    broken.store(false, Relaxed);
    bench.now_s += 600;
    bench.close(&[]);
    bench.close(&[GATEWAY]);
    assert!(asked.load(Relaxed) > tries && spoke(&bench, GATEWAY));
    assert_eq!(alerts(bench.open(GATEWAY, "/etc/shadow", true)).len(), 1, "its acts are judged all the same");
}

#[test]
fn a_verdict_beyond_the_alert_budget_is_counted_and_explained_but_not_sent() {
    for (budget, sent) in
        [(None, 1), ("10000 per device per hour".parse().ok(), 1), ("1 per device per month".parse().ok(), 0)]
    {
        let mut bench = Bench::new(|config| config.alert_budget = budget);
        bench.learn();
        // A little more of one call than ever.
        let odd = |window: &mut SyscallWindow| window.calls[1] = 26;
        let found = alerts(bench.close_with(&[GATEWAY], odd));
        assert_eq!(found.len(), sent, "{budget:?}");
        assert_eq!(bench.pipeline.counters().alerts_over_budget, 1 - sent as u64);
        let kept = bench.pipeline.explanations();
        let last = kept.lock().unwrap().process(GATEWAY).unwrap().clone();
        assert_eq!((last.severity >= Severity::Medium, last.alert.is_some()), (true, sent == 1));
        let allowed = last.p_max.is_none_or(|p_max| last.explanation.p_value <= p_max);
        assert_eq!(allowed, sent == 1, "{} {:?}", last.explanation.p_value, last.p_max);
        // What it never did is told under any budget.
        assert_eq!(alerts(bench.open(GATEWAY, "/etc/shadow", true)).len(), 1, "{budget:?}");
    }
}

#[test]
fn a_program_whose_load_shifts_is_stale_told_by_acts_alone_and_learned_again() {
    let mut bench = Bench::new(|config| config.policy.dedup_ns = 0);
    bench.learn();
    for _ in 0..20 {
        bench.open(GATEWAY, "/var/lib/gw/state", false);
        bench.close(&[GATEWAY]);
    }
    assert_eq!(bench.pipeline.programs(0)[0].state, "ACTIVE");
    bench.told();
    let shifted = |window: &mut SyscallWindow| window.calls[2] = 400;
    let stale = (0..40).find(|_| {
        bench.open(GATEWAY, "/var/lib/gw/state", false);
        bench.close_with(&[GATEWAY], shifted);
        bench.pipeline.programs(0)[0].state == "STALE"
    });
    assert!(stale.is_some(), "{:?}", bench.pipeline.promises());
    assert!(bench.pipeline.promises()[0].broken && bench.pipeline.counters().programs_drifted == 1);
    assert_eq!(bench.told(), [Output::Follow(Follow { tgid: GATEWAY, table: None, learn: true })]);

    // The same windows are no alert any more, and train.
    let outputs = bench.close_with(&[GATEWAY], shifted);
    let [Output::Train(training)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((training.windows.len(), training.windows[0].grams.len()), (1, 2));

    // A first-time act is an alert as before, and its window does not train; nor does one that is not fully seen.
    assert_eq!(alerts(bench.open(GATEWAY, "/etc/shadow", true)).len(), 1);
    let outputs = bench.close_with(&[GATEWAY], shifted);
    assert!(outputs.iter().all(|output| !matches!(output, Output::Train(_))), "{outputs:?}");
    bench.pipeline.set_degraded(vec!["file".into()]);
    assert!(bench.close_with(&[GATEWAY], shifted).is_empty());
    bench.pipeline.set_degraded(vec![]);

    // A new generation begins anew; while its models are shed, nothing that they would say is told or held against it.
    bench.activate_again();
    bench.pipeline.set_degraded(vec!["models".into()]);
    assert!((0..40).all(|_| bench.close_with(&[GATEWAY], shifted).is_empty()));
    assert_eq!(alerts(bench.open(GATEWAY, "/etc/shadow", true)).len(), 1);
    bench.pipeline.set_degraded(vec![]);
    assert_eq!(bench.pipeline.programs(0)[0].state, "ACTIVE");
    assert_eq!(bench.pipeline.promises()[0].windows, 0);
}

#[test]
fn two_alerts_of_one_moment_are_told_apart() {
    let mut bench = Bench::new(|config| config.policy.dedup_ns = 0);
    bench.learn();
    let [a, b] = [(); 2].map(|()| alerts(bench.open(GATEWAY, "/etc/shadow", true)).remove(0));
    assert!(a.unix_ms < b.unix_ms, "{a:?} {b:?}");
}

#[test]
fn programs_that_run_once_make_room_and_learned_ones_do_not() {
    let mut bench = Bench::new(|config| config.programs_max = 3);
    bench.learn();
    for tgid in 300..310 {
        bench.pipeline.lookup_mut().0.insert(tgid, found(&format!("/usr/bin/gw-{tgid}")));
        bench.open(tgid, "/opt/list", false);
        bench.event(tgid, EventKind::Exit);
        bench.close(&[]);
    }
    let names: Vec<String> = bench.pipeline.programs(0).into_iter().map(|state| state.program.exe).collect();
    assert_eq!(names.len(), 3);
    assert!(names.iter().any(|exe| exe == "/usr/bin/gw") && names.iter().any(|exe| exe == "/usr/bin/gw-309"));
    assert_eq!(bench.pipeline.counters().programs_forgotten, 8);
    assert_eq!(bench.pipeline.counters().programs_refused, 0);
}

#[test]
fn a_tool_that_the_operator_named_is_evidence() {
    for (lolbins, told) in [(vec![], false), (vec!["rclone".to_owned()], true)] {
        let mut bench = Bench::new(|config| config.lolbins = lolbins);
        bench.learn();
        bench.event(GATEWAY, EventKind::Fork { child: 200 });
        bench.exec(200, "/opt/bin/rclone");
        let found = alerts(bench.close(&[GATEWAY]));
        let technique = |alert: &Alert| alert.techniques.iter().any(|id| id == "T1218");
        assert_eq!(found.iter().any(technique), told, "{found:?}");
    }
}

#[test]
fn the_victim_of_an_injection_is_told_and_so_is_who_did_it() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.pipeline.lookup.0.insert(300, found("/usr/bin/gw"));
    let found = alerts(bench.event(300, EventKind::Inject { call: 101, victim: GATEWAY }));
    assert_eq!(found.iter().map(|alert| alert.pid).collect::<Vec<_>>(), [GATEWAY, 300]);
    assert!(found[0].summary.contains("process 300 (gw) by ptrace"), "{}", found[0].summary);
    assert!(found.iter().all(|alert| alert.techniques == ["T1055"]), "{found:?}");
}

#[test]
fn a_program_without_a_file_is_told_at_once() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.event(GATEWAY, EventKind::Fork { child: 200 });
    let path = PathText::try_from("/proc/self/fd/3").unwrap();
    let (arguments, group) = (Arguments::new(), GroupText::new());
    let found = alerts(bench.event(200, EventKind::Exec { path, arguments, fileless: true, group }));
    let [alert] = &found[..] else { panic!("{found:?}") };
    assert!(alert.pid == GATEWAY && alert.techniques.contains(&"T1620".to_owned()), "{alert:?}");
}

#[test]
fn the_kernel_is_told_whom_to_learn_and_whom_to_look_up() {
    let mut bench = Bench::new(|_| {});
    bench.close(&[GATEWAY]);
    let learning = |tgid| Output::Follow(Follow { tgid, table: None, learn: true });
    assert_eq!(bench.told(), [learning(GATEWAY)]);
    bench.event(GATEWAY, EventKind::Fork { child: 201 });
    assert_eq!(bench.told(), [learning(201)]);
    bench.event(201, EventKind::Exit);
    bench.close(&[GATEWAY]);
    assert_eq!(bench.told(), [Output::Unfollow(201)]);
    bench.learn();
    let looked_up = |tgid| Output::Follow(Follow { tgid, table: Some(TABLE), learn: false });
    assert_eq!(bench.told(), [looked_up(GATEWAY)]);
    bench.event(GATEWAY, EventKind::Fork { child: 202 });
    assert_eq!(bench.told(), [], "the kernel lets children inherit");
    bench.pipeline.lookup.0.insert(203, found("/usr/bin/gw"));
    bench.close(&[203]);
    assert_eq!(bench.told(), [looked_up(203)]);
}

#[test]
fn a_strange_order_of_usual_calls_is_told_and_the_sums_of_another_table_are_not() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    let strange = [1, 1, 1, 0, 0, 0].iter().fold(0, |gram, call| models::sequence::roll(gram, *call));
    let sums = bench.table.sums_of(&[(usual_gram(), 10), (strange, 50)]);
    assert_eq!(sums.misses, 50);
    for (table, told) in [(TABLE + 1, false), (TABLE, true)] {
        let found = alerts(bench.close_with(&[GATEWAY], |window| {
            window.grams =
                Some(models::sequence::GramWindow { table, sums, kinds: sums, strange: vec![strange] });
        }));
        let about = |alert: &Alert| alert.reasons.iter().any(|reason| reason.name == "call_order");
        assert_eq!(found.iter().any(about), told, "{found:?}");
    }
}

#[test]
fn too_many_orders_in_one_window_are_not_learned_and_counted() {
    let mut bench = Bench::new(|_| {});
    let many: Vec<(u64, u32)> = (0..=WINDOW_GRAMS_MAX as u64).map(|gram| (gram, 1)).collect();
    let outputs = bench.close_with(&[GATEWAY], |window| window.learned.clone_from(&many));
    let [Output::Train(training)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(training.windows[0].grams, []);
    assert_eq!(bench.pipeline.counters().windows_without_order, 1);
}

#[test]
fn training_messages_hold_what_fits() {
    let window = |grams| TrainingWindow {
        unix_ms: u64::MAX,
        run: u64::MAX,
        vector: vec![(426, 0.5); 427],
        traits: vec![u64::MAX; 128],
        grams: vec![(models::sequence::EMPTY, u32::MAX); grams],
    };
    let windows =
        vec![window(WINDOW_GRAMS_MAX), window(0), window(WINDOW_GRAMS_MAX), window(WINDOW_GRAMS_MAX)];
    let messages = batches(windows.clone());
    assert_eq!(messages.concat(), windows);
    assert_eq!(messages.len(), 3);
    for windows in messages {
        let body =
            models::wire::Uplink::Windows(TrainingWindows { program: program("/usr/bin/gw"), windows });
        let frame = models::wire::UplinkFrame { epoch: u64::MAX, seq: u64::MAX, body };
        assert!(models::wire::encode(&frame).is_ok());
    }
}

#[test]
fn windows_in_which_something_was_lost_never_train() {
    let mut bench = Bench::new(|_| {});
    bench.pipeline.set_degraded(vec!["file".into()]);
    assert!(bench.close(&[GATEWAY]).is_empty());
    assert_eq!(bench.pipeline.counters().windows_degraded, 1);
}

#[test]
fn full_tables_refuse_and_count() {
    let mut bench = Bench::new(|config| {
        config.processes_max = 16;
        config.programs_max = 2;
    });
    for tgid in 1..=20 {
        bench.pipeline.lookup.0.insert(tgid, found(&format!("/usr/bin/gw{}", tgid % 4)));
    }
    let all: Vec<u32> = (1..=20).collect();
    bench.close(&all);
    assert_eq!(bench.pipeline.counters().processes_refused, 4);
    assert_eq!((bench.pipeline.programs(0).len(), bench.pipeline.followed()), (2, 8));
    assert_eq!(bench.pipeline.counters().programs_refused, 8);
}

#[test]
fn a_full_table_of_programs_refuses_a_baseline_by_name() {
    let mut bench = Bench::new(|config| config.programs_max = 1);
    assert!(bench.pipeline.make_room(&program("/usr/bin/gw")).is_ok());
    assert!(bench.pipeline.make_room(&program("/usr/bin/gw")).is_ok(), "it has its place already");
    // It runs.
    bench.open(GATEWAY, "/var/lib/gw/state", false);
    let refused = bench.pipeline.make_room(&program("/usr/bin/other")).unwrap_err();
    assert!(refused.to_string().contains("raise `programs_max`"), "{refused}");
}

#[test]
fn processes_that_left_make_room() {
    let mut bench = Bench::new(|config| config.processes_max = 16);
    for round in 0..10 {
        for tgid in 1..=16 {
            bench.pipeline.lookup.0.insert(tgid, found("/usr/bin/gw"));
            bench.open(tgid, "/x", false);
            bench.event(tgid, EventKind::Exit);
        }
        bench.close(&[]);
        assert_eq!(bench.pipeline.counters().processes_refused, 0, "round {round}");
    }
}

#[test]
fn the_same_input_gives_the_same_output() {
    let run = || {
        let mut bench = Bench::new(|_| {});
        let mut text = String::new();
        for _ in 0..5 {
            bench.open(GATEWAY, "/var/lib/gw/state", false);
            text += &format!("{:?}", bench.close(&[GATEWAY]));
        }
        text
    };
    assert_eq!(run(), run());
}
