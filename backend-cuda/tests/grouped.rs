//! Several products in one call on every kernel, each against the reference alone (C6): rows of all
//! counts, both formats and both encodings of A, epilogues, shared operands, and tiles that are
//! left.
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::data::{DATA, Data, drawn, matrix};
use common::{Rng, same_bits};
use fp4_backend_cuda::{Cuda, CudaWeight, MatmulKernel};
use fp4_core::{
    Encoding, Epilogue, Error, Format, GroupedProduct, Matmul, PackedMatrix, PackedView, Paths,
    bf16, reference,
};

const KERNELS: [MatmulKernel; 7] = [
    MatmulKernel::Naive,
    MatmulKernel::Mma,
    MatmulKernel::MmaFolded { ranges: 0 },
    MatmulKernel::Decode { ranges: 0 },
    MatmulKernel::Wgmma,
    MatmulKernel::WgmmaRs { ranges: 0 },
    MatmulKernel::Auto,
];

/// One product of a call: operands, row scales and bias.
struct Case {
    a: PackedMatrix,
    b: PackedMatrix,
    row_scales: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn epilogue(&self, i: usize) -> Epilogue<'_> {
        let mut epilogue = Epilogue::from(0.75 + i as f32);
        if i % 2 == 1 {
            epilogue.row_scales = Some(&self.row_scales);
        }
        if i % 3 == 1 {
            epilogue.bias = Some(&self.bias);
        }
        epilogue
    }
}

fn case(rng: &mut Rng, a: Encoding, b: Format, [m, n, k]: [usize; 3], data: Data) -> Case {
    Case {
        a: drawn(rng, a, [m, k], data),
        b: drawn(rng, b.into(), [n, k], data),
        row_scales: (0..m).map(|_| rng.value()).collect(),
        bias: (0..n).map(|_| rng.value()).collect(),
    }
}

/// Runs a call, compares every product with the reference, and returns the paths of all.
fn check(cuda: &Cuda, cases: &[Case], name: &str) -> Paths {
    let weights: Vec<CudaWeight<PackedView<'_>>> =
        cases.iter().map(|case| cuda.prepare(case.b.view()).unwrap()).collect();
    let mut outputs: Vec<_> = (cases.iter())
        .map(|case| vec![7f32; case.a.shape().rows() * case.b.shape().rows()])
        .collect();
    let mut products: Vec<_> = (cases.iter().zip(&weights).zip(&mut outputs).enumerate())
        .map(|(i, ((case, weight), out))| {
            GroupedProduct::new(case.a.view(), weight, case.epilogue(i), &mut out[..])
        })
        .collect();
    let all = cuda.grouped(&mut products).unwrap();
    let each: Vec<Paths> = products.iter().map(|product| product.paths).collect();
    drop(products);
    let mut sum = Paths::default();
    for (i, (case, out)) in cases.iter().zip(&outputs).enumerate() {
        let mut expected = vec![0f32; out.len()];
        let (a, b) = (case.a.view(), case.b.view());
        reference::matmul(a, b, case.epilogue(i), (&mut expected[..]).into()).unwrap();
        same_bits(out, &expected, &format!("{name}, product {i}"));
        let count = each[i].narrow + each[i].planes + each[i].wide;
        assert_eq!(count, out.len() as u64, "{name}, product {i}: {:?}", each[i]);
        sum.merge(&each[i]);
    }
    assert_eq!(all, sum, "{name}");
    all
}

#[test]
fn each_product_of_a_call_has_the_bits_that_it_has_alone() {
    let (mut rng, mut compared) = (Rng(50), 0);
    let shapes = [[0, 5, 64], [1, 130, 160], [17, 129, 96], [3, 0, 32], [70, 33, 288], [4, 3, 0]];
    let pairs = [
        (Encoding::MxFp4, Format::MxFp4),
        (Encoding::NvFp4, Format::NvFp4),
        (Encoding::MxInt8, Format::MxFp4),
        (Encoding::MxInt8, Format::NvFp4),
    ];
    for kernel in KERNELS {
        let cuda = Cuda::open(0).unwrap().with_matmul_kernel(kernel);
        for data in DATA {
            // Every pair of encodings meets every shape over the kinds of data.
            let cases: Vec<Case> = (shapes.iter().enumerate())
                .map(|(i, &shape)| {
                    let (a, b) = pairs[(i + data as usize) % 4];
                    case(&mut rng, a, b, shape, data)
                })
                .collect();
            let all = check(&cuda, &cases, &format!("{kernel:?} {data:?}"));
            compared += all.narrow + all.planes + all.wide;
        }
    }
    println!("grouped: {compared} outputs compared, 0 differ");
    assert_eq!(compared, KERNELS.len() as u64 * 5 * (130 + 2193 + 2310 + 12));
}

