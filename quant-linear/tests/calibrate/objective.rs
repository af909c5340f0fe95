//! The objective of weight and activations.

use fp4_core::{Format, GroupSize, QuantSpec};
use quant_linear::calibrate::{
    BlockTransform, Gram, Joint, JointMoments, Method, QuantizeOptions, loss, quantize_weight,
};
use quant_linear::{CalibrateError, Error};

use crate::data::{
    Numbers, amax, correlated, off, on_threads, product, spec, weight, wide, with_outliers,
};

fn joint(x: &[f32], xq: &[f32], k: usize) -> Joint {
    let mut moments = JointMoments::new(k);
    moments.add(x, xq).unwrap();
    moments.finish()
}

#[test]
fn the_worked_example_and_the_sums() {
    let moments = joint(&[1.0, 2.0], &[1.0, 3.0], 1);
    assert_eq!((moments.cross(0, 0), moments.gram().get(0, 0)), (7.0, 10.0));
    assert_eq!(moments.target(&[1.0], 0.0).unwrap(), [0.7]);
    let (x, q, k) = (correlated(700, 200, 1), correlated(700, 200, 2), 200);
    let moments = joint(&x, &q, k);
    for (i, j) in [(0, 0), (3, 170), (170, 3), (199, 199), (100, 128)] {
        let pairs = x.chunks_exact(k).zip(q.chunks_exact(k));
        let expected: f64 = pairs.map(|(x, q)| f64::from(x[i]) * f64::from(q[j])).sum();
        assert!((moments.cross(i, j) - expected).abs() < 1e-9, "{i} {j}");
    }
    assert_eq!(*moments.gram(), Gram::of_rows(&q, k).unwrap());
    let cut = on_threads(2, || {
        let mut moments = JointMoments::new(k);
        x.chunks(13 * k).zip(q.chunks(13 * k)).for_each(|(x, q)| moments.add(x, q).unwrap());
        moments.finish()
    });
    assert_eq!(cut.cross(150, 20).to_bits(), moments.cross(150, 20).to_bits());
    assert_eq!(cut.gram(), moments.gram());
    let mut halves = joint(&x[..512 * k], &q[..512 * k], k);
    halves.merge(&joint(&x[512 * k..], &q[512 * k..], k)).unwrap();
    assert_eq!(halves.cross(150, 20).to_bits(), moments.cross(150, 20).to_bits());
}

/// ||X W^T - Xq Q^T||^2 + l ||W - Q||^2 and tr((Q - W') (H + l I) (Q - W')^T) differ by the same
/// for every Q: brute force over Q, and by plain loops.
#[test]
fn the_target_stands_for_the_loss_of_weight_and_activations() {
    let (k, samples, rows, damping) = (6, 40, 2, 0.05);
    let (x, w) = (correlated(samples, k, 3), weight(rows, k, 4));
    let xq: Vec<f32> = x.iter().map(|x| (x * 1.3).round() / 1.3).collect();
    let moments = joint(&x, &xq, k);
    let target = wide(&moments.target(&w, damping).unwrap());
    let l = damping * moments.gram().mean_diagonal();
    let expected = product(&wide(&x), &wide(&w), k);
    let mut numbers = Numbers(5);
    let differences: Vec<f64> = (0..200)
        .map(|_| {
            let q: Vec<f64> = (0..rows * k).map(|_| numbers.gaussian() * 0.2).collect();
            let square = |a: &[f64], b: &[f64]| -> f64 {
                a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
            };
            let whole = square(&expected, &product(&wide(&xq), &q, k)) + l * square(&wide(&w), &q);
            let mut form = 0.0;
            for r in 0..rows {
                for i in 0..k {
                    for j in 0..k {
                        let h = moments.gram().get(i, j) + if i == j { l } else { 0.0 };
                        let off = |i: usize| q[r * k + i] - target[r * k + i];
                        form += off(i) * h * off(j);
                    }
                }
            }
            whole - form
        })
        .collect();
    for d in &differences {
        assert!((d - differences[0]).abs() < 1e-4 * differences[0].abs(), "{d} {}", differences[0]);
    }
    // Where nothing is quantized the target is the weight, whatever the damping.
    let same = joint(&x, &x, k);
    assert!(off(&wide(&same.target(&w, damping).unwrap()), &wide(&w)) < 1e-12);
}

#[test]
fn what_activations_lose_is_made_up_for_by_the_weight() {
    let k = 128;
    let (x, w) = (with_outliers(800, k, 6), weight(64, k, 7));
    let t = BlockTransform::identity(k, GroupSize::G32).unwrap();
    for format in Format::ALL {
        let activations = QuantSpec::for_weight(format, amax(&x)).unwrap();
        let xq = loss::quantized_rows(&x, k, &activations).unwrap();
        let joint = joint(&x, &xq, k);
        let spec = spec(format, &w);
        let lost = |weight: &[f32], gram: &Gram, method| {
            let options = QuantizeOptions::new(spec, method);
            let packed = quantize_weight(weight, k, Some(gram), &options).unwrap();
            let gs = spec.global_scale();
            loss::of_layer(&x, &w, &t, packed.view(), gs, &activations).unwrap().ratio()
        };
        let gram = Gram::of_rows(&x, k).unwrap();
        let target = joint.target(&w, 1e-2).unwrap();
        let rtn = lost(&w, &gram, Method::Rtn);
        let weight_only = lost(&w, &gram, Method::Gptq);
        let both = lost(&target, joint.gram(), Method::Gptq);
        println!("{format}: rtn {rtn:.5}, gptq {weight_only:.5}, gptq of both {both:.5}");
        assert!(weight_only < rtn && both < 0.95 * weight_only, "{format}");
    }
}

#[test]
fn bad_input_is_refused_by_name() {
    let error = |result: Result<Vec<f32>, Error>| match result.unwrap_err() {
        Error::Calibrate(error) => error,
        other => panic!("{other}"),
    };
    let (k, x, w) = (32, correlated(20, 32, 8), weight(3, 32, 9));
    let mut moments = JointMoments::new(k);
    let found = error(moments.add(&x, &x[k..]).map(|()| Vec::new()));
    let what = "quantized activations";
    assert_eq!(found, CalibrateError::Rows { what, expected: 20, got: 19 });
    let mut broken = x.clone();
    broken[70] = f32::INFINITY;
    for (a, b) in [(&broken, &x), (&x, &broken)] {
        let found = error(moments.add(a, b).map(|()| Vec::new()));
        assert!(matches!(found, CalibrateError::NotFinite { row: 2, column: 6, .. }), "{found}");
    }
    assert_eq!(error(moments.clone().finish().target(&w, 0.01)), CalibrateError::NoSamples);
    moments.add(&x, &x).unwrap();
    let moments = moments.finish();
    let found = error(moments.target(&w, 0.0));
    assert!(matches!(found, CalibrateError::NotPositiveDefinite { .. }), "{found}");
    assert_eq!(error(moments.target(&w, -1.0)), CalibrateError::Damping { got: -1.0 });
    assert!(matches!(error(moments.target(&w[1..], 0.1)), CalibrateError::Ragged { .. }));
}
