//! Program files of the agent, and their way to devices.

use std::collections::BTreeMap;

use models::program_file::{self, ProgramFile};
use models::wire::{Errand, SignedProgramFile};

use super::read::heartbeat;
use super::sql::{Connection, OptionalExtension as _, Row, params};
use super::{StoreError, int, put_order, uint};
use crate::names::DeviceId;
use crate::updates::{Member, MemberState, Stage, UpdatePlan};

/// Program files that are kept; one more is refused.
pub const BUILDS_MAX: u64 = 16;

/// Updates that may be under way: of different groups.
const UNDER_WAY_MAX: usize = 32;

/// Updates that are kept; one more and the oldest that has ended goes.
const KEPT_MAX: i64 = 100;

/// A program file is kept in parts, since the middle of a large value takes long to find.
const PART: u32 = 256 << 10;

/// For how long a device that is away is waited for.
const ORDER_MS: u64 = 30 * 86_400_000;

/// A program file that devices may be given.
#[derive(Clone, Debug, PartialEq)]
pub struct Build {
    /// Counts up.
    pub id: u64,
    /// What it is.
    pub file: ProgramFile,
    /// With the word of whoever made it.
    pub signed: SignedProgramFile,
    /// Who brought it.
    pub by: String,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
}

/// An update of the agents of a group, or of all.
#[derive(Clone, Debug, PartialEq)]
pub struct UpdateRow {
    /// Counts up.
    pub id: u64,
    /// To which version.
    pub version: String,
    /// Whose; `None` for the whole fleet.
    pub group: Option<String>,
    /// How it goes on.
    pub plan: UpdatePlan,
    /// How far it is.
    pub stage: Stage,
    /// Nothing goes on by itself.
    pub paused: bool,
    /// Who began it.
    pub by: String,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
    /// When this stage began.
    pub stage_ms: u64,
    /// Why it is where it is, or what it waits for.
    pub reason: String,
}

/// Why an update did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotUpdated {
    /// There is no program file of this version.
    NoBuild,
    /// No device of the scope has a processor that there is one for.
    NoDevice,
    /// Another one that concerns some of the devices is under way.
    UnderWay(u64),
    /// As many as may be are under way.
    Full,
}

impl super::Change for Result<u64, NotUpdated> {
    fn is_done(&self) -> bool {
        self.is_ok()
    }
}

/// Keeps a program file; `None` when it is there, or as many as may be are.
///
/// # Errors
/// When the database fails.
pub fn add_build(
    c: &Connection,
    (file, signed): (&ProgramFile, &SignedProgramFile),
    bytes: &[u8],
    by: &str,
    now_ms: u64,
) -> Result<Option<u64>, StoreError> {
    let there = c.query_row("SELECT count(*) FROM builds", [], |row| row.get(0).map(uint))?;
    if there >= BUILDS_MAX || builds(c)?.iter().any(|build| build.file.sha256 == file.sha256) {
        return Ok(None);
    }
    let body = postcard::to_stdvec(signed).map_err(StoreError::Damaged)?;
    let id = c.query_row(
        "INSERT INTO builds(sha256, signed, by, created_ms) VALUES (?, ?, ?, ?) RETURNING id",
        params![file.sha256, body, by, int(now_ms)],
        |row| row.get(0).map(uint),
    )?;
    let mut insert = c.prepare_cached("INSERT INTO build_parts(build, at, body) VALUES (?, ?, ?)")?;
    for (at, part) in bytes.chunks(PART as usize).enumerate() {
        insert.execute(params![int(id), at as i64, part])?;
    }
    Ok(Some(id))
}

/// All program files, the newest first.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn builds(c: &Connection) -> Result<Vec<Build>, StoreError> {
    let mut query = c.prepare_cached("SELECT id, signed, by, created_ms FROM builds ORDER BY id DESC")?;
    let mut rows = query.query([])?;
    let mut builds = Vec::new();
    while let Some(row) = rows.next()? {
        let signed: Vec<u8> = row.get(1)?;
        let signed: SignedProgramFile = postcard::from_bytes(&signed).map_err(StoreError::Damaged)?;
        // It was checked when it came.
        let Ok(file) = program_file::read(&signed) else { continue };
        let (id, created_ms) = (uint(row.get(0)?), uint(row.get(3)?));
        builds.push(Build { id, file, signed, by: row.get(2)?, created_ms });
    }
    Ok(builds)
}

