//! Dense values, tile by tile: reading, and what packed values are worth.
//!
//! A [`DenseSource`] is a matrix of a checkpoint as a product sees it, (out, in), however it is
//! stored:
//!
//! ```text
//! F32, F16, BF16           as they are
//! F8_E4M3 with scales      e4m3 * scale, one f32 product; a scale for each block of config.json's
//!                          `weight_block_size` (or 128 x 128), for each row, or for the tensor
//! blocks of a GGUF file    as ggml decodes them, to f32
//! [E, out, in]             one of E matrices
//! [in, out], [E, in, out]  transposed: read in strips of the tile's rows, never as a whole
//! ```
//!
//! Worked example: the tile of rows 2 and 3 of a (4, 3) matrix stored as [3, 4] is three strips of
//! two values, 2 and 3 of each stored row.
//!
//! The SIMD backend dequantizes where it is compiled in, the reference elsewhere; the bits are the
//! same.

use std::collections::BTreeMap;
use std::ops::Range;

use fp4_core::{Buffer, E4m3, E8m0, FloatType, FloatVec, PackedView, Transform, with_floats};
use safetensors::Dtype;

use crate::checkpoint::gguf::{self, GgmlType};
use crate::checkpoint::tiles::{Tile, tiles};
use crate::checkpoint::{Checkpoint, Tensor, byte_len};
use crate::error::{Error, Reason};
use crate::layer::state;
use crate::model::stream::{Memory, Progress, Sink};

/// Ends of the names of FP8 scales, put in place of `.weight` or after a name without it.
const SCALES: [&str; 4] = ["weight_scale_inv", "weight_scale", "scale", "scale_weight"];

/// A matrix of dense values in a checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct DenseSource {
    tensor: Tensor,
    stored: Stored,
    /// Matrices in the tensor, and which of them this is.
    matrices: usize,
    matrix: usize,
    /// As the product sees it.
    rows: usize,
    k: usize,
    /// Stored as (k, rows).
    transposed: bool,
}

/// Where the values of a tensor in blocks of ggml's are; `None` for others.
pub(crate) fn encoded(input: &Checkpoint, name: &str) -> Option<Result<DenseSource, Reason>> {
    let tensor = input.tensors().get(name)?;
    tensor.ggml.filter(|ty| ty.dtype().is_none())?;
    // Of FP8 the block, which there is none of in GGUF.
    Some(DenseSource::find(input.tensors(), name, [1, 1]))
}

/// What the bytes of a tensor are.
#[derive(Debug, Clone)]
enum Stored {
    Float(FloatType),
    Fp8(Box<Scales>),
    /// Blocks of a GGUF file; rows are whole blocks.
    Blocks(GgmlType),
}

/// The scales of an FP8 tensor.
#[derive(Debug, Clone)]
struct Scales {
    name: String,
    tensor: Tensor,
    /// Scales of one matrix.
    rows: usize,
    cols: usize,
    /// Rows and columns of values that share a scale.
    block: [usize; 2],
    /// One scale for all matrices.
    shared: bool,
}

