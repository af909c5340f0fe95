//! Products in one call: the bits and the paths of each alone, on any number of threads [C6, C9].

mod common;

use common::{Rng, SCALES, Scales, activations, backends, each_isa, operand, values};
use fp4_backend_cpu_simd::{CpuSimd, CpuWeight, Isa};
use fp4_core::backend::erased::Backend;
use fp4_core::{
    Buffer, Dim, Epilogue, Error, FloatSliceMut, FloatType, FloatVec, Format, GroupedError,
    GroupedProduct, Matmul, PackedMatrix, Paths, reference,
};

/// One product with its answer.
struct Alone {
    a: PackedMatrix,
    b: PackedMatrix,
    alpha: f32,
    row_scales: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    expected: FloatVec,
}

impl Alone {
    fn new(
        [a, b]: [PackedMatrix; 2],
        alpha: f32,
        [row_scales, bias]: [Option<Vec<f32>>; 2],
        ty: FloatType,
    ) -> Self {
        let expected = garbage(ty, a.shape().rows() * b.shape().rows());
        let mut alone = Alone { a, b, alpha, row_scales, bias, expected };
        let mut expected = alone.expected.clone();
        let (a, b) = (alone.a.view(), alone.b.view());
        reference::matmul(a, b, alone.epilogue(), expected.as_mut_slice()).unwrap();
        alone.expected = expected;
        alone
    }

    /// Rows by any weight, with an epilogue and an output of any kind.
    fn random(rng: &mut Rng, m: usize, i: usize) -> Self {
        let format = Format::ALL[rng.below(2)];
        let (n, k) = (1 + rng.below(70), 32 * rng.below(12));
        let how = SCALES[rng.below(SCALES.len())];
        let a = match rng.below(3) {
            0 => activations(rng, m, k, how),
            _ => operand(rng, format, m, k, how),
        };
        let b = operand(rng, format, n, k, how);
        let alpha = [1.0, -0.37, 1e-30, f32::NAN, 0.0][rng.below(5)];
        let row_scales = (rng.below(2) == 0).then(|| values(rng, m));
        let bias = (rng.below(2) == 0).then(|| values(rng, n));
        Alone::new([a, b], alpha, [row_scales, bias], FloatType::ALL[i % 3])
    }

    fn epilogue(&self) -> Epilogue<'_> {
        let (row_scales, bias) = (self.row_scales.as_deref(), self.bias.as_deref());
        Epilogue::new(self.alpha).with_row_scales(row_scales).with_bias(bias)
    }

    fn product<'a, B: fp4_core::Packed>(
        &'a self,
        weight: &'a CpuWeight<B>,
        out: &'a mut FloatVec,
    ) -> GroupedProduct<'a, CpuWeight<B>> {
        GroupedProduct::new(self.a.view(), weight, self.epilogue(), out.as_mut_slice())
    }
}

/// What no output is left as.
fn garbage(ty: FloatType, len: usize) -> FloatVec {
    FloatVec::from_le_bytes(ty, &vec![0xA5; len * ty.bytes()]).unwrap()
}

fn garbage_for(all: &[Alone]) -> Vec<FloatVec> {
    all.iter().map(|one| garbage(one.expected.float_type(), one.expected.len())).collect()
}

fn same(got: &[FloatVec], all: &[Alone], case: &str) {
    for (i, (got, one)) in got.iter().zip(all).enumerate() {
        let (got, expected) = (got.to_le_bytes(), one.expected.to_le_bytes());
        let bytes = one.expected.float_type().bytes();
        let differs = got.chunks(bytes).zip(expected.chunks(bytes)).position(|(g, e)| g != e);
        assert_eq!(differs, None, "{case}: product {i}, {:?}", one.b.shape());
        assert_eq!(got.len(), expected.len());
    }
}

/// Runs all in one call and compares bits and paths with each alone; returns the outputs compared.
fn check(backend: &CpuSimd, on: &[&CpuSimd], all: &[Alone], case: &str) -> usize {
    let weights: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(i, one)| on[i % on.len()].prepare(one.b.view()).unwrap())
        .collect();
    let mut got = garbage_for(all);
    let mut products: Vec<_> = (all.iter().zip(&weights).zip(&mut got))
        .map(|((one, weight), out)| one.product(weight, out))
        .collect();
    let paths = backend.grouped(&mut products).unwrap();
    let each: Vec<Paths> = products.iter().map(|product| product.paths).collect();
    drop(products);
    same(&got, all, case);
    let mut sum = Paths::default();
    for (i, ((one, weight), each)) in all.iter().zip(&weights).zip(&each).enumerate() {
        let mut alone = one.expected.clone();
        let (view, out) = (one.a.view(), alone.as_mut_slice());
        let paths = backend.matmul(view, weight, one.epilogue(), out).unwrap();
        assert_eq!(*each, paths, "{case}: paths of product {i}");
        sum.merge(each);
    }
    assert_eq!(paths, sum, "{case}");
    got.iter().map(FloatVec::len).sum()
}

