//! Accessors, checks and messages of the core: each says what it was given, and refuses what it
//! must.
#![cfg(feature = "std")]
#![allow(missing_docs)]

use std::sync::Arc;

use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;
use fp4_core::{
    Buffer, DeviceError, Dim, Element, Encoding, Epilogue, Error, ExactSum, FixedSum, Float,
    FloatSlice, FloatSliceMut, FloatType, Format, FpEnvironment, GroupSize, Matmul, MatmulQuery,
    Named, PackedMatrix, PackedMut, PackedShape, PackedView, PartialsMut, Paths, Product,
    QuantCounts, QuantSpec, QuantizeInput, ScaleSetting, ScaleType, Swizzle, TieMode, Transform,
    Unsupported, finish_one, hadamard, reference,
};
use half::{bf16, f16};

/// 3 rows of 4 NVFP4 groups; codes and scales count up, and row 1 has a NaN scale.
fn matrix() -> PackedMatrix {
    let shape = PackedShape::of(Format::NvFp4, 3, 64).unwrap();
    let codes = (0..96u8).map(|i| i.wrapping_mul(37)).collect();
    let scales = (0..12).map(|i| if i == 6 { 0xFF } else { 0x30 + i }).collect();
    PackedMatrix::new(shape, codes, scales).unwrap()
}

#[test]
fn a_shape_tells_what_it_was_made_of() {
    let shape = PackedShape::of(Format::MxFp4, 5, 96).unwrap();
    assert_eq!((shape.rows(), shape.k()), (5, 96));
    assert_eq!((shape.row_groups(), shape.row_bytes()), (3, 48));
    assert_eq!((shape.codes_len(), shape.scales_len()), (240, 15));
    assert_eq!((shape.format(), shape.expect_format()), (Some(Format::MxFp4), Ok(Format::MxFp4)));
    let wide = PackedShape::new(5, 128, ScaleType::E4M3, GroupSize::G64).unwrap();
    assert_eq!(wide.format(), None);
    let not = Error::NotAMatmulFormat { scale: ScaleType::E4M3, group: GroupSize::G64 };
    assert_eq!(wide.expect_format(), Err(not));
    for format in Format::ALL {
        assert_eq!(Format::from_parts(format.scale_type(), format.group()), Some(format));
    }
    assert_eq!(Format::from_parts(ScaleType::E8M0, GroupSize::G16), None);
    let layout = Swizzle::new(5, 7).unwrap();
    assert_eq!((layout.rows(), layout.cols()), (5, 7));
}

#[test]
fn operands_of_a_product_agree_in_format_and_k() {
    let shape = |format, rows, k| PackedShape::of(format, rows, k).unwrap();
    let a = shape(Format::MxFp4, 2, 64);
    assert_eq!(a.expect_product(&shape(Format::MxFp4, 7, 64)), Ok(Product::of(Format::MxFp4)));
    let k = Error::ShapeMismatch { what: Dim::K, expected: 64, got: 32 };
    assert_eq!(a.expect_product(&shape(Format::MxFp4, 7, 32)), Err(k));
    let other = shape(Format::NvFp4, 7, 64);
    let format = Error::FormatMismatch {
        expected: (ScaleType::E8M0, GroupSize::G32),
        got: (ScaleType::E4M3, GroupSize::G16),
    };
    assert_eq!(a.expect_product(&other), Err(format));
    assert_eq!(a.expect_same_format(&other), Err(format));
    let int8 = PackedShape::encoded(Encoding::MxInt8, 2, 64).unwrap();
    for b in Format::ALL {
        let product = Product { a: Encoding::MxInt8, b };
        assert_eq!(int8.expect_product(&shape(b, 7, 64)), Ok(product));
        assert!(product.expect_one_format().is_err());
    }
    let weight = Error::ElementMismatch { expected: Element::E2m1, got: Element::Int8 };
    assert_eq!(a.expect_product(&int8), Err(weight));
    assert_eq!(int8.expect_product(&int8), Err(weight));
    // A square that no usize holds, of 64 bits or of 32.
    let rows = 1 << (usize::BITS / 2 + 8);
    let huge = shape(Format::MxFp4, rows, 0);
    let overflow = Error::ShapeOverflow { rows, cols: rows };
    assert_eq!(huge.expect_product(&huge), Err(overflow));
}

