//! Running jobs in parallel.
//!
//! ```text
//! this thread                       rayon's threads             the flusher
//! while a job fits: start it   ->   run it
//! wait for a message           <-   bytes done, ended
//! tell the observer, in order
//! a file's last job has ended, or some time has passed:
//!     hand over files and lines  ------------------------->     flush the files, then
//!                                                               add the lines to the journal
//! ```
//!
//! Whether a job fits is decided here and not in the job: a thread that waits for a piece of one
//! tensor may begin another meanwhile, which must not wait for the memory that the first one holds.
//! Started on one of rayon's own threads, jobs run there one after another: to wait for a message
//! there could be to wait for oneself.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use super::files::{Files, Stop, writing};
use super::journal::{self, Journal};
use super::{Event, Job, Memory, Observer};
use crate::error::Error;

/// How long what is done may go without a line in the journal.
const UNNOTED: Duration = Duration::from_secs(2);

/// Where a job says how far it has come.
pub struct Progress<'a>(&'a (dyn Fn(u64) + Sync));

impl Progress<'_> {
    /// So many bytes more are done.
    pub fn bytes(&self, more: u64) {
        (self.0)(more);
    }
}

/// How many batches wait to be flushed before jobs wait for the disk: their files are open.
const UNFLUSHED: usize = 8;

enum Message<O> {
    Bytes(u64),
    Ended(usize, Result<O, Error>),
    Panicked(Box<dyn Any + Send>),
}

/// What is to be flushed, and then to be noted.
struct Batch {
    files: Vec<(Arc<File>, PathBuf)>,
    lines: String,
}

impl Batch {
    fn flush(&self, journal: Option<&mut Journal>) -> Result<(), Error> {
        for (file, path) in &self.files {
            file.sync_data().map_err(writing(path))?;
        }
        match journal {
            Some(journal) if !self.lines.is_empty() => journal.append(&self.lines),
            _ => Ok(()),
        }
    }
}

/// Flushes and notes what comes, to the first error, which stops the run.
fn flush_all(
    batches: &Receiver<Batch>,
    mut journal: Option<Journal>,
    stop: &Stop,
) -> Result<(), Error> {
    batches.iter().try_for_each(|batch| batch.flush(journal.as_mut())).inspect_err(|_| {
        stop.from(0);
    })
}

/// What threads share.
struct Shared<O> {
    sender: Sender<Message<O>>,
    stop: Stop,
}

/// A run of jobs.
pub(super) struct Run<'r, J: Job> {
    jobs: &'r [J],
    /// The jobs' numbers in the journal, where they are not their places.
    numbers: Option<&'r [usize]>,
    memory: Memory,
    files: Files<'r>,
    /// Jobs of each file that have not ended.
    left: Vec<usize>,
    /// What has ended and has not been told yet.
    ended: BTreeMap<usize, J::Outcome>,
    /// Jobs that were done before.
    kept: Vec<usize>,
    /// The next job to be started.
    next: usize,
    /// The next job to be told of.
    told: usize,
    running: usize,
    /// Bytes that running jobs hold.
    held: u64,
    /// Lines that no batch has yet; none without a journal.
    lines: Option<String>,
    noted: Instant,
    /// The first job that has failed, and how.
    failed: Option<(usize, Error)>,
    panicked: Option<Box<dyn Any + Send>>,
}

impl<'r, J: Job> Run<'r, J> {
    /// A run of the jobs that are not `done`.
    ///
    /// # Errors
    /// A file that is not there, and of which something is done.
    pub(super) fn new(
        jobs: &'r [J],
        memory: Memory,
        files: Files<'r>,
        done: BTreeMap<usize, J::Outcome>,
    ) -> Result<Self, Error> {
        let mut left = vec![0; files.len()];
        for (i, job) in jobs.iter().enumerate() {
            left[job.file()] += usize::from(!done.contains_key(&i));
        }
        let kept: Vec<_> = done.keys().copied().collect();
        kept.iter().try_for_each(|&i| files.check_kept(jobs[i].file()))?;
        Ok(Run {
            jobs,
            numbers: None,
            memory,
            files,
            left,
            ended: done,
            kept,
            next: 0,
            told: 0,
            running: 0,
            held: 0,
            lines: None,
            noted: Instant::now(),
            failed: None,
            panicked: None,
        })
    }

