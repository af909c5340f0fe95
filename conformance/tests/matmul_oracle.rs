//! The reference matmul against big integers, over random operands of any shape (C6, C8).
//!
//! The oracle decodes by formula, adds with arbitrary precision in units of 2^-264, finds the
//! nearest f32 by a search among all f32 (comparing exact distances), multiplies by alpha in f64
//! (where the product of two f32 is exact) and rounds it once. It shares no code with the core.

mod tally;

use std::cell::Cell;
use std::cmp::Ordering;

use fp4_conformance::oracle::rules::{NAN, Rules, e2m1_doubled, scale_parts};
use fp4_conformance::random::Random;
use fp4_core::{
    Encoding, ExactSum, FixedSum, FloatType, Format, PackedMut, PackedShape, PackedView, Partials,
    PartialsMut, finish, pad_k, padded_k, reference,
};
use half::{bf16, f16};
use num_bigint::{BigInt, BigUint, Sign};
use quickcheck::{Arbitrary, Gen, QuickCheck};
use tally::canonical;

/// Exponent of the oracle's unit.
const UNIT: i32 = -264;

/// Two random operands and an alpha.
#[derive(Debug, Clone)]
struct Product {
    /// How A is encoded.
    encoding: Encoding,
    /// B's format.
    format: Format,
    m: usize,
    n: usize,
    /// Groups of A.
    groups: usize,
    a: Operand,
    b: Operand,
    alpha: f32,
    /// For the choices that a test makes beyond the operands.
    seed: u64,
}

#[derive(Debug, Clone)]
struct Operand {
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl Arbitrary for Product {
    fn arbitrary(g: &mut Gen) -> Self {
        let mut random = Random::seeded(u64::arbitrary(g));
        let format = random.pick(&Format::ALL);
        let encoding = if random.one_in(2) { Encoding::MxInt8 } else { format.into() };
        let (m, n, groups) = (random.below(5), random.below(5), random.below(9));
        let scales = Scales::pick(&mut random);
        let a = Operand::random(&mut random, encoding, m, groups, scales);
        let of_b = groups * encoding.group().get() / format.group().get();
        let b = Operand::random(&mut random, format.into(), n, of_b, scales);
        let alpha = match random.below(4) {
            0 => 1.0,
            1 => random.gauss(),
            _ => random.any_f32(),
        };
        Product { encoding, format, m, n, groups, a, b, alpha, seed: random.next_u64() }
    }
}

/// Where scale bytes come from.
#[derive(Debug, Clone, Copy)]
enum Scales {
    /// Every byte but NaN, nearly always.
    FullRange,
    /// A few neighbouring bytes: everything overlaps, ties occur.
    Near(u8),
    /// The smallest and the largest.
    Extreme,
}

impl Scales {
    fn pick(random: &mut Random) -> Self {
        match random.below(4) {
            0 => Scales::Extreme,
            1 => Scales::Near(random.byte()),
            _ => Scales::FullRange,
        }
    }

    fn byte(self, random: &mut Random, encoding: Encoding) -> u8 {
        let byte = match self {
            Scales::FullRange => random.byte(),
            Scales::Near(center) => center.wrapping_add(random.below(5) as u8),
            Scales::Extreme => random.pick(&[0x00, 0x01, 0x02, 0x7D, 0x7E, 0x80, 0x81, 0xFD, 0xFE]),
        };
        // NaN now and then; always, every other output would be NaN.
        let is_nan = scale_parts(encoding.scale_type(), byte).is_none();
        if is_nan && !random.one_in(8) { byte & 0x3F } else { byte }
    }
}

impl Operand {
    fn random(
        random: &mut Random,
        encoding: Encoding,
        rows: usize,
        groups: usize,
        scales: Scales,
    ) -> Self {
        let bytes = bytes(encoding);
        let zeros: &[u8] = match encoding {
            Encoding::MxInt8 => &[0x00],
            _ => &[0x00, 0x08, 0x80, 0x88],
        };
        let mut codes = Vec::new();
        for _ in 0..rows * groups {
            // All zeros, a single element, or anything.
            match random.below(8) {
                0 => codes.extend((0..bytes).map(|_| random.pick(zeros))),
                1 => {
                    let at = random.below(bytes);
                    codes.extend((0..bytes).map(|i| if i == at { random.byte() } else { 0 }));
                }
                _ => codes.extend((0..bytes).map(|_| random.byte())),
            }
        }
        let scales = (0..rows * groups).map(|_| scales.byte(random, encoding)).collect();
        Operand { codes, scales }
    }

