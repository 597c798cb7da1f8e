//! A message to port 53 to the question in it: name, its length and how random its labels are.

/// The longest name, in its text form.
pub const NAME_MAX: usize = 253;
const HEADER: usize = 12;

/// The first question of a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Question {
    name: [u8; NAME_MAX],
    len: usize,
    /// Type asked for, e.g. 1 for an address and 16 for text.
    pub kind: u16,
    /// Bytes of the longest label.
    pub longest_label: u8,
    /// Shannon entropy of the name without its last two labels, bits per character.
    pub entropy: f32,
    /// It came with TCP's length before it.
    pub over_tcp: bool,
}

impl Question {
    /// The name in text form, without the final dot. Bytes that are not printable are replaced by `?`.
    #[must_use]
    pub fn name(&self) -> &str {
        core::str::from_utf8(&self.name[..self.len]).unwrap_or_default()
    }

    /// The last two labels: the name that somebody registered, as far as one can tell without a list.
    #[must_use]
    pub fn domain(&self) -> &str {
        let name = self.name();
        let mut dots = name.rmatch_indices('.').skip(1);
        dots.next().map_or(name, |(at, _)| &name[at + 1..])
    }
}

/// Reads a query, over UDP or with the length that TCP puts before it; `None` when it is none.
#[must_use]
pub fn question(message: &[u8]) -> Option<Question> {
    if let Some(found) = read(message, false) {
        return Some(found);
    }
    let (length, rest) = message.split_first_chunk::<2>()?;
    // What was copied may be less than what was sent, never more.
    if usize::from(u16::from_be_bytes(*length)) < rest.len() { None } else { read(rest, true) }
}

fn read(message: &[u8], over_tcp: bool) -> Option<Question> {
    let (header, mut rest) = message.split_first_chunk::<HEADER>()?;
    let is_query = header[2] & 0xf8 == 0;
    if !is_query || u16::from_be_bytes([header[4], header[5]]) == 0 {
        return None;
    }
    let mut question =
        Question { name: [0; NAME_MAX], len: 0, kind: 0, longest_label: 0, entropy: 0.0, over_tcp };
    loop {
        let (length, after) = rest.split_first()?;
        if *length == 0 {
            rest = after;
            break;
        }
        if *length > 63 {
            return None;
        }
        let (label, after) = after.split_at_checked(usize::from(*length))?;
        let dot = usize::from(question.len > 0);
        let place = question.name.get_mut(question.len..question.len + dot + label.len())?;
        if dot == 1 {
            place[0] = b'.';
        }
        for (to, from) in place[dot..].iter_mut().zip(label) {
            *to = if from.is_ascii_graphic() && *from != b'.' { *from } else { b'?' };
        }
        question.len += dot + label.len();
        question.longest_label = question.longest_label.max(*length);
        rest = after;
    }
    let (kind, _) = rest.split_first_chunk::<2>()?;
    question.kind = u16::from_be_bytes(*kind);
    let below = question.len - question.domain().len();
    question.entropy = entropy(&question.name[..below]);
    Some(question)
}

fn entropy(text: &[u8]) -> f32 {
    let mut counts = [0_u16; 256];
    let mut total = 0.0;
    for byte in text.iter().filter(|byte| **byte != b'.') {
        counts[usize::from(*byte)] += 1;
        total += 1.0;
    }
    counts.iter().filter(|n| **n > 0).map(|n| f32::from(*n) / total).map(|share| -share * log2(share)).sum()
}

/// Binary logarithm of a positive number, to four decimals; `core` has none.
fn log2(x: f32) -> f32 {
    let bits = x.to_bits();
    #[allow(clippy::cast_precision_loss, reason = "an exponent has eight bits")]
    let exponent = (bits >> 23) as i32 as f32 - 127.0;
    // The mantissa lies in 1 to 2; the series of the inverse hyperbolic tangent converges fast there.
    let mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f80_0000);
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let t2 = t * t;
    let ln = 2.0 * t * (1.0 + t2 * (1.0 / 3.0 + t2 * (1.0 / 5.0 + t2 * (1.0 / 7.0 + t2 / 9.0))));
    exponent + ln * core::f32::consts::LOG2_E
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn query(name: &str) -> Vec<u8> {
        let mut message = std::vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.extend([0, 0, 16, 0, 1]);
        message
    }

    #[test]
    fn a_question_is_read_over_udp_and_tcp() {
        let udp = query("www.example.org");
        let found = question(&udp).unwrap();
        assert_eq!((found.name(), found.domain()), ("www.example.org", "example.org"));
        assert_eq!((found.kind, found.longest_label, found.over_tcp), (16, 7, false));
        let mut tcp = (udp.len() as u16).to_be_bytes().to_vec();
        tcp.extend(&udp);
        let found = question(&tcp).unwrap();
        assert!(found.over_tcp && found.name() == "www.example.org");
    }

    #[test]
    fn encoded_data_is_more_random_than_a_host_name() {
        let host = question(&query("www.mail.example.org")).unwrap();
        let data = question(&query("k7x2q9mfz4p1w8vb3n6ht5rjc0dysgae.t.example.org")).unwrap();
        assert!(host.entropy < 3.0 && data.entropy > 4.5, "{} {}", host.entropy, data.entropy);
    }

    #[test]
    fn answers_and_other_bytes_are_no_questions() {
        let mut answer = query("a.b");
        answer[2] = 0x81;
        assert_eq!(question(&answer), None);
        assert_eq!(question(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), None);
    }

    #[test]
    fn no_truncation_panics_or_invents_a_question() {
        let whole = query("www.example.org");
        for len in 0..whole.len() - 2 {
            assert_eq!(question(&whole[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn logarithms_are_near_the_real_ones() {
        for x in [1.0_f32, 0.5, 0.25, 0.1, 0.003, 0.9] {
            assert!((log2(x) - x.log2()).abs() < 1e-3, "{x}");
        }
    }
}
