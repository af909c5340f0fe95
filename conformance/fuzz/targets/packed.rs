//! Any shape and any lengths for the packed views, the scale layout and the padding: an error
//! exactly where a rule written again here says so, and else the bytes that the rule gives.

#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use fp4_core::{
    Format, GroupSize, PackedMatrix, PackedMut, PackedShape, PackedView, ScaleType, Swizzle, pack,
    pad_k, padded_k, unpack,
};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Request {
    rows: u8,
    groups: u8,
    to_rows: u8,
    to_groups: u8,
    format: u8,
    to_format: u8,
    /// Added to the right lengths: mostly zero.
    off: [i8; 2],
    start: u8,
    end: u8,
    /// Sizes as they are, for what overflows.
    huge: [usize; 2],
}

const GROUPS: [GroupSize; 4] = [GroupSize::G16, GroupSize::G32, GroupSize::G64, GroupSize::G128];

fuzz_target!(|data: &[u8]| {
    let mut source = Unstructured::new(data);
    let Ok(request) = Request::arbitrary(&mut source) else { return };
    let bytes = source.take_rest();
    sizes(&request);
    views(&request, bytes);
    padding(&request, bytes);
    layout(&request, bytes);
    nibbles(bytes);
});

/// `len` bytes: the input's, over and over.
fn fill(bytes: &[u8], len: usize) -> Vec<u8> {
    if bytes.is_empty() {
        vec![0x5A; len]
    } else {
        bytes.iter().copied().cycle().take(len).collect()
    }
}

fn kind(choice: u8) -> (ScaleType, GroupSize) {
    let ty = [ScaleType::E8M0, ScaleType::E4M3][usize::from(choice & 1)];
    (ty, GROUPS[usize::from(choice >> 1 & 3)])
}

fn shape(choice: u8, rows: u8, groups: u8) -> PackedShape {
    let (ty, group) = kind(choice);
    let k = usize::from(groups % 24) * group.get();
    PackedShape::new(usize::from(rows % 40), k, ty, group).expect("small and whole")
}

/// Shapes of any size: legal if whole groups and if the product fits.
fn sizes(request: &Request) {
    let [rows, k] = request.huge;
    let (ty, group) = kind(request.format);
    let is_legal = k.is_multiple_of(group.get()) && (rows as u128 * k as u128) < 1 << usize::BITS;
    let shape = PackedShape::new(rows, k, ty, group);
    assert_eq!(shape.is_ok(), is_legal, "{rows} x {k}, groups of {group}");
    if let Ok(shape) = shape {
        assert_eq!(shape.codes_len() as u128 * 2, rows as u128 * k as u128);
        assert_eq!(shape.scales_len() as u128 * group.get() as u128, rows as u128 * k as u128);
        assert!(PackedView::new(shape, &[], &[]).is_ok() == (shape.codes_len() == 0));
    }
    let up = |n: usize, to: u128| (n as u128).div_ceil(to) * to;
    assert_eq!(padded_k(k).ok().map(|k| k as u128), Some(up(k, 128)).filter(|k| k >> 64 == 0));
    let padded = [up(rows, 128), up(k, 4)];
    let fits = padded.iter().all(|n| n >> 64 == 0)
        && (padded[0].checked_mul(padded[1])).is_some_and(|n| n >> 64 == 0);
    assert_eq!(Swizzle::new(rows, k).is_ok(), fits, "{rows} x {k} scales");
    if let Ok(layout) = Swizzle::new(rows, k) {
        assert_eq!(layout.len() as u128, padded[0] * padded[1]);
        for offset in [0, layout.len() / 3, layout.len() / 2, layout.len().wrapping_sub(1)] {
            if let Some((row, col)) = layout.coordinate(offset) {
                assert_eq!(layout.offset(row, col), Some(offset));
            }
        }
        assert_eq!((layout.coordinate(layout.len()), layout.offset(usize::MAX, 0)), (None, None));
    }
}

