//! The folder beside a place in which what is to be there is built, and what becomes of it when its
//! process ends.
//!
//! ```text
//! .fp4-RANDOM.tmp/    for its owner alone; or .NAME.fp4-partial/, to be continued after a kill
//!   lock              locked while its process lives
//!   for               the name of the place
//!   new               the file or folder being built; after an exchange, what it replaced
//!   old/NAME          what is being replaced, where two names cannot be exchanged   (rename)
//!   discarded/NAME    the same, once replaced
//!   journal           what is done already, of one to be continued
//!   journal-RANK      the same of a rank, where several write one
//!   sealed            the journal while `new` is put in its place
//! ```
//!
//! The lock is the system's, on an open file: it goes when its process does, however that ends. So
//! whoever gets the lock of such a folder knows that it is nobody's. A lock that cannot be had for
//! another reason (a file system without locks) leaves the folder alone.
//!
//! A sweep leaves what may be continued: what has a journal. A sealed one does not count. Its
//! process was killed while it exchanged names or just afterwards, so `new` may be what was
//! replaced.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{parent, rename, writing};
use crate::error::Error;

const PREFIX: &str = ".fp4-";
const SUFFIX: &str = ".tmp";
const PARTIAL: &str = ".fp4-partial";
const LOCK: &str = "lock";
const FOR: &str = "for";
const NEW: &str = "new";
const OLD: &str = "old";
pub(super) const DISCARDED: &str = "discarded";
const JOURNAL: &str = "journal";
/// The journals of ranks that write one output begin so; their numbers follow.
pub(crate) const RANK_JOURNAL: &str = "journal-";
const SEALED: &str = "sealed";

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
        let name = entry.file_name();
        let ours = is_ours(&name) || is_partial(&name) && !noted(&entry.path());
        let ours = ours && entry.file_type().is_ok_and(|t| t.is_dir());
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

fn is_partial(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") && name.ends_with(PARTIAL.as_bytes())
}

/// The folder in which a run that can be continued builds what is to be at `path`.
pub fn partial(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(PARTIAL);
    parent(path).join(name)
}

/// The same folder, if it holds something that can be continued.
pub fn kept(path: &Path) -> Option<PathBuf> {
    Some(partial(path)).filter(|folder| noted(folder))
}

/// True if something is noted as done there, by one process or by a rank of several.
fn noted(folder: &Path) -> bool {
    let of_rank = |name: OsString| name.to_string_lossy().starts_with(RANK_JOURNAL);
    folder.join(JOURNAL).exists()
        || fs::read_dir(folder).is_ok_and(|all| all.flatten().any(|e| of_rank(e.file_name())))
}

fn sweep_one(parent: &Path, folder: &Path) -> io::Result<()> {
    check_contents(folder)?;
    let lock = open_lock(folder)?;
    lock.try_lock()?;
    // Its process may have got further before it let go of the lock.
    if !is_at(&lock, &folder.join(LOCK)) || noted(folder) {
        return Err(io::ErrorKind::NotFound.into());
    }
    give_back(parent, folder)?;
    remove(folder)
}

/// Checks that a folder holds nothing but what this module puts there.
fn check_contents(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let known = match entry.file_name().to_str() {
            Some(LOCK | FOR | JOURNAL | SEALED) => entry.file_type()?.is_file(),
            Some(NEW | OLD | DISCARDED) => true,
            Some(name) if name.starts_with(RANK_JOURNAL) => entry.file_type()?.is_file(),
            _ => false,
        };
        if !known {
            let found = "it holds what fp4 did not put there; rename or remove it";
            return Err(io::Error::new(io::ErrorKind::InvalidData, found));
        }
    }
    Ok(())
}

/// Gives what a dead process had moved aside its name back.
fn give_back(parent: &Path, folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder.join(OLD)).into_iter().flatten() {
        let entry = entry?;
        let place = parent.join(entry.file_name());
        // If the name is taken, the new one has got there.
        if fs::symlink_metadata(&place).is_err() {
            fs::rename(entry.path(), place)?;
            rename::sync(parent)?;
        }
    }
    Ok(())
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