impl DenseSource {
    /// The first matrix of a tensor, as it is stored: the last two dimensions, or one row of a
    /// vector. `fp8_block` is the block of block FP8.
    ///
    /// # Errors
    /// A type that has no values, FP8 without scales, or with scales of another shape.
    pub(crate) fn find(
        tensors: &BTreeMap<String, Tensor>,
        name: &str,
        fp8_block: [usize; 2],
    ) -> Result<Self, Reason> {
        let missing = || Reason::Unloadable(format!("there is no tensor `{name}`"));
        let tensor = tensors.get(name).ok_or_else(missing)?;
        let shape = tensor.shape();
        let (rows, k, lead) = match &shape[..] {
            [] => (1, 1, &[][..]),
            [k] => (1, *k, &[][..]),
            [lead @ .., rows, k] => (*rows, *k, lead),
        };
        let blocks = tensor.ggml.filter(|ty| ty.dtype().is_none());
        let stored = match (state::float_type(tensor.info.dtype), blocks) {
            (_, Some(ty)) => {
                gguf::dequantize(ty, &[], &mut []).map_err(|_| Reason::Blocks(ty))?;
                Stored::Blocks(ty)
            }
            (Some(float_type), _) => Stored::Float(float_type),
            (None, _) if tensor.info.dtype == Dtype::F8_E4M3 => {
                Stored::Fp8(Box::new(Scales::find(tensors, name, lead, [rows, k], fp8_block)?))
            }
            (None, _) => return Err(Reason::Type(tensor.info.dtype)),
        };
        // The file holds the tensor, so its dimensions multiply; where one is 0, others may not.
        let matrices = lead.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim)).unwrap_or(0);
        let tensor = tensor.clone();
        Ok(DenseSource { tensor, stored, matrices, matrix: 0, rows, k, transposed: false })
    }

    /// Another of the tensor's matrices.
    pub(crate) fn matrix(mut self, index: usize) -> Self {
        self.matrix = index;
        self
    }

    /// The transposed matrix.
    pub(crate) fn transposed(mut self) -> Self {
        (self.rows, self.k) = (self.k, self.rows);
        self.transposed = !self.transposed;
        self
    }

    /// Number of matrices in the tensor.
    pub(crate) fn matrices(&self) -> usize {
        self.matrices
    }

    /// Number of rows, out features.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns, in features.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// True if the tensor holds (in, out).
    pub(crate) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// True if the bytes in the file are not the values.
    pub(crate) fn is_encoded(&self) -> bool {
        !matches!(self.stored, Stored::Float(_))
    }

    /// The type of the values that are read.
    pub(crate) fn float_type(&self) -> FloatType {
        match &self.stored {
            Stored::Float(float_type) => *float_type,
            Stored::Fp8(_) | Stored::Blocks(_) => FloatType::F32,
        }
    }

    /// Bytes of this matrix in the file.
    pub(crate) fn byte_len(&self) -> usize {
        byte_len(&self.tensor.info) / self.matrices.max(1)
    }

    /// Bytes of its values.
    pub(crate) fn value_len(&self) -> usize {
        self.rows * self.k * self.float_type().bytes()
    }

    /// Bytes of a tile in the file.
    pub(crate) fn stored_len(&self, tile: &Tile) -> u64 {
        let bytes = match self.stored {
            Stored::Blocks(ty) => tile.len() / ty.block_len() * ty.block_bytes(),
            _ => tile.len() * self.tensor.info.dtype.bitsize() / 8,
        };
        bytes as u64
    }

    /// The tensor of scales that has its meaning with this one alone.
    pub(crate) fn scales(&self) -> Option<&str> {
        match &self.stored {
            Stored::Float(_) | Stored::Blocks(_) => None,
            Stored::Fp8(scales) => Some(&scales.name),
        }
    }

    /// Reads a tile.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub(crate) fn read(&self, from: &Checkpoint, tile: &Tile) -> Result<FloatVec, Error> {
        let mut values = FloatVec::zeros(self.float_type(), 0);
        if !self.transposed {
            let decoder = Decoder::new(self, from, tile.row..tile.row + tile.rows)?;
            values.append_le_bytes(&self.stored(from, &decoder, *tile)?);
            return Ok(values);
        }
        let decoder = Decoder::new(self, from, tile.col..tile.col + tile.cols)?;
        let size = self.float_type().bytes();
        let mut bytes = vec![0; tile.len() * size];
        // Whole stored rows are read together, parts of them one after the other.
        let together = if tile.rows == self.rows { tile.cols } else { 1 };
        for first in (0..tile.cols).step_by(together) {
            let (row, start) = (tile.col + first, (tile.col + first) * self.rows + tile.row);
            let rows = together.min(tile.cols - first);
            let strip = Tile { row, rows, col: tile.row, cols: tile.rows, start };
            let strip = self.stored(from, &decoder, strip)?;
            for (k, stored_row) in strip.chunks_exact(tile.rows * size).enumerate() {
                for (row, value) in stored_row.chunks_exact(size).enumerate() {
                    let at = (row * tile.cols + first + k) * size;
                    bytes[at..at + size].copy_from_slice(value);
                }
            }
        }
        values.append_le_bytes(&bytes);
        Ok(values)
    }

    /// The values of a tile of the matrix as it is stored, as bytes.
    fn stored(
        &self,
        from: &Checkpoint,
        decoder: &Decoder<'_>,
        tile: Tile,
    ) -> Result<Vec<u8>, Error> {
        let start = self.matrix * self.rows * self.k + tile.start;
        if let Stored::Blocks(ty) = self.stored {
            return self.blocks(from, ty, start..start + tile.len());
        }
        let size = self.tensor.info.dtype.bitsize() / 8;
        let bytes = from.read(&self.tensor, start * size..(start + tile.len()) * size)?;
        Ok(decoder.values(bytes, &tile))
    }
}

impl DenseSource {
    /// The values of a range of elements, which may begin and end inside blocks.
    fn blocks(
        &self,
        from: &Checkpoint,
        ty: GgmlType,
        elements: Range<usize>,
    ) -> Result<Vec<u8>, Error> {
        let (len, size) = (ty.block_len(), ty.block_bytes());
        let blocks = elements.start / len..elements.end.div_ceil(len);
        let bytes = from.read(&self.tensor, blocks.start * size..blocks.end * size)?;
        let mut values = vec![0f32; blocks.len() * len];
        gguf::dequantize(ty, &bytes, &mut values)
            .map_err(|error| Error::checkpoint(from.path(), error.into()))?;
        let first = elements.start - blocks.start * len;
        let values = values.iter().skip(first).take(elements.len());
        Ok(values.flat_map(|value| value.to_le_bytes()).collect())
    }
}

