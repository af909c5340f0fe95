//! Products whose K is split over ranks ([C6]): the bits of one machine, whatever adds the parts.
//!
//! The communicator is simulated: each rank prepares its range of groups of B as a weight of its
//! own, and what it would send are words, which are added in the order of the case.
//!
//! ```text
//! reaches of A and B            of each rank, merged by the maximum of each byte
//! for each block of columns:    a plan; the words of each rank; their sums, rounded once
//! the same words, by ranges of rows, as a reduce-scatter leaves them
//! ```
//!
//! [C6]: fp4_core::contract#c6

use std::ops::Range;
use std::sync::Arc;

use fp4_core::backend::erased::{DynMatmul, DynWeight};
use fp4_core::reduction::{BlockPlan, Bound, Reach};
use fp4_core::{Error, MatmulQuery, PackedMatrix, PackedView, with_floats};

use super::Suite;
use super::case::{Case, Order, ShardedCase};
use super::outcome::{Comparison, Meaning, Outcome};
use super::run_report::Subject;
use super::runner::{Outcomes, Product, subjects};
use crate::oracle::Wide;
use crate::tensor::{bits_of, garbage};

/// Columns of a block: N = 33 and 50 have several, the last one narrower.
const BLOCK: usize = 17;

/// What one rank has of the operands.
struct Shard {
    a: PackedMatrix,
    b: Arc<PackedMatrix>,
}

pub(super) fn check(
    suite: &Suite,
    case: &Case,
    request: &ShardedCase,
    alive: &[bool],
) -> Result<Outcomes, Error> {
    let product = &request.product;
    let [a, b] = product.data(&case.id)?;
    let sums = suite.oracle.sums(a.view(), b.view(), 0..b.shape().row_groups());
    let exact: Vec<f64> = sums.iter().map(Wide::to_f64).collect();
    let epilogue = product.epilogue(&case.id, &exact);
    let whole =
        Product { oracle: &suite.oracle, request: product, a: &a, b: &b, sums: &sums, epilogue };
    // Shards are whole groups of A, of which each has one or two of B.
    let per = a.shape().group().get() / b.shape().group().get();
    let shards = (0..request.ranks).map(|rank| {
        let range = request.range(rank, a.shape().row_groups());
        let of_b = range.start * per..range.end * per;
        Ok(Shard { a: cut(a.view(), range)?, b: cut(b.view(), of_b)?.into() })
    });
    let shards = shards.collect::<Result<Vec<_>, Error>>()?;
    let outcomes = subjects(suite, alive).filter_map(|(index, registered)| {
        let matmul = registered.backend.matmul()?;
        let outcome = compare(matmul, request, &whole, &shards);
        Some((Subject::Matmul(index), outcome.unwrap_or_else(Outcome::from)))
    });
    Ok(outcomes.collect())
}

impl ShardedCase {
    /// The groups of a rank, of `groups` in all.
    fn range(&self, rank: usize, groups: usize) -> Range<usize> {
        let cut = |rank: usize| match self.uneven {
            false => groups * rank / self.ranks,
            true => groups * rank.pow(3) / self.ranks.pow(3),
        };
        cut(rank)..cut(rank + 1)
    }
}

/// Some groups of every row, as a matrix of their own.
fn cut(from: PackedView<'_>, groups: Range<usize>) -> Result<PackedMatrix, Error> {
    let (shape, len) = (from.shape(), groups.len());
    let to = shape.resized(shape.rows(), len * shape.group().get())?;
    let bytes = groups.start * shape.group_bytes()..groups.end * shape.group_bytes();
    let codes = (0..shape.rows()).flat_map(|i| &from.row_codes(i)[bytes.clone()]).copied();
    let scales = (0..shape.rows()).flat_map(|i| &from.row_scales(i)[groups.clone()]).copied();
    PackedMatrix::new(to, codes.collect(), scales.collect())
}

/// The reaches of all rows of one operand on each rank, merged as they are sent: byte by byte.
fn reaches<'a>(parts: impl Iterator<Item = PackedView<'a>>) -> Vec<Reach> {
    let sent = parts.map(|part| {
        let rows = 0..part.shape().rows();
        rows.flat_map(|i| Reach::of_row(part, i).to_bytes()).collect::<Vec<u8>>()
    });
    let merged = sent.reduce(|mut merged, sent| {
        merged.iter_mut().zip(sent).for_each(|(to, byte)| *to = (*to).max(byte));
        merged
    });
    merged.unwrap_or_default().as_chunks().0.iter().map(|&r| Reach::from_bytes(r)).collect()
}

