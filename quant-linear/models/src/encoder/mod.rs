//! The BERT encoder of all-MiniLM-L6-v2 in plain f32, over interchangeable linear layers.
//!
//! ```text
//! x = LayerNorm(word[id] + position[i] + segment[0])             one row per token
//! for each layer:
//!     q, k, v = x Wq^T + bq, x Wk^T + bk, x Wv^T + bv
//!     for each sentence, for each head:                          rows of this sentence only
//!         context = softmax(q k^T / sqrt(head width)) v
//!     x = LayerNorm(x + context Wo^T + bo)
//!     x = LayerNorm(x + GELU(x Wi^T + bi) Wd^T + bd)
//! embedding = mean of a sentence's rows, scaled to length 1
//! ```
//!
//! The tokens of many sentences are concatenated: a linear layer sees one tall matrix, and no
//! padding exists. Attention is the one step that mixes rows, and it runs per sentence, which is
//! what the attention mask achieves where sentences are padded to one length.
//!
//! The six products with a W, each with its bias, are [`Linear`](crate::linear::Linear) layers that
//! the caller builds; everything else is computed here in f32. So two encoders differ by their
//! linear layers alone.

mod folder;
mod tokens;

use std::ops::Range;

use anyhow::{Result, ensure};

use crate::linear::{LinearFactory, Observer, Parts, Projection, forward_shared, show};
use crate::math::{add, dot, gelu, layer_norm, normalise, softmax};

pub use folder::{Config, ModelFolder, Weights};
pub use tokens::tokenize;

/// Tokens per pass, unless a single sentence is longer: enough to keep a matmul busy, and it
/// bounds the memory of a pass at a few tens of megabytes.
const BATCH_TOKENS: usize = 2048;

/// One embedding of length 1 per sentence.
pub type Embeddings = Vec<Vec<f32>>;

fn load_linear(
    weights: &Weights<'_>,
    factory: &LinearFactory<'_>,
    name: String,
    (out, inp): (usize, usize),
) -> Result<Projection> {
    let weight = weights.f32(&format!("{name}.weight"), &[out, inp])?;
    let bias = weights.f32(&format!("{name}.bias"), &[out])?;
    Projection::new(factory, &Parts { name: &name, weight: &weight, bias: Some(&bias), out, inp })
}

/// The weight, bias and epsilon of a LayerNorm.
struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

impl Norm {
    fn load(weights: &Weights<'_>, config: &Config, name: &str) -> Result<Self> {
        Ok(Self {
            weight: weights.f32(&format!("{name}.weight"), &[config.hidden])?,
            bias: weights.f32(&format!("{name}.bias"), &[config.hidden])?,
            epsilon: config.epsilon,
        })
    }

    fn apply(&self, x: &mut [f32]) {
        layer_norm(x, &self.weight, &self.bias, self.epsilon);
    }

    /// `x = LayerNorm(x + update)`: how each half of a layer ends.
    fn add_and_apply(&self, x: &mut [f32], update: &[f32]) {
        add(x, update);
        self.apply(x);
    }
}

/// One of the encoder's layers.
struct Layer {
    query: Projection,
    key: Projection,
    value: Projection,
    attention_output: Projection,
    attention_norm: Norm,
    intermediate: Projection,
    output: Projection,
    output_norm: Norm,
}

impl Layer {
    fn load(
        weights: &Weights<'_>,
        config: &Config,
        factory: &LinearFactory<'_>,
        index: usize,
    ) -> Result<Self> {
        let (hidden, wide) = (config.hidden, config.intermediate);
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let linear = |part: &str, out: usize, inp: usize| {
            load_linear(weights, factory, name(part), (out, inp))
        };
        let norm = |part: &str| Norm::load(weights, config, &name(part));
        Ok(Self {
            query: linear("attention.self.query", hidden, hidden)?,
            key: linear("attention.self.key", hidden, hidden)?,
            value: linear("attention.self.value", hidden, hidden)?,
            attention_output: linear("attention.output.dense", hidden, hidden)?,
            attention_norm: norm("attention.output.LayerNorm")?,
            intermediate: linear("intermediate.dense", wide, hidden)?,
            output: linear("output.dense", hidden, wide)?,
            output_norm: norm("output.LayerNorm")?,
        })
    }
}

