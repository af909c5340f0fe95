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

use super::mma_folded::tile_rows;
use super::wgmma::MIN_ROWS;
use super::wgmma_rs;
use crate::build::arguments::{FOLDED_COLS, MMA_TILE, RS_ROWS, TILE_ROWS, WGMMA_CLUSTER};
use crate::device::gpu::Gpu;

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
/// The same of a wgmma block, for each sum that one of its 256 threads holds: eight warps reduce
/// in four clocks each, and read at 64 bytes a clock. Assumed.
const WGMMA_MERGE: f64 = 8.0 * 4.0 + 1024.0 / 64.0;
/// Tiles for each multiprocessor from which on K is not cut: it bounds what the sums take.
const MOST_CUT: usize = 2;
/// Share of a tensor core's rate that a folded kernel issues.
const FOLDED_SHARE: f64 = 0.8;
const WGMMA_SHARE: f64 = 0.7;
/// Multiply-adds a clock of `Mma`: about 220 instructions for 32 x 32 x 32 with the int32 fold, 250
/// for 32 x 32 x 16 with an int64 for each group, at four instructions a clock.
const MMA_FOLD: f64 = 4.0 * 32_768.0 / 220.0;
const MMA_GROUPS: f64 = 4.0 * 16_384.0 / 250.0;
/// Clocks of 128 k of a block of `WgmmaRs`: two warps for each of four schedulers issue about 242
/// instructions.
const RS_ISSUE: f64 = 2.0 * 242.0;
/// Clocks of 64 k of a block of `Decode` by groups, staging included.
const LEFT_STEP: f64 = 300.0;

impl Rates {
    /// By compute capability: the large chips of each, as `kernels/machines.py` has them with their
    /// sources, which a test compares.
    pub(super) fn of(gpu: &Gpu) -> Self {
        Rates::new(gpu.info.compute_capability, gpu.processors)
    }

