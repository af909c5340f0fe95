//! Are scales in the order that the layout says? Swizzled bytes in a row-major slot have a legal
//! type, shape and value each.
//!
//! Rows of a real weight differ in size, and so do groups of columns, so the logarithms of scales,
//! in their true order, are partly explained by their row and their column:
//!
//! ```text
//! explained = (variance of row means + variance of column means) / variance of all
//! ```
//!
//! Bytes in a false order lose most of that. So both orders are tried on the stored bytes; the
//! other one is reported if it explains clearly more. A matrix whose rows and columns are all alike
//! (pure noise, or a rotated weight) shows nothing, and nothing is said of it.
//!
//! Scales are read band by band, and of a band no more columns than fit a tile: a matrix of a few
//! rows may be wider than memory, and its first columns show as much.

use fp4_core::Swizzle;

use crate::checkpoint::TensorSource;
use crate::checkpoint::tiles::DEFAULT_BLOCK_BYTES;
use crate::error::Error;
use crate::layout::{Layer, Place, ScaleOrder};
use crate::model::verify::Finding;

/// By so many standard deviations of noise the other order must explain more.
const SIGMAS: f64 = 12.0;

/// Rows of a band: what is swizzled among itself.
const BAND: usize = 128;

/// So many columns of a band are looked at: a whole number of tiles.
const MOST_COLUMNS: usize = DEFAULT_BLOCK_BYTES / BAND;

/// Sums that give what rows and columns explain, band by band.
struct Explained {
    cols: Vec<f64>,
    rows: f64,
    squares: f64,
    sum: f64,
    count: usize,
}

impl Explained {
    fn new(cols: usize) -> Self {
        Explained { cols: vec![0.0; cols], rows: 0.0, squares: 0.0, sum: 0.0, count: 0 }
    }

    fn row(&mut self, scales: impl Iterator<Item = u8>) {
        let mut sum = 0.0;
        for (col, scale) in self.cols.iter_mut().zip(scales) {
            // Both types are logarithms, nearly: e4m3 in eighths of an octave.
            let x = f64::from(scale & 0x7F);
            *col += x;
            sum += x;
            self.squares += x * x;
        }
        self.rows += sum * sum / self.cols.len() as f64;
        self.sum += sum;
        self.count += self.cols.len();
    }

    /// The explained share, and what noise alone explains, with its deviation.
    fn share(&self) -> (f64, f64, f64) {
        let (n, cols) = (self.count as f64, self.cols.len() as f64);
        let (rows, correction) = (n / cols, self.sum * self.sum / n);
        let total = self.squares - correction;
        let of_cols = self.cols.iter().map(|sum| sum * sum / rows).sum::<f64>() - correction;
        let free = rows + cols - 2.0;
        let share = (self.rows - correction + of_cols) / total.max(f64::MIN_POSITIVE);
        (share, free / n, (2.0 * free).sqrt() / n)
    }
}

/// A finding if the other order explains the scales better.
///
/// # Errors
/// As [`TensorSource::range`].
pub(super) fn check(source: &dyn TensorSource, layer: &Layer) -> Result<Option<Finding>, Error> {
    check_columns(source, layer, MOST_COLUMNS)
}

