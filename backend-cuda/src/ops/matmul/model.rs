//! Which kernel for many rows, and in how many ranges of K: by counting, not by measurement.
//!
//! ```text
//! clocks = waves * (K of a block / 128 * max(tensor, issue, memory) + fixed)
//! ```
//!
//! for each kernel that can; the least wins. What is counted, for a block tile of TM x TN outputs
//! and 128 of K on one multiprocessor:
//!
//! | kernel | tile | clocks of 128 k |
//! |---|---|---|
//! | `Mma` | 64 x 64 | issue: both operands are expanded by every warp |
//! | `MmaFolded` | 64 or 128 x 128 | int8 products / the rate of mma.sync |
//! | `Wgmma` | 128 x 256 or 128 | int8 products / the rate of wgmma |
//! | `WgmmaRs` | 32, 64 or 128 x 128 | the same, or issue: each warp expands its weights |
//!
//! Memory is the bytes of B that all tiles of the first row read from DRAM, shared by all
//! multiprocessors: 4.25 or 4.5 bits an element packed, 8 or 16 folded. Rates are those of the
//! vendor's data sheets divided by multiprocessors and boost clock, in [`Rates::of`]; shares of a
//! rate that a kernel reaches are read from its instructions. All of this is a bound, not measured:
//! the first run on hardware replaces it.

use fp4_core::{Encoding, Format, Product as Encodings};

use super::{wgmma, wgmma_rs};
use crate::build::arguments::{FOLDED_COLS, MMA_TILE, RS_ROWS, TILE_ROWS};
use crate::device::gpu::Gpu;

use super::mma_folded::tile_rows;

/// What a multiprocessor does in a clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    processors: usize,
    /// Int8 multiply-adds by mma.sync.
    mma: f64,
    /// The same by wgmma; 0 where there is none.
    wgmma: f64,
    /// Bytes from DRAM.
    bytes: f64,
    /// Bytes of shared memory of all its blocks.
    shared: usize,
}

/// Blocks of a folded kernel on a multiprocessor, by products for an element: registers bound them.
fn resident(rates: &Rates, sums: usize, rows: usize) -> usize {
    let (by_registers, bytes) = match (sums, rows == TILE_ROWS) {
        (1, true) => (2, 50 << 10),
        (1, false) => (3, 38 << 10),
        (2, true) => (1, 74 << 10),
        (2, false) => (2, 50 << 10),
        (_, true) => (1, 82 << 10),
        (_, false) => (2, 62 << 10),
    };
    by_registers.min(rates.shared / bytes).max(1)
}

/// Clocks from a launch to the first product, and from the last one to the outputs.
const FIXED: f64 = 3000.0;
/// Clocks to add the sums of a range to memory and to take them back, an int32 for each thread and
/// sum of a tile.
const MERGE: f64 = 1500.0;
/// Share of a tensor core's rate that a folded kernel issues.
const FOLDED_SHARE: f64 = 0.8;
const WGMMA_SHARE: f64 = 0.7;
/// Multiply-adds a clock of `Mma`: about 220 instructions for 32 x 32 x 32 with the int32 fold, 250
/// for 32 x 32 x 16 with an int64 for each group, at four instructions a clock.
const MMA_FOLD: f64 = 4.0 * 32_768.0 / 220.0;
const MMA_GROUPS: f64 = 4.0 * 16_384.0 / 250.0;
/// Clocks of 128 k of a block of `WgmmaRs`: two warps for each of four schedulers issue about 220
/// instructions.
const RS_ISSUE: f64 = 2.0 * 220.0;
/// Clocks of 64 k of a block of `Decode` by groups, staging included.
const LEFT_STEP: f64 = 300.0;

impl Rates {
    /// By compute capability: the large chips of each. Int8 dense and bandwidth from NVIDIA's
    /// data sheets of A100, RTX 3090, RTX 4090, H200, B200 and RTX 5090; mma.sync reaches 0.6 of
    /// wgmma's rate on Hopper, and half of a B200's own instructions is assumed.
    pub(super) fn of(gpu: &Gpu) -> Self {
        Rates::new(gpu.info.compute_capability, gpu.processors)
    }

    fn new(compute_capability: i32, processors: usize) -> Self {
        let (mma, wgmma, bytes, shared) = match compute_capability {
            80 => (2048.0, 0.0, 11.0, 164 << 10),
            90 => (2450.0, 4096.0, 20.0, 228 << 10),
            100..=103 => (2048.0, 0.0, 28.0, 228 << 10),
            120..=121 => (1024.0, 0.0, 4.4, 100 << 10),
            // 8.6, 8.7, 8.9 and what is not known.
            _ => (1024.0, 0.0, 3.1, 100 << 10),
        };
        Rates { processors, mma, wgmma, bytes, shared }
    }
}

