//! The exact matmul in tiles of 4 x 8 outputs (C6).
//!
//! ```text
//! for each tile:
//!     plan = which outputs are narrow, and how many groups T fit between two drains
//!     for each stretch of T groups:                          narrow outputs
//!         sum = 0 (f64)
//!         for each group:
//!             dot = integer dot product of doubled codes     i16 multiply, i32 add
//!             sum += dot * (scale_a * scale_b)               f64, exact
//!         units += sum / unit                                i64, exact
//!     for each group, if an output is not narrow:            wide outputs
//!         ExactSum += dot * scale_a * scale_b
//!     out = round(f32(units * unit / 4) * alpha)          or what else the epilogue says
//! ```
//!
//! # Why it is exact
//!
//! *Dots.* Doubled codes are integers up to 12, so a product pair is at most 2 * 144 and a group's
//! dot at most D = 144 * G (2304 NVFP4, 4608 MXFP4): 16-bit factors and 32-bit sums hold them.
//!
//! With MXINT8 in A a pair is at most 2 * 1536 and D = 1536 * G: 24,576 and 49,152.
//!
//! *Terms.* `scale_a * scale_b` has at most 8 significant bits and an exponent within +-254, the
//! term at most 24 bits: both f64 multiplications are exact.
//!
//! *Sums.* Let unit = 2^(base_a + base_b), the product of the least scale exponents over the rows'
//! live groups, and reach_a, reach_b the largest scales in those units ([`RowMeta`]). Every term is
//! an integer number of units, at most t = D * reach_a * reach_b of them; terms of groups that are
//! not live are zero. So with
//!
//! ```text
//! T = floor(2^53 / t) >= 1                            groups between two drains
//! t * min(live_a, live_b, groups) <= 2^63 - 1         the whole sum
//! ```
//!
//! every f64 partial sum is an integer of at most 53 bits times a power of two, and every i64 sum
//! fits. For NVFP4 t <= 2304 * (448 * 512)^2 < 2^46.9, so every K up to 2^20 passes (in
//! fact at least 76,000 live groups). For MXFP4 t = 4608 * 2^(spread_a + spread_b): a joint spread
//! of up to 40 passes, with 1820 live groups at 40 and twice as many for each one less. An output
//! that does not pass is *wide*. NaN scales are read as 0 here, and the output is set to NaN.
//!
//! The one rounding is [`Sum::to_f32`].
//!
//! # Why a driver of its own
//!
//! In the tiled driver, codes as packed took 1.5 to 1.7 times as long for one row (hot; 1.3 to 1.5
//! times faster for 128). As bytes, one row was 1.3 times faster, but on WASM without simd128 1.4
//! to 1.6 times slower (2026-11-28, Xeon with AVX-512; `summary --quick --filter "portable m1"`).
//!
//! # Worked example
//!
//! MXFP4, two groups: A's scales 2^5 and 2^3, B's 1 and 1, dots 144 and 1. unit = 2^3, reach_a = 4,
//! t = 4608 * 4; T is about 2^38, so one stretch: sum = 144 * 32 + 8 = 4616, units = 577, e = 1,
//! result 1154 = 36 * 32 + 0.25 * 8.

use std::ops::Range;

use fp4_core::{
    Epilogue, Error, ExactSum, FloatSliceMut, PackedShape, PackedView, Paths, ScaleType,
    ScaledSums, with_floats,
};
use wide::{bytemuck, f64x4, i16x8, i32x4};

use super::operand::{Blocks, BytePanels, CodePairs, MR, NR, STEP, StepColumns};
use crate::cost::Cost;
use crate::isa::Isa;
use crate::matmul::expect_call;
use crate::matmul::meta::RowMeta;
use crate::matmul::operand::Terms;
use crate::matmul::sum::{ExactSums, Sum, fits_63_bits};
use crate::threads::TaskThreads;

/// Rows whose unpacked A is kept near the CPU while panels stream by.
const ROWS: usize = 64;

