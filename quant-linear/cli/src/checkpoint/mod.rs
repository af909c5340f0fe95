//! A checkpoint to read: one safetensors file, or a folder of them as Hugging Face lays it out.
//!
//! ```text
//! FILE.safetensors                       one file
//! FOLDER/model.safetensors.index.json    the shards that the index names
//! FOLDER/model.safetensors               that file
//! FOLDER/ANYTHING.safetensors            that file, if it is the only one
//! ```
//!
//! Opening reads headers only; tensors are read by position later ([`reader`]).

mod folder;
mod index;
mod layers;
mod layout;
mod plain;
mod reader;
mod sniff;
mod unique;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::TensorInfo;

use folder::Inside;
pub(crate) use folder::{Listing, list};
pub(crate) use index::{INDEX, Index};
pub(crate) use layers::{Layer, Layers, STATE_NAMES, ScaleTypeArg};
pub(crate) use layout::Layout;
pub(crate) use reader::{TensorFile, byte_len};

/// The file name that a folder without an index should hold.
const SINGLE: &str = "model.safetensors";

/// Files that are kept open between reads.
const KEPT_OPEN: usize = 8;

/// An open checkpoint.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    path: PathBuf,
    folder: bool,
    files: Vec<(String, TensorFile)>,
    /// Positions of the files that are open, the one used last at the end.
    open: Mutex<VecDeque<usize>>,
    index: Option<Index>,
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor of a checkpoint: its file, and where it is there.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    /// Position in [`Checkpoint::files`].
    pub(crate) file: usize,
    /// Type, shape and place.
    pub(crate) info: TensorInfo,
}

impl Checkpoint {
    /// Opens a file or a folder.
    ///
    /// # Errors
    /// A path that is missing or holds no checkpoint, and files that are not safetensors or
    /// disagree with the index.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).with_context(|| {
            format!("{} cannot be read; give a .safetensors file or a folder", path.display())
        })?;
        let folder = meta.is_dir();
        let inside = folder.then(|| Inside::of(path)).transpose()?;
        let index = match &inside {
            Some(inside) => Index::read(path, inside)?,
            None => None,
        };
        let names = match &index {
            Some(index) => index.shards().into_iter().map(String::from).collect(),
            None if folder => vec![only_file(path)?],
            None => vec![file_name(path)?],
        };
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let at = if folder { path.join(&name) } else { path.to_path_buf() };
            let inside = inside.as_ref().map_or(Ok(()), |inside| inside.check(&at));
            let file = inside.and_then(|()| TensorFile::open(&at));
            let file = match &index {
                Some(_) => file.with_context(|| format!("{INDEX} names the shard `{name}`"))?,
                None => file?,
            };
            files.push((name, file));
        }
        let tensors = tensors(&mut files, index.as_ref())
            .with_context(|| format!("{} is not consistent", path.display()))?;
        let (path, open) = (path.to_path_buf(), Mutex::default());
        Ok(Checkpoint { path, folder, files, open, index, tensors })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// True for a folder.
    pub(crate) fn is_folder(&self) -> bool {
        self.folder
    }

    /// The safetensors files by name.
    pub(crate) fn files(&self) -> &[(String, TensorFile)] {
        &self.files
    }

    /// The index of a sharded checkpoint.
    pub(crate) fn index(&self) -> Option<&Index> {
        self.index.as_ref()
    }

    /// All tensors by name.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// `len` bytes of a tensor from byte `offset` of it on.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub(crate) fn bytes(&self, tensor: &Tensor, offset: usize, len: usize) -> Result<Vec<u8>> {
        self.keep_open(tensor.file);
        self.files[tensor.file].1.bytes(&tensor.info, offset, len)
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

    /// Names of the files in the folder that this checkpoint is made of.
    pub(crate) fn own_names(&self) -> BTreeSet<&str> {
        let files = self.files.iter().map(|(name, _)| name.as_str());
        files.chain(self.index.as_ref().map(|_| INDEX)).collect()
    }
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    Ok(name.to_string_lossy().into_owned())
}

/// The one safetensors file of a folder without an index.
fn only_file(folder: &Path) -> Result<String> {
    if folder.join(SINGLE).exists() {
        return Ok(SINGLE.into());
    }
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.with_context(|| format!("listing {}", folder.display()))?;
    let names = entries.iter().filter_map(|e| e.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|n| n.ends_with(".safetensors")).collect();
    names.sort();
    match <[String; 1]>::try_from(names) {
        Ok([only]) => Ok(only),
        Err(names) if names.is_empty() => bail!(
            "{} holds no {SINGLE}, no {INDEX} and no other .safetensors file; give the folder of a \
             model, or the file itself",
            folder.display()
        ),
        Err(names) => bail!(
            "{} holds {} and no {INDEX} that says how they belong together; give one of the files",
            folder.display(),
            names.join(", ")
        ),
    }
}

/// Gathers the tensors of all files, and checks them against the index.
fn tensors(
    files: &mut [(String, TensorFile)],
    index: Option<&Index>,
) -> Result<BTreeMap<String, Tensor>> {
    const DO: &str = "download the index and its shards again";
    let mut all: BTreeMap<String, Tensor> = BTreeMap::new();
    for (position, (shard, file)) in files.iter_mut().enumerate() {
        for (name, info) in file.take_tensors() {
            if let Some(index) = index {
                let listed = index.weight_map().get(&name);
                ensure!(
                    listed == Some(&*shard),
                    "the shard {shard} holds the tensor `{name}`, which the index {}: {DO}",
                    listed.map_or("does not list".into(), |other| format!("places in {other}"))
                );
            }
            all.insert(name, Tensor { file: position, info });
        }
    }
    for (name, shard) in index.iter().flat_map(|index| index.weight_map()) {
        ensure!(
            all.contains_key(name),
            "the index places the tensor `{name}` in {shard}, which does not hold it: {DO}"
        );
    }
    Ok(all)
}