/// Clocks of blocks that are cut in ranges of K.
struct Blocks {
    tiles: usize,
    resident: usize,
    /// Of one block for 128 k, alone on its multiprocessor.
    step: f64,
    /// Of the memory that all blocks read, a multiprocessor's share.
    memory: f64,
}

impl Blocks {
    fn clocks(&self, rates: &Rates, k: usize, ranges: usize) -> f64 {
        let blocks = self.tiles * ranges;
        let slots = rates.processors * self.resident;
        let waves = blocks.div_ceil(slots).max(1);
        // As many blocks as run on a multiprocessor share it.
        let sharing = blocks.div_ceil(rates.processors).min(self.resident).max(1);
        let steps = (k as f64 / 128.0 / ranges as f64).ceil();
        let merge = if ranges > 1 { MERGE } else { 0.0 };
        let run = steps * self.step * sharing as f64 * waves as f64;
        // Few blocks do not read as fast as all multiprocessors would.
        let readers = blocks.min(rates.processors).max(1) as f64;
        let memory = self.memory * rates.processors as f64 / readers;
        run.max(memory) + (FIXED + merge) * waves as f64
    }
}

fn folded(rates: &Rates, sums: usize, [m, n, k]: [usize; 3]) -> Blocks {
    let rows = tile_rows(m);
    let products = (rows * FOLDED_COLS * 128 * sums) as f64;
    let planes = if sums == 3 { 2 } else { 1 };
    Blocks {
        tiles: m.div_ceil(rows) * n.div_ceil(FOLDED_COLS),
        resident: resident(rates, sums, rows),
        step: products / (rates.mma * FOLDED_SHARE),
        memory: (n * k * planes) as f64 / (rates.bytes * rates.processors as f64),
    }
}

/// In how many ranges the folded kernels cut K.
pub(super) fn ranges(rates: &Rates, sums: usize, [m, n, k]: [usize; 3]) -> usize {
    let blocks = folded(rates, sums, [m, n, k]);
    // A range of less than 512 would spend its time on the merge.
    let most = (k / 512).clamp(1, 32);
    let clocks = |&ranges: &usize| blocks.clocks(rates, k, ranges);
    (1..=most).min_by(|a, b| clocks(a).total_cmp(&clocks(b))).unwrap_or(1)
}

/// What multiplies many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Mma,
    MmaFolded,
    Wgmma,
    WgmmaRs,
}