    fn view(&self, encoding: Encoding, rows: usize, groups: usize) -> PackedView<'_> {
        let k = groups * encoding.group().get();
        let shape = PackedShape::encoded(encoding, rows, k).unwrap();
        PackedView::new(shape, &self.codes, &self.scales).unwrap()
    }

    /// The same rows with their K groups in another order.
    fn permuted(&self, encoding: Encoding, order: &[usize]) -> Operand {
        let (bytes, groups) = (bytes(encoding), order.len());
        let mut permuted = Operand { codes: Vec::new(), scales: Vec::new() };
        for row in 0..self.scales.len() / groups.max(1) {
            for g in order.iter().map(|g| row * groups + g) {
                permuted.codes.extend(&self.codes[g * bytes..(g + 1) * bytes]);
                permuted.scales.push(self.scales[g]);
            }
        }
        permuted
    }

    /// The same rows, K padded to a multiple of 128.
    fn padded(&self, encoding: Encoding, rows: usize, groups: usize) -> (Operand, usize) {
        let from = self.view(encoding, rows, groups);
        let shape = from.shape().resized(rows, padded_k(from.shape().k()).unwrap()).unwrap();
        let mut padded = Operand {
            codes: vec![0xA5; shape.codes_len()],
            scales: vec![0xA5; shape.scales_len()],
        };
        pad_k(from, &mut PackedMut::new(shape, &mut padded.codes, &mut padded.scales).unwrap())
            .unwrap();
        (padded, shape.row_groups())
    }
}

/// Bytes of a group.
fn bytes(encoding: Encoding) -> usize {
    encoding.group().get() / encoding.element().per_byte()
}

impl Product {
    fn a(&self) -> PackedView<'_> {
        self.a.view(self.encoding, self.m, self.groups)
    }

    fn b(&self) -> PackedView<'_> {
        self.b.view(self.format.into(), self.n, self.groups_of_b())
    }

    fn groups_of_b(&self) -> usize {
        self.groups * self.encoding.group().get() / self.format.group().get()
    }

    fn outputs(&self) -> usize {
        self.m * self.n
    }

    /// The exact sum of output (i, j) in units of 2^-264; `None` if it is NaN.
    fn exact(&self, i: usize, j: usize) -> Option<BigInt> {
        let g = self.encoding.group().get();
        let width = self.groups * g;
        let row = |scales: &[u8], encoding: Encoding, row: usize| -> Option<Vec<(i64, i32)>> {
            let groups = width / encoding.group().get();
            scales[row * groups..][..groups]
                .iter()
                .map(|&byte| scale_parts(encoding.scale_type(), byte))
                .collect()
        };
        let scales_a = row(&self.a.scales, self.encoding, i)?;
        let scales_b = row(&self.b.scales, self.format.into(), j)?;
        let code = |codes: &[u8], row: usize, k: usize| {
            let byte = codes[(row * width + k) / 2];
            e2m1_doubled(if k.is_multiple_of(2) { byte & 15 } else { byte >> 4 })
        };
        let int8 = self.encoding == Encoding::MxInt8;
        let mut sum = BigInt::ZERO;
        for k in 0..width {
            let (sa, ea) = scales_a[k / g];
            let (sb, eb) = scales_b[k / self.format.group().get()];
            // Doubled codes are halves, elements are 64ths.
            let (a, unit) = match int8 {
                true => (i64::from(self.a.codes[i * width + k] as i8), -7),
                false => (code(&self.a.codes, i, k), -2),
            };
            let product = a * sa * code(&self.b.codes, j, k) * sb;
            sum += BigInt::from(product) << (ea + eb + unit - UNIT) as usize;
        }
        Some(sum)
    }

    /// The exact sum rounded once to f32, as bits.
    fn rounded(&self, i: usize, j: usize) -> u32 {
        self.exact(i, j).map_or(NAN, |sum| nearest_f32(&sum))
    }
}

