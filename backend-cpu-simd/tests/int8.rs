//! MXINT8 activations by both weight formats against the reference, bit for bit [C6, C10].

mod common;

use common::{Rng, SCALES, Scales, each_isa, operand, same_bits};
use fp4_core::{
    Encoding, ExactSum, Format, Matmul, PackedMatrix, PackedShape, PartialsMut, Paths, reference,
};

/// Elements of every byte under scale bytes within so many octaves, or any.
fn activations(rng: &mut Rng, m: usize, k: usize, how: Scales) -> PackedMatrix {
    let shape = PackedShape::encoded(Encoding::MxInt8, m, k).unwrap();
    let mut elements: Vec<u8> = (0..shape.codes_len()).map(|_| rng.byte()).collect();
    let scale = |rng: &mut Rng| match how {
        Scales::Close => 125 + rng.byte() % 5,
        Scales::Nan if rng.below(40) == 0 => 0xFF,
        Scales::Nan => 120 + rng.byte() % 9,
        Scales::Window(octaves) => 60 + rng.byte() % octaves,
        Scales::Sparse => [0, 1, 254, 127][rng.below(4)],
        Scales::Full => rng.byte() % 255,
    };
    let scales = (0..shape.scales_len()).map(|_| scale(rng)).collect();
    for group in elements.chunks_mut(32) {
        match rng.below(9) {
            0 => group.fill(0),
            1 => group.fill(0x80),
            _ => {}
        }
    }
    PackedMatrix::new(shape, elements, scales).unwrap()
}

#[test]
fn products_and_partial_sums_equal_the_reference() {
    each_isa(|on| {
        let (mut rng, mut compared, mut all) = (Rng(81), 0, Paths::default());
        for format in Format::ALL {
            for [m, n, k] in [
                [0, 3, 32],
                [1, 1, 32],
                [1, 40, 96],
                [2, 17, 160],
                [5, 33, 480],
                [17, 20, 1056],
                [51, 16, 64],
                [4, 0, 64],
                [3, 5, 0],
            ] {
                for how in SCALES {
                    let a = activations(&mut rng, m, k, how);
                    let other = SCALES[rng.below(SCALES.len())];
                    let b = operand(&mut rng, format, n, k, other);
                    let weight = on.prepare(b.view()).unwrap();
                    let case = format!("{format} {m}x{n}x{k} {how:?} {other:?}");
                    let (mut got, mut expected) = (vec![7f32; m * n], vec![0f32; m * n]);
                    let out = (&mut got[..]).into();
                    let paths = on.matmul(a.view(), &weight, (-0.7).into(), out).unwrap();
                    all.merge(&paths);
                    let out = (&mut expected[..]).into();
                    reference::matmul(a.view(), b.view(), -0.7, out).unwrap();
                    compared += same_bits(&got, &expected, &case);
                    // An odd cut: half a scale of A where B is NVFP4.
                    let groups = b.shape().row_groups();
                    let cut = rng.below(groups + 1);
                    let (mut got, mut expected) =
                        (vec![ExactSum::ZERO; m * n], vec![ExactSum::ZERO; m * n]);
                    for range in [0..cut, cut..groups] {
                        let out = PartialsMut::Exact(&mut got);
                        on.partial(a.view(), &weight, range.clone(), out).unwrap();
                        let out = PartialsMut::Exact(&mut expected);
                        reference::partial(a.view(), b.view(), range, out).unwrap();
                        assert_eq!(got, expected, "{case} cut at {cut}");
                    }
                }
            }
        }
        println!("compared {compared} outputs, {all:?}");
        assert_eq!(compared, 2 * SCALES.len() * 1411);
        assert!(all.wide > 1000 && all.narrow + all.planes > 5000, "{all:?}");
    });
}

#[test]
fn the_largest_sums_of_long_rows_are_drained_in_time() {
    each_isa(|on| {
        for (format, code, scale) in [(Format::MxFp4, 0x77, 130), (Format::NvFp4, 0xFF, 0x7E)] {
            let k = 300_000 / 32 * 32;
            let shape = PackedShape::encoded(Encoding::MxInt8, 2, k).unwrap();
            let mut scales = vec![127 + 5; shape.scales_len()];
            scales[0] = 127;
            let a = PackedMatrix::new(shape, vec![0x80; shape.codes_len()], scales).unwrap();
            let shape = PackedShape::of(format, 2, k).unwrap();
            let scales = vec![scale; shape.scales_len()];
            let b = PackedMatrix::new(shape, vec![code; shape.codes_len()], scales).unwrap();
            let weight = on.prepare(b.view()).unwrap();
            let (mut got, mut expected) = (vec![0f32; 4], vec![0f32; 4]);
            on.matmul(a.view(), &weight, 1.0.into(), (&mut got[..]).into()).unwrap();
            reference::matmul(a.view(), b.view(), 1.0, (&mut expected[..]).into()).unwrap();
            assert_eq!(same_bits(&got, &expected, "long"), 4);
        }
    });
}
