//! Several products in one call, by the default of the trait: the bits of each alone, and nothing
//! written if one does not fit.
#![cfg(feature = "std")]
#![allow(missing_docs)]

use std::error::Error as _;

use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;
use fp4_core::{
    Buffer, Dim, Encoding, Epilogue, Error, Float, FloatSliceMut, FloatType, Format, GroupedError,
    GroupedProduct, Matmul, MatmulQuery, Named, Packed, PackedMatrix, PackedMut, PackedShape,
    PackedView, Paths, Unsupported, bf16, f16, reference,
};

/// A matrix whose codes and scales differ in every place.
fn matrix(encoding: impl Into<Encoding>, rows: usize, k: usize, seed: u8) -> PackedMatrix {
    let shape = PackedShape::encoded(encoding.into(), rows, k).unwrap();
    let byte = |i: usize| (i as u8).wrapping_mul(37).wrapping_add(seed);
    let codes = (0..shape.codes_len()).map(byte).collect();
    let scales = (0..shape.scales_len()).map(|i| 0x30 + byte(i) % 16).collect();
    PackedMatrix::new(shape, codes, scales).unwrap()
}

/// The output of a product alone.
fn alone<T: Float>(a: PackedView<'_>, b: PackedView<'_>, epilogue: Epilogue<'_>) -> Vec<T> {
    let mut y = vec![T::from_f32(-7.5); a.shape().rows() * b.shape().rows()];
    reference::matmul(a, b, epilogue, T::wrap_mut(&mut y)).unwrap();
    y
}

#[test]
fn products_of_any_shape_format_epilogue_and_type_are_those_of_each_alone() {
    let a = [
        matrix(Format::MxFp4, 2, 64, 1),
        matrix(Format::NvFp4, 0, 32, 2),
        matrix(Format::NvFp4, 3, 48, 3),
        matrix(Encoding::MxInt8, 1, 96, 4),
    ];
    let b = [
        matrix(Format::MxFp4, 5, 64, 5),
        matrix(Format::NvFp4, 4, 32, 6),
        matrix(Format::NvFp4, 1, 48, 7),
        matrix(Format::MxFp4, 3, 96, 8),
    ];
    let (row_scales, bias) = ([0.5, f32::NAN, -3.0], [1.0, -0.0, 1e30]);
    let epilogues = [
        Epilogue::new(0.25),
        Epilogue::new(f32::NAN),
        Epilogue::new(-1.5).with_row_scales(Some(&row_scales)),
        Epilogue::new(2.0).with_bias(Some(&bias)),
    ];
    let weights = b.each_ref().map(|b| Reference.prepare(b.view()).unwrap());
    let (mut y0, mut y2, mut y3) = ([-7.5f32; 10], [f16::ONE; 3], [bf16::ONE; 3]);
    let outs: [FloatSliceMut<'_>; 4] = [
        (&mut y0[..]).into(),
        FloatSliceMut::F32(&mut []),
        (&mut y2[..]).into(),
        (&mut y3[..]).into(),
    ];
    let mut products: Vec<_> = (a.iter().zip(&weights).zip(epilogues).zip(outs))
        .map(|(((a, b), epilogue), out)| GroupedProduct::new(a.view(), b, epilogue, out))
        .collect();
    let paths = Reference.grouped(&mut products).unwrap();
    assert_eq!(paths, Paths::new(0, 0, 16));
    assert_eq!(products.iter().map(|p| p.paths.wide).collect::<Vec<_>>(), [10, 0, 3, 3]);
    let product = |i: usize| (a[i].view(), b[i].view(), epilogues[i]);
    let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
    let ((a0, b0, e0), (a2, b2, e2), (a3, b3, e3)) = (product(0), product(2), product(3));
    assert_eq!(bits(&y0), bits(&alone(a0, b0, e0)));
    let expected: Vec<f16> = alone(a2, b2, e2);
    assert_eq!(y2.map(f16::to_bits)[..], expected.iter().map(|y| y.to_bits()).collect::<Vec<_>>());
    let expected: Vec<bf16> = alone(a3, b3, e3);
    assert_eq!(y3.map(bf16::to_bits)[..], expected.iter().map(|y| y.to_bits()).collect::<Vec<_>>());
}

#[test]
fn what_a_product_asks_is_a_query() {
    let (a, b) = (matrix(Encoding::MxInt8, 2, 64, 1), matrix(Format::NvFp4, 3, 64, 2));
    let weight = Reference.prepare(b.view()).unwrap();
    let (mut y, bias) = ([bf16::ONE; 6], [0.0; 3]);
    let epilogue = Epilogue::new(1.0).with_bias(Some(&bias));
    let product = GroupedProduct::new(a.view(), &weight, epilogue, &mut y[..]);
    let query = MatmulQuery::new(Format::NvFp4, [2, 3, 64], FloatType::Bf16);
    assert_eq!(product.query(), Ok(query.with_a(Encoding::MxInt8).with_bias(true)));
}

