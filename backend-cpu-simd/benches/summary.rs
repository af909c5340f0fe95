//! One table: what each path reaches, beside rooflines measured in the same run.
//!
//! ```text
//! cargo bench -p fp4-backend-cpu-simd --bench summary -- [--quick] [--json] [--filter TEXT]
//! ```
//!
//! `peers/run.py` compares with other libraries, and with the tree before.
//!
//! Every row's answer is compared with the portable kernels' (one output row), which the tests
//! compare with the reference. A time is the fastest of several samples, for the work and the
//! rooflines alike: other load on the machine only ever adds. One thread is timed by
//! its processor time, several by the wall. Rooflines: `vpdpbusd` of the same width, or
//! `vpmaddubsw` for AVX2, on registers for products of 8 and more rows; streaming reads (of a
//! buffer as large as the weights if they are hot, larger than the last-level cache if cold) for
//! the others and for quantization. `--filter` keeps rows whose key, such as `gemm mxfp4
//! avx512-vnni m512 t1 n4096 gaussian t4`, has TEXT.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Clock, Data, Dot, Read, Rng, fastest, last_level_cache, quantized, values};
use fp4_backend_cpu_simd::{CpuSimd, CpuWeight, Isa};
use fp4_core::backend::{Resident, Sink, Source};
use fp4_core::{
    Encoding, FloatSlice, Matmul, PackedMatrix, PackedView, Product, QuantSpec, QuantizeInput,
    Quantizer, Transform, hadamard,
};
use serde::Serialize;

#[derive(Debug, Serialize)]
struct Row {
    op: &'static str,
    /// The format of the weight, behind the encoding of the activations if that is another.
    format: String,
    isa: &'static str,
    threads: usize,
    m: usize,
    n: usize,
    k: usize,
    data_a: &'static str,
    data_w: &'static str,
    weights: &'static str,
    value: f64,
    unit: &'static str,
    roofline: f64,
    fraction: f64,
}

/// GMAC/s of 8-bit dot products on registers, by the threads of `pool`, with the instruction that
/// the kernels of `isa` have.
fn dot_peak(isa: Isa, pool: &rayon::ThreadPool, budget: Duration) -> Option<f64> {
    let dot = match isa {
        Isa::Avx512Vnni => Dot::Vnni512,
        Isa::AvxVnni => Dot::Vnni256,
        Isa::Avx2 => Dot::Maddubs,
        _ => return None,
    };
    let threads = pool.current_num_threads();
    let seconds = pool.install(|| fastest(Clock::of(threads), budget, || dot.run()));
    Some((threads * dot.macs()) as f64 / seconds / 1e9)
}

/// GB/s of reading `bytes` bytes again and again, by the threads of `pool`.
fn read_peak(pool: &rayon::ThreadPool, bytes: usize, budget: Duration) -> f64 {
    let read = Read::new(bytes);
    let clock = Clock::of(pool.current_num_threads());
    let seconds = pool.install(|| fastest(clock, budget, || read.run()));
    read.bytes() as f64 / seconds / 1e9
}

/// Everything measured once for a number of threads.
struct Machine {
    threads: usize,
    clock: Clock,
    pool: Arc<rayon::ThreadPool>,
    budget: Duration,
    hot_read: f64,
    cold_read: f64,
}

struct Options {
    quick: bool,
    json: bool,
    filter: String,
}

impl Options {
    fn parse() -> Self {
        let mut options = Options { quick: false, json: false, filter: String::new() };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--quick" => options.quick = true,
                "--json" => options.json = true,
                "--filter" => options.filter = args.next().unwrap_or_default(),
                "--bench" => {}
                other => {
                    eprintln!("unknown option {other}; there are --quick, --json, --filter TEXT");
                    std::process::exit(2);
                }
            }
        }
        options
    }
}

fn main() {
    let options = Options::parse();
    let budget = Duration::from_millis(if options.quick { 60 } else { 400 });
    let cache = last_level_cache();
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let mut rows = Vec::new();
    let mut threads = vec![1];
    if all > 1 {
        threads.push(all);
    }
    for threads in threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let machine = Machine {
            threads,
            clock: Clock::of(threads),
            budget,
            hot_read: read_peak(&pool, 9 << 20, budget),
            cold_read: read_peak(&pool, 2 * cache, budget),
            pool: Arc::new(pool),
        };
        eprintln!(
            "{threads} threads read {:.1} GB/s from 9 MB, {:.1} GB/s from memory",
            machine.hot_read, machine.cold_read
        );
        measure(&machine, cache, &options, &mut rows);
    }
    if options.json {
        return; // printed as they were measured
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "op",
        "format",
        "isa",
        "threads",
        "m x n x k",
        "A / W",
        "weights",
        "value",
        "of roofline",
    ]);
    for row in &rows {
        table.add_row([
            row.op.to_string(),
            row.format.clone(),
            row.isa.to_string(),
            row.threads.to_string(),
            format!("{} x {} x {}", row.m, row.n, row.k),
            format!("{} / {}", row.data_a, row.data_w),
            row.weights.to_string(),
            format!("{:.1} {}", row.value, row.unit),
            if row.fraction > 0.0 { format!("{:.0}%", 100.0 * row.fraction) } else { "-".into() },
        ]);
    }
    println!("{table}");
}

