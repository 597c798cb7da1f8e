//! Bytes that nobody would send, made from some that somebody would.

/// Longest input, unless it is made of a longer one.
const LEN_MAX: usize = 16 * 1024;

/// Numbers at which lengths and counts go wrong.
const ODD: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Changes an input in some ways; `others` lend it parts, `words` are what the reader knows.
pub(crate) fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], words: &[&[u8]], random: &mut fastrand::Rng) {
    let most = input.len().max(LEN_MAX);
    for _ in 0..1 << random.u32(..4) {
        one(input, others, words, random);
    }
    input.truncate(most);
}

fn one(input: &mut Vec<u8>, others: &[Vec<u8>], words: &[&[u8]], random: &mut fastrand::Rng) {
    let len = input.len();
    let at = random.usize(..=len);
    match random.u8(..12) {
        0 | 1 if len > 0 => input[random.usize(..len)] ^= 1 << random.u8(..8),
        2 if len > 0 => input[random.usize(..len)] = random.u8(..),
        3 => {
            let odd = ODD[random.usize(..ODD.len())].to_le_bytes();
            let width = 1 << random.usize(..4);
            for (n, byte) in odd[..width].iter().enumerate() {
                match input.get_mut(at + n) {
                    Some(place) => *place = *byte,
                    None => input.push(*byte),
                }
            }
        }
        4 => {
            // The largest number that postcard writes, and one too many.
            let n = random.usize(1..12);
            input.splice(at..at, std::iter::repeat_n(0xff, n).chain([0x01]));
        }
        5 if len > 0 => {
            let to = random.usize(at..=len.min(at + 64));
            input.drain(at..to);
        }
        6 => input.truncate(at),
        7 => {
            let n = random.usize(1..32);
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(n).collect();
            input.splice(at..at, bytes);
        }
        8 if len > 0 => {
            let to = random.usize(at..=len.min(at + 256));
            let part = input[at..to].to_vec();
            for _ in 0..random.usize(1..4) {
                input.splice(at..at, part.iter().copied());
            }
        }
        9 if !others.is_empty() => {
            let other = &others[random.usize(..others.len())];
            let from = random.usize(..=other.len());
            let to = random.usize(from..=other.len());
            let cut = random.usize(at..=len);
            input.splice(at..cut, other[from..to].iter().copied());
        }
        10 if !words.is_empty() => {
            let word = words[random.usize(..words.len())];
            input.splice(at..at, word.iter().copied());
        }
        _ if len > 1 => {
            let (a, b) = (random.usize(..len), random.usize(..len));
            input.swap(a, b);
        }
        _ => input.push(random.u8(..)),
    }
}
