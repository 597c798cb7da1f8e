//! Harness shared by the test targets.
