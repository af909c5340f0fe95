//! MXFP4 as NVFP4 and back, where no value changes.
//!
//! ```text
//! MXFP4 -> NVFP4   2^e of each group becomes 2^(e - E) in e4m3, twice, and the global scale takes
//!                  2^E. e4m3 has the powers 2^-9 to 2^8, so a tensor's scales may be 2^17 apart
//! NVFP4 -> MXFP4   both groups of 16 of 32 must have the same power of two
//! ```
//!
//! Groups whose codes are all zero take whatever byte is nearest: they are zero under any.
//!
//! Worked example: bytes 118 to 127 (2^-9 to 1): E = -8, so 2^-1 to 2^8, and a global scale of
//! 2^-8.

use fp4_core::{Format, PackedMatrix, PackedShape, ScaleType};

use crate::checkpoint::Checkpoint;
use crate::checkpoint::tiles::{DEFAULT_BLOCK_BYTES, tiles};
use crate::error::{Error, ModelError};
use crate::layout::Global;
use crate::model::convert::gather::Weight;

/// Scale bytes of another format.
#[derive(Debug, Clone)]
pub struct Rescale {
    /// The new format.
    pub format: Format,
    /// The new byte of each.
    pub map: Box<[u8; 256]>,
}

impl Rescale {
    /// The scales and the shape of groups in the new format.
    ///
    /// # Errors
    /// Rows that are no whole groups of the new format.
    pub fn scales(&self, packed: &PackedMatrix) -> Result<(PackedShape, Vec<u8>), Error> {
        let shape = packed.shape();
        let shape = PackedShape::of(self.format, shape.rows(), shape.k())?;
        let new = |byte: &u8| self.map[usize::from(*byte)];
        let scales = packed.scales();
        let scales = match self.format {
            Format::NvFp4 => scales.iter().flat_map(|byte| [new(byte); 2]).collect(),
            Format::MxFp4 => {
                let group = |(pair, codes): (&[u8], &[u8])| {
                    // A zero group takes the byte of its neighbour.
                    let zero = codes[..8].iter().all(|code| code & 0x77 == 0);
                    new(&pair[usize::from(zero)])
                };
                let codes = packed.codes().chunks_exact(16);
                scales.chunks_exact(2).zip(codes).map(group).collect()
            }
        };
        Ok((shape, scales))
    }
}

/// The powers of two among the bytes of e4m3, by exponent.
fn e4m3_power(exponent: i32) -> Option<u8> {
    match exponent {
        -9..=-7 => Some(1 << (exponent + 9)),
        -6..=8 => Some(((exponent + 7) as u8) << 3),
        _ => None,
    }
}

/// The exponent of a scale that is a positive power of two.
fn power(scale_type: ScaleType, byte: u8) -> Option<i32> {
    let parts = scale_type.parts(byte)?;
    let significand = u32::try_from(parts.significand).ok()?;
    significand.is_power_of_two().then(|| parts.exponent + significand.trailing_zeros() as i32)
}

/// The exponent of an f32 that is a power of two.
fn power_of(global: f32) -> Option<i32> {
    let exponent = global.log2();
    (exponent.fract() == 0.0 && exponent.exp2() == global).then_some(exponent as i32)
}

