//! `fp4-mpi check`: are the outputs of split layers those of one process, on these ranks?
//!
//! ```text
//! for each format, encoding of activations, transform, data, number of rows, output type:
//!     column-parallel, gathered
//!     row-parallel: all-reduced; scattered; scattered and gathered; all in the wide form too
//! each rank compares all it has with the whole layer, which it computes too
//! ```
//!
//! The ranks take turns with the CPU's instruction sets and the scalar reference.

use anyhow::{Result, ensure};
use fp4_backend_cpu_simd::{CpuSimd, Isa};
use fp4_core::backend::erased::Backend;
use fp4_core::{FloatType, FloatVec, Format, PackedMatrix};
use fp4_mpi::Mpi;
use quant_linear::sharded::{
    ColumnParallel, ColumnShard, Communicator, RowParallel, RowShard, even, unit,
};
use quant_linear::{
    ActivationEncoding, Backends, DenseOptions, Parts, QuantLinear, Runtime, StoredTransform,
};

use crate::fault::RoundsPartials;

/// Arguments of `fp4-mpi check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Input features: a multiple of 128.
    #[arg(long, default_value_t = 640)]
    k: usize,
    /// Output features.
    #[arg(long, default_value_t = 70)]
    n: usize,
    /// Shards of very different lengths.
    #[arg(long)]
    uneven: bool,
    /// A control variable of the MPI library and its value, which it must have: that an algorithm
    /// is forced by this name.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    expect: Vec<(String, i32)>,
    /// Give the last rank a backend that rounds its partial sums: the check must fail.
    #[arg(long)]
    plant_fault: bool,
    /// This rank kills itself between two forwards of a layer: the others must end.
    #[arg(long, value_name = "RANK")]
    kill_rank: Option<usize>,
    /// This rank panics between two forwards of a layer: the others must end.
    #[arg(long, value_name = "RANK")]
    panic_rank: Option<usize>,
    /// This rank sends less than the others: MPI's error must come back.
    #[arg(long, value_name = "RANK")]
    short_rank: Option<usize>,
    /// This rank comes too late: the others must end.
    #[arg(long, value_name = "RANK")]
    late_rank: Option<usize>,
    /// This rank has a layer of another shape: all must say so.
    #[arg(long, value_name = "RANK")]
    other_rank: Option<usize>,
}

fn parse_variable(text: &str) -> Result<(String, i32), String> {
    let (name, value) = text.split_once('=').ok_or("give NAME=VALUE")?;
    let value = value.parse().map_err(|_| format!("`{value}` is no whole number"))?;
    Ok((name.into(), value))
}

