//! Opening what should be a plain file, and refusing what is not.
//!
//! A named pipe in a file's place would be waited for, and a device read without end. So a file is
//! opened without blocking, and what was opened is asked what it is: the name may have come to mean
//! something else since anyone last looked.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::source::ByteSource;
use crate::error::Refusal;
use crate::positioned;

/// Opens a plain file; its length.
///
/// # Errors
/// The system's; a folder, a pipe, a device or a socket.
fn open(path: &Path) -> Result<(File, u64), Refusal> {
    // Asked before opening too: opening some devices does something to them.
    let refuse = |meta: &std::fs::Metadata| match (meta.is_file(), meta.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err(Refusal::NotPlain("a folder")),
        _ => Err(Refusal::NotPlain("a pipe, a device or a socket")),
    };
    refuse(&std::fs::metadata(path)?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    }
    let file = options.open(path)?;
    let meta = file.metadata()?;
    refuse(&meta)?;
    Ok((file, meta.len()))
}

/// Reads a plain text file of at most `most` bytes.
///
/// # Errors
/// As [`open`]; a longer file, or one that is not UTF-8.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String, Refusal> {
    let (file, len) = open(path)?;
    if len > most {
        return Err(Refusal::TooLong { len, most });
    }
    let mut text = String::new();
    // It may grow while it is read.
    file.take(most).read_to_string(&mut text)?;
    Ok(text)
}

/// A plain file: opened at a read, until it is closed, and the same file each time.
#[derive(Debug)]
pub(super) struct PlainFile {
    path: PathBuf,
    /// Read by position, outside the lock: threads read at the same time.
    open: Mutex<Option<Arc<File>>>,
    len: u64,
    modified: Option<SystemTime>,
}

impl PlainFile {
    /// Opens the file at a path.
    ///
    /// # Errors
    /// As [`open`].
    pub(super) fn open(path: &Path) -> Result<Self, Refusal> {
        let (file, len) = open(path)?;
        let modified = modified(&file);
        let open = Mutex::new(Some(Arc::new(file)));
        Ok(PlainFile { path: path.to_path_buf(), open, len, modified })
    }

    /// The open file, which is still the one that it was.
    fn opened(&self) -> Result<Arc<File>, Refusal> {
        let mut held = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*held {
            return Ok(Arc::clone(file));
        }
        let (file, len) = open(&self.path)?;
        if len != self.len || modified(&file) != self.modified {
            return Err(Refusal::Changed);
        }
        Ok(Arc::clone(held.insert(Arc::new(file))))
    }
}

impl ByteSource for PlainFile {
    fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> Result<(), Refusal> {
        let read = positioned::read_exact_at(&*self.opened()?, buffer, position);
        read.map_err(|error| Refusal::Bytes { len: buffer.len(), position, error })
    }

    fn close(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn unchanged(&self) -> Result<(), Refusal> {
        let meta = std::fs::metadata(&self.path)?;
        match meta.len() == self.len && meta.modified().ok() == self.modified {
            true => Ok(()),
            false => Err(Refusal::Changed),
        }
    }

    fn modified(&self) -> Option<SystemTime> {
        self.modified
    }
}

fn modified(file: &File) -> Option<SystemTime> {
    file.metadata().and_then(|meta| meta.modified()).ok()
}
