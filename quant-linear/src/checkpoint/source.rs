//! Where a checkpoint's bytes are: in files of the system, or wherever a program has them.
//!
//! ```text
//! ByteSource      one file: its name, its length, bytes by position
//! Place::System   paths are paths; links are followed, and none out of the folder
//! Place::Given    paths are names of sources; there are no links, and no other files
//! ```
//!
//! All that reads a checkpoint reads through these two, so that a file that lies in a browser is
//! read, checked and refused as one on a disk is.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::folder::Inside;
use super::plain::{self, PlainFile};
use crate::error::{Error, Refusal};

/// A file, by position: on a disk, in memory, behind a function of another language.
///
/// ```
/// use std::sync::Arc;
///
/// use quant_linear::checkpoint::{ByteSource, Checkpoint, InMemory};
///
/// let header = br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
/// let file = [&(header.len() as u64).to_le_bytes(), &header[..], &[1, 2]].concat();
/// let source: Arc<dyn ByteSource> = Arc::new(InMemory::new("a.safetensors", file));
/// let checkpoint = Checkpoint::open_sources(vec![source])?;
/// assert_eq!(checkpoint.read(checkpoint.tensor("a")?, 1..2)?, [2]);
/// # Ok::<(), quant_linear::Error>(())
/// ```
pub trait ByteSource: fmt::Debug + Send + Sync {
    /// Its name, with those of the folders that it is known to lie in: `a.gguf`,
    /// `model/config.json`.
    fn name(&self) -> &str;

    /// Its length in bytes.
    fn len(&self) -> u64;

    /// True if there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffer` with the bytes from `position` on.
    ///
    /// # Errors
    /// [`Refusal::Bytes`] for bytes that cannot be read, those behind the end included.
    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> Result<(), Refusal>;

    /// Lets go of what is held open, until the next read.
    fn close(&self) {}

    /// Checks that it is still what it was at first, as far as that can be told.
    ///
    /// # Errors
    /// [`Refusal::Changed`] if it is another, or what keeps it from being looked at.
    fn unchanged(&self) -> Result<(), Refusal> {
        Ok(())
    }

    /// When it was changed last, as far as that is known.
    fn modified(&self) -> Option<SystemTime> {
        None
    }
}

/// A file in memory.
#[derive(Clone)]
pub struct InMemory {
    name: String,
    bytes: Arc<[u8]>,
}

impl InMemory {
    /// The bytes of a file of this name.
    pub fn new(name: impl Into<String>, bytes: impl Into<Arc<[u8]>>) -> Self {
        InMemory { name: name.into(), bytes: bytes.into() }
    }
}

/// Name and length.
impl fmt::Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InMemory({:?}, {} bytes)", self.name, self.bytes.len())
    }
}

impl ByteSource for InMemory {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> Result<(), Refusal> {
        let start = usize::try_from(position).ok();
        let end = start.and_then(|start| start.checked_add(buffer.len()));
        let part = start.zip(end).and_then(|(start, end)| self.bytes.get(start..end));
        match part {
            Some(part) => buffer.copy_from_slice(part),
            None => {
                let (len, error) = (buffer.len(), io::ErrorKind::UnexpectedEof.into());
                return Err(Refusal::Bytes { len, position, error });
            }
        }
        Ok(())
    }
}

/// Reads a source from a position on.
pub(super) struct Reader<'a> {
    source: &'a dyn ByteSource,
    position: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a dyn ByteSource, position: u64) -> Self {
        Reader { source, position }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.source.len().saturating_sub(self.position);
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.source.read_exact_at(&mut buffer[..len], self.position);
        read.map_err(|refusal| match refusal {
            Refusal::System(error) | Refusal::Bytes { error, .. } => error,
            other => io::Error::other(other.to_string()),
        })?;
        self.position += len as u64;
        Ok(len)
    }
}

/// Where files are looked for by their paths.
#[derive(Debug)]
pub(super) enum Place {
    /// In the file system; of a folder only what does not lead outside.
    System(Option<Inside>),
    /// Among what a program gave.
    Given(Given),
}

impl Place {
    /// The file system around a path; is that a folder?
    ///
    /// # Errors
    /// A path that cannot be read.
    pub(super) fn system(path: &Path) -> Result<(Self, bool), Error> {
        let meta = std::fs::metadata(path);
        let meta = meta.map_err(|e| {
            let what =
                format!("it cannot be read ({e}); give a .safetensors or .gguf file, or a folder");
            Error::checkpoint(path, io::Error::new(e.kind(), what).into())
        })?;
        let folder = meta.is_dir();
        let inside = folder.then(|| Inside::of(path)).transpose()?;
        Ok((Place::System(inside), folder))
    }

