//! The contract with numbers: every clause computed, printed, and compared with what was worked
//! out by hand. The clauses are those of [`fp4_core::contract`].
//!
//! ```sh
//! cargo run --release -p fp4-core --example clauses
//! ```

use std::fmt::{Debug, UpperHex};

use fp4_core::*;

/// Prints what a clause gives, and stops where it is not what was worked out.
fn show<T: Debug + PartialEq>(clause: &str, what: &str, got: T, expected: T) {
    println!("{clause:5} {what:64} {got:?}");
    assert_eq!(got, expected, "{clause}: {what}");
}

/// As [`show`], in hexadecimal.
fn bits<T, const N: usize>(clause: &str, what: &str, got: [T; N], expected: [T; N])
where
    T: UpperHex + Debug + PartialEq,
{
    let text: Vec<_> = got.iter().map(|bits| format!("{bits:#04X}")).collect();
    println!("{clause:5} {what:64} {}", text.join(" "));
    assert_eq!(got, expected, "{clause}: {what}");
}

fn main() -> Result<(), Error> {
    c1();
    c2();
    c3()?;
    c4()?;
    c5()?;
    c6()?;
    c6_partials()?;
    c7()?;
    c8()?;
    c9();
    c10()?;
    Ok(())
}

fn c1() {
    let tie = TieMode::ALL.map(|tie| E2m1::from_f32_tie(-0.75, tie).to_f32());
    show("C1", "-0.75 with ties to even, to zero, down, up", tie, [-1.0, -0.5, -1.0, -0.5]);
    let codes = [f32::INFINITY, -0.0, -0.2, -f32::NAN].map(|x| E2m1::from_f32(x).to_bits());
    bits("C1", "the codes of inf, -0, -0.2 and a NaN", codes, [0x7, 0x8, 0x8, 0x7]);
}

fn c2() {
    let powers = [1.49, 1.5].map(|s| E8m0::from_f32(s).to_f32());
    show("C2", "1.49 and 1.5 in e8m0, ties up", powers, [1.0, 2.0]);
    let scales = [1000.0, -17.0, 0.0146].map(|s| E4m3::from_f32(s).to_f32());
    show("C2", "1000, -17 and 0.0146 in e4m3", scales, [448.0, -16.0, 7.0 / 512.0]);
}

fn c3() -> Result<(), Error> {
    let mut bytes = [0; 2];
    pack(&[1, 2, 3, 4], &mut bytes)?;
    bits("C3", "the codes 1, 2, 3, 4 along K are the bytes", bytes, [0x21, 0x43]);
    Ok(())
}

/// One group of 16 in NVFP4, with gs = 0.1 and ss = 6.
fn c4() -> Result<(), Error> {
    let spec = QuantSpec::usual(Format::NvFp4);
    let mut x = [0.5f32; 16];
    (x[0], x[1]) = (3.0, -0.6);
    let input = QuantizeInput::new(&x[..], 1, 16, &spec)?;
    let (mut codes, mut scales) = ([0; 8], [0; 1]);
    let mut packed = PackedMut::new(input.shape(), &mut codes, &mut scales)?;
    reference::quantize(&input, &mut packed)?;
    let view = packed.as_view();
    let divisor = spec.scale_scale() * spec.global_scale();
    show("C4.2", "amax is 3 by C4.1, and s = 3 / (6 * 0.1)", 3.0 / divisor, 5.0);
    bits("C4.2", "the scale 5 as a byte", [view.scales()[0]], [0x4A]);
    bits("C4.3", "d = 5 * 0.1; 3 and -0.6 are 6 and -1, two codes", [view.codes()[0]], [0xA7]);
    let mut back = [0f32; 16];
    reference::dequantize(view, spec.global_scale(), (&mut back[..]).into())?;
    show("C4.4", "3, -0.6, 0.5 are now worth", [back[0], back[1], back[2]], [3.0, -0.5, 0.5]);

    // Under the given scale byte 0 d is 0, and only signs are left: that of a NaN too.
    (x[0], x[1], x[2]) = (-f32::NAN, f32::NAN, -7.0);
    let input = QuantizeInput::new(&x[..], 1, 16, &spec)?.with_scales(&[0])?;
    reference::quantize(&input, &mut packed)?;
    let view = packed.as_view();
    bits(
        "C4.3",
        "d = 0: -NaN and NaN, -7 and 0.5",
        [view.codes()[0], view.codes()[1]],
        [0x08, 0x08],
    );
    show("C4", "the global scale for amax 1344: 1344 / 2688", nvfp4_global_scale(1344.0)?, 0.5);
    Ok(())
}

