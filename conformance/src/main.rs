//! The `fp4-conformance` command. Exit codes: 0 all equal, 1 something differs, 2 the check could
//! not be made (unreadable files, nothing compared).

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use fp4_conformance::report::Counts;
use fp4_conformance::vectors::{Folder, write_subset};
use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;

/// Does a backend return the contract's bits?
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Golden vector files.
    #[command(subcommand)]
    Vectors(Vectors),
}

#[derive(Subcommand)]
enum Vectors {
    /// Runs every vector file in a folder and compares bit for bit.
    Check {
        /// Folder of NAME.safetensors with NAME.json manifests.
        dir: PathBuf,
        /// The backend to check.
        #[arg(long, value_enum, default_value_t = BackendName::Reference)]
        backend: BackendName,
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

#[derive(Clone, Copy, ValueEnum)]
enum BackendName {
    /// The scalar reference.
    Reference,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Vectors(Vectors::Check { dir, backend }) => check(&dir, &backend.open()),
        Command::Vectors(Vectors::Subset { source, target, cases, without }) => {
            write_subset(&source, &target, &cases, &without).map_err(Into::into).map(|()| true)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

impl BackendName {
    fn open(self) -> Backend {
        match self {
            BackendName::Reference => Backend::new(Reference),
        }
    }
}

/// Prints one line for each file, as they are checked; true if nothing differs.
fn check(dir: &std::path::Path, backend: &Backend) -> anyhow::Result<bool> {
    let folder = Folder::open(dir)?;
    let mut counts = Counts::default();
    for (name, _) in folder.files() {
        let report = folder.check(name, backend)?;
        println!("{report}");
        counts.merge(&report.counts);
    }
    for name in folder.not_checked() {
        println!("{name}: not checked (no check covers this family)");
    }
    if counts.values == 0 {
        return Err(folder.nothing().into());
    }
    println!("vectors: {counts}");
    Ok(counts.differ == 0)
}