/// What a weight needs to be of another format, with its new global scales; `None` if it is of that
/// format already.
///
/// # Errors
/// I/O errors; [`ModelError::Rescale`] with the groups that do not fit.
pub fn rescale(
    input: &Checkpoint,
    weight: &Weight<'_>,
    format: Format,
) -> Result<Option<(Rescale, Vec<Global>)>, Error> {
    if weight.shape.format() == Some(format) {
        return Ok(None);
    }
    let from = weight.shape.scale_type();
    let (used, uneven) = used(input, weight)?;
    let refuse = |groups: u64, why: String| {
        let tensor = weight.tensor.clone();
        Err(ModelError::Rescale { tensor, format, groups, why }.into())
    };
    let count = |bad: &dyn Fn(u8) -> bool| -> u64 {
        used.iter().enumerate().filter(|(byte, _)| bad(*byte as u8)).map(|(_, n)| n).sum()
    };
    let other = count(&|byte| power(from, byte).is_none());
    if other > 0 {
        return refuse(other, "their scales are no powers of two".into());
    }
    let exponents = (0..=255u8).filter(|&byte| used[usize::from(byte)] > 0);
    let exponents: Vec<i32> = exponents.filter_map(|byte| power(from, byte)).collect();
    let (low, high) = (exponents.iter().min().copied(), exponents.iter().max().copied());
    let (low, high) = (low.unwrap_or(0), high.unwrap_or(0));
    if format == Format::MxFp4 && uneven > 0 {
        return refuse(uneven, "the two halves of 32 elements have different scales".into());
    }
    let shift = match format {
        Format::NvFp4 => {
            let shift = high - 8;
            let below = count(&|byte| power(from, byte).is_some_and(|e| e < shift - 9));
            if below > 0 {
                let why = format!("scales from 2^{low} to 2^{high} are more than 2^17 apart");
                return refuse(below, why);
            }
            shift
        }
        // Where the global scale is a power of two the scales take it, and none is left.
        Format::MxFp4 => match weight.globals.iter().map(|g| power_of(g.multiplier())).collect() {
            Some(powers) => -common::<Vec<i32>>(powers).unwrap_or(0),
            None => 0,
        },
    };
    let mut map = Box::new([0; 256]);
    for byte in 0..=255u8 {
        let exponent = power(from, byte).unwrap_or(low) - shift;
        map[usize::from(byte)] = match format {
            Format::NvFp4 => e4m3_power(exponent.clamp(-9, 8)).unwrap_or(0),
            Format::MxFp4 => (exponent + 127).clamp(0, 254) as u8,
        };
        if format == Format::MxFp4
            && used[usize::from(byte)] > 0
            && !(-127..=127).contains(&exponent)
        {
            return refuse(used[usize::from(byte)], format!("2^{exponent} is no e8m0 scale"));
        }
    }
    // In f64 no power of two that can occur is lost; a product that f32 has not is.
    let product = |g: &Global| f64::from(g.multiplier()) * 2f64.powi(shift);
    let exact = |g: &&Global| f64::from(product(g) as f32) == product(g) && product(g) > 0.0;
    if let Some(global) = weight.globals.iter().find(|g| !exact(g)) {
        let why = format!("its global scale would be {:e}, which no f32 is", product(global));
        return refuse(used.iter().sum(), why);
    }
    let globals = weight.globals.iter().map(|g| Global::times(product(g) as f32));
    Ok(Some((Rescale { format, map }, globals.collect())))
}

/// The one value of a list, if it has one.
fn common<L: AsRef<[i32]>>(list: L) -> Option<i32> {
    let list = list.as_ref();
    list.first().copied().filter(|first| list.iter().all(|other| other == first))
}

/// How many groups that are not all zero have each scale byte, and how many pairs of groups differ.
fn used(input: &Checkpoint, weight: &Weight<'_>) -> Result<([u64; 256], u64), Error> {
    let (mut used, mut uneven) = ([0; 256], 0);
    let group = weight.shape.group().get();
    for source in &weight.sources {
        let (rows, k) = (source.rows.len(), weight.shape.k());
        for mut tile in tiles(rows, k, 1, DEFAULT_BLOCK_BYTES) {
            tile.row += source.rows.start;
            tile.start += source.rows.start * k;
            let packed = source.layer.packed(input, &tile)?;
            let groups = packed.codes().chunks_exact(group / 2).zip(packed.scales());
            let mut before = None;
            for (i, (codes, &byte)) in groups.enumerate() {
                let zero = codes.iter().all(|code| code & 0x77 == 0);
                used[usize::from(byte)] += u64::from(!zero);
                let this = (!zero).then_some(byte);
                uneven +=
                    u64::from(i % 2 == 1 && before.is_some() && this.is_some() && before != this);
                before = this;
            }
        }
    }
    Ok((used, uneven))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_the_powers_from_minus_nine_to_eight() {
        for exponent in -9..=8 {
            let byte = e4m3_power(exponent).unwrap();
            assert_eq!(ScaleType::E4M3.decode(byte), 2f32.powi(exponent), "{exponent}");
            assert_eq!(power(ScaleType::E4M3, byte), Some(exponent));
        }
        assert_eq!((e4m3_power(-10), e4m3_power(9)), (None, None));
        assert_eq!(power(ScaleType::E4M3, 0x39), None);
        assert_eq!(power(ScaleType::E4M3, 0xB8), None);
        assert_eq!(power(ScaleType::E8M0, 0), Some(-127));
    }

    #[test]
    fn a_power_of_two_is_told_from_what_is_near() {
        assert_eq!(power_of(0.125), Some(-3));
        assert_eq!(power_of(1.0 / 3.0), None);
        assert_eq!(power_of(f32::from_bits(0x3F80_0001)), None);
    }
}
