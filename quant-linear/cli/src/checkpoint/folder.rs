//! What else lies in a checkpoint folder: the files and subfolders to be copied as they are.
//!
//! Symbolic links are followed, because a Hugging Face cache is made of them: the copy holds plain
//! files. A link back into a folder that encloses it would never end and is an error.

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

/// Lists a folder, leaving out the top-level files named in `except`.
///
/// # Errors
/// What cannot be read, broken links, endless links, and what is neither file nor folder.
pub(crate) fn list(root: &Path, except: &BTreeSet<&str>) -> Result<Listing> {
    let mut listing = Listing::default();
    let real = real_path(root)?;
    listing.real.push(real.clone());
    walk(root, Path::new(""), &mut vec![real], except, &mut listing)?;
    Ok(listing)
}

fn walk(
    root: &Path,
    folder: &Path,
    enclosing: &mut Vec<PathBuf>,
    except: &BTreeSet<&str>,
    listing: &mut Listing,
) -> Result<()> {
    let here = root.join(folder);
    let entries = std::fs::read_dir(&here).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.with_context(|| format!("listing {}", here.display()))?;
    let mut names: Vec<_> = entries.iter().map(std::fs::DirEntry::file_name).collect();
    names.sort();
    for name in names {
        let top = folder.as_os_str().is_empty();
        if top && name.to_str().is_some_and(|name| except.contains(name)) {
            continue;
        }
        let relative = folder.join(&name);
        let path = root.join(&relative);
        let meta = std::fs::metadata(&path).with_context(|| {
            format!("{} cannot be read; is it a broken link? repair or remove it", path.display())
        })?;
        if meta.is_file() {
            listing.files.push((relative, meta.len()));
        } else if meta.is_dir() {
            let real = real_path(&path)?;
            ensure!(
                !enclosing.contains(&real),
                "{} links back to a folder that encloses it; remove the link",
                path.display()
            );
            listing.folders.push(relative.clone());
            listing.real.push(real.clone());
            enclosing.push(real);
            walk(root, &relative, enclosing, except, listing)?;
            enclosing.pop();
        } else {
            bail!("{} is neither a file nor a folder; remove it", path.display());
        }
    }
    Ok(())
}

fn real_path(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).with_context(|| format!("reading {}", path.display()))
}
