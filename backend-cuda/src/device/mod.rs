//! The device: which there are, its context and one stream, memory, and launches on it.

pub(crate) mod buffer;
pub(crate) mod driver;
pub(crate) mod error;
pub(crate) mod gpu;
pub(crate) mod launch;
pub(crate) mod module;
pub(crate) mod reason;
pub(crate) mod stream;
