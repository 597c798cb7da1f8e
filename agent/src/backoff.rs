//! How long to wait before the next try.

use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};

/// Between half of and the whole time, so that a thousand gateways do not come back in one second.
///
/// # Panics
/// When the system gives no random bytes.
#[must_use]
pub fn jittered(wait: Duration) -> Duration {
    let mut bytes = [0; 2];
    SystemRandom::new().fill(&mut bytes).expect("the system gives random bytes");
    wait / 2 + wait.mul_f64(f64::from(u16::from_be_bytes(bytes)) / 65_536.0 / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_spread_over_half_of_their_time() {
        for _ in 0..1000 {
            let wait = jittered(Duration::from_secs(60));
            assert!((Duration::from_secs(30)..=Duration::from_secs(60)).contains(&wait), "{wait:?}");
        }
    }
}
