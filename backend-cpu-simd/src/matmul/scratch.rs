//! Tiles that a call leaves for the next ones, so that it need not allocate.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fp4_core::{Error, Format, PackedView};

use super::{Kernels, RowTiles};
use crate::threads::TaskThreads;

/// Most bytes that are kept: the tiles of some thousand rows.
const KEPT_BYTES: usize = 64 << 20;

/// Tiles for the next calls, shared by clones. The lock is held to push or pop, and for nothing
/// else: what is dropped is dropped outside of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct TileScratch(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// Each with its bytes.
    tiles: Vec<(RowTiles, usize)>,
    bytes: usize,
}

impl TileScratch {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tiles of an earlier call, or none.
    pub(crate) fn take(&self) -> RowTiles {
        let mut kept = self.kept();
        let Some((tiles, bytes)) = kept.tiles.pop() else { return RowTiles::default() };
        kept.bytes -= bytes;
        tiles
    }

    /// Keeps tiles for a later call, if there is room.
    pub(crate) fn give(&self, tiles: RowTiles) {
        let bytes = tiles.allocated_bytes();
        let mut kept = self.kept();
        if kept.bytes + bytes <= KEPT_BYTES {
            kept.bytes += bytes;
            kept.tiles.push((tiles, bytes));
        } else {
            drop(kept);
        }
    }

    /// Frees what is kept.
    pub(crate) fn release(&self) {
        let kept = std::mem::take(&mut *self.kept());
        drop(kept);
    }

    /// Bytes kept.
    pub(crate) fn bytes(&self) -> usize {
        self.kept().bytes
    }
}

/// Tiles that several products of one call use, one after the other or at once: an A that is in
/// them is not packed again.
pub(crate) struct ReusedTiles<'a> {
    tiles: RowTiles,
    /// What was packed into them last.
    of: Option<PackedView<'a>>,
}

impl<'a> ReusedTiles<'a> {
    /// Tiles whose contents are of no use.
    pub(crate) fn of(tiles: RowTiles) -> Self {
        ReusedTiles { tiles, of: None }
    }

    pub(crate) fn tiles(&self) -> &RowTiles {
        &self.tiles
    }

    pub(crate) fn into_tiles(self) -> RowTiles {
        self.tiles
    }

    /// Packs `a` for a weight in format `b`, unless that is what the tiles hold.
    pub(super) fn pack<K: Kernels>(
        &mut self,
        kernels: K,
        threads: &TaskThreads,
        a: PackedView<'a>,
        b: Format,
    ) -> Result<(), Error> {
        let same = self.of.as_ref().is_some_and(|of| is_same(of, &a));
        if same && self.tiles.hold(K::ISA, a.shape(), b) {
            return Ok(());
        }
        self.of = None;
        super::pack(kernels, threads, a, b, &mut self.tiles)?;
        self.of = Some(a);
        Ok(())
    }
}

/// True if two views are of the same bytes: of one place in memory.
pub(crate) fn is_same(a: &PackedView<'_>, b: &PackedView<'_>) -> bool {
    let place = |v: &PackedView<'_>| (v.codes().as_ptr_range(), v.scales().as_ptr_range());
    a.shape() == b.shape() && place(a) == place(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_the_bound_and_a_release_frees_it() {
        let scratch = TileScratch::default();
        let one = RowTiles::of_tiles(40_000).allocated_bytes();
        assert!(one > 1 << 20 && one < KEPT_BYTES / 2, "{one} bytes");
        for _ in 0..2 * KEPT_BYTES / one {
            scratch.give(RowTiles::of_tiles(40_000));
        }
        let kept = scratch.bytes();
        assert!(kept <= KEPT_BYTES && kept > KEPT_BYTES - one, "{kept} bytes kept");
        assert_eq!(scratch.take().allocated_bytes(), one);
        assert_eq!(scratch.bytes(), kept - one);
        scratch.clone().release();
        assert_eq!((scratch.bytes(), scratch.take().allocated_bytes()), (0, 0));
    }
}