/// Removes a program file; `false` when there is none, or an update to it is under way.
///
/// # Errors
/// When the database fails.
pub fn remove_build(c: &Connection, id: u64) -> Result<bool, StoreError> {
    let build = builds(c)?.into_iter().find(|build| build.id == id);
    let Some(build) = build else { return Ok(false) };
    if updates_under_way(c)?.iter().any(|update| update.version == build.file.version) {
        return Ok(false);
    }
    c.execute("DELETE FROM build_parts WHERE build = ?", [int(id)])?;
    c.execute("DELETE FROM builds WHERE id = ?", [int(id)])?;
    Ok(true)
}

/// A piece of a program file that the device was given, or less than was asked for; `None` when it was not.
pub(super) fn build_chunk(
    c: &Connection,
    device: &DeviceId,
    sha256: [u8; 32],
    offset: u32,
    len: u32,
) -> Result<Option<Vec<u8>>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT substr(p.body, ?1, ?2) FROM builds b JOIN build_parts p ON p.build = b.id AND p.at = ?3
         JOIN update_devices u ON u.sha256 = b.sha256 AND u.device = ?5
         JOIN devices d ON d.id = u.device AND d.revoked_ms = 0 WHERE b.sha256 = ?4 LIMIT 1",
    )?;
    let values = params![i64::from(offset % PART) + 1, len, offset / PART, sha256, device.as_str()];
    Ok(query.query_row(values, |row| row.get(0)).optional()?)
}

const UPDATE: &str =
    "SELECT id, version, grp, plan, stage, paused, by, created_ms, stage_ms, reason FROM updates";

/// Begins an update; its first devices are given it at the next look.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn begin_update(
    c: &Connection,
    version: &str,
    group: Option<&str>,
    plan: &UpdatePlan,
    by: &str,
    now_ms: u64,
) -> Result<Result<u64, NotUpdated>, StoreError> {
    let builds = builds(c)?;
    if !builds.iter().any(|build| build.file.version == version) {
        return Ok(Err(NotUpdated::NoBuild));
    }
    let under_way = updates_under_way(c)?;
    let overlaps =
        |other: &&UpdateRow| group.is_none() || other.group.is_none() || other.group.as_deref() == group;
    if let Some(other) = under_way.iter().find(overlaps) {
        return Ok(Err(NotUpdated::UnderWay(other.id)));
    }
    if under_way.len() >= UNDER_WAY_MAX {
        return Ok(Err(NotUpdated::Full));
    }
    if targets(c, version, group)?.is_empty() {
        return Ok(Err(NotUpdated::NoDevice));
    }
    let plan = serde_json::to_string(plan).expect("a plan has a JSON form");
    let id = c.query_row(
        "INSERT INTO updates(version, grp, plan, stage, by, created_ms, stage_ms, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, '') RETURNING id",
        params![version, group, plan, Stage::Canary.as_str(), by, int(now_ms)],
        |row| row.get(0).map(uint),
    )?;
    let old = "SELECT id FROM (SELECT id, stage FROM updates ORDER BY id DESC LIMIT 1000 OFFSET ?) AS oldest
               WHERE stage NOT IN ('canary', 'everyone')";
    c.execute(&format!("DELETE FROM update_devices WHERE update_id IN ({old})"), [KEPT_MAX])?;
    c.execute(&format!("DELETE FROM updates WHERE id IN ({old})"), [KEPT_MAX])?;
    Ok(Ok(id))
}

/// Updates, the newest first: `limit` of those before `before`.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn updates(c: &Connection, before: Option<u64>, limit: u32) -> Result<Vec<UpdateRow>, StoreError> {
    let sql = format!("{UPDATE} WHERE id < ? ORDER BY id DESC LIMIT ?");
    rows(c, &sql, &[before.map_or(i64::MAX, int), i64::from(limit)])
}

/// One update.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn update(c: &Connection, id: u64) -> Result<Option<UpdateRow>, StoreError> {
    Ok(rows(c, &format!("{UPDATE} WHERE id = ?"), &[int(id)])?.pop())
}

/// Those that go on.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn updates_under_way(c: &Connection) -> Result<Vec<UpdateRow>, StoreError> {
    rows(c, &format!("{UPDATE} WHERE stage IN ('canary', 'everyone') ORDER BY id"), &[])
}

fn rows(c: &Connection, sql: &str, values: &[i64]) -> Result<Vec<UpdateRow>, StoreError> {
    let mut query = c.prepare_cached(sql)?;
    let found = match values {
        [] => query.query_map([], row_of)?,
        [one] => query.query_map([*one], row_of)?,
        [one, two, ..] => query.query_map([*one, *two], row_of)?,
    };
    Ok(found.collect::<Result<_, _>>()?)
}