    /// Is there a file of this path?
    pub(super) fn exists(&self, path: &Path) -> bool {
        match self {
            Place::System(_) => std::fs::symlink_metadata(path).is_ok(),
            Place::Given(given) => given.find(path).is_some(),
        }
    }

    /// Names of what lies in a folder, sorted; those that are no text are left out.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub(super) fn names(&self, folder: &Path) -> Result<Vec<String>, Error> {
        let mut names = match self {
            Place::System(_) => {
                let entries = std::fs::read_dir(folder);
                let entries = entries.and_then(Iterator::collect::<Result<Vec<_>, _>>);
                let entries = entries.map_err(|e| Error::checkpoint(folder, e.into()))?;
                entries.iter().filter_map(|e| e.file_name().into_string().ok()).collect()
            }
            Place::Given(given) => given.files.keys().cloned().collect::<Vec<_>>(),
        };
        names.sort();
        Ok(names)
    }

    /// Checks that a path does not lead out of the folder.
    ///
    /// # Errors
    /// One that does, or that leads nowhere.
    pub(super) fn check(&self, path: &Path) -> Result<(), Error> {
        match self {
            Place::System(Some(inside)) => inside.check(path),
            Place::System(None) | Place::Given(_) => Ok(()),
        }
    }

    /// Opens a file.
    ///
    /// # Errors
    /// One that is missing, or no plain file.
    pub(super) fn open(&self, path: &Path) -> Result<Arc<dyn ByteSource>, Refusal> {
        match self {
            Place::System(_) => Ok(Arc::new(PlainFile::open(path)?)),
            Place::Given(given) => given.find(path).cloned().ok_or_else(|| {
                let missing = "it is not among the given files; give it too";
                io::Error::new(io::ErrorKind::NotFound, missing).into()
            }),
        }
    }

    /// Reads a text file of at most `most` bytes.
    ///
    /// # Errors
    /// As [`open`](Self::open); a longer file, or one that is not UTF-8.
    pub(super) fn read_text(&self, path: &Path, most: u64) -> Result<String, Refusal> {
        match self {
            Place::System(_) => plain::read_text(path, most),
            Place::Given(_) => {
                let source = self.open(path)?;
                let len = source.len();
                if len > most {
                    return Err(Refusal::TooLong { len, most });
                }
                let mut text = String::new();
                Reader::new(&*source, 0).read_to_string(&mut text)?;
                Ok(text)
            }
        }
    }
}

/// The files of a folder that a program gave, by name.
#[derive(Debug)]
pub(super) struct Given {
    files: BTreeMap<String, Arc<dyn ByteSource>>,
    /// The folder's name; empty where the files have none around them.
    folder: PathBuf,
}

impl Given {
    /// Sources that lie beside each other. Where all are in one folder it is that folder; what lies
    /// deeper is left out, as it is on a disk.
    ///
    /// # Errors
    /// None at all, two of one name, or none that lies beside the others.
    pub(super) fn new(sources: Vec<Arc<dyn ByteSource>>) -> Result<Self, Error> {
        let first = |source: &Arc<dyn ByteSource>| {
            source.name().split_once('/').map(|(folder, _)| folder.to_string())
        };
        let folder = sources.first().and_then(first);
        let folder = folder
            .filter(|folder| sources.iter().all(|source| first(source).as_ref() == Some(folder)));
        let skip = folder.as_ref().map_or(0, |folder| folder.len() + 1);
        let path = PathBuf::from(folder.unwrap_or_default());
        let (mut files, mut deeper) = (BTreeMap::new(), None);
        for source in sources {
            let name = source.name()[skip..].to_string();
            if let Some((folder, _)) = name.rsplit_once('/') {
                deeper = deeper.or_else(|| Some(folder.to_string()));
                continue;
            }
            if files.insert(name.clone(), source).is_some() {
                return Err(Error::checkpoint(Path::new(&name), Refusal::GivenTwice));
            }
        }
        if !files.is_empty() {
            return Ok(Given { files, folder: path });
        }
        let refusal = deeper.map_or(Refusal::NothingGiven, Refusal::GivenDeeper);
        Err(Error::checkpoint(&path, refusal))
    }

    /// What is meant by the files: one of them, or the folder that they are of.
    ///
    /// ```text
    /// one file, or one beside configs   that file
    /// GGUF files and no others          the first, and so all parts of its model
    /// else                              the folder
    /// ```
    pub(super) fn meant(&self) -> (PathBuf, bool) {
        let ends = |end: &'static str| move |name: &&String| name.ends_with(end);
        let data: Vec<_> = self.files.keys().filter(|name| !name.ends_with(".json")).collect();
        let index = self.files.keys().any(|name| name.contains(".index."));
        let file = match data[..] {
            [only] if !index => Some(only),
            [first, ..] if data.iter().all(ends(".gguf")) => Some(first),
            [] if self.files.len() == 1 => self.files.keys().next(),
            _ => None,
        };
        file.map_or((self.folder.clone(), true), |name| (self.folder.join(name), false))
    }

