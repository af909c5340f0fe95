//! The narrow matmul against the reference: the path that a row's scales ask for, at each bound and
//! one past it, and the bits on all of them (C6).

use fp4_core::narrow::{self, Narrow};
use fp4_core::{
    Encoding, Epilogue, ExactSum, Format, Matmul, PackedMut, PackedShape, PackedView, PartialsMut,
    Paths, Product, bf16, f16, reference,
};
use quickcheck::{Arbitrary, Gen, quickcheck};

/// A packed matrix.
#[derive(Debug, Clone)]
struct Operand {
    encoding: Encoding,
    rows: usize,
    k: usize,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl Operand {
    fn view(&self) -> PackedView<'_> {
        let shape = PackedShape::encoded(self.encoding, self.rows, self.k).unwrap();
        PackedView::new(shape, &self.codes, &self.scales).unwrap()
    }

    /// One row of the largest dot products, under these scales.
    fn largest(encoding: Encoding, scales: Vec<u8>) -> Self {
        let k = scales.len() * encoding.group().get();
        // -6 and -128.
        let code = if encoding == Encoding::MxInt8 { 0x80 } else { 0xFF };
        let codes = vec![code; k / encoding.element().per_byte()];
        Operand { encoding, rows: 1, k, codes, scales }
    }

    /// As [`largest`](Self::largest), of `k` elements: the largest scale of a span of `width` above
    /// `low`, and the least in the first group.
    fn spanning(encoding: Encoding, k: usize, width: u32) -> Self {
        let groups = k / encoding.group().get();
        let (least, largest) = match encoding {
            // 15 * 2^-9, the largest significand, and up; 14 exponents there are.
            Encoding::NvFp4 => (0x0F, 0x0F + 8 * width as u8),
            // 2^-60 and up.
            _ => (67, 67 + width as u8),
        };
        let mut scales = vec![largest; groups];
        scales[0] = least;
        Operand::largest(encoding, scales)
    }
}

/// The bits of both products, which must be equal, and the paths.
fn both(a: &Operand, b: &Operand) -> (Vec<u32>, Paths) {
    let outputs = a.rows * b.rows;
    let (mut got, mut expected) = (vec![f32::NAN; outputs], vec![f32::NAN; outputs]);
    let paths = narrow::matmul(a.view(), b.view(), 1.0, (&mut got[..]).into()).unwrap();
    reference::matmul(a.view(), b.view(), 1.0, (&mut expected[..]).into()).unwrap();
    let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&got), bits(&expected), "{a:?} {b:?}");
    (bits(&got), paths)
}

const NARROW: Paths = Paths::new(1, 0, 0);
const DOUBLE: Paths = Paths::new(0, 1, 0);
const WIDE: Paths = Paths::new(0, 0, 1);

/// Which path the module's bounds give, computed here with 128-bit integers; of NVFP4 the span is
/// all that there is.
fn expected(product: Product, k: usize, a: u32, b: u32) -> Paths {
    let of = |encoding, width| if encoding == Encoding::NvFp4 { (15, 14) } else { (1u128, width) };
    let ((sa, a), (sb, b)) = (of(product.a, a), of(product.b.into(), b));
    let of_element: u128 = if product.a == Encoding::MxInt8 { 1536 } else { 144 };
    let all = (k as u128 * of_element * sa * sb) << (a + b);
    let group = product.b.group().get() as u128;
    let alone = (group * of_element * sa) << a < 1 << 31 && sb << b < 1 << 31;
    match (all < 1 << 31, all < 1 << 63 && alone) {
        (true, _) => NARROW,
        (_, true) => DOUBLE,
        _ => WIDE,
    }
}

#[test]
fn every_span_takes_the_path_of_the_bounds_and_has_the_bits_of_the_reference() {
    let mut seen = Paths::default();
    for product in Product::ALL {
        let widths = |encoding| if encoding == Encoding::NvFp4 { 0..14 } else { 0..50 };
        for k in [32, 64, 128, 480, 1024] {
            for a in widths(product.a) {
                for b in widths(product.b.into()) {
                    let x = Operand::spanning(product.a, k, a);
                    let y = Operand::spanning(product.b.into(), k, b);
                    // A single group has no span.
                    let of = |o: &Operand, width| if o.scales.len() > 1 { width } else { 0 };
                    let path = expected(product, k, of(&x, a), of(&y, b));
                    let (_, paths) = both(&x, &y);
                    assert_eq!(paths, path, "{product:?} K = {k}, spans {a} and {b}");
                    seen.merge(&paths);
                }
            }
        }
    }
    assert!(seen.narrow > 500 && seen.planes > 5000 && seen.wide > 5000, "{seen:?}");
}

