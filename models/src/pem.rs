//! Private keys as text (RFC 7468), read and written without leaving a copy in memory.

use data_encoding::BASE64;
use zeroize::Zeroizing;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// Of a line: 64 characters.
const LINE_BYTES: usize = 48;

/// A PKCS#8 document (RFC 5208) as text.
#[must_use]
pub fn encode(der: &[u8]) -> Zeroizing<String> {
    // Room for all of it: a text that grows leaves its beginnings behind.
    let room = BEGIN.len() + END.len() + 2 + der.len().div_ceil(LINE_BYTES) * (LINE_BYTES / 3 * 4 + 1);
    let mut text = Zeroizing::new(String::with_capacity(room));
    text.push_str(BEGIN);
    text.push('\n');
    for line in der.chunks(LINE_BYTES) {
        BASE64.encode_append(line, &mut text);
        text.push('\n');
    }
    text.push_str(END);
    text.push('\n');
    text
}

/// The document of a text that holds one key and nothing else; `None` when it does not.
#[must_use]
pub fn decode(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut der = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut lines = text.trim().lines().map(str::trim_end);
    lines.next().filter(|line| *line == BEGIN)?;
    for line in lines.by_ref() {
        if line == END {
            return lines.next().is_none().then_some(der);
        }
        let begun = der.len();
        der.resize(begun + BASE64.decode_len(line.len()).ok()?, 0);
        let len = BASE64.decode_mut(line.as_bytes(), &mut der[begun..]).ok()?;
        der.truncate(begun + len);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_anything_else_is_none() {
        for len in [1, 47, 48, 49, 138] {
            let der: Vec<u8> = (0..len).collect();
            let text = encode(&der);
            assert!(text.lines().all(|line| line.len() <= 64), "{}", *text);
            assert_eq!(decode(text.as_bytes()).as_deref(), Some(&der));
            assert_eq!(decode(text.replace('\n', "\r\n").as_bytes()).as_deref(), Some(&der));
        }
        let text = encode(b"a key of some bytes");
        for bad in [
            String::new(),
            text.replace("PRIVATE", "PUBLIC"),
            text.replace(END, ""),
            format!("{}{}", *text, *text),
            text.replace("YSBr", "Y!Br"),
        ] {
            assert_eq!(decode(bad.as_bytes()), None, "{bad}");
        }
    }
}
