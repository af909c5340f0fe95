//! What the kernels reach on a device: one JSON object a line, for `bench/run.sh` to put in a
//! table.
//!
//! ```text
//! cargo bench -p fp4-backend-cuda --bench gpu -- [--small] [--device INDEX] [--filter TEXT]
//! ```
//!
//! Operands lie in device memory; a time is the best of five batches of calls, each batch ended by
//! one synchronization. The calls, eight at least, are captured in a graph and replayed, so that
//! what the host takes for a launch does not count; `bench/peers.py` times the others in the same
//! way. Weights of the decode rows are taken in turn from several copies that together exceed any
//! L2 cache.
//!
//! Weights are prepared before the clock runs: on Hopper that folds them to int8. The rows "packed"
//! start from a packed weight, which each call folds, and from activations, which it quantizes.
//! Rows "few" have 17 to 128 rows of activations, which each call quantizes, and weights taken in
//! turn as those of decode. `tiles` of a row are those that another kernel had to redo, and all.
//! Rows "mxint8 mxfp4" and "mxint8 nvfp4" have MXINT8 activations; by MXFP4 on Hopper every call
//! folds them.
//!
//! Every result is checked against the reference, bit for bit on sampled rows and columns, before
//! it is timed; and all of it once more after the timed replays, which find it overwritten.
//! `--small` shrinks everything to what the emulator does in seconds: its times mean nothing, and
//! the lines say so. On Hopper it forces the kernel on packed weights for few rows by MXFP4, which
//! so small a product would not get. Not yet run on hardware.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use cudarc::driver::CudaContext;
use fp4_backend_cuda::{Cuda, CudaOperand, CudaTensor, Graph, MatmulKernel};
use fp4_core::backend::{Resident, Sink, Source};
use fp4_core::reference::{self, Reference};
use fp4_core::{
    Encoding, Error, FloatSlice, FloatSliceMut, FloatType, Format, Matmul, PackedMatrix,
    PackedView, Product, QuantSpec, QuantizeInput, Transform, bf16, hadamard,
};
use serde_json::{Value, json};

/// How values are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    /// Standard normal.
    Gaussian,
    /// Normal, with one channel in 100 times 30.
    Outliers,
}

/// splitmix64 (Steele, Lea and Flood, 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Irwin-Hall: twelve 16-bit uniforms, enough of a normal for a benchmark, and quick.
    fn gauss(&mut self) -> f32 {
        let sum: u64 = (0..3)
            .map(|_| {
                let z = self.next();
                (z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48)
            })
            .sum();
        (sum as f32 - 6.0 * 65535.0) / 65536.0
    }
}

fn values(seed: u64, data: Data, rows: usize, k: usize) -> Vec<bf16> {
    let mut rng = Rng(seed);
    let mut x = Vec::with_capacity(rows * k);
    for _ in 0..rows {
        for channel in 0..k {
            let outlier = data == Data::Outliers && channel % 100 == 7;
            x.push(bf16::from_f32(rng.gauss() * if outlier { 30.0 } else { 1.0 }));
        }
    }
    x
}

/// What is done before the clock runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    /// The weight is prepared and the activations are quantized.
    Both,
    /// The weight is prepared; each call quantizes the activations.
    Weight,
    /// Neither: each call also begins with a weight that is not folded.
    Neither,
}

/// Calls recorded to be timed.
struct Recorded {
    graph: Graph,
    calls: usize,
}

/// Calls of a graph at least, so that launching it counts little.
const GRAPH_CALLS: usize = 8;

impl Recorded {
    /// Records `call(0)`, .., `call(different - 1)` in turn.
    fn new(
        cuda: &Cuda,
        small: bool,
        different: usize,
        mut call: impl FnMut(usize) -> Result<(), Error>,
    ) -> Result<Self> {
        let calls = if small { different } else { different.max(GRAPH_CALLS) };
        let mut all = || (0..calls).try_for_each(|i| call(i % different));
        all()?; // what a capture cannot do: growing buffers, loading kernels
        Ok(Recorded { graph: cuda.capture(all)?, calls })
    }