#[test]
fn products_of_every_kind_have_the_bits_and_paths_that_they_have_alone() {
    let all: Vec<Alone> = {
        let mut rng = Rng(151);
        let rows = [0, 1, 2, 17, 50, 300, 0, 1, 5, 24, 3, 0];
        rows.iter().enumerate().map(|(i, &m)| Alone::random(&mut rng, m, i)).collect()
    };
    each_isa(|on| {
        let mut compared = 0;
        for (threads, backend) in backends(on) {
            let outputs = check(&backend, &[&backend], &all, &threads);
            assert!(outputs > 20_000);
            compared += outputs;
        }
        println!("grouped: {compared} outputs compared, 0 differ");
    });
}

/// The work is enough for threads, and one expert has most of it: it is cut.
#[test]
fn a_large_expert_among_small_ones_and_experts_of_equal_rows() {
    let with_rows = |rng: &mut Rng, rows: &[usize]| -> Vec<Alone> {
        let one = |(i, &m): (usize, &usize)| {
            let (format, [n, k]) = (Format::ALL[i % 2], [[130, 256], [67, 384]][i % 3 % 2]);
            let ab = [
                operand(rng, format, m, k, Scales::Close),
                operand(rng, format, n, k, Scales::Nan),
            ];
            let bias = (i % 4 == 1).then(|| values(rng, n));
            let row_scales = (i % 5 == 2).then(|| values(rng, m));
            Alone::new(ab, 0.1, [row_scales, bias], FloatType::ALL[i / 2 % 3])
        };
        rows.iter().enumerate().map(one).collect()
    };
    let mut rng = Rng(152);
    let skewed = with_rows(&mut rng, &[3, 0, 1, 700, 12, 0, 50, 7, 1, 400]);
    let equal = with_rows(&mut rng, &[25; 24]);
    let decode = with_rows(&mut rng, &[1; 40]);
    each_isa(|on| {
        for (threads, backend) in backends(on) {
            for (name, all) in [("skewed", &skewed), ("equal", &equal), ("decode", &decode)] {
                check(&backend, &[&backend], all, &format!("{name}, {threads}"));
            }
        }
    });
}

/// q, k and v of one input: the same view, weights of two formats where A is MXINT8.
#[test]
fn consecutive_products_of_one_input_equal_those_of_copies() {
    let mut rng = Rng(153);
    for (m, int8) in [(1, false), (40, false), (3, true), (150, true)] {
        let k = 512;
        let a = match int8 {
            true => activations(&mut rng, m, k, Scales::Close),
            false => operand(&mut rng, Format::NvFp4, m, k, Scales::Full),
        };
        let alone = |n: usize, format| {
            let b = operand(&mut rng, format, n, k, Scales::Close);
            Alone::new([a.clone(), b], 1.0, [None, None], FloatType::F32)
        };
        let other = if int8 { Format::MxFp4 } else { Format::NvFp4 };
        let shapes = [(512, Format::NvFp4), (128, Format::NvFp4), (96, other), (33, Format::NvFp4)];
        let all: Vec<Alone> = shapes
            .map(|(n, format)| (n, format))
            .into_iter()
            .map({
                let mut alone = alone;
                move |(n, format)| alone(n, format)
            })
            .collect();
        each_isa(|on| {
            for (threads, backend) in backends(on) {
                let weights: Vec<_> =
                    all.iter().map(|one| backend.prepare(one.b.view()).unwrap()).collect();
                let mut got = garbage_for(&all);
                let mut products: Vec<_> = (weights.iter().zip(&mut got))
                    .map(|(weight, out)| {
                        GroupedProduct::new(a.view(), weight, 1.0, out.as_mut_slice())
                    })
                    .collect();
                backend.grouped(&mut products).unwrap();
                drop(products);
                same(&got, &all, &format!("{m} rows, {threads}"));
            }
        });
    }
}

/// A weight is multiplied by the kernels that it was prepared for, a tile packed for some is none
/// for others.
#[test]
fn weights_of_several_instruction_sets_meet_in_one_call() {
    let (mut rng, k) = (Rng(154), 256);
    let a = operand(&mut rng, Format::MxFp4, 60, k, Scales::Close);
    let mut one = |n: usize| {
        let b = operand(&mut rng, Format::MxFp4, n, k, Scales::Close);
        Alone::new([a.clone(), b], 0.5, [None, None], FloatType::F32)
    };
    let all: Vec<Alone> = (0..10).map(|i| one(40 + 9 * i)).collect();
    let on: Vec<_> = Isa::available().map(|isa| CpuSimd::with_isa(isa).unwrap()).collect();
    for (threads, backend) in backends(&on[0]) {
        check(&backend, &on.iter().collect::<Vec<_>>(), &all, &threads);
        // Of one view: what one set of kernels packed is not for the next.
        let weights: Vec<_> = (all.iter().zip(on.iter().cycle()))
            .map(|(one, on)| on.prepare(one.b.view()).unwrap())
            .collect();
        let mut got = garbage_for(&all);
        let mut products: Vec<_> = (weights.iter().zip(&mut got))
            .map(|(weight, out)| GroupedProduct::new(a.view(), weight, 0.5, out.as_mut_slice()))
            .collect();
        backend.grouped(&mut products).unwrap();
        drop(products);
        same(&got, &all, &threads);
    }
}

