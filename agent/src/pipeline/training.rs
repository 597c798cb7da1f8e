//! Windows of one program to messages that fit.

use models::wire::TrainingWindow;

/// Bytes of windows in one training message, by the estimate below; a message has at most 64 KB.
const TRAINING_MAX: usize = 48 * 1024;
/// At most what a value of a window takes on the wire: a trait, a gram with its count, or an index with a number.
const VALUE_BYTES: usize = 13;
/// What is left of a window.
const WINDOW_BYTES: usize = 40;

/// Windows in order, as many in one message as surely fit.
pub(super) fn batches(windows: Vec<TrainingWindow>) -> Vec<Vec<TrainingWindow>> {
    let size = |window: &TrainingWindow| {
        WINDOW_BYTES + VALUE_BYTES * (window.vector.len() + window.traits.len() + window.grams.len())
    };
    let mut messages: Vec<Vec<TrainingWindow>> = Vec::new();
    let mut used = 0;
    for window in windows {
        let more = size(&window);
        match messages.last_mut() {
            Some(message) if used + more <= TRAINING_MAX => message.push(window),
            _ => {
                used = 0;
                messages.push(vec![window]);
            }
        }
        used += more;
    }
    messages
}
