//! The conformance suite's cases in the form that `fp4-conformance vectors compact` writes, which
//! its module `exchange::compact` describes: read in place, computed, and compared bit for bit.

use core::fmt;

use fp4_core::{
    Element, Encoding, Epilogue, Error, FloatSlice, FloatSliceMut, FloatType, Format, GroupSize,
    PackedMut, PackedShape, PackedView, Paths, QuantSpec, QuantizeInput, ScaleType, Swizzle,
    TieMode, Transform, bf16, f16, narrow, reference,
};

/// Bytes of the largest output of any case.
const LARGEST: usize = 2048;

/// The cases, where the linker put them.
pub static CASES: &[u8] = {
    /// The bytes at a multiple of 4, as values want them.
    #[repr(C, align(4))]
    struct Aligned<T: ?Sized>(T);
    static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../vectors.bin"));
    &ALIGNED.0
};

/// What was run and compared.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Cases.
    pub cases: u32,
    /// Bits of outputs that were compared.
    pub bits: u32,
    /// Outputs of cases that were not what the suite says.
    pub differ: u32,
    /// Which sums the narrow products took.
    pub paths: Paths,
}

/// Why a case could not be run.
#[derive(Debug, Clone, Copy)]
pub enum Failure {
    /// The bytes are no cases of this version.
    Malformed,
    /// The core refused what the suite asks.
    Refused(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Refused(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Malformed => f.write_str("no cases of this version: write them again"),
            // Not the text of the error: its numbers would cost 20 KB.
            Failure::Refused(_) => f.write_str("refused by the core"),
        }
    }
}

/// Reads words and runs of bytes.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// At the first case.
    ///
    /// # Errors
    /// Bytes that begin otherwise.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Failure> {
        let mut reader = Reader { rest: bytes };
        match (reader.word()?.to_le_bytes(), reader.word()?) {
            ([b'F', b'P', b'4', b'V'], 1) => Ok(reader),
            _ => Err(Failure::Malformed),
        }
    }

    fn word(&mut self) -> Result<u32, Failure> {
        let (word, rest) = self.rest.split_first_chunk().ok_or(Failure::Malformed)?;
        self.rest = rest;
        Ok(u32::from_le_bytes(*word))
    }

    fn size(&mut self) -> Result<usize, Failure> {
        Ok(self.word()? as usize)
    }

    fn flag(&mut self) -> Result<bool, Failure> {
        Ok(self.word()? != 0)
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> Result<T, Failure> {
        all.get(self.size()?).copied().ok_or(Failure::Malformed)
    }

    fn blob(&mut self) -> Result<&'a [u8], Failure> {
        let len = self.size()?;
        let (blob, rest) = self.rest.split_at_checked(len).ok_or(Failure::Malformed)?;
        self.rest = rest.get(len.next_multiple_of(4) - len..).ok_or(Failure::Malformed)?;
        Ok(blob)
    }

    /// The next case; `None` at the end.
    ///
    /// # Errors
    /// Bytes that are no case.
    pub fn next_case(&mut self) -> Result<Option<Case<'a>>, Failure> {
        Ok(match self.word()? {
            0 => None,
            1 => Some(Case::Quantize(Quantize::read(self)?)),
            2 => Some(Case::Matmul(Matmul::read(self)?)),
            3 => {
                let (rows, cols) = (self.size()?, self.size()?);
                let (scales, swizzled) = (self.blob()?, self.blob()?);
                Some(Case::Swizzle { rows, cols, scales, swizzled })
            }
            _ => return Err(Failure::Malformed),
        })
    }
}

/// One case.
#[derive(Clone, Copy)]
pub enum Case<'a> {
    /// C1 to C5, C10, and C4.4.
    Quantize(Quantize<'a>),
    /// C6.
    Matmul(Matmul<'a>),
    /// C7.
    Swizzle {
        /// Rows of scales.
        rows: usize,
        /// Columns of scales.
        cols: usize,
        /// Scale bytes, row-major.
        scales: &'a [u8],
        /// The same in tiles.
        swizzled: &'a [u8],
    },
}

/// A matrix to quantize, and what it becomes.
#[derive(Clone, Copy)]
pub struct Quantize<'a> {
    rows: usize,
    k: usize,
    /// The settings.
    pub spec: QuantSpec,
    x: FloatSlice<'a>,
    transform: Option<Transform<'a>>,
    given: Option<&'a [u8]>,
    codes: &'a [u8],
    scales: &'a [u8],
    row_scales: &'a [u8],
    values: &'a [u8],
}

