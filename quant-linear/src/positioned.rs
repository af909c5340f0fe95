//! Reading and writing an open file by position, so that threads share it without a lock.
//!
//! ```text
//! unix      pread, pwrite
//! windows   the same, and they move the file's own position, which nothing here looks at
//! others    seek, then read or write, one at a time (WASM, which has no threads)
//! ```

use std::fs::File;
use std::io;

/// Fills `buffer` from `position` on.
///
/// # Errors
/// The system's; `UnexpectedEof` if the file ends before.
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], position: u64) -> io::Result<()> {
    system::read_exact_at(file, buffer, position)
}

/// Writes all of `bytes` from `position` on.
///
/// # Errors
/// The system's.
pub(crate) fn write_all_at(file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
    system::write_all_at(file, bytes, position)
}

#[cfg(unix)]
mod system {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;

    pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], position: u64) -> io::Result<()> {
        file.read_exact_at(buffer, position)
    }

    pub(super) fn write_all_at(file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        file.write_all_at(bytes, position)
    }
}

#[cfg(windows)]
mod system {
    use std::fs::File;
    use std::io::{self, ErrorKind};
    use std::os::windows::fs::FileExt;

    pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], position: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match file.seek_read(&mut buffer[done..], position + done as u64) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(more) => done += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn write_all_at(file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match file.seek_write(&bytes[done..], position + done as u64) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(more) => done += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(not(any(unix, windows)))]
mod system {
    use std::fs::File;
    use std::io::{self, Read, Seek, SeekFrom, Write};
    use std::sync::{Mutex, PoisonError};

    /// Nobody moves the position between a seek and what follows it.
    static POSITION: Mutex<()> = Mutex::new(());

    pub(super) fn read_exact_at(
        mut file: &File,
        buffer: &mut [u8],
        position: u64,
    ) -> io::Result<()> {
        let _held = POSITION.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(position)).and_then(|_| file.read_exact(buffer))
    }

    pub(super) fn write_all_at(mut file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        let _held = POSITION.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(position)).and_then(|_| file.write_all(bytes))
    }
}
