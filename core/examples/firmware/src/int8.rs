//! A plain int8 layer, as inference on microcontrollers usually has it: y = (W x + bias) scaled by
//! a fixed-point multiplier and saturated. What FP4 is compared with.

/// One row of activations by `y.len()` rows of weights, row-major; `multiplier` is in units of
/// 2^-31 and `shift` more bits are dropped, to nearest, ties up. Buffers that do not fit change
/// nothing.
pub fn fully_connected(
    x: &[i8],
    weight: &[i8],
    bias: &[i32],
    multiplier: i32,
    shift: u32,
    y: &mut [i8],
) {
    if weight.len() != x.len() * y.len() || bias.len() != y.len() || shift > 31 || x.is_empty() {
        return;
    }
    for ((y, row), &bias) in y.iter_mut().zip(weight.chunks_exact(x.len())).zip(bias) {
        let products = x.iter().zip(row).map(|(&x, &w)| i32::from(x) * i32::from(w));
        let sum = bias.wrapping_add(products.fold(0, i32::wrapping_add));
        let dropped = 31 + shift;
        let scaled = i64::from(sum) * i64::from(multiplier) + (1 << (dropped - 1));
        *y = (scaled >> dropped).clamp(-128, 127) as i8;
    }
}
