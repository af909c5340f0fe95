//! The files that a run reads, and that none of them changes meanwhile.
//!
//! A file is known by its length and the time of its last change, a checkpoint's file by its header
//! too. Not by a hash of its contents: to read all of the input once more would take about as long
//! as the whole run, and whatever writes to a file changes its time.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::journal::Hash;
use crate::checkpoint::{Checkpoint, Listing, TensorSource};
use crate::error::{Error, Refusal};

/// The files that a run reads.
#[derive(Debug, Default)]
pub struct Inputs<'a> {
    checkpoints: Vec<&'a Checkpoint>,
    others: Vec<Stamp>,
}

/// A file as it was when the run began.
#[derive(Debug)]
struct Stamp {
    path: PathBuf,
    len: u64,
    modified: Option<SystemTime>,
}

impl<'a> Inputs<'a> {
    /// A checkpoint, and the other files of its folder.
    ///
    /// # Errors
    /// A file that cannot be asked for its length.
    pub fn of(checkpoint: &'a Checkpoint, listing: &Listing) -> Result<Self, Error> {
        let mut inputs = Inputs { checkpoints: vec![checkpoint], others: vec![] };
        if let Some(index) = checkpoint.index() {
            inputs.add(&checkpoint.path().join(index.name()))?;
        }
        for (file, _) in &listing.files {
            inputs.add(&checkpoint.path().join(file))?;
        }
        let known: Vec<_> = inputs.others.iter().map(|stamp| stamp.path.clone()).collect();
        let configs = TensorSource::config(checkpoint).paths();
        for path in configs.filter(|path| !known.iter().any(|known| known == path)) {
            inputs.add(path)?;
        }
        Ok(inputs)
    }

    /// Adds a file that is no checkpoint's.
    ///
    /// # Errors
    /// One that cannot be asked for its length.
    pub fn add(&mut self, path: &Path) -> Result<(), Error> {
        let meta = std::fs::metadata(path).map_err(|e| Error::checkpoint(path, e.into()))?;
        let (path, modified) = (path.to_path_buf(), meta.modified().ok());
        self.others.push(Stamp { path, len: meta.len(), modified });
        Ok(())
    }

    /// Checks that every file is still what it was.
    ///
    /// # Errors
    /// One that is gone, or another.
    pub fn unchanged(&self) -> Result<(), Error> {
        self.checkpoints.iter().try_for_each(|checkpoint| checkpoint.unchanged())?;
        for Stamp { path, len, modified } in &self.others {
            let refused = |refusal| Error::checkpoint(path, refusal);
            let meta = std::fs::metadata(path).map_err(|e| refused(e.into()))?;
            if meta.len() != *len || meta.modified().ok() != *modified {
                return Err(refused(Refusal::Altered));
            }
        }
        Ok(())
    }

    /// What tells these files from others: a name and a description of each.
    ///
    /// # Errors
    /// A header that cannot be read.
    pub(super) fn described(&self) -> Result<Vec<(String, String)>, Error> {
        let described = |len: u64, modified: Option<SystemTime>| {
            let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let since = since.map_or("unknown".into(), |time| format!("{}", time.as_nanos()));
            format!("{len} bytes, changed at {since}")
        };
        let mut all = vec![];
        for checkpoint in &self.checkpoints {
            for (name, file) in checkpoint.files() {
                let mut header = Hash::default();
                file.for_header(|piece| header.add(piece))?;
                let header = header.hexadecimal();
                let text = described(file.file_len(), file.modified());
                all.push((format!("input {name}"), format!("{text}, header {header}")));
            }
        }
        for Stamp { path, len, modified } in &self.others {
            let root = self.checkpoints.iter().find_map(|c| path.strip_prefix(c.path()).ok());
            let name = root.unwrap_or(path).to_string_lossy().into_owned();
            all.push((format!("input {name}"), described(*len, *modified)));
        }
        Ok(all)
    }
}
