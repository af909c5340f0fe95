//! What the codes and scale bytes of a layer hold, counted tile by tile, and what of it is wrong by
//! itself.
//!
//! What is kept of a layer does not grow with it: counts by byte and code, a histogram of rows by
//! their mean magnitude, and, up to a limit, one sum for each row and column.

use fp4_core::{PackedMatrix, PackedShape, ScaleType};

use crate::checkpoint::tiles::Tile;
use crate::checkpoint::{Checkpoint, TensorSource};
use crate::layer::state::join;
use crate::layout::{Decoder, Layer, ScaleBytes, Zero};
use crate::model::verify::{Finding, Severity};

/// The longest sums of rows and columns that are kept.
const MOST_SUMS: usize = 1 << 18;

/// Bins of the histogram of magnitudes, an eighth of an octave each, from 2^-160 up.
const BINS: usize = 320 * 8;

/// What a layer holds.
#[derive(Debug)]
pub(super) struct Seen {
    shape: PackedShape,
    /// Elements by scale byte and code: entry `16 * byte + code`.
    counts: Box<[u64]>,
    /// Row and group of the first scale of each byte.
    first: Box<[Option<(usize, usize)>]>,
    /// Groups by the magnitude of their largest code, 0 to 7.
    pub(super) largest_codes: [u64; 8],
    /// The largest finite magnitude of a value.
    largest: f32,
    /// Rows by the logarithm of their mean magnitude.
    rows_by_size: Box<[u64]>,
    /// Rows without a value.
    zero_rows: u64,
    first_zero_row: usize,
    /// The last row that has one, plus one.
    end: usize,
    /// The row that is being read, and its sum of magnitudes so far.
    row: (usize, f64),
    /// Sums of magnitudes by column and by row; empty if they would be too long.
    pub(super) cols: Vec<f64>,
    pub(super) rows: Vec<f64>,
}

impl Seen {
    pub(super) fn new(shape: PackedShape) -> Self {
        let sums = |len: usize| if len > MOST_SUMS { vec![] } else { vec![0.0; len] };
        Seen {
            shape,
            counts: vec![0; 4096].into(),
            first: vec![None; 256].into(),
            largest_codes: [0; 8],
            largest: 0.0,
            rows_by_size: vec![0; BINS].into(),
            zero_rows: 0,
            first_zero_row: 0,
            end: 0,
            row: (0, 0.0),
            cols: sums(shape.k()),
            rows: sums(shape.rows()),
        }
    }

    /// Counts a tile; they come in order.
    pub(super) fn add(&mut self, packed: &PackedMatrix, tile: &Tile, decoder: &Decoder) {
        let shape = packed.shape();
        let (bytes, groups, group) = (shape.row_bytes(), shape.row_groups(), shape.group().get());
        for row in 0..shape.rows() {
            let codes = &packed.codes()[row * bytes..][..bytes];
            let scales = &packed.scales()[row * groups..][..groups];
            let (at, table) = (tile.row + row, decoder.table(tile.row + row));
            if self.row.0 != at {
                self.row = (at, 0.0);
            }
            for (g, (codes, &byte)) in codes.chunks_exact(group / 2).zip(scales).enumerate() {
                let col = tile.col + g * group;
                let first = &mut self.first[usize::from(byte)];
                *first = first.or(Some((at, col / group)));
                let sum = self.group(codes, byte, table, col);
                self.row.1 += sum;
            }
            if tile.col + tile.cols == self.shape.k() {
                self.end_row();
            }
        }
    }

    /// Counts a group; the sum of its magnitudes.
    fn group(&mut self, codes: &[u8], byte: u8, table: &[f32], col: usize) -> f64 {
        let entry = 16 * usize::from(byte);
        let (values, counts) = (&table[entry..][..16], &mut self.counts[entry..][..16]);
        let cols = self.cols.get_mut(col..).unwrap_or_default();
        let (mut sum, mut largest_code) = (0.0, 0);
        for (i, &pair) in codes.iter().enumerate() {
            for (half, code) in [pair & 15, pair >> 4].into_iter().enumerate() {
                counts[usize::from(code)] += 1;
                largest_code = largest_code.max(code & 7);
                let value = values[usize::from(code)].abs();
                // What is not finite is reported as such, and is no row of zeros.
                let value = if value.is_finite() { value } else { 1.0 };
                self.largest = self.largest.max(value);
                sum += f64::from(value);
                if let Some(col) = cols.get_mut(2 * i + half) {
                    *col += f64::from(value);
                }
            }
        }
        self.largest_codes[usize::from(largest_code)] += 1;
        sum
    }

