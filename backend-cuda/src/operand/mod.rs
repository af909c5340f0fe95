//! What lives in device memory: dense tensors, packed operands with their row metadata and folded
//! form, prepared weights, transforms. What fills it is in [`ops`](crate::ops).

pub(crate) mod folded;
pub(crate) mod form;
pub(crate) mod packed;
pub(crate) mod tensor;
