//! Whether a rank still does what the others do.

use std::sync::OnceLock;

use crate::sharded::CommError;

/// The first error of a communicator. After it the other ranks may be in the middle of an operation
/// that this one has left, so nothing may be sent any more, by any layer: what would be paired with
/// something else.
#[derive(Debug, Default)]
pub struct Step(OnceLock<String>);

impl Step {
    /// Does what all ranks do together, unless an earlier operation has ended with an error; an
    /// error of this one is kept. `rank` is named in what is said.
    ///
    /// # Errors
    /// [`CommError::OutOfStep`], else those of `operation`.
    pub fn take<T>(
        &self,
        rank: usize,
        operation: impl FnOnce() -> Result<T, CommError>,
    ) -> Result<T, CommError> {
        if let Some(first) = self.0.get().cloned() {
            return Err(CommError::OutOfStep { rank, first });
        }
        operation().inspect_err(|error| {
            // The first counts.
            let _ = self.0.set(error.to_string());
        })
    }
}
