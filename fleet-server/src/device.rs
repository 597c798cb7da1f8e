//! A device's name, checked once.

use std::fmt;
use std::sync::Arc;

/// A device's name: 1 to 64 of `a-z`, `0-9` and `-`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(Arc<str>);

/// A text that is no device name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a device id is 1 to 64 characters of a-z, 0-9 and -")]
pub struct NotADeviceId;

impl DeviceId {
    /// Checks a name.
    ///
    /// # Errors
    /// When it is empty, longer than 64 or has any other character.
    pub fn parse(text: &str) -> Result<Self, NotADeviceId> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=64).contains(&text.len()) && text.bytes().all(good) {
            Ok(Self(text.into()))
        } else {
            Err(NotADeviceId)
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_hold_topic_or_markup_characters() {
        assert!(DeviceId::parse("gw-01").is_ok());
        for bad in ["", "GW", "a/b", "+", "#", "a b", "<b>", "ü", &"a".repeat(65)] {
            assert_eq!(DeviceId::parse(bad), Err(NotADeviceId), "{bad}");
        }
    }
}