/// Two matrices to multiply, and their product.
#[derive(Clone, Copy)]
pub struct Matmul<'a> {
    /// A.
    pub a: PackedView<'a>,
    /// B.
    pub b: PackedView<'a>,
    /// What follows the sum.
    pub epilogue: Epilogue<'a>,
    output: FloatType,
    y: &'a [u8],
}

/// Values from their bytes.
fn floats(ty: FloatType, bytes: &[u8]) -> Result<FloatSlice<'_>, Failure> {
    let malformed = |_| Failure::Malformed;
    Ok(match ty {
        FloatType::F32 => FloatSlice::F32(bytemuck::try_cast_slice(bytes).map_err(malformed)?),
        FloatType::F16 => FloatSlice::F16(bytemuck::try_cast_slice(bytes).map_err(malformed)?),
        FloatType::Bf16 => FloatSlice::Bf16(bytemuck::try_cast_slice(bytes).map_err(malformed)?),
    })
}

/// f32 values, if they are there.
fn some_f32(there: bool, bytes: &[u8]) -> Result<Option<&[f32]>, Failure> {
    let values = bytemuck::try_cast_slice(bytes).map_err(|_| Failure::Malformed)?;
    Ok(there.then_some(values))
}

impl<'a> Quantize<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Failure> {
        let (rows, k) = (reader.size()?, reader.size()?);
        let element = reader.one_of(&Element::ALL)?;
        let scale_type = reader.one_of(&ScaleType::ALL)?;
        let group = GroupSize::new(reader.size()?)?;
        let (gs, ss) = (f32::from_bits(reader.word()?), f32::from_bits(reader.word()?));
        let tie = reader.one_of(&TieMode::ALL)?;
        let spec = match element {
            Element::Int8 => QuantSpec::mxint8(),
            Element::E2m1 => QuantSpec::new(scale_type, group, gs, ss)?.with_tie(tie),
        };
        let spec = if reader.flag()? { spec.with_row_scales()? } else { spec };
        let input = reader.one_of(&FloatType::ALL)?;
        let (block, blocks) = (reader.size()?, reader.size()?);
        let of_transform = reader.one_of(&FloatType::ALL)?;
        let is_given = reader.flag()?;
        let x = floats(input, reader.blob()?)?;
        let values = floats(of_transform, reader.blob()?)?;
        let transform = match (block, blocks) {
            (0, _) => None,
            (_, 0) => Some(Transform::shared(values, block)?),
            _ => Some(Transform::per_block(values, block, blocks)?),
        };
        let given = Some(reader.blob()?).filter(|_| is_given);
        let (codes, scales) = (reader.blob()?, reader.blob()?);
        let (row_scales, values) = (reader.blob()?, reader.blob()?);
        Ok(Quantize { rows, k, spec, x, transform, given, codes, scales, row_scales, values })
    }

    fn run(&self, counts: &mut Counts) -> Result<(), Failure> {
        let (mut codes, mut scales) = ([0xA5; LARGEST / 4], [0xA5; LARGEST / 16]);
        let mut row_scales = [f32::NAN; 4];
        let shape = self.spec.shape(self.rows, self.k)?;
        let malformed = Failure::Malformed;
        let codes = codes.get_mut(..shape.codes_len()).ok_or(malformed)?;
        let scales = scales.get_mut(..shape.scales_len()).ok_or(malformed)?;
        let rows = row_scales.get_mut(..self.rows).ok_or(malformed)?;
        let input = QuantizeInput::new(self.x, self.rows, self.k, &self.spec)?;
        let mut input = input.with_transform(self.transform)?;
        if let Some(given) = self.given {
            input = input.with_scales(given)?;
        }
        let mut out = PackedMut::new(shape, codes, scales)?.with_row_scales(rows)?;
        reference::quantize(&input, &mut out)?;
        let packed = out.as_view();
        counts.compare(packed.codes(), self.codes);
        counts.compare(packed.scales(), self.scales);
        if self.spec.row_scales() {
            counts.compare(bytemuck::cast_slice(out.row_scales().unwrap_or(&[])), self.row_scales);
            return Ok(());
        }
        outputs(
            self.x.float_type(),
            self.rows * self.k,
            |values| reference::dequantize(packed, self.spec.global_scale(), values),
            |bytes| counts.compare(bytes, self.values),
        )
    }
}

