//! Second moments.

use fp4_core::GroupSize;
use quant_linear::calibrate::{BlockTransform, Gram, Moments};
use quant_linear::{CalibrateError, Error};

use crate::data::{correlated, on_threads};

fn error(result: Result<impl Sized, Error>) -> CalibrateError {
    match result.err() {
        Some(Error::Calibrate(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_worked_example() {
    let gram = Gram::of_rows(&[1.0, 2.0, 3.0, 4.0], 2).unwrap();
    assert_eq!((gram.lower(), gram.samples()), (vec![10.0, 14.0, 20.0], 2));
    assert_eq!((gram.get(0, 1), gram.get(1, 0)), (14.0, 14.0));
}

#[test]
fn sums_are_those_of_a_plain_loop() {
    // Ragged tiles and pieces.
    for (rows, k) in [(1300, 208), (512, 192), (3, 400), (1, 1)] {
        let x = correlated(rows, k, 5);
        let gram = Gram::of_rows(&x, k).unwrap();
        let mut worst = 0f64;
        for i in 0..k {
            for j in 0..k {
                let terms = x.chunks_exact(k).map(|x| f64::from(x[i]) * f64::from(x[j]));
                let scale = (gram.get(i, i) * gram.get(j, j)).sqrt();
                worst = worst.max((terms.sum::<f64>() - gram.get(i, j)).abs() / scale);
            }
        }
        assert!(worst < 1e-14, "{rows} x {k}: {worst}");
    }
}

#[test]
fn bits_depend_neither_on_the_cut_nor_on_threads() {
    let (rows, k) = (1500, 320);
    let x = correlated(rows, k, 6);
    let whole = on_threads(1, || Gram::of_rows(&x, k).unwrap());
    for cut in [1, 7, 512, 700] {
        let gram = on_threads(2, || {
            let mut moments = Moments::new(k);
            x.chunks(cut * k).for_each(|rows| moments.add(rows).unwrap());
            assert_eq!(moments.samples(), rows as u64);
            moments.finish()
        });
        assert_eq!(gram, whole, "{cut}");
    }
}

#[test]
fn what_is_not_finite_is_named_by_row_and_column_and_adds_nothing() {
    let mut moments = Moments::new(4);
    moments.add(&[1.0; 8]).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut rows = [2.0; 12];
        rows[9] = bad;
        let found = error(moments.add(&rows));
        let CalibrateError::NotFinite { what: "activations", row: 4, column: 1, value } = found
        else {
            panic!("{found}");
        };
        assert_eq!(value.to_string(), f64::from(bad).to_string());
    }
    let ragged = error(moments.add(&[1.0; 6]));
    assert_eq!(ragged, CalibrateError::Ragged { what: "activations", k: 4, got: 6 });
    let gram = moments.finish();
    assert_eq!((gram.samples(), gram.get(3, 1)), (2, 2.0));
}

#[test]
fn parts_come_back_and_broken_ones_are_refused() {
    let gram = Gram::of_rows(&correlated(40, 48, 7), 48).unwrap();
    let lower = gram.lower();
    assert_eq!(Gram::from_parts(48, 40, &lower).unwrap(), gram);
    let expected = CalibrateError::TriangleLen { k: 48, expected: 1176, got: 1175 };
    assert_eq!(error(Gram::from_parts(48, 40, &lower[1..])), expected);
    let with = |at: usize, value: f64| {
        let mut lower = lower.clone();
        lower[at] = value;
        error(Gram::from_parts(48, 40, &lower))
    };
    let found = with(4, f64::INFINITY);
    assert!(matches!(found, CalibrateError::NotFinite { row: 2, column: 1, .. }), "{found}");
    assert_eq!(with(5, -1.0), CalibrateError::NegativeMoment { index: 2, value: -1.0 });
}

#[test]
fn merging_adds_and_blocks_are_on_the_diagonal() {
    let (k, x) = (64, correlated(900, 64, 8));
    let mut gram = Gram::of_rows(&x[..512 * k], k).unwrap();
    gram.merge(&Gram::of_rows(&x[512 * k..], k).unwrap()).unwrap();
    assert_eq!(gram, Gram::of_rows(&x, k).unwrap());
    let expected =
        CalibrateError::Width { what: "the other second moments", expected: 64, got: 32 };
    assert_eq!(error(gram.merge(&Gram::of_rows(&x, 32).unwrap())), expected);
    let most = Gram::from_parts(1, u64::MAX, &[1.0]).unwrap();
    assert_eq!(error(most.clone().merge(&most)), CalibrateError::TooManySamples);
    let blocks = gram.blocks(GroupSize::G32).unwrap();
    assert_eq!((blocks.len(), blocks[1].k(), blocks[1].samples()), (2, 32, 900));
    assert_eq!(blocks[1].get(3, 5), gram.get(35, 37));
    assert_eq!(error(gram.blocks(GroupSize::G128)), CalibrateError::Blocks { k: 64, block: 128 });
}

#[test]
fn transformed_moments_are_those_of_transformed_rows() {
    let (k, x) = (96, correlated(300, 96, 9));
    let gram = Gram::of_rows(&x, k).unwrap();
    let t = BlockTransform::random_orthogonal(k, GroupSize::G32, 3).unwrap();
    let (got, y) = (gram.transformed(&t).unwrap(), t.activations_through_f64(&x).unwrap());
    for i in 0..k {
        for j in 0..k {
            let expected: f64 = y.chunks_exact(k).map(|y| y[i] * y[j]).sum();
            let scale = (got.get(i, i) * got.get(j, j)).sqrt();
            assert!((expected - got.get(i, j)).abs() < 1e-12 * scale, "{i} {j}");
        }
    }
    let narrow = BlockTransform::identity(64, GroupSize::G32).unwrap();
    let expected = CalibrateError::Width { what: "the transform", expected: 96, got: 64 };
    assert_eq!(error(gram.transformed(&narrow)), expected);
    let none = BlockTransform::identity(96, GroupSize::G32).unwrap();
    assert_eq!(gram.transformed(&none).unwrap(), gram);
}