#[test]
fn ranges_end_inside() {
    let shape = PackedShape::of(Format::NvFp4, 3, 64).unwrap();
    let matrix = matrix();
    for start in 0..6 {
        for end in 0..6 {
            let outside = |what, len| Error::Range { what, start, end, len };
            let groups =
                if start <= end && end <= 4 { Ok(()) } else { Err(outside(Dim::Groups, 4)) };
            assert_eq!(shape.expect_groups(&(start..end)), groups);
            let rows = matrix.view().rows_range(start..end);
            if start <= end && end <= 3 {
                let rows = rows.unwrap();
                assert_eq!(rows.shape(), shape.resized(end - start, 64).unwrap());
                assert_eq!(rows.codes(), &matrix.codes()[start * 32..end * 32]);
                assert_eq!(rows.scales(), &matrix.scales()[start * 4..end * 4]);
            } else {
                assert_eq!(rows, Err(outside(Dim::Rows, 3)));
            }
        }
    }
}

#[test]
fn rows_and_codes_are_where_they_should_be() {
    let matrix = matrix();
    let view = matrix.view();
    for i in 0..3 {
        assert_eq!(view.row_codes(i), &matrix.codes()[32 * i..32 * (i + 1)]);
        assert_eq!(view.row_scales(i), &matrix.scales()[4 * i..4 * (i + 1)]);
        assert_eq!(view.row_has_nan(i), i == 1);
        for k in 0..64 {
            let byte = matrix.codes()[(64 * i + k) / 2];
            let code = if k % 2 == 0 { byte & 15 } else { byte >> 4 };
            assert_eq!(view.code(i, k).map(fp4_core::E2m1::to_bits), Some(code), "({i}, {k})");
        }
        assert_eq!(view.code(i, 64), None);
    }
    assert_eq!(view.code(3, 0), None);
}

#[test]
fn bytes_move_verbatim() {
    let from = matrix();
    let mut to = PackedMatrix::zeros(from.shape());
    to.view_mut().copy_from(from.view()).unwrap();
    assert_eq!(to, from);
    assert_eq!(to.view_mut().buffers().0, from.codes());
    assert_eq!(to.view_mut().buffers().1, from.scales());
    let (codes, scales) = to.into_parts();
    assert_eq!((&codes[..], &scales[..]), (from.codes(), from.scales()));

    let mut to = PackedMatrix::zeros(PackedShape::of(Format::NvFp4, 2, 64).unwrap());
    let rows = Error::ShapeMismatch { what: Dim::Rows, expected: 2, got: 3 };
    assert_eq!(to.view_mut().copy_from(from.view()), Err(rows));
    to.reshape(PackedShape::of(Format::NvFp4, 3, 32).unwrap());
    assert_eq!((to.codes().len(), to.scales().len()), (48, 6));
    let k = Error::ShapeMismatch { what: Dim::K, expected: 32, got: 64 };
    assert_eq!(to.view_mut().copy_from(from.view()), Err(k));
    let len = |what, expected, got| Err(Error::Len { what, expected, got });
    let (shape, codes, scales) = (from.shape(), from.codes(), from.scales());
    let view = PackedView::new(shape, &codes[1..], scales);
    assert_eq!(view, len(Buffer::Codes, 96, 95));
    assert_eq!(PackedView::new(shape, codes, &scales[1..]), len(Buffer::Scales, 12, 11));
    let mut short = [0; 11];
    let target = PackedMut::new(shape, &mut [0; 96], &mut short).err();
    assert_eq!(target.map(Err), Some(len(Buffer::Scales, 12, 11)));
}

#[test]
fn packing_wants_lengths_that_fit() {
    let (codes, mut packed, mut back) = ([1, 2, 15, 0, 0x1C, 7], [0; 3], [0xA5; 6]);
    fp4_core::pack(&codes, &mut packed).unwrap();
    assert_eq!(packed, [0x21, 0x0F, 0x7C]);
    fp4_core::unpack(&packed, &mut back).unwrap();
    assert_eq!(back, [1, 2, 15, 0, 12, 7]);
    let len = |expected, got| Err(Error::Len { what: Buffer::Codes, expected, got });
    assert_eq!(fp4_core::pack(&codes[..5], &mut packed), len(3, 3));
    assert_eq!(fp4_core::pack(&codes[..4], &mut packed), len(2, 3));
    // As long as 2 + 2 and 2 / 2 would make it.
    assert_eq!(fp4_core::pack(&codes[..1], &mut packed[..0]), len(1, 0));
    for codes in [0, 1, 3, 5] {
        assert_eq!(fp4_core::unpack(&packed, &mut back[..codes]), len(6, codes));
    }
}

