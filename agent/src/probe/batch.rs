//! Many entries of a hash map in one system call: BPF_MAP_*_BATCH, which hash maps have had since Linux 5.6.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr;

use aya::maps::{Map, MapData};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const LOOKUP: libc::c_int = 24;
const LOOKUP_AND_DELETE: libc::c_int = 25;
const DELETE: libc::c_int = 27;
/// Entries asked for at first; doubled when one bucket holds more.
const AT_ONCE: usize = 256;

/// A hash map, opened for batches; `K` and `V` have the map's sizes.
pub(super) struct Batch<K, V> {
    fd: OwnedFd,
    at_once: usize,
    _types: core::marker::PhantomData<(K, V)>,
}

/// `struct { ... } batch` of `union bpf_attr`.
#[repr(C)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

impl<K, V> Batch<K, V>
where
    K: FromBytes + IntoBytes + Immutable + Copy,
    V: FromBytes + Immutable + Copy,
{
    /// Opens a hash map; `None` for a map of another kind or of other sizes.
    pub(super) fn of(map: &Map) -> Option<Self> {
        let Map::HashMap(data) = map else { return None };
        let info = data.info().ok()?;
        let fits = info.key_size() as usize == size_of::<K>() && info.value_size() as usize == size_of::<V>();
        fits.then(|| Self::open(data)).flatten()
    }

    fn open(data: &MapData) -> Option<Self> {
        use std::os::fd::AsFd as _;
        let fd = data.fd().as_fd().try_clone_to_owned().ok()?;
        Some(Self { fd, at_once: AT_ONCE, _types: core::marker::PhantomData })
    }

    /// Every entry; those that come and go meanwhile may be missing.
    pub(super) fn read(&mut self, each: impl FnMut(&K, &V)) -> io::Result<()> {
        self.walk(LOOKUP, each)
    }

    /// Every entry, removed as it is read.
    pub(super) fn take(&mut self, each: impl FnMut(&K, &V)) -> io::Result<()> {
        self.walk(LOOKUP_AND_DELETE, each)
    }

    /// Removes these; keys that are not there are left out.
    pub(super) fn remove(&self, mut keys: &[K]) -> io::Result<()> {
        while !keys.is_empty() {
            let mut attributes = self.attributes(keys.len());
            attributes.keys = keys.as_ptr().expose_provenance() as u64;
            let result = call(DELETE, &mut attributes);
            let done = (attributes.count as usize).min(keys.len());
            keys = match result {
                Ok(()) => &keys[done..],
                // The key after those that were removed is not there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    keys.get(done + 1..).unwrap_or_default()
                }
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }

    fn walk(&mut self, command: libc::c_int, mut each: impl FnMut(&K, &V)) -> io::Result<()> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let (mut place, mut next) = (0_u32, 0_u32);
        let mut begun = false;
        loop {
            keys.resize(self.at_once, K::new_zeroed());
            values.resize(self.at_once, V::new_zeroed());
            let mut attributes = self.attributes(self.at_once);
            attributes.keys = keys.as_mut_ptr().expose_provenance() as u64;
            attributes.values = values.as_mut_ptr().expose_provenance() as u64;
            attributes.in_batch = if begun { (&raw mut place).expose_provenance() as u64 } else { 0 };
            attributes.out_batch = (&raw mut next).expose_provenance() as u64;
            let result = call(command, &mut attributes);
            let ended = match &result {
                Ok(()) => false,
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    self.at_once *= 2;
                    continue;
                }
                Err(_) => return result,
            };
            let count = (attributes.count as usize).min(self.at_once);
            keys[..count].iter().zip(&values).for_each(|(key, value)| each(key, value));
            if ended {
                return Ok(());
            }
            (place, begun) = (next, true);
        }
    }

    fn attributes(&self, count: usize) -> Attributes {
        let map_fd = u32::try_from(self.fd.as_raw_fd()).expect("descriptors are not negative");
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Attributes { in_batch: 0, out_batch: 0, keys: 0, values: 0, count, map_fd, elem_flags: 0, flags: 0 }
    }
}

fn call(command: libc::c_int, attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the attributes are those of the command, and hold addresses of buffers with room for `count` keys and
    // values of the map's sizes, which the callers keep alive and which no reference points to during the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attributes), size_of::<Attributes>()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
