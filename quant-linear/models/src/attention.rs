//! Causal attention of a decoder over its cache, in f32, each row by itself in a fixed order.
//!
//! ```text
//! for each row, for each key-value head and the query heads that share it:
//!     scores[p] = sum over i ascending of q[i] k[p][i]        p = 0 ..= the row's own position
//!     p = exp((scores - largest) * scale), summed in 16 lanes
//!     context[i] = (sum over p ascending of p[p] v[p][i]) / sum
//! ```
//!
//! Both products are [`panel`]s: rows of coefficients times a panel of 16 lanes. Keys are cached
//! with 16 positions as the lanes, values with 16 columns, so that no sum crosses lanes and none
//! depends on what SIMD there is, on the rows beside it or on the number of threads.

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use crate::math::{LANES, exp_minus_largest, with_simd};

/// The shape of a model's attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Heads {
    /// Query heads.
    pub(crate) query: usize,
    /// Key-value heads; each serves `query / kv` query heads.
    pub(crate) kv: usize,
    /// Columns of a head, a multiple of [`LANES`].
    pub(crate) width: usize,
}

/// The keys and values of one layer for the positions of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct LayerCache {
    /// `[kv head][position / LANES][column][lane]`, a list for each head.
    keys: Vec<Vec<f32>>,
    /// `[kv head][column / LANES]`, a list `[position][lane]` for each.
    values: Vec<Vec<f32>>,
}

impl LayerCache {
    pub(crate) fn new(heads: Heads) -> Self {
        let panels = heads.kv * (heads.width / LANES);
        Self { keys: vec![Vec::new(); heads.kv], values: vec![Vec::new(); panels] }
    }

    /// Makes room for so many positions. What grows by a token each time must not be copied each
    /// time.
    pub(crate) fn reserve(&mut self, heads: Heads, positions: usize) {
        let grow = |list: &mut Vec<f32>, len: usize| {
            list.reserve_exact(len.saturating_sub(list.len()));
        };
        let keys = positions.div_ceil(LANES) * heads.width * LANES;
        self.keys.iter_mut().for_each(|list| grow(list, keys));
        self.values.iter_mut().for_each(|list| grow(list, positions * LANES));
    }

    /// Appends the keys and values (heads.kv * heads.width columns) of a position.
    pub(crate) fn push(&mut self, heads: Heads, position: usize, key: &[f32], value: &[f32]) {
        let (block, lane) = (position / LANES, position % LANES);
        for (list, key) in self.keys.iter_mut().zip(key.chunks_exact(heads.width)) {
            let start = block * heads.width * LANES;
            list.resize(start + heads.width * LANES, 0.0);
            for (lanes, k) in list[start..].chunks_exact_mut(LANES).zip(key) {
                lanes[lane] = *k;
            }
        }
        for (list, value) in self.values.iter_mut().zip(value.chunks_exact(LANES)) {
            list.truncate(position * LANES);
            list.extend_from_slice(value);
        }
    }

    /// Forgets all positions from this one on.
    pub(crate) fn truncate(&mut self, heads: Heads, positions: usize) {
        let keys = positions.div_ceil(LANES) * heads.width * LANES;
        self.keys.iter_mut().for_each(|list| list.truncate(keys));
        self.values.iter_mut().for_each(|list| list.truncate(positions * LANES));
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        let lists = self.keys.iter().chain(&self.values);
        lists.map(|list| list.capacity() * size_of::<f32>()).sum()
    }
}

/// A row that attends: its position and its sequence's cache, which holds that position.
pub(crate) struct Row<'a> {
    pub(crate) cache: &'a LayerCache,
    pub(crate) position: usize,
}

