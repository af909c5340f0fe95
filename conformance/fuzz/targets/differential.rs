//! Any codes, scales, values and settings: the oracle, the reference and the CPU backend on every
//! instruction set that this CPU has agree bit for bit.

#![no_main]

use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use fp4_backend_cpu_simd::{CpuSimd, Isa};
use fp4_conformance::oracle::{Oracle, Wide};
use fp4_conformance::tensor::{bits_of, from_bits, garbage};
use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;
use fp4_core::{
    Element, Encoding, ExactSum, FloatType, Format, GroupSize, MatmulQuery, PackedMatrix,
    PackedShape, PartialsMut, QuantSpec, QuantizeInput, ScaleType, TieMode, Transform,
};
use libfuzzer_sys::fuzz_target;

static ORACLE: LazyLock<Oracle> = LazyLock::new(Oracle::default);
static BACKENDS: LazyLock<Vec<(&'static str, Backend)>> = LazyLock::new(|| {
    let isas = Isa::available().map(|isa| {
        let cpu = CpuSimd::with_isa(isa).expect("this CPU has it");
        (isa.name(), Backend::resident(cpu))
    });
    [("reference", Backend::new(Reference))].into_iter().chain(isas).collect()
});

#[derive(Debug, Arbitrary)]
struct Request {
    quantize: bool,
    format: u8,
    output: u8,
    rows: [u8; 2],
    groups: u8,
    alpha: u32,
    setting: u8,
    tie: u8,
    transform: u8,
    /// Scales are taken as they come, or moved into a window.
    window: u8,
    base: u8,
}

fuzz_target!(|data: &[u8]| {
    let mut source = Unstructured::new(data);
    let Ok(request) = Request::arbitrary(&mut source) else { return };
    let mut bytes = source.take_rest().iter().copied().cycle().peekable();
    let given = bytes.peek().is_some();
    let mut next = move || if given { bytes.next().unwrap_or(0) } else { 0x3A };
    if request.quantize { quantize(&request, &mut next) } else { multiply(&request, &mut next) }
});

fn float_type(choice: u8) -> FloatType {
    FloatType::ALL[usize::from(choice) % 3]
}

fn multiply(request: &Request, next: &mut dyn FnMut() -> u8) {
    let format = Format::ALL[usize::from(request.format & 1)];
    let encoding = if request.format & 2 == 0 { format.into() } else { Encoding::MxInt8 };
    let (m, n) = (usize::from(request.rows[0] % 36), usize::from(request.rows[1] % 36));
    let k = usize::from(request.groups % 20) * encoding.group().get();
    let mut operand = |encoding: Encoding, rows: usize| {
        let shape = PackedShape::encoded(encoding, rows, k).expect("whole groups");
        let codes = (0..shape.codes_len()).map(|_| next()).collect();
        let scale = |byte: u8| match request.window % 4 {
            0 => byte,
            _ => request.base.wrapping_add(byte % (request.window / 4).max(1)),
        };
        let scales = (0..shape.scales_len()).map(|_| scale(next())).collect();
        PackedMatrix::new(shape, codes, scales).expect("right lengths")
    };
    let (a, b) = (operand(encoding, m), operand(format.into(), n));
    let (alpha, output) = (f32::from_bits(request.alpha), float_type(request.output));
    let sums = ORACLE.sums(a.view(), b.view(), 0..b.shape().row_groups());
    let expected: Vec<u32> = sums.iter().map(|sum| ORACLE.output(sum, alpha, output)).collect();
    for (name, backend) in BACKENDS.iter() {
        let matmul = backend.matmul().expect("every one has a matmul");
        let query = MatmulQuery::new(format, [m, n, k], output).with_a(encoding);
        if matmul.supports_matmul(&query).is_err() {
            continue;
        }
        let weight = matmul.clone().prepare_dyn(b.clone().into()).expect("a matmul format");
        let mut y = garbage(output, m * n);
        weight.matmul(a.view(), alpha.into(), y.as_mut_slice()).expect("operands that fit");
        let what = format!("{name}: {m} x {n} x {k} {encoding} by {format}");
        assert_eq!(bits_of(y.as_slice()), expected, "{what}");

        let all = b.shape().row_groups();
        let cut = usize::from(request.setting) % (all + 1);
        let mut partials = vec![ExactSum::ZERO; m * n];
        for groups in [cut..all, 0..cut] {
            let out = PartialsMut::Exact(&mut partials);
            weight.partial(a.view(), groups, out).expect("a range inside");
        }
        for (sum, expected) in partials.iter().zip(&sums) {
            assert_eq!(words(sum), wide(expected), "{name}: partial sums");
        }
    }
}

