//! What `io-uring-access` does not show even where the kernel tells of each operation.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;

use super::Evasion;
use crate::simulate::family::uring::uring;
use crate::simulate::family::{address, dns};
use crate::simulate::ring::{Operation, Ring, SEND};
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::table::{Log, Need, Proof, Sign, Threat, Variant};

pub(crate) const EVASION: Evasion = Evasion {
    threat: Threat { name: "io-uring", techniques: &["T1106", "T1071.004"], variants: VARIANTS },
    seen: "that operations are submitted, and of which kind; from kernel 6.4 also those that a kernel thread takes from the ring, the file or address of each open, removal, renaming and connection, and how large a DNS message is and to whom it goes",
    unseen: "the name that a DNS message asks for; before kernel 6.4, which file or address a single operation is about",
};

const VARIANTS: &[Variant] = &[uring!(
    "dns-query",
    &["T1106", "T1071.004"],
    "sends a DNS query by IORING_OP_SEND",
    &[Need::Root, Need::IoUring],
    No,
    ask,
    |stage| {
        let to = stage.datagrams(IpAddr::V4(Ipv4Addr::LOCALHOST), 53)?;
        let signs = [Sign::Uring { operation: SEND }, Sign::Dns { address: to, domain: None }];
        let act = stage.own([to])?.signs(signs).proof(Proof::Connected(1));
        Ok(act.hides(Sign::Dns { address: to, domain: Some(dns::DOMAIN) }))
    }
)];

fn ask(sandbox: &Sandbox, words: &[String]) -> Result<(), Problem> {
    let to: SocketAddr = address(sandbox, words, 0)?;
    let socket = step("making a socket", UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))?;
    step("connecting", socket.connect(to))?;
    let ring = step("making a ring", Ring::new(false))?;
    let query = dns::query(0);
    let send = Operation {
        opcode: SEND,
        fd: socket.as_raw_fd(),
        address: query.as_ptr() as u64,
        len: u32::try_from(query.len()).unwrap_or(0),
        ..Operation::default()
    };
    // SAFETY: the query lives until the operation is over.
    step("sending", unsafe { ring.submit(send) }).map(drop)
}
