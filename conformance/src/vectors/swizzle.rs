//! Family d: the 128x4 scale layout in both directions, many ragged shapes ([C7]).
//!
//! `{case}.in` is a row-major (rows, cols) byte matrix, `{case}.out` its swizzled form, padding
//! zero. Four cases each: swizzle, unswizzle (once from what was recorded, once with garbage in
//! the padding), and the layout as two functions, `offset` and its inverse `coordinate`.
//!
//! [C7]: fp4_core::contract#c7

use fp4_core::Swizzle;
use safetensors::Dtype;

use super::file::Column;
use super::report::FileReport;
use super::{Error, GARBAGE, VectorFile, in_case};

pub(super) fn check(file: &VectorFile, report: &mut FileReport) -> Result<(), Error> {
    for name in file.tensor_names().filter_map(|name| name.strip_suffix(".in")) {
        let [rows, cols] = file.matrix_shape(&format!("{name}.in"))?;
        let layout = Swizzle::new(rows, cols).map_err(in_case(file, name))?;
        let scales = file.column(&format!("{name}.in"), Dtype::U8, &[rows, cols])?;
        let swizzled = file.column(&format!("{name}.out"), Dtype::U8, &[layout.len()])?;
        check_case(report, name, layout, &scales, &swizzled).map_err(in_case(file, name))?;
    }
    Ok(())
}

fn check_case(
    report: &mut FileReport,
    name: &str,
    layout: Swizzle,
    scales: &Column<u8>,
    swizzled: &Column<u8>,
) -> Result<(), fp4_core::Error> {
    let mut got = vec![GARBAGE; layout.len()];
    layout.swizzle(scales.values(), &mut got)?;
    report.case(format!("{name} swizzle")).compare("C7", swizzled, &got);

    let mut back = vec![GARBAGE; scales.values().len()];
    layout.unswizzle(swizzled.values(), &mut back)?;
    report.case(format!("{name} unswizzle")).compare("C7", scales, &back);

    // Padding is dropped whatever it holds, and by `coordinate` alone we know which bytes it is.
    let inside = |offset| layout.coordinate(offset).is_some_and(|(r, c)| is_inside(layout, r, c));
    let mut dirty = swizzled.values().to_vec();
    for (offset, byte) in dirty.iter_mut().enumerate() {
        *byte = if inside(offset) { *byte } else { GARBAGE };
    }
    let mut back = vec![GARBAGE; scales.values().len()];
    layout.unswizzle(&dirty, &mut back)?;
    report.case(format!("{name} unswizzle, padding dirty")).compare("C7", scales, &back);

    // Both matrices rebuilt byte by byte.
    let mut case = report.case(format!("{name} offset and coordinate"));
    let byte = |row, col| layout.offset(row, col).and_then(|at| swizzled.values().get(at)).copied();
    let by_offset: Vec<u8> = (0..scales.values().len())
        .map(|at| byte(at / layout.cols(), at % layout.cols()).unwrap_or(GARBAGE))
        .collect();
    case.compare("C7", scales, &by_offset);
    let by_coordinate: Vec<u8> = (0..layout.len())
        .map(|at| match layout.coordinate(at) {
            Some((r, c)) if is_inside(layout, r, c) => scales.values()[r * layout.cols() + c],
            Some(_) => 0,
            None => GARBAGE,
        })
        .collect();
    case.compare("C7", swizzled, &by_coordinate);
    Ok(())
}

fn is_inside(layout: Swizzle, row: usize, col: usize) -> bool {
    row < layout.rows() && col < layout.cols()
}