    fn end_row(&mut self) {
        let (row, sum) = self.row;
        if let Some(place) = self.rows.get_mut(row) {
            *place = sum;
        }
        if sum == 0.0 {
            if self.zero_rows == 0 {
                self.first_zero_row = row;
            }
            self.zero_rows += 1;
            return;
        }
        self.end = row + 1;
        let bin = ((sum / self.shape.k() as f64).log2() + 160.0) * 8.0;
        self.rows_by_size[bin.clamp(0.0, (BINS - 1) as f64) as usize] += 1;
    }

    /// Groups with each scale byte.
    pub(super) fn bytes(&self) -> [u64; 256] {
        let group = self.shape.group().get() as u64;
        std::array::from_fn(|byte| self.of_byte(byte).iter().sum::<u64>() / group)
    }

    fn of_byte(&self, byte: usize) -> &[u64] {
        &self.counts[16 * byte..][..16]
    }

    /// Elements with each code.
    fn codes(&self) -> [u64; 16] {
        std::array::from_fn(|code| (0..256).map(|byte| self.counts[16 * byte + code]).sum())
    }

    /// Groups in all.
    pub(super) fn groups(&self) -> u64 {
        self.largest_codes.iter().sum()
    }

    /// Elements of the largest magnitude, as a share of those that are not zero.
    pub(super) fn saturated(&self) -> f64 {
        let codes = self.codes();
        let zeros = codes[0] + codes[8];
        let all: u64 = codes.iter().sum();
        (codes[7] + codes[15]) as f64 / (all - zeros).max(1) as f64
    }

    /// log2 of the mean magnitude of a middling row that is not all zero.
    pub(super) fn typical(&self) -> Option<f64> {
        let all: u64 = self.rows_by_size.iter().sum();
        let mut below = 0;
        let middle = self.rows_by_size.iter().position(|&rows| {
            below += rows;
            2 * below >= all
        });
        middle.filter(|_| all > 0).map(|bin| (bin as f64 + 0.5) / 8.0 - 160.0)
    }

    /// The largest finite magnitude.
    pub(super) fn largest(&self) -> f32 {
        self.largest
    }

    /// Reports what is wrong by itself.
    pub(super) fn check(
        &self,
        checkpoint: &Checkpoint,
        layer: &Layer,
        findings: &mut Vec<Finding>,
    ) {
        self.not_numbers(layer, findings);
        self.signs(layer, findings);
        self.zeros(checkpoint, layer, findings);
    }

    /// Where the first group of a byte is.
    fn place(&self, byte: usize, groups: u64) -> String {
        let (row, group) = self.first[byte].unwrap_or_default();
        let s = if groups == 1 { " has" } else { "s have" };
        format!(
            "{groups} group{s} the scale byte 0x{byte:02X}, the first in row {row}, group {group}"
        )
    }

    fn not_numbers(&self, layer: &Layer, findings: &mut Vec<Finding>) {
        let (decoder, reader) = (layer.decoder(), layer.layout.name());
        let bytes = self.bytes();
        for byte in (0..256).filter(|&byte| bytes[byte] > 0) {
            // Experts have tables of their own; one with this byte is enough.
            let table = decoder.table(self.first[byte].unwrap_or_default().0);
            let values = table.get(16 * byte..).unwrap_or_default().iter().zip(self.of_byte(byte));
            let present = values.filter(|(_, count)| **count > 0);
            let (mut nan, mut infinite) = (0, 0);
            for (value, count) in present {
                nan += if value.is_nan() { *count } else { 0 };
                infinite += if value.is_infinite() { *count } else { 0 };
            }
            let place = self.place(byte, bytes[byte]);
            if nan + infinite > 0 {
                let message = format!(
                    "{place}: to a reader of {reader} {nan} values are NaN and {infinite} \
                     infinite, and so is every product with them; quantize the layer again, or \
                     download it again"
                );
                findings.push(Finding::error("not-finite", &layer.module, message));
            } else if layer.shape.scale_type().parts(byte as u8).is_none() {
                let most = table.get(16 * byte + 7).copied().unwrap_or_default();
                let message = format!(
                    "{place}, which is NaN in {}; a reader of {reader} takes code 7 under it for \
                     {most:e}, other readers do not: quantize the layer again",
                    layer.shape.scale_type()
                );
                findings.push(Finding::warning("nan-scale", &layer.module, message));
            }
        }
    }