    /// The same with the jobs' numbers in the journal.
    pub(super) fn numbered(self, numbers: &'r [usize]) -> Self {
        Run { numbers: Some(numbers), ..self }
    }

    /// Runs them all.
    ///
    /// # Errors
    /// That of the first job that fails, or one of the system. The output is to be at `place`.
    pub(super) fn finish(
        mut self,
        place: &Path,
        journal: Option<Journal>,
        on: &mut Observer<'_, J>,
    ) -> Result<(), Error> {
        self.lines = journal.as_ref().map(|_| String::new());
        let (sender, receiver) = channel();
        let shared = Shared { sender, stop: Stop::none() };
        let flushed = std::thread::scope(|threads| {
            let (batches, queue) = sync_channel(UNFLUSHED);
            let flusher = std::thread::Builder::new().name("flush".into());
            let stop = &shared.stop;
            let flusher = flusher.spawn_scoped(threads, move || flush_all(&queue, journal, stop));
            let flusher = flusher.map_err(writing(place))?;
            rayon::in_place_scope(|scope| {
                self.drive(scope, &shared, &receiver, &batches, on);
            });
            drop(batches);
            flusher.join().unwrap_or_else(|panic| resume_unwind(panic))
        });
        if let Some(panic) = self.panicked {
            resume_unwind(panic);
        }
        flushed.and_then(|()| self.failed.map_or(Ok(()), |(_, error)| Err(error)))
    }