    /// Seconds of one call: the best of five batches of replays.
    fn time(&self, cuda: &Cuda, small: bool) -> Result<f64> {
        let batch = |replays: usize| -> Result<f64> {
            cuda.synchronize()?;
            let start = Instant::now();
            for _ in 0..replays {
                self.graph.replay()?;
            }
            cuda.synchronize()?;
            Ok(start.elapsed().as_secs_f64() / replays as f64)
        };
        let calls = self.calls as f64;
        if small {
            return Ok(batch(1)? / calls);
        }
        let replays = ((0.1 / batch(3)?) as usize).clamp(5, 2000);
        let mut batches = (0..5).map(|_| batch(replays));
        let best = batches.try_fold(f64::INFINITY, |best, t| t.map(|t| best.min(t)))?;
        Ok(best / calls)
    }
}

struct Bench {
    cuda: Cuda,
    small: bool,
    filter: Option<String>,
    rows: usize,
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        self.filter.as_deref().is_none_or(|text| name.contains(text))
    }

    fn hopper(&self) -> bool {
        self.cuda.device().compute_capability == 90
    }

    fn print(&mut self, name: &str, mut row: Value) {
        row["row"] = json!(name);
        row["emulated"] = json!(self.small);
        self.rows += 1;
        println!("{row}");
    }

    /// Values on the device, quantized: the operand, and how it was made.
    fn operand(&self, x: &[bf16], spec: &QuantSpec, rows: usize, k: usize) -> Result<CudaOperand> {
        let tensor = self.tensor(x)?;
        let mut operand = self.cuda.empty_operand()?;
        let source = Source::Resident(&tensor);
        self.cuda.quantize_resident(source, [rows, k], spec, None, &mut operand, None)?;
        Ok(operand)
    }

    fn tensor(&self, x: &[bf16]) -> Result<CudaTensor> {
        let mut tensor = self.cuda.empty_tensor()?;
        self.cuda.upload(FloatSlice::from(x), &mut tensor)?;
        Ok(tensor)
    }

    fn exported(&self, operand: &CudaOperand) -> Result<PackedMatrix> {
        let mut packed = PackedMatrix::zeros(operand.shape());
        self.cuda.export(operand, &mut packed.view_mut())?;
        Ok(packed)
    }

    /// One product: checked, timed, checked again. `copies` of the weight are used in turn.
    fn matmul(
        &mut self,
        name: &str,
        product: Product,
        data: Data,
        [m, n, k]: [usize; 3],
        copies: usize,
        ready: Ready,
    ) -> Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let mut cuda = self.cuda.clone().with_folded_weights(ready != Ready::Neither);
        if self.small && ready == Ready::Weight && product.b == Format::MxFp4 && self.hopper() {
            cuda = cuda.with_matmul_kernel(MatmulKernel::WgmmaRs { ranges: 0 });
        }
        let x = values(1, data, m, k);
        let spec = QuantSpec::of(product.a);
        let mut a = self.operand(&x, &spec, m, k)?;
        let x = if ready != Ready::Both { Some(self.tensor(&x)?) } else { None };
        let of_weight = QuantSpec::usual(product.b);
        let weight = self.operand(&values(2, Data::Gaussian, n, k), &of_weight, n, k)?;
        let weight = self.exported(&weight)?;
        let prepared =
            (0..copies).map(|_| cuda.prepare(weight.clone())).collect::<Result<Vec<_>, _>>()?;
        let mut y = cuda.empty_tensor()?;
        let float = FloatType::Bf16;
        let before = cuda.paths()?;
        cuda.matmul_resident(&a, &prepared[0], 1.0.into(), Sink::Resident(&mut y, float))?;
        let (paths, tiles) = (cuda.paths()?, cuda.tiles_left()?);
        let checked = self.check(&a, weight.view(), &y, [m, n])?;
        let expected = self.downloaded(&y, m * n)?;
        let recorded = Recorded::new(&cuda, self.small, copies, |i| {
            if let Some(x) = &x {
                cuda.quantize_resident(Source::Resident(x), [m, k], &spec, None, &mut a, None)?;
            }
            cuda.matmul_resident(&a, &prepared[i], 1.0.into(), Sink::Resident(&mut y, float))?;
            Ok(())
        })?;
        cuda.upload(FloatSlice::from(&vec![bf16::NAN; m * n][..]), &mut y)?;
        let seconds = recorded.time(&cuda, self.small)?;
        let replayed = same_bits(&self.downloaded(&y, m * n)?, &expected)?;
        let bytes = weight.codes().len() + weight.scales().len();
        self.print(
            name,
            json!({
                "a": format!("{:?}", product.a), "format": format!("{:?}", product.b),
                "data": format!("{data:?}"),
                "m": m, "n": n, "k": k,
                "seconds": seconds,
                "tops": 2.0 * m as f64 * n as f64 * k as f64 / seconds / 1e12,
                "weight_bytes_per_second": bytes as f64 / seconds,
                "weights": copies, "calls": recorded.calls,
                "checked": checked, "replayed": replayed,
                "tiles": { "left": tiles.0, "all": tiles.1 },
                "paths": {
                    "narrow": paths.narrow - before.narrow,
                    "planes": paths.planes - before.planes,
                    "wide": paths.wide - before.wide,
                },
            }),
        );
        Ok(())
    }

    fn downloaded(&self, y: &CudaTensor, len: usize) -> Result<Vec<bf16>> {
        let mut out = vec![bf16::ZERO; len];
        self.cuda.download(y, FloatSliceMut::from(&mut out[..]))?;
        Ok(out)
    }

    /// Compares sampled outputs with the reference's, bit for bit: how many.
    fn check(
        &self,
        a: &CudaOperand,
        b: PackedView<'_>,
        y: &CudaTensor,
        [m, n]: [usize; 2],
    ) -> Result<usize> {
        let out = self.downloaded(y, m * n)?;
        let a = self.exported(a)?;
        // A few columns at both ends and in the middle, of the first, a middle and the last row.
        let span = n.min(24);
        let mut checked = 0;
        for first in [0, (n - span) / 2, n - span] {
            let part = Reference.prepare(b.rows_range(first..first + span)?)?;
            for row in [0, m / 2, m - 1] {
                let mut expected = vec![bf16::ZERO; span];
                let a = a.view().rows_range(row..row + 1)?;
                Reference.matmul(a, &part, 1.0.into(), FloatSliceMut::from(&mut expected[..]))?;
                for (j, want) in expected.iter().enumerate() {
                    let got = out[row * n + first + j];
                    ensure!(
                        got.to_bits() == want.to_bits(),
                        "output ({row}, {}) is {:#06x}, the reference gives {:#06x}",
                        first + j,
                        got.to_bits(),
                        want.to_bits()
                    );
                    checked += 1;
                }
            }
        }
        Ok(checked)
    }

    /// Fused transform and quantization of a bf16 matrix; with `fold`, what Hopper's kernels read
    /// as well.
    fn quantize(
        &mut self,
        name: &str,
        encoding: Encoding,
        [m, k]: [usize; 2],
        fold: bool,
    ) -> Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let x = values(3, Data::Gaussian, m, k);
        let mut tensor = self.tensor(&x)?;
        let mut h = vec![0f32; 32 * 32];
        hadamard(32, &mut h)?;
        let transform = Transform::shared(&h[..], 32)?;
        let loaded = self.cuda.load_transform(&transform, FloatType::Bf16)?;
        let spec = QuantSpec::of(encoding);
        let mut out = self.cuda.empty_operand()?;
        let cuda = self.cuda.clone().with_matmul_kernel(if fold {
            MatmulKernel::Wgmma
        } else {
            MatmulKernel::Mma
        });
        let recorded = Recorded::new(&cuda, self.small, 1, |_| {
            let source = Source::Resident(&tensor);
            cuda.quantize_resident(source, [m, k], &spec, Some(&loaded), &mut out, None)?;
            Ok(())
        })?;
        let packed = self.exported(&out)?;
        let mut checked = 0;
        for row in [0, m / 2, m - 1] {
            let row_of_x = QuantizeInput::new(&x[row * k..][..k], 1, k, &spec)?;
            let row_of_x = row_of_x.with_transform(Some(transform))?;
            let mut expected = PackedMatrix::zeros(row_of_x.shape());
            reference::quantize(&row_of_x, &mut expected.view_mut())?;
            let got = packed.view().rows_range(row..row + 1)?;
            ensure!(got == expected.view(), "row {row} is not quantized as by the reference");
            checked += k;
        }
        // Other values into the same operand, so that what is found at the end is the replays'.
        cuda.upload(FloatSlice::from(&vec![bf16::NAN; m * k][..]), &mut tensor)?;
        recorded.graph.replay()?;
        ensure!(self.exported(&out)? != packed, "a replay did not quantize the values at hand");
        cuda.upload(FloatSlice::from(&x[..]), &mut tensor)?;
        let seconds = recorded.time(&cuda, self.small)?;
        ensure!(self.exported(&out)? == packed, "replays quantize to other bits than a call");
        let folded = match encoding {
            Encoding::MxFp4 if fold => m * k,
            Encoding::NvFp4 if fold => 3 * m * k,
            _ => 0,
        };
        let bytes = 2 * m * k + packed.codes().len() + packed.scales().len() + folded;
        self.print(
            name,
            json!({
                "format": format!("{encoding:?}"), "m": m, "k": k, "seconds": seconds,
                "bytes_per_second": bytes as f64 / seconds, "calls": recorded.calls,
                "checked": checked, "replayed": m * k,
            }),
        );
        Ok(())
    }

    /// The roofline: a copy inside device memory, bytes read and written.
    fn copy(&mut self, device: usize) -> Result<()> {
        let stream = CudaContext::new(device)?.new_stream()?;
        let len = if self.small { 1 << 20 } else { 1 << 30 };
        let from = stream.alloc_zeros::<u8>(len)?;
        let mut to = stream.alloc_zeros::<u8>(len)?;
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            stream.synchronize()?;
            let start = Instant::now();
            for _ in 0..10 {
                stream.memcpy_dtod(&from, &mut to)?;
            }
            stream.synchronize()?;
            best = best.min(start.elapsed().as_secs_f64() / 10.0);
        }
        self.print("copy", json!({ "bytes_per_second": 2.0 * len as f64 / best }));
        Ok(())
    }
}

