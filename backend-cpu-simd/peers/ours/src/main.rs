//! Times this library and the rooflines. What it knows:
//!
//! | work | |
//! |---|---|
//! | `mxfp4`, `nvfp4`, `mxint8-mxfp4`, `mxint8-nvfp4` | a layer: f32 in and out |
//! | `product-` and those | operands that are packed already |
//! | the same and `@avx2` | by the kernels of that instruction set instead of the best |
//! | the same and `/outliers-t4` | of activations with outlier channels and t4 weights |
//! | `quantize-` and an encoding | f32 (m, k) |
//! | `vpdpbusd-512`, `vpdpbusd-256`, `vpmaddubsw-256` | the instruction, on registers |
//! | `read` | the bytes of an MXFP4 weight (n, k); cold: twice the last-level cache |
//!
//! The last row of each answer has the bits of the portable kernels, and is near the dense row.
//! `run.py --before` builds this file in another commit's tree: it uses only what both have.

#[allow(unused_imports, reason = "each bench uses a part")]
#[path = "../../../benches/common/roofline.rs"]
mod roofline;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use fp4_backend_cpu_simd::{CpuSimd, CpuWeight, Isa};
use fp4_core::backend::{Resident, Sink, Source};
use fp4_core::{
    Encoding, FloatSlice, Format, Matmul, PackedMatrix, QuantSpec, QuantizeInput, Quantizer,
};
use fp4_peers_common::{Clock, Data, Task, Work, fastest, last_level_cache, serve};
use rayon::{ThreadPool, ThreadPoolBuilder};
use roofline::{Dot, Read};

fn main() -> std::io::Result<()> {
    serve(make)
}

fn make(task: &Task) -> Result<Box<dyn Work>, String> {
    let dot = match task.what.as_str() {
        "vpdpbusd-512" => Some(Dot::Vnni512),
        "vpdpbusd-256" => Some(Dot::Vnni256),
        "vpmaddubsw-256" => Some(Dot::Maddubs),
        _ => None,
    };
    if let Some(dot) = dot {
        let pool = pool(task.threads)?;
        return if dot.is_available() {
            Ok(Box::new(Registers { dot, pool }))
        } else {
            Err("this CPU does not have it".into())
        };
    }
    if task.what == "read" {
        let weight = task.n * task.k / 2 + task.n * task.k / 32;
        let bytes = if task.cold { 2 * last_level_cache() } else { weight };
        return Ok(Box::new(Memory { read: Read::new(bytes), pool: pool(task.threads)? }));
    }
    if let Some(encoding) = task.what.strip_prefix("quantize-") {
        return Ok(Box::new(Quantization::new(task, parsed(encoding)?)?));
    }
    let (what, data) = match task.what.strip_suffix("/outliers-t4") {
        Some(what) => (what, [Data::Outliers, Data::T4]),
        None => (&task.what[..], [Data::Gaussian; 2]),
    };
    let (what, isa) = match what.split_once('@') {
        Some((what, isa)) => (what, parsed(isa)?),
        None => (what, Isa::best()),
    };
    let backend = CpuSimd::with_isa(isa).map_err(said)?;
    let product = what.strip_prefix("product-");
    Ok(Box::new(Layer::new(task, backend, product.unwrap_or(what), product.is_some(), data)?))
}

/// What a library's error says.
fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(name: &str) -> Result<T, String> {
    name.parse::<T>().map_err(said)
}

fn pool(threads: usize) -> Result<Arc<ThreadPool>, String> {
    ThreadPoolBuilder::new().num_threads(threads).build().map(Arc::new).map_err(said)
}

fn quantized(
    backend: &CpuSimd,
    spec: &QuantSpec,
    x: &[f32],
    [rows, k]: [usize; 2],
) -> Result<PackedMatrix, String> {
    let input = QuantizeInput::new(x, rows, k, spec).map_err(said)?;
    let mut packed = PackedMatrix::zeros(input.shape());
    backend.quantize(&input, &mut packed.view_mut()).map_err(said)?;
    Ok(packed)
}

type Weight = CpuWeight<PackedMatrix>;

/// A product with all that it needs.
struct Layer {
    backend: CpuSimd,
    pool: Arc<ThreadPool>,
    task: Task,
    data: [Data; 2],
    spec: QuantSpec,
    alpha: f32,
    /// True if the activations have 4 bits too.
    four_bit: bool,
    x: Vec<f32>,
    /// The activations, if the work starts with packed ones.
    a: Option<PackedMatrix>,
    w: PackedMatrix,
    weights: Vec<Weight>,
    next: usize,
    operand: <CpuSimd as Resident>::Operand,
    y: Vec<f32>,
}

impl Layer {
    fn new(
        task: &Task,
        backend: CpuSimd,
        product: &str,
        packed: bool,
        data: [Data; 2],
    ) -> Result<Self, String> {
        let (a, b) = product.split_once('-').unwrap_or((product, product));
        let (a, b): (Encoding, Format) = (parsed(a)?, parsed(b)?);
        let Task { m, n, k, threads, .. } = *task;
        let pool = pool(threads)?;
        let backend = backend.with_pool(pool.clone());
        let distinct = task.distinct(data[1]);
        let amax = distinct.iter().fold(0f32, |amax, x| amax.max(x.abs()));
        let of_w = QuantSpec::for_weight(b, amax).map_err(said)?;
        let w = quantized(&backend, &of_w, &task.repeated(&distinct), [n, k])?;
        let weight = backend.prepare(w.clone()).map_err(said)?;
        let copies = task.copies(w.codes().len(), last_level_cache());
        let weights = (0..copies).map(|_| weight.clone()).collect();
        let (spec, x) = (QuantSpec::of(a), task.activations(data[0]));
        let four_bit = a.format().is_some();
        let a = packed.then(|| quantized(&backend, &spec, &x, [m, k])).transpose()?;
        let operand = backend.empty_operand().map_err(said)?;
        let alpha = spec.global_scale() * of_w.global_scale();
        let (task, y) = (task.clone(), vec![0f32; m * n]);
        Ok(Layer {
            backend,
            pool,
            task,
            data,
            spec,
            alpha,
            four_bit,
            x,
            a,
            w,
            weights,
            next: 0,
            operand,
            y,
        })
    }
}

