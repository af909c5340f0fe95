//! The command, on whatever backends a program has: [`main_with`].
//!
//! Exit codes: 0 all equal, 1 something differs, 2 the check could not be made (unreadable files,
//! an unknown backend, nothing compared).

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::exchange::{Verification, answer, compact, export, is_exchange, verify};
use crate::files;
use crate::registry::{Known, changed_environment, with_reference};
use crate::report::Counts;
use crate::suite::case::Case;
use crate::suite::{Profile, Registered, Suite};
use crate::text::{Shown, shown_json};
use crate::vectors::{Folder, write_subset};
use anyhow::{Context, anyhow, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use fp4_core::backend::erased::Backend;
use indicatif::{ProgressBar, ProgressStyle};

/// Does a backend return the contract's bits?
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the suite: every backend alone, and every quantizer x matmul pair.
    Run(Run),
    /// Lists the cases of a profile with their clauses.
    List {
        /// Which cases.
        #[arg(long, default_value = "quick")]
        profile: String,
    },
    /// Golden vector files.
    #[command(subcommand)]
    Vectors(Vectors),
}

#[derive(Args, Default)]
struct Run {
    /// Which cases: quick (seconds), full (minutes), exhaustive, or a JSON file [default: quick].
    #[arg(long)]
    profile: Option<String>,
    /// A backend to check; may be given more than once. All that are available if absent.
    #[arg(long)]
    backend: Vec<String>,
    /// How to print the report.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Only cases whose id matches this glob.
    #[arg(long)]
    filter: Option<String>,
    /// What to ask of f32 outputs: the contract's bits, or an error within a stated bound.
    #[arg(long, value_enum, default_value_t = Grade::Exact)]
    grade: Grade,
    /// A JSON file of known failures: a list of objects with backend, cases (a glob) and reason.
    #[arg(long)]
    expected_failures: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// For CI systems.
    Junit,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Grade {
    /// Bit for bit.
    #[default]
    Exact,
    /// Within a bound; never called exact.
    Bounded,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownFailure {
    backend: String,
    cases: String,
    reason: String,
}

#[derive(Subcommand)]
enum Vectors {
    /// Runs every vector file in a folder and compares bit for bit.
    Check {
        /// Folder of NAME.safetensors with NAME.json manifests.
        dir: PathBuf,
        /// The backend to check.
        #[arg(long, default_value = "reference")]
        backend: String,
    },
    /// Writes cases of a profile as files: inputs, and the oracle's outputs.
    Export {
        /// The folder to write to.
        dir: PathBuf,
        /// Which cases.
        #[arg(long, default_value = "quick")]
        profile: String,
        /// Only cases whose id matches this glob.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Writes cases of a profile, with the oracle's outputs, as one file of bytes: for firmware.
    Compact {
        /// The file to write.
        file: PathBuf,
        /// Which cases.
        #[arg(long, default_value = "quick")]
        profile: String,
        /// Only cases whose id matches this glob.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Writes a backend's answers to exported files: what a program of your own would write.
    Answer {
        /// The exported folder.
        dir: PathBuf,
        /// The folder to write answers to.
        answers: PathBuf,
        /// The backend that answers.
        #[arg(long, default_value = "reference")]
        backend: String,
    },
    /// Compares answers with exported files, bit for bit.
    Verify {
        /// The exported folder.
        dir: PathBuf,
        /// The folder of answers.
        answers: PathBuf,
        /// Judge the answers that there are; without this, a case without an answer fails.
        #[arg(long)]
        partial: bool,
    },
    /// Writes some cases of a vector file as a smaller vector file.
    #[command(hide = true)]
    Subset {
        /// The vector file, without extension.
        source: PathBuf,
        /// The file to write, without extension.
        target: PathBuf,
        /// Cases to keep.
        #[arg(long, value_delimiter = ',', required = true)]
        cases: Vec<String>,
        /// Columns to leave out.
        #[arg(long, value_delimiter = ',')]
        without: Vec<String>,
    },
}

/// The whole of a test binary for backends: the command, on these backends and the reference.
/// Without arguments it runs the profile `quick`, as `cargo test` calls it.
///
/// ```no_run
/// # use fp4_core::reference::Reference as MyBackend;
/// use fp4_core::backend::erased::Backend;
///
/// fn main() -> std::process::ExitCode {
///     fp4_conformance::main_with([Backend::new(MyBackend)])
/// }
/// ```
///
/// A [`Registered`] instead of the bare backend declares tiles, bounds, threads and hardware.
pub fn main_with<B: Into<Known>>(backends: impl IntoIterator<Item = B>) -> ExitCode {
    let known = with_reference(backends.into_iter().map(Into::into));
    let command = Cli::parse().command.unwrap_or_else(|| Command::Run(Run::default()));
    match run(command, &known) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // One line, whatever names it repeats.
            eprintln!("error: {}", Shown(&format!("{error:#}")));
            ExitCode::from(2)
        }
    }
}

/// True if all is equal.
fn run(command: Command, known: &[Known]) -> anyhow::Result<bool> {
    match command {
        Command::Run(run) => run_suite(&run, known),
        Command::List { profile } => list(&profile),
        Command::Vectors(Vectors::Check { dir, backend }) => {
            check(&dir, open(&backend, known)?.backend())
        }
        Command::Vectors(Vectors::Export { dir, profile, filter }) => {
            export_cases(&dir, &profile, filter.as_deref())
        }
        Command::Vectors(Vectors::Compact { file, profile, filter }) => {
            write_compact(&file, &profile, filter.as_deref())
        }
        Command::Vectors(Vectors::Answer { dir, answers, backend }) => {
            let [answered, unsupported] = answer(&dir, &answers, open(&backend, known)?.backend())?;
            println!("answer: {answered} cases answered, {unsupported} unsupported");
            if answered == 0 {
                bail!("nothing was answered: the backend supports no case of the export");
            }
            Ok(true)
        }
        Command::Vectors(Vectors::Verify { dir, answers, partial }) => {
            verify_answers(&dir, &answers, partial)
        }
        Command::Vectors(Vectors::Subset { source, target, cases, without }) => {
            write_subset(&source, &target, &cases, &without)?;
            Ok(true)
        }
    }
}

/// A known backend by name.
fn open<'a>(name: &str, known: &'a [Known]) -> anyhow::Result<&'a Registered> {
    match known.iter().find(|known| known.name() == name) {
        Some(known) => {
            known.opened().map_err(|why| anyhow!("backend {name} is not available: {why}"))
        }
        None => {
            let names: Vec<_> = known.iter().map(Known::name).collect();
            bail!("no backend is called {name}; there are {}", names.join(", "))
        }
    }
}

