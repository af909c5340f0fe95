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
//! two values, 2 and 3 of each stored row. What is between two strips is read along where it is
//! shorter than a call is worth, so that small tiles do not become a call for every value.
//!
//! The SIMD backend dequantizes where it is compiled in, the reference elsewhere; the bits are the
//! same.

mod fp8;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use fp4_core::{Buffer, FloatType, FloatVec, PackedView, Transform, with_floats};
use safetensors::Dtype;

use crate::checkpoint::gguf::{self, GgmlType};
use crate::checkpoint::tiles::{Tile, tiles};
use crate::checkpoint::{Checkpoint, Tensor, byte_len};
use crate::error::{Error, Reason};
use crate::layer::state;
use crate::model::stream::{Memory, Progress, Sink};
use fp8::{Decoder, Scales};

/// Stored rows that are read together, at most, where a tile holds less: so many bytes.
const BAND: usize = 64 << 10;

/// Bytes between two strips that are rather read than skipped: a call of its own costs more.
const GAP: usize = 8 << 10;

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

/// Number of matrices, their rows and their columns.
fn dimensions(shape: &[usize]) -> (usize, usize, usize) {
    let (lead, rows, k) = match shape {
        [] => (&[][..], 1, 1),
        [k] => (&[][..], 1, *k),
        [lead @ .., rows, k] => (lead, *rows, *k),
    };
    // The file holds the tensor, so its dimensions multiply; where one is 0, others may not.
    (lead.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim)).unwrap_or(0), rows, k)
}

/// What the bytes of a tensor are.
#[derive(Debug, Clone)]
enum Stored {
    Float(FloatType),
    Fp8(Box<Scales>),
    /// Blocks of a GGUF file; rows are whole blocks.
    Blocks(GgmlType),
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
        let lead = &shape[..shape.len().saturating_sub(2)];
        let (matrices, rows, k) = dimensions(&shape);
        let blocks = tensor.ggml.filter(|ty| ty.dtype().is_none());
        let stored = match (state::float_type(tensor.info.dtype), blocks) {
            (_, Some(ty @ (GgmlType::MXFP4 | GgmlType::NVFP4))) => {
                return Err(Reason::Quantized(ty));
            }
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
        let tensor = tensor.clone();
        Ok(DenseSource { tensor, stored, matrices, matrix: 0, rows, k, transposed: false })
    }

    /// All of a tensor of plain values, as it is stored; `None` for another.
    pub(crate) fn plain(tensor: &Tensor) -> Option<Self> {
        let stored = Stored::Float(state::float_type(tensor.info.dtype)?);
        let (matrices, rows, k) = dimensions(&tensor.shape());
        let tensor = tensor.clone();
        Some(DenseSource { tensor, stored, matrices, matrix: 0, rows, k, transposed: false })
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

    /// The shape of the tensor, in elements.
    pub(crate) fn shape(&self) -> Vec<usize> {
        self.tensor.shape()
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

    /// The tensors beside it that have a meaning with its bytes alone: the scales of FP8, of the
    /// weight and of what it multiplies.
    pub(crate) fn companions(&self) -> &[String] {
        match &self.stored {
            Stored::Float(_) | Stored::Blocks(_) => &[],
            Stored::Fp8(scales) => &scales.companions,
        }
    }

    /// Bytes that the scales of a tile of so many bytes take in memory, at most.
    pub(crate) fn scales_len(&self, tile_bytes: usize) -> u64 {
        let Stored::Fp8(scales) = &self.stored else { return 0 };
        let elements = (tile_bytes / size_of::<f32>()).max(1);
        let (rows, k) = ((elements / self.k.max(1)).max(1), self.k.min(elements));
        let [rows, cols] = if self.transposed { [k, rows] } else { [rows, k] };
        scales.bytes_of(rows, cols)
    }

    /// Reads a tile.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub(crate) fn read(&self, from: &Checkpoint, tile: &Tile) -> Result<FloatVec, Error> {
        let mut values = FloatVec::zeros(self.float_type(), 0);
        values.append_le_bytes(&self.bytes(from, self.matrix, tile)?);
        Ok(values)
    }

    /// Reads a tile of all matrices together, the rows of each below those of the one before.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub(crate) fn read_stacked(&self, from: &Checkpoint, tile: &Tile) -> Result<FloatVec, Error> {
        let mut values = FloatVec::zeros(self.float_type(), 0);
        if !self.transposed && !matches!(self.stored, Stored::Fp8(_)) {
            // They lie in the file below each other.
            values.append_le_bytes(&self.bytes(from, 0, tile)?);
            return Ok(values);
        }
        let (mut row, end) = (tile.row, tile.row + tile.rows);
        while row < end {
            let (matrix, first) = (row / self.rows, row % self.rows);
            let rows = (self.rows - first).min(end - row);
            let part = Tile { row: first, rows, start: first * self.k + tile.col, ..*tile };
            values.append_le_bytes(&self.bytes(from, matrix, &part)?);
            row += rows;
        }
        Ok(values)
    }