#[test]
fn dense_values_tell_their_type_and_length() {
    let (mut a, mut b, mut c) = ([1f32, -2.5], [f16::from_f32(0.5)], [bf16::from_f32(-8.0)]);
    for (slice, ty, values) in [
        (FloatSlice::from(&a[..]), FloatType::F32, vec![1.0, -2.5]),
        (FloatSlice::from(&b[..]), FloatType::F16, vec![0.5]),
        (FloatSlice::from(&c[..]), FloatType::Bf16, vec![-8.0]),
        (FloatSlice::from(&a[..0]), FloatType::F32, vec![]),
    ] {
        assert_eq!(
            (slice.float_type(), slice.len(), slice.is_empty()),
            (ty, values.len(), values.is_empty())
        );
        for index in 0..3 {
            assert_eq!(slice.get_f32(index), values.get(index).copied());
        }
    }
    assert_eq!(FloatType::ALL.map(FloatType::bytes), [4, 2, 2]);
    for (slice, len) in [
        (FloatSliceMut::from(&mut a[..]), 2),
        (FloatSliceMut::from(&mut b[..]), 1),
        (FloatSliceMut::from(&mut c[..0]), 0),
    ] {
        assert_eq!((slice.len(), slice.is_empty()), (len, len == 0));
    }
    assert_eq!((Float::to_f32(3f32), finish_one::<f32>(3.0, 0.5, None)), (3.0, 1.5));
}

#[test]
fn a_nan_stays_in_sums_of_both_kinds() {
    let mut nan = ExactSum::ZERO;
    assert!(!nan.is_nan());
    nan.set_nan();
    assert!(nan.is_nan());
    let mut sum = ExactSum::ZERO;
    sum.add_scaled(3, 0).unwrap();
    let alone = sum;
    sum.merge(&ExactSum::ZERO);
    assert_eq!(sum, alone);
    sum.merge(&nan);
    assert!(sum.is_nan() && sum.to_f32().is_nan() && sum.to_f64().is_nan());
    sum.merge(&ExactSum::ZERO);
    assert!(sum.is_nan(), "a later part does not take it away");

    let mut fixed = FixedSum { units: 5, nan: false };
    fixed.merge(&FixedSum { units: -7, nan: false }).unwrap();
    assert_eq!(fixed, FixedSum { units: -2, nan: false });
    fixed.merge(&FixedSum { units: 0, nan: true }).unwrap();
    fixed.merge(&FixedSum::ZERO).unwrap();
    assert_eq!(fixed, FixedSum { units: -2, nan: true });
    assert!(ExactSum::from(fixed).is_nan());
    let full = FixedSum { units: i64::MAX, nan: false };
    assert_eq!(full.clone().merge(&FixedSum { units: 1, nan: true }), Err(Error::PartialOverflow));
}

#[test]
fn exact_sums_take_every_exponent_of_their_range_and_no_other() {
    for exponent in [-265, 255, i32::MIN, i32::MAX] {
        let mut sum = ExactSum::ZERO;
        assert_eq!(sum.add_scaled(1, exponent), Err(Error::SumRange { exponent }));
        assert_eq!(sum, ExactSum::ZERO);
    }
    for exponent in -264..=254 {
        let mut sum = ExactSum::ZERO;
        sum.add_scaled(-5, exponent).unwrap();
        assert_eq!(sum.to_f64(), -5.0 * 2f64.powi(exponent), "{exponent}");
        sum.add_scaled(5, exponent).unwrap();
        assert_eq!(sum, ExactSum::ZERO, "{exponent}");
    }
}

