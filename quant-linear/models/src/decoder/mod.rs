//! A llama-style decoder in f32 over interchangeable linear layers.
//!
//! ```text
//! x = embedding[id]                                              one row per token
//! for each block:
//!     n = RMSNorm(x);  q, k, v = n Wq^T, n Wk^T, n Wv^T          n is quantized once
//!     q, k = rope(q, position), rope(k, position);  the cache takes k and v
//!     x = x + attention(q, cache up to the row's position) Wo^T
//!     n = RMSNorm(x);  x = x + (SiLU(n Wg^T) * n Wu^T) Wd^T
//! logits = RMSNorm(x) Whead^T
//! ```
//!
//! The rows of all sequences and chunks are one tall matrix for a linear layer. Everything else
//! computes each row by itself in a fixed order. So with exact linear layers (contract, C6) a row's
//! logits are the same bits in any batch, for any chunks, on any number of threads and any backend;
//! with those of a float GEMM they are not.

mod config;
mod pass;
mod rope;
mod sample;
mod tokenizer;
mod weights;

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use quant_linear::checkpoint::{Checkpoint, TensorSource};
use quant_linear::model::values::Values;
use quant_linear::{QuantLinear, Runtime};

use crate::attention::{LayerCache, Row, attend};
use crate::linear::{Encoding, Linear, Observer, Projection, forward_shared, show};
use crate::math::{add, rms_norm, swiglu};
use rope::Angles;
use weights::Weights;

pub use config::{Config, Rope};
pub use pass::Pass;
pub use sample::{Sampler, Sampling, argmax};
pub use tokenizer::TextTokenizer;

/// How a decoder's layers multiply.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Options {
    /// The layers of the blocks. `None`: as they are stored, dense ones in f32.
    pub encoding: Option<Encoding>,
    /// The head. `None`: as the layers of the blocks.
    pub head: Option<Encoding>,
}

/// One of the decoder's blocks.
struct Block {
    attention_norm: Vec<f32>,
    query: Projection,
    key: Projection,
    value: Projection,
    attention_output: Projection,
    feed_forward_norm: Vec<f32>,
    gate: Projection,
    up: Projection,
    down: Projection,
}

/// A decoder: token ids in, logits out.
pub struct Decoder {
    config: Config,
    /// Rows of the embedding are read where they are needed: as a table of f32 they would be half
    /// of the memory of an FP4 model.
    checkpoint: Checkpoint,
    embedding: Values,
    blocks: Vec<Block>,
    last_norm: Vec<f32>,
    head: Projection,
}

/// The tokens of one text so far: what a decoder remembers of them.
#[derive(Debug, Clone)]
pub struct Sequence {
    layers: Vec<LayerCache>,
    len: usize,
}

/// Further tokens of a sequence.
pub struct Step<'a> {
    /// Whose.
    pub sequence: &'a mut Sequence,
    /// At least one.
    pub tokens: &'a [u32],
}

/// Which rows get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// Every token's, in the order of the steps.
    All,
    /// Of each step the last token's.
    Last,
    /// None: the tokens are only remembered.
    None,
}

impl Sequence {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it has no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that its keys and values take.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::bytes).sum()
    }
}

impl Block {
    fn load(weights: &mut Weights<'_>, config: &Config, index: usize) -> Result<Self> {
        let (hidden, wide) = (config.hidden, config.intermediate);
        let query = config.query_heads * config.head_width;
        let kv = config.kv_heads * config.head_width;
        let mut norm = |part| {
            let module = weights.block(index, part);
            weights.read(&module, &[hidden])
        };
        let (attention_norm, feed_forward_norm) = (norm("attn_norm")?, norm("ffn_norm")?);
        let mut linear = |part, shape| {
            let module = weights.block(index, part);
            weights.projection(&module, shape)
        };
        Ok(Self {
            attention_norm,
            query: linear("attn_q", [query, hidden])?,
            key: linear("attn_k", [kv, hidden])?,
            value: linear("attn_v", [kv, hidden])?,
            attention_output: linear("attn_output", [hidden, query])?,
            feed_forward_norm,
            gate: linear("ffn_gate", [wide, hidden])?,
            up: linear("ffn_up", [wide, hidden])?,
            down: linear("ffn_down", [hidden, wide])?,
        })
    }

    fn linears(&self) -> [&Projection; 7] {
        let Block { query, key, value, attention_output, gate, up, down, .. } = self;
        [query, key, value, attention_output, gate, up, down]
    }

