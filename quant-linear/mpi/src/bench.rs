//! `fp4-mpi bench`: what the forms of a row-parallel layer cost, and the constants of a model.
//!
//! ```text
//! form      what is sent for an output                    what is computed
//! f32       4 bytes, all-reduced                          the rank's product, rounded; not exact
//! narrow    8 bytes, all-reduced, and 3 a row to agree    the rank's exact sums
//! gathered  8 bytes, scattered; 4 of finished outputs     the same, each rounded on one rank
//! wide      112 bytes, all-reduced, and 3 a row           the same in superaccumulators
//! ```
//!
//! Times are the median of all repetitions of the slowest rank, of the whole layer: activations
//! quantized, multiplied, reduced, rounded. The model of an all-reduce is `alpha + beta * bytes`,
//! by least squares over sizes.

use std::time::Instant;

use anyhow::{Result, ensure};
use fp4_core::Format;
use fp4_mpi::Mpi;
use quant_linear::sharded::{Communicator, Kept, RowParallel, RowShard};
use quant_linear::{DenseOptions, QuantLinear};

use crate::check::values;

/// Arguments of `fp4-mpi bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Output features.
    #[arg(long, default_value_t = 4096)]
    n: usize,
    /// Input features.
    #[arg(long, default_value_t = 4096)]
    k: usize,
    /// Rows.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64])]
    rows: Vec<usize>,
    /// Repetitions of each.
    #[arg(long, default_value_t = 15)]
    times: usize,
    /// Outputs that are reduced at a time [default: the layers' own].
    #[arg(long)]
    block: Option<usize>,
    /// Without the wide form.
    #[arg(long)]
    no_wide: bool,
}

/// Seconds of `f`, of the slowest rank: the median of the repetitions, the first left out.
fn time(comm: &Mpi, times: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut all = Vec::new();
    for at in 0..=times {
        comm.max(&mut [0])?;
        let begun = Instant::now();
        f()?;
        let nanos = begun.elapsed().as_nanos() as u64;
        let each = comm.gather(&nanos.to_le_bytes(), &vec![8; comm.size()])?;
        let slowest = each.as_chunks().0.iter().map(|&n| u64::from_le_bytes(n)).max();
        if at > 0 {
            all.push(slowest.unwrap_or(nanos));
        }
    }
    all.sort_unstable();
    Ok(all[all.len() / 2] as f64 / 1e9)
}

/// Runs the measurement.
pub(crate) fn run(comm: &Mpi, args: &Args) -> Result<bool> {
    ensure!(args.times > 0, "--times 0 measures nothing; give at least 1");
    let (rank, ranks, n, k) = (comm.rank(), comm.size(), args.n, args.k);
    let say = |line: String| {
        if rank == 0 {
            println!("{line}");
        }
    };
    say(format!(
        "{ranks} ranks on one machine, {n} x {k}; times of the slowest rank in us, median of {}",
        args.times
    ));
    say("| format | rows | form | payload bytes an output | time | over f32 |".into());
    say("|---|---|---|---|---|---|".into());
    for format in Format::ALL {
        let options = DenseOptions::new(format);
        let layer = QuantLinear::from_dense(&values(n * k, 1)[..], n, k, &options)?;
        let shard = RowShard::even(&layer, rank, ranks)?;
        // The same product with its sums rounded on each rank: alpha and bias come after them.
        let mut parts = shard.parts.clone();
        parts.weight_global_scale = 1.0;
        parts.activation_global_scale = Some(layer.activation_global_scale());
        let floats = QuantLinear::from_parts(parts)?;
        floats.prepare()?;
        let mut exact = match args.block {
            Some(block) => RowParallel::with_block(comm, Ok(shard), None, block)?,
            None => RowParallel::new(comm, Ok(shard), None)?,
        };
        for &rows in &args.rows {
            let x = values(rows * exact.columns().len(), 3 + rank);
            let mut y = vec![0f32; rows * n];
            let f32_time = time(comm, args.times, || {
                floats.forward_into((&x[..]).into(), rows, (&mut y[..]).into())?;
                let alpha = layer.weight_global_scale();
                let sums = comm.sum_floats(y.clone())?;
                y.iter_mut().zip(&sums).for_each(|(y, sum)| *y = sum * alpha);
                Ok(())
            })?;
            let row = |form: &str, bytes: f64, seconds: f64| {
                say(format!(
                    "| {format} | {rows} | {form} | {bytes:.2} | {:.0} | {:.2} |",
                    seconds * 1e6,
                    seconds / f32_time
                ));
            };
            row("f32", 4.0, f32_time);
            for wide in [false, true] {
                if wide && args.no_wide {
                    continue;
                }
                exact.set_wide(wide);
                let mut sent = Default::default();
                let took = time(comm, args.times, || {
                    sent = exact.forward_into((&x[..]).into(), rows, (&mut y[..]).into())?;
                    Ok(())
                })?;
                let bytes = (8 * sent.words + sent.agreed) as f64 / (rows * n) as f64;
                ensure!(wide == (sent.narrow == 0), "rows went in another form: {sent:?}");
                row(if wide { "wide" } else { "narrow" }, bytes, took);
            }
            exact.set_wide(false);
            let took = time(comm, args.times, || {
                exact.forward_gathered_into((&x[..]).into(), rows, (&mut y[..]).into())?;
                Ok(())
            })?;
            row("narrow, scattered and gathered", 12.0, took);
        }
    }
    model(comm, args.times, say)?;
    Ok(true)
}

/// Measures all-reduces of several sizes and fits `alpha + beta * bytes`.
fn model(comm: &Mpi, times: usize, say: impl Fn(String)) -> Result<()> {
    let mut points = Vec::new();
    for words in [1usize, 512, 4096, 32 << 10, 128 << 10, 256 << 10] {
        let seconds = time(comm, times, || {
            let sum = comm.start_sum(vec![1; words], Kept::All)?;
            comm.finish_sum(sum)?;
            Ok(())
        })?;
        points.push((8.0 * words as f64, seconds));
    }
    // By least squares of relative errors: small messages count as large ones do.
    let sum = |f: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>();
    let (s, x) = (sum(&|p| 1.0 / (p.1 * p.1)), sum(&|p| p.0 / (p.1 * p.1)));
    let (xx, y) = (sum(&|p| p.0 * p.0 / (p.1 * p.1)), sum(&|p| 1.0 / p.1));
    let xy = sum(&|p| p.0 / p.1);
    let beta = (s * xy - x * y) / (s * xx - x * x);
    let alpha = (y - beta * x) / s;
    say(format!(
        "all-reduce of int64: alpha {:.1} us, beta {:.3} ns a byte ({:.2} GB/s)",
        alpha * 1e6,
        beta * 1e9,
        1e-9 / beta
    ));
    for (bytes, seconds) in &points {
        say(format!(
            "  {bytes:.0} bytes: measured {:.1} us, model {:.1} us",
            seconds * 1e6,
            (alpha + beta * bytes) * 1e6
        ));
    }
    Ok(())
}
