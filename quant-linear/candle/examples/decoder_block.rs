//! A decoder's block, in the way of candle-transformers' `llama.rs`: what changes is the type of
//! the linear layers, and the builder that they come from.
//!
//! ```text
//! 1  a dense checkpoint                    block A: dense layers, through `Fp4VarBuilder::linear`
//! 2  A's layers swapped by a pattern       block A in FP4
//! 3  A's layers saved, loaded by prefix    block B: the same code, FP4 because the file says so
//! A and B give the same bits
//! ```
//!
//! `cargo run --release --manifest-path quant-linear/candle/Cargo.toml --example decoder_block`

#[path = "in_candle/swiglu.rs"]
mod swiglu;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::RmsNorm;
use candle_nn::ops::softmax_last_dim;
use candle_nn::rotary_emb::rope;
use fp4_core::Format;
use quant_linear::DenseOptions;
use quant_linear_candle::{
    AnyLinear, Error, Fp4VarBuilder, GatedMlp, Linears, Visit, join, swap_linears,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const HIDDEN: usize = 64;
const WIDE: usize = 128;
const HEADS: usize = 4;
/// Heads of keys and values: each serves two heads of queries.
const KV_HEADS: usize = 2;
const WIDTH: usize = HIDDEN / HEADS;
const TOKENS: usize = 6;

/// Causal attention. In `llama.rs` the four layers are of candle's type; here they are of either
/// kind, and no other line of the forward is another.
struct Attention {
    q: AnyLinear,
    k: AnyLinear,
    v: AnyLinear,
    o: AnyLinear,
}

impl Attention {
    fn load(vb: &Fp4VarBuilder) -> std::result::Result<Self, Error> {
        let kv = KV_HEADS * WIDTH;
        Ok(Attention {
            q: vb.pp("q_proj").linear(HIDDEN, HIDDEN, false)?,
            k: vb.pp("k_proj").linear(HIDDEN, kv, false)?,
            v: vb.pp("v_proj").linear(HIDDEN, kv, false)?,
            o: vb.pp("o_proj").linear(HIDDEN, HIDDEN, false)?,
        })
    }

    /// (batch, tokens, hidden) to the same.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let heads = |x: Tensor, heads: usize| {
            x.reshape((batch, tokens, heads, WIDTH))?.transpose(1, 2)?.contiguous()
        };
        let (cos, sin) = angles(tokens)?;
        let q = rope(&heads(self.q.forward(x)?, HEADS)?, &cos, &sin)?;
        let k = rope(&heads(self.k.forward(x)?, KV_HEADS)?, &cos, &sin)?;
        let v = heads(self.v.forward(x)?, KV_HEADS)?;
        let shared = |x: Tensor| {
            let copies = (batch, KV_HEADS, HEADS / KV_HEADS, tokens, WIDTH);
            x.unsqueeze(2)?.expand(copies)?.reshape((batch, HEADS, tokens, WIDTH))
        };
        let scores = (q.matmul(&shared(k)?.t()?)? / (WIDTH as f64).sqrt())?;
        let scores = softmax_last_dim(&scores.broadcast_add(&causal(tokens)?)?)?;
        // Rows that lie apart in memory: the layer gathers them once.
        let mixed = scores.matmul(&shared(v)?)?.transpose(1, 2)?.flatten_from(2)?;
        self.o.forward(&mixed)
    }
}

impl Linears for Attention {
    fn visit_linears(
        &mut self,
        prefix: &str,
        visit: &mut Visit<'_>,
    ) -> std::result::Result<(), Error> {
        visit(&join(prefix, "q_proj"), &mut self.q)?;
        visit(&join(prefix, "k_proj"), &mut self.k)?;
        visit(&join(prefix, "v_proj"), &mut self.v)?;
        visit(&join(prefix, "o_proj"), &mut self.o)
    }
}

/// Cosines and sines of the positions, (tokens, width / 2).
fn angles(tokens: usize) -> Result<(Tensor, Tensor)> {
    let half = WIDTH / 2;
    let angle = |i: usize| (i / half) as f32 / 10_000f32.powf((i % half) as f32 / half as f32);
    let angles = Tensor::from_iter((0..tokens * half).map(angle), &Device::Cpu)?;
    let angles = angles.reshape((tokens, half))?;
    Ok((angles.cos()?, angles.sin()?))
}

/// What a token may not see: 0 up to itself, minus infinity after.
fn causal(tokens: usize) -> Result<Tensor> {
    let mask = |i: usize| if i % tokens > i / tokens { f32::NEG_INFINITY } else { 0.0 };
    Tensor::from_iter((0..tokens * tokens).map(mask), &Device::Cpu)?.reshape((tokens, tokens))
}

struct Block {
    input_norm: RmsNorm,
    attention: Attention,
    mlp_norm: RmsNorm,
    mlp: GatedMlp,
}

