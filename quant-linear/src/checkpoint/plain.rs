//! Opening what should be a plain file, and refusing what is not.
//!
//! A named pipe in a file's place would be waited for, and a device read without end. So a file is
//! opened without blocking, and what was opened is asked what it is: the name may have come to mean
//! something else since anyone last looked.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;

use crate::error::Refusal;

/// Opens a plain file; its length.
///
/// # Errors
/// The system's; a folder, a pipe, a device or a socket.
pub(super) fn open(path: &Path) -> Result<(File, u64), Refusal> {
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