/// Writes round(f32(A * B^T) * alpha), or what else the epilogue says, to `out`.
pub(crate) fn matmul(
    threads: &TaskThreads,
    a: PackedView<'_>,
    b: &BytePanels,
    epilogue: Epilogue<'_>,
    out: FloatSliceMut<'_>,
) -> Result<Paths, Error> {
    expect_call(a.shape(), b.shape(), &epilogue, &out)?;
    let groups = 0..b.shape().row_groups();
    with_floats!(FloatSliceMut, out, out => run(threads, a, b, groups, out, |y, [i, j], nan, sum| {
        *y = epilogue.apply(if nan { f32::NAN } else { sum.to_f32() }, i, j);
        Ok(())
    }))
}

/// A packed A and a prepared B.
pub(crate) struct PortableOperands<'a> {
    pub(crate) threads: &'a TaskThreads,
    pub(crate) a: PackedView<'a>,
    pub(crate) b: &'a BytePanels,
}

impl ExactSums for PortableOperands<'_> {
    fn shapes(&self) -> [PackedShape; 2] {
        [self.a.shape(), self.b.shape()]
    }

    fn sums<T: Send>(
        &self,
        groups: Range<usize>,
        out: &mut [T],
        emit: impl Fn(&mut T, bool, Sum<'_>) -> Result<(), Error> + Sync,
    ) -> Result<Paths, Error> {
        run(self.threads, self.a, self.b, groups, out, |y, _, nan, sum| emit(y, nan, sum))
    }

    fn add_scaled(&self, groups: Range<usize>, out: ScaledSums<'_>) -> Result<Paths, Error> {
        let (units, rows, columns) = out.into_parts();
        run(self.threads, self.a, self.b, groups, units, |total, [i, j], _, sum| {
            sum.add_to_units(total, rows[i] + columns[j])
        })
    }
}

/// Rows by panels of one task, and the parts of the output rows that they are written to.
struct PortableTask<'a, T> {
    rows: Range<usize>,
    panels: Range<usize>,
    out: Vec<&'a mut [T]>,
}

/// Computes all sums over the groups `groups` and hands each to `emit` with its output, row and
/// column, and whether a scale in the range was NaN.
fn run<T: Send>(
    threads: &TaskThreads,
    a: PackedView<'_>,
    b: &BytePanels,
    groups: Range<usize>,
    out: &mut [T],
    emit: impl Fn(&mut T, [usize; 2], bool, Sum<'_>) -> Result<(), Error> + Sync,
) -> Result<Paths, Error> {
    if out.is_empty() {
        return Ok(Paths::default());
    }
    let (m, n) = (a.shape().rows(), b.shape().rows());
    let blocks = Blocks::new(threads, a, b.shape().group(), groups.clone())?;
    let k = groups.len() * b.shape().group().get();
    let kernel = PortableMatmul::new(a.shape(), b.shape(), groups);
    let plan = threads.plan(Cost::matmul(Isa::Portable, [m, n, k]));
    let tasks = cut(plan.tasks, [m, n], out);
    let paths = threads
        .run(plan, tasks.into_iter(), |mut task| kernel.task(&blocks, b, &mut task, &emit))?;
    Ok(paths.iter().fold(Paths::default(), |mut all, paths| {
        all.merge(paths);
        all
    }))
}

/// Cuts the output into tasks: first by columns, so that each reads its own part of B, then by
/// rows.
fn cut<'a, T>(tasks: usize, [m, n]: [usize; 2], out: &'a mut [T]) -> Vec<PortableTask<'a, T>> {
    let panels = n.div_ceil(NR);
    let split_panels = panels.div_ceil(tasks.min(panels));
    let across = panels.div_ceil(split_panels);
    let split_rows = m.div_ceil(MR).div_ceil(tasks.div_ceil(across)) * MR;
    let mut cut = Vec::new();
    for (d, rows) in out.chunks_mut(split_rows * n).enumerate() {
        let first = cut.len();
        let m = rows.len() / n;
        let start = d * split_rows;
        cut.extend((0..across).map(|c| PortableTask {
            rows: start..start + m,
            panels: c * split_panels..((c + 1) * split_panels).min(panels),
            out: Vec::with_capacity(m),
        }));
        for row in rows.chunks_exact_mut(n) {
            for (task, part) in cut[first..].iter_mut().zip(row.chunks_mut(split_panels * NR)) {
                task.out.push(part);
            }
        }
    }
    cut
}

