//! Checkpoints to read from: tensors by name, and as few bytes of the file as they take.

use std::borrow::Cow;

use safetensors::{Dtype, SafeTensors};

use crate::error::Error;

/// Tensors by name: a file, a map of one, or bytes in memory.
pub trait TensorSource {
    /// Type and shape of a tensor; `None` if there is none of that name.
    fn header(&self, name: &str) -> Option<(Dtype, Vec<usize>)>;

    /// The bytes of a tensor, little-endian and row-major.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or an I/O error.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Error>;
}

impl TensorSource for SafeTensors<'_> {
    fn header(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        self.tensor(name).ok().map(|view| (view.dtype(), view.shape().to_vec()))
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Error> {
        match self.tensor(name) {
            Ok(view) => Ok(Cow::Borrowed(view.data())),
            Err(_) => Err(Error::MissingTensor { name: name.to_string() }),
        }
    }
}