/// The context rows of `rows` for their queries, both row-major of `heads.query * heads.width`
/// columns, on the threads of rayon's current pool.
pub(crate) fn attend(heads: Heads, rows: &[Row<'_>], query: &[f32]) -> Vec<f32> {
    let columns = heads.query * heads.width;
    let mut context = vec![0.0f32; query.len()];
    let jobs = rows.par_iter().zip(query.par_chunks_exact(columns));
    // A few rows a job: a row alone may be too little to hand over.
    let jobs = jobs.zip(context.par_chunks_exact_mut(columns)).with_min_len(8);
    jobs.for_each_init(Vec::new, |scores, ((row, query), context)| {
        with_simd(AttendRow { heads, row, query, context, scores });
    });
    context
}

struct AttendRow<'a> {
    heads: Heads,
    row: &'a Row<'a>,
    query: &'a [f32],
    context: &'a mut [f32],
    scores: &'a mut Vec<f32>,
}

impl NullaryFnOnce for AttendRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        attend_row(self.heads, self.row, self.query, self.context, self.scores);
    }
}

#[inline(always)]
fn attend_row(
    heads: Heads,
    row: &Row<'_>,
    query: &[f32],
    context: &mut [f32],
    scores: &mut Vec<f32>,
) {
    let sharing = heads.query / heads.kv;
    let group = sharing * heads.width;
    let groups = query.chunks_exact(group).zip(context.chunks_exact_mut(group));
    for (kv, (query, context)) in groups.enumerate() {
        let mut first = 0;
        // As many heads at once as their sums fit the registers.
        while first < sharing {
            let columns = first * heads.width..;
            let (q, c) = (&query[columns.clone()], &mut context[columns]);
            first += match sharing - first {
                1 => some_heads::<1>(heads, row, kv, q, c, scores),
                2 => some_heads::<2>(heads, row, kv, q, c, scores),
                3 => some_heads::<3>(heads, row, kv, q, c, scores),
                _ => some_heads::<4>(heads, row, kv, q, c, scores),
            };
        }
    }
}

/// `N` query heads of one key-value head; returns `N`.
#[inline(always)]
fn some_heads<const N: usize>(
    heads: Heads,
    row: &Row<'_>,
    kv: usize,
    query: &[f32],
    context: &mut [f32],
    scores: &mut Vec<f32>,
) -> usize {
    let (width, count) = (heads.width, row.position + 1);
    let padded = count.next_multiple_of(LANES);
    scores.clear();
    scores.resize(N * padded, 0.0);
    let scale = 1.0 / (width as f32).sqrt();
    let mut rows: [&[f32]; N] = [&[]; N];
    for (head, row) in query.chunks_exact(width).zip(&mut rows) {
        *row = head;
    }
    let keys = row.cache.keys[kv].chunks_exact(width * LANES);
    for (block, keys) in keys.take(padded / LANES).enumerate() {
        let sums = panel(rows, keys);
        for (head, sums) in sums.iter().enumerate() {
            let start = head * padded + block * LANES;
            for (score, sum) in scores[start..start + LANES].iter_mut().zip(sums) {
                *score = sum * scale;
            }
        }
    }
    // A loop, as `from_fn` is not always inlined.
    let mut inverse = [0.0; N];
    for (scores, inverse) in scores.chunks_exact_mut(padded).zip(&mut inverse) {
        *inverse = 1.0 / exp_minus_largest(&mut scores[..count]);
    }
    let mut weights: [&[f32]; N] = [&[]; N];
    for (scores, weights) in scores.chunks_exact(padded).zip(&mut weights) {
        *weights = &scores[..count];
    }
    let panels = width / LANES;
    for (i, values) in row.cache.values[kv * panels..(kv + 1) * panels].iter().enumerate() {
        let sums = panel(weights, values);
        for (head, sums) in sums.iter().enumerate() {
            let start = head * width + i * LANES;
            for (out, sum) in context[start..start + LANES].iter_mut().zip(sums) {
                *out = sum * inverse[head];
            }
        }
    }
    N
}

