//! The one call of the `gemm` crate, which takes pointers.
#![allow(unsafe_code)]

use gemm::Parallelism;

/// `y = x W^T` in f32: x is (rows, inp), `weight` (out, inp), y (rows, out), all row-major. On the
/// threads of rayon's current pool.
///
/// The order of the sums depends on the shape, so a row's bits depend on its batch.
///
/// # Panics
/// If a slice is shorter than its shape.
pub(super) fn times_transposed(
    x: &[f32],
    weight: &[f32],
    y: &mut [f32],
    [rows, out, inp]: [usize; 3],
) {
    let len = |a: usize, b: usize| a.checked_mul(b).expect("slices of these lengths exist");
    assert!(x.len() >= len(rows, inp) && weight.len() >= len(out, inp));
    assert!(y.len() >= len(rows, out));
    let stride = |n: usize| isize::try_from(n).expect("a slice is shorter than isize::MAX");
    let threads = match rayon::current_num_threads() {
        1 => Parallelism::None,
        n => Parallelism::Rayon(n),
    };
    // SAFETY: every index (i, j) below its shape lies within the slice that was checked above;
    // y is borrowed exclusively and overlaps neither input.
    unsafe {
        gemm::gemm(
            rows,
            out,
            inp,
            y.as_mut_ptr(),
            1,
            stride(out),
            false,
            x.as_ptr(),
            1,
            stride(inp),
            weight.as_ptr(),
            stride(inp),
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}
