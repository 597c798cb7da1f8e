//! Offsets of kernel struct fields, from the kernel's own type information.

/// Members of members that are followed, where they have no name of their own.
const DEPTH: u32 = 4;

/// Kinds of types, from the kernel's `Documentation/bpf/btf.rst`.
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNCTION: u32 = 12;

/// The kernel's types, found by their numbers.
pub(super) struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    starts: Vec<usize>,
    /// Where structs begin: one in ten types, and what is looked for.
    structs: Vec<usize>,
}

impl<'a> Types<'a> {
    /// Reads where each type begins; `None` when the bytes do not tell it.
    pub(super) fn parse(btf: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        if u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = u32_at(btf, 4)? as usize;
        let part = |at: usize| {
            let start = header.checked_add(u32_at(btf, at)? as usize)?;
            btf.get(start..start.checked_add(u32_at(btf, at + 4)? as usize)?)
        };
        let (types, strings) = (part(8)?, part(16)?);
        // Number 0 is `void` and has no entry.
        let (mut starts, mut structs) = (vec![usize::MAX], Vec::new());
        let mut at = 0;
        while at < types.len() {
            let info = u32_at(types, at + 4)?;
            let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            starts.push(at);
            if kind == STRUCT {
                structs.push(at);
            }
            at += 12
                + match kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    4 | 5 | 15 | 19 => 12 * count,
                    6 | 13 => 8 * count,
                    _ => 0,
                };
        }
        Some(Self { types, strings, starts, structs })
    }

    /// Offset in bytes of `field` in `structure`, also inside members without a name.
    #[must_use]
    pub(super) fn offset_of(&self, structure: &str, field: &str) -> Option<u32> {
        self.structs.iter().find_map(|&at| {
            if is(self.strings, u32_at(self.types, at)?, structure) {
                self.inside(at, field, DEPTH)
            } else {
                None
            }
        })
    }

    /// Whether the kernel has a function of this name.
    #[must_use]
    pub(super) fn has_function(&self, function: &str) -> bool {
        self.starts.iter().skip(1).any(|&at| {
            let named = u32_at(self.types, at).zip(u32_at(self.types, at + 4));
            named.is_some_and(|(name, info)| {
                (info >> 24) & 0x1f == FUNCTION && is(self.strings, name, function)
            })
        })
    }

    fn inside(&self, at: usize, field: &str, depth: u32) -> Option<u32> {
        let info = u32_at(self.types, at + 4)?;
        if !matches!((info >> 24) & 0x1f, STRUCT | UNION) {
            return None;
        }
        for member in (at + 12..).step_by(12).take((info & 0xffff) as usize) {
            let name = u32_at(self.types, member)?;
            let bits = u32_at(self.types, member + 8)?;
            // With the flag set, the upper byte is the width of a bit field.
            let bytes = if info >> 31 == 1 { bits & 0x00ff_ffff } else { bits } / 8;
            if is(self.strings, name, field) {
                return Some(bytes);
            }
            if name == 0 && depth > 0 {
                let of = *self.starts.get(u32_at(self.types, member + 4)? as usize)?;
                if let Some(inner) = self.inside(of, field, depth - 1) {
                    return Some(bytes + inner);
                }
            }
        }
        None
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn is(strings: &[u8], at: u32, text: &str) -> bool {
    let rest = strings.get(at as usize..).unwrap_or_default();
    rest.strip_prefix(text.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let strings = b"\0task\0pid\0tgid\0";
        // 1: an int of 4 bytes. 2: a union without a name of `tgid`. 3: the struct of `pid` and the union.
        let types: [u32; 19] = [
            0,
            1 << 24,
            4,
            32, // int
            0,
            (5 << 24) | 1,
            4,
            10,
            1,
            0, // union
            1,
            (4 << 24) | 2,
            8,
            6,
            1,
            0,
            0,
            2,
            32, // struct
        ];
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, 76, 76, strings.len() as u32] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        types.iter().for_each(|w| bytes.extend(w.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    fn offset_of(bytes: &[u8], structure: &str, field: &str) -> Option<u32> {
        Types::parse(bytes)?.offset_of(structure, field)
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        assert_eq!(offset_of(&sample(), "task", "pid"), Some(0));
        assert_eq!(offset_of(&sample(), "task", "tgid"), Some(4), "inside a union without a name");
        assert_eq!(offset_of(&sample(), "task", "tg"), None);
        assert_eq!(offset_of(&sample(), "tas", "pid"), None);
    }

    #[test]
    fn no_truncation_panics() {
        let bytes = sample();
        for len in 0..bytes.len() {
            let _ = offset_of(&bytes[..len], "task", "tgid");
        }
    }
}
