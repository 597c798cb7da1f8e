//! DNS names that may carry data though they are short: many of them below one domain.

use crate::event::DnsQuestion;
use crate::novelty::{Kind, trait_id};

/// A name that looks made by a machine has so many characters, with so many bits in each: 16 bytes of data make 32
/// hexadecimal digits of some 3.7 bits, and words repeat their letters.
const LONG: u16 = 40;
const RANDOM: f32 = 3.3;
/// So many of them below one domain in one window are taken for a tunnel.
const MANY: u16 = 5;
/// Domains that are counted.
const DOMAINS_MAX: usize = 16;

/// Domains by their hash, and how many names below them look made by a machine.
#[derive(Clone, Debug, Default)]
pub(super) struct OddNames(heapless::Vec<(u64, u16), DOMAINS_MAX>);

impl OddNames {
    /// Counts a name that looks so; whether there were many. `refused` counts those of a domain that found no room.
    pub(super) fn is_one_of_many(&mut self, question: &DnsQuestion, refused: &mut u64) -> bool {
        if question.name_len < LONG || question.entropy < RANDOM {
            return false;
        }
        let domain = trait_id(Kind::DnsTunnel, &question.domain);
        if let Some((_, count)) = self.0.iter_mut().find(|(known, _)| *known == domain) {
            *count = count.saturating_add(1);
            return *count >= MANY;
        }
        *refused += u64::from(self.0.push((domain, 1)).is_err());
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_names_that_a_machine_made_below_one_domain_are_a_tunnel_also_when_they_are_short() {
        let ask = |domain: &str, name_len, entropy| DnsQuestion {
            domain: domain.try_into().unwrap(),
            name_len,
            entropy,
            tcp: false,
        };
        let after = |n, name_len, entropy| {
            let (mut names, mut refused) = (OddNames::default(), 0);
            (0..n).any(|_| names.is_one_of_many(&ask("example.org", name_len, entropy), &mut refused))
        };
        assert!(!after(4, 52, 3.7) && after(5, 52, 3.7));
        assert!(!after(50, 20, 3.7), "an ordinary length");
        assert!(!after(50, 52, 2.5), "words repeat their letters");
        let (mut names, mut refused) = (OddNames::default(), 0);
        for n in 0..20 {
            assert!(!names.is_one_of_many(&ask(&format!("{n}.example"), 52, 3.7), &mut refused));
        }
        assert_eq!(refused, 4);
    }
}
