//! The reference quantizer and transform against an independent implementation (C4, C5).
//!
//! The oracle takes f32 multiplication, division and `f32::mul_add` from the standard library and
//! everything else (decoding, encoding, rounding to f16 and bf16, the order of steps) from the
//! rules in `support`. Random inputs cover all group sizes, scale types, tie modes and input types,
//! transforms absent, shared and per block, blocks smaller, equal and larger than the group.

mod tally;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use fp4_conformance::oracle::rules::{Rules, e2m1_value, scale_value, widen};
use fp4_conformance::random::Random;
use fp4_core::{
    Error, FloatSlice, FloatSliceMut, FloatType, GroupSize, PackedMut, PackedView, QuantSpec,
    QuantizeInput, ScaleType, TieMode, Transform, reference,
};
use half::{bf16, f16};
use quickcheck::{Arbitrary, Gen, QuickCheck};
use tally::canonical;

/// A random input with everything that its quantization depends on.
#[derive(Debug, Clone)]
struct Quantization {
    rows: usize,
    k: usize,
    spec: QuantSpec,
    x: Values,
    transform: Option<(Values, usize, Option<usize>)>,
    given: Option<Vec<u8>>,
}

/// Dense values of one type.
#[derive(Debug, Clone)]
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Values {
    /// f32 values rounded to a type by the oracle's own rule.
    fn rounded(ty: FloatType, values: &[f32], rules: &Rules) -> Self {
        let halves = || values.iter().map(|&x| rules.narrow(ty, x) as u16);
        match ty {
            FloatType::F32 => Values::F32(values.to_vec()),
            FloatType::F16 => Values::F16(halves().map(f16::from_bits).collect()),
            FloatType::Bf16 => Values::Bf16(halves().map(bf16::from_bits).collect()),
        }
    }

    fn ty(&self) -> FloatType {
        match self {
            Values::F32(_) => FloatType::F32,
            Values::F16(_) => FloatType::F16,
            Values::Bf16(_) => FloatType::Bf16,
        }
    }

    fn as_slice(&self) -> FloatSlice<'_> {
        match self {
            Values::F32(v) => v.as_slice().into(),
            Values::F16(v) => v.as_slice().into(),
            Values::Bf16(v) => v.as_slice().into(),
        }
    }

    fn as_mut_slice(&mut self) -> FloatSliceMut<'_> {
        match self {
            Values::F32(v) => v.as_mut_slice().into(),
            Values::F16(v) => v.as_mut_slice().into(),
            Values::Bf16(v) => v.as_mut_slice().into(),
        }
    }

    /// Widened by the oracle's own rule.
    fn widened(&self) -> Vec<f32> {
        let widen = |ty, bits: u16| widen(ty, bits.into());
        match self {
            Values::F32(v) => v.clone(),
            Values::F16(v) => v.iter().map(|x| widen(FloatType::F16, x.to_bits())).collect(),
            Values::Bf16(v) => v.iter().map(|x| widen(FloatType::Bf16, x.to_bits())).collect(),
        }
    }

    fn bits(&self) -> Vec<u32> {
        match self {
            Values::F32(v) => v.iter().map(|x| x.to_bits()).collect(),
            Values::F16(v) => v.iter().map(|x| x.to_bits().into()).collect(),
            Values::Bf16(v) => v.iter().map(|x| x.to_bits().into()).collect(),
        }
    }
}

/// How the values of an input are drawn.
#[derive(Debug, Clone, Copy)]
enum Data {
    Normal,
    /// Scaled row by row over many octaves.
    Wide,
    AnyBits,
    /// Multiples of 1/8: ties of e2m1 under power-of-two units.
    Eighths,
    /// Zeros of both signs, subnormals, extremes, and now and then an infinity or NaN.
    Edges,
}

impl Data {
    fn draw(self, random: &mut Random, octave: f32) -> f32 {
        match self {
            Data::Normal => random.gauss(),
            Data::Wide => random.gauss() * octave,
            Data::AnyBits => random.any_f32(),
            Data::Eighths => (random.below(129) as f32 - 64.0) / 8.0,
            Data::Edges => match random.below(200) {
                0 => random.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
                1..20 => random.pick(&[f32::MAX, -f32::MAX, 65_504.0, -448.0, 6.0, 2688.0]),
                20..60 => f32::from_bits(random.below(0x100_0000) as u32),
                60..100 => -f32::from_bits(random.below(0x40) as u32),
                _ => random.pick(&[0.0, -0.0, 1e-30, -1e-30]),
            },
        }
    }
}