/// What all tiles of a call share.
struct PortableMatmul {
    /// B's.
    groups: Range<usize>,
    /// Steps in a group.
    steps: usize,
    terms: Terms,
    /// Of A and of B.
    scale_types: [ScaleType; 2],
    /// The value of each scale byte of A and of B, 0 for NaN.
    values: [[f64; 256]; 2],
}

/// Which outputs of a tile are narrow, and how.
struct TilePlan<const M: usize> {
    /// Groups between two drains, at least 1.
    stretch: usize,
    narrow: [[bool; NR]; M],
    any_narrow: bool,
    any_wide: bool,
    /// base_a + base_b.
    exponent: [[i32; NR]; M],
}

impl PortableMatmul {
    fn new(a: PackedShape, b: PackedShape, groups: Range<usize>) -> Self {
        let scale_types = [a.scale_type(), b.scale_type()];
        let value = |scale_type: ScaleType, byte: u8| match scale_type.parts(byte) {
            Some(_) => f64::from(scale_type.decode(byte)),
            None => 0.0,
        };
        PortableMatmul {
            groups,
            steps: b.group().get() / STEP,
            terms: Terms::new(a, b),
            scale_types,
            values: scale_types.map(|ty| std::array::from_fn(|byte| value(ty, byte as u8))),
        }
    }

    /// Where the scale of A for group `g` of the range is in those of the range.
    #[inline(always)]
    fn scale_of_a(&self, g: usize) -> usize {
        let per = self.terms.per_scale;
        (self.groups.start + g) / per - self.groups.start / per
    }

