//! Writing files so that no half-written one is ever seen: beside the target, then renamed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::error::Error;

/// Writes a file through `fill`: into a temporary file in the same folder, flushed to disk, then
/// renamed over `path`. On any error the temporary file is removed and `path` is as it was.
///
/// # Errors
/// [`Error::Io`] naming the file and the system's reason.
pub fn write(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), Error> {
    let error = |source| Error::Io { action: "writing", path: path.to_path_buf(), source };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".fp4-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // What a plain create would give: the umask takes its part.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let (file, temporary) = builder.tempfile_in(folder).map_err(error)?.into_parts();
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer).map_err(error)?;
    let file = writer.into_inner().map_err(|e| error(e.into_error()))?;
    file.sync_all().map_err(error)?;
    drop(file);
    temporary.persist(path).map_err(|e| error(e.error))
}

/// Writes bytes as [`write`](fn@write) does.
///
/// # Errors
/// As [`write`](fn@write).
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write(path, |file| file.write_all(bytes))
}