/// `sums[n][lane] = sum over i ascending of rows[n][i] * panel[i][lane]`, for rows of one length
/// and a panel of at least as many lines.
#[inline(always)]
fn panel<const N: usize>(rows: [&[f32]; N], panel: &[f32]) -> [[f32; LANES]; N] {
    let mut sums = [[0.0f32; LANES]; N];
    let len = rows.iter().map(|row| row.len()).min().unwrap_or(0);
    let rows: [&[f32]; N] = rows.map(|row| &row[..len]);
    let (lines, _) = panel.as_chunks::<LANES>();
    for (i, line) in lines[..len].iter().enumerate() {
        for n in 0..N {
            let factor = rows[n][i];
            for lane in 0..LANES {
                sums[n][lane] += factor * line[lane];
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(i: usize) -> f32 {
        ((i * 37) % 101) as f32 / 50.0 - 1.0
    }

    /// A cache of so many positions, with the keys and values that it was filled with.
    fn cache(heads: Heads, positions: usize) -> (LayerCache, Vec<f32>, Vec<f32>) {
        let columns = heads.kv * heads.width;
        let keys: Vec<f32> = (0..positions * columns).map(|i| value(i * 7 + 1)).collect();
        let values: Vec<f32> = (0..positions * columns).map(|i| value(i * 3 + 2)).collect();
        let mut cache = LayerCache::new(heads);
        for position in 0..positions {
            let at = position * columns..(position + 1) * columns;
            cache.push(heads, position, &keys[at.clone()], &values[at]);
        }
        (cache, keys, values)
    }

    #[test]
    fn attention_is_that_of_f64_for_every_number_of_sharing_heads() {
        for (query, kv, width) in [(1, 1, 16), (2, 1, 32), (9, 3, 16), (8, 2, 16), (7, 1, 16)] {
            let heads = Heads { query, kv, width };
            let (cache, keys, values) = cache(heads, 37);
            for position in [0, 1, 15, 16, 17, 36] {
                let q: Vec<f32> = (0..query * width).map(|i| value(i * 5 + position)).collect();
                let rows = [Row { cache: &cache, position }];
                let given = attend(heads, &rows, &q);
                for (column, given) in given.iter().enumerate() {
                    let (head, i) = (column / width, column % width);
                    let from = |list: &[f32], p: usize, i: usize| {
                        f64::from(list[p * kv * width + head / (query / kv) * width + i])
                    };
                    let score = |p: usize| {
                        let q = |i: usize| f64::from(q[head * width + i]);
                        let dot: f64 = (0..width).map(|i| q(i) * from(&keys, p, i)).sum();
                        (dot / (width as f64).sqrt()).exp()
                    };
                    let sum: f64 = (0..=position).map(score).sum();
                    let wanted: f64 =
                        (0..=position).map(|p| score(p) / sum * from(&values, p, i)).sum();
                    assert!((f64::from(*given) - wanted).abs() < 1e-5, "{given} for {wanted}");
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_those_beside_it_nor_on_what_comes_later() {
        let heads = Heads { query: 6, kv: 2, width: 16 };
        let (long, keys, values) = cache(heads, 40);
        let query: Vec<f32> = (0..40 * 96).map(|i| value(i * 11)).collect();
        let rows: Vec<Row<'_>> = (0..40).map(|position| Row { cache: &long, position }).collect();
        let together = attend(heads, &rows, &query);
        let mut cache = LayerCache::new(heads);
        for position in 0..40 {
            let at = position * 32..(position + 1) * 32;
            cache.push(heads, position, &keys[at.clone()], &values[at]);
            let rows = [Row { cache: &cache, position }];
            let alone = attend(heads, &rows, &query[position * 96..(position + 1) * 96]);
            assert_eq!(alone, together[position * 96..(position + 1) * 96], "{position}");
        }
    }

    #[test]
    fn what_was_forgotten_leaves_no_trace() {
        let heads = Heads { query: 2, kv: 1, width: 16 };
        let (whole, keys, values) = cache(heads, 35);
        let (mut cut, ..) = cache(heads, 35);
        cut.truncate(heads, 18);
        for position in 18..35 {
            let at = position * 16..(position + 1) * 16;
            cut.push(heads, position, &keys[at.clone()], &values[at]);
        }
        let query: Vec<f32> = (0..32).map(value).collect();
        for position in [0, 17, 18, 34] {
            let run = |cache| attend(heads, &[Row { cache, position }], &query);
            assert_eq!(run(&whole), run(&cut));
        }
    }
}
