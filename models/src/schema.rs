//! One table of all 427 features.

/// System call slots: x86-64 numbers 0 to 334.
pub const SYSCALL_SLOTS: usize = 335;
/// Buckets of hashed call pairs.
pub const BIGRAMS: usize = 50;
/// All features.
pub const FEATURES: usize = 427;
/// Changes whenever a feature's meaning does.
pub const SCHEMA_ID: u32 = 0x0427_0001;
