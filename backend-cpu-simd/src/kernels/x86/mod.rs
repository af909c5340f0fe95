//! Kernels for x86-64, three instruction sets.
//!
//! | module | contents | unsafe |
//! |---|---|---|
//! | `avx512` | AVX-512 with VNNI and VBMI | yes |
//! | `avx_vnni` | AVX-VNNI; quantizes as AVX2 | yes |
//! | `avx2` | AVX2 with FMA and F16C | yes |
//! | `operand` | codes of A into tiles, for all three (AVX2) | yes |
//! | `quantize_int8` | the quantizer of MXINT8, for all three (AVX2) | yes |
//! | `scales` | scale bytes and reciprocals of several groups at a time, for all three (AVX2) | yes |

/// Returns the reason if the CPU lacks one of the features.
macro_rules! need {
    ($($feature:tt)*) => {
        $(if !is_x86_feature_detected!($feature) {
            return Err(Unsupported::CpuFeature($feature));
        })*
    };
}

/// Calls `$f::<R, U>` with R = `$rows` rows and U accumulators a row, enough of them to hide the
/// latency of the multiply-add.
macro_rules! by_rows {
    ($rows:expr, $f:ident $args:tt, $($r:literal: $u:literal),*) => {
        match $rows {
            // SAFETY: see the call.
            $($r => unsafe { $f::<$r, $u> $args },)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}

mod avx2;
mod avx512;
mod avx_vnni;
mod operand;
mod quantize_int8;
mod scales;

use std::arch::x86_64::_MM_HINT_T0;

use crate::matmul::operand::{LINES, Line};

pub(crate) use avx_vnni::AvxVnni;
pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;

/// Groups in a vector of scales, as many as 128 values have at most.
const LANES: usize = 8;

/// The canonical NaN of f32 (C9).
const NAN: f32 = f32::from_bits(0x7FC0_0000);

/// Asks for the cache line of an address, which may be anywhere: nothing is read.
#[inline(always)]
fn prefetch<const HINT: i32>(at: *const i8) {
    // SAFETY: a prefetch does nothing that a program can see, whatever the address.
    #[allow(unused_unsafe, reason = "the intrinsic was unsafe when Rust was older")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<HINT>(at);
    }
}

/// Tiles of up to this many rows wait for memory, and ask for it in time.
const PREFETCH_ROWS: usize = 8;
/// How many chunks ahead: 8 KB of codes. (With 4 KB weights in DRAM are read at 80% of what a plain
/// read gives; with 16 KB those in the cache take 10% longer.)
const PREFETCH_CHUNKS: usize = 32;

/// Asks for the codes and the scale bytes of the chunk of a panel that a tile of `rows` rows will
/// come to. `lines` and `scales` are where those of its present chunk are, with so many scale
/// bytes.
#[inline(always)]
fn prefetch_chunk(rows: usize, lines: *const Line, scales: *const u8, scale_bytes: usize) {
    if rows <= PREFETCH_ROWS {
        for j in 0..LINES {
            prefetch::<_MM_HINT_T0>(lines.wrapping_add(PREFETCH_CHUNKS * LINES + j).cast());
        }
        prefetch::<_MM_HINT_T0>(scales.wrapping_add(PREFETCH_CHUNKS * scale_bytes).cast());
    }
}

/// Bits of non-negative values: every exponent with mantissas around each place where rounding
/// can turn, infinity and NaN included.
#[cfg(test)]
fn magnitudes() -> Vec<u32> {
    let mantissas =
        (0..16u32).flat_map(|step| [0, 1, 2, 0x3_FFFF, 0x7_FFFF].map(|m| step << 19 | m));
    mantissas.flat_map(|m| (0..256u32).map(move |e| e << 23 | m)).collect()
}

/// Compares the largest magnitudes of groups, with one peak at each place of a run in turn; returns
/// how many groups.
#[cfg(test)]
fn check_largest(group: usize, largest: impl Fn(&[f32; 128]) -> [f32; LANES]) -> usize {
    let mut compared = 0;
    for place in 0..128 {
        for peak in [-3.0, f32::from_bits(0x7F80_0001), -f32::NAN, f32::INFINITY] {
            let mut y: [f32; 128] = std::array::from_fn(|i| 1.0 + (i / group) as f32 / 8.0);
            y[place] = peak;
            for (g, got) in largest(&y).into_iter().enumerate() {
                let expected = match g {
                    g if g == place / group => peak.abs(),
                    g if g < 128 / group => 1.0 + g as f32 / 8.0,
                    _ => 1.0,
                };
                assert_eq!(got.to_bits(), expected.to_bits(), "{group} {place} {g}");
                compared += 1;
            }
        }
    }
    compared
}