/// The shapes and data of one product.
struct Case {
    product: Product,
    data: [Data; 2],
    n: usize,
    k: usize,
    rows: Vec<usize>,
}

fn cases(quick: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for product in Product::ALL {
        let rows = if quick { vec![1, 8, 128] } else { vec![1, 4, 8, 16, 32, 64, 128, 512] };
        let gaussian = [Data::Gaussian; 2];
        cases.push(Case { product, data: gaussian, n: 4096, k: 4096, rows });
        for data in [[Data::Outliers, Data::Gaussian], [Data::Outliers, Data::T4]] {
            let rows = if quick { vec![128] } else { vec![1, 8, 128, 512] };
            cases.push(Case { product, data, n: 4096, k: 4096, rows });
        }
        if !quick {
            let (n, rows) = (11008, vec![1, 8, 128]);
            cases.push(Case { product, data: gaussian, n, k: 4096, rows });
        }
    }
    cases
}

fn measure(machine: &Machine, cache: usize, options: &Options, rows: &mut Vec<Row>) {
    let wanted = |key: &str| key.contains(&options.filter);
    for isa in Isa::ALL {
        let Ok(backend) = CpuSimd::with_isa(isa) else {
            eprintln!("{isa}: not measured, this CPU does not have it");
            continue;
        };
        let backend = backend.with_pool(machine.pool.clone());
        let peak = dot_peak(isa, &machine.pool, machine.budget);
        if let Some(peak) = peak {
            eprintln!("{isa}, {} threads: {peak:.0} GMAC/s on registers", machine.threads);
        }
        for case in cases(options.quick) {
            let Case { product, data, n, k, .. } = case;
            let key = |m| {
                let key = key("gemm", &name(product), isa, m, machine.threads);
                format!("{key} n{n} {} {}", data[0].name(), data[1].name())
            };
            let ms: Vec<usize> = case.rows.iter().copied().filter(|&m| wanted(&key(m))).collect();
            if ms.is_empty() {
                continue;
            }
            let w = values(&mut Rng(1), data[1], n, k);
            let w = quantized(&backend, product.b.into(), &w, [n, k]);
            let weight = backend.prepare(w.view()).expect("prepares");
            // So many copies that the next one has left the cache.
            let copies = if ms[0] > 8 || options.quick && machine.threads > 1 {
                0
            } else {
                2 * cache / w.codes().len()
            };
            let cold: Vec<_> = (0..copies).map(|_| weight.clone()).collect();
            for m in ms {
                let a = values(&mut Rng(m as u64), data[0], m, k);
                let a = quantized(&backend, product.a, &a, [m, k]);
                check(&backend, a.view(), &weight, &w);
                let case = Measured { backend: &backend, machine, peak, a, w: &w, product, data };
                push(rows, options, case.row(&[&weight], "hot"));
                if m <= 8 && !cold.is_empty() {
                    let cold = case.row(&cold.iter().collect::<Vec<_>>(), "cold");
                    push(rows, options, cold);
                }
            }
        }
        for (product, [n, k], m) in forwards() {
            let key = key("forward", &name(product), isa, m, machine.threads);
            if wanted(&format!("{key} n{n} k{k}")) {
                push(rows, options, forward_row(&backend, machine, product, [m, n, k]));
            }
        }
        for encoding in Encoding::ALL {
            let key = |op| key(op, &encoding.to_string(), isa, 512, machine.threads);
            if wanted(&key("dequantize")) {
                push(rows, options, dequantize_row(&backend, machine, encoding));
            }
        }
        for (op, format, spec) in quantizations() {
            if wanted(&key(op, &format, isa, 512, machine.threads)) {
                push(rows, options, quantize_row(&backend, machine, (op, format, spec)));
            }
        }
    }
}

/// Keeps a row; as JSON it is printed at once.
fn push(rows: &mut Vec<Row>, options: &Options, row: Row) {
    if options.json {
        println!("{}", serde_json::to_string(&row).expect("a plain row"));
    }
    rows.push(row);
}

/// `mxfp4`, or with another encoding of the activations `mxint8-mxfp4`.
fn name(Product { a, b, .. }: Product) -> String {
    if a == b.into() { b.to_string() } else { format!("{a}-{b}") }
}

fn key(op: &str, format: &str, isa: Isa, m: usize, threads: usize) -> String {
    format!("{op} {format} {isa} m{m} t{threads}")
}