    fn new(compute_capability: i32, processors: usize) -> Self {
        let (mma, wgmma, bytes, shared) = match compute_capability {
            80 => (2048.0, 0.0, 13.4, 164 << 10),
            90 => (2576.0, 4096.0, 19.9, 228 << 10),
            100..=103 => (2576.0, 0.0, 28.0, 228 << 10),
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
    /// Of adding up the ranges, of one block alone on its multiprocessor.
    merge: f64,
}

impl Blocks {
    fn clocks(&self, rates: &Rates, k: usize, ranges: usize) -> f64 {
        let blocks = self.tiles * ranges;
        let slots = rates.processors * self.resident;
        let waves = blocks.div_ceil(slots).max(1);
        // As many blocks as run on a multiprocessor share it.
        let sharing = blocks.div_ceil(rates.processors).min(self.resident).max(1);
        let steps = (k as f64 / 128.0 / ranges as f64).ceil();
        let merge = if ranges > 1 { self.merge * sharing as f64 } else { 0.0 };
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
        merge: MERGE,
    }
}

/// Pairs of tiles, each a cluster's: two below each other, and of an odd last row two beside.
pub(super) fn wgmma_pairs(m: usize, n: usize, cols: usize) -> usize {
    let (down, across) = (m.div_ceil(TILE_ROWS), n.div_ceil(cols));
    down / 2 * across + down % 2 * across.div_ceil(2)
}

fn wgmma(rates: &Rates, sums: usize, [m, n, k]: [usize; 3]) -> Blocks {
    let cols = if sums == 1 { 2 * TILE_ROWS } else { TILE_ROWS };
    let planes = if sums == 3 { 3 } else { 1 };
    Blocks {
        tiles: WGMMA_CLUSTER * wgmma_pairs(m, n, cols),
        resident: 1,
        step: (TILE_ROWS * cols * 128 * sums) as f64 / (rates.wgmma * WGMMA_SHARE),
        memory: (n * k * planes) as f64 / (rates.bytes * rates.processors as f64),
        merge: WGMMA_MERGE * (sums * cols / 2) as f64,
    }
}

/// In how many ranges the folded kernels cut K.
pub(super) fn ranges(rates: &Rates, sums: usize, [m, n, k]: [usize; 3]) -> usize {
    best_ranges(rates, &folded(rates, sums, [m, n, k]), k)
}

/// In how many ranges the wgmma kernels cut K.
pub(super) fn wgmma_ranges(rates: &Rates, sums: usize, shape: [usize; 3]) -> usize {
    let blocks = wgmma(rates, sums, shape);
    if blocks.tiles >= MOST_CUT * rates.processors {
        1
    } else {
        best_ranges(rates, &blocks, shape[2])
    }
}

fn best_ranges(rates: &Rates, blocks: &Blocks, k: usize) -> usize {
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
        merge: 0.0,
    };
    // Folding reads the packed form twice and writes the planes.
    let planes = if sums == 3 { 3.0 } else { 1.0 };
    let fold = if folded_weight { 0.0 } else { packed * (2.0 + planes / 0.53) + FIXED };
    let mma_folded =
        folded(rates, sums, [m, n, k]).clocks(rates, k, ranges(rates, sums, [m, n, k]));
    let by_wgmma = wgmma(rates, sums, [m, n, k]);
    let mut best = (mma.clocks(rates, k, 1), Choice::Mma);
    let mut consider = |clocks: f64, choice| {
        if clocks < best.0 {
            best = (clocks, choice);
        }
    };
    // Of equals the first is taken: the packed form is there, and is the smaller.
    if let Some(wide) = wide_tiles.filter(|_| rates.wgmma > 0.0) {
        let rows = wgmma_rs::tile_rows(m);
        let tensor = (rows * RS_ROWS * 128 * sums) as f64 / (rates.wgmma * WGMMA_SHARE);
        let tiles = m.div_ceil(rows) * n.div_ceil(RS_ROWS);
        let step = tensor.max(RS_ISSUE);
        // As `RS_KERNEL` and shared memory bound them.
        let resident = if sums * rows > TILE_ROWS { 1 } else { 2 + usize::from(sums * rows == 32) };
        let merge = WGMMA_MERGE * (sums * rows / 2) as f64;
        let rs = Blocks { tiles, resident, step, memory: packed, merge };
        let least = |ranges| rs.clocks(rates, k, ranges);
        let clocks = (1..=(k / 512).clamp(1, 32)).map(least).min_by(f64::total_cmp);
        // Those that it leaves, 16 rows of A a block, two on each multiprocessor.
        let waves = (wide * m.div_ceil(16)).div_ceil(2 * rates.processors);
        let left = (waves * k.div_ceil(64)) as f64 * LEFT_STEP;
        consider(clocks.unwrap_or(f64::INFINITY) + left, Choice::WgmmaRs);
    }
    consider(mma_folded + fold, Choice::MmaFolded);
    if rates.wgmma > 0.0 && m >= MIN_ROWS {
        let ranges = wgmma_ranges(rates, sums, [m, n, k]);
        consider(by_wgmma.clocks(rates, k, ranges) + fold, Choice::Wgmma);
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Machine("H200", "90a", processors, ghz, memory, l2, int8, mma, shared, ..)`, a line each.
    #[test]
    fn rates_are_those_that_the_budget_counts_with() {
        let text = include_str!("../../../kernels/machines.py");
        let mut compared = 0;
        for line in text.lines().filter_map(|l| l.trim().strip_prefix("Machine(\"")) {
            let cells: Vec<&str> = line.trim_end_matches("),").split(", ").collect();
            let number = |i: usize| cells[i].parse::<f64>().unwrap();
            let arch: i32 = cells[1].trim_matches(['"', 'a']).parse().unwrap();
            let rates = Rates::new(arch, number(2) as usize);
            let bytes = number(4) / (number(2) * number(3) * 1e9);
            assert!((rates.bytes / bytes - 1.0).abs() < 0.01, "{line}: {bytes} bytes a clock");
            assert_eq!(rates.mma, number(7), "{line}");
            assert_eq!(rates.wgmma, if arch == 90 { number(6) } else { 0.0 }, "{line}");
            assert_eq!(rates.shared as f64, number(8), "{line}");
            compared += 1;
        }
        assert_eq!(compared, 5);
    }

    #[test]
    fn few_tiles_are_cut_and_many_are_not() {
        let h200 = Rates::new(90, 132);
        // 64 tiles on 132 multiprocessors.
        assert!((2..=8).contains(&ranges(&h200, 1, [64, 8192, 8192])));
        assert!((2..=8).contains(&ranges(&h200, 1, [128, 8192, 8192])));
        assert_eq!(ranges(&h200, 1, [8192, 8192, 8192]), 1);
        // 32 and 64 tiles of wgmma, or 64 and 128 of NVFP4, on as many.
        assert_eq!([128, 256, 512].map(|m| wgmma_ranges(&h200, 1, [m, 8192, 8192])), [4, 2, 1]);
        assert_eq!([128, 256, 512].map(|m| wgmma_ranges(&h200, 3, [m, 8192, 8192])), [2, 1, 1]);
        assert_eq!(wgmma_ranges(&h200, 1, [8192, 8192, 8192]), 1);
        for sums in [1, 2, 3] {
            assert_eq!(ranges(&h200, sums, [64, 8192, 128]), 1);
            assert_eq!(ranges(&h200, sums, [0, 0, 0]), 1);
            assert_eq!(wgmma_ranges(&h200, sums, [0, 0, 0]), 1);
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
            (90, 132, mx, [128, 8192, 8192], true, Choice::Wgmma),
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
        // Where all are left another kernel is the choice, and where one is it is still this one.
        let all = choose(&h200, mx, [128, 8192, 8192], true, Some(64));
        let one = choose(&h200, mx, [64, 8192, 8192], false, Some(1));
        assert_eq!((all, one), (Choice::Wgmma, Choice::WgmmaRs));
        // No wgmma.
        let got = choose(&Rates::new(89, 128), mx, [64, 8192, 8192], false, Some(0));
        assert_ne!(got, Choice::WgmmaRs);
    }
}