/// Removes a file, or a folder that other threads may still be putting files into.
fn remove(place: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        let outcome = match fs::symlink_metadata(place).is_ok_and(|there| !there.is_dir()) {
            true => fs::remove_file(place),
            false => fs::remove_dir_all(place),
        };
        match outcome {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && tries < 1000 => tries += 1,
            outcome => return outcome,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A folder of the kind that this module describes; removed when dropped, unless it has a journal.
#[derive(Debug)]
pub(super) struct Building {
    folder: PathBuf,
    new: PathBuf,
    /// Held, and let go before the folder is removed: over a network an open file stays.
    lock: Option<File>,
    /// Not to be removed any more.
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
            return Ok(Building::of(folder, lock));
        }
    }

    fn of(folder: PathBuf, lock: File) -> Self {
        let new = folder.join(NEW);
        Building { new, folder, lock: Some(lock), removed: false }
    }

    /// Continues what is to be at `path`, or begins it.
    pub(super) fn resume(path: &Path) -> Result<Self, Error> {
        let folder = partial(path);
        let error = writing(&folder);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(false);
        #[cfg(unix)]
        {
            use std::os::unix::fs::DirBuilderExt;
            builder.mode(0o700);
        }
        let mut tries = 0;
        loop {
            match builder.create(&folder) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(&error)?,
            }
            // Not through a link, which someone else may have put there.
            if fs::symlink_metadata(&folder).is_ok_and(|there| !there.is_dir()) {
                let found = "it is no folder; rename or remove it";
                return Err(error(io::Error::new(io::ErrorKind::NotADirectory, found)));
            }
            let lock = match check_contents(&folder).and_then(|()| open_lock(&folder)) {
                Ok(lock) => lock,
                // Another run has finished in between, or a sweep has taken it for a dead one.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(error(e)),
            };
            if matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)) {
                // Whoever looks whether anyone holds it does so himself for a moment.
                tries += 1;
                if tries > 20 {
                    return Err(Error::Busy { path: path.to_path_buf() });
                }
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            if !is_at(&lock, &folder.join(LOCK)) {
                continue;
            }
            let mut building = Building::of(folder.clone(), lock);
            building.removed = true; // not before what it may hold is safe
            building.tidy(parent(path)).map_err(&error)?;
            building.removed = false;
            return Ok(building);
        }
    }

    /// Removes what is built so far.
    pub(super) fn clear(&self) -> io::Result<()> {
        remove(&self.new)
    }

    /// Removes what does not count of what an earlier process built here.
    fn tidy(&self, parent: &Path) -> io::Result<()> {
        give_back(parent, &self.folder)?;
        remove(&self.aside())?;
        remove(&self.folder.join(DISCARDED))?;
        remove(&self.sealed())
    }

    /// Notes that what is to be at `path` is built here, and sees that nobody else builds it.
    ///
    /// # Errors
    /// [`Error::Busy`] if another process does, or another thread.
    pub(super) fn claim(&self, path: &Path) -> Result<(), Error> {
        let error = writing(path);
        let name = path.file_name().unwrap_or_default();
        fs::write(self.folder.join(FOR), name.as_encoded_bytes()).map_err(&error)?;
        let siblings = fs::read_dir(parent(path)).map_err(&error)?.flatten();
        let siblings = siblings.filter(|entry| is_ours(&entry.file_name()));
        let others = siblings.map(|entry| entry.path()).chain([partial(path)]);
        let rival = |other: &PathBuf| {
            other.file_name() != self.folder.file_name()
                && fs::read(other.join(FOR)).is_ok_and(|other| other == name.as_encoded_bytes())
                && File::options()
                    .write(true)
                    .open(other.join(LOCK))
                    .is_ok_and(|lock| matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)))
        };
        match others.into_iter().any(|other| rival(&other)) {
            true => Err(Error::Busy { path: path.to_path_buf() }),
            false => Ok(()),
        }
    }

    /// Where to note what is done.
    pub(super) fn journal(&self) -> PathBuf {
        self.folder.join(JOURNAL)
    }

    fn sealed(&self) -> PathBuf {
        self.folder.join(SEALED)
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
        let notes = self.journal().exists();
        if notes {
            fs::rename(self.journal(), self.sealed()).map_err(&error)?;
        }
        let outcome = rename(&self.new, &place);
        if notes && outcome.is_err() {
            fs::rename(self.sealed(), self.journal()).map_err(&error)?; // to be continued
        }
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
        if !self.removed && !noted(&self.folder) {
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
