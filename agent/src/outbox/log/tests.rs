use models::policy::Severity;

use super::*;
use crate::outbox::tests::{alert, pids};

fn open(dir: &Path) -> LogOutbox {
    LogOutbox::open(dir, 1 << 20).unwrap()
}

fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.join("outbox");
    segments(&dir).unwrap().into_iter().map(|first| segment_path(&dir, first)).collect()
}

#[test]
fn every_cut_of_the_file_keeps_the_whole_records_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(dir.path());
    for pid in 1..=3 {
        assert_eq!(outbox.put(alert(pid)).unwrap(), Kept::As(u64::from(pid)));
    }
    drop(outbox);
    let path = &segment_files(dir.path())[0];
    let whole = fs::read(path).unwrap();
    let (places, _) = scan(&whole, 1);
    for len in (0..whole.len()).step_by(7) {
        fs::write(path, &whole[..len]).unwrap();
        let kept = places.iter().filter(|p| p.at + p.bytes() <= len as u64).count();
        let outbox = open(dir.path());
        assert_eq!(pids(&outbox).len(), kept, "{len} bytes were left");
        assert_eq!(outbox.put(alert(9)).unwrap(), Kept::As(kept as u64 + 1), "{len} bytes were left");
        assert_eq!(pids(&outbox).last(), Some(&9));
    }
}

#[test]
fn a_damaged_record_is_counted_and_does_not_hold_up_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(dir.path());
    for pid in 1..=3 {
        assert_eq!(outbox.put(alert(pid)).unwrap(), Kept::As(u64::from(pid)));
    }
    let path = &segment_files(dir.path())[0];
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, &bytes).unwrap();
    assert_eq!(pids(&outbox), [1, 3]);
    assert_eq!((outbox.damaged(), outbox.waiting()), (1, 2));
}

#[test]
fn segments_go_when_nothing_in_them_waits() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = LogOutbox::open(dir.path(), 32_000).unwrap();
    for pid in 1..=30 {
        assert_eq!(outbox.put(alert(pid)).unwrap(), Kept::As(u64::from(pid)));
    }
    assert!(segment_files(dir.path()).len() > 5);
    assert_eq!(outbox.forget(29).unwrap(), 29);
    assert_eq!(segment_files(dir.path()).len(), 1);
    assert_eq!(pids(&outbox), [30]);
    assert_eq!(outbox.forget(30).unwrap(), 1);
    drop(outbox);
    let outbox = LogOutbox::open(dir.path(), 32_000).unwrap();
    assert_eq!(outbox.put(alert(31)).unwrap(), Kept::As(31), "a number was used twice");
}

#[test]
fn when_full_the_lowest_severity_goes_first_and_of_that_the_oldest() {
    const ROOM: u64 = 40_000;
    let dir = tempfile::tempdir().unwrap();
    let of = |severity: Severity, pid: u32| {
        let Uplink::Alert(alert) = alert(pid) else { unreachable!() };
        Uplink::Alert(Alert { severity, ..alert })
    };
    let outbox = LogOutbox::open(dir.path(), ROOM).unwrap();
    let mut dropped = 0;
    for pid in 1..=300 {
        let severity =
            [Severity::Medium, Severity::Critical, Severity::Medium, Severity::High][pid as usize % 4];
        match outbox.put(of(severity, pid)).unwrap() {
            Kept::As(seq) => assert_eq!(seq, u64::from(pid)),
            Kept::AfterDropping(_, n) => dropped += n,
            Kept::Refused => panic!("alerts are not refused"),
        }
    }
    let left = pids(&outbox);
    assert_eq!(left.len() as u64 + dropped, 300);
    let newest: Vec<u32> = (1..=300).filter(|pid| pid % 4 == 1).rev().take(left.len()).collect();
    assert_eq!(left, newest.into_iter().rev().collect::<Vec<_>>(), "the newest CRITICAL ones");
    let bytes: u64 = segment_files(dir.path()).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(bytes <= ROOM + ROOM / 4 + outbox.segment_max + 2000, "{bytes} bytes on disk");
    drop(outbox);
    let outbox = LogOutbox::open(dir.path(), ROOM).unwrap();
    assert_eq!(pids(&outbox), left, "also after a restart");
    assert_eq!(outbox.put(of(Severity::Medium, 301)).unwrap(), Kept::AfterDropping(301, 1));
    assert_eq!(pids(&outbox), left, "what matters least is what came");
}

