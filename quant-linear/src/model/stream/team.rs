//! One output written by several processes, on a file system that they share.
//!
//! ```text
//! rank 0    begins the output, or goes on with one: what is done          (atomic::New, journal)
//! share     fingerprints, which must be equal; where it is built, what is done
//! all       the jobs that are left, the largest first, to the rank with the least to do
//! each      its jobs, as one process does, into the same files by position; a journal of its own
//! share     outcomes
//! rank 0    other files, the index of the shards last; commit
//! share     that it is there
//! ```
//!
//! The bytes are those of one process: where a tensor goes is decided before anything is written. A
//! rank that fails or is killed leaves the journals, and a run with any number of ranks goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::Files;
use super::journal::{self, Journal};
use super::run::{Progress, Run};
use super::{Contents, Event, Inputs, Job, Memory, Observer, Output, Sink, carry, files};
use crate::atomic::{New, RANK_JOURNAL};
use crate::error::Error;
use crate::sharded::Team;

/// What rank 0 tells the others.
#[derive(Serialize, Deserialize)]
struct Begun<O> {
    building: PathBuf,
    journal: PathBuf,
    done: BTreeMap<usize, O>,
}

/// One of this rank's jobs.
struct Own<'j, J>(&'j J);

impl<J: Job> Job for Own<'_, J> {
    type Outcome = J::Outcome;

    fn name(&self) -> &str {
        self.0.name()
    }

    fn file(&self) -> usize {
        self.0.file()
    }

    fn work(&self) -> u64 {
        self.0.work()
    }

    fn memory(&self) -> u64 {
        self.0.memory()
    }

    fn run(&self, sink: &Sink<'_>, progress: &Progress<'_>) -> Result<Self::Outcome, Error> {
        self.0.run(sink, progress)
    }
}

/// The jobs of each rank: the largest first, each to the rank with the least to do.
fn shares(work: &[(usize, u64)], ranks: usize) -> Vec<Vec<usize>> {
    let mut work = work.to_vec();
    work.sort_by_key(|&(job, work)| (std::cmp::Reverse(work), job));
    let mut ranks: Vec<(u64, Vec<usize>)> = vec![(0, Vec::new()); ranks.max(1)];
    for (job, work) in work {
        // The first of those with the least.
        if let Some((held, jobs)) = ranks.iter_mut().min_by_key(|(held, _)| *held) {
            *held += work.max(1);
            jobs.push(job);
        }
    }
    let sorted = |(_, mut jobs): (u64, Vec<usize>)| {
        jobs.sort_unstable();
        jobs
    };
    ranks.into_iter().map(sorted).collect()
}

fn message<T: Serialize>(value: &T, path: &Path) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|e| files::writing(path)(e.into()))
}

fn read<T: for<'de> Deserialize<'de>>(bytes: &[u8], path: &Path) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| files::writing(path)(e.into()))
}

