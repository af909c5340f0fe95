//! Two real models in plain f32 over interchangeable linear layers: a sentence encoder
//! (all-MiniLM-L6-v2) and a llama-style decoder (SmolLM2).
//!
//! A model asks its caller for each of its linear layers ([`linear::Linear`]): dense ones, FP4 ones
//! in every encoding of the activations, or those of another library. Everything else, attention,
//! norms and softmax, computes each row by itself in a fixed order. So two models differ by their
//! linear layers alone, and with exact ones a whole model is batch-invariant: the bits of a row do
//! not depend on the batch, on chunks, threads or the backend.
//!
//! For programs: examples, calibration, other libraries' variants. Errors are [`anyhow`]'s, with
//! what was given, what was expected and what to do.

mod attention;
pub mod calibrate;
pub mod decoder;
pub mod encoder;
pub mod linear;
mod math;

pub use math::swiglu;
