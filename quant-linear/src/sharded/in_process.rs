//! Ranks that are threads of one process.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::sharded::{CommError, Communicator, Kept, Step};

/// How long a rank waits for the others.
const LIMIT: Duration = Duration::from_secs(60);

/// A rank of a communicator between threads of one process: for tests, and for what MPI would be
/// too much. A rank that is dropped ends the waits of the others.
#[derive(Debug)]
pub struct InProcess {
    rank: usize,
    size: usize,
    shared: Arc<Shared>,
    round: Mutex<u64>,
    limit: Duration,
    step: Step,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rounds: BTreeMap<u64, Round>,
    gone: Vec<usize>,
}

/// One operation: what each rank has brought, and how many have taken it.
#[derive(Debug)]
struct Round {
    brought: Vec<Option<Arc<Vec<u8>>>>,
    taken: usize,
}

/// A reduction on its way: its round, and the part of the sums to be kept.
#[derive(Debug)]
pub struct Pending(u64, std::ops::Range<usize>);

impl InProcess {
    /// The ranks of a communicator, for a thread each.
    pub fn ranks(size: usize) -> Vec<InProcess> {
        let shared = Arc::new(Shared::default());
        let rank = |rank| InProcess {
            rank,
            size,
            shared: shared.clone(),
            round: Mutex::new(0),
            limit: LIMIT,
            step: Step::default(),
        };
        (0..size).map(rank).collect()
    }

    /// The same with another limit to how long it waits for the others.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        let mut own = self;
        own.limit = limit;
        own
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings this rank's bytes to the next round.
    fn bring(&self, bytes: Vec<u8>) -> u64 {
        let mut next = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        let round = *next;
        *next += 1;
        let empty = || Round { brought: vec![None; self.size], taken: 0 };
        self.state().rounds.entry(round).or_insert_with(empty).brought[self.rank] =
            Some(Arc::new(bytes));
        self.shared.changed.notify_all();
        round
    }

    /// What all ranks have brought to a round.
    fn take(&self, round: u64, what: &'static str) -> Result<Vec<Arc<Vec<u8>>>, CommError> {
        let until = Instant::now() + self.limit;
        let mut state = self.state();
        loop {
            let State { rounds, gone } = &mut *state;
            if let Some(at) = rounds.get_mut(&round) {
                let all: Option<Vec<_>> = at.brought.iter().cloned().collect();
                if let Some(all) = all {
                    at.taken += 1;
                    if at.taken == self.size {
                        rounds.remove(&round);
                    }
                    return Ok(all);
                }
                let missing = |&&rank: &&usize| at.brought[rank].is_none();
                if let Some(&gone) = gone.iter().find(missing) {
                    return Err(CommError::Gone { rank: self.rank, gone, what });
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seconds = self.limit.as_secs();
                return Err(CommError::Timeout { rank: self.rank, what, seconds });
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn unequal(&self, what: &'static str) -> CommError {
        let reason = "the ranks sent numbers of values that do not go together".into();
        CommError::Failed { rank: self.rank, what, reason }
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.state().gone.push(self.rank);
        self.shared.changed.notify_all();
    }
}

impl Communicator for InProcess {
    type Sum = Pending;

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn max(&self, bytes: &mut [u8]) -> Result<(), CommError> {
        self.step.take(self.rank, || {
            let round = self.bring(bytes.to_vec());
            for brought in self.take(round, "a maximum")? {
                if brought.len() != bytes.len() {
                    return Err(self.unequal("a maximum"));
                }
                bytes.iter_mut().zip(brought.iter()).for_each(|(to, &byte)| *to = (*to).max(byte));
            }
            Ok(())
        })
    }

    fn gather(&self, own: &[u8], lens: &[usize]) -> Result<Vec<u8>, CommError> {
        self.step.take(self.rank, || {
            let round = self.bring(own.to_vec());
            let all = self.take(round, "a gather")?;
            if all.iter().map(|bytes| bytes.len()).ne(lens.iter().copied()) {
                return Err(self.unequal("a gather"));
            }
            Ok(all.iter().flat_map(|bytes| bytes.iter().copied()).collect())
        })
    }

    fn start_sum(&self, words: Vec<i64>, kept: Kept<'_>) -> Result<Pending, CommError> {
        let range = match kept {
            Kept::All => 0..words.len(),
            Kept::Own(lens) => {
                let start = lens.iter().take(self.rank).sum();
                start..start + lens.get(self.rank).copied().unwrap_or(0)
            }
        };
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.step.take(self.rank, || Ok(Pending(self.bring(bytes), range)))
    }

    fn finish_sum(&self, Pending(round, kept): Pending) -> Result<Vec<i64>, CommError> {
        self.step.take(self.rank, || {
            let all = self.take(round, "a sum")?;
            let mut sums = vec![0i64; kept.len()];
            for brought in all {
                let words = brought.as_chunks().0.get(kept.clone());
                let words = words.ok_or_else(|| self.unequal("a sum"))?;
                for (sum, &word) in sums.iter_mut().zip(words) {
                    *sum = sum.wrapping_add(i64::from_le_bytes(word));
                }
            }
            Ok(sums)
        })
    }
}