/// The encoder: token ids in, one embedding per sentence out.
pub struct Encoder {
    config: Config,
    words: Vec<f32>,
    positions: Vec<f32>,
    /// The segment vector that every token gets: a lone sentence is of kind 0 throughout.
    segment: Vec<f32>,
    embedding_norm: Norm,
    layers: Vec<Layer>,
}

impl Encoder {
    /// Reads the weights; `factory` builds each of the six linear layers of every layer.
    ///
    /// # Errors
    /// If a tensor is missing or misshapen, or the factory refuses a layer.
    pub fn load(
        config: &Config,
        weights: &Weights<'_>,
        factory: &LinearFactory<'_>,
    ) -> Result<Self> {
        let hidden = config.hidden;
        let table = |name: &str, rows: usize| {
            weights.f32(&format!("embeddings.{name}.weight"), &[rows, hidden])
        };
        let mut segment = table("token_type_embeddings", config.segments)?;
        segment.truncate(hidden);
        Ok(Self {
            words: table("word_embeddings", config.vocabulary)?,
            positions: table("position_embeddings", config.positions)?,
            segment,
            embedding_norm: Norm::load(weights, config, "embeddings.LayerNorm")?,
            layers: (0..config.layers)
                .map(|index| Layer::load(weights, config, factory, index))
                .collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// Embeds sentences given as token ids, special tokens included.
    ///
    /// # Errors
    /// If a sentence is empty, too long or has an unknown id, or a linear layer fails.
    pub fn embed(&self, sentences: &[Vec<u32>], observe: &mut Observer<'_>) -> Result<Embeddings> {
        let mut embeddings = Vec::with_capacity(sentences.len());
        let mut rest = sentences;
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(batch_len(rest));
            self.embed_batch(batch, observe, &mut embeddings)?;
            rest = later;
        }
        Ok(embeddings)
    }

    fn embed_batch(
        &self,
        sentences: &[Vec<u32>],
        observe: &mut Observer<'_>,
        embeddings: &mut Embeddings,
    ) -> Result<()> {
        let mut x = Vec::new();
        let mut spans = Vec::with_capacity(sentences.len());
        let mut rows = 0;
        for ids in sentences {
            self.push_sentence(ids, &mut x)?;
            spans.push(rows..rows + ids.len());
            rows += ids.len();
        }
        self.embedding_norm.apply(&mut x);
        for layer in &self.layers {
            self.run_layer(layer, &mut x, &spans, observe)?;
        }
        let hidden = self.config.hidden;
        for span in spans {
            let tokens = &x[span.start * hidden..span.end * hidden];
            embeddings.push(pool(tokens, hidden));
        }
        Ok(())
    }

    /// Appends a sentence's embedding rows, before LayerNorm.
    fn push_sentence(&self, ids: &[u32], x: &mut Vec<f32>) -> Result<()> {
        let Config { hidden, vocabulary, positions, .. } = self.config;
        ensure!(
            (1..=positions).contains(&ids.len()),
            "a sentence has {} tokens and the model takes 1 to {positions}: split it",
            ids.len()
        );
        for (position, &id) in self.positions.chunks_exact(hidden).zip(ids) {
            let id = id as usize;
            ensure!(
                id < vocabulary,
                "token id {id} is outside the vocabulary of {vocabulary}: tokenizer.json and \
                 config.json do not belong to one model"
            );
            let word = &self.words[id * hidden..(id + 1) * hidden];
            let sum = word.iter().zip(position).zip(&self.segment).map(|((w, p), s)| w + p + s);
            x.extend(sum);
        }
        Ok(())
    }

    fn run_layer(
        &self,
        layer: &Layer,
        x: &mut [f32],
        spans: &[Range<usize>],
        observe: &mut Observer<'_>,
    ) -> Result<()> {
        let rows = x.len() / self.config.hidden;
        let shared = [&layer.query, &layer.key, &layer.value];
        show(observe, shared, x)?;
        let [query, key, value] = forward_shared(shared, x, rows)?;
        let context = attention(&query, &key, &value, spans, self.config.hidden, self.config.heads);
        show(observe, [&layer.attention_output], &context)?;
        let update = layer.attention_output.forward(&context, rows)?;
        layer.attention_norm.add_and_apply(x, &update);

        show(observe, [&layer.intermediate], x)?;
        let mut wide = layer.intermediate.forward(x, rows)?;
        for v in &mut wide {
            *v = gelu(*v);
        }
        show(observe, [&layer.output], &wide)?;
        let update = layer.output.forward(&wide, rows)?;
        layer.output_norm.add_and_apply(x, &update);
        Ok(())
    }
}

/// How many of the leading sentences make up one pass; at least one.
fn batch_len(sentences: &[Vec<u32>]) -> usize {
    let mut tokens = 0;
    let fits = sentences.iter().take_while(|ids| {
        tokens += ids.len();
        tokens <= BATCH_TOKENS
    });
    fits.count().max(1)
}

/// Multi-head attention of every sentence over its own rows.
///
/// Head h owns the columns `h * width .. (h + 1) * width` of query, key, value and result.
fn attention(
    query: &[f32],
    key: &[f32],
    value: &[f32],
    sentences: &[Range<usize>],
    hidden: usize,
    heads: usize,
) -> Vec<f32> {
    let width = hidden / heads;
    let scale = 1.0 / (width as f32).sqrt();
    let mut context = vec![0.0f32; query.len()];
    let mut scores = Vec::new();
    for span in sentences {
        for head in 0..heads {
            let columns =
                |row: usize| row * hidden + head * width..row * hidden + (head + 1) * width;
            for row in span.clone() {
                let q = &query[columns(row)];
                scores.clear();
                scores.extend(span.clone().map(|other| dot(q, &key[columns(other)]) * scale));
                softmax(&mut scores);
                let out = &mut context[columns(row)];
                for (&score, other) in scores.iter().zip(span.clone()) {
                    for (o, v) in out.iter_mut().zip(&value[columns(other)]) {
                        *o += score * v;
                    }
                }
            }
        }
    }
    context
}

/// The mean of a sentence's token rows, scaled to length 1.
fn pool(tokens: &[f32], hidden: usize) -> Vec<f32> {
    let mut mean = vec![0.0f32; hidden];
    for row in tokens.chunks_exact(hidden) {
        for (m, v) in mean.iter_mut().zip(row) {
            *m += v;
        }
    }
    // No division by the number of tokens: scaling to length 1 undoes any factor.
    normalise(&mut mean);
    mean
}

#[cfg(test)]
mod tests {
    use super::folder::tests::CONFIG;
    use super::*;
    use crate::linear::{Linear, dense};
    use quant_linear::safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
    use std::collections::BTreeMap;

    /// A whole model with hidden 8, 2 layers, 2 heads and small pseudo-random weights.
    fn tiny() -> (Config, Vec<u8>) {
        let config = Config {
            hidden: 8,
            layers: 2,
            heads: 2,
            intermediate: 12,
            vocabulary: 20,
            positions: 6,
            segments: 2,
            // Large enough that a forgotten epsilon shows.
            epsilon: 0.1,
        };
        let mut shapes = BTreeMap::from([
            ("embeddings.word_embeddings.weight".to_owned(), vec![20, 8]),
            ("embeddings.position_embeddings.weight".to_owned(), vec![6, 8]),
            ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, 8]),
        ]);
        let mut linear = |name: String, out: usize, inp: Option<usize>| {
            shapes.insert(format!("{name}.bias"), vec![out]);
            shapes
                .insert(format!("{name}.weight"), [Some(out), inp].into_iter().flatten().collect());
        };
        linear("embeddings.LayerNorm".to_owned(), 8, None);
        for index in 0..2 {
            for (part, out, inp) in [
                ("attention.self.query", 8, Some(8)),
                ("attention.self.key", 8, Some(8)),
                ("attention.self.value", 8, Some(8)),
                ("attention.output.dense", 8, Some(8)),
                ("attention.output.LayerNorm", 8, None),
                ("intermediate.dense", 12, Some(8)),
                ("output.dense", 8, Some(12)),
                ("output.LayerNorm", 8, None),
            ] {
                linear(format!("encoder.layer.{index}.{part}"), out, inp);
            }
        }
        let mut state = 1u32;
        let data: BTreeMap<String, Vec<u8>> = shapes
            .iter()
            .map(|(name, shape)| {
                let bytes = (0..shape.iter().product()).flat_map(|_: usize| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ((state >> 8) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes()
                });
                (name.clone(), bytes.collect())
            })
            .collect();
        let views = data.iter().map(|(name, bytes)| {
            (name, TensorView::new(Dtype::F32, shapes[name].clone(), bytes).unwrap())
        });
        (config, serialize(views, None).unwrap())
    }