fn c5() -> Result<(), Error> {
    let mut values = [0f32; 256];
    hadamard(16, &mut values)?;
    let transform = Transform::shared(&values[..], 16)?;
    let (mut x, mut y) = ([0f32; 16], [0f32; 16]);
    x[0] = 4.0;
    reference::apply_transform((&x[..]).into(), 16, &transform, (&mut y[..]).into())?;
    show("C5", "an outlier of 4 spread over 16 columns is 16 times", y[0], 1.0);
    assert_eq!(y, [1.0; 16]);
    let step = f32::EPSILON; // 2^-23
    let fused = fma(1.0 + step, 1.0 - step, -1.0);
    show("C5", "(1 + 2^-23) (1 - 2^-23) - 1 with one rounding", fused, -step * step);
    Ok(())
}

/// One element that is not zero: 6 under the scale byte.
const SIX: [u8; 8] = [7, 0, 0, 0, 0, 0, 0, 0];

fn one_group(scale: &[u8]) -> Result<PackedView<'_>, Error> {
    PackedView::new(PackedShape::of(Format::NvFp4, 1, 16)?, &SIX, scale)
}

fn product(a: PackedView<'_>, b: PackedView<'_>, alpha: f32) -> Result<f32, Error> {
    let mut y = [f32::NAN];
    reference::matmul(a, b, alpha, (&mut y[..]).into())?;
    Ok(y[0])
}

fn c6() -> Result<(), Error> {
    let (five, one) = (one_group(&[0x4A])?, one_group(&[0x38])?);
    show("C6", "S = 6 * 5 * 6 * 1, and alpha = 0.5", product(five, one, 0.5)?, 90.0);
    let epilogue = Epilogue::new(0.5).with_row_scales(Some(&[0.5])).with_bias(Some(&[1.0]));
    let mut y = [f32::NAN];
    reference::matmul(five, one, epilogue, (&mut y[..]).into())?;
    show("C6", "180 * (0.5 * 0.5) + 1: a row scale of 0.5 and a bias of 1", y[0], 46.0);
    let minus_zero = product(one_group(&[0x80])?, one, 1.0)?;
    bits("C6", "S = 6 * -0 * 6 * 1 is +0", [minus_zero.to_bits()], [0]);
    let nan = product(one_group(&[0x7F])?, one, 1.0)?;
    bits("C6", "a NaN scale makes the NaN of C9", [nan.to_bits()], [0x7FC0_0000]);
    Ok(())
}

fn c6_partials() -> Result<(), Error> {
    // 1 * 1 in one half of K, 1 * 1 under the scale 2^-6 squared in the other.
    let (mut codes, scales) = ([0; 16], [0x38, 0x08]);
    (codes[0], codes[8]) = (0x02, 0x02);
    let a = PackedView::new(PackedShape::of(Format::NvFp4, 1, 32)?, &codes, &scales)?;
    let (mut first, mut second) = ([ExactSum::ZERO], [ExactSum::ZERO]);
    reference::partial(a, a, 0..1, PartialsMut::Exact(&mut first))?;
    reference::partial(a, a, 1..2, PartialsMut::Exact(&mut second))?;
    first[0].merge(&second[0]);
    let mut y = [f32::NAN];
    finish(Partials::Exact(&first), [1, 1], 1f32, (&mut y[..]).into())?;
    show("C6", "two halves of K, merged: 1 + 2^-12", y[0], 1.0 + 1.0 / 4096.0);

    let (mut large, mut tiny) = (ExactSum::ZERO, ExactSum::ZERO);
    large.add_scaled((1 << 24) + 1, 0)?;
    tiny.add_scaled(1, -30)?;
    let rounded_early = large.to_f32() + tiny.to_f32();
    large.merge(&tiny);
    show("C6", "2^24 + 1 + 2^-30, rounded once", large.to_f32(), 16_777_218.0);
    show("C6", "the same of rounded parts, which is wrong", rounded_early, 16_777_216.0);
    Ok(())
}

