//! Poisoning: to be there while a program is learned, so that what is done becomes what is normal.

use super::Evasion;
use crate::simulate::family::{PYTHON, SHADOW, started, success_of_root};
use crate::simulate::listener::Talk;
use crate::simulate::table::{Act, Log, Proof, Sign, Threat, Variant};

pub(crate) const EVASION: Evasion = Evasion {
    threat: Threat { name: "poisoning", techniques: &["T1565", "T1003", "T1041"], variants: VARIANTS },
    seen: "what is grave for any program: where its unit has learned programs it alarms also while this one is learned, and is not learned; where it has none, the fleet tells that the new baseline takes it for normal (`grave_acts_learned`)",
    unseen: "what is ordinary and done while the program is learned: it is learned. Learn on a gateway that you trust, and roll that baseline out",
};

const VARIANTS: &[Variant] = &[
    Variant {
        name: "again-and-again",
        techniques: &["T1565.001", "T1003.008"],
        summary: "python opens /etc/shadow five times in a second",
        layer: "file",
        needs: &[PYTHON],
        log: Log::No,
        prepare: |stage| {
            let script =
                format!("import time\nfor n in range(5):\n open('{SHADOW}', 'rb').close()\n time.sleep(0.2)");
            let act = Act::tool("python3", ["-c", &script])?.sign(started("python3")?);
            Ok(act.sign(Sign::sensitive(SHADOW)).proof(success_of_root(stage)))
        },
        act: None,
    },
    Variant {
        name: "quietly",
        techniques: &["T1565.001", "T1041"],
        summary: "python connects to a port of its own and sends four bytes",
        layer: "network",
        needs: &[PYTHON],
        log: Log::No,
        prepare: |stage| {
            let to = stage.listen(stage.port(41_337), Talk::Listen)?;
            let script = format!(
                "import socket,time\nwith socket.create_connection(('{}',{})) as to: to.sendall(b'loot')\ntime.sleep(0.6)",
                to.ip(),
                to.port()
            );
            let act = Act::tool("python3", ["-c", &script])?.sign(started("python3")?);
            Ok(act.sign(Sign::Connect { address: to }).proof(Proof::Received(4)))
        },
        act: None,
    },
];