impl Arbitrary for Quantization {
    fn arbitrary(g: &mut Gen) -> Self {
        thread_local!(static RULES: Rules = Rules::default());
        let mut random = Random::seeded(u64::arbitrary(g));
        RULES.with(|rules| Self::random(&mut random, rules))
    }
}

impl Quantization {
    fn random(random: &mut Random, rules: &Rules) -> Self {
        let group = random.pick(&GroupSize::ALL);
        let block = random.pick(&[16, 32, 64, 128]);
        let with_transform = !random.one_in(3);
        let chunk = if with_transform { group.get().max(block) } else { group.get() };
        let (rows, k) = (random.below(4), chunk * random.below(4));

        let settings = [(1.0 / 3.0, 4.0), (0.1, 6.0), (1.0 / 6.0, 6.0), (1.0, 4.0), (1.0, 6.0)];
        let spec = loop {
            let (gs, ss) = if random.one_in(2) {
                random.pick(&settings)
            } else {
                (f32::from_bits(random.below(0x7F80_0000) as u32), random.pick(&[4.0, 6.0, 5.3]))
            };
            let scale_type = random.pick(&ScaleType::ALL);
            if let Ok(spec) = QuantSpec::new(scale_type, group, gs, ss) {
                break spec.with_tie(random.pick(&TieMode::ALL));
            }
        };

        let data = random.pick(&[
            Data::Normal,
            Data::Normal,
            Data::Wide,
            Data::AnyBits,
            Data::Eighths,
            Data::Edges,
        ]);
        let mut dense = Vec::new();
        for _ in 0..rows {
            let octave = tally::power(random.below(80) as i32 - 40) as f32;
            dense.extend((0..k).map(|_| data.draw(random, octave)));
        }
        let groups = rows * k / group.get();
        let given: Option<Vec<u8>> =
            random.one_in(4).then(|| (0..groups).map(|_| random.byte()).collect());
        if random.one_in(3) {
            // Values on, or an ulp or two off, a boundary: of the codes under the given scale, or
            // of the scale by the largest magnitude.
            let ty = spec.scale_type();
            for (i, x) in dense.iter_mut().enumerate() {
                let (ladder, unit) = match &given {
                    Some(scales) => {
                        let scale = scale_value(ty, scales[i / group.get()]) as f32;
                        (rules.e2m1_ladder(), scale * spec.global_scale())
                    }
                    None => (rules.scale_ladder(ty), spec.scale_scale() * spec.global_scale()),
                };
                let boundary = (f64::from(unit) * random.pick(ladder.midpoints())) as f32;
                let nudged = boundary.to_bits().wrapping_add_signed(random.below(5) as i32 - 2);
                *x = f32::from_bits(nudged);
            }
        }
        let ty = random.pick(&FloatType::ALL);
        let x = Values::rounded(ty, &dense, rules);

        let transform = with_transform.then(|| {
            let blocks = random.one_in(2).then_some(k / block);
            let len = blocks.unwrap_or(1) * block * block;
            let signs = random.one_in(3);
            let rarely_huge = random.one_in(8);
            let values: Vec<f32> = (0..len)
                .map(|_| match random.gauss() {
                    v if signs => v.signum() / (block as f32).sqrt(),
                    _ if rarely_huge && random.one_in(500) => random.any_f32(),
                    v => v,
                })
                .collect();
            let stored = random.pick(&FloatType::ALL);
            (Values::rounded(stored, &values, rules), block, blocks)
        });
        Quantization { rows, k, spec, x, transform, given }
    }

