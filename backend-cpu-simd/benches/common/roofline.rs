//! What the machine can do at most: 8-bit dot products on registers, and streaming reads.

#![allow(dead_code, reason = "each bench uses a part")]

use std::hint::black_box;

use rayon::prelude::*;

/// The instruction of a roofline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dot {
    /// `vpdpbusd` of 512 bits.
    Vnni512,
    /// `vpdpbusd` of 256 bits, in its VEX encoding.
    Vnni256,
    /// `vpmaddubsw` of 256 bits.
    Maddubs,
}

#[cfg(target_arch = "x86_64")]
impl Dot {
    const TIMES: usize = 20_000;

    /// True if this CPU has the instruction.
    pub(crate) fn is_available(self) -> bool {
        match self {
            Dot::Vnni512 => is_x86_feature_detected!("avx512vnni"),
            Dot::Vnni256 => is_x86_feature_detected!("avxvnni"),
            Dot::Maddubs => is_x86_feature_detected!("avx2"),
        }
    }

    /// Multiply-adds of one [`run`](Self::run) by one thread.
    pub(crate) fn macs(self) -> usize {
        Self::TIMES * if self == Dot::Vnni512 { 20 * 64 } else { 12 * 32 }
    }

    /// The instruction again and again, on registers, by each thread of the pool that this is
    /// called in.
    pub(crate) fn run(self) {
        assert!(self.is_available(), "{self:?}: this CPU does not have it");
        let n = black_box(Self::TIMES);
        rayon::broadcast(|_| {
            // SAFETY: the CPU has the features, as asserted.
            black_box(unsafe {
                match self {
                    Dot::Vnni512 => zmm(n),
                    Dot::Vnni256 => ymm_vnni(n),
                    Dot::Maddubs => ymm(n),
                }
            });
        });
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Dot {
    pub(crate) fn is_available(self) -> bool {
        false
    }

    pub(crate) fn macs(self) -> usize {
        0
    }

    pub(crate) fn run(self) {
        unreachable!("{self:?}: this CPU does not have it");
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn zmm(n: usize) -> i32 {
    use std::arch::x86_64::*;
    let mut acc = [_mm512_setzero_si512(); 20];
    let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
    for _ in 0..n {
        for acc in &mut acc {
            *acc = _mm512_dpbusd_epi32(*acc, a, b);
        }
    }
    _mm512_reduce_add_epi32(acc.into_iter().fold(a, |sum, acc| _mm512_xor_si512(sum, acc)))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avxvnni")]
fn ymm_vnni(n: usize) -> i32 {
    use std::arch::x86_64::*;
    let mut acc = [_mm256_setzero_si256(); 12];
    let (a, b) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(5)));
    for _ in 0..n {
        for acc in &mut acc {
            *acc = _mm256_dpbusd_avx_epi32(*acc, a, b);
        }
    }
    acc.into_iter().fold(0, |sum, acc| sum ^ _mm256_extract_epi32::<0>(acc))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn ymm(n: usize) -> i32 {
    use std::arch::x86_64::*;
    let mut acc: [__m256i; 12] = std::array::from_fn(|i| _mm256_set1_epi8(i as i8));
    let b = black_box(_mm256_set1_epi8(5));
    for _ in 0..n {
        for acc in &mut acc {
            *acc = _mm256_maddubs_epi16(*acc, b);
        }
    }
    acc.into_iter().fold(0, |sum, acc| sum ^ _mm256_extract_epi32::<0>(acc))
}

/// A streaming read of so many bytes.
pub(crate) struct Read(Vec<u64>);

impl Read {
    pub(crate) fn new(bytes: usize) -> Self {
        Read(vec![1; bytes / 8])
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.len() * 8
    }

    /// Reads all once, by the threads of the pool that this is called in.
    pub(crate) fn run(&self) {
        let part = self.0.len().div_ceil(rayon::current_num_threads());
        black_box(self.0.par_chunks(part).map(sum_of).reduce(|| 0, |a, b| a ^ b));
    }
}

/// Reads all words, asking for them ahead as the kernels do: without that a core waits for its
/// translations of addresses and reads half as fast.
fn sum_of(words: &[u64]) -> u64 {
    let mut sums = [0; 32];
    for line in words.chunks_exact(32) {
        #[cfg(target_arch = "x86_64")]
        for ahead in 0..4 {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let at = line.as_ptr().cast::<i8>().wrapping_add(4096 + 64 * ahead);
            // SAFETY: a prefetch faults at no address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
        }
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum ^= word;
        }
    }
    sums.into_iter().fold(0, |a, b| a ^ b)
}
