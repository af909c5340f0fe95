//! Which chunks two planes both have, if one of them is not the first, which has all.

use std::ops::Range;

use super::Step;

/// Calls `f` for each of the chunks `chunks` that plane `i` of a tile and plane `j` of a panel both
/// have, ascending; one of them is not 0. Planes 0 have all chunks, the others those listed:
/// `slots` of the tile, counted from the first chunk, and `of_b` of the panel.
#[inline(always)]
pub(super) fn for_each_meeting(
    i: usize,
    slots: &[u32],
    j: usize,
    of_b: &[u32],
    chunks: Range<u32>,
    mut f: impl FnMut(Step),
) {
    let before = of_b.partition_point(|&chunk| chunk < chunks.start);
    let inside = of_b[before..].iter().take_while(|&&chunk| chunk < chunks.end);
    let mut of_b = (before as u32..).zip(inside);
    if j == 0 {
        for (a_slot, &a) in (0..).zip(slots) {
            f(Step { a, a_slot, b: chunks.start + a, b_slot: chunks.start + a });
        }
    } else if i == 0 {
        for (b_slot, &b) in of_b {
            f(Step { a: b - chunks.start, a_slot: b - chunks.start, b, b_slot });
        }
    } else {
        let mut of_a = (0..).zip(slots);
        let (mut next_a, mut next_b) = (of_a.next(), of_b.next());
        while let (Some((a_slot, &a)), Some((b_slot, &b))) = (next_a, next_b) {
            let in_b = chunks.start + a;
            if in_b == b {
                f(Step { a, a_slot, b, b_slot });
            }
            if in_b <= b {
                next_a = of_a.next();
            }
            if in_b >= b {
                next_b = of_b.next();
            }
        }
    }
}