    fn transform(&self) -> Option<Transform<'_>> {
        self.transform.as_ref().map(|(values, block, blocks)| {
            match blocks {
                None => Transform::shared(values.as_slice(), *block),
                Some(n) => Transform::per_block(values.as_slice(), *block, *n),
            }
            .unwrap()
        })
    }

    fn input(&self) -> Result<QuantizeInput<'_>, Error> {
        let input = QuantizeInput::new(self.x.as_slice(), self.rows, self.k, &self.spec)?
            .with_transform(self.transform())?;
        match &self.given {
            None => Ok(input),
            Some(scales) => input.with_scales(scales),
        }
    }

    /// The transformed values, in x's type, widened (C5).
    fn oracle_transform(&self, rules: &Rules) -> Vec<f32> {
        let x = self.x.widened();
        let Some((values, block, blocks)) = &self.transform else { return x };
        let ty = self.x.ty();
        let t: Vec<f32> = values.widened().into_iter().map(|t| rules.through(ty, t)).collect();
        let mut y = Vec::new();
        for at in (0..x.len()).step_by(*block) {
            let b = if blocks.is_some() { at % self.k / block } else { 0 };
            for j in 0..*block {
                let row = &t[(b * block + j) * block..][..*block];
                let acc = (x[at..at + block].iter().zip(row))
                    .fold(0f32, |acc, (&x, &t)| f32::mul_add(x, t, acc));
                y.push(rules.through(ty, acc));
            }
        }
        y
    }

    /// Codes, one a byte, scale bytes, and (clipped, scale_max, flushed, nan_groups) (C4).
    fn oracle(&self, rules: &Rules) -> (Vec<u8>, Vec<u8>, [u64; 4]) {
        let (spec, ty) = (&self.spec, self.spec.scale_type());
        let y = self.oracle_transform(rules);
        let (mut codes, mut scales, mut counts) = (Vec::new(), Vec::new(), [0; 4]);
        for (g, y) in y.chunks_exact(spec.group().get()).enumerate() {
            let amax = if y.iter().any(|y| y.is_nan()) {
                f32::NAN
            } else {
                y.iter().map(|y| y.abs()).reduce(f32::max).unwrap_or(0.0)
            };
            let scale = match &self.given {
                Some(given) => given[g],
                None => {
                    let s = amax / (spec.scale_scale() * spec.global_scale());
                    let largest = [127f64.exp2(), 448.0][usize::from(ty == ScaleType::E4M3)];
                    counts[1] += u64::from(f64::from(s) > largest);
                    rules.scale(ty, s)
                }
            };
            let d = scale_value(ty, scale) as f32 * spec.global_scale();
            let mut zero = true;
            for &y in y {
                let q = if d == 0.0 { 0f32.copysign(y) } else { y / d };
                let code = rules.e2m1(q, spec.tie());
                zero &= code & 7 == 0;
                counts[0] += u64::from(q.abs() > 7.0);
                codes.push(code);
            }
            counts[2] += u64::from(zero && amax > 0.0);
            counts[3] += u64::from(scale_value(ty, scale).is_nan());
            scales.push(scale);
        }
        (codes, scales, counts)
    }
}

