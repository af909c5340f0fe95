//! What is queued on a device's stream: which kernel, and what it is given.

pub(crate) mod fold;
pub(crate) mod layout;
pub(crate) mod matmul;
pub(crate) mod quantize;
pub(crate) mod transfer;
