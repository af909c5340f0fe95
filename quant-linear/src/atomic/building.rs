//! The folder beside a place in which what is to be there is built, and what becomes of it when its
//! process ends.
//!
//! ```text
//! .fp4-RANDOM.tmp/   for its owner alone
//!   lock             locked while its process lives
//!   new              the file or folder being built; after an exchange, what it replaced
//!   old/NAME         what is being replaced, where two names cannot be exchanged   (rename)
//!   discarded/NAME   the same, once replaced
//! ```
//!
//! The lock is the system's, on an open file: it goes when its process does, however that ends. So
//! whoever gets the lock of such a folder knows that it is nobody's. A lock that cannot be had for
//! another reason (a file system without locks) leaves the folder alone.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{rename, writing};
use crate::error::Error;

const PREFIX: &str = ".fp4-";
const SUFFIX: &str = ".tmp";
const LOCK: &str = "lock";
const NEW: &str = "new";
const OLD: &str = "old";
pub(super) const DISCARDED: &str = "discarded";

/// What this process is building. Process-wide, because a signal is: whoever ends the process must
/// find everything. Nothing is begun, put in its place or given up but under this lock.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes everything that this process is building, for a process about to end at a signal; what
/// is in its place already stays. Call it from a thread, not from a signal handler. Threads that
/// would begin or finish something from now on wait for ever, so end the process afterwards.
pub fn abandon_all() {
    let unfinished = unfinished();
    for folder in unfinished.iter() {
        // What cannot be removed now is left to the next sweep.
        let _ = remove(folder);
    }
    std::mem::forget(unfinished);
}

/// Removes what dead processes were building in `folder`, and gives a folder that one of them had
/// moved aside its name back. What another process, or this one, is building is left alone, and so
/// is what cannot be removed.
pub fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let ours = is_ours(&entry.file_name()) && entry.file_type().is_ok_and(|t| t.is_dir());
        if ours && sweep_one(folder, &entry.path()).is_err() {
            log::debug!("{} is in use, or cannot be removed", entry.path().display());
        }
    }
}

fn is_ours(name: &OsStr) -> bool {
    let name = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX));
    name.is_some_and(|middle| {
        middle.len() == 6 && middle.bytes().all(|b| b.is_ascii_alphanumeric())
    })
}

fn sweep_one(parent: &Path, folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let known = match entry.file_name().to_str() {
            Some(LOCK) => entry.file_type()?.is_file(),
            Some(NEW | OLD | DISCARDED) => true,
            _ => false,
        };
        if !known {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let lock = open_lock(folder)?;
    lock.try_lock()?;
    if !is_at(&lock, &folder.join(LOCK)) {
        return Err(io::ErrorKind::NotFound.into());
    }
    for entry in fs::read_dir(folder.join(OLD)).into_iter().flatten() {
        let entry = entry?;
        let place = parent.join(entry.file_name());
        // If the name is taken, the new one has got there.
        if fs::symlink_metadata(&place).is_err() {
            fs::rename(entry.path(), place)?;
            rename::sync(parent)?;
        }
    }
    remove(folder)
}

fn open_lock(folder: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).open(folder.join(LOCK))
}