    fn task<T>(
        &self,
        a: &Blocks<'_>,
        b: &BytePanels,
        task: &mut PortableTask<'_, T>,
        emit: &impl Fn(&mut T, [usize; 2], bool, Sum<'_>) -> Result<(), Error>,
    ) -> Result<Paths, Error> {
        let mut paths = Paths::default();
        let end = task.rows.end;
        for rows in task.rows.clone().step_by(ROWS) {
            for p in task.panels.clone() {
                let column = (p - task.panels.start) * NR;
                for first in (rows..end.min(rows + ROWS)).step_by(MR) {
                    let out = &mut task.out[first - task.rows.start..];
                    let tile = match end - first {
                        1 => self.tile::<1, T>(a, first, b, p, column, out, emit),
                        2 => self.tile::<2, T>(a, first, b, p, column, out, emit),
                        3 => self.tile::<3, T>(a, first, b, p, column, out, emit),
                        _ => self.tile::<MR, T>(a, first, b, p, column, out, emit),
                    };
                    paths.merge(&tile?);
                }
            }
        }
        Ok(paths)
    }

    /// The tile of rows `first..first + M` and panel `p`, written to `out[r][column..]`.
    #[expect(clippy::too_many_arguments, reason = "where it reads and where it writes")]
    fn tile<const M: usize, T>(
        &self,
        a: &Blocks<'_>,
        first: usize,
        b: &BytePanels,
        p: usize,
        column: usize,
        out: &mut [&mut [T]],
        emit: &impl Fn(&mut T, [usize; 2], bool, Sum<'_>) -> Result<(), Error>,
    ) -> Result<Paths, Error> {
        let meta_a = &a.meta()[first..first + M];
        let (codes_b, scales_b, meta_b) = b.panel(p, self.groups.clone());
        let of_a = self.terms.scales_of_a(&self.groups);
        let scales_a: [&[u8]; M] =
            std::array::from_fn(|r| &a.matrix().row_scales(first + r)[of_a.clone()]);
        let rows = a.block(first, M).as_chunks::<M>().0;

        let plan = self.plan::<M>(meta_a, meta_b);
        let mut units = [[0; NR]; M];
        if plan.any_narrow {
            self.narrow(&plan, rows, scales_a, codes_b, scales_b, &mut units);
        }
        let mut sums = [[ExactSum::ZERO; NR]; M];
        if plan.any_wide {
            self.wide(&plan, rows, scales_a, codes_b, scales_b, &mut sums)?;
        }

        let [type_a, type_b] = self.scale_types;
        let nan_b: [bool; NR] = std::array::from_fn(|c| {
            meta_b.get(c).is_some_and(|meta| meta.nan)
                && scales_b.iter().any(|s| type_b.is_nan(s[c]))
        });
        let mut paths = Paths::default();
        for r in 0..M {
            let nan_a = meta_a[r].nan && scales_a[r].iter().any(|&s| type_a.is_nan(s));
            for (c, y) in out[r][column..].iter_mut().take(meta_b.len()).enumerate() {
                let sum = if plan.narrow[r][c] {
                    paths.narrow += 1;
                    Sum::Narrow {
                        units: units[r][c],
                        exponent: plan.exponent[r][c] + self.terms.unit,
                    }
                } else {
                    paths.wide += 1;
                    Sum::Wide(&sums[r][c])
                };
                emit(y, [first + r, p * NR + c], nan_a || nan_b[c], sum)?;
            }
        }
        Ok(paths)
    }

    /// Applies the bounds in the module docs to each pair of rows.
    fn plan<const M: usize>(&self, a: &[RowMeta], b: &[RowMeta]) -> TilePlan<M> {
        let mut plan = TilePlan {
            stretch: self.groups.len().max(1),
            narrow: [[false; NR]; M],
            any_narrow: false,
            any_wide: false,
            exponent: [[0; NR]; M],
        };
        for (r, a) in a.iter().enumerate() {
            for (c, b) in b.iter().enumerate() {
                let live = self.terms.live(a.live, b.live, self.groups.len());
                match groups_between_drains(self.terms.dot, a.reach, b.reach, live) {
                    Some(groups) => {
                        plan.stretch = plan.stretch.min(groups);
                        plan.narrow[r][c] = true;
                        plan.any_narrow = true;
                    }
                    None => plan.any_wide = true,
                }
                plan.exponent[r][c] = a.base + b.base;
            }
        }
        plan
    }

    /// The sums of the tile's narrow outputs in their units; the others become meaningless numbers.
    #[inline]
    fn narrow<const M: usize>(
        &self,
        plan: &TilePlan<M>,
        rows: &[[CodePairs; M]],
        scales_a: [&[u8]; M],
        codes_b: &[StepColumns],
        scales_b: &[[u8; NR]],
        units: &mut [[i64; NR]; M],
    ) {
        let value = |side: usize, scale: u8| self.values[side][usize::from(scale)];
        let mut rows = rows.chunks_exact(self.steps);
        let mut codes_b = codes_b.chunks_exact(self.steps);
        let mut g = 0;
        for scales_b in scales_b.chunks(plan.stretch) {
            let mut sums = [[f64x4::splat(0.0); 2]; M];
            for scales_b in scales_b {
                let (Some(rows), Some(codes_b)) = (rows.next(), codes_b.next()) else { break };
                let dots = group_dots(rows, codes_b);
                let scales_b: [f64x4; 2] = bytemuck::cast(scales_b.map(|scale| value(1, scale)));
                let of_a = self.scale_of_a(g);
                for r in 0..M {
                    let scale_a = f64x4::splat(value(0, scales_a[r][of_a]));
                    for half in 0..2 {
                        sums[r][half] += f64x4::from(dots[r][half]) * (scales_b[half] * scale_a);
                    }
                }
                g += 1;
            }
            for r in 0..M {
                for (c, sum) in bytemuck::cast::<_, [f64; NR]>(sums[r]).into_iter().enumerate() {
                    let in_units = sum * power_of_two(-plan.exponent[r][c]);
                    // Only the outputs that are not narrow can saturate or wrap.
                    units[r][c] = units[r][c].wrapping_add(in_units as i64);
                }
            }
        }
    }

    /// The sums of the tile's wide outputs.
    fn wide<const M: usize>(
        &self,
        plan: &TilePlan<M>,
        rows: &[[CodePairs; M]],
        scales_a: [&[u8]; M],
        codes_b: &[StepColumns],
        scales_b: &[[u8; NR]],
        sums: &mut [[ExactSum; NR]; M],
    ) -> Result<(), Error> {
        let [type_a, type_b] = self.scale_types;
        let groups = rows.chunks_exact(self.steps).zip(codes_b.chunks_exact(self.steps));
        for (g, ((rows, codes_b), scales_b)) in groups.zip(scales_b).enumerate() {
            let dots = group_dots(rows, codes_b);
            for r in 0..M {
                let Some(a) = type_a.parts(scales_a[r][self.scale_of_a(g)]) else { continue };
                for (c, dot) in bytemuck::cast::<_, [i32; NR]>(dots[r]).into_iter().enumerate() {
                    // Columns past the last row of B are neither narrow nor wanted.
                    if plan.narrow[r][c] || dot == 0 {
                        continue;
                    }
                    if let Some(b) = type_b.parts(scales_b[c]) {
                        let significand = i64::from(dot) * i64::from(a.significand * b.significand);
                        let exponent = a.exponent + b.exponent + self.terms.unit;
                        sums[r][c].add_scaled(significand, exponent)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// T in the module docs: how many groups fit between two drains; `None` if the output is wide.
fn groups_between_drains(dot: u128, reach_a: u64, reach_b: u64, live: usize) -> Option<usize> {
    // D < 2^16 and a reach that is not saturated is below 2^62, so this saturates only where the
    // bounds fail anyway.
    let term = (u128::from(reach_a) * u128::from(reach_b)).saturating_mul(dot).max(1);
    let fits = term <= 1 << 53 && fits_63_bits(dot, reach_a, reach_b, live);
    fits.then(|| usize::try_from((1u128 << 53) / term).unwrap_or(usize::MAX))
}

/// 2^exponent, for exponents of normal numbers.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The dots of one row with the eight columns of a panel.
type Dots = [i32x4; 2];

/// The dot products of one group of doubled codes: M rows by the eight columns of a panel.
#[inline(always)]
fn group_dots<const M: usize>(rows: &[[CodePairs; M]], columns: &[StepColumns]) -> [Dots; M] {
    let mut dots = [[i32x4::splat(0); 2]; M];
    for (rows, columns) in rows.iter().zip(columns) {
        let first: [i16x8; 2] = columns.map(|v| (v << 8) >> 8);
        let second: [i16x8; 2] = columns.map(|v| v >> 8);
        for (dot, pairs) in dots.iter_mut().zip(rows) {
            let p: i16x8 = bytemuck::cast(i32x4::splat(pairs[0]));
            let q: i16x8 = bytemuck::cast(i32x4::splat(pairs[1]));
            for half in 0..2 {
                dot[half] += first[half].dot(p) + second[half].dot(q);
            }
        }
    }
    dots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_where_the_docs_say() {
        let mx = |spread: u32, live| groups_between_drains(4608, 1 << spread, 1, live);
        assert_eq!(mx(40, 1820), Some(1));
        assert_eq!(mx(40, 1821), None);
        assert_eq!(mx(39, 3640), Some(3));
        assert_eq!(mx(39, 3641), None);
        assert_eq!(mx(41, 1), None);
        // Where a usize is narrower than the bound, it saturates.
        let most = |groups: u64| Some(usize::try_from(groups).unwrap_or(usize::MAX));
        assert_eq!(mx(0, usize::MAX >> 24), most((1 << 53) / 4608));
        let reach = 448 * 512;
        assert_eq!(groups_between_drains(2304, reach, reach, 76_000), Some(74));
        assert!(
            groups_between_drains(2304, reach, reach, crate::matmul::sum::FIXED_GROUPS).is_some()
        );
        assert!(groups_between_drains(2304, reach, reach, (1 << 20) / 16).is_some());
        assert_eq!(groups_between_drains(4608, u64::MAX, u64::MAX, 1), None);
        assert_eq!(groups_between_drains(4608, u64::MAX, 0, 0), most(1 << 53));
    }

    #[test]
    fn group_dots_hold_the_extremes() {
        // Eight columns of -12, rows of 12: -144 * 32.
        let byte = (-12i16 & 0xFF) | (-12 << 8);
        let columns = [[i16x8::splat(byte); 2]; 8];
        let pair = bytemuck::cast([12i16, 12]);
        assert_eq!(group_dots(&[[[pair; 2]; 2]; 8], &columns), [[i32x4::splat(-4608); 2]; 2]);
    }
}
