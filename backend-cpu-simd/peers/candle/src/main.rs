//! Times candle's product with Q4_K weights. Candle chooses the instructions of its quantized
//! kernels when it is compiled, so `run.py` builds this worker with `-C target-cpu=native`.
//! What it knows: `candle-q4_K` and `candle-q4_0`, of activations in f32, which it quantizes.

use std::time::Duration;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use fp4_peers_common::{Clock, Data, Task, Work, fastest, serve};
use rayon::{ThreadPool, ThreadPoolBuilder};

fn main() -> std::io::Result<()> {
    serve(|task| Ok(Box::new(Layer::new(task)?)))
}

struct Layer {
    task: Task,
    pool: ThreadPool,
    a: Tensor,
    w: QMatMul,
}

/// What a library's error says.
fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Layer {
    fn new(task: &Task) -> Result<Self, String> {
        let ty = match task.what.as_str() {
            "candle-q4_K" => GgmlDType::Q4K,
            "candle-q4_0" => GgmlDType::Q4_0,
            other => return Err(format!("there is no work {other}")),
        };
        if !task.k.is_multiple_of(ty.block_size()) {
            return Err(format!("K is no multiple of {}", ty.block_size()));
        }
        let Task { m, n, k, threads, .. } = *task;
        let a = Tensor::from_vec(task.activations(Data::Gaussian), (m, k), &Device::Cpu);
        let w = task.repeated(&task.distinct(Data::Gaussian));
        let w = Tensor::from_vec(w, (n, k), &Device::Cpu).map_err(said)?;
        let w = QTensor::quantize(&w, ty).map_err(said)?;
        let w = QMatMul::from_qtensor(w).map_err(said)?;
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().map_err(said)?;
        Ok(Layer { task: task.clone(), pool, a: a.map_err(said)?, w })
    }

    fn product(&self) -> Tensor {
        self.w.forward(&self.a).expect("multiplies")
    }
}

impl Work for Layer {
    fn run(&mut self) {
        drop(self.product());
    }

    fn check(&mut self) -> Result<(), String> {
        let y = self.pool.install(|| self.product());
        let y = y.get(self.task.m - 1).and_then(|y| y.to_vec1::<f32>()).map_err(said)?;
        self.task.check(&y, &self.task.expected([Data::Gaussian; 2]))
    }

    fn amount(&self) -> f64 {
        self.task.macs()
    }

    fn time(&mut self, clock: Clock, budget: Duration) -> f64 {
        self.pool.install(|| fastest(clock, budget, || drop(self.product())))
    }
}
