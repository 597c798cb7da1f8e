//! An error and its causes in one line for people.

use std::error::Error;

/// `error: cause: cause`; a cause whose words are there already is left out.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{WireError, decode};

    #[test]
    fn causes_follow_and_none_is_said_twice() {
        let error = decode::<u64>(&[]).unwrap_err();
        assert_eq!(chain(&error), "decoding a message: Hit the end of buffer, expected more data");
        assert_eq!(chain(&WireError::Trailing(1)), "1 bytes follow the message");
    }
}
