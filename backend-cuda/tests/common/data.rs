//! Operands of every kind of data, and a product compared with the reference.

use fp4_backend_cuda::Cuda;
use fp4_core::{Encoding, Matmul, PackedMatrix, PackedShape, Paths, reference};

use super::{Rng, operand, same_bits};

/// Multiplies by both and compares every bit.
pub(crate) fn check(cuda: &Cuda, a: &PackedMatrix, b: &PackedMatrix, case: &str) -> Paths {
    let outputs = a.shape().rows() * b.shape().rows();
    let (mut got, mut expected) = (vec![7f32; outputs], vec![0f32; outputs]);
    let weight = cuda.prepare(b.view()).unwrap();
    let paths = cuda.matmul(a.view(), &weight, 0.75.into(), (&mut got[..]).into()).unwrap();
    reference::matmul(a.view(), b.view(), 0.75, (&mut expected[..]).into()).unwrap();
    same_bits(&got, &expected, case);
    assert_eq!(paths.narrow + paths.planes + paths.wide, outputs as u64, "{case}: {paths:?}");
    paths
}

/// How scale bytes are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// Two exponents.
    Close,
    /// One group in eight is far above the others, the same ones in every row.
    Outliers,
    /// As of Student's t with few degrees of freedom; not among [`DATA`].
    #[allow(dead_code, reason = "not every test draws it")]
    HeavyTails,
    /// All of the type's range.
    Full,
    Nan,
    /// Two groups in three are zeros, under any scale.
    Sparse,
}

pub(crate) const DATA: [Data; 5] =
    [Data::Close, Data::Outliers, Data::Full, Data::Nan, Data::Sparse];

/// A random operand.
pub(crate) fn drawn(
    rng: &mut Rng,
    encoding: Encoding,
    [rows, k]: [usize; 2],
    data: Data,
) -> PackedMatrix {
    let (shape, e8m0) = (
        PackedShape::encoded(encoding, rows, k).unwrap(),
        encoding.scale_type() == fp4_core::ScaleType::E8M0,
    );
    let groups = shape.row_groups().max(1);
    let mut at = 0;
    let packed = operand(rng, encoding, rows, k, |rng| {
        let (near, random, group) = (rng.byte() % 2, rng.byte(), at % groups);
        at += 1;
        let one = if e8m0 { 118 + near } else { 0x30 | random & 0xF };
        match data {
            Data::Outliers if (group * 0x9E37).is_multiple_of(8) => {
                one + if e8m0 { 5 } else { 0x28 }
            }
            Data::HeavyTails => {
                let octaves = (rng.next() | 1 << 52).leading_zeros() as u8;
                one + if e8m0 { octaves } else { 8 * octaves.min(8) }
            }
            Data::Full if e8m0 => random % 255,
            Data::Full => random & if random & 0x7F == 0x7F { 0x7E } else { 0xFF },
            Data::Nan if rng.below(300) == 0 => random | if e8m0 { 0xFF } else { 0x7F },
            Data::Sparse => [0, if e8m0 { 118 } else { 0x80 }, one][rng.below(3)],
            _ => one,
        }
    });
    let (mut codes, scales) = packed.into_parts();
    for group in codes.chunks_mut(shape.group_bytes()) {
        match rng.below(9) {
            0..6 if data == Data::Sparse => group.fill(0),
            0 => group.fill(0x80), // -128, and for codes zeros of both signs
            1 => group.fill(0x77),
            _ => {}
        }
    }
    PackedMatrix::new(shape, codes, scales).unwrap()
}

/// A matrix of one row for each list of groups, each (byte of codes or element, scale byte).
pub(crate) fn matrix(encoding: Encoding, rows: &[Vec<(u8, u8)>]) -> PackedMatrix {
    let group = encoding.group().get();
    let shape = PackedShape::encoded(encoding, rows.len(), group * rows[0].len()).unwrap();
    let groups = || rows.iter().flatten();
    let codes = groups().flat_map(|g| vec![g.0; shape.group_bytes()]).collect();
    PackedMatrix::new(shape, codes, groups().map(|g| g.1).collect()).unwrap()
}
