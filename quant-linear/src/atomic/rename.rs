//! Renames that lose nothing, and flushing to the disk.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::building::DISCARDED;

/// Renames a file to a name that nothing has, or fails with `AlreadyExists`.
pub(super) fn into_nothing(new: &Path, place: &Path) -> io::Result<()> {
    let refused = match tempfile::TempPath::try_from_path(new)?.persist_noclobber(place) {
        Ok(()) => return Ok(()),
        Err(refused) => refused,
    };
    // A file system with neither such a rename nor hard links (FAT): look first, then rename.
    let without = matches!(
        refused.error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput
    );
    // What is to be continued is not removed with the name that it did not get.
    let (new, error) = (refused.path.keep().map_err(|kept| kept.error)?, refused.error);
    if without && fs::symlink_metadata(place).is_err() {
        return fs::rename(new, place);
    }
    Err(error)
}

/// Renames a folder to a name that nothing has but perhaps an empty folder.
pub(super) fn into_empty(new: &Path, place: &Path) -> io::Result<()> {
    // Renaming replaces an empty folder by itself, or not at all.
    #[cfg(not(unix))]
    let _ = fs::remove_dir(place);
    fs::rename(new, place)
}

/// Gives a folder the name of another, which gets the new one's name or lies in `aside`'s sibling
/// [`DISCARDED`] afterwards.
pub(super) fn exchange(new: &Path, place: &Path, aside: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, new, CWD, place, RenameFlags::EXCHANGE) {
            Err(Errno::NOSYS | Errno::INVAL | Errno::NOTSUP) => {}
            outcome => return Ok(outcome?),
        }
    }
    two_renames(new, place, aside)
}

/// [`exchange`] where the system has none: whoever is killed between the renames loses the name
/// until the next sweep gives it back.
fn two_renames(new: &Path, place: &Path, aside: &Path) -> io::Result<()> {
    let kept = aside.join(place.file_name().unwrap_or_default());
    fs::create_dir(aside)?;
    fs::rename(place, &kept)?;
    if let Err(error) = fs::rename(new, place) {
        if fs::rename(&kept, place).is_err() {
            let told = format!("{error}; what was there is {}", kept.display());
            return Err(io::Error::other(told));
        }
        return Err(error);
    }
    // Half of it may be left when this process ends: no longer something to give back. If even this
    // fails, a sweep finds the name taken.
    let _ = fs::rename(aside, aside.with_file_name(DISCARDED));
    Ok(())
}

/// Flushes a file or folder to the disk, as far as the system has that.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    let mut options = File::options();
    // Windows flushes only what is open for writing, and no folders.
    let outcome = options.read(true).write(cfg!(not(unix))).open(path).and_then(|f| f.sync_all());
    match outcome {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_renames_replace_a_folder_or_leave_it() {
        let root = tempfile::tempdir().unwrap();
        let [new, place, aside] = ["new", "place", "old"].map(|name| root.path().join(name));
        fs::create_dir(&place).unwrap();
        fs::write(place.join("file"), "old").unwrap();
        two_renames(&new, &place, &aside).unwrap_err();
        assert_eq!(fs::read(place.join("file")).unwrap(), b"old");
        fs::remove_dir(&aside).unwrap();
        fs::create_dir(&new).unwrap();
        two_renames(&new, &place, &aside).unwrap();
        assert!(place.exists() && !place.join("file").exists());
        assert!(root.path().join(DISCARDED).join("place/file").exists());
    }

    #[test]
    fn a_name_that_is_taken_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let [new, place] = ["new", "place"].map(|name| root.path().join(name));
        fs::write(&place, "old").unwrap();
        fs::write(&new, "new").unwrap();
        let error = into_nothing(&new, &place).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(new.exists(), "what may be continued stays");
        assert_eq!(fs::read(&place).unwrap(), b"old");
    }
}