/// The magnitude of a finite f32 pattern without sign, in units of 2^-264. The pattern of infinity
/// stands for 2^128.
fn f32_units(pattern: u32) -> BigUint {
    let (e, m) = ((pattern >> 23) as i32, pattern & 0x7F_FFFF);
    let (significand, exponent) = if e == 0 { (m, -149) } else { (m | 0x80_0000, e - 150) };
    BigUint::from(significand) << (exponent - UNIT) as usize
}

/// The f32 nearest to a sum in units of 2^-264, ties to the even pattern; zero is +0.
fn nearest_f32(sum: &BigInt) -> u32 {
    let magnitude = sum.magnitude();
    // The largest pattern that is not above: bit by bit.
    let mut below = 0u32;
    for bit in (0..31).rev() {
        let candidate = below | 1 << bit;
        if candidate <= 0x7F80_0000 && f32_units(candidate) <= *magnitude {
            below = candidate;
        }
    }
    let mut pattern = below;
    if below < 0x7F80_0000 {
        let to_lower = magnitude - f32_units(below);
        let to_upper = f32_units(below + 1) - magnitude;
        pattern += match to_lower.cmp(&to_upper) {
            Ordering::Less => 0,
            Ordering::Equal => below & 1,
            Ordering::Greater => 1,
        };
    }
    pattern | u32::from(sum.sign() == Sign::Minus) << 31
}

/// `alpha * s32` in f32: the product is exact in f64, so the conversion is the one rounding.
fn scaled(s32: u32, alpha: f32) -> f32 {
    canonical((f64::from(f32::from_bits(s32)) * f64::from(alpha)) as f32)
}

fn f32_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|y| y.to_bits()).collect()
}

/// The bits of the reference's f32 outputs.
fn matmul(a: PackedView<'_>, b: PackedView<'_>, alpha: f32) -> Vec<u32> {
    let mut out = vec![f32::from_bits(0xA5A5_A5A5); a.shape().rows() * b.shape().rows()];
    reference::matmul(a, b, alpha, out.as_mut_slice().into()).unwrap();
    f32_bits(&out)
}

#[test]
fn matmul_equals_big_integers_in_three_output_types() {
    fn property(p: Product) {
        let rules = Rules::default();
        let (a, b) = (p.a(), p.b());
        let f32s = matmul(a, b, p.alpha);
        let mut f16s = vec![f16::from_bits(0xA5A5); p.outputs()];
        let mut bf16s = vec![bf16::from_bits(0xA5A5); p.outputs()];
        reference::matmul(a, b, p.alpha, f16s.as_mut_slice().into()).unwrap();
        reference::matmul(a, b, p.alpha, bf16s.as_mut_slice().into()).unwrap();
        let unscaled = matmul(a, b, 1.0);
        for i in 0..p.m {
            for j in 0..p.n {
                let at = i * p.n + j;
                let s32 = p.rounded(i, j);
                let y = scaled(s32, p.alpha);
                assert_eq!(unscaled[at], s32, "S ({i}, {j})");
                assert_eq!(f32s[at], y.to_bits(), "f32 ({i}, {j})");
                assert_eq!(
                    f16s[at].to_bits(),
                    rules.narrow(FloatType::F16, y) as u16,
                    "f16 ({i}, {j})"
                );
                assert_eq!(
                    bf16s[at].to_bits(),
                    rules.narrow(FloatType::Bf16, y) as u16,
                    "bf16 ({i}, {j})"
                );
                count(4);
            }
        }
    }
    check("matmul against big integers", 3_000, property);
}

