//! Operands kept in the kernels' form: the bits of the two-step way, and no allocation [C6].

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{Rng, each_isa, same_bits};
use fp4_backend_cpu_simd::{CpuOperand, CpuSimd, Isa};
use fp4_core::backend::{Resident, Sink, Source};
use fp4_core::{
    Epilogue, Error, FloatType, Format, Matmul, PackedMatrix, QuantSpec, QuantizeInput, Transform,
    hadamard, reference,
};

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: it hands every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn weight(rng: &mut Rng, format: Format, n: usize, k: usize) -> PackedMatrix {
    let spec = QuantSpec::usual(format);
    let w: Vec<f32> = (0..n * k).map(|_| rng.gauss()).collect();
    let mut packed = PackedMatrix::zeros(spec.shape(n, k).unwrap());
    let input = QuantizeInput::new(&w[..], n, k, &spec).unwrap();
    reference::quantize(&input, &mut packed.view_mut()).unwrap();
    packed
}

/// Each format of a weight with the activations of its own format, and with MXINT8's; and NVFP4
/// with row scales.
fn products() -> impl Iterator<Item = (Format, QuantSpec)> {
    let both = |format| [QuantSpec::usual(format), QuantSpec::mxint8()];
    let rows = QuantSpec::usual(Format::NvFp4).with_row_scales().unwrap();
    let all =
        Format::ALL.into_iter().flat_map(move |format| both(format).map(|spec| (format, spec)));
    all.chain([(Format::NvFp4, rows)])
}

/// An input by the reference, with its row scales, which are of no use unless it asks for them.
fn by_reference(input: &QuantizeInput<'_>) -> (PackedMatrix, Vec<f32>) {
    let (mut packed, mut rows) =
        (PackedMatrix::zeros(input.shape()), vec![f32::NAN; input.shape().rows()]);
    let mut out = packed.view_mut().with_row_scales(&mut rows).unwrap();
    reference::quantize(input, &mut out).unwrap();
    (packed, rows)
}

#[test]
fn the_fused_way_has_the_bits_of_the_two_steps() {
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(41), 0);
        let mut operand = on.empty_operand().unwrap();
        let mut tensor = on.empty_tensor().unwrap();
        for (format, spec) in products() {
            // The same operand for every shape and format.
            for (m, n, k) in [(1, 40, 128), (30, 17, 256), (0, 5, 128), (5, 9, 0), (3, 33, 384)] {
                for transformed in [false, true] {
                    let w = weight(&mut rng, format, n, k);
                    let prepared = on.prepare(w.view()).unwrap();
                    let x: Vec<f32> = (0..m * k).map(|_| rng.gauss()).collect();
                    let mut h = vec![0f32; 32 * 32];
                    hadamard(32, &mut h).unwrap();
                    let t = transformed.then(|| Transform::shared(&h[..], 32).unwrap());
                    let input = QuantizeInput::new(&x[..], m, k, &spec).unwrap();
                    let input = input.with_transform(t).unwrap();
                    let (packed, rows) = by_reference(&input);
                    let rows = spec.row_scales().then_some(&rows[..]);
                    let epilogue = Epilogue::new(0.3).with_row_scales(rows);
                    let mut expected = vec![0f32; m * n];
                    let out = (&mut expected[..]).into();
                    reference::matmul(packed.view(), w.view(), epilogue, out).unwrap();

                    let t = t.map(|t| on.load_transform(&t, FloatType::F32).unwrap());
                    on.upload((&x[..]).into(), &mut tensor).unwrap();
                    let x = Source::Resident(&tensor);
                    on.quantize_resident(x, [m, k], &spec, t.as_ref(), &mut operand, None).unwrap();
                    assert_eq!(operand.packed(), packed.view());
                    let kept = operand.row_scales().unwrap_or_default();
                    compared += same_bits(kept, rows.unwrap_or_default(), "row scales");
                    let mut y = vec![0f32; m * n];
                    let out = Sink::Host((&mut y[..]).into());
                    on.matmul_resident(&operand, &prepared, 0.3.into(), out).unwrap();
                    compared += same_bits(&y, &expected, "to the host");
                    let mut out = on.empty_tensor().unwrap();
                    let sink = Sink::Resident(&mut out, FloatType::F32);
                    on.matmul_resident(&operand, &prepared, 0.3.into(), sink).unwrap();
                    on.download(&out, (&mut y[..]).into()).unwrap();
                    compared += same_bits(&y, &expected, "to a tensor");
                    let mut imported = on.empty_operand().unwrap();
                    on.import(packed.view(), &mut imported).unwrap();
                    let sink = Sink::Resident(&mut out, FloatType::F32);
                    // What is imported has none, and an epilogue's go before an operand's own.
                    assert!(imported.row_scales().is_none());
                    on.matmul_resident(&imported, &prepared, epilogue, sink).unwrap();
                    on.download(&out, (&mut y[..]).into()).unwrap();
                    compared += same_bits(&y, &expected, "imported");
                    let (mut exported, mut scales) =
                        (PackedMatrix::zeros(packed.shape()), vec![-7f32; m]);
                    let mut to = exported.view_mut().with_row_scales(&mut scales).unwrap();
                    on.export(&operand, &mut to).unwrap();
                    assert_eq!(exported, packed);
                    same_bits(&scales, rows.unwrap_or(&vec![-7.0; m]), "exported");
                    if let Some(rows) = rows {
                        let halves: Vec<f32> = rows.iter().map(|r| r / 2.0).collect();
                        let own = epilogue.with_row_scales(Some(&halves));
                        let out = (&mut expected[..]).into();
                        reference::matmul(packed.view(), w.view(), own, out).unwrap();
                        let out = Sink::Host((&mut y[..]).into());
                        on.matmul_resident(&operand, &prepared, own, out).unwrap();
                        compared += same_bits(&y, &expected, "by the epilogue's");
                    }
                }
            }
        }
        println!("compared {compared} outputs");
        assert!(compared > 6000);
    });
}

