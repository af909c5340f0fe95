//! Any bytes as the safetensors state of a layer: an error, or a layer that keeps every byte.

#![no_main]

use std::collections::BTreeSet;

use fp4_core::ScaleType;
use libfuzzer_sys::fuzz_target;
use quant_linear::state::{E2M1, SCALE_QUANT, StateTensor, TRANSFORM, join};
use quant_linear::{Bias, LoadOptions, QuantLinear};
use safetensors::SafeTensors;

/// Elements of a weight up to which a forward is run.
const FORWARD: usize = 1 << 14;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = SafeTensors::deserialize(data) else { return };
    let names = file.names();
    let prefixes: BTreeSet<&str> = names
        .iter()
        .filter_map(|name| name.strip_suffix(E2M1))
        .map(|prefix| prefix.strip_suffix('.').unwrap_or(prefix))
        .chain([""])
        .collect();
    for prefix in prefixes {
        for scale_type in [None, Some(ScaleType::E8M0), Some(ScaleType::E4M3)] {
            for (bias, foreign) in
                [(Bias::Refuse, true), (Bias::Ignore, false), (Bias::Apply, true)]
            {
                check(
                    &file,
                    prefix,
                    &LoadOptions { scale_type, bias, foreign, ..LoadOptions::default() },
                );
            }
        }
    }
});

fn check(file: &SafeTensors<'_>, prefix: &str, options: &LoadOptions) {
    let layer = match QuantLinear::from_state(file, prefix, options) {
        Ok(layer) => layer,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let state = layer.state_dict(prefix).expect("a loaded layer has a state");
    for name in [E2M1, SCALE_QUANT] {
        let stored = file.tensor(&join(prefix, name)).expect("it was loaded");
        let kept = find(&state, &join(prefix, name));
        assert_eq!((stored.data(), stored.shape()), (kept.data(), kept.shape()), "{name}");
    }
    if let Ok(stored) = file.tensor(&join(prefix, TRANSFORM)) {
        let kept = find(&state, &join(prefix, TRANSFORM));
        assert_eq!((stored.data(), stored.shape()), (kept.data(), kept.shape()), "transform");
    }
    let bytes = safetensors::serialize(layer.state_dict(prefix).expect("as above"), None);
    let bytes = bytes.expect("a state is legal safetensors");
    let again = SafeTensors::deserialize(&bytes).expect("what was just written");
    // A bias that was applied is part of the state; one that was ignored is not.
    let bias = if options.bias == Bias::Apply { Bias::Apply } else { Bias::Refuse };
    let again =
        QuantLinear::from_state(&again, prefix, &LoadOptions { bias, ..LoadOptions::default() });
    let again = again.expect("a saved state loads");
    assert_eq!(state, again.state_dict(prefix).expect("a loaded layer has a state"));

    let (rows, k) = (layer.out_features(), layer.in_features());
    if rows * k <= FORWARD && rows.max(k) <= FORWARD {
        let x: Vec<f32> = (0..2 * k).map(|i| (i as f32 * 0.61).sin() * 3.0).collect();
        let bits = |layer: &QuantLinear| {
            let y: Result<Vec<f32>, _> = layer.forward(&x, &[2, k]);
            y.map(|y| y.into_iter().map(f32::to_bits).collect::<Vec<_>>())
                .map_err(|e| e.to_string())
        };
        assert_eq!(bits(&layer), bits(&again));
    }
}

fn find<'a>(state: &'a [(String, StateTensor<'_>)], name: &str) -> &'a StateTensor<'a> {
    &state.iter().find(|(found, _)| found == name).expect("the state has the tensor").1
}