impl DenseSource {
    /// Writes all matrices of the tensor in a type, from `at` of an output file on.
    ///
    /// # Errors
    /// As [`Checkpoint::read`] and [`Sink::write`].
    pub(crate) fn write(
        &self,
        from: &Checkpoint,
        float_type: FloatType,
        memory: Memory,
        (sink, mut at): (&Sink<'_>, u64),
        progress: &Progress<'_>,
    ) -> Result<(), Error> {
        for matrix in 0..self.matrices() {
            let source = self.clone().matrix(matrix);
            for tile in tiles(source.rows(), source.k(), 4, memory.tile_bytes()) {
                let out = source.read(from, &tile)?.converted(float_type).to_le_bytes();
                sink.write(at, &out)?;
                at += out.len() as u64;
                progress.bytes(source.stored_len(&tile));
            }
        }
        Ok(())
    }
}

impl Scales {
    /// The scales beside a tensor of matrices.
    fn find(
        tensors: &BTreeMap<String, Tensor>,
        name: &str,
        lead: &[usize],
        [rows, k]: [usize; 2],
        block: [usize; 2],
    ) -> Result<Self, Reason> {
        let found = SCALES.iter().find_map(|end| {
            let name = match name.strip_suffix("weight") {
                Some(prefix) => format!("{prefix}{end}"),
                None => format!("{name}_{}", end.strip_prefix("weight_").unwrap_or(end)),
            };
            Some((name.clone(), tensors.get(&name)?.clone()))
        });
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
        Ok(Scales { name, tensor, rows, cols, block, shared })
    }
}

/// Makes values of stored bytes.
enum Decoder<'a> {
    Float,
    Fp8 {
        scales: &'a Scales,
        /// The first row of scales that is here.
        first: usize,
        values: Vec<f32>,
        /// What each byte is worth before scaling.
        table: Box<[f32; 256]>,
    },
}

impl<'a> Decoder<'a> {
    /// What it takes to decode these stored rows.
    fn new(source: &'a DenseSource, from: &Checkpoint, rows: Range<usize>) -> Result<Self, Error> {
        let Stored::Fp8(scales) = &source.stored else { return Ok(Decoder::Float) };
        let first = rows.start / scales.block[0];
        let last = rows.end.saturating_sub(1).max(rows.start) / scales.block[0];
        let matrix = if scales.shared { 0 } else { source.matrix * scales.rows };
        let size = scales.tensor.info.dtype.bitsize() / 8;
        let [start, end] = [first, last + 1].map(|row| (matrix + row) * scales.cols * size);
        let bytes = from.read(&scales.tensor, start..end)?;
        let values = match state::float_type(scales.tensor.info.dtype) {
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
        Ok(Decoder::Fp8 { scales, first, values, table })
    }

    fn values(&self, bytes: Vec<u8>, tile: &Tile) -> Vec<u8> {
        let Decoder::Fp8 { scales, first, values, table } = self else { return bytes };
        let [block_rows, block_cols] = scales.block;
        let mut out = Vec::with_capacity(4 * bytes.len());
        for (row, codes) in (tile.row..).zip(bytes.chunks_exact(tile.cols.max(1))) {
            let of_row = (row / block_rows - first) * scales.cols;
            for (col, code) in (tile.col..).zip(codes) {
                let value = table[usize::from(*code)] * values[of_row + col / block_cols];
                out.extend(value.to_le_bytes());
            }
        }
        out
    }
}

/// Reads a tile of a dense tensor.
///
/// # Errors
/// As [`Checkpoint::read`].
pub(super) fn read(
    from: &Checkpoint,
    tensor: &Tensor,
    float_type: FloatType,
    tile: &Tile,
) -> Result<FloatVec, Error> {
    let (size, mut values) = (float_type.bytes(), FloatVec::zeros(float_type, 0));
    let bytes = from.read(tensor, tile.start * size..(tile.start + tile.len()) * size)?;
    values.append_le_bytes(&bytes);
    Ok(values)
}

/// The part of a transform that acts on a tile's columns.
///
/// # Errors
/// A transform per block that has no block for the tile.
pub(super) fn columns<'a>(transform: &Transform<'a>, tile: &Tile) -> Result<Transform<'a>, Error> {
    let (block, Some(_)) = (transform.block(), transform.shape().blocks) else {
        return Ok(*transform);
    };
    let (start, blocks) = (transform.offset(tile.col / block), tile.cols / block);
    let values = start..start + blocks * block * block;
    Ok(with_floats!(FloatSlice, transform.values(), v => {
        let (expected, got) = (values.end, v.len());
        let short = fp4_core::Error::Len { what: Buffer::Transform, expected, got };
        let values = v.get(values).ok_or(short)?;
        Transform::per_block(values, block, blocks)?
    }))
}

