//! Writing a model of any size: tensors in parallel, within a limit on memory, whole or not at all,
//! and to be continued after a kill.
//!
//! The driver knows nothing of quantizing. A [`Job`] makes the bytes of some tensors of one output
//! file and writes them where that file's [`Layout`] has them; everything else is done here:
//!
//! ```text
//! begin     the output beside its place                               (atomic::New)
//!           resumed: the journal's finished jobs are not run again    (journal)
//! run       jobs in order, at most one a thread and as many as fit the memory, on rayon's current
//!           threads; a file is flushed when its last job has ended    (run)
//! carry     other files of the input, byte for byte
//! generate  files whose contents are known, in their order: the index of the shards last
//! check     every file of the input is still the one that was read    (inputs)
//! commit    flush, rename into the place                              (atomic::New)
//! ```
//!
//! [`write_over`] is the same by several processes at once, each with a share of the jobs.
//!
//! Who calls is told of everything in the order of the jobs, on its own thread. Bytes and reports
//! depend neither on the number of threads nor on the memory.
//!
//! [`Memory`] bounds what jobs say they hold, all threads together. It does not count the program
//! itself and its threads' stacks (some MB), nor what grows with the number of tensors: their
//! names, headers and reports, a few times the length of the headers.

pub mod bits;
mod files;
mod inputs;
mod journal;
mod run;
mod team;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::atomic::{Kind, New};
use crate::checkpoint::tiles::DEFAULT_BLOCK_BYTES;
use crate::checkpoint::{Arrangement, Checkpoint, Listing, byte_len};
use crate::error::Error;

use files::Files;
pub use files::Sink;
pub use inputs::Inputs;
use journal::Journal;
pub use journal::Settings;
pub use run::Progress;
use run::Run;
pub use team::write_over;

/// Where everything in an output file goes.
pub trait Layout: Sync {
    /// The first bytes of the file.
    fn header(&self) -> &[u8];

    /// Length of the whole file.
    fn file_len(&self) -> u64;

    /// Position in the file of a tensor's first byte; `None` for a name that has no place.
    fn position(&self, name: &str) -> Option<u64>;
}

impl Layout for Arrangement {
    fn header(&self) -> &[u8] {
        Arrangement::header(self)
    }

    fn file_len(&self) -> u64 {
        Arrangement::file_len(self)
    }

    fn position(&self, name: &str) -> Option<u64> {
        Arrangement::position(self, name)
    }
}

/// A piece of work: some tensors of one output file.
pub trait Job: Sync {
    /// What became of it; kept in the journal of an output that is to be continued, so it must come
    /// back from JSON as it was.
    type Outcome: Send + Serialize + DeserializeOwned + 'static;

    /// What people know it by: the name of a tensor.
    fn name(&self) -> &str;

    /// Position of the output file in [`Contents::files`]. Jobs are in the order of their files.
    fn file(&self) -> usize;

    /// Bytes that it reports to its [`Progress`] in all.
    fn work(&self) -> u64;

    /// Bytes that it holds at a time, at most.
    fn memory(&self) -> u64;

    /// Does it, and writes all of its tensors. Run again after a kill, it writes the same.
    ///
    /// # Errors
    /// What stops the whole run.
    fn run(&self, sink: &Sink<'_>, progress: &Progress<'_>) -> Result<Self::Outcome, Error>;
}

/// A limit on what jobs hold in memory at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes, all threads together. A single job may run whatever it needs.
    pub bytes: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Memory { bytes: 1 << 30 }
    }
}

impl Memory {
    /// What a job on a tile of dense values holds, in tiles: the bytes read, the values, those
    /// transformed, or in their place the packed values and what these are worth (in f32, so twice
    /// as long for F16 and BF16).
    pub const TILES: u64 = 4;

    /// Bytes of a tile with which every thread can run a job. More than 8 MiB gains nothing.
    pub fn tile_bytes(self) -> usize {
        let share = self.bytes / (Self::TILES * rayon::current_num_threads() as u64);
        usize::try_from(share).map_or(DEFAULT_BLOCK_BYTES, |share| share.min(DEFAULT_BLOCK_BYTES))
    }

    /// What a job holds that goes through `bytes` of dense values tile by tile.
    pub fn of_tiles(self, bytes: u64) -> u64 {
        Self::TILES * bytes.min(self.tile_bytes() as u64)
    }
}

/// What the output is made of.
pub struct Contents<'a> {
    /// The files that jobs write, by name; the one of a file output has any.
    pub files: Vec<(&'a str, &'a dyn Layout)>,
    /// The files of the input's folder that are copied.
    pub carried: Option<(&'a Path, &'a Listing)>,
    /// Names and contents of files that are written after all others, in this order.
    pub generated: Vec<(&'a str, Vec<u8>)>,
}

