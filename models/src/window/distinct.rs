//! A set with a bound that takes no more memory than what is in it.

/// A set has as many values as it may hold: another one was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// At most `N` values, ascending. Most processes live for a moment and do little, and thousands of their windows may be open at
/// once: what a set may hold at most is not set aside before it is there.
#[derive(Clone, Debug)]
pub struct Distinct<T, const N: usize>(Vec<T>);

impl<T: Ord + Copy, const N: usize> Distinct<T, N> {
    /// Whether the value is new to it.
    ///
    /// # Errors
    /// When it is, and there is no room.
    pub fn insert(&mut self, value: T) -> Result<bool, Full> {
        let Err(place) = self.0.binary_search(&value) else { return Ok(false) };
        if self.0.len() >= N {
            return Err(Full);
        }
        self.0.insert(place, value);
        Ok(true)
    }

    /// The values, ascending.
    #[must_use]
    pub fn values(&self) -> &[T] {
        &self.0
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T, const N: usize> Default for Distinct<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_set_takes_nothing_new_and_still_knows_what_it_has() {
        let mut set = Distinct::<u16, 3>::default();
        assert_eq!([5, 1, 5, 9].map(|value| set.insert(value)), [Ok(true), Ok(true), Ok(false), Ok(true)]);
        assert_eq!((set.insert(2), set.insert(9)), (Err(Full), Ok(false)));
        assert_eq!((set.values(), set.len(), set.is_empty()), (&[1, 5, 9][..], 3, false));
    }
}
