//! A decoder's tensors in a checkpoint: GGUF files and Hugging Face's folders name them otherwise.
//!
//! | part | GGUF | Hugging Face |
//! |---|---|---|
//! | embedding | `token_embd` | `model.embed_tokens` |
//! | last norm, head | `output_norm`, `output` | `model.norm`, `lm_head` |
//! | block i | `blk.i.attn_norm`, `.attn_q`, .. | `model.layers.i.input_layernorm`, `.self_attn.q_proj`, .. |
//!
//! Where there is no head, it is the embedding. A tensor that the decoder does not use is an error:
//! a bias that is left out would change every word.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use quant_linear::checkpoint::Checkpoint;
use quant_linear::model::values::Values;
use quant_linear::{LoadOptions, QuantLinear};

use crate::linear::{Encoding, Parts, Projection, Quantized};

/// The tensors of a checkpoint, looked up by name and expected shape.
pub(crate) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    /// Layers in FP4 that stand for the checkpoint's.
    layers: Option<&'a Checkpoint>,
    encoding: Option<Encoding>,
    /// Modules that were asked for.
    used: BTreeSet<String>,
}

/// A layer that a checkpoint holds in FP4.
fn stored(
    from: &Checkpoint,
    module: &str,
    shape: [usize; 2],
    encoding: Option<Encoding>,
) -> Result<Projection> {
    let layer = QuantLinear::from_state(from, module, &LoadOptions::default());
    let layer = layer.with_context(|| format!("the layer {module} is not one in FP4"))?;
    if let Some(encoding) = encoding {
        bail!(
            "the layer {module} is stored in FP4 already, and {encoding} is asked for: leave the \
             encoding out, or start from the dense model"
        );
    }
    let given = [layer.out_features(), layer.in_features()];
    ensure!(
        given == shape,
        "the layer {module} is {given:?} and the model's sizes ask for {shape:?}"
    );
    layer.prepare()?;
    Ok(Projection::of(module, Box::new(Quantized(layer)), given))
}

/// The parts of a block: name in GGUF, name in Hugging Face's folders.
pub(crate) const BLOCK: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

impl<'a> Weights<'a> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        layers: Option<&'a Checkpoint>,
        encoding: Option<Encoding>,
    ) -> Self {
        Self { checkpoint, layers, encoding, used: BTreeSet::new() }
    }

    fn is_gguf(&self) -> bool {
        self.checkpoint.gguf().is_some()
    }

    /// The module of one of [`BLOCK`]'s parts, by its name in GGUF.
    pub(crate) fn block(&self, index: usize, part: &str) -> String {
        if self.is_gguf() {
            return format!("blk.{index}.{part}");
        }
        let other = BLOCK.iter().find(|(gguf, _)| *gguf == part).map_or(part, |(_, other)| other);
        format!("model.layers.{index}.{other}")
    }

    pub(crate) fn embedding(&self) -> &'static str {
        if self.is_gguf() { "token_embd" } else { "model.embed_tokens" }
    }

    pub(crate) fn last_norm(&self) -> &'static str {
        if self.is_gguf() { "output_norm" } else { "model.norm" }
    }

    /// The module of the head: the embedding's where it has none of its own.
    pub(crate) fn head(&self) -> &'static str {
        let head = if self.is_gguf() { "output" } else { "lm_head" };
        let prefix = format!("{head}.");
        let mut names = self.checkpoint.tensors().range(prefix.clone()..);
        match names.next().is_some_and(|(name, _)| name.starts_with(&prefix)) {
            true => head,
            false => self.embedding(),
        }
    }

    /// The values of `module.weight`, of a shape.
    pub(crate) fn values(&mut self, module: &str, shape: &[usize]) -> Result<Values> {
        self.used.insert(module.to_owned());
        let values = Values::find(self.checkpoint, &format!("{module}.weight"))?;
        ensure!(
            values.shape() == shape,
            "{module}.weight has shape {:?} and the model's sizes ask for {shape:?}: they do not \
             belong to one model",
            values.shape()
        );
        Ok(values)
    }

    /// All values of `module.weight`.
    pub(crate) fn read(&mut self, module: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.values(module, shape)?.read_all(self.checkpoint)?)
    }

    /// The linear layer of a module: as it is stored if that is FP4, else by the encoding.
    pub(crate) fn linear(
        &mut self,
        module: &str,
        [out, inp]: [usize; 2],
        encoding: Option<Encoding>,
    ) -> Result<Projection> {
        let name = format!("{module}.weight");
        let dense = Values::find(self.checkpoint, &name);
        if let Err(why) = dense {
            self.used.insert(module.to_owned());
            let stored = stored(self.checkpoint, module, [out, inp], encoding);
            return stored.with_context(|| format!("the layer {module} is not dense: {why}"));
        }
        let codes = quant_linear::state::join(module, quant_linear::state::E2M1);
        if let Some(layers) = self.layers
            && layers.tensors().contains_key(&codes)
        {
            self.values(module, &[out, inp])?;
            return stored(layers, module, [out, inp], encoding);
        }
        let weight = self.read(module, &[out, inp])?;
        let parts = Parts { name: module, weight: &weight, bias: None, out, inp };
        let encoding = encoding.unwrap_or(Encoding::F32);
        let projection = Projection::new(&|parts| encoding.build(parts), &parts)?;
        // Now, and not all in the first forward: what is packed is freed before the next is.
        projection.quantized().map_or(Ok(()), QuantLinear::prepare)?;
        Ok(projection)
    }

    /// As [`linear`](Self::linear), by the encoding of the model's blocks.
    pub(crate) fn projection(&mut self, module: &str, shape: [usize; 2]) -> Result<Projection> {
        self.linear(module, shape, self.encoding)
    }

    /// # Errors
    /// If the checkpoint has tensors of modules that were not asked for, or biases.
    pub(crate) fn all_used(&self) -> Result<()> {
        let unused = |name: &&String| {
            // The angles of the rotary embedding, which old files store.
            if name.ends_with(".rotary_emb.inv_freq") {
                return false;
            }
            match name.rsplit_once('.') {
                Some((module, last)) => !self.used.contains(module) || last == "bias",
                None => true,
            }
        };
        let unused: Vec<&String> = self.checkpoint.tensors().keys().filter(unused).collect();
        if let Some(first) = unused.first() {
            bail!(
                "the checkpoint has {} tensors that this decoder does not use, `{}` the first: it \
                 is of another architecture, or has more layers than its sizes say",
                unused.len(),
                quant_linear::text::printable(first)
            );
        }
        Ok(())
    }
}