/// What the packed values are worth, in f32 (C4.4).
///
/// # Errors
/// A global scale that is not legal.
pub(super) fn dequantized(packed: PackedView<'_>, global_scale: f32) -> Result<Vec<f32>, Error> {
    let shape = packed.shape();
    let mut out = vec![0f32; shape.rows() * shape.k()];
    #[cfg(feature = "cpu-simd")]
    fp4_backend_cpu_simd::CpuSimd::new().dequantize(packed, global_scale, (&mut out[..]).into())?;
    #[cfg(not(feature = "cpu-simd"))]
    fp4_core::reference::dequantize(packed, global_scale, (&mut out[..]).into())?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::TensorSource;
    use crate::checkpoint::tiles::tiles;
    use fp4_core::{TransformShape, reference};

    fn vector(name: &str) -> Checkpoint {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
        Checkpoint::open(&folder.join(name)).unwrap()
    }

    /// All values of a matrix, read in tiles of so many bytes.
    fn values(source: &DenseSource, from: &Checkpoint, bytes: usize) -> Vec<f32> {
        let size = source.float_type().bytes();
        let tiles = tiles(source.rows(), source.k(), size, bytes);
        let tiles = tiles.flat_map(|tile| {
            let values = source.read(from, &tile).unwrap();
            with_floats!(FloatSlice, values.as_slice(), v => {
                v.iter().map(|x| fp4_core::Float::to_f32(*x)).collect::<Vec<_>>()
            })
        });
        tiles.collect()
    }

    fn f32s(from: &Checkpoint, name: &str) -> Vec<f32> {
        let bytes = from.bytes(name).unwrap();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn block_fp8_is_worth_what_its_library_says() {
        let (from, reference) =
            (vector("h_deepseek_v4.safetensors"), vector("h_deepseek_v4_ref.safetensors"));
        let mut compared = 0;
        for name in from.tensors().keys() {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            let expected = format!("{module}.dequant_f32");
            let fp8 = from.tensors()[name].info.dtype == Dtype::F8_E4M3;
            if !fp8 || !reference.tensors().contains_key(&expected) {
                continue;
            }
            let source = DenseSource::find(from.tensors(), name, [128, 128]).unwrap();
            let expected = f32s(&reference, &expected);
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            for bytes in [1, 4 * source.k() * 3, 1 << 20] {
                assert_eq!(bits(&values(&source, &from, bytes)), bits(&expected), "{name}");
            }
            compared += 1;
        }
        assert!(compared > 0);
    }

    #[test]
    fn a_transposed_matrix_is_read_in_tiles_of_any_size() {
        let from = vector("h_moe3d_bf16_gptoss.safetensors");
        let name = "model.layers.0.mlp.experts.down_proj";
        let stored = DenseSource::find(from.tensors(), name, [128, 128]).unwrap();
        assert_eq!((stored.matrices(), stored.rows(), stored.k()), (2, 32, 64));
        for expert in 0..2 {
            let stored = stored.clone().matrix(expert);
            let plain = values(&stored, &from, 1 << 20);
            let source = stored.transposed();
            assert_eq!((source.rows(), source.k()), (64, 32));
            let expected = (0..64 * 32).map(|i| plain[i % 32 * 64 + i / 32]);
            let expected: Vec<_> = expected.collect();
            for bytes in [1, 2 * 32 * 5, 1 << 20] {
                assert_eq!(values(&source, &from, bytes), expected, "{expert} {bytes}");
            }
        }
    }

    #[test]
    fn a_tile_takes_its_part_of_a_transform() {
        let (rows, cols) = (700, 256);
        let x: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
        let t: Vec<f32> = (0..16 * 16 * 16).map(|i| (i as f32 * 0.11).cos()).collect();
        let t = Transform::per_block(&t[..], 16, 16).unwrap();
        let mut whole = vec![0f32; x.len()];
        reference::apply_transform((&x[..]).into(), cols, &t, (&mut whole[..]).into()).unwrap();
        // The second half of the first row, with the second half of the transform.
        let tile = Tile { row: 0, rows: 1, col: 128, cols: 128, start: 128 };
        let part = columns(&t, &tile).unwrap();
        assert!(matches!(part.shape(), TransformShape { blocks: Some(8), .. }));
        let y = crate::transform::transformed(x[128..256].into(), 128, &part).unwrap();
        assert_eq!(y, FloatVec::F32(whole[128..256].to_vec()));
    }
}
