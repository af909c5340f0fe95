//! Files and folders that are either whole or not there: built beside their place, renamed into it.
//!
//! ```text
//! create   what lies at the place may be replaced?           else an error
//!          leftovers of dead processes are removed           (sweep)
//!          .fp4-RANDOM.tmp/new is begun beside the place     (building)
//! commit   every file and folder is flushed to the disk
//!          what replaces a file or folder takes its permissions
//!          new is renamed into the place                     (rename)
//!          the folder of the place is flushed to the disk
//! ```
//!
//! On an error, and where the value is dropped, what was built is removed and the place is as it
//! was. A program that ends at a signal calls [`abandon_all`]; what a killed one left is removed by
//! whatever next writes beside it, for it holds a lock while it lives.
//!
//! Only a plain file is replaced by a file, and only a folder by a folder. A symbolic link is never
//! replaced: writing to where it leads would change a file that others share (a model cache is made
//! of such links), and replacing the link would put the bytes where they were not wanted.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::Error;

mod building;
mod rename;

use building::Building;
pub use building::{abandon_all, sweep};

/// What may be written: only its own kind gives way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A plain file.
    File,
    /// A folder.
    Folder,
}

impl Kind {
    /// What lies at `path`, if anything does.
    ///
    /// # Errors
    /// [`Error::Place`] if it is of another kind.
    pub fn replaceable(self, path: &Path) -> Result<Option<Metadata>, Error> {
        let there = match fs::symlink_metadata(path) {
            Ok(there) => there,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(writing(path)(e)),
        };
        let found = match is_mount_point(path, &there) {
            true => "a mount point",
            false => described(&there),
        };
        if found == self.described() {
            return Ok(Some(there));
        }
        Err(Error::Place { path: path.to_path_buf(), found, wanted: self.described() })
    }

    fn described(self) -> &'static str {
        match self {
            Kind::File => "a file",
            Kind::Folder => "a folder",
        }
    }
}

/// True for a folder that no rename can move. (Files do not tell: some layered file systems show
/// them on another device than their folder.)
#[cfg(unix)]
fn is_mount_point(path: &Path, there: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    there.is_dir() && fs::metadata(parent(path)).is_ok_and(|parent| parent.dev() != there.dev())
}

#[cfg(not(unix))]
fn is_mount_point(_: &Path, _: &Metadata) -> bool {
    false
}

fn described(there: &Metadata) -> &'static str {
    let kind = there.file_type();
    if kind.is_symlink() {
        return "a symbolic link";
    }
    if kind.is_file() {
        return Kind::File.described();
    }
    if kind.is_dir() {
        return Kind::Folder.described();
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a named pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
    }
    "a device"
}

/// A file built beside its place.
#[derive(Debug)]
pub struct NewFile {
    file: File, // closed before it is removed: over a network an open file stays
    building: Building,
    path: PathBuf,
}

impl NewFile {
    /// Begins a file that is to be at `path`.
    ///
    /// # Errors
    /// The system's; something at `path` that is no file.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let building = begin(Kind::File, path)?;
        let file = File::options().read(true).write(true).create_new(true).open(building.place());
        Ok(NewFile { file: file.map_err(writing(path))?, building, path: path.to_path_buf() })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Puts the file in its place, over the file that is there if `replace`.
    ///
    /// # Errors
    /// The system's; [`Error::Occupied`] without `replace`; something that is no file.
    pub fn commit(self, replace: bool) -> Result<(), Error> {
        let NewFile { building, file, path } = self;
        let error = writing(&path);
        if let (Some(old), true) = (Kind::File.replaceable(&path)?, replace) {
            keep_permissions(building.place(), &old).map_err(&error)?;
        }
        file.sync_all().map_err(&error)?;
        drop(file);
        building.put(&path, |new, place| match replace {
            true => fs::rename(new, place),
            false => rename::into_nothing(new, place),
        })
    }
}

/// A folder built beside its place.
#[derive(Debug)]
pub struct NewFolder {
    building: Building,
    path: PathBuf,
}

impl NewFolder {
    /// Begins a folder that is to be at `path`.
    ///
    /// # Errors
    /// The system's; something at `path` that is no folder.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let building = begin(Kind::Folder, path)?;
        fs::create_dir(building.place()).map_err(writing(path))?;
        Ok(NewFolder { building, path: path.to_path_buf() })
    }

    /// Where it is being built.
    pub fn building(&self) -> &Path {
        self.building.place()
    }

    /// Puts the folder in its place, over an empty folder, or over any if `replace`. A replaced
    /// folder gives its name away in the same moment where the system can exchange two names.
    ///
    /// # Errors
    /// The system's; [`Error::Occupied`] without `replace`; something that is no folder.
    pub fn commit(self, replace: bool) -> Result<(), Error> {
        let NewFolder { building, path } = self;
        let error = writing(&path);
        let old = Kind::Folder.replaceable(&path)?.is_some();
        settle(building.place(), old.then_some(&*path)).map_err(&error)?;
        let aside = building.aside();
        building.put(&path, |new, place| match replace && old {
            true => rename::exchange(new, place, &aside),
            false => rename::into_empty(new, place),
        })
    }
}

/// Writes a file through `fill`, over the file that is there. On any error `path` is as it was.
///
/// # Errors
/// [`Error::Io`] naming the file and the system's reason; something at `path` that is no file.
pub fn write(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<(), Error> {
    let new = NewFile::create(path)?;
    let mut writer = BufWriter::with_capacity(1 << 20, new.file());
    fill(&mut writer).and_then(|()| writer.flush()).map_err(writing(path))?;
    drop(writer);
    new.commit(true)
}

/// Writes bytes as [`write`](fn@write) does.
///
/// # Errors
/// As [`write`](fn@write).
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write(path, |file| file.write_all(bytes))
}

/// The folder that a path is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn writing(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action: "writing", path: path.to_path_buf(), source }
}

/// Begins beside `path`, after removing what dead processes left there.
fn begin(kind: Kind, path: &Path) -> Result<Building, Error> {
    let error = writing(path);
    if path.file_name().is_none_or(OsStr::is_empty) {
        return Err(error(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it names no file or folder; give a path with a name at its end",
        )));
    }
    kind.replaceable(path)?;
    sweep(parent(path));
    Building::begin(parent(path)).map_err(error)
}

/// Flushes a new folder to the disk, down to its last file. What takes the place of a file or
/// folder of the same name under `old` takes its permissions too.
fn settle(new: &Path, old: Option<&Path>) -> io::Result<()> {
    let kind = fs::symlink_metadata(new)?.file_type();
    let replaced = old.and_then(|old| fs::symlink_metadata(old).ok());
    if let Some(replaced) = replaced.filter(|replaced| replaced.file_type() == kind) {
        keep_permissions(new, &replaced)?;
    }
    if kind.is_dir() {
        for entry in fs::read_dir(new)? {
            let name = entry?.file_name();
            settle(&new.join(&name), old.map(|old| old.join(&name)).as_deref())?;
        }
    }
    rename::sync(new)
}

/// Whoever could not read what is replaced cannot read what replaces it.
fn keep_permissions(new: &Path, old: &Metadata) -> io::Result<()> {
    if cfg!(unix) {
        return fs::set_permissions(new, old.permissions());
    }
    Ok(()) // elsewhere they say no more than that a file is read-only
}