fn row_of(row: &Row<'_>) -> super::sql::Result<UpdateRow> {
    let (plan, stage): (String, String) = (row.get(3)?, row.get(4)?);
    Ok(UpdateRow {
        id: uint(row.get(0)?),
        version: row.get(1)?,
        group: row.get(2)?,
        plan: serde_json::from_str(&plan).unwrap_or_default(),
        stage: Stage::parse(&stage),
        paused: row.get(5)?,
        by: row.get(6)?,
        created_ms: uint(row.get(7)?),
        stage_ms: uint(row.get(8)?),
        reason: row.get(9)?,
    })
}

/// Devices of a scope that there is a program file for, with its hash.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn targets(
    c: &Connection,
    version: &str,
    group: Option<&str>,
) -> Result<BTreeMap<String, Build>, StoreError> {
    let builds = builds(c)?;
    let of_arch: BTreeMap<&str, &Build> =
        builds.iter().rev().filter(|b| b.file.version == version).map(|b| (&*b.file.arch, b)).collect();
    let mut query = c.prepare_cached(
        "SELECT d.id, h.body FROM devices d JOIN heartbeats h ON h.device = d.id
         WHERE d.revoked_ms = 0 AND (CAST(?1 AS TEXT) IS NULL OR d.grp = ?1)",
    )?;
    let mut rows = query.query(params![group])?;
    let mut targets = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let (device, body): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let Some(heartbeat) = heartbeat(&body) else { continue };
        if let Some(build) = of_arch.get(&*heartbeat.arch) {
            targets.insert(device, (*build).clone());
        }
    }
    Ok(targets)
}

/// The devices that were given it, and what became of it. `heard_before_ms`: a device that was not heard since is silent.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn members(c: &Connection, id: u64, heard_before_ms: u64) -> Result<Vec<Member>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT u.device, u.canary, u.sha256, u.offered_ms, o.answered_ms, o.done, o.answer, d.heartbeat_ms, h.body,
             (SELECT e.text FROM events e WHERE e.device = u.device AND e.kind = 'update_failed' AND e.received_ms > u.offered_ms
              ORDER BY e.id DESC LIMIT 1)
         FROM update_devices u JOIN devices d ON d.id = u.device LEFT JOIN orders o ON o.id = u.order_id
         LEFT JOIN heartbeats h ON h.device = u.device WHERE u.update_id = ? AND d.revoked_ms = 0 ORDER BY u.device",
    )?;
    let mut rows = query.query([int(id)])?;
    let mut members = Vec::new();
    while let Some(row) = rows.next()? {
        let (sha256, body): (Vec<u8>, Option<Vec<u8>>) = (row.get(2)?, row.get(8)?);
        let (done, answer): (Option<bool>, Option<String>) = (row.get(5)?, row.get(6)?);
        let (heard_ms, failed): (i64, Option<String>) = (row.get(7)?, row.get(9)?);
        let runs = body
            .and_then(|body| heartbeat(&body))
            .is_some_and(|heartbeat| heartbeat.program_file[..] == sha256[..]);
        let state = match (done, failed) {
            (_, Some(reason)) => MemberState::Failed(reason),
            (Some(false), _) => MemberState::Refused(answer.unwrap_or_default()),
            _ if runs => MemberState::Runs,
            (Some(true), None) if uint(heard_ms) < heard_before_ms => {
                MemberState::Failed("it was not heard since it was given the program file".into())
            }
            (Some(true), None) => MemberState::Fetches,
            (None, None) => MemberState::Waits,
        };
        members.push(Member {
            device: row.get(0)?,
            canary: row.get(1)?,
            offered_ms: uint(row.get(3)?),
            state,
        });
    }
    Ok(members)
}

/// Gives devices the program file; gives how many were. One with too many orders is left out until the next look.
///
/// # Errors
/// When the database fails.
pub fn give(
    c: &Connection,
    update: &UpdateRow,
    devices: &[(String, Build)],
    now_ms: u64,
) -> Result<u64, StoreError> {
    let mut given = 0;
    for (name, build) in devices {
        let Ok(device) = DeviceId::parse(name) else { continue };
        let errand = Errand::Update(build.signed.clone());
        let order = put_order(c, &device, &errand, &by(update), now_ms, Some(now_ms + ORDER_MS))?;
        let Some(order) = order else { continue };
        let insert = "INSERT INTO update_devices(update_id, device, canary, order_id, offered_ms, sha256)
                      VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";
        let canary = i64::from(update.stage == Stage::Canary);
        let values = params![int(update.id), name, canary, int(order), int(now_ms), build.file.sha256];
        given += c.prepare_cached(insert)?.execute(values)? as u64;
    }
    Ok(given)
}

