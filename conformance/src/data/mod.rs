//! The data families: what the inputs of a case hold, made from its id and the formats' constants.

mod chains;
pub mod operands;
pub mod values;
