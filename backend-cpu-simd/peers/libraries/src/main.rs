//! Times other libraries. What it knows, where the library is there:
//!
//! | work | library | operands |
//! |---|---|---|
//! | `ggml-mxfp4`, `-nvfp4`, `-q4_0`, `-q4_K` | ggml, in `FP4_GGML` | f32; weights of that type |
//! | `mkl-int8` | MKL, in `FP4_MKL` | bytes; the weight packed; sums in 32 bits |
//! | `onnxruntime-4bit` | ONNX Runtime, in `FP4_ONNXRUNTIME` | f32, by 8 bits; `MatMulNBits` |
//! | `gemm-f32` | gemm | f32 |

mod ggml;
mod mkl;
mod onnxruntime;

use fp4_peers_common::{Data, Task, Work, serve};
use ggml::Ggml;
use mkl::Mkl;
use onnxruntime::OnnxRuntime;

fn main() -> std::io::Result<()> {
    let (ggml, mkl, onnxruntime) = (Ggml::load(), Mkl::load(), OnnxRuntime::load());
    serve(|task| -> Result<Box<dyn Work>, String> {
        if let Some(ty) = task.what.strip_prefix("ggml-") {
            return Ok(Box::new(ggml.clone()?.work(ty, task)?));
        }
        match task.what.as_str() {
            "mkl-int8" => Ok(Box::new(mkl.clone()?.work(task)?)),
            "onnxruntime-4bit" => Ok(Box::new(onnxruntime.clone()?.work(task)?)),
            "gemm-f32" => Ok(Box::new(Gemm::new(task))),
            other => Err(format!("there is no work {other}")),
        }
    })
}

/// The product in f32.
struct Gemm {
    task: Task,
    a: Vec<f32>,
    w: Vec<f32>,
    y: Vec<f32>,
}

impl Gemm {
    fn new(task: &Task) -> Self {
        let (a, w) = (task.activations(Data::Gaussian), task.distinct(Data::Gaussian));
        Gemm { task: task.clone(), a, w: task.repeated(&w), y: vec![0.0; task.m * task.n] }
    }
}

impl Work for Gemm {
    fn run(&mut self) {
        let Task { m, n, k, threads, .. } = self.task;
        let parallelism = match threads {
            1 => gemm::Parallelism::None,
            _ => gemm::Parallelism::Rayon(threads),
        };
        // SAFETY: y is (m, n), a is (m, k) and w is (n, k), each row-major.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                self.y.as_mut_ptr(),
                1,
                n as isize,
                false,
                self.a.as_ptr(),
                1,
                k as isize,
                self.w.as_ptr(),
                k as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.run();
        let last = &self.y[self.y.len() - self.task.n..];
        self.task.check(last, &self.task.expected([Data::Gaussian; 2]), 1)
    }

    fn amount(&self) -> f64 {
        self.task.macs()
    }
}
