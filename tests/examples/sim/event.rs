//! What can happen in a world.

use models::wire::Leaf;

use crate::server::Arrived;

/// Something that happens.
pub(crate) enum Event {
    /// The agent says something.
    Speak(usize),
    /// A window with work ends; so many follow.
    Work(usize, u32),
    /// The agent looks after what waits.
    Look(usize),
    /// The agent tries to connect.
    Connect(usize),
    /// A message arrives at the other end of the link of this number.
    Up(usize, u64, Leaf, Vec<u8>),
    /// A message arrives at the device over the link of this number.
    Down(usize, u64, Vec<u8>),
    /// The broker gives a message to a server.
    Deliver(Arrived),
    /// The server stores what came.
    Store,
    /// A server learns that a device is there.
    Greet(usize, u64),
    /// Something breaks.
    Fault,
    /// An agent is killed.
    Kill(usize),
    /// A link heals.
    Heal(usize),
    /// An agent, or the server, starts again.
    Start(usize),
    StartServer,
    /// A disk has room again.
    Room(usize),
    /// Somebody asks a device something.
    Order,
    /// Bounds are looked at.
    Check,
}