fn by(update: &UpdateRow) -> String {
    format!("update {}", update.id)
}

/// Brings an update to another stage, or says why it waits; `false` when somebody else was faster. One that is stopped or taken back
/// asks nobody any more, and one that is taken back has its devices run their packages' programs again.
///
/// # Errors
/// When the database fails.
pub fn put_update_stage(
    c: &Connection,
    row: &UpdateRow,
    stage: Stage,
    reason: &str,
    now_ms: u64,
) -> Result<bool, StoreError> {
    let stage_ms = if stage == row.stage { row.stage_ms } else { now_ms };
    let changed = c
        .prepare_cached("UPDATE updates SET stage = ?, stage_ms = ?, reason = ? WHERE id = ? AND stage = ?")?
        .execute(params![stage.as_str(), int(stage_ms), reason, int(row.id), row.stage.as_str()])?;
    if changed == 0 {
        return Ok(false);
    }
    if matches!(stage, Stage::Stopped | Stage::TakenBack) {
        let mine = "SELECT order_id FROM update_devices WHERE update_id = ?";
        c.execute(
            &format!("DELETE FROM orders WHERE answered_ms IS NULL AND id IN ({mine})"),
            [int(row.id)],
        )?;
    }
    if stage == Stage::TakenBack {
        for member in members(c, row.id, 0)? {
            let Ok(device) = DeviceId::parse(&member.device) else { continue };
            // Who has too many orders does it when he is asked by hand.
            let _ = put_order(c, &device, &Errand::EndUpdate, &by(row), now_ms, Some(now_ms + ORDER_MS))?;
        }
    }
    Ok(true)
}

/// Lets an update wait, or go on; `false` when it is not under way.
///
/// # Errors
/// When the database fails.
pub fn pause_update(c: &Connection, id: u64, paused: bool, now_ms: u64) -> Result<bool, StoreError> {
    let mut change = c.prepare_cached(
        "UPDATE updates SET paused = ?, stage_ms = ? WHERE id = ? AND stage IN ('canary', 'everyone')",
    )?;
    Ok(change.execute(params![i64::from(paused), int(now_ms), int(id)])? > 0)
}

#[cfg(test)]
mod tests {
    use models::bundle::{SigningKey, sha256};
    use models::wire::{Answer, DeviceEvent, EventKind, Heartbeat, Request, Uplink, UplinkFrame, encode};

    use super::super::testing::{intake, join, on_both};
    use super::super::{file_size, orders_waiting, put_frame, put_heartbeat};
    use super::*;
    use crate::counters::Counters;

    fn device(name: &str) -> DeviceId {
        DeviceId::parse(name).unwrap()
    }

    fn beat(c: &Connection, name: &str, arch: &str, program_file: [u8; 32]) {
        let heartbeat = Heartbeat { arch: arch.into(), program_file, ..Heartbeat::default() };
        let raw = encode(&Request::Heartbeat(heartbeat)).unwrap();
        put_heartbeat(c, &device(name), &raw, 1000).unwrap();
    }

    fn say(c: &Connection, name: &str, seq: u64, body: Uplink) {
        let frame = UplinkFrame { epoch: 1, seq, body };
        put_frame(c, &Counters::default(), &device(name), &frame, 1000, &intake()).unwrap();
    }

