//! Early stopping (Prechelt, *Neural Networks: Tricks of the Trade*, 1998): the weights that did best on held-out
//! windows, and the moment at which more steps stopped paying.

/// Steps between two looks at the held-out windows.
const EVERY: usize = 50;
/// Looks without a better one after which training ends.
const PATIENCE: u32 = 6;
/// A smaller relative gain than this is none.
const GAIN: f32 = 1e-3;

/// The best model so far.
pub(super) struct Stop<M> {
    best: Option<(f32, M)>,
    worse: u32,
}

impl<M> Default for Stop<M> {
    fn default() -> Self {
        Self { best: None, worse: 0 }
    }
}

impl<M: Clone> Stop<M> {
    /// Notes the error on held-out windows; `true` when training should end.
    pub(super) fn after(&mut self, error: f32, model: &M) -> bool {
        if self.best.as_ref().is_none_or(|(least, _)| error < least * (1.0 - GAIN)) {
            self.best = Some((error, model.clone()));
            self.worse = 0;
        } else {
            self.worse += 1;
        }
        self.worse >= PATIENCE
    }

    /// The model of the least error, when there was a look.
    pub(super) fn best(self) -> Option<M> {
        self.best.map(|(_, model)| model)
    }
}

/// Whether to look after this step, counted from 0.
pub(super) fn looks_at(step: usize) -> bool {
    step % EVERY == EVERY - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_kept_and_patience_ends() {
        let mut stop = Stop::default();
        let errors = [5.0, 3.0, 4.0, 2.9999, 3.5, 3.5, 3.5, 3.5, 1.0];
        let ended = errors.iter().enumerate().position(|(at, error)| stop.after(*error, &at));
        assert_eq!((ended, stop.best()), (Some(7), Some(1)));
    }

    #[test]
    fn an_error_that_is_not_a_number_is_never_the_best_of_some() {
        let mut stop = Stop::default();
        assert!(!stop.after(1.0, &1) && !stop.after(f32::NAN, &2));
        assert_eq!(stop.best(), Some(1));
    }
}