/// The reference without biases.
struct NoBias;

impl Named for NoBias {
    fn name(&self) -> &str {
        "no-bias"
    }
}

impl Matmul for NoBias {
    type Prepared<B: Packed> = <Reference as Matmul>::Prepared<B>;

    fn supports_matmul(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        if query.bias { Err(Unsupported::Bias) } else { Ok(()) }
    }

    fn prepare<B: Packed>(&self, b: B) -> Result<Self::Prepared<B>, Error> {
        Reference.prepare(b)
    }

    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        Reference.matmul(a, b, epilogue, out)
    }

    fn export_weight<B: Packed>(
        &self,
        b: &Self::Prepared<B>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        Reference.export_weight(b, out)
    }
}

#[test]
fn the_first_thing_wrong_is_told_with_its_product_before_anything_is_written() {
    let matrices = [matrix(Format::MxFp4, 2, 64, 1), matrix(Format::MxFp4, 3, 64, 2)];
    let (other, bias) = (matrix(Format::MxFp4, 2, 32, 3), [0.0; 3]);
    let weight = NoBias.prepare(matrices[1].view()).unwrap();
    let call = |a: PackedView<'_>, epilogue: Epilogue<'_>, len: usize| {
        let (mut first, mut second) = ([-7.5f32; 6], [-7.5f32; 6]);
        let result = NoBias.grouped(&mut [
            GroupedProduct::new(matrices[0].view(), &weight, 1.0, &mut first[..]),
            GroupedProduct::new(a, &weight, epilogue, &mut second[..len]),
        ]);
        let written = first.iter().chain(&second).any(|&y| y != -7.5);
        assert_eq!(written, result.is_ok());
        result
    };
    let a = matrices[0].view();
    assert!(call(a, Epilogue::new(1.0), 6).is_ok());
    let k = Error::ShapeMismatch { what: Dim::K, expected: 32, got: 64 };
    let error = call(other.view(), Epilogue::new(1.0), 6).unwrap_err();
    assert_eq!(error, GroupedError::of(1, k));
    assert_eq!(error.to_string(), format!("product 1 of the grouped call (from 0): {k}"));
    assert_eq!(error.source().unwrap().to_string(), k.to_string());
    let len = Error::Len { what: Buffer::Output, expected: 6, got: 5 };
    assert_eq!(call(a, Epilogue::new(1.0), 5), Err(GroupedError::of(1, len)));
    let no = Error::Unsupported(Unsupported::Bias);
    let with_bias = Epilogue::new(1.0).with_bias(Some(&bias));
    assert_eq!(call(a, with_bias, 6), Err(GroupedError::of(1, no)));
    let whole = GroupedError::from(Error::ForeignOperand);
    assert_eq!((whole.product, whole.to_string()), (None, Error::ForeignOperand.to_string()));
    assert_eq!(NoBias.grouped::<&PackedMatrix>(&mut []), Ok(Paths::default()));
}

#[test]
fn the_erased_form_takes_weights_of_its_own_backend_alone() {
    let (a, b) = (matrix(Format::NvFp4, 2, 64, 1), matrix(Format::NvFp4, 3, 64, 2));
    let (one, clone) = (Backend::new(Reference), Backend::new(Reference));
    let prepare = |backend: &Backend| {
        backend.matmul().unwrap().clone().prepare_dyn(b.clone().into()).unwrap()
    };
    let weights = [prepare(&one), prepare(&one), prepare(&clone)];
    assert!(!one.matmul().unwrap().schedules_grouped());
    let call = |used: [usize; 2]| {
        let mut y = [[-7.5f32; 6]; 2];
        let [y0, y1] = &mut y;
        let mut products = [
            GroupedProduct::new(a.view(), &*weights[used[0]], 0.5, &mut y0[..]),
            GroupedProduct::new(a.view(), &*weights[used[1]], 2.0, &mut y1[..]),
        ];
        let paths = one.matmul().unwrap().grouped_dyn(&mut products);
        let each = products.map(|product| product.paths.wide);
        (paths, each, y)
    };
    let (paths, each, y) = call([0, 1]);
    assert_eq!((paths, each), (Ok(Paths::new(0, 0, 12)), [6, 6]));
    assert_eq!(y[0][..], alone::<f32>(a.view(), b.view(), 0.5.into()));
    assert_eq!(y[1][..], alone::<f32>(a.view(), b.view(), 2.0.into()));
    let (paths, each, y) = call([0, 2]);
    let foreign = GroupedError::of(1, Error::ForeignOperand);
    assert_eq!((paths, each, y), (Err(foreign), [0, 0], [[-7.5; 6]; 2]));
}
