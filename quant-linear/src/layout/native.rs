//! The layout of [`state`](crate::state): a prefix with `e2m1` and `scale_quant` under it.
//!
//! The experts of a 3-D weight `NAME` are layers `NAME.0`, `NAME.1`, ...

use crate::checkpoint::TensorSource;
use crate::error::Error;
use crate::layer::ActivationEncoding;
use crate::layer::state::{self, Scalars, join};
use crate::layout::LoadOptions;
use crate::layout::write::{self, DoneLayer, Held, NewTensor, Refused, Written};
use crate::layout::{
    Activations, Arithmetic, At, Global, Layer, Layout, Nibbles, Place, ScaleOrder, TransformHeader,
};

/// The names of a state that belong to the quantized layer alone.
pub const STATE_NAMES: [&str; 7] = [
    state::E2M1,
    state::SCALE_QUANT,
    state::WEIGHT_GLOBAL_SCALE,
    state::ACTIVATION_GLOBAL_SCALE,
    state::ACTIVATION_SCALE_SCALE,
    state::ACTIVATION_ENCODING,
    state::TRANSFORM,
];

/// The largest transform that is read: far above any real one (a block of 128 for each of 2^20
/// columns in f32 is 512 MB).
const MAX_TRANSFORM: usize = 1 << 29;

/// The states that [`QuantLinear::save`](crate::QuantLinear::save) writes.
#[derive(Debug, Clone, Copy)]
pub struct Native;

impl Layout for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["exact-fp4", "ours"]
    }

    fn module<'n>(&self, name: &'n str) -> Option<&'n str> {
        let (prefix, last) = name.rsplit_once('.').unwrap_or(("", name));
        [state::E2M1, state::SCALE_QUANT].contains(&last).then_some(prefix)
    }

    fn tensors(&self, module: &str) -> Vec<String> {
        STATE_NAMES.iter().map(|name| join(module, name)).collect()
    }

    fn could(&self, at: &At<'_>) -> bool {
        at.has(state::E2M1) || at.has(state::SCALE_QUANT)
    }

    fn says(&self, _at: &At<'_>) -> Option<bool> {
        Some(true) // nobody else has these names
    }

    fn layer(&self, at: &At<'_>, options: &LoadOptions) -> Result<Layer, Error> {
        let header =
            |name: &str| at.head(name).ok_or_else(|| Error::MissingTensor { name: at.name(name) });
        let (codes, scales) = (header(state::E2M1)?, header(state::SCALE_QUANT)?);
        let shape = state::packed_shape(at.module, codes, scales, options.scale_type)?;
        let transform = transform(at.source, at.name(state::TRANSFORM))?;
        let scalars = Scalars::read(at.source, at.module)?;
        state::check(shape, transform.as_ref().map(|t| t.shape), &scalars)?;
        let place = Place::Apart {
            codes: at.name(state::E2M1),
            nibbles: Nibbles::LowEven,
            scales: at.name(state::SCALE_QUANT),
            order: ScaleOrder::Rows,
        };
        let arithmetic = Arithmetic::contract(shape.scale_type());
        let inputs = scalars.activation_global_scale.map(|input| vec![Global::times(input)]);
        Ok(Layer {
            globals: vec![Global::times(scalars.weight_global_scale)],
            inputs,
            scalars,
            transform,
            own: at.present(&STATE_NAMES),
            ..Layer::plain(&Native, at, shape, place, arithmetic)
        })
    }

    // The layer always quantizes them; its state says with which scale.
    fn told(&self, layer: &DoneLayer) -> Activations {
        match layer.quantizes() {
            true => Activations::Same,
            false => Activations::Unsaid,
        }
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        let global = held.one()?.multiplier();
        let scale_type = held.shape.scale_type();
        let mut tensors = vec![
            held.codes(held.name(state::E2M1), Nibbles::LowEven, safetensors::Dtype::U8),
            held.scales(held.name(state::SCALE_QUANT), write::scale_dtype(scale_type)),
            write::scalar(held.name(state::WEIGHT_GLOBAL_SCALE), vec![], global),
        ];
        // A state without them means something else than other software does.
        let input = held.input()?.map(Global::multiplier);
        if let Some(input) = input.or(held.unstored.map(|spec| spec.global_scale())) {
            let name = held.name(state::ACTIVATION_GLOBAL_SCALE);
            tensors.push(write::scalar(name, vec![], input));
        }
        let usual = held.unstored.map(|spec| spec.scale_scale());
        if let Some(ss) = held.activation_scale_scale.or(usual) {
            tensors.push(write::scalar(held.name(state::ACTIVATION_SCALE_SCALE), vec![], ss));
        }
        let encoding = held.activation_encoding;
        if let Some(own) = held.shape.format().map(fp4_core::QuantSpec::usual)
            && let Err(why) = encoding.check(held.shape, own)
        {
            return Err(Refused::Activations { encoding, why: why.to_string() });
        }
        if encoding != ActivationEncoding::Own {
            tensors.push(NewTensor {
                name: held.name(state::ACTIVATION_ENCODING),
                dtype: safetensors::Dtype::U8,
                shape: vec![],
                fill: write::Fill::Bytes(vec![encoding.byte()]),
            });
        }
        if let Some((name, _)) = held.pre_scale {
            return Err(Refused::Transform(name.into()));
        }
        if let Some(t) = held.transform {
            tensors.push(NewTensor {
                name: held.name(state::TRANSFORM),
                dtype: state::float_dtype(t.shape.float_type),
                shape: t.stored.clone(),
                fill: write::Fill::Tensor(t.name.clone()),
            });
        }
        Ok(Written { tensors, arithmetic: Arithmetic::contract(scale_type), globals: vec![global] })
    }
}

/// Judges a transform by its header, if it is there.
pub(super) fn transform(
    source: &dyn TensorSource,
    name: String,
) -> Result<Option<TransformHeader>, Error> {
    let Some((dtype, stored)) = source.header(&name) else { return Ok(None) };
    let shape = state::transform_shape(&name, dtype, &stored)?;
    let elements = stored.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let bytes = elements.and_then(|n| n.checked_mul(shape.float_type.bytes()));
    if bytes.is_none_or(|bytes| bytes > MAX_TRANSFORM) {
        let expected = format!("at most {MAX_TRANSFORM} bytes");
        return Err(Error::Shape { name, expected, got: stored });
    }
    Ok(Some(TransformHeader { name, stored, shape }))
}