    fn find(&self, path: &Path) -> Option<&Arc<dyn ByteSource>> {
        let name = path.strip_prefix(&self.folder).ok()?.to_str()?;
        self.files.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    fn source(name: &str, bytes: &[u8]) -> Arc<dyn ByteSource> {
        Arc::new(InMemory::new(name, bytes))
    }

    fn tensors(names: &[&str]) -> Vec<u8> {
        let entries = names.iter().enumerate().map(|(i, name)| {
            format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1)
        });
        let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
        let data = 0..names.len() as u8;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes().chain(data));
        file
    }

    #[test]
    fn given_files_are_read_as_those_of_a_folder() {
        let index = br#"{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}"#;
        let files = |folder: &str| {
            vec![
                source(&format!("{folder}model.safetensors.index.json"), index),
                source(&format!("{folder}config.json"), br#"{"model_type": "m"}"#),
                source(&format!("{folder}x.safetensors"), &tensors(&["a"])),
                source(&format!("{folder}y.safetensors"), &tensors(&["b"])),
                source(&format!("{folder}z.safetensors"), &tensors(&["c"])),
            ]
        };
        for folder in ["", "model/"] {
            let mut given = files(folder);
            if !folder.is_empty() {
                given.push(source("model/deeper/x.safetensors", b"not looked at"));
            }
            let checkpoint = Checkpoint::open_sources(given).unwrap();
            assert!(checkpoint.is_folder());
            assert_eq!(checkpoint.path(), Path::new(folder.trim_end_matches('/')));
            assert_eq!(checkpoint.tensors().keys().collect::<Vec<_>>(), ["a", "b"]);
            let b = checkpoint.tensor("b").unwrap();
            assert_eq!(checkpoint.read(b, 0..1).unwrap(), [0]);
            assert!(checkpoint.unchanged().is_ok());
        }
        let mut given = files("");
        given.retain(|file| file.name() != "y.safetensors");
        let error = Checkpoint::open_sources(given).unwrap_err().to_string();
        assert!(error.contains("not among the given files"), "{error}");
    }

    #[test]
    fn one_file_goes_with_its_own_config() {
        let given = vec![
            source("x.config.json", br#"{"model_type": "own"}"#),
            source("config.json", br#"{"model_type": "folder"}"#),
            source("x.safetensors", &tensors(&["a"])),
        ];
        let checkpoint = Checkpoint::open_sources(given).unwrap();
        assert_eq!(checkpoint.path(), Path::new("x.safetensors"));
        let config = crate::checkpoint::TensorSource::config(&checkpoint);
        assert_eq!(config.model_type(), Some("own"));
    }

    #[test]
    fn nothing_twice_and_two_folders_are_errors() {
        let error = |given| Checkpoint::open_sources(given).unwrap_err().to_string();
        assert!(error(vec![]).contains("no file is given"));
        let of = |name| source(name, &tensors(&["a"]));
        let folders = error(vec![of("m/x.safetensors"), of("n/x.safetensors")]);
        assert!(
            folders.contains("not those of one folder") && folders.contains("`m`"),
            "{folders}"
        );
        let inside = error(vec![of("m/a\u{7}/x.safetensors"), of("m/b/y.safetensors")]);
        assert!(inside.contains("`a\\u{7}`"), "{inside}");
        let twice = || source("a.safetensors", &tensors(&["a"]));
        assert!(error(vec![twice(), twice()]).contains("have this name"));
        let json = error(vec![source("a.json", b"{\"x\": [1, 2, 3]}")]);
        assert!(json.contains("JSON text"), "{json}");
    }

    #[test]
    fn a_source_that_is_shorter_than_it_says_is_an_error() {
        #[derive(Debug)]
        struct Short(InMemory);
        impl ByteSource for Short {
            fn name(&self) -> &str {
                "a.safetensors"
            }
            fn len(&self) -> u64 {
                self.0.len() + 1
            }
            fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> Result<(), Refusal> {
                self.0.read_exact_at(buffer, position)
            }
        }
        let file = tensors(&["a"]);
        let given = InMemory::new("a.safetensors", &file[..]);
        let error = Checkpoint::open_sources(vec![Arc::new(Short(given))]).unwrap_err();
        assert!(error.to_string().contains("a.safetensors"), "{error}");
    }
}
