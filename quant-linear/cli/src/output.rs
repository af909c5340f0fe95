//! Output that is either whole or not there: built beside its place, then renamed into it.
//!
//! Before anything is written, [`check`] refuses a place that is taken (without `--force`; an empty
//! folder is not), that is the input under any name, or that overlaps the input's folder.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tempfile::{NamedTempFile, TempDir};

use crate::report;

/// Checks that `output` may be written. `input_folders` are the real paths of a folder input and of
/// all folders in it.
///
/// # Errors
/// As the module says, each naming the path and what to do.
pub(crate) fn check(
    input: &Path,
    input_folders: &[PathBuf],
    output: &Path,
    force: bool,
) -> Result<()> {
    let shown = output.display();
    let name = output.file_name().with_context(|| {
        format!("the output `{shown}` names no file or folder; give a path with a name at its end")
    })?;
    let parent = parent(output);
    let real_parent = fs::canonicalize(parent).with_context(|| {
        format!("the folder {} of the output cannot be used; create it first", parent.display())
    })?;
    let real_input =
        fs::canonicalize(input).with_context(|| format!("reading {}", input.display()))?;
    let folder = !input_folders.is_empty();
    // The name itself, and what it leads to if it is a link.
    for place in [Some(real_parent.join(name)), fs::canonicalize(output).ok()] {
        let Some(place) = place else { continue };
        ensure!(
            place != real_input && !same_file(&place, &real_input),
            "the output {shown} is the input; choose another place"
        );
        ensure!(
            !input_folders.iter().any(|folder| place.starts_with(folder)),
            "the output {shown} lies inside the input {}; choose a place outside",
            input.display()
        );
        ensure!(
            !folder || !real_input.starts_with(&place),
            "the input {} lies inside the output {shown}; choose another place",
            input.display()
        );
    }
    let Ok(existing) = fs::symlink_metadata(output) else { return Ok(()) };
    ensure!(
        force || !occupied(output),
        "the output {shown} exists already; remove it, choose another place, or pass --force to \
         replace it"
    );
    let is_folder = fs::metadata(output).unwrap_or(existing).is_dir();
    if is_folder != folder {
        let kind = |folder| if folder { "a folder" } else { "a file" };
        bail!(
            "the output {shown} is {} and the input is {}; choose another place",
            kind(is_folder),
            kind(folder)
        );
    }
    Ok(())
}

/// True if something is there that replacing would lose: anything but an empty folder.
fn occupied(path: &Path) -> bool {
    let empty = || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    fs::symlink_metadata(path).is_ok_and(|there| !(there.is_dir() && empty()))
}

/// True if both names lead to one file, by a hard link for example.
#[cfg(unix)]
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_: &Path, _: &Path) -> bool {
    false // canonical paths have been compared
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn builder(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".fp4-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // What a plain create would give: the umask takes its part.
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

fn writing(path: &Path) -> String {
    format!(
        "writing {}; nothing is left behind: free some space, or choose another place",
        path.display()
    )
}

/// A file to be written by position.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    file: &'a File,
    path: &'a Path,
    len: u64,
}

impl<'a> Sink<'a> {
    /// Writes to `file`, which errors call `path`, after setting its length.
    ///
    /// # Errors
    /// The system's, such as a full disk.
    pub(crate) fn new(file: &'a File, path: &'a Path, len: u64) -> Result<Self> {
        let sink = Sink { file, path, len };
        file.set_len(len).with_context(|| sink.writing())?;
        Ok(sink)
    }

    /// Writes bytes at a position.
    ///
    /// # Errors
    /// The system's, such as a full disk.
    pub(crate) fn write(&self, position: u64, bytes: &[u8]) -> Result<()> {
        let mut file = self.file;
        file.seek(SeekFrom::Start(position))
            .and_then(|_| file.write_all(bytes))
            .with_context(|| self.writing())
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// The system's, such as a full disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().with_context(|| self.writing())
    }

    fn writing(&self) -> String {
        format!("{} (it needs {})", writing(self.path), report::bytes(self.len))
    }
}

/// A file built beside its place.
#[derive(Debug)]
pub(crate) struct NewFile {
    temporary: NamedTempFile,
    path: PathBuf,
}

impl NewFile {
    /// Starts a file that is to be at `path`.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let temporary = builder(0o666).tempfile_in(parent(path)).with_context(|| writing(path))?;
        Ok(NewFile { temporary, path: path.to_path_buf() })
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        self.temporary.as_file()
    }

    /// Puts the file in its place, over what is there if `force`.
    ///
    /// # Errors
    /// The system's; something that has come into being there meanwhile.
    pub(crate) fn commit(self, force: bool) -> Result<()> {
        still_free(&self.path, force)?;
        self.temporary
            .persist(&self.path)
            .map_err(|e| e.error)
            .with_context(|| writing(&self.path))?;
        Ok(())
    }
}

/// A folder built beside its place.
#[derive(Debug)]
pub(crate) struct NewFolder {
    temporary: TempDir,
    path: PathBuf,
}

impl NewFolder {
    /// Starts a folder that is to be at `path`.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let temporary = builder(0o777).tempdir_in(parent(path)).with_context(|| writing(path))?;
        Ok(NewFolder { temporary, path: path.to_path_buf() })
    }

    /// Where it is being built.
    pub(crate) fn building(&self) -> &Path {
        self.temporary.path()
    }

    /// Puts the folder in its place. With `force` what is there is moved aside first and removed
    /// afterwards; if the new folder cannot take its place, the old one comes back.
    ///
    /// # Errors
    /// The system's; something that has come into being there meanwhile.
    pub(crate) fn commit(self, force: bool) -> Result<()> {
        still_free(&self.path, force)?;
        let context = || writing(&self.path);
        let old = if fs::symlink_metadata(&self.path).is_ok() {
            let aside = builder(0o777).tempdir_in(parent(&self.path)).with_context(context)?;
            fs::rename(&self.path, aside.path().join("old")).with_context(context)?;
            Some(aside)
        } else {
            None
        };
        if let Err(error) = fs::rename(self.temporary.path(), &self.path) {
            if let Some(aside) = old {
                let at = aside.path().join("old");
                if fs::rename(&at, &self.path).is_err() {
                    let kept = aside.keep().join("old");
                    let message = format!("{}; the old one is {}", context(), kept.display());
                    return Err(error).context(message);
                }
            }
            return Err(error).with_context(context);
        }
        // It has moved: nothing is left to remove where it was built.
        let _ = self.temporary.keep();
        Ok(())
    }
}

fn still_free(path: &Path, force: bool) -> Result<()> {
    ensure!(
        force || !occupied(path),
        "{} has come into being meanwhile; remove it, or pass --force to replace it",
        path.display()
    );
    Ok(())
}

/// Copies a file byte for byte.
///
/// # Errors
/// The system's, naming both paths.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| {
        format!("copying {}; nothing is left behind: is the disk full?", from.display())
    })?;
    Ok(())
}