/// Carries and borrows that run through every limb, and stop where they should.
#[test]
fn carries_run_as_far_as_they_must() {
    let mut sum = ExactSum::ZERO;
    sum.add_scaled(-1, -264).unwrap();
    assert_eq!(sum.to_bytes()[1..81], [0xFF; 80]);
    sum.add_scaled(1, -264).unwrap();
    assert_eq!(sum, ExactSum::ZERO);
    for low in [-264, -200, -193, -100, 0, 100] {
        let mut sum = ExactSum::ZERO;
        // All ones from `low` to 250, then one more unit: a single bit.
        for e in low..250 {
            sum.add_scaled(1, e).unwrap();
        }
        sum.add_scaled(1, low).unwrap();
        let mut single = ExactSum::ZERO;
        single.add_scaled(1, 250).unwrap();
        assert_eq!(sum, single, "{low}");
        sum.add_scaled(-1, low).unwrap();
        sum.add_scaled(i64::MIN, low).unwrap();
        sum.add_scaled(i64::MAX, low).unwrap();
        sum.add_scaled(2, low).unwrap();
        assert_eq!(sum, single, "{low}");
    }
}

/// A tie is broken by a single bit anywhere below it, the lowest of all included.
#[test]
fn a_sticky_bit_at_any_position_breaks_a_tie() {
    for exponent in -264..0 {
        for (sign, towards, result) in
            [(1, 1, 16_777_218f32), (1, -1, 16_777_216.0), (-1, -1, -16_777_218.0)]
        {
            let mut sum = ExactSum::ZERO;
            sum.add_scaled(sign * 16_777_217, 0).unwrap();
            sum.add_scaled(towards, exponent).unwrap();
            assert_eq!(sum.to_f32(), result, "{exponent}");
        }
    }
}

#[test]
fn partial_sums_fit_their_product() {
    let (mut exact, mut fixed) = ([ExactSum::ZERO; 4], [FixedSum::ZERO; 4]);
    let len = |expected, got| Err(Error::Len { what: Buffer::Partials, expected, got });
    for product in Product::ALL {
        let sums = PartialsMut::Exact(&mut exact);
        assert_eq!((sums.len(), sums.is_empty()), (4, false));
        assert_eq!(
            (sums.expect(product, [2, 2]), sums.expect(product, [5, 1])),
            (Ok(()), len(5, 4))
        );
    }
    let sums = PartialsMut::Fixed(&mut fixed);
    assert_eq!(sums.len(), 4);
    for product in Product::ALL {
        let fits = product == Product::of(Format::NvFp4);
        let expected = if fits { Ok(()) } else { Err(Error::PartialKind) };
        assert_eq!(sums.expect(product, [4, 1]), expected, "{product:?}");
    }
    assert!(PartialsMut::Fixed(&mut []).is_empty());
}

#[test]
fn a_request_keeps_its_parts_and_refuses_what_does_not_fit() {
    let spec = QuantSpec::new(ScaleType::E4M3, GroupSize::G16, 0.1, 6.0).unwrap();
    assert_eq!((spec.global_scale(), spec.scale_scale(), spec.tie()), (0.1, 6.0, TieMode::Even));
    let spec = spec.with_tie(TieMode::Down);
    assert_eq!((spec.tie(), spec.group()), (TieMode::Down, GroupSize::G16));
    let (x, t, scales) = ([1f32; 64], [0.25f32; 256], [0x38u8, 0x30, 0x31, 0x32]);
    let transform = Transform::from_shape(&t[..], &[16, 16]).unwrap();
    let input = QuantizeInput::new(&x[..], 2, 32, &spec).unwrap();
    assert!(input.transform().is_none() && input.scales().is_none());
    let len = Error::Len { what: Buffer::Scales, expected: 4, got: 3 };
    assert_eq!(input.with_scales(&scales[..3]).err(), Some(len));
    let input = input.with_scales(&scales).unwrap().with_transform(Some(transform)).unwrap();
    assert_eq!(input.transform().map(Transform::block), Some(16));
    assert_eq!(input.scales(), Some(&scales[..]));
    let query = input.query();
    assert_eq!((query.rows, query.k, query.tie, query.given_scales), (2, 32, TieMode::Down, true));
    assert!(query.transform.is_some());

    assert_eq!(input.expect_output(input.shape()), Ok(()));
    for (what, rows, k, expected, got) in [(Dim::Rows, 3, 32, 2, 3), (Dim::K, 2, 16, 32, 16)] {
        let other = input.shape().resized(rows, k).unwrap();
        let error = Error::ShapeMismatch { what, expected, got };
        assert_eq!(input.expect_output(other), Err(error));
    }
    let other = PackedShape::of(Format::MxFp4, 2, 32).unwrap();
    assert!(matches!(input.expect_output(other), Err(Error::FormatMismatch { .. })));
}