    fn drive<'s>(
        &mut self,
        scope: &rayon::Scope<'s>,
        shared: &'s Shared<J::Outcome>,
        messages: &Receiver<Message<J::Outcome>>,
        batches: &SyncSender<Batch>,
        on: &mut Observer<'_, J>,
    ) where
        'r: 's,
    {
        let alone = rayon::current_thread_index().is_some();
        let most = if alone { 1 } else { rayon::current_num_threads() };
        self.begin_files(shared, batches);
        self.tell(on);
        loop {
            while let Some(job) = self.startable(most) {
                on(Event::Working(self.jobs[job].name()));
                match self.task(job, shared) {
                    Ok(task) if alone => task(),
                    Ok(task) => scope.spawn(move |_| task()),
                    Err(error) => {
                        self.running -= 1;
                        self.fail(job, error, shared);
                    }
                }
            }
            if self.running == 0 {
                break;
            }
            // Jobs that run hold senders, and each sends its end.
            match messages.recv() {
                Ok(Message::Bytes(more)) => on(Event::Bytes(more)),
                Ok(Message::Ended(job, outcome)) => {
                    self.end(job, outcome, shared, batches);
                    self.tell(on);
                }
                Ok(Message::Panicked(panic)) => {
                    self.running -= 1;
                    self.panicked = Some(panic);
                    shared.stop.from(0);
                }
                Err(_) => break,
            }
        }
        // What is done is kept, even of a run that has failed.
        let _ = batches.send(self.batch(None));
    }

    /// Files without work of their own: those that no job writes, and those that are done.
    fn begin_files(&mut self, shared: &Shared<J::Outcome>, batches: &SyncSender<Batch>) {
        let mut written = vec![false; self.files.len()];
        self.jobs.iter().for_each(|job| written[job.file()] = true);
        for file in (0..written.len()).filter(|&file| !written[file]) {
            match self.files.sink(file, 0, &shared.stop).map(drop) {
                Ok(()) => drop(batches.send(self.batch(Some(file)))),
                Err(error) => self.fail(0, error, shared),
            }
        }
    }

    /// The next job, if it may be started now; it is counted as running.
    fn startable(&mut self, most: usize) -> Option<usize> {
        while self.kept.binary_search(&self.next).is_ok() {
            self.next += 1;
        }
        let job = self.jobs.get(self.next)?;
        let fits = self.held.saturating_add(job.memory()) <= self.memory.bytes;
        let ended = self.failed.is_some() || self.panicked.is_some();
        if ended || self.running >= most || !(fits || self.running == 0) {
            return None;
        }
        self.held = self.held.saturating_add(job.memory());
        self.running += 1;
        self.next += 1;
        Some(self.next - 1)
    }

    /// What runs a job and sends its end.
    fn task<'s>(
        &mut self,
        job: usize,
        shared: &'s Shared<J::Outcome>,
    ) -> Result<impl FnOnce() + Send + use<'s, J>, Error>
    where
        'r: 's,
    {
        let work: &'s J = &self.jobs[job];
        let sink = self.files.sink(work.file(), job, &shared.stop)?;
        Ok(move || {
            // The receiver outlives all jobs.
            let bytes = |more| drop(shared.sender.send(Message::Bytes(more)));
            let run = || work.run(&sink, &Progress(&bytes));
            let message = match catch_unwind(AssertUnwindSafe(run)) {
                Ok(outcome) => Message::Ended(job, outcome),
                Err(panic) => Message::Panicked(panic),
            };
            drop(sink);
            let _ = shared.sender.send(message);
        })
    }

    fn end(
        &mut self,
        job: usize,
        outcome: Result<J::Outcome, Error>,
        shared: &Shared<J::Outcome>,
        batches: &SyncSender<Batch>,
    ) {
        let file = self.jobs[job].file();
        self.running -= 1;
        self.held -= self.jobs[job].memory().min(self.held);
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => return self.fail(job, error, shared),
        };
        if let Some(lines) = &mut self.lines {
            let number = self.numbers.and_then(|numbers| numbers.get(job)).copied().unwrap_or(job);
            match journal::line(number, &outcome, self.files.path(file)) {
                Ok(line) => *lines += &line,
                Err(error) => return self.fail(job, error, shared),
            }
        }
        self.ended.insert(job, outcome);
        self.left[file] -= 1;
        let finished = (self.left[file] == 0).then_some(file);
        if finished.is_some() || self.lines.is_some() && self.noted.elapsed() > UNNOTED {
            let batch = self.batch(finished);
            // The flusher is gone after an error, which has stopped the run.
            let _ = batches.send(batch);
        }
    }

    /// What is to be flushed now: the file that is finished, and with a journal all others too.
    fn batch(&mut self, finished: Option<usize>) -> Batch {
        self.noted = Instant::now();
        let lines = self.lines.as_mut().map(std::mem::take);
        let mut files: Vec<_> = finished.into_iter().collect();
        if lines.is_some() {
            files.extend((0..self.files.len()).filter(|&file| finished != Some(file)));
        }
        let files = files.into_iter().filter_map(|file| {
            let open = match finished == Some(file) {
                true => self.files.take(file),
                false => self.files.opened(file),
            };
            Some((open?, self.files.path(file).to_path_buf()))
        });
        Batch { files: files.collect(), lines: lines.unwrap_or_default() }
    }

    /// Tells of what has ended, as far as all before it has.
    fn tell(&mut self, on: &mut Observer<'_, J>) {
        while let Some(outcome) = self.ended.remove(&self.told) {
            on(Event::Done(&self.jobs[self.told], outcome));
            self.told += 1;
        }
    }

    /// The first error in the order of the jobs counts: those before it were started before it, and
    /// go on.
    fn fail(&mut self, job: usize, error: Error, shared: &Shared<J::Outcome>) {
        shared.stop.from(job + 1);
        if self.failed.as_ref().is_none_or(|(first, _)| job < *first) {
            self.failed = Some((job, error));
        }
    }
}