fn compare(
    matmul: &Arc<dyn DynMatmul>,
    request: &ShardedCase,
    product: &Product<'_>,
    shards: &[Shard],
) -> Result<Outcome, Error> {
    let [m, n, k] = request.product.shape;
    let query = MatmulQuery::new(request.product.format, [m, n, k], request.product.output)
        .with_a(request.product.a);
    matmul.supports_matmul(&query)?;
    matmul.supports_partial(&query)?;
    let all = match request.wide {
        false => product.b.shape().row_groups(),
        // So many that no i64 is enough.
        true => usize::MAX,
    };
    let bound = Bound::new(product.a.shape().expect_product(&product.b.shape())?, all);
    let rows = reaches(shards.iter().map(|shard| shard.a.view()));
    let columns = reaches(shards.iter().map(|shard| shard.b.view()));
    let (mut whole, mut scattered) =
        (garbage(request.product.output, m * n), garbage(request.product.output, m * n));
    for first in (0..n).step_by(BLOCK) {
        let block = first..n.min(first + BLOCK);
        let plan = BlockPlan::new(bound, &rows, &columns[block.clone()]);
        let sent = shards.iter().map(|shard| {
            let part = Arc::new(rows_of(&shard.b, block.clone())?);
            let weight: Box<dyn DynWeight> = matmul.clone().prepare_dyn(part)?;
            let (mut words, groups) = (Vec::new(), 0..shard.b.shape().row_groups());
            plan.partial(shard.a.view(), &mut words, |a, out| {
                weight.partial(a, groups.clone(), out)
            })?;
            Ok(words)
        });
        let words = added(sent.collect::<Result<Vec<_>, Error>>()?, request.order);
        let epilogue = product.epilogue();
        let mut write = |rows: Range<usize>, words: &[i64], whole_call: bool| {
            let to = if whole_call { &mut whole } else { &mut scattered };
            with_floats!(FloatSliceMut, to.as_mut_slice(), out => {
                plan.rounded(rows, words, |i, sums| {
                    let at = i * n + first;
                    epilogue.apply_row(sums, i, first, &mut out[at..at + sums.len()]);
                })
            })
        };
        write(0..m, &words, true)?;
        let mut rest = &words[..];
        for rank in 0..request.ranks {
            let rows = m * rank / request.ranks..m * (rank + 1) / request.ranks;
            let (own, others) = rest.split_at(plan.words(rows.clone()));
            write(rows, own, false)?;
            rest = others;
        }
    }
    let mut comparison = Comparison::default();
    let expected: Vec<u32> = (0..m * n).map(|at| product.expected(at)).collect();
    let float = Meaning::Float(request.product.output);
    for (tensor, got) in [("output of an all-reduce", &whole), ("of a reduce-scatter", &scattered)]
    {
        comparison.compare("C6", tensor, float, n, &bits_of(got.as_slice()), &expected);
    }
    Ok(comparison.outcome())
}

fn rows_of(b: &PackedMatrix, rows: Range<usize>) -> Result<PackedMatrix, Error> {
    let view = b.view().rows_range(rows)?;
    PackedMatrix::new(view.shape(), view.codes().to_vec(), view.scales().to_vec())
}

/// The sums of all ranks' words, as a communicator would add them.
fn added(mut sent: Vec<Vec<i64>>, order: Order) -> Vec<i64> {
    let add = |to: &mut [i64], from: &[i64]| {
        to.iter_mut().zip(from).for_each(|(to, &word)| *to = to.wrapping_add(word));
    };
    match order {
        Order::Chain | Order::Reverse => {
            if order == Order::Reverse {
                sent.reverse();
            }
            let parts = sent.into_iter().reduce(|mut to, from| {
                add(&mut to, &from);
                to
            });
            parts.unwrap_or_default()
        }
        Order::Tree => {
            while sent.len() > 1 {
                let mut pairs = Vec::new();
                for pair in sent.chunks(2) {
                    let mut to = pair[0].clone();
                    pair.iter().skip(1).for_each(|from| add(&mut to, from));
                    pairs.push(to);
                }
                sent = pairs;
            }
            sent.pop().unwrap_or_default()
        }
        Order::Ring => {
            let (ranks, len) = (sent.len(), sent.first().map_or(0, Vec::len));
            let mut sums = vec![0; len];
            for part in 0..ranks {
                let range = len * part / ranks..len * (part + 1) / ranks;
                for step in 1..=ranks {
                    add(&mut sums[range.clone()], &sent[(part + step) % ranks][range.clone()]);
                }
            }
            sums
        }
    }
}
