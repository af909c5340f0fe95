//! Output that is whole or not there: [`quant_linear::atomic`], with what to do about errors.
//!
//! Before anything is written, [`check`] refuses a place that is taken (without `--force`; an empty
//! folder is not), that holds what is never replaced (a link, a pipe, a device), that is the input
//! under any name, or that overlaps the input's folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use quant_linear::atomic::{self, Kind};

use crate::report;

/// Checks that `output` may be written. `input_folders` are the real paths of a folder input and of
/// all folders in it.
///
/// # Errors
/// As the module says, each naming the path and what to do.
pub(crate) fn check(
    input: &Path,
    input_folders: &[PathBuf],
    output: &Path,
    wanted: Kind,
    force: bool,
) -> Result<()> {
    let shown = output.display();
    let name = output.file_name().with_context(|| {
        format!("the output `{shown}` names no file or folder; give a path with a name at its end")
    })?;
    let parent = atomic::parent(output);
    let real_parent = fs::canonicalize(parent).with_context(|| {
        format!("the folder {} of the output cannot be used; create it first", parent.display())
    })?;
    // First, for it may give the output its name back.
    atomic::sweep(parent);
    let real_input =
        fs::canonicalize(input).with_context(|| format!("reading {}", input.display()))?;
    let folder = !input_folders.is_empty();
    // The name itself, and what it leads to if it is a link.
    for place in [Some(real_parent.join(name)), fs::canonicalize(output).ok()] {
        let Some(place) = place else { continue };
        ensure!(
            place != real_input && !same_file(&place, &real_input),
            "the output {shown} is the input; choose another place"
        );
        ensure!(
            !input_folders.iter().any(|folder| place.starts_with(folder)),
            "the output {shown} lies inside the input {}; choose a place outside",
            input.display()
        );
        ensure!(
            !folder || !real_input.starts_with(&place),
            "the input {} lies inside the output {shown}; choose another place",
            input.display()
        );
    }
    let existing = wanted.replaceable(output)?;
    ensure!(
        force || existing.is_none() || wanted == Kind::Folder && is_empty(output),
        "the output {shown} exists already; remove it, choose another place, or pass --force to \
         replace it"
    );
    Ok(())
}

/// Checks that a file beside the output may be written: it is none of these files of the input, and
/// not there, or to be replaced.
///
/// # Errors
/// Each naming the path and what to do.
pub(crate) fn check_beside<'p>(
    path: &Path,
    mut inputs: impl Iterator<Item = &'p Path>,
    force: bool,
) -> Result<()> {
    let shown = path.display();
    let real = fs::canonicalize(path).ok();
    let input = inputs.any(|input| real.is_some() && fs::canonicalize(input).ok() == real);
    ensure!(
        !input,
        "{shown}, which goes with the output, is the config of the input; choose another name for \
        the output, or a folder"
    );
    ensure!(
        force || Kind::File.replaceable(path)?.is_none(),
        "{shown}, which goes with the output, exists already; remove it, choose another place, or \
        pass --force to replace it"
    );
    Ok(())
}

/// What the user should know who does not go on with what an earlier run has kept.
pub(crate) fn forgotten(output: &Path, resume: bool) -> Option<String> {
    let kept = atomic::kept(output).filter(|_| !resume)?;
    Some(format!(
        "{} holds what a run with --resume has done of this output: remove it, or go on with it by \
         --resume",
        kept.display()
    ))
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// True if both names lead to one file, by a hard link for example.
#[cfg(unix)]
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_: &Path, _: &Path) -> bool {
    false // canonical paths have been compared
}

/// What is left of an output that could not be written.
fn left(resume: bool) -> &'static str {
    match resume {
        true => "what is done is kept, and the same command goes on with it",
        false => "nothing is left behind",
    }
}

/// Why the output, which takes `needs` bytes, could not be written, with what to do on this command
/// line; `resume` if it is kept to be continued.
///
/// # Errors
/// An error of another kind.
pub(crate) fn told(
    error: quant_linear::Error,
    needs: u64,
    resume: bool,
) -> Result<anyhow::Error, quant_linear::Error> {
    match error {
        quant_linear::Error::Io { action: "writing", path, source } => {
            let (shown, left, needs) = (path.display(), left(resume), report::bytes(needs));
            let writing = format!(
                "writing {shown}; {left}: free some space, or choose another place (the output \
                needs {needs})"
            );
            Ok(anyhow::Error::new(source).context(writing))
        }
        quant_linear::Error::Io { action: "copying", path, source } => {
            let (shown, left) = (path.display(), left(resume));
            let copying = format!("copying {shown}; {left}: is the disk full?");
            Ok(anyhow::Error::new(source).context(copying))
        }
        quant_linear::Error::Occupied { .. } => {
            Ok(anyhow!("{error}, or pass --force to replace it"))
        }
        error => Err(error),
    }
}
