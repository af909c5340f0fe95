//! What transforms and methods are worth on made data with outliers: the directions that WUSH's
//! paper reports of its model (MXFP4: Hadamard 0.71, WUSH 0.42; NVFP4: 1.2 and 0.68, of the loss of
//! round-to-nearest without a transform).

use fp4_core::{Format, GroupSize, QuantSpec};
use quant_linear::calibrate::{
    BlockTransform, Gram, Method, QuantizeOptions, WushOptions, loss, quantize_weight,
};

use crate::data::{amax, spec, weight, with_outliers};

#[test]
fn wush_beats_hadamard_and_gptq_comes_on_top() {
    let k = 256;
    let (x, w) = (with_outliers(1024, k, 1), weight(128, k, 2));
    let (calibration, test) = x.split_at(512 * k);
    let gram = Gram::of_rows(calibration, k).unwrap();
    for format in Format::ALL {
        let block = GroupSize::G32;
        let transforms = [
            BlockTransform::identity(k, block).unwrap(),
            BlockTransform::random_orthogonal(k, block, 1).unwrap(),
            BlockTransform::hadamard(k, block).unwrap(),
            BlockTransform::wush(&gram, &[&w], block, &WushOptions::default()).unwrap(),
        ];
        let lost = |t: &BlockTransform, method| {
            let through = t.weight_through(&w).unwrap();
            let spec = spec(format, &through);
            let moments = gram.transformed(t).unwrap();
            let options = QuantizeOptions::new(spec, method);
            let packed = quantize_weight(&through, k, Some(&moments), &options).unwrap();
            let y = t.activations_through(calibration).unwrap();
            let activations = QuantSpec::for_weight(format, amax(&y)).unwrap();
            let gs = spec.global_scale();
            loss::of_layer(test, &w, t, packed.view(), gs, &activations).unwrap().ratio()
        };
        let base = lost(&transforms[0], Method::Rtn);
        let [i, r, h, wush] =
            transforms.each_ref().map(|t| Method::ALL.map(|method| lost(t, method) / base));
        println!("{format}, of {base:.5}: [rtn, gptq, babai]");
        println!("  identity {i:.3?}\n  random {r:.3?}\n  hadamard {h:.3?}\n  wush {wush:.3?}");
        assert!(wush[0] < 0.8 * h[0] && wush[0] < 0.8, "{format}");
        for of in [i, r, h, wush] {
            assert!(of[1] < of[0] && of[2] < of[0], "{format}: {of:?}");
        }
        if format == Format::MxFp4 {
            assert!(h[0] < 1.0 && r[0] < 1.0);
        }
    }
}