#[test]
fn partial_sums_hold_the_exact_sum_and_finish_rounds_it_once() {
    fn property(p: Product) {
        let (a, b) = (p.a(), p.b());
        let mut random = Random::seeded(p.seed);
        // Cut K at up to three places, take the parts in any order.
        let groups = p.groups_of_b();
        let mut cuts = vec![0, groups];
        cuts.extend((0..random.below(4)).map(|_| random.below(groups + 1)));
        cuts.sort_unstable();
        let mut ranges: Vec<_> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
        let turn = random.below(ranges.len());
        ranges.rotate_left(turn);

        let mut exact = vec![ExactSum::ZERO; p.outputs()];
        let mut fixed = vec![FixedSum::ZERO; p.outputs()];
        for range in ranges {
            let mut part = vec![ExactSum::ZERO; p.outputs()];
            reference::partial(a, b, range.clone(), PartialsMut::Exact(&mut part)).unwrap();
            exact.iter_mut().zip(&part).for_each(|(sum, part)| sum.merge(part));
            if p.encoding == Encoding::NvFp4 {
                let mut part = vec![FixedSum::ZERO; p.outputs()];
                reference::partial(a, b, range, PartialsMut::Fixed(&mut part)).unwrap();
                fixed.iter_mut().zip(&part).for_each(|(sum, part)| sum.merge(part).unwrap());
            }
        }
        let whole = matmul(a, b, p.alpha);
        let mut out = vec![0f32; p.outputs()];
        finish(Partials::Exact(&exact), [p.m, p.n], p.alpha, out.as_mut_slice().into()).unwrap();
        assert_eq!(f32_bits(&out), whole);
        for (at, sum) in exact.iter().enumerate() {
            let oracle = p.exact(at / p.n, at % p.n);
            assert_eq!(sum.is_nan(), oracle.is_none(), "NaN at {at}");
            if let Some(oracle) = oracle {
                // 640 bits of two's complement, little-endian, in units of 2^-264.
                let bytes = sum.to_bytes();
                assert_eq!(BigInt::from_signed_bytes_le(&bytes[1..81]), oracle, "sum {at}");
                assert_eq!((bytes[0], bytes[81]), (ExactSum::VERSION, 0));
            }
            assert_eq!(ExactSum::from_bytes(&sum.to_bytes()), Ok(*sum));
            count(2);
        }
        if p.encoding == Encoding::NvFp4 {
            finish(Partials::Fixed(&fixed), [p.m, p.n], p.alpha, out.as_mut_slice().into())
                .unwrap();
            assert_eq!(f32_bits(&out), whole);
            for (at, sum) in fixed.iter().enumerate() {
                let oracle = p.exact(at / p.n, at % p.n);
                assert_eq!(sum.nan, oracle.is_none(), "NaN at {at}");
                if let Some(oracle) = oracle {
                    assert_eq!(BigInt::from(sum.units) << (UNIT + 20).unsigned_abs(), oracle);
                }
                count(2);
            }
        }
    }
    check("partial sums against big integers", 2_000, property);
}

#[test]
fn padding_k_changes_no_bit() {
    fn property(p: Product) {
        let format = p.format.into();
        let (a, groups_a) = p.a.padded(p.encoding, p.m, p.groups);
        let (b, groups_b) = p.b.padded(format, p.n, p.groups_of_b());
        let padded =
            matmul(a.view(p.encoding, p.m, groups_a), b.view(format, p.n, groups_b), p.alpha);
        assert_eq!(padded, matmul(p.a(), p.b(), p.alpha));
        count(p.outputs() as u64);
    }
    check("K padding", 2_000, property);
}