    fn signs(&self, layer: &Layer, findings: &mut Vec<Finding>) {
        let bytes = self.bytes();
        if layer.shape.scale_type() == ScaleType::E4M3 {
            let negative: u64 = bytes[0x80..0xFF].iter().sum();
            if let Some(byte) = (0x80..0xFF).find(|&byte| bytes[byte] > 0) {
                let dropped = layer.arithmetic.scale == ScaleBytes::Ue4m3;
                let place = self.place(byte, bytes[byte]);
                let (severity, read) = match dropped {
                    true => (Severity::Warning, "drops the sign, others do not"),
                    false => (Severity::Error, "changes the sign of all values of the group"),
                };
                let message = format!(
                    "{negative} scales are negative, which no quantizer writes ({place}); a reader \
                     of {} {read}: are the bytes e4m3, and in this order? else quantize the layer \
                     again",
                    layer.layout.name()
                );
                findings.push(Finding::new(severity, "negative-scale", &layer.module, message));
            }
        }
        let minus = self.codes()[8];
        if layer.arithmetic.zero == Zero::Unsigned && minus > 0 {
            let message = format!(
                "{minus} elements have code 8, which quantizers of {} never write and their \
                 readers take for +0; others take it for -0, so the values are the same in all \
                 but the sign",
                layer.layout.name()
            );
            findings.push(Finding::warning("minus-zero", &layer.module, message));
        }
    }

    fn zeros(&self, checkpoint: &Checkpoint, layer: &Layer, findings: &mut Vec<Finding>) {
        let (rows, module) = (self.shape.rows(), &layer.module);
        if rows == 0 || self.shape.k() == 0 {
            return; // an empty tensor, reported as such
        }
        if self.zero_rows == rows as u64 {
            let message = format!(
                "all {rows} rows are zero: the layer gives nothing but its bias; was it quantized \
                 under a global scale that flushed it, or never written?"
            );
            findings.push(Finding::warning("zero-tensor", module, message));
            return;
        }
        let mut zero_rows = self.zero_rows;
        if layer.layout.pads() {
            let bias = checkpoint.header(&join(module, crate::layer::state::BIAS));
            let real = bias.and_then(|(_, shape)| shape.first().copied()).unwrap_or(self.end);
            let padding = rows.saturating_sub(real.max(self.end));
            if padding > 0 {
                zero_rows -= padding as u64;
                let message = format!("the last {padding} of {rows} rows are zero, as padding is");
                findings.push(Finding::new(Severity::Note, "padding-rows", module, message));
            }
        }
        if zero_rows > 0 {
            let message = format!(
                "{zero_rows} of {rows} rows are all zero, the first row {}: their outputs are the \
                 bias alone; were they so in the dense weight, or flushed by one large value?",
                self.first_zero_row
            );
            findings.push(Finding::warning("zero-rows", module, message));
        }
        // Padding is no group of the weight's.
        let of_rows = (rows - self.end) as u64 * self.shape.row_groups() as u64;
        let (zero, all) = (self.largest_codes[0].saturating_sub(of_rows), self.groups() - of_rows);
        if 2 * zero > all {
            let message = format!(
                "{zero} of {all} groups are all zero: one very large value under the same global \
                 scale flushes the rest; quantize the layer again, with that value clipped"
            );
            findings.push(Finding::warning("zero-groups", module, message));
        }
    }
}