#[test]
fn a_transform_is_square() {
    let values = vec![0f32; 16 * 32 * 2];
    let shape = |shape: &[usize]| Transform::from_shape(&values[..shape.iter().product()], shape);
    assert_eq!(shape(&[16, 16]).unwrap().shape().blocks, None);
    assert_eq!(shape(&[2, 16, 16]).unwrap().shape().blocks, Some(2));
    for (wrong, got) in [(&[16, 32][..], 32), (&[2, 16, 32], 32), (&[16], 16), (&[], 0)] {
        assert_eq!(shape(wrong).err(), Some(Error::TransformBlock { got }));
    }
}

#[test]
fn hadamard_signs_follow_the_shared_bits_of_row_and_column() {
    for block in [16usize, 32, 64, 128] {
        let mut h = vec![0f32; block * block];
        hadamard(block, &mut h).unwrap();
        for (index, value) in h.iter().enumerate() {
            let (row, column) = (index / block, index % block);
            let shared = (0..7).filter(|bit| row >> bit & 1 == 1 && column >> bit & 1 == 1).count();
            assert_eq!(value.is_sign_negative(), shared % 2 == 1, "({row}, {column}) of {block}");
        }
    }
}

#[test]
fn dequantization_wants_an_output_that_fits() {
    let matrix = matrix();
    let mut out = vec![0f32; 3 * 64];
    reference::dequantize(matrix.view(), 1.0, (&mut out[..]).into()).unwrap();
    for len in [0, 3 + 64, 3 * 64 - 1] {
        let error = Error::Len { what: Buffer::Output, expected: 192, got: len };
        let got = reference::dequantize(matrix.view(), 1.0, (&mut out[..len]).into());
        assert_eq!(got, Err(error));
    }
    // 448 times it, the largest unit, is past the largest f32.
    for (gs, what) in [(0.0, ScaleSetting::Global), (1e36, ScaleSetting::Largest)] {
        let got = reference::dequantize(matrix.view(), gs, (&mut out[..]).into());
        assert!(matches!(got, Err(Error::ScaleSetting { what: found, .. }) if found == what));
    }
    let spec = QuantSpec::usual(Format::NvFp4);
    let input = QuantizeInput::new(&out[..], 3, 64, &spec).unwrap();
    let (mut scratch, mut packed) = (matrix.clone(), matrix.clone());
    let (mut fake, mut expected) = (vec![7f32; 192], vec![0f32; 192]);
    reference::fake_quantize(&input, &mut scratch.view_mut(), (&mut fake[..]).into()).unwrap();
    reference::quantize(&input, &mut packed.view_mut()).unwrap();
    let gs = spec.global_scale();
    reference::dequantize(packed.view(), gs, (&mut expected[..]).into()).unwrap();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!((bits(&fake), scratch), (bits(&expected), packed));
}

#[test]
fn quantize_counts_add_up() {
    let counts = |n, step| {
        let mut counts = QuantCounts::default();
        counts.elements = n;
        counts.groups = n + step;
        counts.clipped = n + 2 * step;
        counts.scale_max = n + 3 * step;
        counts.flushed = n + 4 * step;
        counts.nan_groups = n + 5 * step;
        counts
    };
    let mut all = counts(10, 1);
    all += counts(20, 1);
    assert_eq!(all, counts(30, 2));
    assert_eq!(counts(10, 1) + counts(20, 1), all);
    assert_eq!([all, all].into_iter().sum::<QuantCounts>(), counts(60, 4));
    assert_eq!(fp4_core::MXFP4_GLOBAL_SCALE.to_bits(), 0x3EAA_AAAB);
}

#[test]
fn paths_add_up() {
    let mut all = Paths::new(10, 20, 30);
    all.merge(&Paths::new(4, 5, 6));
    assert_eq!(all, Paths::new(14, 25, 36));
}

/// A matmul that does nothing it is not asked for: the defaults of the trait.
struct NoPartials;