/// A digest of sums of f32 of all ranks, which tells orders of addition apart, on this rank.
fn order_of_floats(comm: &Mpi) -> Result<u64> {
    let own = values(4096, 7 + comm.rank() * 13);
    let own = own.iter().enumerate().map(|(i, v)| v * 10f32.powi((i % 7) as i32 - 3)).collect();
    let sums = comm.sum_floats(own)?;
    let hash = |hash: u64, sum: &f32| {
        (hash ^ u64::from(sum.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
    };
    Ok(sums.iter().fold(0xcbf2_9ce4_8422_2325, hash))
}

/// What has been compared on this rank.
#[derive(Debug, Default)]
struct Tally {
    compared: u64,
    differ: u64,
    narrow: u64,
    wide: u64,
}

impl Tally {
    fn compare(&mut self, got: &FloatVec, expected: &FloatVec) {
        let each = expected.float_type().bytes();
        let (got, expected) = (got.to_le_bytes(), expected.to_le_bytes());
        let pairs = got.chunks(each).zip(expected.chunks(each));
        self.differ += pairs.filter(|(got, expected)| got != expected).count() as u64;
        self.compared += (expected.len() / each) as u64;
    }

    /// Of all ranks.
    fn summed(&self, comm: &Mpi) -> Result<Tally> {
        let Tally { compared, differ, narrow, wide } = *self;
        let words = [compared, differ, narrow, wide].map(|n| n as i64).to_vec();
        let sum = comm.start_sum(words, quant_linear::sharded::Kept::All)?;
        let all = comm.finish_sum(sum)?;
        let at = |i: usize| all.get(i).copied().unwrap_or(0) as u64;
        Ok(Tally { compared: at(0), differ: at(1), narrow: at(2), wide: at(3) })
    }
}

/// The backends of a rank: another than its neighbour's.
fn runtime(rank: usize) -> Runtime {
    let sets: Vec<Isa> = Isa::available().collect();
    let backends = match rank % 3 {
        0 => Backends::available(),
        1 => match CpuSimd::with_isa(sets[rank / 3 % sets.len()]) {
            Ok(cpu) => Backends::reference().with(Backend::resident(cpu)),
            Err(_) => Backends::reference(),
        },
        _ => Backends::reference(),
    };
    Runtime::new(backends)
}

/// Deterministic values, the same on every rank.
pub(crate) fn values(len: usize, seed: usize) -> Vec<f32> {
    let wave = |i: usize| ((i * 37 + seed * 101) as f32 * 0.173).sin();
    (0..len).map(|i| wave(i) * [1.0, 0.03, 7.0, 0.4][i / 32 % 4]).collect()
}

/// The parts of a layer.
fn parts(layer: &QuantLinear) -> Result<Parts> {
    Ok(Parts {
        weight: layer.weight()?,
        transform: layer.transform().cloned(),
        weight_global_scale: layer.weight_global_scale(),
        activation_global_scale: Some(layer.activation_global_scale()),
        activation_scale_scale: Some(layer.activation_scale_scale()),
        activations: layer.activations(),
    })
}

/// Layers of every kind: formats, encodings of activations, a transform, scales far apart.
fn layers(n: usize, k: usize) -> Result<Vec<QuantLinear>> {
    let mut all = Vec::new();
    for format in Format::ALL {
        for activations in ActivationEncoding::ALL {
            if format == Format::MxFp4 && activations == ActivationEncoding::OwnRowScales {
                continue;
            }
            for transform in [false, true] {
                let options = DenseOptions {
                    activations,
                    transform: transform.then(|| StoredTransform::hadamard(32)).transpose()?,
                    ..DenseOptions::new(format)
                };
                let layer = QuantLinear::from_dense(&values(n * k, 1)[..], n, k, &options)?;
                all.push(layer.with_bias(&values(n, 2))?);
            }
        }
    }
    // Bytes of scales over their whole range: no i64 holds these sums; and one NaN, on one rank.
    for nan in [false, true] {
        let base = parts(&all[0])?;
        let shape = base.weight.shape();
        let (codes, mut scales) = base.weight.clone().into_parts();
        scales.iter_mut().enumerate().for_each(|(i, s)| *s = (i * 89 % 251) as u8);
        if let Some(scale) = scales.get_mut(shape.row_groups() * 2 - 1).filter(|_| nan) {
            *scale = 0xFF;
        }
        let weight = PackedMatrix::new(shape, codes, scales)?;
        all.push(QuantLinear::from_parts(Parts { weight, ..base })?);
    }
    Ok(all)
}

/// What ends this rank on purpose.
fn faulty(args: &Args, rank: usize) -> Result<()> {
    if args.kill_rank == Some(rank) {
        eprintln!("rank {rank} kills itself between forwards");
        let own = std::process::id().to_string();
        std::process::Command::new("kill").args(["-9", &own]).status()?;
    }
    assert!(args.panic_rank != Some(rank), "rank {rank} panics on purpose");
    Ok(())
}

/// What comes before all layers: settings that the library must have, and faults on purpose.
fn before(comm: &Mpi, args: &Args) -> Result<()> {
    let rank = comm.rank();
    for (name, value) in &args.expect {
        let got = fp4_mpi::control_variable(name).map_err(anyhow::Error::msg)?;
        ensure!(got == *value, "the control variable `{name}` is {got}, expected {value}");
    }
    // What MPI cannot count is refused by all ranks before anything is sent, and the next works.
    let refused = comm.gather(&[], &vec![usize::MAX; comm.size()]);
    let told = refused.as_ref().is_err_and(|error| error.to_string().contains("take fewer rows"));
    ensure!(told, "more values than MPI counts: {refused:?}, expected an error");
    let mut after = [rank as u8];
    comm.max(&mut after)?;
    ensure!(usize::from(after[0]) == (comm.size() - 1) & 255, "a maximum after it: {after:?}");
    if let Some(short) = args.short_rank {
        let len = if short == rank { 4 } else { 4096 };
        comm.max(&mut vec![0; len])?;
    }
    if args.late_rank == Some(rank) {
        std::thread::sleep(std::time::Duration::from_secs(3600));
    }
    Ok(())
}

/// Runs the check; true if nothing differs.
pub(crate) fn run(comm: &Mpi, args: &Args) -> Result<bool> {
    ensure!(
        args.k.is_multiple_of(128),
        "--k {} is not a multiple of 128; give one that is",
        args.k
    );
    let (rank, ranks, n, k) = (comm.rank(), comm.size(), args.n, args.k);
    before(comm, args)?;
    let n = n + usize::from(args.other_rank == Some(rank));
    let own = match args.plant_fault && rank + 1 == ranks {
        true => Runtime::new(Backends::available().with(Backend::matmul_only(RoundsPartials))),
        false => runtime(rank),
    };
    let mut tally = Tally::default();
    for (at, layer) in layers(n, k)?.into_iter().enumerate() {
        let whole = parts(&layer)?;
        let columns = match args.uneven {
            false => even(k, unit(&whole), rank, ranks),
            // The last has most of all, the first little or nothing.
            true => {
                let units = k / unit(&whole);
                let cut = |rank: usize| units * rank.pow(3) / ranks.pow(3) * unit(&whole);
                cut(rank)..cut(rank + 1)
            }
        };
        let shard = RowShard::of(&whole, layer.bias(), columns);
        let mut by_rows = RowParallel::with_block(comm, shard, Some(&own), 48)?;
        let shard = ColumnShard::even(&layer, rank, ranks);
        let by_columns = ColumnParallel::new(comm, shard, Some(&own))?;
        for rows in [0, 1, 2, 19] {
            let ty = FloatType::ALL[(at + rows) % 3];
            let x = FloatVec::F32(values(rows * k, 3 + rows)).converted(ty);
            let mut expected = FloatVec::zeros(ty, rows * n);
            layer.forward_into(x.as_slice(), rows, expected.as_mut_slice())?;

            // In the middle of the second layer.
            if at == 1 && rows == 2 {
                faulty(args, rank)?;
            }
            let mut y = FloatVec::zeros(ty, rows * n);
            by_columns.forward_into(x.as_slice(), rows, y.as_mut_slice())?;
            tally.compare(&y, &expected);
            for wide in [false, true] {
                by_rows.set_wide(wide);
                let mut y = FloatVec::zeros(ty, rows * n);
                let sent = by_rows.forward_whole_into(x.as_slice(), rows, y.as_mut_slice())?;
                tally.compare(&y, &expected);
                tally.narrow += sent.narrow as u64;
                tally.wide += sent.wide as u64;

                let bytes = x.to_le_bytes();
                let (each, own) = (ty.bytes(), by_rows.columns());
                let own_x: Vec<u8> = (0..rows)
                    .flat_map(|i| &bytes[(i * k + own.start) * each..(i * k + own.end) * each])
                    .copied()
                    .collect();
                let own_x = FloatVec::from_le_bytes(ty, &own_x).unwrap_or_default();
                let mut y = FloatVec::zeros(ty, rows * n);
                by_rows.forward_gathered_into(own_x.as_slice(), rows, y.as_mut_slice())?;
                tally.compare(&y, &expected);

                let kept = by_rows.own_rows(rows);
                let mut part = FloatVec::zeros(ty, kept.len() * n);
                let out = part.as_mut_slice();
                by_rows.forward_own_into(own_x.as_slice(), rows, out)?;
                let bytes = expected.to_le_bytes();
                let bytes = &bytes[kept.start * n * each..kept.end * n * each];
                let expected = FloatVec::from_le_bytes(ty, bytes).unwrap_or_default();
                tally.compare(&part, &expected);
            }
        }
    }
    let Tally { compared, differ, narrow, wide } = tally.summed(comm)?;
    let floats = order_of_floats(comm)?;
    if rank == 0 {
        println!("floats: sums of the same values have the digest {floats:016x}");
        println!(
            "check: {ranks} ranks, {compared} outputs compared, {differ} differ; rows sent \
             {narrow} narrow, {wide} wide"
        );
    }
    Ok(compared > 0 && differ == 0)
}