fn profile(name: &str) -> anyhow::Result<Profile> {
    if let Some(profile) = Profile::named(name) {
        return Ok(profile);
    }
    let json = files::read(name.as_ref()).with_context(|| {
        format!("{name} is neither a file nor one of {}", Profile::NAMES.join(", "))
    })?;
    serde_json::from_slice(&json).with_context(|| format!("{name} is no profile"))
}

fn run_suite(run: &Run, known: &[Known]) -> anyhow::Result<bool> {
    let mut suite = Suite::new(profile(run.profile.as_deref().unwrap_or("quick"))?)
        .environment(changed_environment);
    let expected: Vec<KnownFailure> = match &run.expected_failures {
        None => Vec::new(),
        Some(path) => {
            serde_json::from_slice(&files::read(path).with_context(|| path.display().to_string())?)
                .with_context(|| format!("{} is no list of known failures", path.display()))?
        }
    };
    let backends = if run.backend.is_empty() {
        let mut available = Vec::new();
        for known in known {
            match known.opened() {
                Ok(registered) => available.push(registered),
                Err(why) => {
                    eprintln!("{} is not available, and not checked: {why}", known.name());
                }
            }
        }
        available
    } else {
        run.backend.iter().map(|name| open(name, known)).collect::<anyhow::Result<_>>()?
    };
    for registered in backends {
        let mut registered = registered.clone();
        for known in &expected {
            if known.backend == registered.name() {
                registered = registered.expect_failure(&known.cases, &known.reason)?;
            }
        }
        suite = suite.with(registered);
    }
    if let Some(filter) = &run.filter {
        suite = suite.matching(filter)?;
    }
    if run.grade == Grade::Bounded {
        suite = suite.bounded();
    }
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} cases, {elapsed} of {duration}")?;
    let bar = ProgressBar::no_length().with_style(style);
    let report = suite.run_with(|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    match run.format {
        Format::Text => println!("{report}"),
        Format::Json => println!("{}", shown_json(&report.to_json())),
        Format::Junit => print!("{}", report.to_junit()),
    }
    if report.counts().cases == 0 {
        bail!("nothing was compared: no case of the profile matches, or none is supported");
    }
    Ok(report.passed())
}