#[test]
fn the_bounds_of_the_modules_table_hold_and_are_the_last() {
    for (product, k, [a, b], on, past) in [
        (Product::of(Format::MxFp4), 128, [8, 8], NARROW, DOUBLE),
        (Product::of(Format::MxFp4), 128, [16, 0], NARROW, DOUBLE),
        (Product::of(Format::MxFp4), 128, [18, 0], DOUBLE, WIDE),
        (Product::of(Format::MxFp4), 128, [18, 30], DOUBLE, WIDE),
        (Product::of(Format::MxFp4), 32768, [10, 30], DOUBLE, WIDE),
        (Product { a: Encoding::MxInt8, b: Format::MxFp4 }, 128, [6, 7], NARROW, DOUBLE),
        (Product { a: Encoding::MxInt8, b: Format::MxFp4 }, 128, [15, 30], DOUBLE, WIDE),
        (Product { a: Encoding::MxInt8, b: Format::NvFp4 }, 128, [16, 5], DOUBLE, WIDE),
    ] {
        let path = |a, b| {
            let x = Operand::spanning(product.a, k, a);
            both(&x, &Operand::spanning(product.b.into(), k, b)).1
        };
        assert_eq!(path(a, b), on, "{product:?} {k} {a} {b}");
        assert_eq!(path(a + 1, b), past, "{product:?} {k} {a} + 1, {b}");
    }
    // The span of B alone.
    let [b30, b31] = [30, 31].map(|width| {
        let x = Operand::spanning(Encoding::MxFp4, 128, 0);
        both(&x, &Operand::spanning(Encoding::MxFp4, 128, width)).1
    });
    assert_eq!((b30, b31), (DOUBLE, WIDE));
    // NVFP4 in all its exponents: the last K of 64 bits, and a group more.
    let full = |k: usize| {
        let mut scales = vec![0x7E; k / 16];
        scales[0] = 0x01;
        Operand::largest(Encoding::NvFp4, scales)
    };
    let last = (1usize << 35) / (144 * 15 * 15) / 16 * 16;
    assert!(last >= 1 << 20);
    for (k, path) in [(1 << 20, DOUBLE), (last, DOUBLE), (last + 16, WIDE)] {
        let operand = full(k);
        assert_eq!(both(&operand, &operand).1, path, "K = {k}");
    }
}

#[test]
fn groups_that_do_not_count_cost_nothing() {
    // Padding: codes 0 under 2^-127, codes -0 under the largest; a zero scale, of either sign.
    let mut a = Operand::largest(Encoding::MxFp4, vec![127, 0, 127, 254]);
    a.codes[16..32].fill(0);
    a.codes[48..].fill(0x88);
    let b = Operand::largest(Encoding::MxFp4, vec![127; 4]);
    let (bits, paths) = both(&a, &b);
    assert_eq!((bits[0], paths), ((36f32 * 64.0).to_bits(), NARROW));
    let a = Operand::largest(Encoding::NvFp4, vec![0x70, 0x00, 0x70, 0x80]);
    let b = Operand::largest(Encoding::NvFp4, vec![0x70; 4]);
    assert_eq!(both(&a, &b).1, DOUBLE);
    let zero = Operand::largest(Encoding::NvFp4, vec![0x80; 4]);
    assert_eq!(both(&zero, &b), (vec![0], DOUBLE));
}

#[test]
fn nan_scales_and_empty_sums_are_the_references() {
    for (encoding, byte) in
        [(Encoding::MxFp4, 0xFF), (Encoding::NvFp4, 0x7F), (Encoding::NvFp4, 0xFF)]
    {
        let finite = Operand::largest(encoding, vec![0x38, 0x38]);
        // A NaN counts even where the codes are zero.
        let mut nan = Operand::largest(encoding, vec![0x38, byte]);
        nan.codes.fill(0);
        assert_eq!(both(&nan, &finite).0, [fp4_core::NAN_F32]);
        assert_eq!(both(&finite, &nan).0, [fp4_core::NAN_F32]);
    }
    let none = |rows| Operand { rows, ..Operand::largest(Encoding::MxFp4, vec![]) };
    assert_eq!(both(&none(2), &none(3)).0, [0; 6]);
    assert_eq!(both(&none(0), &none(3)).0, []);
}

#[test]
fn sums_that_are_subnormal_or_infinite_are_rounded_once() {
    for bytes in [[0, 0], [0, 54], [1, 120], [254, 254], [254, 120], [200, 180]] {
        let [mut a, b] = bytes.map(|byte| Operand::largest(Encoding::MxFp4, vec![byte; 2]));
        for code in [0x01, 0x09, 0x13, 0x77] {
            a.codes.fill(0);
            a.codes[5] = code;
            assert_eq!(both(&a, &b).1, NARROW, "{bytes:?} {code}");
        }
    }
}

