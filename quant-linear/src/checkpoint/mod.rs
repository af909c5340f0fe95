//! Checkpoints: one safetensors file, a folder of them as Hugging Face lays it out, or GGUF.
//!
//! ```text
//! FILE.safetensors                       one file
//! FILE.gguf                              one file
//! FILE-00001-of-00003.gguf               that file and its siblings
//! FOLDER/model.safetensors.index.json    the shards that the index names
//! FOLDER/model.safetensors               that file; so for diffusion_pytorch_model
//! FOLDER/ANYTHING.safetensors.index.json the shards of that index, if it is the only one
//! FOLDER/ANYTHING.safetensors            that file, if it is the only one
//! ```
//!
//! The same files may lie elsewhere than on a disk: [`Checkpoint::open_sources`] takes them as
//! [`ByteSource`]s.
//!
//! Opening reads headers only; tensors are read by position when they are asked for. So a
//! checkpoint opened once serves any number of layers:
//!
//! ```no_run
//! use quant_linear::checkpoint::Checkpoint;
//! use quant_linear::{LoadOptions, QuantLinear};
//!
//! let checkpoint = Checkpoint::open("model".as_ref())?;
//! let options = LoadOptions::default();
//! let layers: Vec<_> = ["encoder.layer.0.output.dense", "encoder.layer.1.output.dense"]
//!     .iter()
//!     .map(|prefix| QuantLinear::from_state(&checkpoint, prefix, &options))
//!     .collect::<Result<_, _>>()?;
//! # Ok::<(), quant_linear::Error>(())
//! ```

mod config;
mod folder;
pub mod gguf;
mod index;
mod plain;
mod reader;
mod sniff;
mod source;
pub mod tiles;
mod unique;
mod writer;

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use safetensors::{Dtype, SafeTensors};

pub use config::{Config, HEADER_LAYERS};
pub use folder::{Listing, list};
use gguf::GgmlType;
pub use index::Index;
pub(crate) use plain::read_text;
pub use reader::{TensorFile, TensorInfo, byte_len};
pub use source::{ByteSource, InMemory};
use source::{Given, Place};
pub use writer::{Arrangement, Planned};

pub use crate::error::Refusal;

use crate::error::{Error, GgufError};

/// Tensors by name: a file, a map of one, or bytes in memory.
pub trait TensorSource {
    /// Type and shape of a tensor; `None` if there is none of that name.
    fn header(&self, name: &str) -> Option<(Dtype, Vec<usize>)>;

    /// The type of a tensor of a GGUF file; `None` for other tensors.
    fn ggml_type(&self, _name: &str) -> Option<GgmlType> {
        None
    }

    /// The bytes of a tensor, little-endian and row-major.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or an I/O error.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Error>;

    /// What the headers say under a key of `__metadata__`.
    fn metadata(&self, _key: &str) -> Option<&str> {
        None
    }

    /// What lies beside the tensors and says what they mean.
    fn config(&self) -> &Config {
        Config::none()
    }

    /// Some bytes of a tensor.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes); a range that is not inside the tensor.
    fn range(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Error> {
        let (bytes, Range { start, end }) = (self.bytes(name)?, range);
        let len = bytes.len();
        let inside = match &bytes {
            Cow::Borrowed(bytes) => bytes.get(start..end).map(Cow::Borrowed),
            Cow::Owned(bytes) => bytes.get(start..end).map(|part| Cow::Owned(part.to_vec())),
        };
        inside.ok_or_else(|| {
            Error::checkpoint(Path::new(name), Refusal::OutOfTensor { start, end, len })
        })
    }
}

impl TensorSource for SafeTensors<'_> {
    fn header(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        self.tensor(name).ok().map(|view| (view.dtype(), view.shape().to_vec()))
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Error> {
        match self.tensor(name) {
            Ok(view) => Ok(Cow::Borrowed(view.data())),
            Err(_) => Err(Error::MissingTensor { name: name.to_string() }),
        }
    }
}

impl TensorSource for Checkpoint {
    fn header(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        let info = &self.tensors.get(name)?.info;
        Some((info.dtype, info.shape.clone()))
    }

