//! Ranks that work on one thing: what they need to tell each other, of any length.

use crate::sharded::{CommError, Communicator};

/// Ranks that share messages. Every [`Communicator`] is one.
pub trait Team {
    /// This rank, below [`ranks`](Self::ranks).
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn ranks(&self) -> usize;

    /// The messages of all ranks, in their order, on every rank. All ranks call it.
    ///
    /// # Errors
    /// [`CommError`].
    fn share(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, CommError>;
}

impl<C: Communicator> Team for C {
    fn rank(&self) -> usize {
        Communicator::rank(self)
    }

    fn ranks(&self) -> usize {
        self.size()
    }

    fn share(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let lens = self.gather(&(message.len() as u64).to_le_bytes(), &vec![8; self.size()])?;
        let lens: Vec<usize> =
            lens.as_chunks().0.iter().map(|&len| u64::from_le_bytes(len) as usize).collect();
        let all = self.gather(message, &lens)?;
        let mut rest = &all[..];
        let parts = lens.iter().map(|&len| {
            let (part, others) = rest.split_at(len.min(rest.len()));
            rest = others;
            part.to_vec()
        });
        Ok(parts.collect())
    }
}
