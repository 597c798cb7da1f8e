//! What anybody was told of is in the fleet's store once, whoever was killed.

use tests::storm::storm;

use crate::needs_root;

#[test]
fn what_a_sink_was_told_of_is_stored_once_although_agent_and_server_were_killed() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let aftermath = storm(dir.path(), 15, &mut |_| {}).unwrap();
    assert!(aftermath.told >= 15 && aftermath.fleet_kills > 0, "nothing was tried: {aftermath:?}");
    assert_eq!((aftermath.missing, aftermath.twice), (0, 0), "{aftermath:?}");
}