thread_local! {
    static COMPARED: Cell<u64> = const { Cell::new(0) };
    static SEEN: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

fn property(q: Quantization) {
    thread_local!(static RULES: Rules = Rules::default());
    RULES.with(|rules| compare(&q, rules));
}

fn compare(q: &Quantization, rules: &Rules) {
    let input = q.input().unwrap();
    let shape = input.shape();
    let (codes, scales, expected) = q.oracle(rules);

    let (mut got_codes, mut got_scales) =
        (vec![0xA5; shape.codes_len()], vec![0xA5; shape.scales_len()]);
    let mut out = PackedMut::new(shape, &mut got_codes, &mut got_scales).unwrap();
    let counts = reference::quantize(&input, &mut out).unwrap();
    let packed: Vec<u8> = codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect();
    assert_eq!(got_scales, scales, "scales");
    assert_eq!(got_codes, packed, "codes");
    let got = [counts.clipped, counts.scale_max, counts.flushed, counts.nan_groups];
    assert_eq!(got, expected, "counts");
    let got = [counts.elements, counts.groups];
    assert_eq!(got, [codes.len() as u64, scales.len() as u64], "counts");

    if let Some(transform) = q.transform() {
        let mut y = Values::rounded(q.x.ty(), &vec![1.5; q.rows * q.k], rules);
        reference::apply_transform(q.x.as_slice(), q.k, &transform, y.as_mut_slice()).unwrap();
        let expected = Values::rounded(q.x.ty(), &q.oracle_transform(rules), rules);
        assert_eq!(y.bits(), expected.bits(), "transformed");
        COMPARED.set(COMPARED.get() + y.bits().len() as u64);
    }

    // Back again, in each type (C4.4).
    let (ty, g, gs) = (q.spec.scale_type(), q.spec.group().get(), q.spec.global_scale());
    let exact: Vec<f32> = (codes.iter().enumerate())
        .map(|(i, &code)| {
            let d = scale_value(ty, scales[i / g]) as f32 * gs;
            canonical(e2m1_value(code) as f32 * d)
        })
        .collect();
    let view = PackedView::new(shape, &got_codes, &got_scales).unwrap();
    for to in FloatType::ALL {
        let mut values = Values::rounded(to, &vec![1.5; q.rows * q.k], rules);
        reference::dequantize(view, gs, values.as_mut_slice()).unwrap();
        assert_eq!(values.bits(), Values::rounded(to, &exact, rules).bits(), "dequantized to {to}");
        let (mut codes, mut scales) =
            (vec![0xA5; shape.codes_len()], vec![0xA5; shape.scales_len()]);
        let mut scratch = PackedMut::new(shape, &mut codes, &mut scales).unwrap();
        let mut fake = Values::rounded(to, &vec![1.5; q.rows * q.k], rules);
        reference::fake_quantize(&input, &mut scratch, fake.as_mut_slice()).unwrap();
        assert_eq!(fake.bits(), values.bits(), "fake quantized to {to}");
    }
    let compared = packed.len() + scales.len() + 6 * exact.len();
    COMPARED.set(COMPARED.get() + compared as u64);
    if compared > 0 {
        let block = q.transform.as_ref().map_or("no block".into(), |(_, block, blocks)| {
            let which = if blocks.is_some() { "per block" } else { "shared" };
            format!("{which} {:?}", block.cmp(&g))
        });
        let what = format!("{ty} {g} {:?} {} {block}", q.spec.tie(), q.x.ty());
        SEEN.with_borrow_mut(|seen| seen.insert(what));
    }
}

#[test]
fn the_reference_quantizes_and_transforms_like_the_oracle() {
    let inputs = 4_000;
    QuickCheck::new().tests(inputs).quickcheck(property as fn(Quantization));
    let (compared, seen) = (COMPARED.get(), SEEN.with_borrow(BTreeSet::len));
    println!(
        "quantize: {inputs} inputs, {seen} combinations, {compared} values compared, 0 differ"
    );
    assert!(compared > 0, "nothing was compared");
    // Of the 576 that the next test goes through.
    assert!(seen > 400, "only {seen} combinations");
}

/// One input of every combination, so that none is left to chance.
#[test]
fn every_combination_of_settings_equals_the_oracle() {
    let rules = Rules::default();
    let mut random = Random::seeded(3);
    let mut inputs = 0;
    for group in GroupSize::ALL {
        for block in [None, Some(16), Some(32), Some(64), Some(128)] {
            for shared in [false, true] {
                for scale_type in ScaleType::ALL {
                    for tie in TieMode::ALL {
                        for ty in FloatType::ALL {
                            let k = 2 * group.get().max(block.unwrap_or(0));
                            let dense: Vec<f32> = (0..2 * k)
                                .map(|i| match i % 3 {
                                    0 => Data::Eighths.draw(&mut random, 1.0),
                                    1 => random.gauss(),
                                    _ => random.gauss() * 1e-3,
                                })
                                .collect();
                            let transform = block.map(|block| {
                                let blocks = (!shared).then_some(k / block);
                                let len = blocks.unwrap_or(1) * block * block;
                                let values: Vec<f32> =
                                    (0..len).map(|_| random.gauss() * 0.3).collect();
                                let stored = random.pick(&FloatType::ALL);
                                (Values::rounded(stored, &values, &rules), block, blocks)
                            });
                            let spec = QuantSpec::new(scale_type, group, 0.25, 4.0).unwrap();
                            let q = Quantization {
                                rows: 2,
                                k,
                                spec: spec.with_tie(tie),
                                x: Values::rounded(ty, &dense, &rules),
                                transform,
                                given: None,
                            };
                            compare(&q, &rules);
                            inputs += 1;
                        }
                    }
                }
            }
        }
    }
    let (compared, seen) = (COMPARED.get(), SEEN.with_borrow(BTreeSet::len));
    println!(
        "every combination: {inputs} inputs, {seen} combinations, {compared} values compared, \
         0 differ"
    );
    // 2 scale types x 4 tie modes x 3 input types x (4 groups without a transform, and for shared
    // and per block: 2 orderings for the groups of 16 and 128, 3 for those of 32 and 64).
    assert_eq!(seen, 2 * 4 * 3 * (4 + 2 * (2 + 3 + 3 + 2)));
    assert!(compared > 0);
}
