//! The `fp4-mpi` command: what `mpirun` starts on every rank.

#![deny(unsafe_code)]

mod bench;
mod check;
mod fault;
mod model;
mod split;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use fp4_mpi::Mpi;
use mpi::environment::{Threading, initialize_with_threading};
use quant_linear::sharded::Communicator;

/// FP4 layers and checkpoints over MPI, with the bits of one process.
#[derive(Debug, Parser)]
#[command(name = "fp4-mpi", version)]
struct Args {
    /// Seconds that a rank waits for the others before it ends with an error [default: 120, and a
    /// day for `quantize`, whose ranks wait for the slowest].
    #[arg(long, global = true, value_name = "SECONDS")]
    limit: Option<u64>,
    /// Add by MPI_Allreduce and MPI_Reduce_scatter, which wait, instead of their immediate forms.
    #[arg(long, global = true)]
    blocking: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Compare layers that are split over the ranks with whole ones, bit for bit.
    Check(check::Args),
    /// Quantize a checkpoint by all ranks together: the options and the bytes of `fp4 quantize`.
    Quantize(Box<fp4_cli::quantize::Args>),
    /// Time and bytes of a row-parallel layer: narrow, wide, and f32 sums of rounded parts.
    Bench(bench::Args),
    /// A whole model split over the ranks, beside one process and rounded parts.
    Model(model::Args),
}

fn run(comm: &Arc<Mpi>, args: &Args) -> Result<bool> {
    match &args.command {
        Command::Check(check) => check::run(comm, check),
        Command::Quantize(quantize) => {
            let code = fp4_cli::quantize::run_over(quantize, Some(comm))?;
            Ok(code == ExitCode::SUCCESS)
        }
        Command::Bench(bench) => bench::run(comm, bench),
        Command::Model(model) => model::run(comm, model),
    }
}

fn main() -> Result<ExitCode> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("error")).init();
    // Before MPI: help and wrong arguments need none.
    let args = Args::parse();
    let started = initialize_with_threading(Threading::Funneled);
    let (universe, level) = started.context("MPI cannot be started twice in one process")?;
    ensure!(
        level >= Threading::Funneled,
        "this MPI offers {level:?}, expected MPI_THREAD_FUNNELED or more, because layers compute on \
         several threads; take an MPI that was built with threads"
    );
    fp4_mpi::return_errors(&universe.world());
    let limit = args.limit.unwrap_or(match args.command {
        Command::Quantize(_) => 24 * 60 * 60,
        _ => 120,
    });
    let mut comm = Mpi::new(&universe.world()).with_limit(Duration::from_secs(limit));
    if args.blocking {
        comm = comm.blocking();
    }
    let comm = Arc::new(comm);
    // A rank that panics must end the others too. It has said why.
    let ended = catch_unwind(AssertUnwindSafe(|| run(&comm, &args)));
    let ended = ended.unwrap_or_else(|_| Err(anyhow!("it has panicked; report this")));
    match ended {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(error) => {
            // In one piece: the ranks share a terminal.
            let said = format!("fp4-mpi: rank {} of {}: {error:#}\n", comm.rank(), comm.size());
            let _ = std::io::stderr().write_all(said.as_bytes());
            // All may have the same to say: a moment for them to say it.
            std::thread::sleep(Duration::from_millis(200));
            fp4_mpi::abort(&comm, 2)
        }
    }
}
