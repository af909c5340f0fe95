//! Operands of the matmul in the order in which a tile reads them, with row metadata (C3, C6).
//!
//! A tile is [`MR`] rows of A by [`NR`] columns (rows of B). One step of it covers 4 elements of K,
//! and a group of G elements takes G / 4 steps.
//!
//! ```text
//! B, prepared once: panels of 8 columns, [panel][group][step], two vectors of 8 x i16 a step, lanes 0..16:
//!     lane 2c + p   low byte  = doubled code of column c at k = 4 * step + p
//!                   high byte = doubled code of column c at k = 4 * step + 2 + p
//! A, per call: blocks of 4 rows (the last may have fewer), [block][step][row], two pairs a step:
//!     pair 0 = doubled codes at k = 4 * step, + 1 as 2 x i16;  pair 1 = at k = 4 * step + 2, + 3
//! ```
//!
//! Elements of MXINT8 in A take the place of doubled codes.
//!
//! So a vector of B gives the columns' first pairs by `(v << 8) >> 8` and their second pairs by
//! `v >> 8`, and multiplying by a pair of A in all lanes and adding neighbours gives eight columns'
//! partial sums with no shuffle of B. Bytes instead of 4-bit codes because SSE2 has no table
//! lookup. With the scale bytes in panel order that is 17 bytes for 9 packed ones (NVFP4), 33 for
//! 17 (MXFP4), and a bit a code says which zeros are negative. Missing columns of the last panel
//! have zero codes and zero scale bytes.
//!
//! [`RowMeta`] is what the proof of the fast path in `matmul` needs.

use fp4_core::{E2m1, Element, Error, GroupSize, PackedMut, PackedShape, PackedView};
use wide::{bytemuck, i16x8};

use crate::cost::Cost;
use crate::matmul::meta::RowMeta;
use crate::threads::TaskThreads;

/// Rows of a tile.
pub(crate) const MR: usize = 4;
/// Columns of a tile.
pub(crate) const NR: usize = 8;
/// Elements of K in one step.
pub(crate) const STEP: usize = 4;

/// Both doubled codes of a byte of packed codes, low nibble first.
const PAIRS: [[i16; 2]; 256] = {
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (low, high) = (E2m1::from_bits(byte as u8), E2m1::from_bits(byte as u8 >> 4));
        table[byte] = [low.doubled() as i16, high.doubled() as i16];
        byte += 1;
    }
    table
};

/// The code of a doubled value, as its byte; -0 apart.
const CODES: [u8; 256] = {
    let mut table = [0; 256];
    let mut code = 0;
    while code < 16 {
        if code != NEGATIVE_ZERO {
            table[E2m1::from_bits(code).doubled() as u8 as usize] = code;
        }
        code += 1;
    }
    table
};

/// The code of -0.
const NEGATIVE_ZERO: u8 = 0x8;

/// One step of a panel.
pub(crate) type StepColumns = [i16x8; NR / 4];

/// The prepared weight B (N, K).
#[derive(Debug, Clone)]
pub(crate) struct BytePanels {
    shape: PackedShape,
    codes: Vec<StepColumns>,
    scales: Vec<[u8; NR]>,
    /// A bit for each code, in the order of the packed matrix: set where it is -0, which its double
    /// does not tell.
    negative_zeros: Vec<u8>,
    meta: Vec<RowMeta>,
}

impl BytePanels {
    /// Repacks the weight.
    pub(crate) fn new(threads: &TaskThreads, b: PackedView<'_>) -> Result<Self, Error> {
        let shape = b.shape();
        shape.expect_format()?;
        let (groups, steps) = (shape.row_groups(), shape.k() / STEP);
        let panels = shape.rows().div_ceil(NR);
        let mut codes = vec![[i16x8::splat(0); 2]; panels * steps];
        let mut scales = vec![[0; NR]; panels * groups];
        let plan = threads.plan(Cost::reorder(shape.codes_len()));
        let split = panels.div_ceil(plan.tasks).max(1);
        if groups > 0 {
            let tasks = codes.chunks_mut(split * steps).zip(scales.chunks_mut(split * groups));
            threads.run(plan, tasks.enumerate(), |(t, (codes, scales))| {
                let panels = codes.chunks_exact_mut(steps).zip(scales.chunks_exact_mut(groups));
                for (p, (codes, scales)) in panels.enumerate() {
                    fill_panel(&b, (t * split + p) * NR, codes, scales);
                }
                Ok(())
            })?;
        }
        let meta = (0..shape.rows()).map(|j| RowMeta::of_row(&b, j)).collect();
        let negative_zeros = b.codes().as_chunks::<4>().0.iter().map(|bytes| {
            let bit = |(i, code): (usize, u8)| u8::from(code == NEGATIVE_ZERO) << i;
            let codes = bytes.iter().flat_map(|byte| [byte & 0xF, byte >> 4]);
            codes.enumerate().map(bit).sum()
        });
        Ok(BytePanels { shape, codes, scales, negative_zeros: negative_zeros.collect(), meta })
    }

