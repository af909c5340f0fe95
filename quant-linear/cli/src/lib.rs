//! The `fp4` command: quantize, inspect and compare checkpoints in FP4, and demonstrate exactness.
//!
//! | command | does | module |
//! |---|---|---|
//! | `fp4 quantize IN -o OUT --format F` | dense weights to FP4 | `quantize` |
//! | `fp4 calibrate MODEL --data FILE -o DIR` | what its layers are given, for `quantize --calib` | `calibrate` |
//! | `fp4 inspect PATH` | what a checkpoint holds | `inspect` |
//! | `fp4 compare A B` | how far two checkpoints are apart | `compare` |
//! | `fp4 convert IN OUT --to LAYOUT` | the same weights in another layout | `convert` |
//! | `fp4 dequantize IN -o OUT` | dense weights again | `dequantize` |
//! | `fp4 report A [B] -o PAGE` | the same and more as a page to look at | `html` |
//! | `fp4 verify PATH` | what is wrong with a quantized checkpoint, or looks wrong | `verify` |
//! | `fp4 demo`, or no command at all | every backend on a real sample | `demo` |
//!
//! Exit codes: 0 success; 1 the answer asked for is no (`compare --exact`, `compare --tolerance`,
//! `verify`, `demo`); 2 bad usage, bad input or an I/O error, with nothing half-written; 128 + n
//! where signal n ended the command, with nothing half-written either (`interrupt`). With
//! `--json` stdout carries one JSON object and nothing else; progress, logs and errors go to
//! stderr.
//!
//! A library for the sake of `fp4-mpi`, whose `quantize` takes the same options: what a program
//! could want of all this is in `quant_linear`.

#![forbid(unsafe_code)]

mod args;
#[cfg(feature = "calibrate")]
mod calibrate;
mod compare;
mod convert;
mod demo;
mod dequantize;
mod html;
mod inspect;
mod interrupt;
mod output;
mod progress;
pub mod quantize;
mod report;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use quant_linear::text;

/// FP4 checkpoints (MXFP4 and NVFP4) whose matmul gives the same bits everywhere.
#[derive(Debug, Parser)]
#[command(name = "fp4", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Quantize the linear weights of a checkpoint to FP4.
    Quantize(quantize::Args),
    /// See what the inputs of a dense model's layers are like, for a better quantization.
    #[cfg(feature = "calibrate")]
    Calibrate(calibrate::Args),
    /// Show the tensors, quantized layers and scales of a checkpoint.
    Inspect(inspect::Args),
    /// Measure how far two checkpoints are apart, tensor by tensor.
    Compare(compare::Args),
    /// Write the quantized layers of a checkpoint in another layout: no code or scale byte changes.
    Convert(convert::Args),
    /// Write the quantized layers of a checkpoint as dense weights.
    Dequantize(dequantize::Args),
    /// Write a page to look at: one checkpoint, or two against each other, layer by layer.
    Report(html::Args),
    /// Check a quantized checkpoint: what is broken, and what is legal and suspicious.
    Verify(verify::Args),
    /// Run a real sample through every backend and compare the bits (the default command).
    Demo(demo::Args),
}

impl Default for Command {
    fn default() -> Self {
        Command::Demo(demo::Args::default())
    }
}

impl Command {
    fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Quantize(args) => quantize::run_over(args, None),
            #[cfg(feature = "calibrate")]
            Command::Calibrate(args) => calibrate::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Compare(args) => compare::run(args),
            Command::Convert(args) => convert::run(args),
            Command::Dequantize(args) => dequantize::run(args),
            Command::Report(args) => html::run(args),
            Command::Verify(args) => verify::run(args),
            Command::Demo(args) => demo::run(args),
        }
    }
}

/// What the command does, with the arguments of the process.
pub fn main() -> ExitCode {
    report::start_log();
    let cli = Cli::try_parse().unwrap_or_else(|error| refuse(error));
    cli.command.unwrap_or_default().run().unwrap_or_else(|error| {
        report::complain(&error);
        ExitCode::from(2)
    })
}

/// Says what is wrong with the arguments, or gives the help that they ask for, and exits.
fn refuse(error: clap::Error) -> ! {
    // The error repeats an argument as it is, so it is asked for again with all of them escaped.
    let args = std::env::args_os().map(|arg| text::printable(&arg.to_string_lossy()).into_owned());
    match Cli::try_parse_from(args) {
        Err(escaped) => escaped.exit(),
        Ok(_) => {
            let plain = error.render().to_string();
            let _ = writeln!(std::io::stderr(), "{}", text::printable(&plain));
            std::process::exit(error.exit_code())
        }
    }
}
