//! Smaller vector files from large ones: some of the cases, without some of the columns.
//!
//! A tensor belongs to the case whose name and a dot it starts with. The result has the same
//! schema; its manifest names what it was taken from under `subset_of`, with the source's SHA-256,
//! and has none of its own.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::{Error, VectorFile};
use crate::files;

/// Where manifests list their cases, if they do; else the tensors' names tell them.
const CASE_LISTS: [&str; 2] = ["cases", "families"];

/// Writes the cases `cases` of the vector file `source`, without the columns `without`, as the
/// vector file `target`. Both are paths of a file without extension.
///
/// # Errors
/// A source that cannot be read; [`Error::Subset`] for a case or column that it does not have;
/// [`Error::Exists`] or [`Error::Io`] if the target is there or cannot be written.
pub fn write_subset(
    source: &Path,
    target: &Path,
    cases: &[String],
    without: &[String],
) -> Result<(), Error> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (file, target_name) = (name(source), name(target));
    let dir = source.parent().unwrap_or(Path::new(""));
    let path = |extension| target.with_file_name(format!("{target_name}.{extension}"));
    for path in ["safetensors", "json"].map(path) {
        // The source among others.
        if path.symlink_metadata().is_ok() {
            return Err(Error::Exists { path });
        }
    }
    let read = VectorFile::open(dir, &file)?;
    let subset = |what, got: &str, known: String| Error::Subset {
        file: file.clone(),
        what,
        got: got.to_owned(),
        known,
    };

    let json = write_error(source, files::read(&dir.join(format!("{file}.json"))))?;
    let manifest_error = |source| Error::Manifest { file: file.clone(), source };
    let mut manifest: Value = serde_json::from_slice(&json).map_err(manifest_error)?;
    let list =
        CASE_LISTS.into_iter().find_map(|list| manifest.get(list)?.as_object().map(|_| list));
    let known: BTreeSet<String> = match list {
        Some(list) => {
            manifest[list].as_object().into_iter().flatten().map(|(n, _)| n.clone()).collect()
        }
        None => {
            read.tensor_names().filter_map(|t| Some(t.rsplit_once('.')?.0.to_owned())).collect()
        }
    };
    if known.is_empty() {
        return Err(subset("list", "cases", "no cases that could be chosen".to_owned()));
    }
    if let Some(unknown) = cases.iter().find(|&case| !known.contains(case)) {
        let known: Vec<_> = known.into_iter().collect();
        return Err(subset("case", unknown, known.join(", ")));
    }

    // A tensor is `{case}.{column}`.
    let column = |tensor: &str| tensor.rsplit('.').next().unwrap_or_default().to_owned();
    if let Some(unknown) =
        without.iter().find(|&out| !read.tensor_names().any(|t| column(t) == *out))
    {
        let columns: BTreeSet<_> = read.tensor_names().map(column).collect();
        let columns: Vec<_> = columns.into_iter().collect();
        return Err(subset("column", unknown, columns.join(", ")));
    }
    let keep = |tensor: &str| {
        cases.iter().any(|case| {
            tensor.strip_prefix(case.as_str()).is_some_and(|rest| rest.starts_with('.'))
        }) && !without.contains(&column(tensor))
    };

    let tensors: HashMap<&str, TensorView<'_>> = (read.tensor_names())
        .filter(|tensor| keep(tensor))
        .map(|tensor| {
            let (dtype, shape, bytes) = read.raw(tensor)?;
            let view = TensorView::new(dtype, shape.to_vec(), bytes)
                .map_err(|source| Error::SafeTensors { file: file.clone(), source })?;
            Ok((tensor, view))
        })
        .collect::<Result<_, Error>>()?;
    let bytes = safetensors::serialize(tensors, None)
        .map_err(|source| Error::SafeTensors { file: file.clone(), source })?;

    let sha256 = manifest["sha256"].take();
    let left_out: Vec<_> = known.iter().filter(|case| !cases.contains(case)).collect();
    let subset_of = json!({
        "name": file,
        "sha256": sha256,
        "cases_left_out": left_out,
        "columns_left_out": without,
    });
    retain(&mut manifest, &|key| key != "sha256");
    if let Some(list) = list {
        retain(&mut manifest[list], &|case| cases.iter().any(|kept| kept == case));
    }
    retain(&mut manifest["tensors"], &keep);
    manifest["name"] = json!(target_name);
    manifest["file"] = json!(format!("{target_name}.safetensors"));
    manifest["bytes"] = json!(bytes.len());
    manifest["subset_of"] = subset_of;
    let text = serde_json::to_string_pretty(&manifest).map_err(manifest_error)? + "\n";
    write_error(target, std::fs::write(path("safetensors"), bytes))?;
    write_error(target, std::fs::write(path("json"), text))
}

/// Leaves the keys of an object that are to be kept.
fn retain(value: &mut Value, keep: &dyn Fn(&str) -> bool) {
    if let Some(object) = value.as_object_mut() {
        object.retain(|name, _| keep(name));
    }
}

fn write_error<T>(path: &Path, result: std::io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Io { path: path.to_owned(), source })
}
