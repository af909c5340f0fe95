//! From kernel source to machine code.

pub(crate) mod arguments;
pub(crate) mod cache;
pub(crate) mod compile;
mod header;
pub(crate) mod kernels;
pub(crate) mod prebuilt;
pub(crate) mod sources;