    /// Writes the packed matrix that the panels were made from.
    pub(crate) fn export(
        &self,
        threads: &TaskThreads,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        let (groups, steps) = (self.shape.row_groups(), self.shape.k() / STEP);
        if groups == 0 {
            return Ok(());
        }
        let (codes, scales) = out.buffers();
        let plan = threads.plan(Cost::reorder(codes.len()));
        let rows = codes.chunks_exact_mut(2 * steps).zip(scales.chunks_exact_mut(groups));
        threads.run(plan, rows.enumerate(), |(j, (codes, scales))| {
            let (p, c) = (j / NR, j % NR);
            let from = &self.codes[p * steps..(p + 1) * steps];
            let zeros = &self.negative_zeros[j * steps / 2..(j + 1) * steps / 2];
            for (step, (bytes, v)) in codes.as_chunks_mut::<2>().0.iter_mut().zip(from).enumerate()
            {
                let lanes = v[c / 4].as_array();
                let (first, second) = (lanes[2 * (c % 4)], lanes[2 * (c % 4) + 1]);
                let code = |i: usize, doubled: i16| {
                    let zero = zeros[step / 2] >> (4 * (step % 2) + i) & 1;
                    CODES[usize::from(doubled as u8)] | (zero * NEGATIVE_ZERO)
                };
                bytes[0] = code(0, first) | code(1, second) << 4;
                bytes[1] = code(2, first >> 8) | code(3, second >> 8) << 4;
            }
            let from = &self.scales[p * groups..(p + 1) * groups];
            scales.iter_mut().zip(from).for_each(|(scale, from)| *scale = from[c]);
            Ok(())
        })?;
        Ok(())
    }

    /// Bytes allocated.
    pub(crate) fn allocated_bytes(&self) -> usize {
        size_of_val(&*self.codes)
            + size_of_val(&*self.scales)
            + size_of_val(&*self.meta)
            + self.negative_zeros.len()
    }

    /// Shape and format of the weight.
    pub(crate) fn shape(&self) -> PackedShape {
        self.shape
    }

    /// The vectors and the scale bytes of panel `p` over the groups `groups`, and the metadata of
    /// its columns (fewer than [`NR`] in the last panel).
    pub(crate) fn panel(
        &self,
        p: usize,
        groups: std::ops::Range<usize>,
    ) -> (&[StepColumns], &[[u8; NR]], &[RowMeta]) {
        let (all, steps) = (self.shape.row_groups(), self.shape.group().get() / STEP);
        let (start, end) = (p * all + groups.start, p * all + groups.end);
        let columns = p * NR..((p + 1) * NR).min(self.meta.len());
        (&self.codes[start * steps..end * steps], &self.scales[start..end], &self.meta[columns])
    }
}

/// Fills one panel from the columns `first..first + NR`, as far as there are any.
fn fill_panel(
    b: &PackedView<'_>,
    first: usize,
    codes: &mut [StepColumns],
    scales: &mut [[u8; NR]],
) {
    for (c, j) in (first..b.shape().rows()).take(NR).enumerate() {
        for (v, bytes) in codes.iter_mut().zip(b.row_codes(j).chunks_exact(2)) {
            let (first, second) = (PAIRS[usize::from(bytes[0])], PAIRS[usize::from(bytes[1])]);
            let lanes = v[c / 4].as_mut_array();
            let c = c % 4;
            lanes[2 * c] = (first[0] & 0xFF) | (second[0] << 8);
            lanes[2 * c + 1] = (first[1] & 0xFF) | (second[1] << 8);
        }
        for (bytes, &scale) in scales.iter_mut().zip(b.row_scales(j)) {
            bytes[c] = scale;
        }
    }
}

/// Two pairs of doubled codes of A, each as 2 x i16 in an i32.
pub(crate) type CodePairs = [i32; 2];

/// The activation A (M, K), unpacked for one call.
#[derive(Debug)]
pub(crate) struct Blocks<'a> {
    matrix: PackedView<'a>,
    pairs: Vec<CodePairs>,
    meta: Vec<RowMeta>,
}

