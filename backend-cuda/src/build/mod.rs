//! From kernel source to machine code.

pub(crate) mod cache;
pub(crate) mod compile;
pub(crate) mod prebuilt;
pub(crate) mod sources;
