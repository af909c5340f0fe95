//! Serde for an f32 that may be NaN or infinite, which JSON cannot say: its bits.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Writes the bits.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    value.to_bits().serialize(serializer)
}

/// Reads the bits.
///
/// # Errors
/// The deserializer's.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    u32::deserialize(deserializer).map(f32::from_bits)
}
