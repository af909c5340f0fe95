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

#[cfg(test)]
mod tests {
    use crate::model::quantize::{Outcome, Warning};

    #[test]
    fn every_outcome_comes_back_from_json_as_it_was() {
        let warnings = [f32::NAN, f32::INFINITY, -f32::INFINITY, 1e-45].map(Warning::NotFinite);
        for warning in warnings.map(Some).into_iter().chain([None, Some(Warning::Zero)]) {
            let mut outcome = Outcome { warning, global_scale: 1.0 / 2688.0, ..Outcome::default() };
            let values: Vec<f32> = (0..999).map(|i| (i as f32 * 0.37).sin() * 1e38).collect();
            outcome.difference.add(&values, &[f32::NAN, 1e-45, 0.1, 0.7, 3e38]);
            let text = serde_json::to_string(&outcome).unwrap();
            let back: Outcome = serde_json::from_str(&text).unwrap();
            // Debug shows every bit of a number.
            assert_eq!(format!("{back:?}"), format!("{outcome:?}"), "{text}");
        }
    }
}