impl Work for Layer {
    fn run(&mut self) {
        let Layer { backend, spec, weights, operand, .. } = self;
        let weight = &weights[self.next % weights.len()];
        self.next += 1;
        let alpha = self.alpha;
        if let Some(a) = &self.a {
            let y = (&mut self.y[..]).into();
            backend.matmul(a.view(), weight, alpha.into(), y).expect("multiplies");
            return;
        }
        let (x, shape) = (FloatSlice::from(&self.x[..]), [self.task.m, self.task.k]);
        backend
            .quantize_resident(Source::Host(x), shape, spec, None, operand, None)
            .expect("quantizes");
        let sink = Sink::Host((&mut self.y[..]).into());
        backend.matmul_resident(operand, weight, alpha.into(), sink).expect("multiplies");
    }

    fn check(&mut self) -> Result<(), String> {
        let pool = self.pool.clone();
        pool.install(|| self.run());
        let Task { m, n, k, .. } = self.task;
        let y = &self.y[(m - 1) * n..];
        let portable = CpuSimd::with_isa(Isa::Portable).map_err(said)?;
        let a = quantized(&portable, &self.spec, &self.x[(m - 1) * k..], [1, k])?;
        let weight = portable.prepare(self.w.view()).map_err(said)?;
        let mut expected = vec![0f32; n];
        portable
            .matmul(a.view(), &weight, self.alpha.into(), (&mut expected[..]).into())
            .map_err(said)?;
        if y.iter().zip(&expected).any(|(y, e)| y.to_bits() != e.to_bits()) {
            return Err("a wrong answer: other bits than the portable kernels'".into());
        }
        let operands = if self.four_bit { 2 } else { 1 };
        self.task.check(y, &self.task.expected(self.data), operands)
    }

    fn amount(&self) -> f64 {
        self.task.macs()
    }

    fn remark(&self) -> String {
        self.backend.isa().name().into()
    }

    fn time(&mut self, clock: Clock, budget: Duration) -> f64 {
        let pool = self.pool.clone();
        pool.install(|| fastest(clock, budget, || self.run()))
    }
}

/// The quantization of (m, k) values.
struct Quantization {
    backend: CpuSimd,
    pool: Arc<ThreadPool>,
    task: Task,
    spec: QuantSpec,
    x: Vec<f32>,
    packed: PackedMatrix,
}

impl Quantization {
    fn new(task: &Task, encoding: Encoding) -> Result<Self, String> {
        let (spec, x) = (QuantSpec::of(encoding), task.activations(Data::Gaussian));
        let packed = PackedMatrix::zeros(spec.shape(task.m, task.k).map_err(said)?);
        let pool = pool(task.threads)?;
        let backend = CpuSimd::new().with_pool(pool.clone());
        Ok(Quantization { backend, pool, task: task.clone(), spec, x, packed })
    }
}

impl Work for Quantization {
    fn run(&mut self) {
        let Quantization { backend, task, spec, x, packed, .. } = self;
        let input = QuantizeInput::new(&x[..], task.m, task.k, spec).expect("a whole matrix");
        backend.quantize(&input, &mut packed.view_mut()).expect("quantizes");
    }

    fn check(&mut self) -> Result<(), String> {
        let pool = self.pool.clone();
        pool.install(|| self.run());
        let input = QuantizeInput::new(&self.x[..], self.task.m, self.task.k, &self.spec);
        let mut expected = PackedMatrix::zeros(self.packed.shape());
        fp4_core::reference::quantize(&input.map_err(said)?, &mut expected.view_mut())
            .map_err(said)?;
        if self.packed == expected { Ok(()) } else { Err("other bits than the reference's".into()) }
    }

    fn amount(&self) -> f64 {
        size_of_val(&self.x[..]) as f64
    }

    fn time(&mut self, clock: Clock, budget: Duration) -> f64 {
        let pool = self.pool.clone();
        pool.install(|| fastest(clock, budget, || self.run()))
    }
}

struct Registers {
    dot: Dot,
    pool: Arc<ThreadPool>,
}

impl Work for Registers {
    fn run(&mut self) {
        self.dot.run();
    }

    fn check(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn amount(&self) -> f64 {
        (self.dot.macs() * self.pool.current_num_threads()) as f64
    }

    fn time(&mut self, clock: Clock, budget: Duration) -> f64 {
        let pool = self.pool.clone();
        pool.install(|| fastest(clock, budget, || self.run()))
    }
}

struct Memory {
    read: Read,
    pool: Arc<ThreadPool>,
}

impl Work for Memory {
    fn run(&mut self) {
        self.read.run();
    }

    fn check(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn amount(&self) -> f64 {
        self.read.bytes() as f64
    }

    fn time(&mut self, clock: Clock, budget: Duration) -> f64 {
        let pool = self.pool.clone();
        pool.install(|| fastest(clock, budget, || self.run()))
    }
}