/// Compares the first row with the portable kernels'.
fn check(
    backend: &CpuSimd,
    a: PackedView<'_>,
    weight: &CpuWeight<PackedView<'_>>,
    w: &PackedMatrix,
) {
    let n = w.shape().rows();
    let mut y = vec![0f32; a.shape().rows() * n];
    backend.matmul(a, weight, 1.0.into(), (&mut y[..]).into()).expect("multiplies");
    let portable = CpuSimd::with_isa(Isa::Portable).expect("every CPU");
    let weight = portable.prepare(w.view()).expect("prepares");
    let mut expected = vec![0f32; n];
    let first = a.rows_range(0..1).expect("a row");
    portable.matmul(first, &weight, 1.0.into(), (&mut expected[..]).into()).expect("multiplies");
    assert!(y.iter().zip(&expected).all(|(y, e)| y.to_bits() == e.to_bits()), "a wrong answer");
}

/// One product to be measured.
struct Measured<'a> {
    backend: &'a CpuSimd,
    machine: &'a Machine,
    peak: Option<f64>,
    a: PackedMatrix,
    w: &'a PackedMatrix,
    product: Product,
    data: [Data; 2],
}

impl Measured<'_> {
    fn row(&self, weights: &[&CpuWeight<PackedView<'_>>], state: &'static str) -> Row {
        let (m, n, k) = (self.a.shape().rows(), self.w.shape().rows(), self.w.shape().k());
        let mut y = vec![0f32; m * n];
        let mut next = 0;
        let mut run = || {
            let weight = weights[next % weights.len()];
            next += 1;
            self.backend
                .matmul(self.a.view(), weight, 1.0.into(), (&mut y[..]).into())
                .expect("multiplies");
        };
        let seconds = self
            .machine
            .pool
            .install(|| fastest(self.machine.clock, self.machine.budget, &mut run));
        // Decode is bound by reading the weights, the rest by arithmetic.
        let (value, unit, roofline) = if m < 8 {
            let bytes = (self.w.codes().len() + self.w.scales().len()) as f64;
            let peak = if state == "hot" { self.machine.hot_read } else { self.machine.cold_read };
            (bytes / seconds / 1e9, "GB/s", peak)
        } else {
            ((m * n * k) as f64 / seconds / 1e9, "GMAC/s", self.peak.unwrap_or(0.0))
        };
        Row {
            op: "gemm",
            format: name(self.product),
            isa: self.backend.isa().name(),
            threads: self.machine.threads,
            m,
            n,
            k,
            data_a: self.data[0].name(),
            data_w: self.data[1].name(),
            weights: state,
            value,
            unit,
            roofline,
            fraction: if roofline > 0.0 { value / roofline } else { 0.0 },
        }
    }
}

/// The layers that are measured whole, for each product and number of rows.
fn forwards() -> impl Iterator<Item = (Product, [usize; 2], usize)> {
    let layers = [[512, 64], [512, 128], [384, 384], [1024, 1024], [4096, 4096]];
    Product::ALL.into_iter().flat_map(move |product| {
        layers.into_iter().flat_map(move |nk| [1, 8, 128].map(|m| (product, nk, m)))
    })
}

/// A whole layer, f32 in and out: `quantize_resident` and `matmul_resident` are all that a layer's
/// `forward` does on this backend. By its multiplications, beside a read of the weight (few rows)
/// or the peak on registers; small layers are bound by neither, but by the calls themselves.
fn forward_row(
    backend: &CpuSimd,
    machine: &Machine,
    product: Product,
    [m, n, k]: [usize; 3],
) -> Row {
    let (x, w) =
        (values(&mut Rng(6), Data::Gaussian, m, k), values(&mut Rng(7), Data::Gaussian, n, k));
    let (spec, w) = (QuantSpec::of(product.a), quantized(backend, product.b.into(), &w, [n, k]));
    let alpha = spec.global_scale();
    let weight = backend.prepare(w.view()).expect("prepares");
    let mut operand = backend.empty_operand().expect("an operand");
    let mut y = vec![0f32; m * n];
    let mut run = || {
        let source = Source::Host(FloatSlice::from(&x[..]));
        backend
            .quantize_resident(source, [m, k], &spec, None, &mut operand, None)
            .expect("quantizes");
        let sink = Sink::Host((&mut y[..]).into());
        backend.matmul_resident(&operand, &weight, alpha.into(), sink).expect("multiplies");
    };
    let seconds = machine.pool.install(|| fastest(machine.clock, machine.budget, &mut run));
    let input = QuantizeInput::new(&x[..], m, k, &spec).expect("a whole matrix");
    let mut a = PackedMatrix::zeros(input.shape());
    fp4_core::reference::quantize(&input, &mut a.view_mut()).expect("quantizes");
    let portable = CpuSimd::with_isa(Isa::Portable).expect("every CPU");
    let weight = portable.prepare(w.view()).expect("prepares");
    let mut expected = vec![0f32; m * n];
    portable
        .matmul(a.view(), &weight, alpha.into(), (&mut expected[..]).into())
        .expect("multiplies");
    assert!(y.iter().zip(&expected).all(|(y, e)| y.to_bits() == e.to_bits()), "a wrong answer");
    Row {
        op: "forward",
        format: name(product),
        isa: backend.isa().name(),
        threads: machine.threads,
        m,
        n,
        k,
        data_a: Data::Gaussian.name(),
        data_w: Data::Gaussian.name(),
        weights: "hot",
        value: (m * n * k) as f64 / seconds / 1e9,
        unit: "GMAC/s",
        roofline: 0.0,
        fraction: 0.0,
    }
}

