//! What is done already of an output that is to be continued: lines of JSON.
//!
//! ```text
//! [["version","0.1.0"],["input model.safetensors","1024 bytes, ..."],..,["format","nvfp4"]]
//! {"job":0,"outcome":{..}}
//! {"job":2,"outcome":{..}}
//! ```
//!
//! The first line is the fingerprint: all that decides the bytes of the output. A run continues
//! only what has its own. Each other line is a job that has ended, and whose bytes were flushed to
//! the disk before the line was written; a line that is cut short, the last one of a killed
//! process, counts for nothing. So a journal that is there says that something is done: before,
//! whatever was begun is begun anew.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files::writing;
use super::{Contents, Inputs};
use crate::atomic;
use crate::error::Error;

/// Names and values of what decides the bytes of an output.
pub type Settings = Vec<(String, String)>;

/// All that decides the bytes of an output: this version, the input, the headers of the output's
/// files (so names, types, shapes and metadata of all tensors), what is generated, the settings.
///
/// # Errors
/// A header that cannot be read.
pub(super) fn fingerprint(
    inputs: &Inputs<'_>,
    contents: &Contents<'_>,
    settings: &Settings,
) -> Result<Settings, Error> {
    let mut all = vec![("version".to_string(), env!("CARGO_PKG_VERSION").to_string())];
    all.extend(settings.iter().cloned());
    all.extend(inputs.described()?);
    for (name, layout) in &contents.files {
        let text = format!("{} bytes, header {}", layout.file_len(), sha256(layout.header()));
        all.push((format!("output {name}"), text));
    }
    for (name, bytes) in &contents.generated {
        all.push((format!("output {name}"), sha256(bytes)));
    }
    Ok(all)
}

/// The SHA-256 of what is added.
#[derive(Default)]
pub(super) struct Hash(Sha256);

impl Hash {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn hexadecimal(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut hash = Hash::default();
    hash.add(bytes);
    hash.hexadecimal()
}

/// A line for a job that has ended.
#[derive(Serialize, Deserialize)]
struct Line<O> {
    job: usize,
    outcome: O,
}

/// The line of a job that has ended.
///
/// # Errors
/// What JSON cannot say.
pub(super) fn line<O: Serialize>(job: usize, outcome: &O, path: &Path) -> Result<String, Error> {
    let line = serde_json::to_string(&Line { job, outcome });
    line.map(|line| line + "\n").map_err(|error| writing(path)(error.into()))
}

/// A journal that lines are added to.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// Opened, and begun with the fingerprint, for the first line: a journal that is there says
    /// that something is done.
    file: Option<File>,
    fingerprint: String,
}

impl Journal {
    /// The journal at `path`, and what is done of `jobs`. The output is to be at `output`.
    ///
    /// # Errors
    /// The system's; [`Error::OtherRun`] if something is done under another fingerprint.
    pub(super) fn open<O: DeserializeOwned>(
        path: &Path,
        fingerprint: &Settings,
        output: &Path,
        jobs: usize,
    ) -> Result<(Self, BTreeMap<usize, O>), Error> {
        let error = writing(path);
        let first = serde_json::to_string(fingerprint).map_err(|e| error(e.into()))?;
        let (file, path) = (None, path.to_path_buf());
        let mut journal = Journal { path, file, fingerprint: first + "\n" };
        let file = match File::options().read(true).write(true).open(&journal.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((journal, BTreeMap::new())),
            file => file.map_err(&error)?,
        };
        let (begun, done, good) = read(&file, jobs).map_err(&error)?;
        if done.is_empty() {
            return Ok((journal, done));
        }
        if let Some(what) = difference(&begun, fingerprint) {
            return Err(Error::OtherRun { path: atomic::partial(output), what });
        }
        let cut = file.set_len(good).and_then(|()| (&file).seek(SeekFrom::Start(good)));
        cut.map_err(&error)?;
        journal.file = Some(file);
        Ok((journal, done))
    }

