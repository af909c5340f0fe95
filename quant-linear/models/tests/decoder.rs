//! A small decoder against an independent one in f64, in both kinds of files, and the promise that
//! a row's bits are its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fp4_core::Format;
use quant_linear::checkpoint::gguf::{GgmlType, GgufArrangement, Planned, Value};
use quant_linear::safetensors::{self, Dtype, tensor::TensorView};
use quant_linear::{ActivationEncoding, Backends, DenseOptions, QuantLinear, Runtime};
use quant_linear_models::calibrate::{Runner, Sizes};
use quant_linear_models::decoder::{Decoder, Logits, Options, Pass, Step, TextTokenizer};
use quant_linear_models::linear::Encoding;
use serde_json::json;
use tempfile::TempDir;

const HIDDEN: usize = 64;
const WIDE: usize = 96;
const VOCABULARY: usize = 40;
const HEADS: usize = 4;
const KV: usize = 2;
const WIDTH: usize = 16;
const BLOCKS: usize = 2;
const CONTEXT: usize = 64;

/// Row-major (rows, columns).
type Matrix = (usize, usize, Vec<f32>);

/// The tensors of a model under the names of Hugging Face.
fn tensors() -> BTreeMap<String, Matrix> {
    let mut seed = 1u64;
    let mut value = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let mut all = BTreeMap::new();
    let mut add = |name: String, rows: usize, columns: usize, center: f32, spread: f32| {
        let values = (0..rows * columns).map(|_| center + spread * value()).collect();
        all.insert(name, (rows, columns, values));
    };
    add("model.embed_tokens".into(), VOCABULARY, HIDDEN, 0.0, 1.0);
    add("model.norm".into(), 1, HIDDEN, 1.0, 0.5);
    for i in 0..BLOCKS {
        for (part, rows, columns) in [
            ("self_attn.q_proj", HEADS * WIDTH, HIDDEN),
            ("self_attn.k_proj", KV * WIDTH, HIDDEN),
            ("self_attn.v_proj", KV * WIDTH, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HEADS * WIDTH),
            ("mlp.gate_proj", WIDE, HIDDEN),
            ("mlp.up_proj", WIDE, HIDDEN),
            ("mlp.down_proj", HIDDEN, WIDE),
        ] {
            add(format!("model.layers.{i}.{part}"), rows, columns, 0.0, 0.3);
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(format!("model.layers.{i}.{norm}"), 1, HIDDEN, 1.0, 0.5);
        }
    }
    all
}

fn shape(name: &str, (rows, columns, _): &Matrix) -> Vec<usize> {
    if name.contains("norm") { vec![*columns] } else { vec![*rows, *columns] }
}

fn config() -> serde_json::Value {
    json!({"model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": WIDE, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-3, "rope_theta": 100.0, "eos_token_id": 2, "tie_word_embeddings": true})
}

/// The model as a folder of Hugging Face.
fn folder(config: &serde_json::Value, tensors: &BTreeMap<String, Matrix>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bytes: BTreeMap<String, (Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, matrix)| {
            let bytes = matrix.2.iter().flat_map(|v| v.to_le_bytes()).collect();
            (format!("{name}.weight"), (shape(name, matrix), bytes))
        })
        .collect();
    let views = bytes.iter().map(|(name, (shape, bytes))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let file = safetensors::tensor::serialize(views, None).unwrap();
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

/// The name in a GGUF file.
fn gguf_name(name: &str) -> String {
    let parts = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    parts.iter().fold(format!("{name}.weight"), |name, (from, to)| name.replace(from, to))
}

/// Rows of q and k in a GGUF file: those of a pair of columns beside each other.
fn permuted(heads: usize, (rows, columns, values): &Matrix) -> Matrix {
    let half = WIDTH / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for i in 0..half {
            for row in [head * WIDTH + i, head * WIDTH + half + i] {
                out.extend_from_slice(&values[row * columns..(row + 1) * columns]);
            }
        }
    }
    (*rows, *columns, out)
}

