//! Several products in one launch of each kernel that they go by: the experts of a mixture (C6).
//!
//! ```text
//! arguments of every product, and the ends of their blocks, in device memory
//! block i: the product whose end is the first above i; then as in a launch of its own
//! ```
//!
//! Products of one kernel and the same encodings share a launch, whatever their shapes: those for
//! up to 16 rows go by `Decode`'s, for more by `MmaFolded`'s where the weight has its folded form,
//! or by `Mma`'s. Those that another kernel multiplies faster have launches of their own.

use std::sync::{Mutex, PoisonError};

use bytemuck::NoUninit;
use fp4_core::{Error, Product as Encodings};

use super::kernel::MatmulKernel;
use super::model::{self, Choice, Rates};
use super::product::{Product, Scratch, is_long};
use super::{decode, mma, mma_folded, wgmma};
use crate::build::arguments::{
    FOLDED_FEW_ROWS, FoldedArgs, GroupedArgs, MMA_THREADS, MatmulArgs, Pointer,
};
use crate::build::kernels::Kernel;
use crate::device::buffer::Buffer;
use crate::device::gpu::Gpu;
use crate::device::launch::{Grid, int};

/// How a product of a group goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// With others of its encodings.
    Decode,
    Mma,
    /// Where both operands have their folded form; else alone.
    MmaFolded,
    /// In launches of its own.
    Alone,
}

/// How a product of (m, n, k) goes whose weight has its folded form or not.
pub(crate) fn route(
    kernel: MatmulKernel,
    gpu: &Gpu,
    of: Encodings,
    shape: [usize; 3],
    folded_weight: bool,
) -> Route {
    let [m, _, k_pad] = shape;
    match kernel {
        _ if is_long(of, k_pad) => Route::Alone,
        MatmulKernel::Decode { .. } => Route::Decode,
        MatmulKernel::Mma => Route::Mma,
        MatmulKernel::MmaFolded { .. } if mma_folded::kernels(of).is_none() => Route::Mma,
        MatmulKernel::MmaFolded { .. } if folded_weight => Route::MmaFolded,
        MatmulKernel::Auto if m <= decode::MAX_ROWS => Route::Decode,
        MatmulKernel::Auto => {
            match model::choose(&Rates::of(gpu), of, shape, folded_weight, None) {
                Choice::Wgmma if wgmma::takes(kernel, gpu, of, [m, k_pad]) => Route::Alone,
                Choice::Wgmma | Choice::MmaFolded
                    if mma_folded::takes(kernel, gpu, of, [m, k_pad]) =>
                {
                    if folded_weight {
                        Route::MmaFolded
                    } else {
                        Route::Alone
                    }
                }
                _ => Route::Mma,
            }
        }
        MatmulKernel::Naive
        | MatmulKernel::Wgmma
        | MatmulKernel::WgmmaRs { .. }
        | MatmulKernel::MmaFolded { .. } => Route::Alone,
    }
}

/// Host memory that launches read, to be kept until the caller has synchronized.
pub(crate) type Kept = Vec<Vec<u8>>;