    #[test]
    fn a_program_file_is_for_devices_that_were_given_it_and_what_became_of_it_is_seen() {
        on_both(|empty| {
            let c = empty();
            join(&c, &["a", "b", "c"]);
            let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
            let bytes = vec![7; PART as usize + 10];
            let (version, arch) = ("1.2".to_owned(), "aarch64".to_owned());
            let file = ProgramFile { version, arch, sha256: sha256(&bytes), size: bytes.len() as u32 };
            let signed = file.sign(&key);
            let add = || add_build(&c, (&file, &signed), &bytes, "anna", 5).unwrap();
            let id = add().unwrap();
            assert_eq!((add(), builds(&c).unwrap().len()), (None, 1), "it is there");
            let begin = |version| begin_update(&c, version, None, &UpdatePlan::default(), "anna", 9).unwrap();
            assert_eq!(begin("1.3"), Err(NotUpdated::NoBuild));
            beat(&c, "c", "x86_64", [0; 32]);
            assert_eq!(begin("1.2"), Err(NotUpdated::NoDevice));
            ["a", "b"].iter().for_each(|name| beat(&c, name, "aarch64", [0; 32]));
            let update_id = begin("1.2").unwrap();
            assert_eq!(begin("1.2"), Err(NotUpdated::UnderWay(update_id)));
            assert!(!remove_build(&c, id).unwrap(), "it is in use");

            let row = update(&c, update_id).unwrap().unwrap();
            let targets: Vec<_> = targets(&c, "1.2", None).unwrap().into_iter().collect();
            assert_eq!(targets.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["a", "b"]);
            let chunk = |name, offset| build_chunk(&c, &device(name), file.sha256, offset, 16).unwrap();
            assert_eq!(chunk("a", 0), None, "it was not given it");
            assert_eq!(give(&c, &row, &targets, 10).unwrap(), 2);
            let sizes = [0, PART - 4, PART, PART + 10].map(|at| chunk("a", at).map(|part| part.len()));
            assert_eq!((sizes, chunk("c", 0)), ([Some(16), Some(4), Some(10), Some(0)], None));
            let size = |name| file_size(&c, &device(name), file.sha256).unwrap();
            assert_eq!((size("a"), size("c")), (Some(bytes.len() as u32), None));

            let states = || -> Vec<MemberState> {
                members(&c, update_id, 500).unwrap().into_iter().map(|member| member.state).collect()
            };
            assert_eq!(states(), [MemberState::Waits, MemberState::Waits]);
            let order = |name| orders_waiting(&c, &device(name), 20).unwrap()[0].id;
            let answer = |name, done| {
                Uplink::Answer(Answer { id: order(name), unix_ms: 1, done, text: "no keys".into() })
            };
            say(&c, "a", 1, answer("a", true));
            assert_eq!(states(), [MemberState::Fetches, MemberState::Waits]);
            beat(&c, "a", "aarch64", file.sha256);
            say(&c, "b", 1, answer("b", false));
            assert_eq!(states(), [MemberState::Runs, MemberState::Refused("no keys".into())]);
            let (kind, text) = (EventKind::UpdateFailed, "it died".to_owned());
            let event = DeviceEvent { unix_ms: 1, kind, program: None, containment: None, text };
            say(&c, "a", 2, Uplink::Event(event));
            assert_eq!(states()[0], MemberState::Failed("it died".into()));

            assert!(put_update_stage(&c, &row, Stage::TakenBack, "by hand", 30).unwrap());
            assert!(!put_update_stage(&c, &row, Stage::Done, "too late", 30).unwrap());
            let waiting = orders_waiting(&c, &device("a"), 40).unwrap();
            assert!(waiting.len() == 1 && waiting[0].errand == Errand::EndUpdate, "{waiting:?}");
            assert!(remove_build(&c, id).unwrap() && builds(&c).unwrap().is_empty());
        });
    }

    #[test]
    fn one_that_is_stopped_asks_nobody_any_more() {
        on_both(|empty| {
            let c = empty();
            join(&c, &["a"]);
            beat(&c, "a", "aarch64", [0; 32]);
            let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
            let file =
                ProgramFile { version: "1".into(), arch: "aarch64".into(), sha256: sha256(b"x"), size: 1 };
            add_build(&c, (&file, &file.sign(&key)), b"x", "anna", 5).unwrap().unwrap();
            let id = begin_update(&c, "1", None, &UpdatePlan::default(), "anna", 9).unwrap().unwrap();
            let row = update(&c, id).unwrap().unwrap();
            let targets: Vec<_> = targets(&c, "1", None).unwrap().into_iter().collect();
            give(&c, &row, &targets, 10).unwrap();
            assert!(pause_update(&c, id, true, 11).unwrap() && update(&c, id).unwrap().unwrap().paused);
            let row = update(&c, id).unwrap().unwrap();
            assert!(put_update_stage(&c, &row, Stage::Stopped, "", 12).unwrap());
            assert!(orders_waiting(&c, &device("a"), 13).unwrap().is_empty());
            assert!(!pause_update(&c, id, false, 14).unwrap() && updates_under_way(&c).unwrap().is_empty());
            // Who did not hear of it is not failed by being silent.
            assert_eq!(members(&c, id, 5000).unwrap()[0].state, MemberState::Waits);
        });
    }
}
