//! The models of `quant-linear-models` with their linear layers in candle: what they are asked for
//! is built of candle's tensors, and every product goes through a candle module.

use anyhow::{Result, ensure};
use candle_core::{Device, Module, Tensor};
use quant_linear::DenseOptions;
use quant_linear_candle::Fp4Linear;
use quant_linear_models::linear::{Linear, Parts};

/// A linear layer of those models that is a module of candle's.
pub(crate) struct InCandle(Fp4Linear);

impl Linear for InCandle {
    fn forward(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        let x = Tensor::from_slice(x, (rows, self.0.in_features()), &Device::Cpu)?;
        let out = self.0.forward(&x)?.flatten_all()?.to_vec1::<f32>()?;
        ensure!(out.len() == y.len(), "{} outputs where {} are asked for", out.len(), y.len());
        y.copy_from_slice(&out);
        Ok(())
    }
}

/// Builds such a layer: a factory is `|parts| in_candle(parts, &options)`.
pub(crate) fn in_candle(parts: &Parts<'_>, options: &DenseOptions) -> Result<Box<dyn Linear>> {
    parts.check()?;
    let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu);
    let weight = tensor(parts.weight, &[parts.out, parts.inp])?;
    let bias = parts.bias.map(|bias| tensor(bias, &[parts.out])).transpose()?;
    let dense = candle_nn::Linear::new(weight, bias);
    Ok(Box::new(InCandle(Fp4Linear::from_linear(&dense, options)?)))
}
