//! The packed bytes of a prepared weight come back, bit for bit [C3, C9].

mod common;

use common::{Rng, SCALES, backends, each_isa, operand};
use fp4_core::{Dim, Error, Format, Matmul, PackedMatrix, PackedShape, PreparedWeight};

/// Rows around the panels' 8 and 16 columns, and K of odd numbers of groups, none included.
const SHAPES: [[usize; 2]; 9] =
    [[0, 64], [5, 0], [1, 32], [7, 96], [8, 32], [16, 160], [17, 64], [33, 352], [130, 1056]];

#[test]
fn a_prepared_weight_gives_back_the_bytes_it_was_made_from() {
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(71), 0);
        for format in Format::ALL {
            for [rows, k] in SHAPES {
                // NVFP4 also has half a chunk of 32.
                let k = if format == Format::NvFp4 && rows % 2 == 1 && k > 0 { k - 16 } else { k };
                for how in SCALES {
                    let b = operand(&mut rng, format, rows, k, how);
                    for (name, backend) in backends(on) {
                        let weight = backend.prepare(b.view()).unwrap();
                        let mut got = PackedMatrix::zeros(weight.shape());
                        got.view_mut().buffers().0.fill(0xA5);
                        got.view_mut().buffers().1.fill(0xA5);
                        backend.export_weight(&weight, &mut got.view_mut()).unwrap();
                        assert!(got == b, "{format} {rows}x{k} {how:?} {name}");
                        compared += b.codes().len() + b.scales().len();
                    }
                }
            }
        }
        println!("compared {compared} bytes");
        assert!(compared > 1_000_000);
    });
}

#[test]
fn every_code_comes_back_from_every_place_of_a_group() {
    each_isa(|on| {
        for format in Format::ALL {
            let shape = PackedShape::of(format, 16, 512).unwrap();
            // Byte values 0 to 255, in each row from another one on: both zeros in all places.
            let codes = (0..shape.codes_len()).map(|i| (i + i / 256 * 17) as u8).collect();
            let scales = (0..shape.scales_len()).map(|i| i as u8).collect();
            let b = PackedMatrix::new(shape, codes, scales).unwrap();
            let weight = on.prepare(b.view()).unwrap();
            let mut got = PackedMatrix::zeros(shape);
            on.export_weight(&weight, &mut got.view_mut()).unwrap();
            assert!(got == b, "{format}");
        }
    });
}

#[test]
fn another_shape_to_export_to_is_an_error() {
    each_isa(|on| {
        let b = PackedMatrix::zeros(PackedShape::of(Format::NvFp4, 5, 64).unwrap());
        let weight = on.prepare(b.view()).unwrap();
        let export = |format, rows, k| {
            let mut out = PackedMatrix::zeros(PackedShape::of(format, rows, k).unwrap());
            on.export_weight(&weight, &mut out.view_mut()).unwrap_err()
        };
        let rows = Error::ShapeMismatch { what: Dim::Rows, expected: 5, got: 4 };
        assert_eq!(export(Format::NvFp4, 4, 64), rows);
        let k = Error::ShapeMismatch { what: Dim::K, expected: 64, got: 80 };
        assert_eq!(export(Format::NvFp4, 5, 80), k);
        assert!(matches!(export(Format::MxFp4, 5, 64), Error::FormatMismatch { .. }));
    });
}