/// The choice for a product, whose weight has its folded form or would have to be folded first, and
/// of which `WgmmaRs` leaves so many tiles, if it may multiply it.
pub(super) fn choose(
    rates: &Rates,
    of: Encodings,
    [m, n, k]: [usize; 3],
    folded_weight: bool,
    wide_tiles: Option<usize>,
) -> Choice {
    let sums = match (of.a, of.b) {
        (Encoding::MxInt8, Format::NvFp4) => return Choice::Mma,
        (Encoding::MxInt8, Format::MxFp4) => 2,
        (_, Format::MxFp4) => 1,
        (_, Format::NvFp4) => 3,
    };
    let packed = 0.53 * (n * k) as f64 / (rates.bytes * rates.processors as f64);
    let mma = Blocks {
        tiles: m.div_ceil(MMA_TILE) * n.div_ceil(MMA_TILE),
        resident: 2,
        step: (MMA_TILE * MMA_TILE * 128) as f64 / if sums == 1 { MMA_FOLD } else { MMA_GROUPS },
        memory: packed,
    };
    // Folding reads the packed form twice and writes the planes.
    let planes = if sums == 3 { 3.0 } else { 1.0 };
    let fold = if folded_weight { 0.0 } else { packed * (2.0 + planes / 0.53) + FIXED };
    let mma_folded =
        folded(rates, sums, [m, n, k]).clocks(rates, k, ranges(rates, sums, [m, n, k]));
    let cols = if sums == 1 { 2 * TILE_ROWS } else { TILE_ROWS };
    let wgmma = Blocks {
        tiles: m.div_ceil(TILE_ROWS) * n.div_ceil(cols),
        resident: 1,
        step: (TILE_ROWS * cols * 128 * sums) as f64 / (rates.wgmma * WGMMA_SHARE),
        memory: packed / 0.53 * planes,
    };
    let mut best = (mma.clocks(rates, k, 1), Choice::Mma);
    let mut consider = |clocks: f64, choice| {
        if clocks < best.0 {
            best = (clocks, choice);
        }
    };
    consider(mma_folded + fold, Choice::MmaFolded);
    if rates.wgmma > 0.0 && m >= wgmma::MIN_ROWS {
        consider(wgmma.clocks(rates, k, 1) + fold, Choice::Wgmma);
    }
    if let Some(wide) = wide_tiles.filter(|_| rates.wgmma > 0.0) {
        let rows = wgmma_rs::tile_rows(m);
        let tensor = (rows * RS_ROWS * 128 * sums) as f64 / (rates.wgmma * WGMMA_SHARE);
        let tiles = m.div_ceil(rows) * n.div_ceil(RS_ROWS);
        let rs = Blocks { tiles, resident: 2, step: tensor.max(RS_ISSUE), memory: packed };
        let least = |ranges| rs.clocks(rates, k, ranges);
        let clocks = (1..=(k / 512).clamp(1, 32)).map(least).min_by(f64::total_cmp);
        // Those that it leaves, 16 rows of A a block, two on each multiprocessor.
        let waves = (wide * m.div_ceil(16)).div_ceil(2 * rates.processors);
        let left = (waves * k.div_ceil(64)) as f64 * LEFT_STEP;
        consider(clocks.unwrap_or(f64::INFINITY) + left, Choice::WgmmaRs);
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tiles_are_cut_and_many_are_not() {
        let h200 = Rates::new(90, 132);
        // 64 tiles on 132 multiprocessors.
        assert!((2..=8).contains(&ranges(&h200, 1, [64, 8192, 8192])));
        assert!((2..=8).contains(&ranges(&h200, 1, [128, 8192, 8192])));
        assert_eq!(ranges(&h200, 1, [8192, 8192, 8192]), 1);
        for sums in [1, 2, 3] {
            assert_eq!(ranges(&h200, sums, [64, 8192, 128]), 1);
            assert_eq!(ranges(&h200, sums, [0, 0, 0]), 1);
        }
    }

    #[test]
    fn many_rows_go_to_the_fastest_kernel_that_a_device_has() {
        let mx = Encodings::of(Format::MxFp4);
        let nv = Encodings::of(Format::NvFp4);
        let mixed = Encodings { a: Encoding::MxInt8, b: Format::NvFp4 };
        let large = [8192, 8192, 8192];
        let cases = [
            (90, 132, mx, large, true, Choice::Wgmma),
            (90, 132, nv, large, true, Choice::Wgmma),
            (80, 108, mx, large, true, Choice::MmaFolded),
            (80, 108, nv, large, true, Choice::MmaFolded),
            (89, 128, mx, large, false, Choice::MmaFolded),
            (120, 170, mx, large, true, Choice::MmaFolded),
            (90, 132, mixed, large, true, Choice::Mma),
            // Few tiles: K is cut.
            (90, 132, mx, [64, 8192, 8192], true, Choice::MmaFolded),
            (90, 132, mx, [128, 8192, 8192], true, Choice::MmaFolded),
            (80, 108, mx, [64, 8192, 8192], true, Choice::MmaFolded),
            // A weight that is yet to be folded costs more than it saves.
            (89, 128, nv, [17, 4096, 4096], false, Choice::Mma),
        ];
        for (capability, processors, of, shape, folded, expected) in cases {
            let rates = Rates::new(capability, processors);
            let got = choose(&rates, of, shape, folded, None);
            assert_eq!(got, expected, "{capability} {of:?} {shape:?} {folded}");
        }
    }

    #[test]
    fn few_rows_go_by_packed_weights_where_they_may() {
        let h200 = Rates::new(90, 132);
        let [mx, mixed] =
            [Encoding::MxFp4, Encoding::MxInt8].map(|a| Encodings { a, b: Format::MxFp4 });
        for of in [mx, mixed] {
            for m in [17, 32, 64, 128] {
                for folded in [false, true] {
                    let got = choose(&h200, of, [m, 8192, 8192], folded, Some(0));
                    assert_eq!(got, Choice::WgmmaRs, "{of:?} {m} {folded}");
                }
            }
        }
        // Where all are left it is decode's work, and where one is still worth it.
        let all = choose(&h200, mx, [128, 8192, 8192], true, Some(64));
        let one = choose(&h200, mx, [64, 8192, 8192], false, Some(1));
        assert_eq!((all, one), (Choice::MmaFolded, Choice::WgmmaRs));
        // No wgmma.
        let got = choose(&Rates::new(89, 128), mx, [64, 8192, 8192], false, Some(0));
        assert_ne!(got, Choice::WgmmaRs);
    }
}