#[test]
fn decoding_allocates_nothing_in_the_steady_state() {
    // The thread that counts is the pool.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    let pool = std::sync::Arc::new(pool.build().unwrap());
    each_isa(|on| {
        if on.isa() == Isa::Portable {
            return; // its operands are made for each call
        }
        let mut rng = Rng(42);
        let on = on.clone().with_pool(pool.clone());
        for (format, spec) in products() {
            let w = weight(&mut rng, format, 512, 512);
            let prepared = on.prepare(w.view()).unwrap();
            let mut operand = on.empty_operand().unwrap();
            let mut h = vec![0f32; 32 * 32];
            hadamard(32, &mut h).unwrap();
            let t = Transform::shared(&h[..], 32).unwrap();
            let t = on.load_transform(&t, FloatType::F32).unwrap();
            for m in [1, 16] {
                let x: Vec<f32> = (0..m * 512).map(|_| rng.gauss()).collect();
                let mut y = vec![0f32; m * 512];
                let mut packed = PackedMatrix::zeros(spec.shape(m, 512).unwrap());
                let mut step = || {
                    for t in [Some(&t), None] {
                        let source = Source::Host((&x[..]).into());
                        on.quantize_resident(source, [m, 512], &spec, t, &mut operand, None)
                            .unwrap();
                    }
                    let out = Sink::Host((&mut y[..]).into());
                    on.matmul_resident(&operand, &prepared, 1.0.into(), out).unwrap();
                    on.export(&operand, &mut packed.view_mut()).unwrap();
                    on.matmul(packed.view(), &prepared, 1.0.into(), (&mut y[..]).into()).unwrap();
                };
                step();
                let before = COUNT.with(Cell::get);
                (0..10).for_each(|_| step());
                let allocations = COUNT.with(Cell::get) - before;
                println!("{format} by {spec:?} m {m}: {allocations} allocations in ten steps");
                assert_eq!(allocations, 0);
            }
        }
    });
}

/// Fills an operand with `x`, quantized there, or packed by the reference and imported; returns it
/// as the reference packs it.
fn fill(
    on: &CpuSimd,
    operand: &mut CpuOperand,
    x: &[f32],
    [m, k]: [usize; 2],
    spec: &QuantSpec,
    imported: bool,
) -> (PackedMatrix, Option<Vec<f32>>) {
    let input = QuantizeInput::new(x, m, k, spec).unwrap();
    let (packed, rows) = by_reference(&input);
    if imported {
        on.import(packed.view(), operand).unwrap();
    } else {
        on.quantize_resident(Source::Host(x.into()), [m, k], spec, None, operand, None).unwrap();
    }
    (packed, spec.row_scales().then_some(rows))
}