#[test]
fn what_does_not_fit_names_its_product_and_nothing_is_written() {
    let mut rng = Rng(155);
    let shape = [(4, 5), (0, 5), (3, 7)];
    let ab = shape.map(|(m, n)| {
        let a = operand(&mut rng, Format::MxFp4, m, 64, Scales::Close);
        (a, operand(&mut rng, Format::MxFp4, n, 64, Scales::Close))
    });
    let other_k = operand(&mut rng, Format::MxFp4, 3, 96, Scales::Close);
    let other_format = operand(&mut rng, Format::NvFp4, 3, 64, Scales::Close);
    each_isa(|on| {
        for (_, backend) in backends(on) {
            let weights = ab.each_ref().map(|(_, b)| backend.prepare(b.view()).unwrap());
            let call = |break_it: &dyn Fn(&mut GroupedProduct<'_, CpuWeight<_>>)| {
                let mut got = [vec![-7.5f32; 20], vec![], vec![-7.5; 21]];
                let mut products: Vec<_> = (ab.iter().zip(&weights).zip(&mut got))
                    .map(|(((a, _), b), out)| GroupedProduct::new(a.view(), b, 1.0, &mut out[..]))
                    .collect();
                break_it(&mut products[2]);
                let result = backend.grouped(&mut products);
                drop(products);
                let written = got.iter().flatten().any(|&y| y != -7.5);
                assert_eq!(written, result.is_ok(), "{result:?}");
                result
            };
            assert!(call(&|_| {}).is_ok());
            let error = call(&|product| product.a = other_k.view()).unwrap_err();
            let k = Error::ShapeMismatch { what: Dim::K, expected: 96, got: 64 };
            assert_eq!(error, GroupedError::of(2, k));
            assert!(error.to_string().starts_with("product 2 of the grouped call (from 0): "));
            let error = call(&|product| product.a = other_format.view()).unwrap_err();
            assert!(matches!(error.error, Error::FormatMismatch { .. }), "{error}");
            assert_eq!(error.product, Some(2));
            let scales = [1f32; 4];
            let error = call(&|product| {
                product.epilogue = Epilogue::new(1.0).with_row_scales(Some(&scales));
            });
            let len = Error::Len { what: Buffer::RowScales, expected: 3, got: 4 };
            assert_eq!(error, Err(GroupedError::of(2, len)));
            let error = call(&|product| {
                product.epilogue = Epilogue::new(1.0).with_bias(Some(&scales));
            });
            let len = Error::Len { what: Buffer::Bias, expected: 7, got: 4 };
            assert_eq!(error, Err(GroupedError::of(2, len)));
            let error = call(&|product| product.out = FloatSliceMut::F32(&mut []));
            let len = Error::Len { what: Buffer::Output, expected: 21, got: 0 };
            assert_eq!(error, Err(GroupedError::of(2, len)));
            assert_eq!(backend.grouped::<&PackedMatrix>(&mut []), Ok(Paths::default()));
        }
    });
}

#[test]
fn the_erased_form_takes_its_own_weights_and_no_others() {
    let mut rng = Rng(156);
    let all: Vec<Alone> = (0..6).map(|i| Alone::random(&mut rng, 3 * i, i)).collect();
    let backend = Backend::new(CpuSimd::new());
    let matmul = backend.matmul().unwrap();
    assert!(matmul.schedules_grouped());
    let prepare = |one: &Alone| matmul.clone().prepare_dyn(one.b.clone().into()).unwrap();
    let weights: Vec<_> = all.iter().map(prepare).collect();
    let mut got = garbage_for(&all);
    let mut products: Vec<_> = (all.iter().zip(&weights).zip(&mut got))
        .map(|((one, weight), out)| {
            GroupedProduct::new(one.a.view(), &**weight, one.epilogue(), out.as_mut_slice())
        })
        .collect();
    let paths = matmul.grouped_dyn(&mut products).unwrap();
    let mut sum = Paths::default();
    products.iter().for_each(|product| sum.merge(&product.paths));
    assert_eq!(paths, sum);
    drop(products);
    same(&got, &all, "erased");

    let other = Backend::new(CpuSimd::new());
    let foreign = other.matmul().unwrap().clone().prepare_dyn(all[2].b.clone().into()).unwrap();
    let mut got = garbage_for(&all);
    let mut products: Vec<_> = (all.iter().zip(&weights).zip(&mut got))
        .map(|((one, weight), out)| {
            GroupedProduct::new(one.a.view(), &**weight, one.epilogue(), out.as_mut_slice())
        })
        .collect();
    products[2].b = &*foreign;
    let error = matmul.grouped_dyn(&mut products);
    assert_eq!(error, Err(GroupedError::of(2, Error::ForeignOperand)));
    drop(products);
    let untouched = garbage_for(&all);
    assert!(got.iter().zip(&untouched).all(|(got, was)| got.to_le_bytes() == was.to_le_bytes()));
}