impl Named for NoPartials {
    fn name(&self) -> &str {
        "no partials"
    }
}

impl Matmul for NoPartials {
    type Prepared<B: fp4_core::Packed> = <Reference as Matmul>::Prepared<B>;

    fn supports_matmul(&self, _: &MatmulQuery) -> Result<(), Unsupported> {
        Err(Unsupported::NotImplemented)
    }

    fn prepare<B: fp4_core::Packed>(&self, b: B) -> Result<Self::Prepared<B>, Error> {
        Reference.prepare(b)
    }

    fn matmul<B: fp4_core::Packed>(
        &self,
        _: PackedView<'_>,
        _: &Self::Prepared<B>,
        _: Epilogue<'_>,
        _: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        Err(Unsupported::NotImplemented.into())
    }

    fn export_weight<B: fp4_core::Packed>(
        &self,
        b: &Self::Prepared<B>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        Reference.export_weight(b, out)
    }
}

#[test]
fn partial_sums_are_unsupported_unless_a_backend_says_otherwise() {
    let query = MatmulQuery::new(Format::NvFp4, [3, 3, 64], FloatType::F32);
    let a = matrix();
    let weight = NoPartials.prepare(a.view()).unwrap();
    let mut sums = [ExactSum::ZERO; 9];
    let partial = NoPartials.partial(a.view(), &weight, 0..4, PartialsMut::Exact(&mut sums));
    assert_eq!(partial, Err(Unsupported::Partials.into()));
    assert_eq!(Matmul::supports_partial(&NoPartials, &query), Err(Unsupported::Partials));

    let backend = Backend::matmul_only(NoPartials);
    assert_eq!(backend.name(), "no partials");
    assert!(backend.quantizer().is_none() && backend.as_resident().is_none());
    let matmul = backend.matmul().unwrap();
    assert_eq!(matmul.supports_matmul(&query), Err(Unsupported::NotImplemented));
    assert_eq!(matmul.supports_partial(&query), Err(Unsupported::Partials));
}

