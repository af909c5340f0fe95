//! What the core does, as a device calls it: every buffer the caller's, and every length unknown to
//! the compiler, so that no check is folded away.

use core::hint::black_box;

use fp4_core::{
    Epilogue, Error, Format, PackedMut, PackedShape, PackedView, QuantSpec, QuantizeInput, Swizzle,
    narrow, reference,
};

use crate::int8;

/// One row of activations to codes and scales.
///
/// # Errors
/// Lengths that do not fit, or a processor that flushes subnormals.
pub fn quantize(
    x: &[f32],
    spec: &QuantSpec,
    codes: &mut [u8],
    scales: &mut [u8],
) -> Result<(), Error> {
    let mut out = PackedMut::new(spec.shape(1, x.len())?, codes, scales)?;
    reference::quantize(&QuantizeInput::new(x, 1, x.len(), spec)?, &mut out)?;
    Ok(())
}

/// One row of codes back to values.
///
/// # Errors
/// As [`quantize`].
pub fn dequantize(
    codes: &[u8],
    scales: &[u8],
    spec: &QuantSpec,
    y: &mut [f32],
) -> Result<(), Error> {
    let packed = PackedView::new(spec.shape(1, y.len())?, codes, scales)?;
    reference::dequantize(packed, spec.global_scale(), y.into())
}

/// Scale bytes into tiles of 128 x 4.
///
/// # Errors
/// As [`quantize`].
pub fn swizzle(scales: &[u8], cols: usize, tiles: &mut [u8]) -> Result<(), Error> {
    Swizzle::new(scales.len().checked_div(cols).unwrap_or(0), cols)?.swizzle(scales, tiles)
}

/// A layer: packed codes and scales of its weight, in flash, and a bias.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// The weight's format.
    pub format: Format,
    /// Input features.
    pub k: usize,
    /// The weight's codes.
    pub codes: &'a [u8],
    /// The weight's scales.
    pub scales: &'a [u8],
    /// What every sum is multiplied by, and what is added.
    pub epilogue: Epilogue<'a>,
}

impl Layer<'_> {
    /// One row of activations, packed by `shape`, by the weight: with the sums that their scales
    /// ask for.
    ///
    /// # Errors
    /// As [`quantize`].
    pub fn forward(&self, x: PackedView<'_>, y: &mut [f32]) -> Result<(), Error> {
        narrow::matmul(x, self.weight(y.len())?, self.epilogue, y.into()).map(|_| ())
    }

    /// The same with the reference's sums, of 640 bits.
    ///
    /// # Errors
    /// As [`quantize`].
    pub fn forward_wide(&self, x: PackedView<'_>, y: &mut [f32]) -> Result<(), Error> {
        reference::matmul(x, self.weight(y.len())?, self.epilogue, y.into())
    }

    fn weight(&self, n: usize) -> Result<PackedView<'_>, Error> {
        PackedView::new(PackedShape::of(self.format, n, self.k)?, self.codes, self.scales)
    }
}

/// The largest K and N of the images below.
const MOST: usize = 128;

/// Bytes in flash, of a length that the compiler does not know.
fn bytes(len: usize) -> &'static [u8] {
    static BYTES: [u8; MOST * MOST] = [0x38; MOST * MOST];
    black_box(BYTES.get(..black_box(len)).unwrap_or(&[]))
}

/// Settings that the compiler does not know.
fn settings() -> QuantSpec {
    black_box(QuantSpec::usual(Format::NvFp4))
}

/// What each image calls, by the image's name.
pub mod images {
    use super::{
        Epilogue, Layer, MOST, PackedView, black_box, bytes, dequantize, int8, quantize, settings,
        swizzle,
    };

    /// Nothing: what every program has.
    pub fn empty() {
        black_box(bytes(1));
        black_box(settings());
    }

    /// Quantization, with every transform, rule and element.
    pub fn quantization() {
        let (mut codes, mut scales) = ([0; MOST / 2], [0; MOST / 16]);
        let x = black_box(&[1f32; MOST][..]);
        let done = quantize(x, &settings(), black_box(&mut codes[..]), black_box(&mut scales[..]));
        let _ = black_box(done);
    }

    /// Dequantization.
    pub fn dequantization() {
        let mut y = [0f32; MOST];
        let y = black_box(&mut y[..]);
        let _ = black_box(dequantize(bytes(MOST / 2), bytes(MOST / 16), &settings(), y));
    }

    /// The layout of scales.
    pub fn swizzling() {
        let mut tiles = [0; 1024];
        let tiles = black_box(&mut tiles[..]);
        let _ = black_box(swizzle(bytes(MOST * 8), black_box(8), tiles));
    }

    fn layer() -> Option<(PackedView<'static>, Layer<'static>)> {
        let k = black_box(MOST);
        let shape = settings().shape(1, k).ok()?;
        let layer = Layer {
            format: shape.format()?,
            k,
            codes: bytes(MOST * MOST / 2),
            scales: bytes(MOST * MOST / 16),
            epilogue: black_box(Epilogue::new(1.0).with_bias(Some(&[0.5; MOST]))),
        };
        Some((PackedView::new(shape, bytes(MOST / 2), bytes(MOST / 16)).ok()?, layer))
    }

    /// A layer, by narrow sums.
    pub fn multiplication() {
        let mut y = [0f32; MOST];
        if let Some((x, layer)) = layer() {
            let _ = black_box(layer.forward(black_box(x), black_box(&mut y[..])));
        }
    }

    /// A layer, by the reference.
    pub fn multiplication_wide() {
        let mut y = [0f32; MOST];
        if let Some((x, layer)) = layer() {
            let _ = black_box(layer.forward_wide(black_box(x), black_box(&mut y[..])));
        }
    }

    /// A layer of int8.
    pub fn multiplication_int8() {
        let (x, w) = (black_box(&[1i8; MOST][..]), black_box(&[1i8; MOST * MOST][..]));
        let (bias, mut y) = (black_box(&[1i32; MOST][..]), [0i8; MOST]);
        let y = black_box(&mut y[..]);
        int8::fully_connected(x, w, bias, black_box(1 << 24), black_box(3), y);
    }
}
