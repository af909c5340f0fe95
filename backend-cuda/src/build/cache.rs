//! Compiled kernels on disk, so that a program compiles them once per machine.
//!
//! The folder is `$FP4_CUDA_CACHE`, or `exact-fp4/kernels` in the platform's cache folder
//! (`$XDG_CACHE_HOME` or `~/.cache`; `%LOCALAPPDATA%` on Windows). An empty `FP4_CUDA_CACHE` turns
//! caching off. A file is `<key>.cubin`: the SHA-256 of the image, then the image. The key hashes
//! source, headers, flags, architecture and NVRTC's version, so a file never goes stale; one that
//! does not match its own hash is ignored and written anew. Files are written beside their place
//! and renamed, so that no other process ever sees half of one. Nothing here fails: a cache that
//! cannot be read or written costs a compilation.

use std::env;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// Where images are kept.
#[derive(Debug, Clone)]
pub(crate) struct Cache(Option<PathBuf>);

/// Bytes of the hash in front of an image.
const HASH: usize = 32;

impl Cache {
    /// The folder that the environment names.
    pub(crate) fn from_environment() -> Self {
        let set = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(folder) = env::var_os("FP4_CUDA_CACHE") {
            return Cache((!folder.is_empty()).then(|| folder.into()));
        }
        let base = if cfg!(windows) {
            set("LOCALAPPDATA")
        } else {
            set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))
        };
        Cache(base.map(|base| base.join("exact-fp4").join("kernels")))
    }

    /// A folder of the caller's.
    #[cfg(test)]
    fn at(folder: &std::path::Path) -> Self {
        Cache(Some(folder.to_path_buf()))
    }

    fn file(&self, key: &str) -> Option<PathBuf> {
        self.0.as_ref().map(|folder| folder.join(format!("{key}.cubin")))
    }

    /// The image of this key, if a whole one is there.
    pub(crate) fn load(&self, key: &str) -> Option<Vec<u8>> {
        let file = self.file(key)?;
        let bytes = fs::read(&file).ok()?;
        let (hash, image) = bytes.split_at_checked(HASH)?;
        if hash != Sha256::digest(image).as_slice() {
            log::warn!("{} is damaged; compiling the kernel again", file.display());
            return None;
        }
        Some(image.to_vec())
    }

    /// Keeps an image.
    pub(crate) fn store(&self, key: &str, image: &[u8]) {
        let (Some(file), Some(folder)) = (self.file(key), &self.0) else { return };
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(folder)?;
            let mut beside = tempfile::NamedTempFile::new_in(folder)?;
            beside.write_all(&Sha256::digest(image))?;
            beside.write_all(image)?;
            beside.persist(&file)?;
            Ok(())
        };
        if let Err(error) = write() {
            log::debug!("cannot keep a compiled kernel in {}: {error}", file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_comes_back_and_a_damaged_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(&folder.path().join("made").join("when needed"));
        assert_eq!(cache.load("k"), None);
        cache.store("k", b"image");
        assert_eq!(cache.load("k").as_deref(), Some(&b"image"[..]));
        assert_eq!(cache.load("other"), None);

        let file = cache.file("k").unwrap();
        let whole = fs::read(&file).unwrap();
        for damaged in [&whole[..HASH + 2], &whole[..5], b"", &[whole.clone(), vec![0]].concat()] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(cache.load("k"), None, "{} bytes", damaged.len());
        }
        cache.store("k", b"image");
        assert_eq!(cache.load("k").as_deref(), Some(&b"image"[..]));
        // Nothing but the file itself is left behind.
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_is_no_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = Cache::at(&file.path().join("below a file"));
        cache.store("k", b"image");
        assert_eq!(cache.load("k"), None);
        assert_eq!(Cache(None).load("k"), None);
        Cache(None).store("k", b"image");
    }
}