fn pairs() -> Vec<(String, Value)> {
    let number = |key: &str, n: usize| (format!("llama.{key}"), Value::U32(n as u32));
    let mut pairs = vec![
        ("general.architecture".into(), Value::String(b"llama".into())),
        number("block_count", BLOCKS),
        number("context_length", CONTEXT),
        number("embedding_length", HIDDEN),
        number("feed_forward_length", WIDE),
        number("attention.head_count", HEADS),
        number("attention.head_count_kv", KV),
        number("vocab_size", VOCABULARY),
        number("rope.dimension_count", WIDTH),
    ];
    pairs.push(("llama.rope.freq_base".into(), Value::F32(100.0)));
    pairs.push(("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(1e-3)));
    pairs
}

/// The model as a GGUF file.
fn gguf(pairs: &[(String, Value)], tensors: &BTreeMap<String, Matrix>) -> (TempDir, PathBuf) {
    let stored: Vec<(Planned, Vec<u8>)> = tensors
        .iter()
        .map(|(name, matrix)| {
            let matrix = match name.rsplit('.').next() {
                Some("q_proj") => permuted(HEADS, matrix),
                Some("k_proj") => permuted(KV, matrix),
                _ => matrix.clone(),
            };
            let bytes = matrix.2.iter().flat_map(|v| v.to_le_bytes()).collect();
            ((gguf_name(name), GgmlType::F32, shape(name, &matrix)), bytes)
        })
        .collect();
    let planned: Vec<Planned> = stored.iter().map(|(planned, _)| planned.clone()).collect();
    let arrangement = GgufArrangement::new(pairs, &planned).unwrap();
    let mut file = arrangement.header().to_vec();
    file.resize(arrangement.file_len() as usize, 0);
    for ((name, ..), bytes) in &stored {
        let at = arrangement.position(name).unwrap() as usize;
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, file).unwrap();
    (folder, path)
}

/// The decoder once more, in f64, one token after the other, with nothing of the library.
fn oracle(tensors: &BTreeMap<String, Matrix>, ids: &[u32]) -> Vec<Vec<f64>> {
    let times = |name: &str, x: &[f64]| -> Vec<f64> {
        let (rows, columns, w) = &tensors[name];
        let row = |r: usize| (0..*columns).map(|c| f64::from(w[r * columns + c]) * x[c]).sum();
        (0..*rows).map(row).collect()
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(1e-3f32)).sqrt();
        x.iter().zip(&tensors[name].2).map(|(v, w)| v * scale * f64::from(*w)).collect()
    };
    let turn = |x: &mut [f64], position: usize| {
        for head in x.chunks_exact_mut(WIDTH) {
            for i in 0..WIDTH / 2 {
                let angle = position as f64 * 100f64.powf(-2.0 * i as f64 / WIDTH as f64);
                let (u, v) = (head[i], head[i + WIDTH / 2]);
                head[i] = u * angle.cos() - v * angle.sin();
                head[i + WIDTH / 2] = u * angle.sin() + v * angle.cos();
            }
        }
    };
    let mut cache: Vec<Vec<(Vec<f64>, Vec<f64>)>> = vec![Vec::new(); BLOCKS];
    let mut out = Vec::new();
    for (position, &id) in ids.iter().enumerate() {
        let embedding = &tensors["model.embed_tokens"].2;
        let mut x: Vec<f64> =
            embedding[id as usize * HIDDEN..][..HIDDEN].iter().map(|v| f64::from(*v)).collect();
        for (i, cache) in cache.iter_mut().enumerate() {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            let n = norm(&name("input_layernorm"), &x);
            let (mut q, mut k) =
                (times(&name("self_attn.q_proj"), &n), times(&name("self_attn.k_proj"), &n));
            turn(&mut q, position);
            turn(&mut k, position);
            cache.push((k, times(&name("self_attn.v_proj"), &n)));
            let mut context = vec![0.0; HEADS * WIDTH];
            for head in 0..HEADS {
                let (own, kv) = (head * WIDTH, head / (HEADS / KV) * WIDTH);
                let score = |k: &[f64]| {
                    let dot: f64 = (0..WIDTH).map(|c| q[own + c] * k[kv + c]).sum();
                    (dot / (WIDTH as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = cache.iter().map(|(k, _)| score(k)).collect();
                let sum: f64 = scores.iter().sum();
                for ((_, v), score) in cache.iter().zip(&scores) {
                    for c in 0..WIDTH {
                        context[own + c] += score / sum * v[kv + c];
                    }
                }
            }
            let update = times(&name("self_attn.o_proj"), &context);
            x.iter_mut().zip(update).for_each(|(x, u)| *x += u);
            let n = norm(&name("post_attention_layernorm"), &x);
            let (gate, up) = (times(&name("mlp.gate_proj"), &n), times(&name("mlp.up_proj"), &n));
            let gated: Vec<f64> =
                gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let update = times(&name("mlp.down_proj"), &gated);
            x.iter_mut().zip(update).for_each(|(x, u)| *x += u);
        }
        out.push(times("model.embed_tokens", &norm("model.norm", &x)));
    }
    out
}

const IDS: [u32; 21] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 39, 0, 2, 3, 8, 4];

fn all_logits(decoder: &Decoder, ids: &[u32]) -> Vec<f32> {
    let mut sequence = decoder.sequence();
    decoder.forward(&mut [Step { sequence: &mut sequence, tokens: ids }], Logits::All).unwrap()
}

fn open(path: &Path, encoding: Option<Encoding>) -> anyhow::Result<Decoder> {
    Decoder::open(path, Options { encoding, head: None })
}

#[test]
fn both_kinds_of_files_are_computed_as_in_f64() {
    let tensors = tensors();
    let wanted: Vec<f64> = oracle(&tensors, &IDS).into_iter().flatten().collect();
    let (folder, (_kept, file)) = (folder(&config(), &tensors), gguf(&pairs(), &tensors));
    for path in [folder.path(), &file] {
        let given = all_logits(&open(path, None).unwrap(), &IDS);
        assert_eq!(given.len(), wanted.len());
        for (i, (given, wanted)) in given.iter().zip(&wanted).enumerate() {
            let off = (f64::from(*given) - wanted).abs();
            assert!(off < 1e-4, "logit {i} of {path:?}: {given} for {wanted}");
        }
    }
}

#[test]
fn a_head_of_its_own_is_used() {
    let mut tensors = tensors();
    let tied = folder(&config(), &tensors);
    let head = tensors["model.norm"].clone();
    assert_eq!(head.1, HIDDEN);
    let rows = (0..VOCABULARY).flat_map(|i| head.2.iter().map(move |v| v * (i as f32 - 20.0)));
    tensors.insert("lm_head".into(), (VOCABULARY, HIDDEN, rows.collect()));
    let own = folder(&config(), &tensors);
    let [tied, own] = [tied, own].map(|f| all_logits(&open(f.path(), None).unwrap(), &IDS[..2]));
    assert_ne!(tied, own);
    // Logits of this head are multiples of one number.
    let (last, unit) = (&own[VOCABULARY..], own[VOCABULARY + 21]);
    for (i, logit) in last.iter().enumerate() {
        assert!((logit - unit * (i as f32 - 20.0)).abs() < 1e-3 * unit.abs().max(1.0));
    }
}

fn exact() -> Vec<Encoding> {
    let all = Encoding::all().into_iter().filter(|encoding| *encoding != Encoding::F32);
    let mut all: Vec<Encoding> = all.collect();
    all.push(Encoding::Quantized {
        format: Format::MxFp4,
        activations: ActivationEncoding::Own,
        hadamard: Some(32),
    });
    all
}

#[test]
fn exact_layers_give_a_row_the_same_bits_in_every_batch_chunk_thread_and_backend() {
    let folder = folder(&config(), &tensors());
    for encoding in exact() {
        let mut decoder = open(folder.path(), Some(encoding)).unwrap();
        assert!(decoder.is_exact());
        let wanted = all_logits(&decoder, &IDS);
        // Texts of other lengths beside it, chunks, threads.
        for (chunk, threads) in [(1, 1), (4, 2), (21, 3)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut own, mut other) = (decoder.sequence(), decoder.sequence());
            let mut given = Vec::new();
            for (i, tokens) in IDS.chunks(chunk).enumerate() {
                let beside: Vec<u32> = (0..1 + i as u32 % 3).map(|j| (j + i as u32) % 40).collect();
                let mut steps = [
                    Step { sequence: &mut other, tokens: &beside },
                    Step { sequence: &mut own, tokens },
                ];
                let logits = pool.install(|| decoder.forward(&mut steps, Logits::All)).unwrap();
                given.extend_from_slice(&logits[beside.len() * VOCABULARY..]);
            }
            assert_eq!(given, wanted, "{encoding}, chunks of {chunk}, {threads} threads");
        }
        decoder.set_runtime(&Runtime::new(Backends::reference()));
        assert_eq!(all_logits(&decoder, &IDS), wanted, "{encoding} by the reference");
    }
}

#[test]
fn the_last_logits_are_those_of_the_last_rows_and_none_are_none() {
    let folder = folder(&config(), &tensors());
    let decoder = open(folder.path(), Some(exact()[0])).unwrap();
    let wanted = all_logits(&decoder, &IDS);
    let (mut a, mut b) = (decoder.sequence(), decoder.sequence());
    let none = Step { sequence: &mut a, tokens: &IDS[..5] };
    assert!(decoder.forward(&mut [none], Logits::None).unwrap().is_empty());
    let mut steps = [
        Step { sequence: &mut a, tokens: &IDS[5..9] },
        Step { sequence: &mut b, tokens: &IDS[..2] },
    ];
    let last = decoder.forward(&mut steps, Logits::Last).unwrap();
    assert_eq!(last[..VOCABULARY], wanted[8 * VOCABULARY..9 * VOCABULARY]);
    assert_eq!(last[VOCABULARY..], wanted[VOCABULARY..2 * VOCABULARY]);
    assert_eq!((a.len(), b.len()), (9, 2));
    assert!(a.bytes() >= 9 * 2 * KV * WIDTH * 4 * BLOCKS);
}

#[test]
fn a_quantized_checkpoint_is_run_as_it_is_stored() {
    let folder = folder(&config(), &tensors());
    let encoding: Encoding = "nvfp4-fp4".parse().unwrap();
    let wanted = all_logits(&open(folder.path(), Some(encoding)).unwrap(), &IDS);
    let decoder = open(folder.path(), Some(encoding)).unwrap();
    // The same layers as a native state, the head dense.
    let out = tempfile::tempdir().unwrap();
    let mut bytes: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for layer in decoder.quantized() {
        for (name, tensor) in layer.state_dict(layer.name().unwrap()).unwrap() {
            bytes.insert(name, (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec()));
        }
    }
    for (name, matrix) in tensors().iter().filter(|(name, _)| name.contains("norm")) {
        let data = matrix.2.iter().flat_map(|v| v.to_le_bytes()).collect();
        bytes.insert(format!("{name}.weight"), (Dtype::F32, shape(name, matrix), data));
    }
    let matrix = &tensors()["model.embed_tokens"];
    let data = matrix.2.iter().flat_map(|v| v.to_le_bytes()).collect();
    let head = bytes.keys().filter(|name| name.starts_with("model.embed_tokens")).count();
    assert!(head > 3, "the head is the embedding's module");
    bytes.insert("model.embed_tokens.weight".into(), (Dtype::F32, vec![VOCABULARY, HIDDEN], data));
    let heads: Vec<String> = bytes
        .keys()
        .filter(|n| n.starts_with("model.embed_tokens") && !n.ends_with(".weight"))
        .cloned()
        .collect();
    for name in heads {
        let moved = bytes.remove(&name).unwrap();
        bytes.insert(name.replace("model.embed_tokens", "lm_head"), moved);
    }
    let views = bytes.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let file = safetensors::tensor::serialize(views, None).unwrap();
    fs::write(out.path().join("model.safetensors"), file).unwrap();
    fs::write(out.path().join("config.json"), config().to_string()).unwrap();
    let stored = open(out.path(), None).unwrap();
    assert!(stored.is_exact());
    assert_eq!(all_logits(&stored, &IDS), wanted);
    // Another encoding of it is refused.
    let text = format!("{:#}", open(out.path(), Some(encoding)).err().unwrap());
    assert!(text.contains("stored in FP4 already") && text.contains("nvfp4-fp4"), "{text}");
}

#[test]
fn checkpoints_of_another_model_are_named_errors() {
    let whole = tensors();
    let mut missing = whole.clone();
    missing.remove("model.layers.1.mlp.up_proj");
    let mut more = whole.clone();
    more.insert("model.layers.1.self_attn.q_norm".into(), (1, 16, vec![1.0; 16]));
    let mut bias = whole.clone();
    bias.insert("model.layers.2.mlp.up_proj".into(), whole["model.norm"].clone());
    let mut shaped = whole.clone();
    shaped.insert("model.norm".into(), (1, 65, vec![1.0; 65]));
    for (tensors, said) in [
        (&missing, "model.layers.1.mlp.up_proj"),
        (&more, "`model.layers.1.self_attn.q_norm.weight` the first"),
        (&bias, "does not use, `model.layers.2.mlp.up_proj.weight`"),
        (&shaped, "model.norm.weight has shape [65]"),
    ] {
        let folder = folder(&config(), tensors);
        let text = format!("{:#}", open(folder.path(), None).err().unwrap());
        assert!(text.contains(said), "{text}");
    }
    let mut other = pairs();
    other[0].1 = Value::String(b"qwen2".into());
    let (_kept, file) = gguf(&other, &whole);
    let text = format!("{:#}", open(&file, None).err().unwrap());
    assert!(text.contains("general.architecture = \"qwen2\""), "{text}");
    for (key, value, said) in [
        ("llama.rope.scaling.type", Value::String(b"yarn".into()), "rope.scaling.type"),
        ("llama.expert_count", Value::U32(8), "expert_count = 8"),
    ] {
        let mut other = pairs();
        other.push((key.into(), value));
        let (_kept, file) = gguf(&other, &whole);
        let text = format!("{:#}", open(&file, None).err().unwrap());
        assert!(text.contains(said) && text.contains("not computed here"), "{text}");
    }
    let folder = folder(&config(), &whole);
    fs::remove_file(folder.path().join("config.json")).unwrap();
    let text = format!("{:#}", open(folder.path(), None).err().unwrap());
    assert!(text.contains("config.json"), "{text}");
}

#[test]
fn wrong_tokens_are_errors_and_leave_the_sequence_as_it_was() {
    let folder = folder(&config(), &tensors());
    let decoder = open(folder.path(), Some(exact()[0])).unwrap();
    let mut sequence = decoder.sequence();
    let mut step = |tokens: &[u32]| {
        let step = Step { sequence: &mut sequence, tokens };
        decoder.forward(&mut [step], Logits::All)
    };
    let mut given = step(&IDS[..9]).unwrap();
    for (tokens, said) in [
        (&[][..], "a step of no tokens"),
        (&[40], "token id 40 is outside the vocabulary of 40"),
        (&[0; 56], "a text of 9 and 56 more tokens, and the model takes 64"),
    ] {
        let text = format!("{:#}", step(tokens).unwrap_err());
        assert!(text.contains(said), "{text}");
    }
    given.extend(step(&IDS[9..]).unwrap());
    assert_eq!(given, all_logits(&decoder, &IDS));
}

/// A byte-level tokenizer of 40 tokens in a GGUF header.
fn tokenizer_pairs() -> Vec<(String, Value)> {
    use quant_linear::checkpoint::gguf::Array;
    let mut tokens: Vec<String> = vec!["<|im_start|>".into(), "<|im_end|>".into(), "<end>".into()];
    tokens.extend("abcdefghijklmnopqrstuvwxyz0123456789Ġ".chars().map(String::from));
    tokens.truncate(39);
    tokens[38] = "Ġ".into();
    tokens.push("ab".into());
    let strings = |list: &[String]| Value::Array(Array::of_strings(list));
    let mut pairs = pairs();
    pairs.retain(|(key, _)| key != "llama.vocab_size");
    pairs.push(("tokenizer.ggml.model".into(), Value::String(b"gpt2".into())));
    pairs.push(("tokenizer.ggml.pre".into(), Value::String(b"smollm".into())));
    pairs.push(("tokenizer.ggml.tokens".into(), strings(&tokens)));
    pairs.push(("tokenizer.ggml.merges".into(), strings(&["a b".into()])));
    pairs.push(("tokenizer.ggml.eos_token_id".into(), Value::U32(2)));
    pairs
}

#[test]
fn the_tokenizer_of_a_gguf_file_cuts_merges_and_goes_back() {
    let (_kept, file) = gguf(&tokenizer_pairs(), &tensors());
    let decoder = open(&file, None).unwrap();
    assert_eq!((decoder.config().vocabulary, &decoder.config().ends[..]), (40, &[2][..]));
    let tokenizer = TextTokenizer::of(decoder.checkpoint(), 40).unwrap();
    let ids = tokenizer.encode("cab 07").unwrap();
    // c, ab (merged), a space, and digits one by one.
    assert_eq!(ids, [5, 39, 38, 29, 36]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "cab 07");
    let mut stream = tokenizer.stream();
    let text: String = ids.iter().filter_map(|id| stream(*id).unwrap()).collect();
    assert_eq!(text, "cab 07");
    let text = TextTokenizer::of(decoder.checkpoint(), 39).err().unwrap().to_string();
    assert!(text.contains("40 tokens and the model 39"), "{text}");
}

#[test]
fn tokenizers_that_are_not_known_or_damaged_are_errors() {
    use quant_linear::checkpoint::gguf::Array;
    let list = |tokens: &[&str]| Value::Array(Array::of_strings(tokens));
    for (key, value, said) in [
        ("tokenizer.ggml.pre", Value::String(b"llama-bpe".into()), "\"llama-bpe\""),
        ("tokenizer.ggml.model", Value::String(b"llama".into()), "known are \"gpt2\""),
        ("tokenizer.ggml.merges", list(&["a"]), "is not two tokens"),
        ("tokenizer.ggml.merges", list(&["a zz"]), "merges do not fit"),
        ("tokenizer.ggml.merges", Value::U32(1), "no list tokenizer.ggml.merges"),
        ("tokenizer.ggml.tokens", list(&["a", "a"]), "1 of 2 tokens are there twice"),
    ] {
        let mut pairs = tokenizer_pairs();
        pairs.iter_mut().find(|(found, _)| found == key).unwrap().1 = value;
        let (_kept, file) = gguf(&pairs, &tensors());
        let checkpoint = quant_linear::checkpoint::Checkpoint::open(&file).unwrap();
        let text = format!("{:#}", TextTokenizer::of(&checkpoint, 40).err().unwrap());
        assert!(text.contains(said), "{text}");
    }
}

/// What a pass shows of a model: layers, width and rows of every input, in order.
fn seen(windows: &[Vec<u32>], threads: usize) -> Vec<(Vec<String>, usize, Vec<f32>)> {
    let model = folder(&config(), &tensors());
    let options = Options { encoding: Some(Encoding::F32), head: None };
    let decoder = Decoder::open(model.path(), options).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut pass = Pass::new(decoder, windows.to_vec()).unwrap();
    let mut all = Vec::new();
    for _ in 0..pass.parts() {
        let mut keep = |names: &[&str], k: usize, rows: &[f32]| {
            let names = names.iter().map(ToString::to_string).collect();
            all.push((names, k, rows.to_vec()));
            Ok(())
        };
        pool.install(|| pass.run(&mut keep)).unwrap();
    }
    all
}

#[test]
fn a_pass_shows_what_each_layer_is_given_window_by_window() {
    let windows = [vec![3, 1, 4, 1, 5], vec![9, 2, 6], vec![5, 3, 5, 8, 9, 7, 9]];
    let all = seen(&windows, 1);
    assert_eq!(all.len(), (4 * BLOCKS + 1) * windows.len());
    for (names, k, rows) in &all {
        assert_eq!(*k, if names[0].ends_with("down_proj") { WIDE } else { HIDDEN });
        assert_eq!(rows.len() % k, 0);
    }
    assert_eq!(
        all[0].0,
        ["q_proj", "k_proj", "v_proj"].map(|n| format!("model.layers.0.self_attn.{n}"))
    );
    // The head's inputs make the logits that a forward gives.
    let model = folder(&config(), &tensors());
    let options = Options { encoding: Some(Encoding::F32), head: None };
    let decoder = Decoder::open(model.path(), options).unwrap();
    let embedding = &tensors()["model.embed_tokens"].2;
    for (window, (names, _, rows)) in windows.iter().zip(&all[4 * BLOCKS * windows.len()..]) {
        assert_eq!(names[..], ["model.embed_tokens"]);
        let mut sequence = decoder.sequence();
        let step = Step { sequence: &mut sequence, tokens: window };
        let logits = decoder.forward(&mut [step], Logits::All).unwrap();
        for (row, logits) in rows.chunks_exact(HIDDEN).zip(logits.chunks_exact(VOCABULARY)) {
            for (word, logit) in embedding.chunks_exact(HIDDEN).zip(logits) {
                let own: f32 = row.iter().zip(word).map(|(a, b)| a * b).sum();
                assert!((own - logit).abs() < 1e-4, "{own} {logit}");
            }
        }
    }
    // Neither threads nor the other windows change a bit.
    for threads in [2, 3] {
        assert_eq!(seen(&windows, threads), all);
    }
    let alone = seen(&windows[1..2], 1);
    let blocks = all[..4 * BLOCKS * windows.len()].chunks_exact(4);
    let mut own: Vec<_> = blocks.skip(1).step_by(windows.len()).flatten().cloned().collect();
    own.push(all[4 * BLOCKS * windows.len() + 1].clone());
    assert_eq!(alone, own);
}

#[test]
fn text_is_run_in_whole_windows() {
    let (_kept, file) = gguf(&tokenizer_pairs(), &tensors());
    let run = |text: &str, tokens, window| {
        let mut runner = Runner::open(&file, text, Sizes { tokens, window })?;
        let (mut inputs, mut rows) = (0, 0);
        for _ in 0..runner.parts() {
            runner.run(&mut |_, k, x| {
                inputs += 1;
                rows += x.len() / k;
                Ok(())
            })?;
        }
        assert_eq!(rows as u64, runner.rows() * (4 * BLOCKS as u64 + 1));
        Ok::<_, anyhow::Error>((runner.rows(), inputs))
    };
    let text = "cab 07 cab 70 a b c 0 7 ac bb";
    let tokens = {
        let decoder = Decoder::open(&file, Options::default()).unwrap();
        TextTokenizer::of(decoder.checkpoint(), 40).unwrap().encode(text).unwrap().len()
    };
    assert!(tokens > 20);
    let per_window = 4 * BLOCKS + 1;
    assert_eq!(run(text, 1000, 7).unwrap(), ((tokens / 7 * 7) as u64, tokens / 7 * per_window));
    assert_eq!(run(text, 10, 5).unwrap(), (10, 2 * per_window));
    assert_eq!(run(text, 9, 5).unwrap(), (5, per_window));
    for (tokens, window, said) in
        [(1000, 64, "a window 64: give more text"), (3, 5, "a window has 5"), (9, 0, "no tokens")]
    {
        let text = run(text, tokens, window).unwrap_err().to_string();
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn what_a_pass_refuses_it_names() {
    let open = || {
        let model = folder(&config(), &tensors());
        let options = Options { encoding: Some(Encoding::F32), head: None };
        Decoder::open(model.path(), options).unwrap()
    };
    for (windows, said) in [
        (vec![], "no window"),
        (vec![vec![]], "a window of 0 tokens"),
        (vec![vec![1; CONTEXT + 1]], "takes 1 to 64"),
        (vec![vec![VOCABULARY as u32]], "outside the vocabulary"),
    ] {
        let text = Pass::new(open(), windows).err().unwrap().to_string();
        assert!(text.contains(said), "{text}");
    }
    let mut pass = Pass::new(open(), vec![vec![1, 2]]).unwrap();
    let refused = pass.run(&mut |_, _, _| anyhow::bail!("enough"));
    assert_eq!(refused.unwrap_err().to_string(), "enough");
}

#[test]
fn layers_of_another_file_stand_for_the_models_own() {
    let model = folder(&config(), &tensors());
    let name = "model.layers.1.mlp.down_proj";
    let (rows, columns, values) = tensors()[name].clone();
    let options = DenseOptions::new(Format::NvFp4);
    let layer = QuantLinear::from_dense(&values[..], rows, columns, &options).unwrap();
    let other = tempfile::tempdir().unwrap();
    let path = other.path().join("layers.safetensors");
    layer.save(&path, name).unwrap();
    let open = |layers| Decoder::open_with(model.path(), layers, Options::default()).unwrap();
    let (own, mixed) = (open(None), open(Some(&*path)));
    assert_eq!(own.quantized().count(), 0);
    assert_eq!(mixed.quantized().count(), 1);
    let logits = |decoder: &Decoder| {
        let mut sequence = decoder.sequence();
        let step = Step { sequence: &mut sequence, tokens: &[1, 2, 3] };
        decoder.forward(&mut [step], Logits::All).unwrap()
    };
    assert_ne!(logits(&own), logits(&mixed));
    let encoding = Some(Encoding::Quantized {
        format: Format::NvFp4,
        activations: ActivationEncoding::Own,
        hadamard: None,
    });
    let both = Decoder::open_with(model.path(), Some(&path), Options { encoding, head: None });
    assert!(format!("{:#}", both.err().unwrap()).contains("stored in FP4 already"));
}
