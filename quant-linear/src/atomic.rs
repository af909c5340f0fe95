//! Files and folders that are either whole or not there: built beside their place, renamed into it.
//!
//! ```text
//! begin    what lies at the place may be replaced?           else an error
//!          leftovers of dead processes are removed           (sweep)
//!          another process is writing to this place?         else an error
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
//! What is to be [continued](New::resume) after a kill is built in `.NAME.fp4-partial` instead.
//! Only its commit, or a person, removes that.
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
pub(crate) use building::RANK_JOURNAL;
pub use building::{abandon_all, kept, partial, sweep};

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

/// A file or a folder built beside its place.
#[derive(Debug)]
pub struct New {
    building: Building,
    kind: Kind,
    path: PathBuf,
}

impl New {
    /// Begins a file or a folder that is to be at `path`, and that no one else is writing there. A
    /// folder is there and empty, a file is not there yet.
    ///
    /// # Errors
    /// The system's; something of another kind at `path`; [`Error::Busy`].
    pub fn begin(kind: Kind, path: &Path) -> Result<Self, Error> {
        let parent = writable(kind, path)?;
        let building = Building::begin(parent).map_err(writing(path))?;
        building.claim(path)?;
        Self::with(building, kind, path)
    }

    /// Goes on with a file or a folder that is to be at `path`, or begins it. Once there is a
    /// [journal](Self::journal), what is built stays, whatever happens, until it is put in its
    /// place.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn resume(kind: Kind, path: &Path) -> Result<Self, Error> {
        writable(kind, path)?;
        let building = Building::resume(path)?;
        building.claim(path)?;
        Self::with(building, kind, path)
    }

    fn with(building: Building, kind: Kind, path: &Path) -> Result<Self, Error> {
        let new = New { building, kind, path: path.to_path_buf() };
        new.make_folder()?;
        Ok(new)
    }

    fn make_folder(&self) -> Result<(), Error> {
        if self.kind == Kind::File {
            return Ok(());
        }
        match fs::create_dir(self.building()) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map_err(writing(&self.path)),
        }
    }

    /// Removes what is built so far.
    ///
    /// # Errors
    /// The system's.
    pub fn clear(&self) -> Result<(), Error> {
        self.building.clear().map_err(writing(&self.path))?;
        self.make_folder()
    }

    /// Where it is being built.
    pub fn building(&self) -> &Path {
        self.building.place()
    }

    /// Where whoever resumes notes what is done. While it is put in its place the notes do not
    /// count, for then nobody could tell whether that has happened.
    pub fn journal(&self) -> PathBuf {
        self.building.journal()
    }

    /// Puts it in its place: a file over a file if `replace`; a folder over an empty folder, or
    /// over any if `replace`. A replaced folder gives its name away in the same moment where the
    /// system can exchange two names. What was built in it is closed.
    ///
    /// # Errors
    /// The system's; [`Error::Occupied`] without `replace`; something of another kind.
    pub fn commit(self, replace: bool) -> Result<(), Error> {
        let New { building, kind, path } = self;
        let old = kind.replaceable(&path)?.is_some();
        let replaced = (old && (replace || kind == Kind::Folder)).then_some(&*path);
        settle(building.place(), replaced).map_err(writing(&path))?;
        let aside = building.aside();
        building.put(&path, |new, place| match (kind, replace) {
            (Kind::File, true) => fs::rename(new, place),
            (Kind::File, false) => rename::into_nothing(new, place),
            (Kind::Folder, true) if old => rename::exchange(new, place, &aside),
            (Kind::Folder, _) => rename::into_empty(new, place),
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
    let building = Building::begin(writable(Kind::File, path)?).map_err(writing(path))?;
    // Closed before anything is removed: over a network an open file stays.
    let new = New::with(building, Kind::File, path)?;
    let file = File::create_new(new.building()).map_err(writing(path))?;
    let mut writer = BufWriter::with_capacity(1 << 20, &file);
    fill(&mut writer).and_then(|()| writer.flush()).map_err(writing(path))?;
    drop(writer);
    drop(file);
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

/// The folder that `path` is in, after removing what dead processes left there.
fn writable(kind: Kind, path: &Path) -> Result<&Path, Error> {
    if path.file_name().is_none_or(OsStr::is_empty) {
        return Err(writing(path)(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it names no file or folder; give a path with a name at its end",
        )));
    }
    kind.replaceable(path)?;
    sweep(parent(path));
    Ok(parent(path))
}

/// Flushes a new file or folder to the disk, down to its last file. What takes the place of a file
/// or folder of the same name under `old` takes its permissions too.
fn settle(new: &Path, old: Option<&Path>) -> io::Result<()> {
    let kind = fs::symlink_metadata(new)?.file_type();
    let replaced = old.and_then(|old| fs::symlink_metadata(old).ok());
    if let Some(replaced) = replaced.filter(|replaced| replaced.file_type() == kind) {
        rename::sync(new)?; // while we may still open it
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