/// True if `path` still leads to this open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Removes a folder that other threads may still be putting files into.
fn remove(folder: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match fs::remove_dir_all(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && tries < 1000 => tries += 1,
            outcome => return outcome,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A folder of the kind that this module describes; removed when dropped.
#[derive(Debug)]
pub(super) struct Building {
    folder: PathBuf,
    new: PathBuf,
    /// Held, and let go before the folder is removed: over a network an open file stays.
    lock: Option<File>,
    removed: bool,
}

impl Building {
    /// Begins in `parent`.
    pub(super) fn begin(parent: &Path) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).suffix(SUFFIX).rand_bytes(6);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o700));
        }
        loop {
            let mut unfinished = unfinished();
            let folder = builder.tempdir_in(parent)?;
            let lock = match open_lock(folder.path()) {
                Ok(lock) => lock,
                // A sweep has come between, and has taken it for a dead one.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            // Without locks nobody can tell, and a sweep leaves it alone.
            let taken = matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock));
            if taken || !is_at(&lock, &folder.path().join(LOCK)) {
                continue;
            }
            let folder = folder.keep();
            unfinished.push(folder.clone());
            return Ok(Building {
                new: folder.join(NEW),
                folder,
                lock: Some(lock),
                removed: false,
            });
        }
    }

    /// Where to build.
    pub(super) fn place(&self) -> &Path {
        &self.new
    }

    /// Where what is replaced may be moved to.
    pub(super) fn aside(&self) -> PathBuf {
        self.folder.join(OLD)
    }

    /// Puts what was built in its place by `rename`, which nothing interrupts but the end of the
    /// process, and flushes the folder of the place to the disk.
    pub(super) fn put(
        mut self,
        path: &Path,
        rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
    ) -> Result<(), Error> {
        let error = writing(path);
        // Beside this folder, even if the working directory has changed since.
        let parent = self.folder.parent().unwrap_or(Path::new(".")).to_path_buf();
        let place = parent.join(path.file_name().unwrap_or_default());
        let unfinished = unfinished();
        let outcome = rename(&self.new, &place);
        drop(unfinished);
        // What could not be moved back is the only copy: a sweep does, once its name is free.
        if fs::read_dir(self.aside()).is_ok_and(|mut old| old.next().is_some()) {
            self.give_up();
        }
        outcome.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists
            | io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::NotADirectory => Error::Occupied { path: path.to_path_buf() },
            _ => error(e),
        })?;
        rename::sync(&parent).map_err(&error)?;
        if self.removed {
            return Ok(());
        }
        let folder = self.folder.clone();
        self.finish().map_err(|source| Error::Io {
            action: "the output is in place; removing what it replaced,",
            path: folder,
            source,
        })
    }

    /// Removes it.
    fn finish(&mut self) -> io::Result<()> {
        self.lock = None;
        let outcome = remove(&self.folder);
        self.give_up();
        outcome
    }

    /// Leaves it to a sweep.
    fn give_up(&mut self) {
        self.removed = true;
        unfinished().retain(|folder| *folder != self.folder);
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if !self.removed {
            // What cannot be removed now is left to the next sweep.
            let _ = self.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_gives_a_folder_moved_aside_its_name_back() {
        let root = tempfile::tempdir().unwrap();
        let dead = root.path().join(".fp4-abc123.tmp");
        // As a process leaves it that was killed between two renames.
        fs::create_dir_all(dead.join(OLD).join("out")).unwrap();
        fs::create_dir_all(dead.join(NEW)).unwrap();
        fs::write(dead.join(OLD).join("out/file"), "old").unwrap();
        sweep(root.path());
        assert_eq!(fs::read(root.path().join("out/file")).unwrap(), b"old");
        assert!(!dead.exists());
        // Once the new one has the name, the old one is not wanted.
        fs::create_dir_all(dead.join(OLD).join("out/other")).unwrap();
        sweep(root.path());
        assert!(!dead.exists() && !root.path().join("out/other").exists());
    }

    #[test]
    fn a_sweep_leaves_what_is_in_use_or_not_ours() {
        let root = tempfile::tempdir().unwrap();
        let live = Building::begin(root.path()).unwrap();
        fs::write(live.place(), "new").unwrap();
        for other in [".fp4-abc123.tmp/mine", ".fp4-toolong.tmp/new", ".fp4-abc_12.tmp/new"] {
            fs::create_dir_all(root.path().join(other)).unwrap();
        }
        sweep(root.path());
        assert_eq!(fs::read(live.place()).unwrap(), b"new");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 4);
        drop(live);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 3);
    }
}