#[test]
fn an_outbox_that_was_copied_with_nothing_waiting_has_an_epoch_of_its_own() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outbox = open(dir.path());
    let first = outbox.epoch();
    assert_eq!(outbox.put(alert(1)).unwrap(), Kept::As(1));
    drop(outbox);
    assert_eq!(open(dir.path()).epoch(), first, "something waits");
    assert_eq!(open(dir.path()).forget(1).unwrap(), 1);
    fs::create_dir(copy.path().join("outbox")).unwrap();
    for entry in fs::read_dir(dir.path().join("outbox")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join("outbox").join(path.file_name().unwrap())).unwrap();
    }
    let (one, other) = (open(dir.path()), open(copy.path()));
    assert!(one.epoch() != first && other.epoch() != first && one.epoch() != other.epoch());
    assert_eq!((one.put(alert(2)).unwrap(), other.put(alert(3)).unwrap()), (Kept::As(2), Kept::As(2)));
    drop(one);
    // A cursor that a power cut took back brings nothing of the old epoch up again.
    write_cursor(&dir.path().join("outbox"), 0).unwrap();
    assert_eq!(pids(&open(dir.path())), [2]);
}

#[test]
fn a_lost_cursor_only_brings_repeats() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(dir.path());
    for pid in 1..=3 {
        assert_eq!(outbox.put(alert(pid)).unwrap(), Kept::As(u64::from(pid)));
    }
    assert_eq!(outbox.forget(2).unwrap(), 2);
    drop(outbox);
    fs::write(dir.path().join("outbox/cursor"), b"torn").unwrap();
    assert_eq!(pids(&open(dir.path())), [1, 2, 3]);
}

fn event(n: u64) -> Uplink {
    Uplink::Event(models::wire::DeviceEvent {
        unix_ms: n,
        kind: models::wire::EventKind::Started,
        program: None,
        containment: None,
        text: "t".repeat(200),
    })
}

#[test]
fn what_was_kept_is_kept_once_also_when_room_cannot_be_made_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = LogOutbox::open(dir.path(), 16_000).unwrap();
    // Where a segment is written anew stands a folder that is not empty.
    for first in 1..200 {
        let mut name = segment_path(&dir.path().join("outbox"), first).into_os_string();
        name.push(".new");
        fs::create_dir_all(PathBuf::from(name).join("full")).unwrap();
    }
    let mut dropped = 0;
    for n in 1..=100_u32 {
        let body = if n % 2 == 0 { event(n.into()) } else { alert(n) };
        match outbox.put(body).unwrap() {
            Kept::As(seq) => assert_eq!(seq, u64::from(n)),
            Kept::AfterDropping(seq, more) => {
                assert_eq!(seq, u64::from(n));
                dropped += more;
            }
            Kept::Refused => panic!("only windows are refused"),
        }
    }
    assert_eq!(outbox.waiting() + dropped, 100);
}

#[test]
fn what_makes_room_at_the_opening_is_told_with_the_next_message() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = LogOutbox::open(dir.path(), 32_000).unwrap();
    for n in 1..=40 {
        assert_eq!(outbox.put(event(n)).unwrap(), Kept::As(n));
    }
    let before = outbox.waiting();
    drop(outbox);
    // Somebody gave it less room.
    let outbox = LogOutbox::open(dir.path(), 8_000).unwrap();
    let gone = before - outbox.waiting();
    assert!(gone > 0);
    let Kept::AfterDropping(41, told) = outbox.put(event(41)).unwrap() else { panic!("it made no room") };
    assert_eq!(outbox.waiting(), before + 1 - told);
    assert!(told >= gone);
}