/// The reference through its traits and behind pointers is the reference.
#[test]
fn the_reference_backend_computes_what_its_functions_do() {
    let backend = Backend::new(Reference);
    assert_eq!(backend.name(), "reference");
    assert!(format!("{backend:?}").contains("reference"));
    assert!(backend.as_resident().is_none());

    let spec = QuantSpec::usual(Format::NvFp4);
    let x: Vec<f32> = (0..3 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
    let input = QuantizeInput::new(&x[..], 3, 64, &spec).unwrap();
    let mut expected = PackedMatrix::zeros(input.shape());
    reference::quantize(&input, &mut expected.view_mut()).unwrap();
    let mut got = PackedMatrix::zeros(input.shape());
    backend.quantizer().unwrap().quantize(&input, &mut got.view_mut()).unwrap();
    assert_eq!(got, expected);
    assert!(expected.codes().iter().any(|&byte| byte != 0));

    let (mut y, mut expected_y) = ([7f32; 9], [0f32; 9]);
    reference::matmul(got.view(), got.view(), 0.5, (&mut expected_y[..]).into()).unwrap();
    let weight = backend.matmul().unwrap().clone().prepare_dyn(Arc::new(got.clone())).unwrap();
    assert_eq!(weight.shape(), got.shape());
    let paths = weight.matmul(got.view(), 0.5.into(), (&mut y[..]).into()).unwrap();
    assert_eq!((y, paths), (expected_y, Paths::new(0, 0, 9)));
    assert!(y.iter().all(|&y| y != 0.0));

    let (mut sums, mut expected) = ([ExactSum::ZERO; 9], [ExactSum::ZERO; 9]);
    reference::partial(got.view(), got.view(), 1..3, PartialsMut::Exact(&mut expected)).unwrap();
    weight.partial(got.view(), 1..3, PartialsMut::Exact(&mut sums)).unwrap();
    assert_eq!(sums, expected);
    assert_ne!(sums, [ExactSum::ZERO; 9]);
}

/// Every message names what it was given.
#[test]
fn messages_name_what_was_given() {
    let says = |text: String, words: &[&str]| {
        for word in words {
            assert!(text.contains(word), "{text:?} lacks {word:?}");
        }
    };
    let range = Error::Range { what: Dim::Groups, start: 3, end: 9, len: 4 };
    says(range.to_string(), &["groups", "3", "9", "4"]);
    let len = |what| Error::Len { what, expected: 12, got: 13 }.to_string();
    for (what, name) in [
        (Buffer::Input, "input"),
        (Buffer::Output, "output"),
        (Buffer::Codes, "codes"),
        (Buffer::Scales, "scales"),
        (Buffer::Swizzled, "swizzled"),
        (Buffer::Transform, "transform"),
        (Buffer::Partials, "partial sums"),
        (Buffer::SumBytes, "serialized"),
    ] {
        says(len(what), &[name, "12", "13"]);
    }
    for (what, name) in [(Dim::Rows, "rows"), (Dim::K, "K"), (Dim::Groups, "groups")] {
        says(what.to_string(), &[name]);
    }
    for (setting, name) in [
        (ScaleSetting::Global, "global scale"),
        (ScaleSetting::ScaleScale, "scale-scale"),
        (ScaleSetting::Amax, "largest absolute"),
    ] {
        says(setting.to_string(), &[name]);
    }
    says(Error::Environment(FpEnvironment::FlushToZero).to_string(), &["subnormals", "flushed"]);
    says(Error::Environment(FpEnvironment::RoundingMode).to_string(), &["rounding mode"]);
    let version = |major, minor| fp4_core::Version { major, minor };
    let old = Unsupported::DriverTooOld { found: version(12, 4), needed: version(13, 1) };
    says(old.to_string(), &["12.4", "13.1"]);
    let old = Unsupported::DeviceTooOld { found: version(7, 5), needed: version(8, 0) };
    says(old.to_string(), &["7.5", "8.0"]);
    says(Unsupported::K { got: 77, max: 64 }.to_string(), &["77", "64"]);
    says(DeviceError::OutOfMemory { bytes: 4096 }.to_string(), &["4096"]);
    says(DeviceError::Driver { code: 719 }.to_string(), &["719"]);
    let names = [ScaleType::E8M0.to_string(), ScaleType::E4M3.to_string()];
    assert_eq!(names, ["e8m0", "e4m3"]);
    assert_eq!(Format::ALL.map(|f| f.to_string()), ["mxfp4", "nvfp4"]);
    assert_eq!(FloatType::ALL.map(|t| t.to_string()), ["f32", "f16", "bf16"]);
    assert_eq!(GroupSize::G64.to_string(), "64");
}

/// What callers share between threads or move to them.
#[test]
fn everything_that_is_shared_is_send_and_sync() {
    fn both<T: Send + Sync + ?Sized>() {}
    both::<PackedView<'_>>();
    both::<PackedMut<'_>>();
    both::<PackedMatrix>();
    both::<FloatSlice<'_>>();
    both::<FloatSliceMut<'_>>();
    both::<fp4_core::FloatVec>();
    both::<fp4_core::OwnedTransform>();
    both::<Transform<'_>>();
    both::<QuantizeInput<'_>>();
    both::<QuantSpec>();
    both::<Epilogue<'_>>();
    both::<MatmulQuery>();
    both::<ExactSum>();
    both::<PartialsMut<'_>>();
    both::<Error>();
    both::<Reference>();
    both::<Backend>();
    both::<dyn fp4_core::backend::erased::DynMatmul>();
    both::<dyn fp4_core::backend::erased::DynWeight>();
    both::<dyn fp4_core::backend::erased::DynResident>();
    both::<dyn fp4_core::backend::erased::DynLinear>();
}

/// A group of 32 to MXINT8, its scale byte and what was counted.
fn mxint8(x: [f32; 32]) -> ([u8; 32], u8, QuantCounts) {
    let input = QuantizeInput::new(&x[..], 1, 32, &QuantSpec::mxint8()).unwrap();
    let (mut codes, mut scales) = ([0xA5; 32], [0xA5]);
    let mut out = PackedMut::new(input.shape(), &mut codes, &mut scales).unwrap();
    let counts = reference::quantize(&input, &mut out).unwrap();
    (codes, scales[0], counts)
}

#[test]
fn mxint8_counts_what_it_clips_clamps_flushes_and_finds_nan() {
    let at = |value: f32| std::array::from_fn(|i| if i == 7 { value } else { 0.0 });
    let counted = |x: [f32; 32]| {
        let (_, _, c) = mxint8(x);
        assert_eq!((c.elements, c.groups), (32, 1));
        [c.clipped, c.scale_max, c.flushed, c.nan_groups]
    };
    assert_eq!(counted(at(0.0)), [0; 4]);
    assert_eq!(counted(at(-1.0)), [0; 4]);
    // 127 * 2^121 is the largest that is not clamped; half a step more is clipped.
    let largest = 127.0 * 2f32.powi(121);
    assert_eq!(counted(at(largest)), [0; 4]);
    assert_eq!(counted(at(f32::from_bits(largest.to_bits() + 1))), [0, 1, 0, 0]);
    assert_eq!(counted(at(127.5 * 2f32.powi(121))), [0, 1, 0, 0]);
    assert_eq!(counted(at(f32::MAX)), [1, 1, 0, 0]);
    assert_eq!(counted(at(f32::NEG_INFINITY)), [1, 1, 0, 0]);
    // 2^-134 is half an element under the smallest scale, a tie.
    assert_eq!(counted(at(f32::from_bits(1 << 15))), [0, 0, 1, 0]);
    assert_eq!(counted(at(f32::from_bits((1 << 15) + 1))), [0; 4]);
    assert_eq!(counted(at(f32::NAN)), [0, 0, 0, 1]);
    let mut both = at(f32::NAN);
    both[8] = f32::INFINITY;
    assert_eq!((mxint8(both).0, mxint8(both).1, counted(both)), ([0; 32], 0xFF, [0, 0, 0, 1]));
}

#[test]
fn mxint8_has_no_settings_and_says_so() {
    let spec = QuantSpec::mxint8();
    assert_eq!(spec.with_tie(TieMode::Up), spec);
    assert!(matches!(spec.with_row_scales(), Err(Error::RowScales { .. })));
    let error = QuantizeInput::new(&[0f32; 16][..], 1, 16, &spec).unwrap_err();
    assert!(error.to_string().contains("mxint8"), "{error}");
    let input = QuantizeInput::new(&[0f32; 32][..], 1, 32, &spec).unwrap();
    let given = input.with_scales(&[127]).unwrap_err();
    assert_eq!(given, Error::Unsupported(Unsupported::GivenScales));
    let shape = PackedShape::encoded(Encoding::MxInt8, 1, 32).unwrap();
    assert_eq!((shape.codes_len(), shape.scales_len(), shape.format()), (32, 1, None));
    let view = PackedView::new(shape, &[0x80; 32], &[254]).unwrap();
    assert_eq!((view.int8(0, 31), view.int8(0, 32), view.code(0, 0)), (Some(-128), None, None));
    let mut y = [0f32; 32];
    reference::dequantize(view, 1.0, (&mut y[..]).into()).unwrap();
    assert_eq!(y, [f32::NEG_INFINITY; 32]);
    let error = reference::dequantize(view, 0.5, (&mut y[..]).into());
    assert_eq!(error, Err(Error::NoGlobalScale { got: 0.5 }));
    // -128 at the top multiplies as the number that it is: -2^128 * 0.5.
    let b = PackedShape::of(Format::MxFp4, 1, 32).unwrap();
    let mut codes = [0; 16];
    codes[0] = 1;
    let b = PackedView::new(b, &codes, &[127]).unwrap();
    let mut product = [0f32; 1];
    reference::matmul(view, b, 1.0, (&mut product[..]).into()).unwrap();
    assert_eq!(product, [-(2f32.powi(127))]);
}

#[test]
#[cfg(feature = "serde")]
fn mxint8_settings_are_read_as_they_are_written_and_no_others() {
    let spec = QuantSpec::mxint8();
    let text = serde_json::to_string(&spec).unwrap();
    assert!(text.ends_with(r#""row_scales":false,"element":"int8"}"#), "{text}");
    assert_eq!(serde_json::from_str::<QuantSpec>(&text).unwrap(), spec);
    for (from, to) in [("e8m0", "e4m3"), ("32", "16"), ("false", "true"), ("1.0", "2.0")] {
        let other = text.replacen(from, to, 1);
        assert!(serde_json::from_str::<QuantSpec>(&other).is_err(), "{other}");
    }
}