#[test]
fn what_does_not_fit_is_the_references_error() {
    let a = Operand::largest(Encoding::MxFp4, vec![127; 2]);
    let b = Operand::largest(Encoding::NvFp4, vec![0x38; 4]);
    let longer = Operand::largest(Encoding::MxFp4, vec![127; 3]);
    let bias = [1.0; 2];
    let with_bias = Epilogue::new(1.0).with_bias(Some(&bias));
    let with_scales = Epilogue::new(1.0).with_row_scales(Some(&bias));
    let mut y = [0f32; 2];
    let alpha = Epilogue::new(1.0);
    for (a, b, epilogue, outputs) in [
        (&a, &b, alpha, 1),
        (&a, &longer, alpha, 1),
        (&a, &a, alpha, 0),
        (&a, &a, alpha, 2),
        (&a, &a, with_bias, 1),
        (&a, &a, with_scales, 1),
    ] {
        let got = narrow::matmul(a.view(), b.view(), epilogue, (&mut y[..outputs]).into());
        let expected = reference::matmul(a.view(), b.view(), epilogue, (&mut y[..outputs]).into());
        assert_eq!(got.map(|_| ()), expected);
        assert!(expected.is_err());
    }
}

#[test]
fn the_backend_gives_partial_sums_and_the_weight_back() {
    let a = Operand::largest(Encoding::MxFp4, vec![127, 130]);
    let weight = Narrow.prepare(a.view()).unwrap();
    let (mut got, mut expected) = ([ExactSum::ZERO], [ExactSum::ZERO]);
    Narrow.partial(a.view(), &weight, 1..2, PartialsMut::Exact(&mut got)).unwrap();
    reference::partial(a.view(), a.view(), 1..2, PartialsMut::Exact(&mut expected)).unwrap();
    assert_eq!(got, expected);
    assert_ne!(got, [ExactSum::ZERO]);
    let (mut codes, mut scales) = ([0; 32], [0; 2]);
    let mut out = PackedMut::new(a.view().shape(), &mut codes, &mut scales).unwrap();
    Narrow.export_weight(&weight, &mut out).unwrap();
    assert!(out.as_view() == a.view());
}

/// Two random operands.
#[derive(Debug, Clone)]
struct Pair(Operand, Operand);

impl Arbitrary for Pair {
    fn arbitrary(g: &mut Gen) -> Self {
        let product = *g.choose(&Product::ALL).unwrap();
        let k = 32 * (usize::arbitrary(g) % 10);
        // Of scales near one another, or anywhere; and of codes of which many are 0.
        let mut operand = |encoding: Encoding, most: usize| {
            let rows = usize::arbitrary(g) % most;
            let (center, width) = (u8::arbitrary(g), *g.choose(&[1, 4, 12, 40, 255]).unwrap());
            let groups = rows * k / encoding.group().get();
            let scales = (0..groups).map(|_| center.wrapping_add(u8::arbitrary(g) % width));
            let scales: Vec<u8> = scales.collect();
            // NaN now and then; always, most outputs of wide spans would be.
            let kept = u8::arbitrary(g) % 8 == 0;
            let finite = |&byte: &u8| match encoding.scale_type().is_nan(byte) {
                true if !kept => byte & 0x70,
                _ => byte,
            };
            let scales: Vec<u8> = scales.iter().map(finite).collect();
            let bytes = encoding.group().get() / encoding.element().per_byte();
            let codes = (0..groups).flat_map(|_| {
                let zero = u8::arbitrary(g) % 4 == 0;
                (0..bytes).map(|_| if zero { 0 } else { u8::arbitrary(g) }).collect::<Vec<_>>()
            });
            let codes = codes.collect();
            Operand { encoding, rows, k, codes, scales }
        };
        // Of columns more than a tile.
        Pair(operand(product.a, 4), operand(product.b.into(), 20))
    }
}

quickcheck! {
    fn any_product_has_the_bits_of_the_reference(pair: Pair, alpha: f32, seed: u8) -> bool {
        let Pair(a, b) = &pair;
        both(a, b);
        let values = |n: usize| (0..n).map(|i| (i as f32 - 1.5) * f32::from(seed)).collect::<Vec<_>>();
        let (rows, bias) = (values(a.rows), values(b.rows));
        let epilogue = Epilogue::new(alpha);
        let epilogue = epilogue.with_row_scales((seed & 1 == 1).then_some(&rows));
        let epilogue = epilogue.with_bias((seed & 2 == 2).then_some(&bias));
        let outputs = a.rows * b.rows;
        let (mut got, mut expected) = (vec![f16::ONE; outputs], vec![f16::ZERO; outputs]);
        narrow::matmul(a.view(), b.view(), epilogue, (&mut got[..]).into()).unwrap();
        reference::matmul(a.view(), b.view(), epilogue, (&mut expected[..]).into()).unwrap();
        let halves = got.iter().map(|y| y.to_bits()).eq(expected.iter().map(|y| y.to_bits()));
        let (mut got, mut expected) = (vec![bf16::ONE; outputs], vec![bf16::ZERO; outputs]);
        narrow::matmul(a.view(), b.view(), epilogue, (&mut got[..]).into()).unwrap();
        reference::matmul(a.view(), b.view(), epilogue, (&mut expected[..]).into()).unwrap();
        halves && got.iter().map(|y| y.to_bits()).eq(expected.iter().map(|y| y.to_bits()))
    }
}
