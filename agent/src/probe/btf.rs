//! Offsets of kernel struct fields, from the kernel's own type information.

/// Offset in bytes of `field` in `structure`; `None` when the bytes do not tell it.
#[must_use]
pub(super) fn offset_of(btf: &[u8], structure: &str, field: &str) -> Option<u32> {
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
    let mut at = 0;
    while at < types.len() {
        let (name, info) = (u32_at(types, at)?, u32_at(types, at + 4)?);
        let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
        at += 12;
        if kind == 4 && is(strings, name, structure) {
            for member in (at..).step_by(12).take(count) {
                if is(strings, u32_at(types, member)?, field) {
                    let bits = u32_at(types, member + 8)?;
                    // With the flag set, the upper byte is the width of a bit field.
                    let bits = if info >> 31 == 1 { bits & 0x00ff_ffff } else { bits };
                    return Some(bits / 8);
                }
            }
        }
        at += match kind {
            1 | 14 | 17 => 4,
            3 => 12,
            4 | 5 | 15 | 19 => 12 * count,
            6 | 13 => 8 * count,
            _ => 0,
        };
    }
    None
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
        // An int of 4 bytes, then a struct of two of them.
        let types: [u32; 13] = [0, 1 << 24, 4, 32, 1, (4 << 24) | 2, 8, 6, 1, 0, 10, 1, 32];
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, 52, 52, strings.len() as u32] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        types.iter().for_each(|w| bytes.extend(w.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        assert_eq!(offset_of(&sample(), "task", "pid"), Some(0));
        assert_eq!(offset_of(&sample(), "task", "tgid"), Some(4));
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