    /// The values of a tile of a matrix, as bytes.
    fn bytes(&self, from: &Checkpoint, matrix: usize, tile: &Tile) -> Result<Vec<u8>, Error> {
        let start = matrix * self.rows * self.k;
        let rows = tile.row..tile.row + tile.rows;
        let cols = tile.col..tile.col + tile.cols;
        let decoder = match (&self.stored, self.transposed) {
            (Stored::Fp8(scales), false) => Some(scales.read(from, matrix, rows, cols)?),
            (Stored::Fp8(scales), true) => Some(scales.read(from, matrix, cols, rows)?),
            _ => None,
        };
        if self.transposed {
            return self.strips(from, start, decoder.as_ref(), tile);
        }
        let raw = self.raw(from, start + tile.start..start + tile.start + tile.len())?;
        Ok(match decoder {
            Some(decoder) => decoder.values(&raw, tile),
            None => raw,
        })
    }

    /// The values of a tile whose matrix is stored transposed, from this element on: a strip of
    /// each stored row, with what is between the strips where that is short.
    fn strips(
        &self,
        from: &Checkpoint,
        start: usize,
        decoder: Option<&Decoder<'_>>,
        tile: &Tile,
    ) -> Result<Vec<u8>, Error> {
        let (size, stored) = (self.float_type().bytes(), self.raw_bytes());
        let mut out = vec![0; tile.len() * size];
        let (row_bytes, together) = (self.rows * stored, self.strips_together(tile));
        for first in (0..tile.cols).step_by(together) {
            let rows = together.min(tile.cols - first);
            let start = start + (tile.col + first) * self.rows + tile.row;
            let raw = self.raw(from, start..start + (rows - 1) * self.rows + tile.rows)?;
            for (col, strip) in (first..).zip(raw.chunks(row_bytes)) {
                let strip = &strip[..tile.rows * stored];
                let at =
                    Tile { row: tile.col + col, rows: 1, col: tile.row, cols: tile.rows, start: 0 };
                let values = match decoder {
                    Some(decoder) => Cow::Owned(decoder.values(strip, &at)),
                    None => Cow::Borrowed(strip),
                };
                for (row, value) in values.chunks_exact(size).enumerate() {
                    let at = (row * tile.cols + col) * size;
                    out[at..at + size].copy_from_slice(value);
                }
            }
        }
        Ok(out)
    }

    /// Stored rows that are read in one call for a tile of the transposed matrix: in no more memory
    /// than the tile takes, or than a band of rows may.
    fn strips_together(&self, tile: &Tile) -> usize {
        let (row, stored) = (self.rows * self.raw_bytes(), self.raw_bytes());
        let most = BAND.max(tile.len() * self.float_type().bytes());
        match (self.rows - tile.rows) * stored <= GAP {
            true => (most / row.max(1)).max(1),
            false => 1,
        }
    }

    /// A range of elements as bytes: those of the file, or the values of blocks.
    fn raw(&self, from: &Checkpoint, elements: Range<usize>) -> Result<Vec<u8>, Error> {
        if let Stored::Blocks(ty) = self.stored {
            return self.blocks(from, ty, elements);
        }
        let size = self.raw_bytes();
        from.read(&self.tensor, elements.start * size..elements.end * size)
    }

