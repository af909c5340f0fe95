//! The dense values of a checkpoint's tensors in f32, by rows: what a program that runs a model
//! reads its embeddings, norms and dense weights with.
//!
//! ```text
//! F32, F16, BF16           widened exactly
//! F8_E4M3 with scales      e4m3 * scale, one f32 product
//! blocks of a GGUF file    as ggml decodes them
//! ```

use std::ops::Range;

use fp4_core::{Float, with_floats};

use super::dense::DenseSource;
use super::roles::fp8_block;
use crate::checkpoint::tiles::Tile;
use crate::checkpoint::{Checkpoint, TensorSource};
use crate::error::{Error, Reason};

/// Values that are read in one piece.
const PIECE: usize = 64 << 10;

/// A tensor that has dense values: of three dimensions or more, the rows of its matrices below
/// each other; of one, a single row.
#[derive(Debug, Clone)]
pub struct Values {
    name: String,
    source: DenseSource,
}

impl Values {
    /// The values of a tensor; nothing of them is read yet.
    ///
    /// # Errors
    /// [`Error::NoValues`]: no such tensor, or one of a type without values.
    pub fn find(from: &Checkpoint, name: &str) -> Result<Self, Error> {
        let block = fp8_block(from.config().model());
        let source = DenseSource::find(from.tensors(), name, block);
        let name = name.to_string();
        match source {
            Ok(source) => Ok(Values { name, source }),
            Err(reason) => Err(Error::NoValues { name, reason: Box::new(reason) }),
        }
    }

    /// The shape of the tensor, in elements.
    pub fn shape(&self) -> Vec<usize> {
        self.source.shape()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.source.matrices() * self.source.rows()
    }

    /// Elements of a row.
    pub fn row_len(&self) -> usize {
        self.source.k()
    }

    /// Some of the rows, row-major, `rows.len() * row_len()` values.
    ///
    /// # Errors
    /// [`Error::NoValues`] for rows that the tensor does not have; as [`Checkpoint::read`].
    pub fn read(&self, from: &Checkpoint, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        let (count, len) = (self.rows(), self.row_len());
        if rows.start > rows.end || rows.end > count {
            let reason = Reason::Unloadable(format!("rows {rows:?} are asked for, of {count}"));
            return Err(Error::NoValues { name: self.name.clone(), reason: Box::new(reason) });
        }
        let mut out = Vec::with_capacity(rows.len() * len);
        // In pieces: the bytes and what they are decoded to are no second and third copy of all.
        let (mut row, step) = (rows.start, (PIECE / len.max(1)).max(1));
        while row < rows.end && len > 0 {
            let rows = step.min(rows.end - row);
            let tile = Tile { row, rows, col: 0, cols: len, start: row * len };
            out.extend(self.read_tile(from, &tile)?);
            row += rows;
        }
        Ok(out)
    }

    /// A tile of the rows.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub(crate) fn read_tile(&self, from: &Checkpoint, tile: &Tile) -> Result<Vec<f32>, Error> {
        let values = self.source.read_stacked(from, tile)?;
        let mut out = Vec::with_capacity(tile.len());
        with_floats!(FloatSlice, values.as_slice(), v => {
            out.extend(v.iter().map(|x| Float::to_f32(*x)));
        });
        Ok(out)
    }

    /// All rows.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_all(&self, from: &Checkpoint) -> Result<Vec<f32>, Error> {
        self.read(from, 0..self.rows())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dense::tests::vector;

    #[test]
    fn block_fp8_by_rows_is_worth_what_its_library_says() {
        let (from, reference) =
            (vector("h_deepseek_v4.safetensors"), vector("h_deepseek_v4_ref.safetensors"));
        let mut compared = 0;
        for name in from.tensors().keys() {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            let expected = format!("{module}.dequant_f32");
            if from.tensors()[name].info.dtype != safetensors::Dtype::F8_E4M3
                || !reference.tensors().contains_key(&expected)
            {
                continue;
            }
            let expected =
                Values::find(&reference, &expected).unwrap().read_all(&reference).unwrap();
            let values = Values::find(&from, name).unwrap();
            assert_eq!(values.rows() * values.row_len(), expected.len());
            let mut got = values.read(&from, 0..3).unwrap();
            got.extend(values.read(&from, 3..3).unwrap());
            got.extend(values.read(&from, 3..values.rows()).unwrap());
            assert_eq!(got, expected, "{name}");
            compared += 1;
        }
        assert!(compared > 0);
    }

    #[test]
    fn rows_and_tensors_that_are_not_there_are_named() {
        let from = vector("h_deepseek_v4_ref.safetensors");
        let text = Values::find(&from, "no.such").unwrap_err().to_string();
        assert!(text.contains("`no.such`") && text.contains("there is no tensor"), "{text}");
        let name = from.tensors().keys().find(|n| n.ends_with("dequant_f32")).unwrap();
        let values = Values::find(&from, name).unwrap();
        let rows = values.rows();
        let text = values.read(&from, 1..rows + 1).unwrap_err().to_string();
        assert!(text.contains(&format!("of {rows}")), "{text}");
    }
}
