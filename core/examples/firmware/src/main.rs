//! Every operation of the core on a device: the conformance suite's cases bit for bit, calls with
//! wrong lengths, a layer whose weight lies in flash, and what each costs. Exits with 0 if every
//! bit is right, with 1 if one is not, with 101 if it panics.

#![no_std]
#![no_main]

use core::hint::black_box;

use firmware::board::{self, Counter};
use firmware::int8;
use firmware::operations::{Layer, dequantize, quantize, swizzle};
use firmware::vectors::{CASES, Case, Counts, Failure, Matmul, Reader};
use fp4_core::{
    Epilogue, Error, Format, PackedShape, PackedView, Paths, QuantSpec, check_environment, narrow,
    reference,
};
use semihosting::println;

#[cfg(target_arch = "arm")]
use cortex_m_rt::entry;
#[cfg(target_arch = "riscv32")]
use riscv_rt::entry;

/// Features of the layers: input and output.
const N: usize = 128;

#[entry]
fn main() -> ! {
    let right = vectors().unwrap_or_else(|failure| {
        println!("vectors: {failure}");
        false
    });
    let right = wrong_lengths() && right;
    let Some(mut counter) = Counter::take() else { panic!("the counter is taken") };
    let right = layers(&mut counter).unwrap_or_else(|failure| {
        println!("layers: {failure}");
        false
    }) && right;
    measure_the_rest(&mut counter);
    semihosting::process::exit(i32::from(!right))
}

/// Runs the suite's cases; true if every bit is right.
fn vectors() -> Result<bool, Failure> {
    let (mut reader, mut counts) = (Reader::new(CASES)?, Counts::default());
    while let Some(case) = reader.next_case()? {
        let before = counts.differ;
        case.run(&mut counts)?;
        if counts.differ != before {
            println!("vectors: case {} differs", counts.cases);
        }
    }
    let Paths { narrow, planes, wide, .. } = counts.paths;
    println!(
        "vectors: {} cases, {} bits compared, {} outputs differ; sums of 32 bits {narrow}, of 64 \
         {planes}, of 640 {wide}",
        counts.cases, counts.bits, counts.differ
    );
    Ok(counts.differ == 0 && counts.cases > 0 && narrow > 0 && planes > 0 && wide > 0)
}

/// Calls with wrong lengths; true if each is an error and no output was written.
fn wrong_lengths() -> bool {
    let spec = QuantSpec::usual(Format::NvFp4);
    let (x, flash) = ([1f32; 32], [0x38u8; 1024]);
    let (mut y, mut bytes) = ([f32::NAN; 32], [0xA5u8; 1024]);
    let (mut calls, mut refused) = (0, 0);
    let mut expect = |result: Result<(), Error>| {
        calls += 1;
        match result {
            Ok(()) => println!("errors: call {calls} was not refused"),
            Err(_) => refused += 1,
        }
    };
    for (len, codes, scales) in [(32, 15, 2), (32, 17, 2), (32, 16, 1), (32, 16, 3), (31, 16, 2)] {
        let (left, right) = bytes.split_at_mut(512);
        expect(quantize(&x[..len], &spec, &mut left[..codes], &mut right[..scales]));
        expect(dequantize(&flash[..codes], &flash[..scales], &spec, &mut y[..len]));
    }
    for (scales, cols, tiles) in [(8, 2, 511), (8, 2, 1024), (7, 2, 512), (8, 0, 512)] {
        expect(swizzle(&flash[..scales], cols, &mut bytes[..tiles]));
    }
    let two = [0f32; 2];
    for (k, n, codes, scales, bias) in [
        (32, 2, 31, 4, 2),
        (32, 2, 32, 5, 2),
        (32, 2, 32, 4, 1),
        (16, 2, 16, 2, 2),
        (31, 2, 32, 4, 2),
    ] {
        let epilogue = Epilogue::new(1.0).with_bias(Some(&two[..bias]));
        let (codes, scales) = (&flash[..codes], &flash[..scales]);
        let layer = Layer { format: Format::NvFp4, k, codes, scales, epilogue };
        let x = PackedShape::of(Format::NvFp4, 1, 32);
        let x = x.and_then(|shape| PackedView::new(shape, &flash[..16], &flash[..2]));
        expect(x.and_then(|x| layer.forward(x, &mut y[..n])));
        expect(x.and_then(|x| layer.forward_wide(x, &mut y[..n])));
    }
    expect(PackedShape::of(Format::MxFp4, usize::MAX / 32 * 32, 32).map(|_| ()));
    let untouched = y.iter().all(|y| y.is_nan()) && bytes.iter().all(|&byte| byte == 0xA5);
    println!("errors: {calls} wrong calls, {refused} refused, outputs untouched: {untouched}");
    calls == refused && untouched
}

/// Prints what a call took, in instructions for each unit, and its stack.
fn report(counter: &mut Counter, name: &str, units: u32, unit: &str, f: &mut dyn FnMut()) {
    let instructions = counter.count(&mut *f);
    let stack = board::stack(&mut *f);
    let hundredths = (u64::from(instructions) * 100 / u64::from(units)) as u32;
    let (whole, rest) = (hundredths / 100, hundredths % 100);
    println!(
        "{name}: {instructions} instructions, {whole}.{rest:02} {unit}, {stack} bytes of stack"
    );
}

