//! Who asks, and what they may do.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::names::UserName;

/// What a user may do; each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads alerts, devices, baselines and counters.
    Viewer,
    /// Works on alerts, asks for trainings, undoes containments.
    Analyst,
    /// Makes and revokes devices, tokens and users, and reads the audit log.
    Admin,
}

impl Role {
    /// Every role, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Analyst, Self::Admin];

    /// The name in the API and in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Analyst => "analyst",
            Self::Admin => "admin",
        }
    }

    /// Reads a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The user's name; [`OWNER`] for the token in the state folder.
    pub name: String,
    /// What the user may do.
    pub role: Role,
}

/// Whoever has the token in the state folder.
pub const OWNER: &str = "owner";

/// Whoever runs a command on the server's own machine.
pub const LOCAL: &str = "local";

/// The name of a user that people may make.
///
/// # Errors
/// A sentence that says what is wrong with it, e.g. that it is one of the server's own.
pub fn user_name(text: &str) -> Result<UserName, String> {
    let name = UserName::parse(text).map_err(|error| error.to_string())?;
    if is_reserved(&name) { Err(format!("`{name}` is a name of the server's own")) } else { Ok(name) }
}

/// The longest label of a token, in characters.
const LABEL_MAX: usize = 100;

/// What a token is said to be for.
///
/// # Errors
/// A sentence that says what a label is.
pub fn label(text: &str) -> Result<String, String> {
    if text.chars().count() > LABEL_MAX || text.chars().any(char::is_control) {
        return Err(format!("a label is at most {LABEL_MAX} printable characters"));
    }
    Ok(text.to_owned())
}

/// Whether a name is one of the server's own, which no user may have.
#[must_use]
pub fn is_reserved(name: &UserName) -> bool {
    [OWNER, LOCAL].contains(&name.as_str())
}

impl Principal {
    /// Whoever has the token in the state folder.
    #[must_use]
    pub fn owner() -> Self {
        Self { name: OWNER.into(), role: Role::Admin }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_read_back_and_each_is_more_than_the_one_before() {
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        assert!(Role::ALL.is_sorted());
        assert_eq!(Role::parse("root"), None);
    }

    #[test]
    fn a_label_is_short_and_printable() {
        for good in ["", "laptop of Zoë", &"x".repeat(LABEL_MAX)] {
            assert_eq!(label(good).as_deref(), Ok(good));
        }
        for bad in ["a\nb", "\u{1}session", &"x".repeat(LABEL_MAX + 1)] {
            assert!(label(bad).is_err(), "{bad:?}");
        }
    }
}