impl<'a> Matmul<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Failure> {
        let (m, n, k) = (reader.size()?, reader.size()?, reader.size()?);
        let (of_a, of_b) = (reader.one_of(&Encoding::ALL)?, reader.one_of(&Format::ALL)?);
        let alpha = f32::from_bits(reader.word()?);
        let output = reader.one_of(&FloatType::ALL)?;
        let (has_scales, has_bias) = (reader.flag()?, reader.flag()?);
        let a = PackedShape::encoded(of_a, m, k)?;
        let a = PackedView::new(a, reader.blob()?, reader.blob()?)?;
        let b = PackedShape::of(of_b, n, k)?;
        let b = PackedView::new(b, reader.blob()?, reader.blob()?)?;
        let (scales, bias) = (reader.blob()?, reader.blob()?);
        let epilogue = Epilogue::new(alpha)
            .with_row_scales(some_f32(has_scales, scales)?)
            .with_bias(some_f32(has_bias, bias)?);
        Ok(Matmul { a, b, epilogue, output, y: reader.blob()? })
    }

    /// True for the layers that are measured: one row of 128 by 128 x 128.
    pub fn is_layer(&self) -> bool {
        [self.a.shape().rows(), self.b.shape().rows(), self.b.shape().k()] == [1, 128, 128]
    }

    fn run(&self, counts: &mut Counts) -> Result<(), Failure> {
        let len = self.a.shape().rows() * self.b.shape().rows();
        let mut paths = Paths::default();
        outputs(
            self.output,
            len,
            |y| {
                paths = narrow::matmul(self.a, self.b, self.epilogue, y)?;
                Ok(())
            },
            |bytes| counts.compare(bytes, self.y),
        )?;
        counts.paths.merge(&paths);
        outputs(
            self.output,
            len,
            |y| reference::matmul(self.a, self.b, self.epilogue, y),
            |bytes| {
                counts.compare(bytes, self.y);
            },
        )
    }
}

impl Case<'_> {
    /// Computes and compares.
    ///
    /// # Errors
    /// What the core refuses.
    pub fn run(&self, counts: &mut Counts) -> Result<(), Failure> {
        counts.cases += 1;
        match self {
            Case::Quantize(case) => case.run(counts),
            Case::Matmul(case) => case.run(counts),
            Case::Swizzle { rows, cols, scales, swizzled } => {
                let layout = Swizzle::new(*rows, *cols)?;
                let mut buffer = [0xA5; LARGEST];
                let tiles = buffer.get_mut(..layout.len()).ok_or(Failure::Malformed)?;
                layout.swizzle(scales, tiles)?;
                counts.compare(tiles, swizzled);
                let mut buffer = [0xA5; LARGEST / 2];
                let back = buffer.get_mut(..scales.len()).ok_or(Failure::Malformed)?;
                layout.unswizzle(swizzled, back)?;
                counts.compare(back, scales);
                Ok(())
            }
        }
    }
}

impl Counts {
    fn compare(&mut self, got: &[u8], expected: &[u8]) {
        self.bits += 8 * expected.len() as u32;
        self.differ += u32::from(got != expected);
    }
}

/// Lends `len` values of garbage to be written, and hands their bytes over.
fn outputs(
    ty: FloatType,
    len: usize,
    write: impl FnOnce(FloatSliceMut<'_>) -> Result<(), Error>,
    compare: impl FnOnce(&[u8]),
) -> Result<(), Failure> {
    match ty {
        FloatType::F32 => {
            let mut values = [f32::from_bits(0xA5A5_A5A5); 384];
            let values = values.get_mut(..len).ok_or(Failure::Malformed)?;
            write(FloatSliceMut::F32(values))?;
            compare(bytemuck::cast_slice(values));
        }
        FloatType::F16 => {
            let mut values = [f16::from_bits(0xA5A5); 384];
            let values = values.get_mut(..len).ok_or(Failure::Malformed)?;
            write(FloatSliceMut::F16(values))?;
            compare(bytemuck::cast_slice(values));
        }
        FloatType::Bf16 => {
            let mut values = [bf16::from_bits(0xA5A5); 384];
            let values = values.get_mut(..len).ok_or(Failure::Malformed)?;
            write(FloatSliceMut::Bf16(values))?;
            compare(bytemuck::cast_slice(values));
        }
    }
    Ok(())
}
