//! What a baseline is learned for: a program in its unit, not a pid.

use core::fmt;

use ring::digest;
use serde::{Deserialize, Serialize};

/// [`ProgramId::unit`] of a program that no unit or container started.
pub const NO_UNIT: &str = "-";

/// The identity that survives a restart: unit or container, executable, and an interpreter's script.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProgramId {
    /// The systemd unit or container, [`NO_UNIT`] where there is none.
    pub unit: String,
    /// The executable's path.
    pub exe: String,
    /// The script, when `exe` is an interpreter.
    pub script: Option<String>,
}

impl ProgramId {
    /// A file-name-safe key: the first 16 bytes of SHA-256 over the three parts, in hexadecimal.
    #[must_use]
    pub fn key(&self) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [&self.unit, &self.exe, self.script.as_ref().unwrap_or(&String::new())] {
            context.update(part.as_bytes());
            context.update(&[0]);
        }
        hex(&context.finish().as_ref()[..16])
    }
}

impl fmt::Display for ProgramId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.exe)?;
        if self.unit != NO_UNIT {
            write!(f, " in {}", self.unit)?;
        }
        match &self.script {
            Some(script) => write!(f, " ({script})"),
            None => Ok(()),
        }
    }
}

/// Bytes as lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a String cannot fail");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_be_shifted_into_each_other() {
        let id = |unit: &str, exe: &str| ProgramId { unit: unit.into(), exe: exe.into(), script: None };
        assert_ne!(id("a", "bc").key(), id("ab", "c").key());
        assert_eq!(id("a", "b").key().len(), 32);
    }

    #[test]
    fn a_program_without_a_unit_is_its_path() {
        let id = |unit: &str| {
            ProgramId { unit: unit.into(), exe: "/usr/bin/pump".into(), script: None }.to_string()
        };
        assert_eq!([id(NO_UNIT), id("pump.service")], ["/usr/bin/pump", "/usr/bin/pump in pump.service"]);
    }
}
