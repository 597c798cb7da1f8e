//! Names of devices, groups and people, checked once.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A text that is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {0} is 1 to 64 characters of a-z, 0-9 and -")]
pub struct NotAName(&'static str);

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks a name.
            ///
            /// # Errors
            /// When it is empty, longer than 64 or has any other character.
            pub fn parse(text: &str) -> Result<Self, NotAName> {
                let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
                if (1..=64).contains(&text.len()) && text.bytes().all(good) {
                    Ok(Self(text.into()))
                } else {
                    Err(NotAName($what))
                }
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::parse(&Cow::<str>::deserialize(from)?).map_err(D::Error::custom)
            }
        }

        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(SchemaType::new(Type::String));
                text.pattern(Some("^[a-z0-9-]{1,64}$")).into()
            }
        }

        impl ToSchema for $type {}

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A device's name: 1 to 64 of `a-z`, `0-9` and `-`. Cheap to clone.
    DeviceId,
    "device id"
);
name!(
    /// A group's name: 1 to 64 of `a-z`, `0-9` and `-`. Every device is in one; [`GroupId::default`] at first.
    GroupId,
    "group"
);
name!(
    /// A tag of devices: 1 to 64 of `a-z`, `0-9` and `-`.
    Tag,
    "tag"
);
name!(
    /// A user's name: 1 to 64 of `a-z`, `0-9` and `-`.
    UserName,
    "user name"
);

impl Default for GroupId {
    /// The group of devices of which nobody said anything.
    fn default() -> Self {
        Self("default".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_hold_topic_or_markup_characters() {
        assert!(DeviceId::parse("gw-01").is_ok());
        for bad in ["", "GW", "a/b", "+", "#", "a b", "<b>", "ü", &"a".repeat(65)] {
            assert_eq!(DeviceId::parse(bad), Err(NotAName("device id")), "{bad}");
        }
        assert_eq!(GroupId::parse(GroupId::default().as_str()), Ok(GroupId::default()));
    }
}