#[test]
fn an_operand_has_the_references_bits_on_weights_of_any_instruction_set() {
    let (mut rng, mut compared) = (Rng(43), 0);
    let [m, n, k] = [3, 19, 96];
    for (format, spec) in products() {
        let w = weight(&mut rng, format, n, k);
        // One operand that every instruction set fills in turn, each with other values; every
        // second value comes packed.
        let mut operand = CpuSimd::new().empty_operand().unwrap();
        for (round, from) in Isa::available().chain(Isa::available()).enumerate() {
            let made = CpuSimd::with_isa(from).unwrap();
            let x: Vec<f32> = (0..m * k).map(|_| rng.gauss()).collect();
            let imported = round % 2 == 1;
            let (packed, rows) = fill(&made, &mut operand, &x, [m, k], &spec, imported);
            let epilogue = Epilogue::new(0.3).with_row_scales(rows.as_deref());
            // What is made there has its row scales with it.
            let given = if imported { epilogue } else { 0.3.into() };
            let mut expected = vec![0f32; m * n];
            let out = (&mut expected[..]).into();
            reference::matmul(packed.view(), w.view(), epilogue, out).unwrap();
            for of in Isa::available() {
                let prepared = CpuSimd::with_isa(of).unwrap().prepare(w.view()).unwrap();
                for to in Isa::available() {
                    let (on, mut y) = (CpuSimd::with_isa(to).unwrap(), vec![0f32; m * n]);
                    let out = Sink::Host((&mut y[..]).into());
                    on.matmul_resident(&operand, &prepared, given, out).unwrap();
                    let case = format!("{format} {from}'s operand, {of}'s weight, on {to}");
                    compared += same_bits(&y, &expected, &case);
                }
            }
        }
    }
    println!("compared {compared} outputs");
    assert_eq!(compared, 5 * 2 * Isa::available().count().pow(3) * m * n);
}

#[test]
fn one_operand_takes_every_activation_to_the_same_weights_of_both_formats() {
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(44), 0);
        let [m, n, k] = [3, 35, 160];
        let weights = Format::ALL.map(|format| weight(&mut rng, format, n, k));
        let prepared = weights.each_ref().map(|w| on.prepare(w.view()).unwrap());
        let mut operand = on.empty_operand().unwrap();
        for round in 0..12 {
            // MXINT8 in two of three rounds, so that it also follows itself.
            let own = Format::ALL[round / 3 % 2];
            let spec = if round % 3 == 1 { QuantSpec::usual(own) } else { QuantSpec::mxint8() };
            let x: Vec<f32> = (0..m * k).map(|_| rng.gauss()).collect();
            let (packed, _) = fill(on, &mut operand, &x, [m, k], &spec, round % 2 == 1);
            assert_eq!(operand.packed(), packed.view());
            for format in [0, 1, 1, 0, 0] {
                let (mut y, mut expected) = (vec![7f32; m * n], vec![0f32; m * n]);
                let out = (&mut expected[..]).into();
                let by_reference =
                    reference::matmul(packed.view(), weights[format].view(), 0.3, out);
                let out = Sink::Host((&mut y[..]).into());
                let got = on.matmul_resident(&operand, &prepared[format], 0.3.into(), out);
                let case = format!("round {round}, weight in {}", Format::ALL[format]);
                if round % 3 == 1 && Format::ALL[format] != own {
                    let refused = got.unwrap_err();
                    assert!(matches!(refused, Error::FormatMismatch { .. }), "{case}: {refused}");
                    assert_eq!((by_reference, y), (Err(refused), vec![7.0; m * n]), "{case}");
                    continue;
                }
                got.and(by_reference).unwrap();
                compared += same_bits(&y, &expected, &case);
            }
        }
        println!("compared {compared} outputs");
        assert_eq!(compared, (8 * 5 + 3 + 2 + 3 + 2) * m * n);
    });
}

#[test]
fn wrong_transforms_are_errors() {
    each_isa(|made| {
        let spec = QuantSpec::usual(Format::MxFp4);
        let x = [1f32; 64];
        let mut operand = made.empty_operand().unwrap();
        let mut h = vec![0f32; 128 * 128];
        hadamard(128, &mut h).unwrap();
        let t = made.load_transform(&Transform::shared(&h[..], 128).unwrap(), FloatType::F32);
        let source = Source::Host((&x[..]).into());
        let got =
            made.quantize_resident(source, [1, 64], &spec, t.ok().as_ref(), &mut operand, None);
        assert_eq!(got, Err(Error::TransformShape { k: 64, block: 128, blocks: None }));
        let t = made.load_transform(&Transform::shared(&h[..32 * 32], 32).unwrap(), FloatType::F16);
        let source = Source::Host((&x[..]).into());
        let got =
            made.quantize_resident(source, [1, 64], &spec, t.ok().as_ref(), &mut operand, None);
        assert!(matches!(got, Err(Error::Float { .. })));
    });
}