/// Every encoding, and NVFP4 with row scales; without a transform and with one of blocks of 32.
fn quantizations() -> impl Iterator<Item = (&'static str, String, QuantSpec)> {
    let rows = QuantSpec::of(Encoding::NvFp4).with_row_scales().expect("NVFP4 has them");
    let usual = Encoding::ALL.map(|encoding| (encoding.to_string(), QuantSpec::of(encoding)));
    let all: Vec<_> = usual.into_iter().chain([("nvfp4-rows".to_owned(), rows)]).collect();
    ["quantize", "transform-quantize"]
        .into_iter()
        .flat_map(move |op| all.clone().into_iter().map(move |(format, spec)| (op, format, spec)))
}

fn quantize_row(
    backend: &CpuSimd,
    machine: &Machine,
    (op, format, spec): (&'static str, String, QuantSpec),
) -> Row {
    let (m, k) = (512, 4096);
    let x = values(&mut Rng(5), Data::Gaussian, m, k);
    let mut h = [0f32; 32 * 32];
    hadamard(32, &mut h).expect("a power of two");
    let transform = Transform::shared(&h[..], 32).expect("a whole block");
    let input = QuantizeInput::new(&x[..], m, k, &spec).expect("a whole matrix");
    let input = input
        .with_transform((op == "transform-quantize").then_some(transform))
        .expect("whole blocks");
    let mut packed = PackedMatrix::zeros(input.shape());
    let mut row_scales = vec![0f32; m];
    let mut run = || {
        let out = packed.view_mut().with_row_scales(&mut row_scales).expect("one for each row");
        backend.quantize(&input, &mut { out }).expect("quantizes");
    };
    let seconds = machine.pool.install(|| fastest(machine.clock, machine.budget, &mut run));
    let (mut expected, mut scales) = (PackedMatrix::zeros(packed.shape()), vec![0f32; m]);
    let out = expected.view_mut().with_row_scales(&mut scales).expect("one for each row");
    fp4_core::reference::quantize(&input, &mut { out }).expect("quantizes");
    assert!(packed == expected && row_scales == scales, "a wrong answer");
    conversion_row(op, backend, machine, format, [m, k], seconds)
}

/// A row of a conversion between f32 and an encoding: bytes of the f32 side, beside a read of as
/// many.
fn conversion_row(
    op: &'static str,
    backend: &CpuSimd,
    machine: &Machine,
    format: String,
    [m, k]: [usize; 2],
    seconds: f64,
) -> Row {
    let value = (4 * m * k) as f64 / seconds / 1e9;
    Row {
        op,
        format,
        isa: backend.isa().name(),
        threads: machine.threads,
        m,
        n: 0,
        k,
        data_a: Data::Gaussian.name(),
        data_w: "-",
        weights: "-",
        value,
        unit: "GB/s",
        roofline: machine.hot_read,
        fraction: value / machine.hot_read,
    }
}

/// Bytes of f32 written, beside the same read.
fn dequantize_row(backend: &CpuSimd, machine: &Machine, encoding: Encoding) -> Row {
    let (m, k) = (512, 4096);
    let x = values(&mut Rng(5), Data::Gaussian, m, k);
    let packed = quantized(backend, encoding, &x, [m, k]);
    let (mut y, mut expected) = (vec![0f32; m * k], vec![0f32; m * k]);
    let scale = QuantSpec::of(encoding).global_scale();
    let mut run = || {
        backend.dequantize(packed.view(), scale, (&mut y[..]).into()).expect("dequantizes");
    };
    let seconds = machine.pool.install(|| fastest(machine.clock, machine.budget, &mut run));
    fp4_core::reference::dequantize(packed.view(), scale, (&mut expected[..]).into())
        .expect("dequantizes");
    assert!(y.iter().zip(&expected).all(|(y, e)| y.to_bits() == e.to_bits()), "a wrong answer");
    conversion_row("dequantize", backend, machine, encoding.to_string(), [m, k], seconds)
}