#[test]
fn experts_with_no_row_one_and_many_share_one_launch() {
    let mut rng = Rng(51);
    let cuda = Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::MmaFolded { ranges: 0 });
    for (a, b) in [(Encoding::MxFp4, Format::MxFp4), (Encoding::NvFp4, Format::NvFp4)] {
        let rows = [0, 1, 0, 64, 65, 1, 130, 0];
        let cases: Vec<Case> =
            rows.iter().map(|&m| case(&mut rng, a, b, [m, 200, 128], Data::Close)).collect();
        let all = check(&cuda, &cases, &format!("{b}"));
        assert_eq!(all.narrow, 261 * 200);
        // Tiles of 64 x 128 of all of them: 1, 1, 2, 1 and 3 down, two across.
        assert_eq!(cuda.tiles_left().unwrap(), (0, 16), "{b}");
    }
}

#[test]
fn tiles_of_any_product_that_cannot_be_proved_are_left_and_right() {
    let mut rng = Rng(52);
    let cuda = Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::MmaFolded { ranges: 0 });
    // The second and the last have rows with more windows than there is room for.
    let wide = |rows: usize| -> PackedMatrix {
        let row = |r: usize| (0..16).map(move |g| (0x17 + r as u8, 60 + 9 * ((g + r) % 12) as u8));
        matrix(Encoding::MxFp4, &(0..rows).map(|r| row(r).collect()).collect::<Vec<_>>())
    };
    let cases: Vec<Case> = [(5, false), (70, true), (64, false), (1, true)]
        .into_iter()
        .map(|(m, is_wide)| {
            let mut case =
                case(&mut rng, Encoding::MxFp4, Format::MxFp4, [m, 130, 512], Data::Close);
            if is_wide {
                case.a = wide(m);
            }
            case
        })
        .collect();
    check(&cuda, &cases, "left");
    let (left, tiles) = cuda.tiles_left().unwrap();
    assert_eq!(tiles, 2 * (1 + 2 + 1 + 1));
    assert_eq!(left, 2 * (2 + 1));
}

#[test]
fn products_may_share_operands_and_have_outputs_of_any_type() {
    let mut rng = Rng(53);
    for kernel in KERNELS {
        let cuda = Cuda::open(0).unwrap().with_matmul_kernel(kernel);
        let a = drawn(&mut rng, Encoding::NvFp4, [18, 96], Data::Close);
        let b = drawn(&mut rng, Encoding::NvFp4, [40, 96], Data::Close);
        let weight = cuda.prepare(b.view()).unwrap();
        let (mut wide, mut half) = (vec![0f32; 720], vec![bf16::ZERO; 720]);
        let mut products = [
            GroupedProduct::new(a.view(), &weight, 0.5, &mut wide[..]),
            GroupedProduct::new(a.view(), &weight, 3.0, &mut half[..]),
        ];
        cuda.grouped(&mut products).unwrap();
        let (mut expected, mut rounded) = (vec![0f32; 720], vec![bf16::ZERO; 720]);
        reference::matmul(a.view(), b.view(), 0.5, (&mut expected[..]).into()).unwrap();
        reference::matmul(a.view(), b.view(), 3.0, (&mut rounded[..]).into()).unwrap();
        same_bits(&wide, &expected, &format!("{kernel:?} f32"));
        same_bits(&half, &rounded, &format!("{kernel:?} bf16"));
    }
}

#[test]
fn a_call_with_a_product_that_does_not_fit_writes_nothing() {
    let mut rng = Rng(54);
    let cuda = Cuda::open(0).unwrap();
    let a = drawn(&mut rng, Encoding::MxFp4, [2, 64], Data::Close);
    let b = drawn(&mut rng, Encoding::MxFp4, [3, 64], Data::Close);
    let other = drawn(&mut rng, Encoding::MxFp4, [3, 96], Data::Close);
    let (weight, other) = (cuda.prepare(b.view()).unwrap(), cuda.prepare(other.view()).unwrap());
    let (mut first, mut second) = ([7f32; 6], [7f32; 6]);
    let mut products = [
        GroupedProduct::new(a.view(), &weight, 1.0, &mut first[..]),
        GroupedProduct::new(a.view(), &other, 1.0, &mut second[..]),
    ];
    let refused = cuda.grouped(&mut products).unwrap_err();
    assert_eq!(refused.product, Some(1), "{refused}");
    assert!(matches!(refused.error, Error::ShapeMismatch { .. }), "{refused}");
    assert_eq!((first, second), ([7.0; 6], [7.0; 6]));
    assert_eq!(cuda.grouped::<PackedView<'_>>(&mut []).unwrap(), Paths::default());
}