    fn tiny_encoder(factory: &LinearFactory<'_>) -> Result<Encoder> {
        let (config, file) = tiny();
        Encoder::load(&config, &Weights::new(SafeTensors::deserialize(&file)?), factory)
    }

    fn message(result: Result<impl Sized>) -> String {
        result.err().map_or_else(String::new, |e| format!("{e:#}"))
    }

    #[test]
    fn attention_with_equal_keys_is_the_mean_of_the_values() {
        // Two sentences, of rows 0..2 and row 2; two heads of one column each.
        let query = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let key = [7.0; 6];
        let value = [1.0, 10.0, 3.0, 30.0, 100.0, 1000.0];
        let context = attention(&query, &key, &value, &[0..2, 2..3], 2, 2);
        assert_eq!(context, [2.0, 20.0, 2.0, 20.0, 100.0, 1000.0]);
    }

    #[test]
    fn attention_weighs_by_the_scaled_product() {
        // One head of width 4, so the scale is 1/2; scores of row 0: 0 and ln 3.
        let mut key = [0.0; 8];
        key[4] = 2.0 * 3.0f32.ln();
        let query = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let value = [0.0, 0.0, 0.0, 0.0, 4.0, 8.0, 0.0, 0.0];
        let one_sentence = std::slice::from_ref(&(0..2));
        let context = attention(&query, &key, &value, one_sentence, 4, 1);
        for (given, wanted) in context.iter().zip([3.0, 6.0, 0.0, 0.0, 2.0, 4.0, 0.0, 0.0]) {
            assert!((given - wanted).abs() < 1e-5, "{context:?}");
        }
    }

