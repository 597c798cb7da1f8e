//! The acts of `io-uring-access`, and what they hide: no call of the program names a file or an address.

use super::Evasion;
use crate::simulate::family::SHADOW;
use crate::simulate::family::uring::{open, reader, send, sender, unlink, unlinker, uring};
use crate::simulate::ring::OPENAT;
use crate::simulate::table::{Log, Need, Sign, Threat, Variant};

pub(crate) const EVASION: Evasion = Evasion {
    threat: Threat {
        name: "io-uring",
        techniques: &["T1106", "T1003", "T1070", "T1041"],
        variants: VARIANTS,
    },
    seen: "that operations are submitted, and of which kind: open, unlink, connect, send; from kernel 6.4 also those that a kernel thread takes from the ring",
    unseen: "which file or address a single operation is about",
};

const VARIANTS: &[Variant] = &[
    uring!(
        "open-shadow",
        &["T1106", "T1003.008"],
        "opens /etc/shadow without a call that names it",
        &[Need::IoUring],
        No,
        open,
        |stage| Ok(reader(stage, "openat", OPENAT)?.hides(Sign::sensitive(SHADOW)))
    ),
    uring!(
        "unlink-log",
        &["T1106", "T1070.004"],
        "removes a log in the same way",
        &[Need::Root, Need::IoUring],
        Private,
        unlink,
        |stage| {
            let path = stage.sandbox.log().display().to_string();
            Ok(unlinker(stage)?.hides(Sign::Tamper { how: "removed", path }))
        }
    ),
    uring!(
        "connect-send",
        &["T1106", "T1041"],
        "connects and sends in the same way",
        &[Need::IoUring],
        No,
        send,
        |stage| {
            let (act, address) = sender(stage)?;
            Ok(act.hides(Sign::Connect { address }))
        }
    ),
];
