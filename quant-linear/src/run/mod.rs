//! Running layers: what they share, who does what, and the one path of a forward.
//!
//! | module | what it is |
//! |---|---|
//! | [`runtime`] | backends, open devices and scratch, shared by layers |
//! | [`routing`] | the list of backends, a choice for each role, the reasons |
//! | [`forward`] | quantize, multiply, round once |
//! | [`partial`] | the halves of a forward apart, for layers split over ranks |
//! | [`grouped`] | several layers in one call |
//! | [`activation`] | activations quantized once for several layers |
//! | [`device`] | tensors in a backend's memory |
//! | [`counters`] | what quantization did, and which paths ran |
//! | [`saturation`] | when what it did deserves a warning, and what mends it |

pub(crate) mod activation;
pub(crate) mod counters;
pub(crate) mod device;
pub(crate) mod forward;
mod grouped;
pub(crate) mod partial;
pub mod routing;
pub(crate) mod runtime;
pub(crate) mod saturation;
mod scratch;

pub(crate) use routing::{Multiplier, Routing};