#[test]
fn permuting_k_groups_changes_no_bit() {
    fn property(p: Product) {
        let mut random = Random::seeded(p.seed);
        let mut order: Vec<usize> = (0..p.groups).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i + 1));
        }
        // B's groups follow those of A that they are in.
        let of_a = p.encoding.group().get() / p.format.group().get();
        let order_b: Vec<usize> =
            order.iter().flat_map(|g| (0..of_a).map(move |i| g * of_a + i)).collect();
        let format = p.format.into();
        let (a, b) = (p.a.permuted(p.encoding, &order), p.b.permuted(format, &order_b));
        let (a, b) = (a.view(p.encoding, p.m, p.groups), b.view(format, p.n, p.groups_of_b()));
        // With no groups there are no codes to permute, and rows of nothing.
        assert_eq!(matmul(a, b, p.alpha), matmul(p.a(), p.b(), p.alpha));
        count(p.outputs() as u64);
    }
    check("K permutation", 2_000, property);
}

#[test]
fn splitting_m_changes_no_bit() {
    fn property(p: Product) {
        let cut = Random::seeded(p.seed).below(p.m + 1);
        let mut parts = Vec::new();
        for range in [0..cut, cut..p.m] {
            parts.extend(matmul(p.a().rows_range(range).unwrap(), p.b(), p.alpha));
        }
        assert_eq!(parts, matmul(p.a(), p.b(), p.alpha));
        count(p.outputs() as u64);
    }
    check("M split", 2_000, property);
}

#[test]
fn exchanging_the_operands_transposes_the_product() {
    fn property(p: Product) {
        if p.encoding == Encoding::MxInt8 {
            return; // no weight is MXINT8
        }
        let (ab, ba) = (matmul(p.a(), p.b(), p.alpha), matmul(p.b(), p.a(), p.alpha));
        for i in 0..p.m {
            for j in 0..p.n {
                assert_eq!(ab[i * p.n + j], ba[j * p.m + i], "({i}, {j})");
                count(1);
            }
        }
    }
    check("operand exchange", 2_000, property);
}

/// Sums that sit on a rounding tie of f32, normal or subnormal, broken by one far smaller term, for
/// every pair of the leading exponent and the exponent of that term down to 2^-256: a sticky bit
/// counts however far away it is.
#[test]
fn ties_broken_by_a_far_sticky_bit_round_as_big_integers_do() {
    let mut tally = tally::Tally::default();
    let mut random = Random::seeded(7);
    for top in -149..=127 {
        let tie = (top - 24).max(-150);
        for far in -256..tie {
            // (exponent of the term, sign): MXFP4, one term in each group.
            let sign = random.one_in(2);
            let mut terms = vec![(top, sign), (tie, sign), (far, random.one_in(2))];
            if tie + 1 < top && random.one_in(2) {
                terms.push((tie + 1, sign));
            }
            let p = product_of_terms(&terms);
            tally.check(matmul(p.a(), p.b(), 1.0)[0], p.rounded(0, 0), || format!("{terms:?}"));
        }
    }
    tally.finish("far sticky bits");
}

/// One row times one row, whose products are +-2^exponent: each group holds 0.5 * 0.5 in one
/// element, under scales whose exponents add up to two more.
fn product_of_terms(terms: &[(i32, bool)]) -> Product {
    let (format, groups) = (Format::MxFp4, terms.len());
    let bytes = format.group().get() / 2;
    let operand = || Operand { codes: vec![0; groups * bytes], scales: vec![0; groups] };
    let (mut a, mut b) = (operand(), operand());
    for (g, &(exponent, negative)) in terms.iter().enumerate() {
        let sum = exponent + 2;
        let low = (sum / 2).clamp(sum - 127, sum + 127);
        a.codes[g * bytes] = if negative { 9 } else { 1 };
        b.codes[g * bytes] = 1;
        a.scales[g] = (low + 127) as u8;
        b.scales[g] = (sum - low + 127) as u8;
    }
    Product { encoding: format.into(), format, m: 1, n: 1, groups, a, b, alpha: 1.0, seed: 0 }
}