fn list(name: &str) -> anyhow::Result<bool> {
    for case in Suite::new(profile(name)?).cases() {
        println!("{} [{}]", case.id, case.clauses.join(" "));
    }
    Ok(true)
}

/// The cases of a profile whose id matches.
fn chosen(name: &str, filter: Option<&str>) -> anyhow::Result<Vec<Case>> {
    let mut suite = Suite::new(profile(name)?);
    if let Some(filter) = filter {
        suite = suite.matching(filter)?;
    }
    Ok(suite.cases())
}

fn write_compact(file: &Path, name: &str, filter: Option<&str>) -> anyhow::Result<bool> {
    let cases = chosen(name, filter)?;
    let (bytes, written) = compact(&cases)?;
    std::fs::write(file, &bytes).with_context(|| file.display().to_string())?;
    println!(
        "compact: {written} cases, {} bytes in {}; {} others have no compact form",
        bytes.len(),
        file.display(),
        cases.len() - written
    );
    Ok(true)
}

fn export_cases(dir: &Path, name: &str, filter: Option<&str>) -> anyhow::Result<bool> {
    let cases = chosen(name, filter)?;
    let exported = export(dir, &cases)?;
    println!(
        "export: {exported} cases in {}; {} others are not whole calls of one backend",
        dir.display(),
        cases.len() - exported
    );
    Ok(exported > 0)
}

fn verify_answers(dir: &Path, answers: &Path, partial: bool) -> anyhow::Result<bool> {
    let found = verify(dir, answers)?;
    let (Verification { report, counts, asked }, unanswered) = (&found, found.unanswered());
    print!("{report}");
    if unanswered > 0 {
        println!("partial: {unanswered} of {asked} cases are not answered");
    }
    println!("verify: {counts}");
    if unanswered > 0 && !partial && counts.differ == 0 {
        bail!(
            "{unanswered} of {asked} cases are not answered: answer them, or judge what there is with \
             --partial"
        );
    }
    Ok(counts.differ == 0)
}

/// Checks a backend against exported files: it answers into a scratch folder.
fn check_exported(dir: &Path, backend: &Backend) -> anyhow::Result<bool> {
    let scratch = tempfile::tempdir()?;
    let [_, unsupported] = answer(dir, scratch.path(), backend)?;
    let Verification { report, counts, .. } = verify(dir, scratch.path())?;
    println!("{report}unsupported: {unsupported} cases\nvectors: {counts}");
    Ok(counts.differ == 0)
}

/// Prints one line for each file, as they are checked; true if nothing differs.
fn check(dir: &Path, backend: &Backend) -> anyhow::Result<bool> {
    if is_exchange(dir) {
        return check_exported(dir, backend);
    }
    let folder = Folder::open(dir)?;
    let mut counts = Counts::default();
    for (name, _) in folder.files() {
        let report = folder.check(name, backend)?;
        println!("{report}");
        counts.merge(&report.counts);
    }
    for name in folder.not_checked() {
        println!("{}: not checked (no check covers this family)", Shown(name));
    }
    if counts.values == 0 {
        return Err(folder.nothing().into());
    }
    println!("vectors: {counts}");
    Ok(counts.differ == 0)
}