impl<'a> Blocks<'a> {
    /// Unpacks what of A the groups `groups` of B, each of `group` elements, are multiplied with.
    pub(crate) fn new(
        threads: &TaskThreads,
        matrix: PackedView<'a>,
        group: GroupSize,
        groups: std::ops::Range<usize>,
    ) -> Result<Self, Error> {
        let (shape, element) = (matrix.shape(), matrix.shape().element());
        let bytes = group.get() / element.per_byte();
        let bytes = groups.start * bytes..groups.end * bytes;
        let steps = bytes.len() * element.per_byte() / STEP;
        let mut pairs = vec![[0; 2]; shape.rows() * steps];
        let mut meta = vec![RowMeta::default(); shape.rows()];
        let blocks = shape.rows().div_ceil(MR);
        let plan = threads.plan(Cost::pack(shape.rows(), shape.row_bytes()));
        let split = blocks.div_ceil(plan.tasks).max(1) * MR;
        if steps > 0 {
            let tasks = pairs.chunks_mut(split * steps).zip(meta.chunks_mut(split));
            threads.run(plan, tasks.enumerate(), |(t, (pairs, meta))| {
                let blocks = pairs.chunks_mut(MR * steps).zip(meta.chunks_mut(MR));
                for (b, (pairs, meta)) in blocks.enumerate() {
                    let (first, rows) = (t * split + b * MR, meta.len());
                    for (r, meta) in meta.iter_mut().enumerate() {
                        *meta = RowMeta::of_row(&matrix, first + r);
                        let codes = &matrix.row_codes(first + r)[bytes.clone()];
                        let pairs = pairs[r..].iter_mut().step_by(rows);
                        match element {
                            Element::E2m1 => {
                                for (pairs, bytes) in pairs.zip(codes.as_chunks::<2>().0) {
                                    *pairs = bytes.map(|b| bytemuck::cast(PAIRS[usize::from(b)]));
                                }
                            }
                            Element::Int8 => {
                                for (pairs, &[a, b, c, d]) in pairs.zip(codes.as_chunks::<4>().0) {
                                    let pair = |bytes: [u8; 2]| {
                                        bytemuck::cast(bytes.map(|b| i16::from(b as i8)))
                                    };
                                    *pairs = [pair([a, b]), pair([c, d])];
                                }
                            }
                        }
                    }
                }
                Ok(())
            })?;
        } else {
            for (i, meta) in meta.iter_mut().enumerate() {
                *meta = RowMeta::of_row(&matrix, i);
            }
        }
        Ok(Blocks { matrix, pairs, meta })
    }

    /// The packed matrix.
    pub(crate) fn matrix(&self) -> &PackedView<'a> {
        &self.matrix
    }

    /// The pairs of the block that starts at row `first` and has `rows` rows.
    pub(crate) fn block(&self, first: usize, rows: usize) -> &[CodePairs] {
        let steps = self.pairs.len() / self.meta.len();
        &self.pairs[first * steps..(first + rows) * steps]
    }

    /// The metadata of all rows.
    pub(crate) fn meta(&self) -> &[RowMeta] {
        &self.meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fp4_core::{Format, PackedMatrix};

    #[test]
    fn a_panel_holds_each_code_where_the_layout_says() {
        let shape = PackedShape::of(Format::NvFp4, 11, 48).unwrap();
        let codes = (0..shape.codes_len()).map(|i| (i * 89 + i / 7) as u8).collect();
        let scales = (0..shape.scales_len()).map(|i| i as u8).collect();
        let b = PackedMatrix::new(shape, codes, scales).unwrap();
        let panels = BytePanels::new(&TaskThreads::default(), b.view()).unwrap();
        for j in 0..16 {
            let (codes, scales, meta) = panels.panel(j / NR, 0..3);
            assert_eq!(meta.len(), if j < 8 { 8 } else { 3 });
            for k in 0..48 {
                let lane = codes[k / 4][j % NR / 4].as_array()[2 * (j % 4) + k % 2];
                let got = if k % 4 < 2 { (lane << 8) >> 8 } else { lane >> 8 };
                let expected = b.view().code(j, k).map_or(0, E2m1::doubled);
                assert_eq!(got, i16::from(expected), "column {j}, k {k}");
                let scale = if j < 11 { b.view().row_scales(j)[k / 16] } else { 0 };
                assert_eq!(scales[k / 16][j % NR], scale);
            }
        }
    }
}
