//! Work on the bytes of a row's scales, a vector of them at a time.
//!
//! A row of 12 or 24 scales is too short for the loops that the compiler makes of slices, which
//! take its end byte by byte. Here the last vector overlaps the one before it:
//!
//! ```text
//! 0 to 3 bytes      one by one
//! 4, 8, 16 or more  vectors of 4, 8, 16; the last from the end backwards
//! ```
//!
//! Worked example: 21 bytes are taken as 0 to 15 and 5 to 20.

/// Work on bytes, some at a time: a vector of them.
pub(super) trait ByChunks {
    /// Takes the bytes from index `at` on.
    fn take<const N: usize>(&mut self, at: usize, chunk: [u8; N]);

    /// Takes all of `bytes`, some of them twice.
    #[inline(always)]
    fn take_all(&mut self, bytes: &[u8]) {
        match bytes.len() {
            0..4 => self.take_by::<1>(bytes),
            4..8 => self.take_by::<4>(bytes),
            8..16 => self.take_by::<8>(bytes),
            16.. => self.take_by::<16>(bytes),
        }
    }

    /// Takes at least N bytes, the last N of them twice if they are no multiple.
    #[inline(always)]
    fn take_by<const N: usize>(&mut self, bytes: &[u8]) {
        let (chunks, rest) = bytes.as_chunks::<N>();
        for (i, chunk) in chunks.iter().enumerate() {
            self.take(i * N, *chunk);
        }
        if let (Some(chunk), false) = (bytes.last_chunk::<N>(), rest.is_empty()) {
            self.take(bytes.len() - N, *chunk);
        }
    }
}

/// The least and the most of bytes.
pub(super) struct LeastAndMost {
    pub(super) least: u8,
    pub(super) most: u8,
}

impl LeastAndMost {
    /// Of no byte.
    pub(super) const NONE: Self = LeastAndMost { least: u8::MAX, most: 0 };
}

impl ByChunks for LeastAndMost {
    #[inline(always)]
    fn take<const N: usize>(&mut self, _: usize, chunk: [u8; N]) {
        self.least = chunk.into_iter().fold(self.least, u8::min);
        self.most = chunk.into_iter().fold(self.most, u8::max);
    }
}

/// Writes what a function makes of each byte.
struct Mapped<'a, T, F>(&'a mut [T], F);

impl<T: Copy + Default, F: Fn(u8) -> T> ByChunks for Mapped<'_, T, F> {
    #[inline(always)]
    fn take<const N: usize>(&mut self, at: usize, chunk: [u8; N]) {
        // Not by `map`, which is compiled alone, without vectors.
        let mut mapped = [T::default(); N];
        for (to, byte) in mapped.iter_mut().zip(chunk) {
            *to = (self.1)(byte);
        }
        if let Some(to) = self.0.get_mut(at..).and_then(<[T]>::first_chunk_mut) {
            *to = mapped;
        }
    }
}

/// Writes `f` of each byte to the place of the same index, of those that both have.
#[inline(always)]
pub(super) fn map_bytes<T: Copy + Default>(from: &[u8], to: &mut [T], f: impl Fn(u8) -> T) {
    let len = from.len().min(to.len());
    Mapped(to, f).take_all(&from[..len]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_taken_by_chunks_of_every_length() {
        let bytes: Vec<u8> = (0..200).map(|i| (i * 37 % 251) as u8).collect();
        for len in 0..=100 {
            for start in [0, 1, 50] {
                let from = &bytes[start..start + len];
                let mut to = vec![u16::MAX; len + 3];
                map_bytes(from, &mut to[..len], |byte| u16::from(byte) + 1000);
                let expected = from.iter().map(|&byte| u16::from(byte) + 1000);
                assert!(to.iter().copied().eq(expected.chain([u16::MAX; 3])), "{len}");
                let mut all = LeastAndMost::NONE;
                all.take_all(from);
                assert_eq!(all.least, from.iter().copied().min().unwrap_or(u8::MAX), "{len}");
                assert_eq!(all.most, from.iter().copied().max().unwrap_or(0), "{len}");
            }
        }
    }
}
