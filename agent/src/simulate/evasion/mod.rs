//! Ways to escape notice, as somebody tries them who has read this source, with what is seen of each and what is not.
//!
//! An evasion hides an act that [`super::family`] has in the open. Beside what must be reported, a variant says what is
//! [hidden](super::table::Act::hides): the test of the kernel side fails when that is reported after all, so that the
//! documents cannot claim less, or more, than is so.

mod attack;
mod flooding;
mod masquerading;
mod mimicry;
mod namespaces;
mod poisoning;
mod slow;
mod uring;

use super::table::Threat;

/// A way to escape notice.
#[derive(Debug)]
pub struct Evasion {
    /// Its name, techniques and variants.
    pub threat: Threat,
    /// What gives it away.
    pub seen: &'static str,
    /// What it hides.
    pub unseen: &'static str,
}

/// Every evasion.
pub static EVASIONS: &[Evasion] = &[
    mimicry::EVASION,
    slow::EVASION,
    uring::EVASION,
    masquerading::EVASION,
    namespaces::EVASION,
    flooding::EVASION,
    attack::EVASION,
    poisoning::EVASION,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documented;

    #[test]
    fn the_documented_evasions_are_those_of_the_code() {
        let head = "| evasion | variants | is seen | is not seen |\n|---|---|---|---|\n";
        let row = |evasion: &Evasion| {
            let variants: Vec<_> = evasion.threat.variants.iter().map(|variant| variant.name).collect();
            let (name, variants) = (evasion.threat.name, variants.join(", "));
            format!("| {name} | {variants} | {} | {} |", evasion.seen, evasion.unseen)
        };
        let rows: Vec<String> = EVASIONS.iter().map(row).collect();
        documented::table("security.md", head, &rows, "documented_evasions");
    }
}
