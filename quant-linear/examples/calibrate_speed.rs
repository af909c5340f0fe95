//! How fast calibration is here: second moments, the transform, GPTQ and Babai of one layer.
//!
//! ```sh
//! cargo run --release -p quant-linear --features calibrate --example calibrate_speed -- 4096 4096
//! ```

use std::time::Instant;

use fp4_core::{Format, GroupSize, QuantSpec};
use quant_linear::calibrate::{
    BlockTransform, Method, Moments, QuantizeOptions, WushOptions, loss, quantize_weight,
};

fn main() -> Result<(), quant_linear::Error> {
    let mut sizes = std::env::args().skip(1).map(|size| size.parse().expect("a size"));
    let (rows, k): (usize, usize) = (sizes.next().unwrap_or(1024), sizes.next().unwrap_or(1024));
    let samples = 2048;
    // Inputs that lean on the one before, so that there is an error worth carrying.
    let mut state = 1u64;
    let mut made = |n: usize| -> Vec<f32> {
        let mut last = 0.0;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            last = 0.7 * last + (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            last
        };
        (0..n).map(next).collect()
    };
    let (weight, x) = (made(rows * k), made(samples * k));
    println!("{rows} x {k}, {samples} samples, {} threads", rayon::current_num_threads());

    let start = Instant::now();
    let mut moments = Moments::new(k);
    moments.add(&x)?;
    let gram = moments.finish();
    let seconds = start.elapsed().as_secs_f64();
    let products = (samples * k * (k + 1) / 2) as f64 / 1e9;
    println!("second moments  {seconds:7.2} s  {:.1} G multiply-adds/s", products / seconds);

    let start = Instant::now();
    let t = BlockTransform::wush(&gram, &[&weight], GroupSize::G32, &WushOptions::default())?;
    println!("wush 32         {:7.2} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let through = t.weight_through(&weight)?;
    let gram = gram.transformed(&t)?;
    println!("through it      {:7.2} s", start.elapsed().as_secs_f64());

    let amax = through.iter().fold(0f32, |a, w| a.max(w.abs()));
    let spec = QuantSpec::for_weight(Format::NvFp4, amax)?;
    for method in Method::ALL {
        let start = Instant::now();
        let options = QuantizeOptions::new(spec, method);
        let packed = quantize_weight(&through, k, Some(&gram), &options)?;
        let seconds = start.elapsed().as_secs_f64();
        let lost = loss::of_moments(&gram, &through, packed.view(), spec.global_scale())?;
        println!("{:<14}  {seconds:7.2} s  loss {:.3e}", method.name(), lost.ratio());
    }
    Ok(())
}