    fn ggml_type(&self, name: &str) -> Option<GgmlType> {
        self.tensors.get(name)?.ggml
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Error> {
        let tensor = self.tensor(name)?;
        self.read(tensor, 0..byte_len(&tensor.info)).map(Cow::Owned)
    }

    fn range(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Error> {
        self.read(self.tensor(name)?, range).map(Cow::Owned)
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.files.iter().find_map(|(_, file)| file.metadata().get(key)).map(String::as_str)
    }

    fn config(&self) -> &Config {
        &self.config
    }
}

/// A GGUF file in a safetensors file's place.
const GGUF_IN_FOLDER: Refusal = Refusal::OtherKind {
    what: "a GGUF file (llama.cpp)",
    what_to_do: "give that file itself, not its folder",
};

/// Files that are kept open between reads.
const KEPT_OPEN: usize = 8;

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    folder: bool,
    files: Vec<(String, TensorFile)>,
    /// Positions of the files that are open, the one used last at the end.
    open: Mutex<VecDeque<usize>>,
    index: Option<Index>,
    tensors: BTreeMap<String, Tensor>,
    config: Config,
}

/// A tensor of a checkpoint: its file, and where it is there.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Position in [`Checkpoint::files`].
    pub file: usize,
    /// Type, shape and place; a type of blocks is U8 of the shape `[.., rows, bytes of a row]`.
    pub info: TensorInfo,
    /// The type in a GGUF file.
    pub ggml: Option<GgmlType>,
}

impl Tensor {
    /// The shape in elements, `[.., rows, K]`.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = self.info.shape.clone();
        let blocks = self.ggml.filter(|ty| ty.dtype().is_none());
        if let (Some(row), Some(ty)) = (shape.last_mut(), blocks) {
            *row = *row / ty.block_bytes() * ty.block_len();
        }
        shape
    }

    /// The name of its type.
    pub fn type_name(&self) -> String {
        match self.ggml {
            Some(ty) => ty.to_string(),
            None => self.info.dtype.to_string(),
        }
    }
}

impl Checkpoint {
    /// Opens a file or a folder.
    ///
    /// # Errors
    /// A path that is missing or holds no checkpoint, and files that are neither safetensors nor
    /// GGUF, or disagree with the index.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (place, folder) = Place::system(path)?;
        Self::open_at(&place, path, folder)
    }

    /// Opens a file, or the files of a folder with their index and configs, wherever they are. One
    /// file alone is that file, GGUF files are those of one model, and else they are a folder.
    ///
    /// # Errors
    /// As [`open`](Self::open); no source, or two of one name.
    pub fn open_sources(sources: Vec<Arc<dyn ByteSource>>) -> Result<Self, Error> {
        let given = Given::new(sources)?;
        let (path, folder) = given.meant();
        Self::open_at(&Place::Given(given), &path, folder)
    }

    /// What [`open_sources`](Self::open_sources) would open: a file, or the folder of the files;
    /// true for a folder.
    ///
    /// # Errors
    /// No source, or two of one name.
    pub fn meant(sources: &[Arc<dyn ByteSource>]) -> Result<(PathBuf, bool), Error> {
        Ok(Given::new(sources.to_vec())?.meant())
    }

    fn open_at(place: &Place, path: &Path, folder: bool) -> Result<Self, Error> {
        let index = match folder {
            true => Index::read(path, place)?,
            false => None,
        };
        let names = match &index {
            Some(index) => index.shards().into_iter().map(String::from).collect(),
            None if folder => vec![only_file(path, place)?],
            None => vec![file_name(path)?],
        };
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let at = if folder { path.join(&name) } else { path.to_path_buf() };
            let file = place.check(&at).and_then(|()| TensorFile::open_at(place, &at));
            let file = file.and_then(|file| match file.gguf() {
                Some(_) if folder => Err(Error::checkpoint(&at, GGUF_IN_FOLDER)),
                _ => Ok(file),
            });
            let file = file.map_err(|error| match &index {
                Some(_) => Error::Shard { shard: name.clone(), error: Box::new(error) },
                None => error,
            });
            files.push((name, file?));
        }
        if !folder && let Some(parts) = gguf::split::files(path, &files[0].1, place)? {
            files = parts;
        }
        let tensors = tensors(&mut files, index.as_ref());
        let tensors = tensors.map_err(|refusal| Error::checkpoint(path, refusal))?;
        let mut config = match folder {
            true => Config::of_folder(path, place),
            false => Config::beside(path, place),
        };
        let headers = files.iter().find_map(|(_, file)| file.metadata().get(HEADER_LAYERS));
        headers.into_iter().for_each(|text| config.read_header(text));
        let (path, open) = (path.to_path_buf(), Mutex::default());
        Ok(Checkpoint { path, folder, files, open, index, tensors, config })
    }

    /// Opens a file or a folder whose `config.json` is elsewhere.
    ///
    /// # Errors
    /// As [`open`](Self::open); a config that cannot be read or is no JSON object.
    pub fn open_with(path: &Path, config: Option<&Path>) -> Result<Self, Error> {
        let mut checkpoint = Self::open(path)?;
        if let Some(config) = config {
            checkpoint.config.replace(config)?;
        }
        Ok(checkpoint)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True for a folder.
    pub fn is_folder(&self) -> bool {
        self.folder
    }

    /// The files by name.
    pub fn files(&self) -> &[(String, TensorFile)] {
        &self.files
    }

    /// The header of a GGUF file, of the first where the model is split: it has the model's pairs.
    pub fn gguf(&self) -> Option<&gguf::Header> {
        self.files.first().and_then(|(_, file)| file.gguf())
    }

    /// The index of a sharded checkpoint.
    pub fn index(&self) -> Option<&Index> {
        self.index.as_ref()
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<&Tensor, Error> {
        let tensor = self.tensors.get(name);
        tensor.ok_or_else(|| Error::MissingTensor { name: name.into() })
    }

    /// Some bytes of a tensor.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub fn read(&self, tensor: &Tensor, range: Range<usize>) -> Result<Vec<u8>, Error> {
        self.keep_open(tensor.file);
        let len = range.end.saturating_sub(range.start);
        self.files[tensor.file].1.bytes(&tensor.info, range.start, len)
    }

    /// Closes the files that were not used for longest: there may be more than a process may open.
    fn keep_open(&self, file: usize) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.back() == Some(&file) {
            return;
        }
        open.retain(|other| *other != file);
        open.push_back(file);
        while open.len() > KEPT_OPEN {
            let oldest = open.pop_front();
            oldest.into_iter().for_each(|oldest| self.files[oldest].1.close());
        }
    }

    /// Checks that every file is still the one whose header was read.
    ///
    /// # Errors
    /// As [`TensorFile::unchanged`].
    pub fn unchanged(&self) -> Result<(), Error> {
        self.files.iter().try_for_each(|(_, file)| file.unchanged())
    }

    /// Names of the files in the folder that this checkpoint is made of.
    pub fn own_names(&self) -> BTreeSet<&str> {
        let files = self.files.iter().map(|(name, _)| name.as_str());
        files.chain(self.index.as_ref().map(Index::name)).collect()
    }
}