/// The layers of the vectors: FP4 activations from f32, through the weight in flash. True if both
/// products have the same bits.
fn layers(counter: &mut Counter) -> Result<bool, Failure> {
    check_environment()?;
    let (mut reader, mut right, mut layers) = (Reader::new(CASES)?, true, 0);
    while let Some(case) = reader.next_case()? {
        let Case::Matmul(case) = case else { continue };
        if !case.is_layer() {
            continue;
        }
        layers += 1;
        let name = name_of(&case);
        let mut y = [0f32; N];
        let mut paths = Paths::default();
        report(counter, name[0], (N * N) as u32, "a multiply-add", &mut || {
            let done =
                narrow::matmul(black_box(case.a), case.b, case.epilogue, (&mut y[..]).into());
            paths = done.unwrap_or_default();
        });
        println!("{}: sums of 32 bits {}, of 64 {}", name[0], paths.narrow, paths.planes);
        report(counter, name[1], (N * N) as u32, "a multiply-add", &mut || {
            let done =
                reference::matmul(black_box(case.a), case.b, case.epilogue, (&mut y[..]).into());
            right &= done.is_ok();
        });
        if case.a.shape().format().is_some() {
            right &= from_values(&case)?;
        }
    }
    Ok(right && layers == 4)
}

fn name_of(case: &Matmul<'_>) -> [&'static str; 2] {
    match (case.a.shape().format(), case.b.shape().format()) {
        (None, Some(Format::MxFp4)) => ["mxint8 by mxfp4", "mxint8 by mxfp4, reference"],
        (None, _) => ["mxint8 by nvfp4", "mxint8 by nvfp4, reference"],
        (Some(Format::MxFp4), _) => ["mxfp4", "mxfp4, reference"],
        _ => ["nvfp4", "nvfp4, reference"],
    }
}

/// What a device does with a layer: a block of f32 activations is quantized on the stack, decoded
/// to look at it, its scales swizzled as an accelerator would want them, and multiplied by the
/// weight in flash, with the bias.
fn from_values(case: &Matmul<'_>) -> Result<bool, Failure> {
    let x: [f32; N] = core::array::from_fn(|i| ((i * 37 % 101) as f32 - 50.0) / 32.0);
    let format = case.b.shape().format().unwrap_or(Format::NvFp4);
    let spec = QuantSpec::usual(format);
    let (mut codes, mut scales) = ([0; N / 2], [0; N / 16]);
    let scales = &mut scales[..N / format.group().get()];
    quantize(&x, &spec, &mut codes, scales)?;
    let mut back = [0f32; N];
    dequantize(&codes, scales, &spec, &mut back)?;
    // What a code can be away from: half a step of 2 units, of which the largest has 6.
    let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let near = x.iter().zip(&back).all(|(x, back)| (x - back).abs() <= largest / 4.0);
    let mut tiles = [0; 1024];
    swizzle(scales, scales.len(), &mut tiles[..scales.len().next_multiple_of(4) * 128])?;

    let (codes_b, scales_b) = (case.b.codes(), case.b.scales());
    let layer = Layer { format, k: N, codes: codes_b, scales: scales_b, epilogue: case.epilogue };
    let packed = PackedView::new(PackedShape::of(format, 1, N)?, &codes, scales)?;
    let (mut y, mut wide) = ([0f32; N], [0f32; N]);
    layer.forward(packed, &mut y)?;
    layer.forward_wide(packed, &mut wide)?;
    let same = y.iter().zip(&wide).all(|(y, wide)| y.to_bits() == wide.to_bits());
    println!("layer of {format}: from f32 by a weight in flash, the reference's bits: {same}");
    Ok(near && same && tiles[..scales.len().min(4)] == scales[..scales.len().min(4)])
}

/// What quantizing, decoding and the layout cost; and a layer of int8.
fn measure_the_rest(counter: &mut Counter) {
    let x: [f32; N] = core::array::from_fn(|i| ((i * 37 % 101) as f32 - 50.0) / 32.0);
    let (mut codes, mut scales, mut y) = ([0; N / 2], [0; N / 16], [0f32; N]);
    for (format, name) in [
        (Format::MxFp4, ["quantize mxfp4", "dequantize mxfp4"]),
        (Format::NvFp4, ["quantize nvfp4", "dequantize nvfp4"]),
    ] {
        let spec = QuantSpec::usual(format);
        let scales = &mut scales[..N / format.group().get()];
        report(counter, name[0], N as u32, "a value", &mut || {
            let _ = black_box(quantize(black_box(&x), &spec, &mut codes, scales));
        });
        report(counter, name[1], N as u32, "a value", &mut || {
            let _ = black_box(dequantize(&codes, scales, &spec, black_box(&mut y)));
        });
    }
    let mut tiles = [0; 1024];
    report(counter, "swizzle", 1024, "a byte", &mut || {
        let _ = black_box(swizzle(&CASES[..1024], 8, black_box(&mut tiles)));
    });
    let weight: &[i8] = bytemuck::cast_slice(&CASES[..N * N]);
    let bias: &[i32] = bytemuck::cast_slice(&CASES[..4 * N]);
    let mut y = [0i8; N];
    report(counter, "int8", (N * N) as u32, "a multiply-add", &mut || {
        let x = &black_box(weight)[..N];
        int8::fully_connected(x, black_box(weight), bias, black_box(1 << 24), 3, black_box(&mut y));
    });
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{info}");
    semihosting::process::exit(101)
}