/// As [`check`], by at most so many columns, a whole number of tiles.
fn check_columns(
    source: &dyn TensorSource,
    layer: &Layer,
    most: usize,
) -> Result<Option<Finding>, Error> {
    let Place::Apart { scales, order, .. } = &layer.place else { return Ok(None) };
    let (rows, groups) = (layer.shape.rows(), layer.shape.row_groups());
    let whole = rows.is_multiple_of(BAND) && groups.is_multiple_of(4);
    if !whole || rows == 0 || groups == 0 || layer.experts.is_some() || layer.transform.is_some() {
        return Ok(None);
    }
    let cols = groups.min(most);
    let swizzle = Swizzle::new(BAND, cols)?;
    let mut as_rows = Explained::new(cols);
    let mut as_swizzled = Explained::new(cols);
    for band in (0..rows).step_by(BAND) {
        // Tiles of four columns follow each other, so the first ones begin the band.
        let start = band * groups;
        let bytes = source.range(scales, start..start + BAND * cols)?;
        for row in 0..BAND {
            let at = (0..cols).filter_map(|col| swizzle.offset(row, col));
            as_swizzled.row(at.map(|at| bytes[at]));
            if cols == groups {
                as_rows.row(bytes[row * groups..][..groups].iter().copied());
            } else {
                let start = start + row * groups;
                as_rows.row(source.range(scales, start..start + cols)?.iter().copied());
            }
        }
    }
    let (stored, other, kind, is, should) = match order {
        ScaleOrder::Rows => (
            as_rows.share(),
            as_swizzled.share(),
            "suspect-swizzled-scales",
            "row-major",
            "swizzled in tiles of 128 x 4",
        ),
        ScaleOrder::Swizzled => (
            as_swizzled.share(),
            as_rows.share(),
            "suspect-row-major-scales",
            "swizzled",
            "row-major",
        ),
    };
    let ((stored, noise, deviation), (other, ..)) = (stored, other);
    let clear = other - stored > SIGMAS * deviation;
    if !clear || other - noise < 1.5 * (stored - noise) {
        return Ok(None);
    }
    let message = format!(
        "the scales are read as {is}, where rows and columns explain {:.1}% of their variance \
         (noise: {:.1}%); read as {should} they explain {:.1}%, {:.0} standard deviations more: \
         strong evidence that they are {should}; reorder them, or name the layout that has them so",
        100.0 * stored,
        100.0 * noise,
        100.0 * other,
        (other - stored) / deviation
    );
    Ok(Some(Finding::warning(kind, &layer.module, message)))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::cell::Cell;
    use std::ops::Range;

    use safetensors::Dtype;

    use super::*;
    use crate::layout::{At, LoadOptions, named};

    const ROWS: usize = 256;
    const GROUPS: usize = 64;

    /// A layer of zeros whose scales are these; the longest range that is asked for.
    struct Wide(Vec<u8>, Cell<usize>);

    impl TensorSource for Wide {
        fn header(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
            match name {
                "m.weight_packed" => Some((Dtype::U8, vec![ROWS, GROUPS * 8])),
                "m.weight_scale" => Some((Dtype::F8_E4M3, vec![ROWS, GROUPS])),
                "m.weight_global_scale" => Some((Dtype::F32, vec![])),
                _ => None,
            }
        }

        fn bytes(&self, _name: &str) -> Result<Cow<'_, [u8]>, Error> {
            Ok(Cow::Owned(1f32.to_le_bytes().into()))
        }

        fn range(&self, _name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Error> {
            self.1.set(self.1.get().max(range.len()));
            Ok(Cow::Borrowed(&self.0[range]))
        }
    }

    #[test]
    fn some_columns_of_a_wide_matrix_show_the_order_of_all() {
        let scale = |row: usize, col: usize| (0x20 + row * 7 % 23 + col * 5 % 29) as u8;
        let rows: Vec<u8> = (0..ROWS * GROUPS).map(|i| scale(i / GROUPS, i % GROUPS)).collect();
        let swizzle = Swizzle::new(ROWS, GROUPS).unwrap();
        let mut swizzled = vec![0; swizzle.len()];
        swizzle.swizzle(&rows, &mut swizzled).unwrap();
        for most in [16, GROUPS] {
            for (scales, found) in [(&rows, false), (&swizzled, true)] {
                let source = Wide(scales.clone(), Cell::new(0));
                let at = At { source: &source, module: "m" };
                let layer = named("ct").unwrap().layer(&at, &LoadOptions::default()).unwrap();
                let finding = check_columns(&source, &layer, most).unwrap();
                assert_eq!(finding.is_some(), found, "{most} columns: {finding:?}");
                assert_eq!(source.1.get(), BAND * most, "no more than a band of them is read");
            }
        }
    }
}