fn file_name(path: &Path) -> Result<String, Error> {
    let name = path.file_name().ok_or_else(|| Error::checkpoint(path, Refusal::NoName))?;
    Ok(name.to_string_lossy().into_owned())
}

/// The one safetensors file of a folder without an index.
fn only_file(folder: &Path, place: &Place) -> Result<String, Error> {
    let usual = index::STEMS.map(|stem| format!("{stem}.safetensors"));
    if let Some(name) = usual.into_iter().find(|name| place.exists(&folder.join(name))) {
        return Ok(name);
    }
    let mut names = place.names(folder)?;
    names.retain(|name| name.ends_with(".safetensors"));
    let refusal = match <[String; 1]>::try_from(names) {
        Ok([only]) => return Ok(only),
        Err(names) if names.is_empty() => Refusal::NoModel,
        Err(names) => Refusal::ManyFiles(names),
    };
    Err(Error::checkpoint(folder, refusal))
}

/// Gathers the tensors of all files, and checks them against the index.
fn tensors(
    files: &mut [(String, TensorFile)],
    index: Option<&Index>,
) -> Result<BTreeMap<String, Tensor>, Refusal> {
    let mut all: BTreeMap<String, Tensor> = BTreeMap::new();
    for (position, (shard, file)) in files.iter_mut().enumerate() {
        for (name, (info, ggml)) in file.take_tensors() {
            let listed = index.map(|index| index.weight_map().get(&name));
            if let Some(listed) = listed.filter(|listed| *listed != Some(&*shard)) {
                let (shard, listed) = (shard.clone(), listed.cloned());
                return Err(Refusal::Unlisted { name, shard, listed });
            }
            match all.entry(name) {
                Entry::Vacant(place) => drop(place.insert(Tensor { file: position, info, ggml })),
                Entry::Occupied(taken) => {
                    return Err(GgufError::DuplicateTensor(taken.key().clone()).into());
                }
            }
        }
    }
    for (name, shard) in index.iter().flat_map(|index| index.weight_map()) {
        if !all.contains_key(name) {
            return Err(Refusal::Absent { name: name.clone(), shard: shard.clone() });
        }
    }
    Ok(all)
}