/// As [`write`](super::write), by all ranks of a team, each with a share of the jobs. Rank 0 is told
/// of all of them; the others of the bytes of their own.
///
/// # Errors
/// As [`write`](super::write), on the rank where it happens, which must then end the others;
/// [`Error::OtherRank`] on all if they do not have the same to do; between ranks.
pub fn write_over<J: Job>(
    contents: &Contents<'_>,
    jobs: &[J],
    output: &Output<'_>,
    memory: Memory,
    inputs: &Inputs<'_>,
    team: &dyn Team,
    on: &mut Observer<'_, J>,
) -> Result<(), Error> {
    let (rank, path) = (team.rank(), output.path);
    let fingerprint = journal::fingerprint(inputs, contents, &output.settings)?;
    let mut alike = fingerprint.clone();
    alike.push(("--resume".into(), output.resume.to_string()));
    same(team, &message(&alike, path)?)?;

    let mut new = None;
    let mut own = Vec::new();
    if rank == 0 {
        let (begun, done) = begin::<J>(output, &fingerprint, jobs.len())?;
        let (building, journal) = (begun.building().to_path_buf(), begun.journal());
        // As one process does: what is done must be there.
        let files = Files::new(output, contents, &building);
        done.keys().try_for_each(|&job| files.check_kept(jobs[job].file()))?;
        own = message(&Begun { building, journal, done }, path)?;
        new = Some(begun);
    }
    let told = team.share(&own)?;
    let Begun { building, journal, done } =
        read::<Begun<J::Outcome>>(told.first().map_or(&[][..], Vec::as_slice), path)?;

    let left = |job: &usize| !done.contains_key(job);
    let work: Vec<_> = (0..jobs.len()).filter(left).map(|i| (i, jobs[i].work())).collect();
    if rank == 0 && work.len() < jobs.len() {
        on(Event::Kept(done.keys().map(|&job| jobs[job].work()).sum()));
    }
    let numbers = shares(&work, team.ranks()).swap_remove(rank);
    let own_work: u64 = numbers.iter().map(|&job| jobs[job].work()).sum();
    let (own, left) = (numbers.len(), work.len());
    log::info!("rank {rank} has {own} of {left} pieces of work, {own_work} bytes to read");
    let of_rank: Vec<_> = numbers.iter().map(|&job| Own(&jobs[job])).collect();
    let notes = match output.resume {
        true => {
            let journal = journal.with_file_name(format!("{RANK_JOURNAL}{rank}"));
            Some(Journal::open::<J::Outcome>(&journal, &fingerprint, path, jobs.len())?.0)
        }
        false => None,
    };
    let files = Files::new(output, contents, &building).shared();
    let mut outcomes = BTreeMap::new();
    let mut at = numbers.iter();
    let run = Run::new(&of_rank, memory, files, BTreeMap::new())?.numbered(&numbers);
    run.finish(path, notes, &mut |event| match event {
        Event::Working(name) => on(Event::Working(name)),
        Event::Bytes(more) => on(Event::Bytes(more)),
        Event::Kept(_) => {}
        // In the order of the jobs.
        Event::Done(_, outcome) => drop(at.next().map(|&job| outcomes.insert(job, outcome))),
    })?;
    inputs.unchanged()?;

    let others = team.share(&message(&outcomes, path)?)?;
    let committed = match new {
        None => Ok(()),
        Some(new) => {
            let mut all = done;
            for others in &others {
                all.extend(read::<BTreeMap<usize, J::Outcome>>(others, path)?);
            }
            for (job, outcome) in all {
                if let Some(job) = jobs.get(job) {
                    on(Event::Done(job, outcome));
                }
            }
            end(contents, output, new, &fingerprint, jobs, inputs, on)
        }
    };
    committed?;
    // Nobody says that it is there before it is.
    team.share(&[])?;
    Ok(())
}

/// Checks that all ranks have the same to do.
fn same(team: &dyn Team, fingerprint: &[u8]) -> Result<(), Error> {
    let all = team.share(fingerprint)?;
    let first = all.first().cloned().unwrap_or_default();
    let other = all.iter().position(|other| *other != first);
    let Some(rank) = other else { return Ok(()) };
    let settings =
        |bytes: &[u8]| -> journal::Settings { serde_json::from_slice(bytes).unwrap_or_default() };
    let (first, other) = (settings(&first), settings(&all[rank]));
    let what = journal::difference(&first, &other).unwrap_or("something".into());
    Err(Error::OtherRank { rank, what })
}

/// What is begun, and what is done of it already.
fn begin<J: Job>(
    output: &Output<'_>,
    fingerprint: &journal::Settings,
    jobs: usize,
) -> Result<(New, BTreeMap<usize, J::Outcome>), Error> {
    let new = match output.resume {
        true => New::resume(output.kind, output.path)?,
        false => New::begin(output.kind, output.path)?,
    };
    let mut done = BTreeMap::new();
    if output.resume {
        let opened = Journal::open_all(&new.journal(), fingerprint, output.path, jobs)?;
        done = opened.1;
    }
    if done.is_empty() {
        new.clear()?;
    }
    Ok((new, done))
}

/// Rank 0's: what no job writes, and the commit.
fn end<J: Job>(
    contents: &Contents<'_>,
    output: &Output<'_>,
    new: New,
    fingerprint: &journal::Settings,
    jobs: &[J],
    inputs: &Inputs<'_>,
    on: &mut Observer<'_, J>,
) -> Result<(), Error> {
    if output.resume {
        // All in one, which the commit takes away.
        Journal::open_all::<J::Outcome>(&new.journal(), fingerprint, output.path, jobs.len())?;
    }
    carry(contents, output, new.building(), on)?;
    for (name, bytes) in &contents.generated {
        on(Event::Working(name));
        let written = std::fs::write(new.building().join(name), bytes);
        written.map_err(files::writing(&output.path.join(name)))?;
    }
    inputs.unchanged()?;
    new.commit(output.replace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_every_job_is_one_ranks() {
        let work = [(0, 5), (1, 90), (2, 40), (3, 40), (5, 10), (6, 0), (7, 1)];
        let shares = shares(&work, 3);
        assert_eq!(shares[0], [1]);
        let mut all = shares.concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 5, 6, 7]);
        let held = |jobs: &[usize]| -> u64 {
            work.iter().filter(|(job, _)| jobs.contains(job)).map(|(_, work)| work).sum()
        };
        assert!(shares.iter().all(|jobs| held(jobs) >= 40), "{shares:?}");
        assert_eq!(super::shares(&work, 20).iter().filter(|jobs| jobs.is_empty()).count(), 13);
    }
}
