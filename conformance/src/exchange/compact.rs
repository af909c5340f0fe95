//! Cases as one run of bytes, for programs without files, JSON or an allocator: a microcontroller
//! reads them where they lie in flash.
//!
//! ```text
//! file    = "FP4V", word 1 (the version), case..., word 0
//! case    = word operation, word parameter..., blob...
//! word    = u32, little-endian
//! blob    = word length, that many bytes, zero bytes up to a multiple of 4
//! ```
//!
//! Every blob starts at a multiple of 4, so that values can be read in place. An enum is its index
//! in its list `ALL`, what may be absent a word 0 or 1 and an empty blob.
//!
//! | operation | parameters | blobs |
//! |---|---|---|
//! | 1 quantize | rows, k, element, scale type, group, bits of gs, bits of ss, tie, row scales?, input type, block of the transform or 0, its blocks or 0 if shared, its type, given scales? | x, transform, given scales, codes, scales, row scales, values |
//! | 2 matmul | m, n, k, encoding of A, format of B, bits of alpha, output type, row scales?, bias? | codes and scales of A, of B, row scales, bias, y |
//! | 3 swizzle | rows, cols | scales, swizzled |
//!
//! `values` is the quantized matrix dequantized to the input's type (C4.4, C10); it is empty where
//! rows have scales of their own.

use fp4_core::{Element, Encoding, FloatType, Format, PackedView, ScaleType, TieMode};

use super::Error;
use super::export::is_whole;
use crate::oracle::Oracle;
use crate::random::Random;
use crate::suite::case::{Case, CoreCheck, Kind, MatmulCase, QuantizeCase};
use crate::suite::{quantize_input, swizzled};
use crate::tensor::{bits_of, to_bytes};

/// Version of the form.
pub const COMPACT_VERSION: u32 = 1;

/// The whole-call cases among `cases`, and the swizzles, in their order; and how many they are.
///
/// # Errors
/// [`Error::NothingToExport`]; [`Error::Core`].
pub fn compact(cases: &[Case]) -> Result<(Vec<u8>, usize), Error> {
    let oracle = Oracle::default();
    let (mut writer, mut written) = (Writer::default(), 0);
    writer.bytes.extend(b"FP4V");
    writer.word(COMPACT_VERSION);
    for case in cases {
        let result = match &case.kind {
            Kind::Quantize(q) if q.threads == 0 => quantize(&mut writer, &oracle, case, q),
            Kind::Matmul(m) if is_whole(m) => matmul(&mut writer, &oracle, case, m),
            Kind::Core(core) if core.check == CoreCheck::Swizzle => {
                let [rows, cols] = core.shape;
                let mut random = Random::of(&case.id);
                let scales: Vec<u8> = (0..rows * cols).map(|_| random.byte()).collect();
                [3, rows as u32, cols as u32].into_iter().for_each(|word| writer.word(word));
                writer.blob(&scales);
                writer.blob(&swizzled(&scales, rows, cols));
                Ok(())
            }
            _ => continue,
        };
        result.map_err(|source| Error::Core { case: case.id.clone(), source })?;
        written += 1;
    }
    if written == 0 {
        return Err(Error::NothingToExport { cases: cases.len() });
    }
    writer.word(0);
    Ok((writer.bytes, written))
}

/// The index in a list, for an enum's word.
fn index<T: PartialEq>(all: &[T], value: &T) -> u32 {
    all.iter().position(|each| each == value).map_or(u32::MAX, |index| index as u32)
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn word(&mut self, word: u32) {
        self.bytes.extend(word.to_le_bytes());
    }

    fn blob(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u32);
        self.bytes.extend(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// f32 values, empty if absent.
    fn floats(&mut self, values: Option<&[f32]>) {
        let bits: Vec<u32> = values.unwrap_or_default().iter().map(|x| x.to_bits()).collect();
        self.blob(&to_bytes(FloatType::F32, &bits));
    }
}

fn quantize(
    writer: &mut Writer,
    oracle: &Oracle,
    case: &Case,
    q: &QuantizeCase,
) -> Result<(), fp4_core::Error> {
    let data = q.data(&case.id, oracle.rules())?;
    let input = quantize_input(q, &data)?;
    let (shape, expected) = (input.shape(), oracle.quantize(&input));
    let transform = input.transform().map(|t| (t.shape(), t.values()));
    let of_transform = transform.map(|(shape, _)| {
        let blocks = shape.blocks.unwrap_or(0) as u32;
        [shape.block.get() as u32, blocks, index(&FloatType::ALL, &shape.float_type)]
    });
    let words = [
        1,
        q.shape[0] as u32,
        q.shape[1] as u32,
        index(&Element::ALL, &q.spec.element()),
        index(&ScaleType::ALL, &q.spec.scale_type()),
        q.spec.group().get() as u32,
        q.spec.global_scale().to_bits(),
        q.spec.scale_scale().to_bits(),
        index(&TieMode::ALL, &q.spec.tie()),
        u32::from(q.spec.row_scales()),
        index(&FloatType::ALL, &q.input),
    ];
    words.into_iter().for_each(|word| writer.word(word));
    of_transform.unwrap_or_default().into_iter().for_each(|word| writer.word(word));
    writer.word(u32::from(data.given.is_some()));
    writer.blob(&to_bytes(q.input, &bits_of(input.x())));
    let values = transform.map(|(shape, v)| to_bytes(shape.float_type, &bits_of(v)));
    writer.blob(&values.unwrap_or_default());
    writer.blob(data.given.as_deref().unwrap_or_default());
    writer.blob(&expected.codes);
    writer.blob(&expected.scales);
    writer.floats(expected.row_scales.as_deref());
    let values = if q.spec.row_scales() {
        Vec::new()
    } else {
        let packed = PackedView::new(shape, &expected.codes, &expected.scales)?;
        to_bytes(q.input, &oracle.dequantize(packed, q.spec.global_scale(), q.input))
    };
    writer.blob(&values);
    Ok(())
}

fn matmul(
    writer: &mut Writer,
    oracle: &Oracle,
    case: &Case,
    request: &MatmulCase,
) -> Result<(), fp4_core::Error> {
    let [a, b] = request.data(&case.id)?;
    let [m, n, k] = request.shape;
    let sums = oracle.sums(a.view(), b.view(), 0..b.shape().row_groups());
    let exact: Vec<f64> = sums.iter().map(crate::oracle::Wide::to_f64).collect();
    let [scales, bias] = request.epilogue(&case.id, &exact);
    let output = |(index, sum): (usize, _)| {
        let scale = scales.as_ref().map(|scales| scales[index / n]);
        let bias = bias.as_ref().map(|bias| bias[index % n]);
        oracle.finished(sum, request.alpha, scale, bias, request.output)
    };
    let y: Vec<u32> = sums.iter().enumerate().map(output).collect();
    let words = [
        2,
        m as u32,
        n as u32,
        k as u32,
        index(&Encoding::ALL, &request.a),
        index(&Format::ALL, &request.format),
        request.alpha.to_bits(),
        index(&FloatType::ALL, &request.output),
        u32::from(scales.is_some()),
        u32::from(bias.is_some()),
    ];
    words.into_iter().for_each(|word| writer.word(word));
    for matrix in [&a, &b] {
        writer.blob(matrix.codes());
        writer.blob(matrix.scales());
    }
    writer.floats(scales.as_deref());
    writer.floats(bias.as_deref());
    writer.blob(&to_bytes(request.output, &y));
    Ok(())
}