/// Queues the products.
pub(crate) fn grouped(
    kernel: MatmulKernel,
    products: &[(Product<'_>, Route)],
    scratch: &Mutex<Scratch>,
) -> Result<Kept, Error> {
    let mut kept = Kept::new();
    let mut sets: Vec<(Route, Encodings, Vec<&Product<'_>>)> = Vec::new();
    for (product, route) in products {
        let of = product.encodings()?;
        if product.shape().contains(&0) {
            continue;
        }
        let ready = product.a.folded.ready() && product.b.folded.ready();
        if *route == Route::Alone || (*route == Route::MmaFolded && !ready) {
            super::matmul(kernel, product, scratch)?;
            continue;
        }
        match sets.iter_mut().find(|(other, encodings, _)| (other, encodings) == (route, &of)) {
            Some((_, _, members)) => members.push(product),
            None => sets.push((*route, of, vec![product])),
        }
    }
    for (route, of, members) in &sets {
        let gpu = &*members[0].a.gpu;
        // Before the buffers are locked: it may take long.
        match route {
            Route::Decode => drop(gpu.function(decode::grouped(*of)?)?),
            Route::MmaFolded => {
                drop(gpu.function(mma::grouped(*of))?);
                if let Some(kernels) = mma_folded::kernels(*of) {
                    drop(gpu.function(kernels.grouped)?);
                }
            }
            Route::Mma | Route::Alone => drop(gpu.function(mma::grouped(*of))?),
        }
        let scratch = &mut *scratch.lock().unwrap_or_else(PoisonError::into_inner);
        scratch.forget_tiles();
        kept.push(match route {
            Route::Decode => queue_decode(gpu, *of, members, scratch)?,
            Route::MmaFolded => queue_folded(gpu, *of, members, scratch)?,
            Route::Mma | Route::Alone => queue_mma(gpu, *of, members, scratch)?,
        });
    }
    Ok(kept)
}

/// Arguments of products and the ends of their blocks, as they lie in device memory.
struct List<A> {
    args: Vec<A>,
    ends: Vec<u32>,
}

impl<A: NoUninit> List<A> {
    fn new(members: impl Iterator<Item = Result<(A, usize), Error>>) -> Result<Self, Error> {
        let mut list = List { args: Vec::new(), ends: Vec::new() };
        let mut end = 0usize;
        for member in members {
            let (args, blocks) = member?;
            end = end.saturating_add(blocks);
            list.args.push(args);
            list.ends.push(int(end)?.unsigned_abs());
        }
        Ok(list)
    }

    /// Blocks of all.
    fn blocks(&self) -> usize {
        self.ends.last().map_or(0, |&end| end as usize)
    }

    /// Appends the bytes, and says where they will be from the beginning of `bytes` on.
    fn append(&self, bytes: &mut Vec<u8>) -> [usize; 2] {
        let mut at = [0; 2];
        for (at, part) in
            at.iter_mut().zip([bytemuck::cast_slice(&self.args), bytemuck::cast_slice(&self.ends)])
        {
            bytes.resize(bytes.len().next_multiple_of(align_of::<u64>()), 0);
            *at = bytes.len();
            bytes.extend_from_slice(part);
        }
        at
    }

    /// As a kernel takes it, from a buffer that begins with the bytes.
    fn arguments(&self, buffer: &Buffer, [args, ends]: [usize; 2]) -> Result<GroupedArgs, Error> {
        Ok(GroupedArgs {
            products: buffer.pointer().plus(args),
            ends: buffer.pointer().plus(ends),
            left: Pointer::NULL,
            count: int(self.args.len())?,
            left_rows: 0,
        })
    }
}

/// Queues one kernel for all members.
fn queue_list<A: NoUninit>(
    gpu: &Gpu,
    kernel: &Kernel<GroupedArgs>,
    threads: usize,
    list: &List<A>,
    scratch: &mut Scratch,
) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let at = list.append(&mut bytes);
    scratch.grouped.upload(&gpu.stream, &bytes)?;
    let args = list.arguments(&scratch.grouped, at)?;
    // SAFETY: as in `naive::queue`, for each product; their arguments and ends are in `grouped`.
    unsafe { gpu.launch(kernel, Grid::row(list.blocks(), threads), &args)? };
    Ok(bytes)
}

fn queue_decode(
    gpu: &Gpu,
    of: Encodings,
    members: &[&Product<'_>],
    scratch: &mut Scratch,
) -> Result<Vec<u8>, Error> {
    let list = List::new(members.iter().map(|member| decode::member(member)))?;
    queue_list(gpu, decode::grouped(of)?, decode::THREADS, &list, scratch)
}

fn queue_mma(
    gpu: &Gpu,
    of: Encodings,
    members: &[&Product<'_>],
    scratch: &mut Scratch,
) -> Result<Vec<u8>, Error> {
    let list = List::new(members.iter().map(|member| mma::member(member)))?;
    queue_list(gpu, mma::grouped(of), MMA_THREADS, &list, scratch)
}

/// The kernels on folded operands, and then `Mma`'s for the tiles that they leave.
fn queue_folded(
    gpu: &Gpu,
    of: Encodings,
    members: &[&Product<'_>],
    scratch: &mut Scratch,
) -> Result<Vec<u8>, Error> {
    let Some(kernels) = mma_folded::kernels(of) else {
        return queue_mma(gpu, of, members, scratch);
    };
    let tiles = members.iter().map(|member| mma_folded::grouped_tiles(member)).sum();
    scratch.reserve_left(gpu, tiles)?;
    let mut folded: List<FoldedArgs> =
        List::new(members.iter().map(|member| mma_folded::member(member, scratch)))?;
    let mut first = 0;
    for (args, &end) in folded.args.iter_mut().zip(&folded.ends) {
        args.first_tile = first;
        first = end.cast_signed();
    }
    // The same tiles, under the same numbers.
    let packed: Vec<MatmulArgs> =
        members.iter().map(|member| Ok(mma::member(member)?.0)).collect::<Result<_, Error>>()?;
    let packed = List { args: packed, ends: folded.ends.clone() };
    let mut bytes = Vec::new();
    let (of_folded, of_packed) = (folded.append(&mut bytes), packed.append(&mut bytes));
    scratch.grouped.upload(&gpu.stream, &bytes)?;
    let args = folded.arguments(&scratch.grouped, of_folded)?;
    let threads = 2 * FOLDED_FEW_ROWS;
    // SAFETY: as in `queue_list`; all operands are folded, and there is room in the list for all
    // tiles.
    unsafe { gpu.launch(kernels.grouped, Grid::row(tiles, threads), &args)? };
    let args = GroupedArgs {
        left: scratch.left.pointer(),
        left_rows: int(FOLDED_FEW_ROWS)?,
        ..packed.arguments(&scratch.grouped, of_packed)?
    };
    let grid = Grid::row(mma::left_blocks(gpu, tiles), MMA_THREADS);
    // SAFETY: as above; the list holds tiles of these products.
    unsafe { gpu.launch(mma::grouped(of), grid, &args)? };
    scratch.tiles = tiles;
    Ok(bytes)
}