    #[test]
    fn tiny_model_matches_an_independent_numpy_bert() {
        // From a numpy implementation in float64 that pads and masks. A wrong scale, mask,
        // epsilon, segment or residual moves some value by more than 1e-2, tanh GELU by 1e-4.
        let wanted = [
            [-0.361547, 0.393187, -0.354145, -0.189015, -0.536261, 0.024782, -0.274132, -0.436125],
            [-0.330871, 0.404396, -0.369909, -0.180022, -0.538523, 0.049808, -0.274745, -0.435631],
            [-0.270761, 0.450765, -0.408415, -0.157879, -0.518941, 0.109684, -0.268883, -0.422070],
        ];
        let sentences = [vec![1, 2, 3], vec![4], vec![5, 6, 7, 8, 9, 10]];
        let encoder = tiny_encoder(&dense).unwrap();
        let given = encoder.embed(&sentences, &mut |_, _, _| Ok(())).unwrap();
        for (i, (given, wanted)) in given.iter().flatten().zip(wanted.as_flattened()).enumerate() {
            assert!((given - wanted).abs() < 5e-6, "element {i}: {given} instead of {wanted}");
        }
    }

    #[test]
    fn embedding_does_not_depend_on_its_neighbours_in_the_batch() {
        let encoder = tiny_encoder(&dense).unwrap();
        let sentences = [vec![1, 2, 3], vec![4], vec![5, 6, 7, 8, 9, 10]];
        let together = encoder.embed(&sentences, &mut |_, _, _| Ok(())).unwrap();
        for (sentence, wanted) in sentences.iter().zip(&together) {
            let alone =
                encoder.embed(std::slice::from_ref(sentence), &mut |_, _, _| Ok(())).unwrap();
            // Not bit for bit: a dense matmul may sum in another order for another height.
            for (a, b) in alone[0].iter().zip(wanted) {
                assert!((a - b).abs() < 1e-5, "{a} alone, {b} in the batch");
            }
            assert!((dot(wanted, wanted) - 1.0).abs() < 1e-5);
        }
        assert!(dot(&together[0], &together[1]) < 0.999, "different sentences, one embedding");
    }