/// Views: right lengths only, and every row, range and code where it should be.
fn views(request: &Request, bytes: &[u8]) {
    let shape = shape(request.format, request.rows, request.groups);
    let len = |right: usize, off: i8| right.saturating_add_signed(off.into());
    let codes = fill(bytes, len(shape.codes_len(), request.off[0]));
    let scales = fill(bytes, len(shape.scales_len(), request.off[1]));
    let is_legal = codes.len() == shape.codes_len() && scales.len() == shape.scales_len();
    let view = PackedView::new(shape, &codes, &scales);
    assert_eq!(view.is_ok(), is_legal);
    assert_eq!(PackedMatrix::new(shape, codes.clone(), scales.clone()).is_ok(), is_legal);
    let (mut mut_codes, mut mut_scales) = (vec![1; codes.len()], vec![1; scales.len()]);
    let target = PackedMut::new(shape, &mut mut_codes, &mut mut_scales);
    assert_eq!(target.is_ok(), is_legal);
    let (Ok(view), Ok(mut target)) = (view, target) else { return };

    target.copy_from(view).expect("one shape");
    assert_eq!(target.as_view(), view);
    let (k, groups) = (shape.k(), shape.row_groups());
    for i in 0..shape.rows() {
        assert_eq!(view.row_codes(i), &codes[i * k / 2..(i + 1) * k / 2]);
        assert_eq!(view.row_scales(i), &scales[i * groups..(i + 1) * groups]);
        let nan = view.row_scales(i).iter().any(|&s| match shape.scale_type() {
            ScaleType::E8M0 => s == 255,
            ScaleType::E4M3 => s % 128 == 127,
        });
        assert_eq!(view.row_has_nan(i), nan);
        for j in [0, 1, k / 2, k.saturating_sub(1), k, usize::MAX] {
            let expected = (j < k).then(|| codes[(i * k + j) / 2] >> (4 * (j % 2)) & 15);
            assert_eq!(view.code(i, j).map(|code| code.to_bits()), expected);
        }
    }
    assert_eq!(view.code(shape.rows(), 0), None);
    let (start, end) = (usize::from(request.start % 48), usize::from(request.end % 48));
    let part = view.rows_range(start..end);
    assert_eq!(part.is_ok(), start <= end && end <= shape.rows());
    if let Ok(part) = part {
        assert_eq!(part.codes(), &codes[start * k / 2..end * k / 2]);
        assert_eq!(part.scales(), &scales[start * groups..end * groups]);
    }
    assert_eq!(shape.expect_groups(&(start..end)).is_ok(), start <= end && end <= groups);
    let format = Format::ALL
        .into_iter()
        .find(|f| (f.scale_type(), f.group()) == (shape.scale_type(), shape.group()));
    assert_eq!(shape.expect_format().ok(), format);
}

/// Padding K: legal to a K that is not smaller, in one format with the same rows.
fn padding(request: &Request, bytes: &[u8]) {
    let from = shape(request.format, request.rows, request.groups);
    let to_rows = if request.to_rows % 4 == 0 { request.to_rows } else { request.rows };
    let choice = if request.to_format % 4 == 0 { request.to_format } else { request.format };
    let to = shape(choice, to_rows, request.to_groups);
    let (codes, scales) = (fill(bytes, from.codes_len()), fill(bytes, from.scales_len()));
    let view = PackedView::new(from, &codes, &scales).expect("right lengths");
    let (mut wide, mut wide_scales) = (vec![0xA5; to.codes_len()], vec![0xA5; to.scales_len()]);
    let mut out = PackedMut::new(to, &mut wide, &mut wide_scales).expect("right lengths");
    let is_legal = (from.scale_type(), from.group(), from.rows())
        == (to.scale_type(), to.group(), to.rows())
        && to.k() >= from.k();
    assert_eq!(pad_k(view, &mut out).is_ok(), is_legal);
    if !is_legal {
        return;
    }
    let check = |got: &[u8], kept: &[u8], wide: usize, narrow: usize| {
        for (at, &byte) in got.iter().enumerate() {
            let (row, column) = (at / wide, at % wide);
            let expected = if column < narrow { kept[row * narrow + column] } else { 0 };
            assert_eq!(byte, expected, "({row}, {column})");
        }
    };
    check(&wide, &codes, to.row_bytes(), from.row_bytes());
    check(&wide_scales, &scales, to.row_groups(), from.row_groups());
}

/// The 128x4 layout: both directions and both functions against the formula.
fn layout(request: &Request, bytes: &[u8]) {
    let (rows, cols) = (usize::from(request.rows) * 3 % 300, usize::from(request.groups % 14));
    let layout = Swizzle::new(rows, cols).expect("small");
    let scales = fill(bytes, rows * cols);
    let (across, len) = (cols.div_ceil(4), rows.div_ceil(128) * cols.div_ceil(4) * 512);
    assert_eq!(layout.len(), len);
    let mut expected = vec![0; len];
    for (i, &byte) in scales.iter().enumerate() {
        let (r, c) = (i / cols, i % cols);
        let at = (r / 128 * across + c / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4;
        expected[at] = byte;
        assert_eq!((layout.offset(r, c), layout.coordinate(at)), (Some(at), Some((r, c))));
    }
    let mut swizzled = vec![0xA5; len.saturating_add_signed(request.off[0].into())];
    let mut back = vec![0xA5; (rows * cols).saturating_add_signed(request.off[1].into())];
    let is_legal = swizzled.len() == len;
    assert_eq!(layout.swizzle(&scales, &mut swizzled).is_ok(), is_legal);
    let is_back = is_legal && back.len() == rows * cols;
    assert_eq!(layout.unswizzle(&swizzled, &mut back).is_ok(), is_back);
    assert!(!is_legal || swizzled == expected);
    assert!(!is_back || back == scales);
}

/// Packing and unpacking are inverse; lengths must fit.
fn nibbles(bytes: &[u8]) {
    let mut codes = vec![0xA5; 2 * bytes.len()];
    unpack(bytes, &mut codes).expect("twice as long");
    let mut packed = vec![0xA5; bytes.len()];
    pack(&codes, &mut packed).expect("half as long");
    assert_eq!(packed, bytes);
    assert!(unpack(bytes, &mut vec![0; 2 * bytes.len() + 1]).is_err());
    assert!(pack(&codes, &mut vec![0; bytes.len() + 1]).is_err());
}
