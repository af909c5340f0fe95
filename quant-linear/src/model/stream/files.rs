//! The output files that jobs write: each opened for its first job, given its length and header,
//! and let go after its last.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Contents, Layout, Output};
use crate::atomic::Kind;
use crate::error::Error;
use crate::positioned;

/// From which job on jobs are to end soon, because one before it has failed. Those before it go on:
/// of several errors the first in order is told, however the jobs are timed.
pub(super) struct Stop(AtomicUsize);

impl Stop {
    pub(super) fn none() -> Self {
        Stop(AtomicUsize::new(usize::MAX))
    }

    pub(super) fn from(&self, job: usize) {
        self.0.fetch_min(job, Ordering::Relaxed);
    }
}

/// An output file, to be written by position.
pub struct Sink<'a> {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) layout: &'a dyn Layout,
    /// The job that writes.
    pub(super) job: usize,
    pub(super) stop: &'a Stop,
}

impl Sink<'_> {
    /// Writes `bytes` from `position` of the file on.
    ///
    /// # Errors
    /// The system's; a run that has failed elsewhere.
    pub fn write(&self, position: u64, bytes: &[u8]) -> Result<(), Error> {
        if self.stop.0.load(Ordering::Relaxed) <= self.job {
            let stopped = io::Error::new(io::ErrorKind::Interrupted, "another tensor has failed");
            return Err(writing(&self.path)(stopped));
        }
        positioned::write_all_at(&self.file, bytes, position).map_err(writing(&self.path))
    }

    /// Position in the file of a tensor's first byte.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] for one that has no place.
    pub fn position(&self, name: &str) -> Result<u64, Error> {
        let position = self.layout.position(name);
        position.ok_or_else(|| Error::MissingTensor { name: name.into() })
    }
}

pub(super) fn writing(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action: "writing", path: path.to_path_buf(), source }
}

/// All output files.
pub(super) struct Files<'a> {
    entries: Vec<Entry<'a>>,
    resumed: bool,
}

/// One of them.
struct Entry<'a> {
    layout: &'a dyn Layout,
    /// Where it is being built.
    building: PathBuf,
    /// Where it is to be.
    path: PathBuf,
    open: Option<Arc<File>>,
}

impl<'a> Files<'a> {
    /// The files of an output that is built at `building`.
    pub(super) fn new(output: &Output<'_>, contents: &Contents<'a>, building: &Path) -> Self {
        let entries = contents.files.iter().map(|&(name, layout)| {
            let at = |place: &Path| match output.kind {
                Kind::File => place.to_path_buf(),
                Kind::Folder => place.join(name),
            };
            Entry { layout, building: at(building), path: at(output.path), open: None }
        });
        Files { entries: entries.collect(), resumed: output.resume }
    }

    /// The same, which other processes write to too.
    pub(super) fn shared(self) -> Self {
        Files { resumed: true, ..self }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Where a file is to be.
    pub(super) fn path(&self, file: usize) -> &Path {
        &self.entries[file].path
    }

    /// Checks that a file of which something is done already is there.
    ///
    /// # Errors
    /// One that is gone, or has another length.
    pub(super) fn check_kept(&self, file: usize) -> Result<(), Error> {
        let Entry { layout, building, .. } = &self.entries[file];
        if std::fs::metadata(building).is_ok_and(|there| there.len() == layout.file_len()) {
            return Ok(());
        }
        let path = building.clone();
        let what = "this file of it is gone, or has another length".into();
        Err(Error::OtherRun { path, what })
    }

    /// The file for a job, opened, and with its header if it was not open.
    pub(super) fn sink<'s>(
        &mut self,
        file: usize,
        job: usize,
        stop: &'s Stop,
    ) -> Result<Sink<'s>, Error>
    where
        'a: 's,
    {
        let Entry { layout, building, path, open } = &mut self.entries[file];
        let opened = match open {
            Some(file) => Arc::clone(file),
            none => {
                let mut options = File::options();
                options.write(true).create(true).create_new(!self.resumed);
                let begun = options.open(building).and_then(|file| {
                    file.set_len(layout.file_len())?;
                    positioned::write_all_at(&file, layout.header(), 0)?;
                    Ok(file)
                });
                Arc::clone(none.insert(Arc::new(begun.map_err(writing(path))?)))
            }
        };
        Ok(Sink { file: opened, path: path.clone(), layout: *layout, job, stop })
    }

    /// Lets go of a file; it, if it was open.
    pub(super) fn take(&mut self, file: usize) -> Option<Arc<File>> {
        self.entries[file].open.take()
    }

    /// The file, if it is open.
    pub(super) fn opened(&self, file: usize) -> Option<Arc<File>> {
        self.entries[file].open.clone()
    }
}
