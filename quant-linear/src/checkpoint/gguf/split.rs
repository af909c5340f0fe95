//! One model in several GGUF files, as llama-gguf-split writes them.
//!
//! ```text
//! NAME-00001-of-00003.gguf    split.no 0, split.count 3, split.tensors.count, the model's pairs
//! NAME-00002-of-00003.gguf    split.no 1, split.count 3, split.tensors.count
//! NAME-00003-of-00003.gguf    split.no 2, ...
//! ```
//!
//! Any of them stands for the model: the others are found beside it by their names.

use std::path::Path;

use super::super::TensorFile;
use super::super::source::Place;
use super::{Header, Value};
use crate::error::{Error, GgufError, Refusal};

const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// All files of the model that `file`, at `path`, is one of, with their names; `None` if it is
/// whole by itself.
///
/// # Errors
/// A file that is missing, cannot be read, or is of another model.
pub(in crate::checkpoint) fn files(
    path: &Path,
    file: &TensorFile,
    place: &Place,
) -> Result<Option<Vec<(String, TensorFile)>>, Error> {
    let number = |header: &Header, key| header.get(key).and_then(Value::as_u64);
    let count = file.gguf().and_then(|header| Some((header, number(header, COUNT)?)));
    let Some((header, count)) = count.filter(|(_, count)| *count > 1) else { return Ok(None) };
    let here = number(header, NO).unwrap_or(0);
    let refuse = |path: &Path, error: GgufError| Error::checkpoint(path, error.into());
    let name = path.file_name().and_then(|name| name.to_str());
    let stem = name.and_then(|name| name.strip_suffix(&ending(here, count)));
    let Some(stem) = stem.filter(|_| here < count) else {
        return Err(refuse(path, GgufError::SplitName { number: here, count }));
    };
    let (mut files, mut tensors) = (vec![], 0);
    for position in 0..count {
        let name = format!("{stem}{}", ending(position, count));
        let at = path.with_file_name(&name);
        if !place.exists(&at) {
            return Err(refuse(&at, GgufError::SplitMissing(count)));
        }
        let file = TensorFile::open_at(place, &at)?;
        let (got, found) = match file.gguf() {
            Some(header) => (number(header, NO), number(header, COUNT)),
            None => (None, None),
        };
        if (got, found) != (Some(position), Some(count)) {
            let (number, expected, count) = (position, count, found);
            return Err(refuse(&at, GgufError::SplitNumber { got, count, number, expected }));
        }
        tensors += file.count() as u64;
        files.push((name, file));
    }
    let expected = number(header, TENSORS).unwrap_or(tensors);
    match expected == tensors {
        true => Ok(Some(files)),
        false => {
            let error = GgufError::SplitTensors { count, got: tensors, expected };
            Err(Error::checkpoint(path, Refusal::from(error)))
        }
    }
}

/// What the name of a file ends in.
fn ending(position: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", position.saturating_add(1))
}
