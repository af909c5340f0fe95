//! What else lies in a checkpoint folder: the files and subfolders to be copied as they are.
//!
//! ```text
//! CACHE/models--X/blobs/HASH                              what the links lead to
//! CACHE/models--X/snapshots/REVISION/model.safetensors    -> ../../blobs/HASH
//! ```
//!
//! Symbolic links are followed where they stay inside the folder, or lead into a `blobs` folder
//! beside it or one level up, because a Hugging Face cache is made of such: the copy holds plain
//! files. A link to anywhere else is an error: a folder from a stranger must not make us copy a
//! private file into an output. So is a link back into a folder that encloses it, which would never
//! end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::{Error, Refusal};

/// The contents of a folder, by paths relative to it.
#[derive(Debug, Default)]
pub struct Listing {
    /// Subfolders, each after the one that holds it.
    pub folders: Vec<PathBuf>,
    /// Files with their lengths.
    pub files: Vec<(PathBuf, u64)>,
    /// Where the folder and its subfolders really are.
    pub real: Vec<PathBuf>,
}

/// What counts as inside a folder: the folder, and the blobs of a cache.
#[derive(Debug)]
pub(super) struct Inside {
    roots: Vec<PathBuf>,
}

impl Inside {
    /// Inside `folder`.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub(super) fn of(folder: &Path) -> Result<Self, Error> {
        let real = real_path(folder)?;
        let above = real.ancestors().skip(1).take(2).map(|above| above.join("blobs"));
        // A `blobs` that is a link itself may lead anywhere.
        let blobs =
            above.filter(|blobs| std::fs::symlink_metadata(blobs).is_ok_and(|m| m.is_dir()));
        let blobs: Vec<_> = blobs.collect();
        Ok(Inside { roots: [vec![real], blobs].concat() })
    }

    /// Checks that a path does not lead outside.
    ///
    /// # Errors
    /// A path that does, or that leads nowhere.
    pub(super) fn check(&self, path: &Path) -> Result<(), Error> {
        let real = real_path(path)?;
        match self.roots.iter().any(|root| real.starts_with(root)) {
            true => Ok(()),
            false => Err(Error::checkpoint(path, Refusal::Outside { to: real })),
        }
    }
}

/// Lists a folder, leaving out the top-level files named in `except`.
///
/// # Errors
/// What cannot be read, links that are broken, endless or lead outside, and what is neither file
/// nor folder.
pub fn list(root: &Path, except: &BTreeSet<&str>) -> Result<Listing, Error> {
    let mut listing = Listing::default();
    let (real, inside) = (real_path(root)?, Inside::of(root)?);
    listing.real.push(real.clone());
    let mut walk = Walk { root, inside, enclosing: vec![real], except, listing };
    walk.folder(Path::new(""))?;
    Ok(walk.listing)
}

struct Walk<'a> {
    root: &'a Path,
    inside: Inside,
    /// Real paths of the folders around the place, the root first.
    enclosing: Vec<PathBuf>,
    except: &'a BTreeSet<&'a str>,
    listing: Listing,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path) -> Result<(), Error> {
        let here = self.root.join(folder);
        let entries = std::fs::read_dir(&here).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.map_err(|e| Error::checkpoint(&here, e.into()))?;
        let mut names: Vec<_> = entries.iter().map(std::fs::DirEntry::file_name).collect();
        names.sort();
        for name in names {
            let top = folder.as_os_str().is_empty();
            if !(top && name.to_str().is_some_and(|name| self.except.contains(name))) {
                self.entry(folder.join(&name))?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, relative: PathBuf) -> Result<(), Error> {
        let path = self.root.join(&relative);
        let refuse = |refusal| Err(Error::checkpoint(&path, refusal));
        let meta = match std::fs::metadata(&path) {
            Ok(meta) => meta,
            Err(e) => return refuse(Refusal::Broken(e)),
        };
        self.inside.check(&path)?;
        if meta.is_file() {
            self.listing.files.push((relative, meta.len()));
        } else if meta.is_dir() {
            let real = real_path(&path)?;
            if self.enclosing.contains(&real) {
                return refuse(Refusal::Endless);
            }
            self.listing.folders.push(relative.clone());
            self.listing.real.push(real.clone());
            self.enclosing.push(real);
            self.folder(&relative)?;
            self.enclosing.pop();
        } else {
            return refuse(Refusal::NeitherFileNorFolder);
        }
        Ok(())
    }
}

fn real_path(path: &Path) -> Result<PathBuf, Error> {
    std::fs::canonicalize(path).map_err(|e| Error::checkpoint(path, e.into()))
}