    /// As [`open`](Self::open), with what journals of ranks beside it have: their lines become its
    /// own, and they are removed.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn open_all<O: Serialize + DeserializeOwned>(
        path: &Path,
        fingerprint: &Settings,
        output: &Path,
        jobs: usize,
    ) -> Result<(Self, BTreeMap<usize, O>), Error> {
        let (mut journal, mut done) = Self::open(path, fingerprint, output, jobs)?;
        let error = writing(path);
        let mut merged = Vec::new();
        for entry in std::fs::read_dir(atomic::parent(path)).map_err(&error)? {
            let entry = entry.map_err(&error)?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(atomic::RANK_JOURNAL) {
                let of_rank = Self::open::<O>(&entry.path(), fingerprint, output, jobs)?.1;
                let mut lines = String::new();
                for (job, outcome) in of_rank {
                    lines += &line(job, &outcome, path)?;
                    done.insert(job, outcome);
                }
                merged.push((entry.path(), lines));
            }
        }
        for (_, lines) in merged.iter().filter(|(_, lines)| !lines.is_empty()) {
            journal.append(lines)?;
        }
        // Not before their lines are safe.
        merged.iter().try_for_each(|(path, _)| std::fs::remove_file(path)).map_err(&error)?;
        Ok((journal, done))
    }

    /// Adds lines, and flushes them to the disk.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn append(&mut self, lines: &str) -> Result<(), Error> {
        let error = writing(&self.path);
        let begun = self.file.is_some();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::create(&self.path).map_err(&error)?),
        };
        let first = if begun { Ok(()) } else { file.write_all(self.fingerprint.as_bytes()) };
        let written = first.and_then(|()| file.write_all(lines.as_bytes()));
        written.and_then(|()| file.sync_data()).map_err(&error)
    }
}

/// The fingerprint of a journal, what is done of `jobs`, and the length of the lines that count.
fn read<O: DeserializeOwned>(
    file: &File,
    jobs: usize,
) -> io::Result<(Settings, BTreeMap<usize, O>, u64)> {
    let (mut reader, mut text) = (BufReader::new(file), vec![]);
    let mut next = |text: &mut Vec<u8>| {
        text.clear();
        let read = reader.read_until(b'\n', text)?;
        io::Result::Ok(text.ends_with(b"\n").then_some(read as u64))
    };
    let (mut done, mut good) = (BTreeMap::new(), next(&mut text)?.unwrap_or(0));
    let begun = serde_json::from_slice(&text).unwrap_or_default();
    while let Some(len) = next(&mut text)? {
        match serde_json::from_slice(&text) {
            Ok(Line { job, outcome }) if job < jobs => done.insert(job, outcome),
            _ => break,
        };
        good += len;
    }
    Ok((begun, done, good))
}

/// The first thing in which two fingerprints differ, in words.
pub(super) fn difference(begun: &Settings, now: &Settings) -> Option<String> {
    let value = |of: &Settings, name: &str| {
        let found = of.iter().find(|(other, _)| other == name);
        found.map_or("not there".into(), |(_, value)| format!("`{value}`"))
    };
    let mut names = now.iter().chain(begun).map(|(name, _)| name);
    let name = names.find(|name| value(begun, name) != value(now, name))?;
    Some(format!("{name} was {} and is {} now", value(begun, name), value(now, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(format: &str) -> Settings {
        [("version", "1"), ("format", format)].map(|(a, b)| (a.into(), b.into())).to_vec()
    }

    #[test]
    fn a_line_that_is_cut_short_counts_for_nothing_and_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let (path, output) = (folder.path().join("journal"), folder.path().join("out"));
        let open = || Journal::open::<f64>(&path, &settings("nvfp4"), &output, 10);
        let (mut journal, done) = open().unwrap();
        assert!(done.is_empty());
        let lines = [(3, 0.1), (1, 1e-300)].map(|(job, o)| line(job, &o, &path).unwrap());
        journal.append(&lines.concat()).unwrap();
        journal.append(&line(2, &5.0, &path).unwrap()[..10]).unwrap();
        drop(journal);
        let (mut journal, done) = open().unwrap();
        assert_eq!(done, [(1, 1e-300), (3, 0.1)].into());
        journal.append(&line(2, &7.0, &path).unwrap()).unwrap();
        drop(journal);
        assert_eq!(open().unwrap().1, [(1, 1e-300), (2, 7.0), (3, 0.1)].into());
    }

    #[test]
    fn another_fingerprint_is_refused_with_what_differs() {
        let folder = tempfile::tempdir().unwrap();
        let (path, output) = (folder.path().join("journal"), folder.path().join("out"));
        let (mut journal, _) = Journal::open::<u8>(&path, &settings("nvfp4"), &output, 1).unwrap();
        journal.append(&line(0, &7u8, &path).unwrap()).unwrap();
        let other = Journal::open::<u8>(&path, &settings("mxfp4"), &output, 1).unwrap_err();
        let said = other.to_string();
        assert!(said.contains("format was `nvfp4` and is `mxfp4` now"), "{said}");
        assert!(said.contains(".out.fp4-partial was begun with other"), "{said}");
        let fewer = settings("nvfp4")[..1].to_vec();
        let said = Journal::open::<u8>(&path, &fewer, &output, 1).unwrap_err().to_string();
        assert!(said.contains("format was `nvfp4` and is not there now"), "{said}");
    }
}