/// 64-bit sums of every length, random and on f32 ties that a bit below f64's last would break.
#[test]
fn a_64_bit_sum_rounds_once() {
    let mut tally = tally::Tally::default();
    let mut random = Random::seeded(5);
    for length in 1..=63 {
        for i in 0..400 {
            let top = 1i64 << (length - 1);
            let mut units = match i % 4 {
                // Leading bits, a tie bit just below f32's last, one bit anywhere below it.
                0..3 if length > 25 => {
                    let last = top >> 23;
                    let low = 1i64 << random.below(length as usize - 25);
                    top + last * (random.below(4) as i64) + last / 2 + random.pick(&[low, -low, 0])
                }
                _ => top + (random.next_u64() as i64 & (top - 1)),
            };
            if random.one_in(2) {
                units = -units;
            }
            let fixed = FixedSum { units, nan: false };
            let expected = nearest_f32(&(BigInt::from(units) << (UNIT + 20).unsigned_abs()));
            tally.check(fixed.to_f32().to_bits(), expected, || format!("{units} units"));
            let exact = ExactSum::from(fixed).to_f32().to_bits();
            tally.check(exact, expected, || format!("{units} units, exact"));
        }
    }
    tally.finish("64-bit sums");
}

/// The oracle's own rounding, against the conversion of f64 where that is exact.
#[test]
fn the_oracle_rounds_as_f64_does() {
    let mut tally = tally::Tally::default();
    let mut random = Random::seeded(1);
    for _ in 0..20_000 {
        let significand = random.next_u64() as i64 >> (11 + random.below(50));
        let exponent = random.below(250) as i32 - 200;
        let exact = significand as f64 * tally::power(exponent);
        let sum = BigInt::from(significand) << (exponent - UNIT) as usize;
        let expected = if significand == 0 { 0.0 } else { exact as f32 };
        tally
            .check(nearest_f32(&sum), expected.to_bits(), || format!("{significand} 2^{exponent}"));
    }
    tally.finish("the oracle's rounding");
}

#[test]
fn a_worked_example_of_the_oracle() {
    // -(2^24 + 1 + 2^-30) is a hair beyond a tie.
    let unit = |e: i32| BigInt::from(1) << (e - UNIT) as usize;
    assert_eq!(f32::from_bits(nearest_f32(&(unit(24) + unit(0)))), 16_777_216.0);
    assert_eq!(f32::from_bits(nearest_f32(&-(unit(24) + unit(0) + unit(-30)))), -16_777_218.0);
    assert_eq!(nearest_f32(&unit(128)), 0x7F80_0000);
    assert_eq!(nearest_f32(&(unit(128) - unit(103))), 0x7F80_0000);
    assert_eq!(nearest_f32(&(unit(128) - unit(103) - unit(-264))), 0x7F7F_FFFF);
    assert_eq!(nearest_f32(&-unit(-150)), 0x8000_0000);
    assert_eq!(nearest_f32(&(unit(-150) + unit(-264))), 1);
    assert_eq!(nearest_f32(&BigInt::ZERO), 0);
}

thread_local!(static COMPARED: Cell<u64> = const { Cell::new(0) });

/// Counts compared values; quickcheck runs a property on the thread of its test.
fn count(values: u64) {
    COMPARED.set(COMPARED.get() + values);
}

/// Runs a property over random products; it panics where it does not hold.
fn check(name: &str, products: u64, property: fn(Product)) {
    QuickCheck::new().tests(products).quickcheck(property);
    let compared = COMPARED.get();
    println!("{name}: {products} products, {compared} values compared, 0 differ");
    assert!(compared > 0, "{name}: nothing was compared");
}