/// Where the output goes, and how.
#[derive(Debug, Clone)]
pub struct Output<'a> {
    /// Its place.
    pub path: &'a Path,
    /// A file, or a folder of files.
    pub kind: Kind,
    /// Whether it may replace what is there.
    pub replace: bool,
    /// Whether it is to be continued after a kill; if not, nothing is left behind.
    pub resume: bool,
    /// What decides its bytes beside the input and the headers of its files: what a run that
    /// continues it, and every rank of one, must have in common with this one.
    pub settings: Settings,
}

/// What a run has come to.
pub enum Event<'e, J: Job> {
    /// It works on this tensor or file now.
    Working(&'e str),
    /// So many bytes more are done.
    Bytes(u64),
    /// So many bytes were done already by the run that this one continues.
    Kept(u64),
    /// A job is done; in the order of the jobs.
    Done(&'e J, J::Outcome),
}

/// Who is told of events.
pub type Observer<'o, J> = dyn FnMut(Event<'_, J>) + 'o;

/// Runs `jobs`, and puts the output in its place.
///
/// # Errors
/// I/O errors; what a job fails with; another run with the same output; an input that has changed;
/// an output to be continued that was begun with other input or settings. The output is then as it
/// was before, and what is to be continued is kept.
pub fn write<J: Job>(
    contents: &Contents<'_>,
    jobs: &[J],
    output: &Output<'_>,
    memory: Memory,
    inputs: &Inputs<'_>,
    on: &mut Observer<'_, J>,
) -> Result<(), Error> {
    let new = match output.resume {
        true => New::resume(output.kind, output.path)?,
        false => New::begin(output.kind, output.path)?,
    };
    let (mut journal, mut done) = (None, BTreeMap::new());
    if output.resume {
        let fingerprint = journal::fingerprint(inputs, contents, &output.settings)?;
        let opened = Journal::open_all(&new.journal(), &fingerprint, output.path, jobs.len())?;
        (journal, done) = (Some(opened.0), opened.1);
    }
    if done.is_empty() {
        new.clear()?;
    }
    let kept = jobs.iter().enumerate().filter(|(i, _)| done.contains_key(i));
    let kept: u64 = kept.map(|(_, job)| job.work()).sum();
    if kept > 0 {
        on(Event::Kept(kept));
    }
    let files = Files::new(output, contents, new.building());
    Run::new(jobs, memory, files, done)?.finish(output.path, journal, on)?;
    carry(contents, output, new.building(), on)?;
    for (name, bytes) in &contents.generated {
        on(Event::Working(name));
        let written = std::fs::write(new.building().join(name), bytes);
        written.map_err(files::writing(&output.path.join(name)))?;
    }
    inputs.unchanged()?;
    new.commit(output.replace)
}

/// Copies the other files of the input's folder.
fn carry<J: Job>(
    contents: &Contents<'_>,
    output: &Output<'_>,
    building: &Path,
    on: &mut Observer<'_, J>,
) -> Result<(), Error> {
    let Some((root, listing)) = contents.carried else { return Ok(()) };
    for folder in &listing.folders {
        match std::fs::create_dir(building.join(folder)) {
            // By the run that this one continues.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && output.resume => {}
            made => made.map_err(files::writing(&output.path.join(folder)))?,
        }
    }
    for (file, len) in &listing.files {
        if contents.generated.iter().any(|(name, _)| file == Path::new(name)) {
            continue;
        }
        on(Event::Working(&file.to_string_lossy()));
        let (from, to) = (root.join(file), building.join(file));
        if output.resume {
            // A copy of the run that this one continues, perhaps one that cannot be written to.
            let _ = std::fs::remove_file(&to);
        }
        let copied = std::fs::copy(&from, &to);
        copied.map_err(|source| Error::Io { action: "copying", path: from, source })?;
        on(Event::Bytes(*len));
    }
    Ok(())
}

/// Copies a tensor byte for byte; what most [jobs](Job) that do nothing else do.
///
/// # Errors
/// As [`Checkpoint::read`] and [`Sink::write`].
pub fn copy(
    from: &Checkpoint,
    name: &str,
    memory: Memory,
    sink: &Sink<'_>,
    progress: &Progress<'_>,
) -> Result<(), Error> {
    let tensor = from.tensor(name)?;
    let (len, position) = (byte_len(&tensor.info), sink.position(name)?);
    let step = memory.tile_bytes().max(1 << 16);
    for offset in (0..len).step_by(step) {
        let bytes = from.read(tensor, offset..len.min(offset + step))?;
        sink.write(position + offset as u64, &bytes)?;
        progress.bytes(bytes.len() as u64);
    }
    Ok(())
}
