//! Whether a rank still does what the others do.

use std::sync::OnceLock;

use crate::sharded::ShardError;

/// The first error of a layer past the point where all ranks hear of errors. After it the others
/// are in the middle of a call that this rank has left, so nothing may be sent any more.
#[derive(Debug, Default)]
pub(super) struct Step(OnceLock<String>);

impl Step {
    /// That no such error has happened.
    ///
    /// # Errors
    /// [`ShardError::OutOfStep`].
    pub(super) fn expect(&self) -> Result<(), ShardError> {
        let first = self.0.get().cloned();
        first.map_or(Ok(()), |first| Err(ShardError::OutOfStep { first }))
    }

    /// Does what all ranks do together; an error of it is kept.
    ///
    /// # Errors
    /// That of `f`.
    pub(super) fn keep<T>(
        &self,
        f: impl FnOnce() -> Result<T, ShardError>,
    ) -> Result<T, ShardError> {
        f().inspect_err(|error| {
            // The first counts.
            let _ = self.0.set(error.to_string());
        })
    }
}
