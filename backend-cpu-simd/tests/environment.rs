//! A thread whose floating-point environment breaks IEEE-754 gets an error, never other bits (C9).
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs)]

use std::arch::asm;

use fp4_backend_cpu_simd::CpuSimd;
use fp4_core::{
    Error, ExactSum, Format, FpEnvironment, Matmul, PackedMatrix, Partials, QuantSpec,
    QuantizeInput, Quantizer, Transform, check_environment, nvfp4_global_scale, reference,
};

/// The control register of a new thread: all exceptions masked, to nearest, subnormals kept.
const DEFAULT: u32 = 0x1F80;

/// Sets this thread's control register, for the rest of its life.
fn set_mxcsr(bits: u32) {
    // SAFETY: ldmxcsr reads four bytes at a valid address; the reserved bits are zero and all
    // exceptions stay masked, so no floating-point operation traps.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const bits, options(nostack, readonly)) };
}

/// Calls of every entry point that computes in floating point, by name, under a control register.
fn calls(mxcsr: u32) -> Vec<(&'static str, Result<(), Error>)> {
    let spec = QuantSpec::usual(Format::NvFp4);
    let x = [1f32; 32];
    let input = QuantizeInput::new(&x[..], 1, 32, &spec).unwrap();
    let mut packed = PackedMatrix::zeros(input.shape());
    let (mut y, mut dense, mut block) = ([0f32; 1], [0f32; 32], [0f32; 16]);
    let t = [0.25f32; 256];
    let t = Transform::shared(&t[..], 16).unwrap();
    let cpu = CpuSimd::new();
    let weight = cpu.prepare(packed.clone()).unwrap();
    set_mxcsr(mxcsr);
    let results = vec![
        ("check", check_environment()),
        ("reference quantize", reference::quantize(&input, &mut packed.view_mut()).map(drop)),
        (
            "reference dequantize",
            reference::dequantize(packed.view(), 1.0, (&mut dense[..]).into()),
        ),
        (
            "reference matmul",
            reference::matmul(packed.view(), packed.view(), 1.0, (&mut y[..]).into()),
        ),
        (
            "reference transform",
            reference::apply_transform(x[..16].into(), 16, &t, (&mut block[..]).into()),
        ),
        ("global scale", nvfp4_global_scale(3.0).map(drop)),
        ("finish", fp4_core::finish(Partials::Exact(&[ExactSum::ZERO]), 1.0, (&mut y[..]).into())),
        ("cpu quantize", cpu.quantize(&input, &mut packed.view_mut())),
        ("cpu dequantize", cpu.dequantize(packed.view(), 1.0, (&mut dense[..]).into())),
        ("cpu matmul", cpu.matmul(packed.view(), &weight, 1.0, (&mut y[..]).into()).map(drop)),
    ];
    set_mxcsr(DEFAULT);
    results
}

#[test]
fn every_entry_point_refuses_a_changed_environment() {
    use FpEnvironment::{FlushToZero, RoundingMode};
    let mut refused = 0;
    for (name, bits, expected) in [
        ("default", 0, None),
        ("FTZ", 0x8000, Some(FlushToZero)),
        ("DAZ", 0x0040, Some(FlushToZero)),
        ("down", 0x2000, Some(RoundingMode)),
        ("up", 0x4000, Some(RoundingMode)),
        ("toward zero", 0x6000, Some(RoundingMode)),
    ] {
        let results = std::thread::spawn(move || calls(DEFAULT | bits));
        for (call, result) in results.join().unwrap() {
            let expected = expected.map_or(Ok(()), |e| Err(Error::Environment(e)));
            assert_eq!(result, expected, "{call} under {name}");
            refused += usize::from(result.is_err());
        }
    }
    println!("environment: {refused} calls refused");
    assert_eq!(refused, 5 * 10);
}