    /// Bytes of an element of [`raw`](Self::raw).
    fn raw_bytes(&self) -> usize {
        match self.stored {
            Stored::Blocks(_) => size_of::<f32>(),
            _ => self.tensor.info.dtype.bitsize() / 8,
        }
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
pub(super) mod tests {
    use super::*;
    use crate::checkpoint::TensorSource;
    use crate::checkpoint::tiles::tiles;
    use fp4_core::{TransformShape, reference};

    /// A file of the committed vectors.
    pub(in crate::model) fn vector(name: &str) -> Checkpoint {
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

    /// A source of which only the header is there.
    fn headers(list: &[(&str, Dtype, &[usize])], name: &str, block: [usize; 2]) -> DenseSource {
        let tensor = |(name, dtype, shape): &(&str, Dtype, &[usize])| {
            let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let info = crate::checkpoint::TensorInfo {
                dtype: *dtype,
                shape: shape.to_vec(),
                data_offsets: (0, len as u64),
            };
            (name.to_string(), Tensor { file: 0, info, ggml: None })
        };
        DenseSource::find(&list.iter().map(tensor).collect(), name, block).unwrap()
    }

    #[test]
    fn small_tiles_of_a_transposed_matrix_take_a_band_of_stored_rows_and_wide_ones_strips() {
        let together = |dtype, shape: &[usize], limit: usize| {
            let source = headers(&[("w", dtype, shape)], "w", [128, 128]).transposed();
            let size = source.float_type().bytes();
            let tile = tiles(source.rows(), source.k(), size, limit).next().unwrap();
            (source.strips_together(&tile), tile.len() * size)
        };
        // 2 values of each of 2880 stored rows of 2 KiB: in calls of 64 KiB, not of 4 bytes.
        let (rows, tile) = together(Dtype::BF16, &[2880, 1024], 2 * 2880 * 2);
        assert_eq!((rows, tile), (32, 11_520));
        // In no more memory than a tile that is larger than that.
        let (rows, tile) = together(Dtype::BF16, &[2880, 1024], 1 << 20);
        assert!(rows * 2048 <= tile && (rows + 1) * 2048 > tile, "{rows} {tile}");
        // What is between the strips is more than a call costs.
        assert_eq!(together(Dtype::BF16, &[2880, 5760], 2 * 2880 * 2).0, 1);
        // Whole stored rows, all in one.
        assert_eq!(together(Dtype::F32, &[64, 96], 1 << 20).0, (64 << 10) / (4 * 96));
    }

    #[test]
    fn fp8_scales_are_read_for_the_tile_alone_and_accounted_for() {
        let list: [(&str, Dtype, &[usize]); 2] = [
            ("a.weight", Dtype::F8_E4M3, &[4, 1 << 20]),
            ("a.weight_scale_inv", Dtype::F32, &[4, 1 << 20]),
        ];
        let source = headers(&list, "a.weight", [1, 1]);
        // One row of 128 columns, and one that begins inside a block.
        assert_eq!(source.scales_len(1), 2 * 2 * 8);
        assert_eq!(source.scales_len(4 << 20), 2 * (1 << 20) * 8);
        let plain = headers(&list, "a.weight_scale_inv", [1, 1]);
        assert_eq!(plain.scales_len(4 << 20), 0);
        // Of a file, one row from inside the second block on.
        let scales: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|s| s.to_le_bytes()).collect();
        let view = |dtype, shape: [usize; 2], bytes| {
            safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap()
        };
        let views = [
            ("a.weight", view(Dtype::F8_E4M3, [1, 512], &[0x38; 512][..])),
            ("a.weight_scale_inv", view(Dtype::F32, [1, 4], &scales[..])),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let from = Checkpoint::open(&path).unwrap();
        let source = DenseSource::find(from.tensors(), "a.weight", [128, 128]).unwrap();
        let Stored::Fp8(scales) = &source.stored else { panic!("{source:?}") };
        assert_eq!(scales.read(&from, 0, 0..1, 200..384).unwrap().scales(), [2.0, 3.0]);
        let tile = Tile { row: 0, rows: 1, col: 256, cols: 128, start: 256 };
        assert_eq!(source.read(&from, &tile).unwrap(), FloatVec::F32(vec![3.0; 128]));
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