/// Two's complement in words, or NaN.
fn words(sum: &ExactSum) -> Option<Vec<u32>> {
    let bytes = sum.to_bytes();
    let word = |b: &[u8]| b.iter().rev().fold(0, |word, &b| word << 8 | u32::from(b));
    (bytes[81] == 0).then(|| bytes[1..81].chunks_exact(4).map(word).collect())
}

fn wide(sum: &Wide) -> Option<Vec<u32>> {
    (!sum.is_nan()).then(|| sum.twos_complement()[..20].to_vec())
}

fn quantize(request: &Request, next: &mut dyn FnMut() -> u8) {
    let ty = [ScaleType::E8M0, ScaleType::E4M3][usize::from(request.format & 1)];
    let group = [16, 32, 64, 128][usize::from(request.format >> 1 & 3)];
    let group = GroupSize::new(group).expect("a group size");
    let settings = [(1.0 / 3.0, 4.0), (0.1, 6.0), (1.0, 6.0), (1.0 / 2688.0, 6.0), (1e-42, 4.0)];
    let (gs, ss) = settings[usize::from(request.setting) % settings.len()];
    let Ok(spec) = QuantSpec::new(ty, group, gs, ss) else { return };
    let spec = spec.with_tie(TieMode::ALL[usize::from(request.tie & 3)]);
    let spec = if request.tie & 12 == 12 { QuantSpec::mxint8() } else { spec };
    let rows_too = request.tie & 16 != 0;
    let spec = spec.with_row_scales().ok().filter(|_| rows_too).unwrap_or(spec);
    let group = spec.group();
    let block = [0, 16, 32, 64][usize::from(request.transform & 3)];
    let chunk = group.get().max(block);
    let (rows, k) = (usize::from(request.rows[0] % 10), usize::from(request.groups % 6) * chunk);
    let float = float_type(request.output);
    let mut values = |len: usize| {
        let word =
            |next: &mut dyn FnMut() -> u8| u32::from_le_bytes([next(), next(), next(), next()]);
        let bits: Vec<u32> = (0..len)
            .map(|_| match float {
                FloatType::F32 => word(next),
                _ => u32::from(next()) | u32::from(next()) << 8,
            })
            .collect();
        from_bits(float, bits)
    };
    let x = values(rows * k);
    let matrix = values(block * block);
    let given: Vec<u8> = (0..rows * k / group.get()).map(|_| next()).collect();
    let mut input = QuantizeInput::new(x.as_slice(), rows, k, &spec).expect("whole groups");
    if block > 0 {
        let transform = Transform::shared(matrix.as_slice(), block).expect("a square");
        input = input.with_transform(Some(transform)).expect("it fits k");
    }
    if request.transform & 4 != 0 && spec.element() == Element::E2m1 {
        input = input.with_scales(&given).expect("one for each group");
    }
    let expected = ORACLE.quantize(&input);
    for (name, backend) in BACKENDS.iter() {
        let quantizer = backend.quantizer().expect("every one has a quantizer");
        if quantizer.supports_quantize(&input.query()).is_err() {
            continue;
        }
        let shape = input.shape();
        let dirty = (vec![0xA5; shape.codes_len()], vec![0xA5; shape.scales_len()]);
        let mut out = PackedMatrix::new(shape, dirty.0, dirty.1).expect("right lengths");
        let mut row_scales = vec![-7f32; rows];
        let mut to = out.view_mut().with_row_scales(&mut row_scales).expect("one for each row");
        quantizer.quantize(&input, &mut to).expect("an input that fits");
        if let Some(expected) = &expected.row_scales {
            let bits = |scales: &[f32]| scales.iter().map(|r| r.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&row_scales), bits(expected), "{name}: row scales");
        }
        assert_eq!(out.scales(), expected.scales, "{name}: scales");
        assert_eq!(out.codes(), expected.codes, "{name}: codes");
    }
}