    fn linears_mut(&mut self) -> [&mut Projection; 7] {
        let Block { query, key, value, attention_output, gate, up, down, .. } = self;
        [query, key, value, attention_output, gate, up, down]
    }
}

impl Decoder {
    /// Reads a GGUF file, or a Hugging Face folder of dense or FP4 weights of any layout.
    ///
    /// # Errors
    /// Another architecture, tensors that are missing, misshapen or too many, an encoding that does
    /// not fit.
    pub fn open(path: &Path, options: Options) -> Result<Self> {
        Self::open_with(path, None, options)
    }

    /// The same, with those linear layers that `layers` holds in FP4 from there: what
    /// `fp4 quantize` makes of a GGUF file has its layers, and not its tokenizer.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: &Path, layers: Option<&Path>, options: Options) -> Result<Self> {
        let layers = layers.map(Checkpoint::open).transpose()?;
        let checkpoint = Checkpoint::open(path)?;
        let config = match checkpoint.gguf() {
            Some(header) => Config::of_gguf(header),
            None if checkpoint.config().has_model() => Config::of_json(checkpoint.config().model()),
            None => Err(anyhow::anyhow!("there is no config.json beside it")),
        };
        let config = config.with_context(|| format!("the model {}", path.display()))?;
        let loaded = Self::load(checkpoint, layers.as_ref(), config, options);
        loaded.with_context(|| format!("the model {}", path.display()))
    }

    fn load(
        checkpoint: Checkpoint,
        layers: Option<&Checkpoint>,
        config: Config,
        options: Options,
    ) -> Result<Self> {
        let mut weights = Weights::new(&checkpoint, layers, options.encoding);
        let (hidden, vocabulary) = (config.hidden, config.vocabulary);
        let embedding = weights.values(weights.embedding(), &[vocabulary, hidden])?;
        let blocks = (0..config.blocks).map(|index| Block::load(&mut weights, &config, index));
        let blocks = blocks.collect::<Result<_>>()?;
        let last_norm = weights.read(weights.last_norm(), &[hidden])?;
        let encoding = options.head.or(options.encoding);
        let head = weights.linear(weights.head(), [vocabulary, hidden], encoding)?;
        weights.all_used()?;
        Ok(Self { config, checkpoint, embedding, blocks, last_norm, head })
    }

    /// Its sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The checkpoint that it was read from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Its linear layers in order, the head last.
    pub fn linears(&self) -> impl Iterator<Item = &Projection> {
        self.blocks.iter().flat_map(Block::linears).chain([&self.head])
    }

    /// The quantized layers, to ask them or to change their backends.
    pub fn quantized(&self) -> impl Iterator<Item = &QuantLinear> {
        self.linears().filter_map(Projection::quantized)
    }

    /// Runs the quantized layers on the backends of a runtime.
    pub fn set_runtime(&mut self, runtime: &Runtime) {
        let blocks = self.blocks.iter_mut().flat_map(Block::linears_mut);
        let layers = blocks.chain([&mut self.head]);
        layers.filter_map(Projection::quantized_mut).for_each(|layer| layer.set_runtime(runtime));
    }

    /// Replaces linear layers: each by what `replace` makes of it, if that is anything. For layers
    /// that are split over machines, or are another library's.
    ///
    /// # Errors
    /// Those of `replace`, with the layer's name.
    pub fn replace_linears(
        &mut self,
        replace: impl Fn(&Projection) -> Result<Option<Box<dyn Linear>>>,
    ) -> Result<()> {
        let blocks = self.blocks.iter_mut().flat_map(Block::linears_mut);
        for layer in blocks.chain([&mut self.head]) {
            let made = replace(layer).with_context(|| format!("the layer {}", layer.name))?;
            if let Some(linear) = made {
                *layer = Projection::of(&layer.name.clone(), linear, [layer.out, layer.inp]);
            }
        }
        Ok(())
    }

    /// Bytes of the weights of the linear layers: packed, or in f32.
    pub fn weight_bytes(&self) -> usize {
        let bytes = |layer: &Projection| match layer.quantized().and_then(QuantLinear::weight_shape)
        {
            Some(shape) => shape.codes_len() + shape.scales_len(),
            None => layer.out * layer.inp * size_of::<f32>(),
        };
        self.linears().map(bytes).sum()
    }

    /// True if every linear layer is exact, and a row's logits so the same bits in any batch.
    pub fn is_exact(&self) -> bool {
        self.linears().all(|layer| layer.quantized().is_some())
    }

    /// An empty text.
    pub fn sequence(&self) -> Sequence {
        let layer = LayerCache::new(self.config.heads());
        Sequence { layers: vec![layer; self.config.blocks], len: 0 }
    }

    /// Appends tokens to sequences; the logits that are asked for, row-major (rows, vocabulary).
    ///
    /// After an error the sequences are as they were before.
    ///
    /// # Errors
    /// A step without tokens, a text longer than the context, an id outside the vocabulary, a layer
    /// that fails.
    pub fn forward(&self, steps: &mut [Step<'_>], logits: Logits) -> Result<Vec<f32>> {
        let mut rows: Vec<Range<usize>> = Vec::with_capacity(steps.len());
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        for step in steps.iter_mut() {
            let (start, len) = (step.sequence.len, step.tokens.len());
            let context = self.config.context;
            ensure!(len > 0, "a step of no tokens: give at least one");
            ensure!(
                start + len <= context,
                "a text of {start} and {len} more tokens, and the model takes {context}: shorten it"
            );
            rows.push(ids.len()..ids.len() + len);
            ids.extend_from_slice(step.tokens);
            positions.extend(start..start + len);
            for layer in &mut step.sequence.layers {
                layer.truncate(self.config.heads(), start);
                layer.reserve(self.config.heads(), (start + len).next_multiple_of(256));
            }
        }
        let mut x = self.embed(&ids)?;
        let angles = Angles::new(&self.config, &positions);
        for (index, block) in self.blocks.iter().enumerate() {
            let given = (&rows[..], &positions[..], &angles);
            self.run_block(block, index, &mut x, steps, given, &mut |_, _, _| Ok(()))?;
        }
        let hidden = self.config.hidden;
        let picked: Vec<f32> = match logits {
            Logits::All => x,
            Logits::Last => rows
                .iter()
                .flat_map(|r| x[(r.end - 1) * hidden..r.end * hidden].iter().copied())
                .collect(),
            Logits::None => Vec::new(),
        };
        let normed = rms_norm(&picked, &self.last_norm, self.config.epsilon);
        let out = match normed.is_empty() {
            true => Vec::new(),
            false => self.head.forward(&normed, normed.len() / hidden)?,
        };
        for step in steps.iter_mut() {
            step.sequence.len += step.tokens.len();
        }
        Ok(out)
    }

    /// The embedding rows of tokens.
    fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let Config { hidden, vocabulary, .. } = self.config;
        let mut x = Vec::with_capacity(ids.len() * hidden);
        for &id in ids {
            let id = id as usize;
            ensure!(
                id < vocabulary,
                "token id {id} is outside the vocabulary of {vocabulary}: the tokenizer belongs to \
                 another model"
            );
            x.extend(self.embedding.read(&self.checkpoint, id..id + 1)?);
        }
        Ok(x)
    }

    fn run_block(
        &self,
        block: &Block,
        index: usize,
        x: &mut [f32],
        steps: &mut [Step<'_>],
        (rows, positions, angles): (&[Range<usize>], &[usize], &Angles),
        observe: &mut Observer<'_>,
    ) -> Result<()> {
        let (heads, epsilon, count) = (self.config.heads(), self.config.epsilon, positions.len());
        let normed = rms_norm(x, &block.attention_norm, epsilon);
        let shared = [&block.query, &block.key, &block.value];
        show(observe, shared, &normed)?;
        let [mut query, mut key, value] = forward_shared(shared, &normed, count)?;
        angles.turn(&mut query, heads.query * heads.width);
        angles.turn(&mut key, heads.kv * heads.width);
        let kv = heads.kv * heads.width;
        for (step, rows) in steps.iter_mut().zip(rows) {
            let cache = &mut step.sequence.layers[index];
            for row in rows.clone() {
                let at = row * kv..(row + 1) * kv;
                cache.push(heads, positions[row], &key[at.clone()], &value[at]);
            }
        }
        let mut attending = Vec::with_capacity(count);
        for (step, rows) in steps.iter().zip(rows) {
            let cache = &step.sequence.layers[index];
            attending.extend(rows.clone().map(|row| Row { cache, position: positions[row] }));
        }
        let context = attend(heads, &attending, &query);
        show(observe, [&block.attention_output], &context)?;
        add(x, &block.attention_output.forward(&context, count)?);

        let normed = rms_norm(x, &block.feed_forward_norm, epsilon);
        let shared = [&block.gate, &block.up];
        show(observe, shared, &normed)?;
        let [mut gate, up] = forward_shared(shared, &normed, count)?;
        swiglu(&mut gate, &up);
        show(observe, [&block.down], &gate)?;
        add(x, &block.down.forward(&gate, count)?);
        Ok(())
    }
}