fn c7() -> Result<(), Error> {
    let layout = Swizzle::new(5, 5)?;
    show("C7", "5 x 5 scales take two tiles, in bytes", layout.len(), 1024);
    show("C7", "row 4, column 4 sits at 512 + 4 * 16", layout.offset(4, 4), Some(576));
    show("C7", "and back", layout.coordinate(576), Some((4, 4)));
    Ok(())
}

fn c8() -> Result<(), Error> {
    let (mut codes, mut scales) = ([0xEE; 64], [0xEE; 8]);
    let shape = PackedShape::of(Format::NvFp4, 1, padded_k(16)?)?;
    let mut padded = PackedMut::new(shape, &mut codes, &mut scales)?;
    pad_k(one_group(&[0x4A])?, &mut padded)?;
    let y = product(padded.as_view(), padded.as_view(), 1.0)?;
    show("C8", "30 * 30, with K padded from 16 to 128", y, 900.0);
    Ok(())
}

fn c9() {
    let payload = f32::from_bits(0xFFC0_1234);
    let (f32_of, half_of) = (<f32 as Float>::from_f32, <f16 as Float>::from_f32);
    bits("C9", "any NaN is canonical in f32", [f32_of(payload).to_bits()], [0x7FC0_0000]);
    bits("C9", "any NaN is canonical in f16", [half_of(payload).to_bits()], [0x7E00]);
    let scales = [E8m0::from_f32(payload).to_bits(), E4m3::from_f32(payload).to_bits()];
    bits("C9", "and as a scale byte of e8m0 and of e4m3", scales, [0xFF, 0x7F]);
    show("C9", "this thread rounds to nearest, subnormals kept", check_environment(), Ok(()));
}

fn c10() -> Result<(), Error> {
    let scales = [1.0, 127.0 / 64.0, 1.99, f32::MAX].map(mxint8::scale);
    bits(
        "C10",
        "scales of amax 1, 127 / 64, 1.99 and the largest f32",
        scales,
        [127, 127, 128, 254],
    );
    let spec = QuantSpec::mxint8();
    let mut x = [0f32; 32];
    (x[0], x[1], x[2], x[3]) = (1.0, -1.0, 0.5 / 64.0, 1.5 / 64.0);
    let (mut codes, mut scales) = ([0; 32], [0; 1]);
    let mut a = PackedMut::new(spec.shape(1, 32)?, &mut codes, &mut scales)?;
    reference::quantize(&QuantizeInput::new(&x[..], 1, 32, &spec)?, &mut a)?;
    let elements = core::array::from_fn(|k| a.as_view().int8(0, k).unwrap_or(0));
    show("C10", "elements of 1, -1 and the ties 0.5 / 64 and 1.5 / 64", elements, [64, -64, 0, 2]);
    let mut y = [0f32; 32];
    reference::dequantize(a.as_view(), 1.0, (&mut y[..]).into())?;
    show("C10", "and what they are worth", [y[0], y[1], y[2], y[3]], [1.0, -1.0, 0.0, 0.03125]);

    // By a weight of ones: code 2 under the scale 1, in either format.
    for format in Format::ALL {
        let shape = PackedShape::of(format, 1, 32)?;
        let one = format.scale_type().encode(1.0);
        let scales = [one; 2];
        let b = PackedView::new(shape, &[0x22; 16], &scales[..shape.scales_len()])?;
        let mut product = [0f32; 1];
        reference::matmul(a.as_view(), b, 1.0, (&mut product[..]).into())?;
        show("C10", &format!("their sum, as the product by ones in {format}"), product, [0.03125]);
    }
    Ok(())
}
