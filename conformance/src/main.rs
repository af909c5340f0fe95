//! The `fp4-conformance` command. Exit codes: 0 all equal, 1 something differs, 2 the check could
//! not be made (unreadable files, an unknown backend, nothing compared).

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use fp4_conformance::exchange::{Verification, answer, export, is_exchange, verify};
use fp4_conformance::registry::{changed_environment, known};
use fp4_conformance::report::Counts;
use fp4_conformance::suite::{Profile, Registered, Suite};
use fp4_conformance::text::{Shown, shown_json};
use fp4_conformance::vectors::{Folder, write_subset};
use fp4_core::backend::erased::Backend;
use indicatif::{ProgressBar, ProgressStyle};

/// Does a backend return the contract's bits?
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
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

#[derive(Args)]
struct Run {
    /// Which cases: quick (seconds), full (minutes), exhaustive, or a JSON file.
    #[arg(long, default_value = "quick")]
    profile: String,
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

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For CI systems.
    Junit,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Grade {
    /// Bit for bit.
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

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(run) => run_suite(&run),
        Command::List { profile } => list(&profile),
        Command::Vectors(Vectors::Check { dir, backend }) => {
            open(&backend).and_then(|(backend, _)| check(&dir, &backend))
        }
        Command::Vectors(Vectors::Export { dir, profile, filter }) => {
            export_cases(&dir, &profile, filter.as_deref())
        }
        Command::Vectors(Vectors::Answer { dir, answers, backend }) => open(&backend)
            .and_then(|(backend, _)| Ok(answer(&dir, &answers, &backend)?))
            .and_then(|[answered, unsupported]| {
                println!("answer: {answered} cases answered, {unsupported} unsupported");
                if answered == 0 {
                    bail!("nothing was answered: the backend supports no case of the export");
                }
                Ok(true)
            }),
        Command::Vectors(Vectors::Verify { dir, answers, partial }) => {
            verify_answers(&dir, &answers, partial)
        }
        Command::Vectors(Vectors::Subset { source, target, cases, without }) => {
            write_subset(&source, &target, &cases, &without).map_err(Into::into).map(|()| true)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // One line, whatever names it repeats.
            eprintln!("error: {}", Shown(&format!("{error:#}")));
            ExitCode::from(2)
        }
    }
}

/// A known backend by name.
fn open(name: &str) -> anyhow::Result<(Backend, Registered)> {
    let mut names = Vec::new();
    for (known, opened) in known() {
        if known == name {
            let registered =
                opened.map_err(|why| anyhow::anyhow!("backend {name} is not available: {why}"))?;
            return Ok((registered.backend().clone(), registered));
        }
        names.push(known);
    }
    bail!("no backend is called {name}; there are {}", names.join(", "))
}

fn profile(name: &str) -> anyhow::Result<Profile> {
    if let Some(profile) = Profile::named(name) {
        return Ok(profile);
    }
    let json = std::fs::read(name).with_context(|| {
        format!("{name} is neither a file nor one of {}", Profile::NAMES.join(", "))
    })?;
    serde_json::from_slice(&json).with_context(|| format!("{name} is no profile"))
}

fn run_suite(run: &Run) -> anyhow::Result<bool> {
    let mut suite = Suite::new(profile(&run.profile)?).environment(changed_environment);
    let expected: Vec<KnownFailure> = match &run.expected_failures {
        None => Vec::new(),
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)
            .with_context(|| format!("{} is no list of known failures", path.display()))?,
    };
    let backends = if run.backend.is_empty() {
        let mut available = Vec::new();
        for (name, opened) in known() {
            match opened {
                Ok(registered) => available.push(registered),
                Err(why) => eprintln!("{name} is not available, and not checked: {why}"),
            }
        }
        available
    } else {
        let open = |name: &String| Ok(open(name)?.1);
        run.backend.iter().map(open).collect::<anyhow::Result<_>>()?
    };
    for mut registered in backends {
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

fn export_cases(dir: &Path, name: &str, filter: Option<&str>) -> anyhow::Result<bool> {
    let mut suite = Suite::new(profile(name)?);
    if let Some(filter) = filter {
        suite = suite.matching(filter)?;
    }
    let cases = suite.cases();
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