impl Block {
    fn load(vb: &Fp4VarBuilder) -> std::result::Result<Self, Error> {
        let norm = |name: &str| {
            let weight = vb.pp(name).dense(DType::F32).get(HIDDEN, "weight")?;
            Ok::<_, Error>(RmsNorm::new(weight, 1e-5))
        };
        Ok(Block {
            input_norm: norm("input_layernorm")?,
            attention: Attention::load(&vb.pp("self_attn"))?,
            mlp_norm: norm("post_attention_layernorm")?,
            mlp: GatedMlp::load(&vb.pp("mlp"), HIDDEN, WIDE)?.with_product(swiglu::product),
        })
    }
}

impl Module for Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = (x + self.attention.forward(&self.input_norm.forward(x)?)?)?;
        &x + self.mlp.forward(&self.mlp_norm.forward(&x)?)?
    }
}

impl Linears for Block {
    fn visit_linears(
        &mut self,
        prefix: &str,
        visit: &mut Visit<'_>,
    ) -> std::result::Result<(), Error> {
        self.attention.visit_linears(&join(prefix, "self_attn"), visit)?;
        self.mlp.visit_linears(&join(prefix, "mlp"), visit)
    }
}

/// Tensors of a file by name.
type Stored = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn write(path: &Path, tensors: &Stored) -> anyhow::Result<()> {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?))
    });
    let views = views.collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()?;
    Ok(safetensors::serialize_to_file(views, None, path)?)
}

/// A dense block of made-up weights, named as in checkpoints of Llama.
fn dense() -> Stored {
    let kv = KV_HEADS * WIDTH;
    let shapes = [
        ("input_layernorm", vec![HIDDEN]),
        ("post_attention_layernorm", vec![HIDDEN]),
        ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
        ("self_attn.k_proj", vec![kv, HIDDEN]),
        ("self_attn.v_proj", vec![kv, HIDDEN]),
        ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
        ("mlp.gate_proj", vec![WIDE, HIDDEN]),
        ("mlp.up_proj", vec![WIDE, HIDDEN]),
        ("mlp.down_proj", vec![HIDDEN, WIDE]),
    ];
    let stored = shapes.into_iter().enumerate().map(|(at, (name, shape))| {
        let value = |i: usize| ((i * 37 + at * 11) % 101) as f32 / 500.0 - 0.1;
        let one = if shape.len() == 1 { 1.0 } else { 0.0 };
        let values = (0..shape.iter().product()).map(|i| value(i) + one);
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        (format!("layers.0.{name}.weight"), (Dtype::F32, shape, bytes))
    });
    stored.collect()
}

fn bits(y: &Tensor) -> Result<Vec<u32>> {
    Ok(y.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (dense_file, fp4_file) =
        (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    let mut tensors = dense();
    write(&dense_file, &tensors)?;
    let x: Vec<f32> = (0..2 * TOKENS * HIDDEN).map(|i| (i * 29 % 83) as f32 / 20.0 - 2.0).collect();
    let x = Tensor::from_vec(x, (2, TOKENS, HIDDEN), &Device::Cpu)?;

    // 1: dense, because the checkpoint is.
    let mut a = Block::load(&Fp4VarBuilder::open(&dense_file)?.pp("layers").pp(0))?;
    let before = a.forward(&x)?;

    // 2: all of the MLP and of the attention but `o_proj` in FP4.
    let patterns = ["mlp.*", "self_attn.{q,k,v}_proj"];
    let report = swap_linears(&mut a, &patterns, &DenseOptions::new(Format::NvFp4))?;
    println!("in FP4: {}", report.swapped.join(", "));
    let after = a.forward(&x)?;

    // 3: saved, and loaded by the same code.
    a.visit_linears("layers.0", &mut |name, linear| {
        let Some(layer) = linear.fp4() else { return Ok(()) };
        tensors.remove(&join(name, "weight"));
        for (name, tensor) in layer.layer().state_dict(name)? {
            let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
            tensors.insert(name, (dtype, shape, tensor.data().to_vec()));
        }
        Ok(())
    })?;
    write(&fp4_file, &tensors)?;
    let b = Block::load(&Fp4VarBuilder::open(&fp4_file)?.pp("layers").pp(0))?;
    let loaded = b.forward(&x)?;

    let differ = bits(&after)?.iter().zip(bits(&loaded)?).filter(|(a, b)| **a != *b).count();
    let change = (&before - &after)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
    let size = before.sqr()?.sum_all()?.to_scalar::<f32>()?;
    println!("swapped against loaded: {} values compared, {differ} differ", after.elem_count());
    println!("FP4 against dense: {:.2} % apart", (change / size).sqrt() * 100.0);
    anyhow::ensure!(differ == 0, "the same layers gave other bits");
    Ok(())
}
