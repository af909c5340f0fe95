//! One linear layer in firmware: no standard library, no allocator, every buffer the caller's.
//!
//! The weight lies in read-only memory, as the bytes that `fp4 quantize` writes; it is never
//! copied. A call quantizes one row of activations on the stack and multiplies it by the weight.
//!
//! ```sh
//! cargo test -p fp4-core --example no_std      # on this machine
//! .ci/steps/no-std                             # linked for a Cortex-M4, with no allocator
//! ```
//!
//! It is a library, because a program needs an entry point that only a board can give.

#![no_std]

use fp4_core::{Error, Format, PackedMut, PackedShape, PackedView, QuantSpec, QuantizeInput};
use fp4_core::{check_environment, narrow, reference};

/// Input features: two groups of NVFP4.
pub const K: usize = 32;
/// Output features.
pub const N: usize = 2;

/// Codes of the weight, two a byte: a row of ones (code 2), a row of halves and minus ones.
static CODES: [[u8; K / 2]; N] = [[0x22; K / 2], [0xA1; K / 2]];
/// Scale bytes of the weight, e4m3: 1 and 1; 2 and 1.
static SCALES: [[u8; K / 16]; N] = [[0x38, 0x38], [0x40, 0x38]];
/// Global scale of the weight.
const WEIGHT_SCALE: f32 = 0.25;

/// y = W x.
///
/// # Errors
/// [`Error::Environment`] on a core that flushes subnormals.
pub fn forward(x: &[f32; K], y: &mut [f32; N]) -> Result<(), Error> {
    check_environment()?;
    let spec = QuantSpec::usual(Format::NvFp4);
    let (mut codes, mut scales) = ([0; K / 2], [0; K / 16]);
    let mut a = PackedMut::new(spec.shape(1, K)?, &mut codes, &mut scales)?;
    reference::quantize(&QuantizeInput::new(&x[..], 1, K, &spec)?, &mut a)?;

    let shape = PackedShape::of(Format::NvFp4, N, K)?;
    let weight = PackedView::new(shape, CODES.as_flattened(), SCALES.as_flattened())?;
    let alpha = WEIGHT_SCALE * spec.global_scale();
    narrow::matmul(a.as_view(), weight, alpha, (&mut y[..]).into()).map(|_| ())
}

/// What a board does where a program for a desk would print and end.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_fp4_holds_exactly_gives_the_exact_product() {
        // amax 3 under gs = 0.1 is scale 5, and one unit is 0.5: every value here is a code.
        let mut x = [0.5; K];
        (x[0], x[16]) = (3.0, -3.0);
        let mut y = [f32::NAN; N];
        forward(&x, &mut y).unwrap();
        // By groups: row 0 is 0.25 * (10.5 + 4.5), row 1 is 0.25 * (2 * -0.75 - 3.75).
        assert_eq!(y, [3.75, -1.3125]);
    }
}
