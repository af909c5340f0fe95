//! What FP8 is worth: scales found beside a tensor, and read for the part of it that is decoded.
//!
//! ```text
//! one for all, or for each matrix      (), (1), (E), (E, 1, 1)
//! one for each row                     (rows), (rows, 1)
//! one for each block                   (ceil(rows / b0), ceil(k / b1))
//! ```
//!
//! Worked example: with blocks of 128 x 128, columns 128 to 383 of row 130 take scales 1 and 2 of
//! the second row of scales, and only those two are read.

use std::collections::BTreeMap;
use std::ops::Range;

use fp4_core::{E4m3, E8m0, FloatVec, with_floats};
use safetensors::Dtype;

use crate::checkpoint::tiles::Tile;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::{Error, Reason};
use crate::layer::state;

/// Ends of the names of FP8 scales, put in place of `.weight` or after a name without it.
const SCALES: [&str; 4] = ["weight_scale_inv", "weight_scale", "scale", "scale_weight"];

/// Ends of the names of what else belongs to the FP8 bytes of a weight alone: scales of its other
/// software, and those of FP8 activations. A bare `scale` that was not used may be anything.
const COMPANIONS: [&str; 6] = [
    "weight_scale_inv",
    "weight_scale",
    "scale_weight",
    "input_scale",
    "scale_input",
    "activation_scale",
];

/// The scales of an FP8 tensor.
#[derive(Debug, Clone)]
pub(super) struct Scales {
    tensor: Tensor,
    /// Names of the tensors that mean nothing without the weight's bytes; the scales themselves
    /// first.
    pub(super) companions: Vec<String>,
    /// Scales of one matrix.
    rows: usize,
    cols: usize,
    /// Rows and columns of values that share a scale.
    block: [usize; 2],
    /// One scale for all matrices.
    shared: bool,
}

/// The name of a tensor beside another.
fn beside(name: &str, end: &str) -> String {
    match name.strip_suffix("weight") {
        Some(prefix) => format!("{prefix}{end}"),
        None => format!("{name}_{}", end.strip_prefix("weight_").unwrap_or(end)),
    }
}

impl Scales {
    /// The scales beside a tensor of matrices.
    pub(super) fn find(
        tensors: &BTreeMap<String, Tensor>,
        name: &str,
        lead: &[usize],
        [rows, k]: [usize; 2],
        block: [usize; 2],
    ) -> Result<Self, Reason> {
        let found = SCALES.iter().find_map(|end| {
            let name = beside(name, end);
            Some((name.clone(), tensors.get(&name)?.clone()))
        });
        let weight = name;
        let (name, tensor) = found.ok_or(Reason::NoScales)?;
        let known = state::float_type(tensor.info.dtype).is_some();
        if !known && tensor.info.dtype != Dtype::F8_E8M0 {
            return Err(Reason::ScalesType { name, got: tensor.info.dtype });
        }
        let shape = &tensor.info.shape[..];
        let one = shape.strip_prefix(lead).filter(|_| shape.len() >= lead.len());
        let blocks = [rows.div_ceil(block[0]), k.div_ceil(block[1])];
        let whole = |shape: &[usize]| shape.iter().all(|dim| *dim == 1);
        let (shared, [rows, cols], block) = match one {
            _ if whole(shape) => (true, [1, 1], [usize::MAX; 2]),
            Some(one) if whole(one) => (false, [1, 1], [usize::MAX; 2]),
            Some([n] | [n, 1]) if *n == rows => (false, [rows, 1], [1, usize::MAX]),
            Some(one) if *one == blocks => (false, blocks, block),
            _ => {
                let got = shape.to_vec();
                let expected = format!(
                    "one for all, one for each of {rows} rows, or {blocks:?}, one for each block \
                    of {block:?}"
                );
                return Err(Reason::ScalesShape { name, got, expected });
            }
        };
        let others = COMPANIONS.iter().map(|end| beside(weight, end));
        let others = others.filter(|other| *other != name && tensors.contains_key(other));
        let companions = [name.clone()].into_iter().chain(others).collect();
        Ok(Scales { tensor, companions, rows, cols, block, shared })
    }

    /// Bytes that the scales of so many rows and columns of values take in memory, at most: as they
    /// are stored, and as f32.
    pub(super) fn bytes_of(&self, rows: usize, cols: usize) -> u64 {
        // Those at both ends may be of blocks that begin before and end after.
        let of = |len: usize, block: usize, most: usize| (len.div_ceil(block) + 1).min(most);
        let scales = [of(rows, self.block[0], self.rows), of(cols, self.block[1], self.cols)];
        let [rows, cols] = scales.map(|n| n as u64);
        rows.saturating_mul(cols).saturating_mul(2 * size_of::<f32>() as u64)
    }

    /// Reads the scales of these rows and columns of a matrix as it is stored, and no others.
    pub(super) fn read(
        &self,
        from: &Checkpoint,
        matrix: usize,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Result<Decoder<'_>, Error> {
        let blocks = |range: Range<usize>, block: usize| {
            let last = range.end.saturating_sub(1).max(range.start);
            range.start / block..last / block + 1
        };
        let (rows, cols) = (blocks(rows, self.block[0]), blocks(cols, self.block[1]));
        let first = if self.shared { 0 } else { matrix * self.rows };
        let dtype = self.tensor.info.dtype;
        // Rows of which all is wanted are read together.
        let together = if cols.len() == self.cols { rows.len() } else { 1 };
        let mut bytes = vec![];
        for row in rows.clone().step_by(together) {
            let start = (first + row) * self.cols + cols.start;
            let end = start + (together - 1) * self.cols + cols.len();
            let size = dtype.bitsize() / 8;
            bytes.extend(from.read(&self.tensor, start * size..end * size)?);
        }
        let values = match state::float_type(dtype) {
            None => bytes.iter().map(|b| E8m0::from_bits(*b).to_f32()).collect(),
            Some(float_type) => {
                let mut values = FloatVec::zeros(float_type, 0);
                values.append_le_bytes(&bytes);
                with_floats!(FloatSlice, values.as_slice(), v => {
                    v.iter().map(|x| fp4_core::Float::to_f32(*x)).collect()
                })
            }
        };
        let table = Box::new(std::array::from_fn(|byte| E4m3::from_bits(byte as u8).to_f32()));
        Ok(Decoder { scales: self, rows, cols, values, table })
    }
}

/// Makes values of stored bytes, of a part of a tensor.
pub(super) struct Decoder<'a> {
    scales: &'a Scales,
    /// The scales that are here.
    rows: Range<usize>,
    cols: Range<usize>,
    values: Vec<f32>,
    /// What each byte is worth before scaling.
    table: Box<[f32; 256]>,
}

impl Decoder<'_> {
    #[cfg(test)]
    pub(super) fn scales(&self) -> &[f32] {
        &self.values
    }

    /// The values of a tile of the matrix as it is stored, as bytes.
    pub(super) fn values(&self, bytes: &[u8], tile: &Tile) -> Vec<u8> {
        let [block_rows, block_cols] = self.scales.block;
        let mut out = Vec::with_capacity(4 * bytes.len());
        for (row, codes) in (tile.row..).zip(bytes.chunks_exact(tile.cols.max(1))) {
            let of_row = (row / block_rows - self.rows.start) * self.cols.len();
            for (col, code) in (tile.col..).zip(codes) {
                let scale = self.values[of_row + col / block_cols - self.cols.start];
                out.extend((self.table[usize::from(*code)] * scale).to_le_bytes());
            }
        }
        out
    }
}
