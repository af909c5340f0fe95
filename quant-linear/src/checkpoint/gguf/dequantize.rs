//! What the blocks of ggml's dense types are worth.
//!
//! Every operation is one of f32, rounded once, in the order written here: the order of ggml's C
//! (compiled without contraction) and of gguf-py. `d`, `m` are f16, widened exactly; `q` is exact.
//!
//! | type | bytes of a block | value of element j |
//! |---|---|---|
//! | F32, F16, BF16 | the element | itself |
//! | Q4_0 | d, q\[16\] | (q - 8) * d; byte i holds elements i (low) and i + 16 (high) |
//! | Q4_1 | d, m, q\[16\] | q * d + m, two roundings |
//! | Q5_0 | d, h (u32), q\[16\] | (q - 16) * d; bit j of h is bit 4 of q |
//! | Q5_1 | d, m, h (u32), q\[16\] | q * d + m, two roundings |
//! | Q8_0 | d, q\[32\] (i8) | q * d |
//! | Q6_K | low\[128\], high\[64\], s\[16\] (i8), d | (d * s\[j / 16\]) * (q - 32), two roundings |
//!
//! Q6_K's element j = 128 n + 32 i + l (n < 2, i < 4, l < 32) has its low four bits in byte
//! 64 n + 32 (i mod 2) + l of `low`, the high nibble for i >= 2, and its high two in bits 2 i of
//! byte 32 n + l of `high`.
//!
//! Worked example: a Q4_0 block of d = 0.5 whose first byte is 0xF1 has element 0 =
//! (1 - 8) * 0.5 = -3.5 and element 16 = (15 - 8) * 0.5 = 3.5.

use half::{bf16, f16};

use super::GgmlType;
use crate::error::GgufError;

/// The values of whole blocks.
///
/// ```
/// use quant_linear::checkpoint::gguf::{GgmlType, dequantize};
///
/// let mut block = [0x88; 18];
/// block[..2].copy_from_slice(&0x3800u16.to_le_bytes()); // 0.5 in f16
/// block[2] = 0xF1;
/// let mut values = [0.0; 32];
/// dequantize(GgmlType::Q4_0, &block, &mut values)?;
/// assert_eq!([values[0], values[1], values[16]], [-3.5, 0.0, 3.5]);
/// # Ok::<(), quant_linear::checkpoint::gguf::GgufError>(())
/// ```
///
/// # Errors
/// Another type than those of the table above; bytes that are not as many blocks as `out` has.
pub fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), GgufError> {
    let block: fn(&[u8], &mut [f32]) = match ty {
        GgmlType::F32 => |b, out| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        GgmlType::F16 => |b, out| out[0] = half(b),
        GgmlType::BF16 => |b, out| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        GgmlType::Q4_0 => |b, out| {
            let d = half(b);
            nibbles(&b[2..], 0, out, |q| (q - 8.0) * d);
        },
        GgmlType::Q4_1 => |b, out| {
            let (d, m) = (half(b), half(&b[2..]));
            nibbles(&b[4..], 0, out, |q| q * d + m);
        },
        GgmlType::Q5_0 => |b, out| {
            let d = half(b);
            nibbles(&b[6..], word(&b[2..]), out, |q| (q - 16.0) * d);
        },
        GgmlType::Q5_1 => |b, out| {
            let (d, m) = (half(b), half(&b[2..]));
            nibbles(&b[8..], word(&b[4..]), out, |q| q * d + m);
        },
        GgmlType::Q8_0 => |b, out| {
            let d = half(b);
            out.iter_mut().zip(&b[2..]).for_each(|(out, &q)| *out = signed(q) * d);
        },
        GgmlType::Q6_K => q6_k,
        _ => return Err(GgufError::NoValues(ty)),
    };
    let (each, len) = (ty.block_bytes(), ty.block_len());
    let blocks = bytes.len() / each;
    if !bytes.len().is_multiple_of(each) || blocks.checked_mul(len) != Some(out.len()) {
        return Err(GgufError::Bytes { ty, bytes: bytes.len(), values: out.len() });
    }
    let pairs = bytes.chunks_exact(each).zip(out.chunks_exact_mut(len));
    pairs.for_each(|(bytes, out)| block(bytes, out));
    Ok(())
}

/// The f16 at the start.
fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// The u32 at the start.
fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn signed(byte: u8) -> f32 {
    f32::from(byte.cast_signed())
}

/// 32 numbers of 4 bits in 16 bytes, each with one bit of `high` above, through `value`.
fn nibbles(low: &[u8], high: u32, out: &mut [f32], value: impl Fn(f32) -> f32) {
    for (j, out) in out.iter_mut().enumerate() {
        let four = (low[j % 16] >> (4 * (j / 16))) & 0xF;
        let fifth = (high >> j & 1) as u8;
        *out = value(f32::from(four | fifth << 4));
    }
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = half(d);
    for (j, out) in out.iter_mut().enumerate() {
        let (n, i, l) = (j / 128, j / 32 % 4, j % 32);
        let four = (low[64 * n + 32 * (i % 2) + l] >> (4 * (i / 2))) & 0xF;
        let two = (high[32 * n + l] >> (2 * i)) & 3;
        let q = f32::from(four | two << 4) - 32.0;
        *out = d * signed(scales[j / 16]) * q;
    }
}
