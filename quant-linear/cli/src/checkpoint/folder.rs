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

use anyhow::{Context, Result, bail, ensure};

/// The contents of a folder, by paths relative to it.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Subfolders, each after the one that holds it.
    pub(crate) folders: Vec<PathBuf>,
    /// Files with their lengths.
    pub(crate) files: Vec<(PathBuf, u64)>,
    /// Where the folder and its subfolders really are.
    pub(crate) real: Vec<PathBuf>,
}

/// What counts as inside a folder: the folder, and the blobs of a cache.
#[derive(Debug)]
pub(crate) struct Inside {
    roots: Vec<PathBuf>,
}

impl Inside {
    /// Inside `folder`.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
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
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let real = real_path(path)?;
        ensure!(
            self.roots.iter().any(|root| real.starts_with(root)),
            "{} is a link out of its folder, to {}; put a copy in its place, or remove it",
            path.display(),
            real.display()
        );
        Ok(())
    }
}

/// Lists a folder, leaving out the top-level files named in `except`.
///
/// # Errors
/// What cannot be read, links that are broken, endless or lead outside, and what is neither file nor
/// folder.
pub(crate) fn list(root: &Path, except: &BTreeSet<&str>) -> Result<Listing> {
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
    fn folder(&mut self, folder: &Path) -> Result<()> {
        let here = self.root.join(folder);
        let entries = std::fs::read_dir(&here).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.with_context(|| format!("listing {}", here.display()))?;
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

    fn entry(&mut self, relative: PathBuf) -> Result<()> {
        let path = self.root.join(&relative);
        let meta = std::fs::metadata(&path).with_context(|| {
            format!("{} cannot be read; is it a broken link? repair or remove it", path.display())
        })?;
        self.inside.check(&path)?;
        if meta.is_file() {
            self.listing.files.push((relative, meta.len()));
        } else if meta.is_dir() {
            let real = real_path(&path)?;
            ensure!(
                !self.enclosing.contains(&real),
                "{} links back to a folder that encloses it; remove the link",
                path.display()
            );
            self.listing.folders.push(relative.clone());
            self.listing.real.push(real.clone());
            self.enclosing.push(real);
            self.folder(&relative)?;
            self.enclosing.pop();
        } else {
            bail!("{} is neither a file nor a folder; remove it", path.display());
        }
        Ok(())
    }
}

fn real_path(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).with_context(|| format!("reading {}", path.display()))
}