    #[test]
    fn observer_sees_each_linear_layer_once_in_order() {
        let encoder = tiny_encoder(&dense).unwrap();
        let mut seen = Vec::new();
        encoder
            .embed(&[vec![1, 2], vec![3]], &mut |names, _, x| {
                seen.extend(names.iter().map(|name| ((*name).to_owned(), x.len())));
                Ok(())
            })
            .unwrap();
        assert_eq!(seen.len(), 12);
        assert_eq!(seen[0], ("encoder.layer.0.attention.self.query".to_owned(), 3 * 8));
        assert_eq!(seen[11], ("encoder.layer.1.output.dense".to_owned(), 3 * 12));
    }

    #[test]
    fn long_input_is_cut_into_passes_between_sentences() {
        let long = vec![1; BATCH_TOKENS];
        assert_eq!(batch_len(&[long.clone(), vec![1]]), 1);
        assert_eq!(batch_len(&[vec![1], long]), 1);
        assert_eq!(batch_len(&[vec![1; BATCH_TOKENS + 1]]), 1);
        assert_eq!(batch_len(&[vec![1; BATCH_TOKENS / 2], vec![1; BATCH_TOKENS / 2], vec![1]]), 2);
    }

    #[test]
    fn wrong_tokens_are_errors_with_numbers() {
        let encoder = tiny_encoder(&dense).unwrap();
        for (ids, said) in [
            (vec![], "0 tokens and the model takes 1 to 6"),
            (vec![1; 7], "7 tokens and the model takes 1 to 6"),
            (vec![20], "token id 20 is outside the vocabulary of 20"),
        ] {
            let text = message(encoder.embed(&[ids], &mut |_, _, _| Ok(())));
            assert!(text.contains(said), "{text}");
        }
    }

    #[test]
    fn errors_of_a_foreign_linear_layer_name_the_layer() {
        struct Broken;
        impl Linear for Broken {
            fn forward(&self, _: &[f32], _: usize, _: &mut [f32]) -> Result<()> {
                anyhow::bail!("no product today")
            }
        }
        let text = message(tiny_encoder(&|_| anyhow::bail!("no such format")));
        assert!(text.contains("encoder.layer.0.attention.self.query (8, 8)"), "{text}");
        assert!(text.contains("no such format"), "{text}");
        let encoder = tiny_encoder(&|_| Ok(Box::new(Broken))).unwrap();
        let text = message(encoder.embed(&[vec![1, 2]], &mut |_, _, _| Ok(())));
        assert!(text.contains("attention.self.query: no product today"), "{text}");
    }

    #[test]
    fn checkpoint_of_other_sizes_is_an_error() {
        let (_, file) = tiny();
        let config = Config::parse(CONFIG).unwrap();
        let weights = Weights::new(SafeTensors::deserialize(&file).unwrap());
        let text = message(Encoder::load(&config, &weights, &dense));
        assert!(text.contains("[2, 8] and config.json asks for [2, 384]"), "{text}");
    }
}