/// How many values are compared.
fn same_bits(got: &[bf16], expected: &[bf16]) -> Result<usize> {
    ensure!(got.len() == expected.len(), "{} outputs, expected {}", got.len(), expected.len());
    let differs = |(got, expected): (&bf16, &bf16)| got.to_bits() != expected.to_bits();
    if let Some(at) = got.iter().zip(expected).position(differs) {
        let (got, expected) = (got[at].to_bits(), expected[at].to_bits());
        bail!("output {at} of a replay is {got:#06x}, that of a call {expected:#06x}");
    }
    Ok(got.len())
}

fn main() -> Result<()> {
    let (mut small, mut device, mut filter) = (false, 0, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {} // from cargo
            "--small" => small = true,
            "--device" => device = arguments.next().context("--device needs an index")?.parse()?,
            "--filter" => filter = Some(arguments.next().context("--filter needs a text")?),
            other => bail!("unknown argument {other}; see the top of benches/gpu.rs"),
        }
    }
    let cuda = match Cuda::open(device) {
        Ok(cuda) => cuda,
        Err(error) => {
            // `cargo bench` of the workspace runs on machines without a device too.
            eprintln!("no CUDA device to measure: {error}");
            return Ok(());
        }
    };
    let info = cuda.device().clone();
    let mut bench = Bench { cuda, small, filter, rows: 0 };
    println!("{}", json!({ "row": "device", "name": info.name, "sm": info.compute_capability }));
    // `long` is cut in ranges of K.
    let (big, tall, long) = if small { (256, 384, 1024) } else { (8192, 8192, 8192) };
    let square = [big, big, big];
    bench.copy(device)?;
    let lower = |name: &dyn std::fmt::Debug| format!("{name:?}").to_lowercase();
    for product in Product::ALL {
        let Product { a, b } = product;
        let same = a == b.into();
        let name = if same { lower(&b) } else { format!("{} {}", lower(&a), lower(&b)) };
        for (kind, data) in [("gaussian", Data::Gaussian), ("outliers", Data::Outliers)] {
            bench.matmul(
                &format!("{name} prefill {kind}"),
                product,
                data,
                square,
                1,
                Ready::Both,
            )?;
        }
        let packed = format!("{name} prefill packed");
        bench.matmul(&packed, product, Data::Gaussian, square, 1, Ready::Neither)?;
        let copies = if small { 2 } else { 8 };
        for m in [1, 4, 16] {
            let name = format!("{name} decode m{m}");
            bench.matmul(&name, product, Data::Gaussian, [m, tall, big], copies, Ready::Both)?;
        }
        for m in [17, 32, 64, 128] {
            for (kind, data) in [("gaussian", Data::Gaussian), ("outliers", Data::Outliers)] {
                let name = format!("{name} few m{m} {kind}");
                bench.matmul(&name, product, data, [m, tall, long], copies, Ready::Weight)?;
            }
        }
    }
    for encoding in Encoding::ALL {
        let name = format!("{} transform quantize", lower(&encoding));
        bench.quantize(&name, encoding, [big, big], false)?;
        // MXINT8 is folded by the products that need it.
        if bench.hopper() && encoding != Encoding::MxInt8 {
            bench.quantize(&format!("{name} fold"), encoding, [big, big], true)?;
        }
    }
    ensure!(bench.rows > 0, "no row matches the filter");
    Ok(())
}
