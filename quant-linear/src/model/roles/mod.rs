//! What each weight is for, and so whether it is quantized unless asked otherwise.
//!
//! Today's tools agree on most of what breaks a model when it goes to four bits: routers, heads,
//! embeddings, the layers at either end of a diffusion model. `roles.toml` holds those rules as
//! data, with the tools that each comes from and what single architectures add. It works on names;
//! two rules here work on shapes, for models that name things otherwise:
//!
//! ```text
//! outside numbered layers, as many rows as the vocabulary     an embedding or head
//! in an MLP, as many rows as the model has experts            a router
//! ```
//!
//! Worked example: `model.layers.3.mlp.gate.weight` is matched as `.model.layers.3.mlp.gate`, which
//! `*.gate` finds: a router. `model.layers.3.mlp.gate_proj.weight` no rule finds: it is quantized.

mod facts;

use globset::GlobSet;
use serde::Deserialize;

pub use facts::Facts;
pub(crate) use facts::fp8_block;

use crate::error::{Kept, ModelError};
use crate::model::select::{Orientation, globs};

/// The rules as data.
const DATA: &str = include_str!("roles.toml");

/// What `roles.toml` holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    keep: Vec<KeepData>,
    architecture: Vec<Architecture>,
}

/// A rule of `roles.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeepData {
    role: String,
    why: String,
    source: String,
    names: Vec<String>,
    #[serde(default)]
    except: Vec<String>,
    #[serde(default)]
    top: bool,
}

/// What an architecture adds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Architecture {
    types: Vec<String>,
    experts: Option<Orientation>,
    conv1d: Option<Orientation>,
    /// Names of tensors with one matrix for each expert, beside the usual ones.
    #[serde(default)]
    expert_names: Vec<String>,
    #[serde(default)]
    keep: Vec<KeepData>,
    /// Roles that are quantized here.
    #[serde(default)]
    quantize: Vec<String>,
}

/// A rule, compiled.
#[derive(Debug)]
struct Keep {
    kept: Kept,
    names: GlobSet,
    except: GlobSet,
    top: bool,
}

/// The rules for one checkpoint.
#[derive(Debug)]
pub struct Roles {
    rules: Vec<Keep>,
    expert_names: GlobSet,
    experts: Option<Orientation>,
    conv1d: Option<Orientation>,
    facts: Facts,
}

impl Roles {
    /// The rules for a checkpoint of which these facts are known.
    ///
    /// # Errors
    /// Rules that are damaged: the tests keep them whole.
    pub fn new(facts: Facts) -> Result<Self, ModelError> {
        let damaged = |e: toml::de::Error| ModelError::Roles(e.to_string());
        let Data { mut keep, architecture } = toml::from_str(DATA).map_err(damaged)?;
        let (mut experts, mut conv1d, mut quantized) = (None, facts.conv1d, vec![]);
        let mut names = vec![];
        for one in architecture {
            let plain = |ty: &str| one.types.iter().any(|t| t == ty);
            if facts.types.iter().any(|ty| plain(ty) || ty.strip_suffix("_text").is_some_and(plain))
            {
                experts = one.experts.or(experts);
                conv1d = one.conv1d.or(conv1d);
                // What is said of one architecture comes before what is said of all.
                keep.splice(0..0, one.keep);
                quantized.extend(one.quantize);
                names.extend(one.expert_names);
            }
        }
        keep.retain(|rule| !quantized.contains(&rule.role));
        let compiled =
            keep.into_iter().map(|KeepData { role, why, source, names, except, top }| {
                let (names, except) = (globs(&names)?, globs(&except)?);
                Ok(Keep { kept: Kept { role, why, source }, names, except, top })
            });
        let rules = compiled.collect::<Result<_, ModelError>>()?;
        Ok(Roles { rules, expert_names: globs(&names)?, experts, conv1d, facts })
    }

    /// What is known of the checkpoint.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Why a weight is kept dense, if it is.
    pub fn kept(&self, name: &str, shape: &[usize]) -> Option<Kept> {
        if self.facts.is_mtp(name) {
            return self.rules.iter().find(|rule| rule.kept.role == "mtp").map(|r| r.kept.clone());
        }
        let dotted = format!(".{}", name.strip_suffix(".weight").unwrap_or(name));
        let top = !dotted.split('.').rev().skip(1).any(is_number);
        let matches = |rule: &&Keep| {
            let named = rule.names.is_match(&dotted) && !rule.except.is_match(&dotted);
            (top || !rule.top) && named && !(rule.kept.role == "router" && self.is_wide(shape))
        };
        let by_name = self.rules.iter().find(matches).map(|rule| rule.kept.clone());
        by_name.or_else(|| self.by_shape(&dotted, top, shape))
    }

    /// Has it too many rows for a router? An MLP may have a gate of its own by that name.
    fn is_wide(&self, shape: &[usize]) -> bool {
        matches!(shape, &[rows, k] if rows > k / 2 && rows > 64 && self.facts.experts != Some(rows))
    }

    fn by_shape(&self, dotted: &str, top: bool, shape: &[usize]) -> Option<Kept> {
        let &[rows, k] = shape else { return None };
        let kept = |role: &str, why: &str, source: &str| {
            Some(Kept { role: role.into(), why: why.into(), source: source.into() })
        };
        if top && self.facts.vocabulary == Some(rows) {
            let why = "an embedding or output head by its rows";
            return kept("head", why, "as many as the vocabulary in config.json");
        }
        let mlp =
            |part: &str| ["mlp", "moe", "ffn", "feed_forward", "block_sparse_moe"].contains(&part);
        let (within, expert) = (dotted.split('.').any(mlp), dotted.contains("expert"));
        if within && !expert && self.facts.experts == Some(rows) && self.facts.hidden == Some(k) {
            return kept("router", "a router by its rows", "as many as the model has experts");
        }
        None
    }

    /// Is the name that of a tensor with one matrix for each expert?
    pub fn is_experts(&self, name: &str) -> bool {
        let name = name.strip_suffix(".weight").unwrap_or(name);
        let (path, last) = name.rsplit_once('.').unwrap_or(("", name));
        let other = ["bias", "scale", "scale_inv", "scales", "blocks", "norm"];
        if other.iter().any(|end| last.ends_with(end)) {
            return false;
        }
        let moe = |part: &str| {
            EXPERTS.contains(&part) || ["switch_mlp", "moe", "block_sparse_moe"].contains(&part)
        };
        let usual = path.split('.').any(moe) || last.ends_with("_exps") || last == "experts";
        usual || self.expert_names.is_match(format!(".{name}"))
    }

    /// How the matrices of an expert tensor are stored: by the only way that fits the sizes in the
    /// config, unless they are square, or else by the architecture.
    pub fn experts(&self, name: &str, rows: usize, cols: usize) -> Option<Orientation> {
        if name.strip_suffix(".weight").unwrap_or(name).ends_with("_exps") {
            return Some(Orientation::OutIn); // llama.cpp's own order
        }
        let (down, up) = ends(name);
        let fits = |out: usize, k: usize| {
            let Some(hidden) = self.facts.hidden else { return false };
            let inner = |n: usize| self.facts.inner.contains(&n);
            let fused = out.is_multiple_of(2) && inner(out / 2);
            (!down && k == hidden && (inner(out) || fused)) || (!up && out == hidden && inner(k))
        };
        match (fits(rows, cols), fits(cols, rows)) {
            (true, false) if rows != cols => Some(Orientation::OutIn),
            (false, true) if rows != cols => Some(Orientation::InOut),
            _ => self.experts,
        }
    }

    /// How the architecture's loader takes a weight of this name: one of experts, or a matrix.
    pub fn loaded(&self, name: &str, experts: bool) -> Option<Orientation> {
        if experts { self.experts } else { self.matrix(name) }
    }

    /// How a matrix is stored: GPT-2's layers are `[in, out]`, all others `[out, in]`; `None` if it
    /// is named as GPT-2's and nothing tells.
    pub fn matrix(&self, name: &str) -> Option<Orientation> {
        if is_conv1d(name) { self.conv1d } else { Some(Orientation::OutIn) }
    }
}

/// Is the name that of one of GPT-2's layers, which may be stored `[in, out]`?
pub(crate) fn is_conv1d(name: &str) -> bool {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    facts::CONV1D.contains(&stem.rsplit('.').next().unwrap_or(stem))
}

/// Parts of the paths of tensors with one matrix for each expert.
const EXPERTS: [&str; 3] = ["experts", "routed_experts", "local_experts"];

/// The name of the tensor that has the matrices `NAME.0`, `NAME.1` and so on, if such tensors have
/// names like NAME: as transformers names a parameter of its own, or else the weight of a module.
///
/// `experts.3` itself is a module; `experts.down_proj.3` and `ffn_down_exps.3` are matrices.
pub(crate) fn stacked_name(name: &str) -> Option<String> {
    let (path, last) = name.rsplit_once('.').unwrap_or(("", name));
    let within = |parts: &[&str]| path.split('.').any(|part| parts.contains(&part));
    let module = last.ends_with("_exps")
        || within(&["switch_mlp"])
        || ["input_linear", "output_linear"].contains(&last);
    match (module, within(&EXPERTS) && !EXPERTS.contains(&last)) {
        (true, _) => Some(format!("{name}.weight")),
        (false, true) => Some(name.into()),
        (false, false) => None,
    }
}

/// Does an expert's name say that it leads out of the inner dimension, or into it?
fn ends(name: &str) -> (bool, bool) {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or(name);
    let down = last.contains("down") || ["w2", "wo", "fc2", "output_linear"].contains(&last);
    let up = last.contains("gate") || last.contains("up") && !down;
    (down, up || ["w1", "w3", "wi", "wi_0", "wi_1", "fc1", "input_linear"].contains(&last))
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use safetensors::Dtype;
    use serde_json::{Value, json};

    use super::*;
    use crate::checkpoint::{Tensor, TensorInfo};

    fn tensors(list: &[(&str, &[usize])]) -> BTreeMap<String, Tensor> {
        let tensor = |(name, shape): &(&str, &[usize])| {
            let data_offsets = (0, 4 * shape.iter().product::<usize>() as u64);
            let info = TensorInfo { dtype: Dtype::F32, shape: shape.to_vec(), data_offsets };
            (name.to_string(), Tensor { file: 0, info, ggml: None })
        };
        list.iter().map(tensor).collect()
    }

    fn roles(config: Value, list: &[(&str, &[usize])]) -> Roles {
        Roles::new(Facts::new(Some(&config), &tensors(list))).unwrap()
    }

    /// The role of a weight in a model of which nothing is known.
    fn role(name: &str) -> Option<String> {
        roles(Value::Null, &[]).kept(name, &[8, 512]).map(|kept| kept.role)
    }

    /// Names of weights that are kept, with their roles.
    const KEPT: [(&str, &str); 63] = [
        ("model.layers.0.block_sparse_moe.gate.weight", "router"),
        ("model.layers.3.mlp.gate.weight", "router"),
        ("layers.3.ffn.gate.weight", "router"),
        ("model.layers.0.feed_forward.router.weight", "router"),
        ("transformer.blocks.0.ffn.router.layer.weight", "router"),
        ("encoder.block.1.layer.1.mlp.router.classifier.weight", "router"),
        ("model.layers.0.mlp.gate.wg.weight", "router"),
        ("blk.0.ffn_gate_inp.weight", "router"),
        ("blk.0.ffn_gate_inp_shexp.weight", "shared-expert gate"),
        ("model.layers.0.mlp.shared_expert_gate.weight", "shared-expert gate"),
        ("mtp.layers.0.mlp.experts.0.gate_proj.weight", "mtp"),
        ("model.mtp_layers.0.self_attn.q_proj.weight", "mtp"),
        ("head.weight", "head"),
        ("lm_head.weight", "head"),
        ("gpt_neox.embed_out.weight", "head"),
        ("output.weight", "head"),
        ("transformer.output_layer.weight", "head"),
        ("qa_outputs.weight", "head"),
        ("cls.predictions.transform.dense.weight", "head"),
        ("vocab_projector.weight", "head"),
        ("bert.pooler.dense.weight", "pooler"),
        ("emb.weight", "embedding"),
        ("shared.weight", "embedding"),
        ("model.shared.weight", "embedding"),
        ("tok_embeddings.weight", "embedding"),
        ("rwkv.emb.weight", "embedding"),
        ("time_embed.0.weight", "embedding"),
        ("label_emb.0.0.weight", "embedding"),
        ("input_blocks.1.0.emb_layers.1.weight", "embedding"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "position"),
        ("model.layers.0.linear_attn.in_proj_ba.weight", "decay"),
        ("model.layers.0.linear_attn.in_proj_qkvz.weight", "linear attention"),
        ("backbone.layers.0.mixer.in_proj.weight", "linear attention"),
        ("backbone.layers.0.mixer.x_proj.weight", "decay"),
        ("proj_out.weight", "diffusion input or output"),
        ("model.diffusion_model.final_layer.linear.weight", "diffusion input or output"),
        ("img_in.weight", "diffusion input or output"),
        ("time_projection.1.weight", "diffusion input or output"),
        ("patchify_proj.weight", "diffusion input or output"),
        ("model.layers.0.self_attn.indexer.weights_proj.weight", "indexer"),
        ("double_blocks.0.img_mod.lin.weight", "modulation"),
        ("single_blocks.0.modulation.lin.weight", "modulation"),
        ("joint_blocks.0.x_block.adaLN_modulation.1.weight", "modulation"),
        ("transformer_blocks.0.norm1.linear.weight", "modulation"),
        ("model.visual.blocks.0.attn.qkv.weight", "tower"),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", "tower"),
        ("multi_modal_projector.linear_1.weight", "tower"),
        ("mlp1.1.weight", "tower"),
        ("vpm.encoder.layers.0.mlp.fc1.weight", "tower"),
        ("projector.layers.0.weight", "tower"),
        ("v.blk.0.ffn_up.weight", "tower"),
        ("all_final_layer.2-1.linear.weight", "diffusion input or output"),
        ("proj_out_1.weight", "diffusion input or output"),
        ("caption_projection.3.linear.weight", "diffusion input or output"),
        ("enc.blk.0.attn_rel_b.weight", "position"),
        ("blk.0.ssm_alpha.weight", "decay"),
        ("token_types.weight", "embedding"),
        ("cls.weight", "head"),
        ("model.transformer.ff_out.weight", "head"),
        ("pred_layer.proj.weight", "head"),
        ("decoder.weight", "head"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "adapter"),
        ("model.mm_projector.0.weight", "tower"),
    ];

    /// Names of weights that are quantized.
    const QUANTIZED: [&str; 25] = [
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
        "blocks.0.att.gate.weight",
        "transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight",
        "transformer.blocks.0.ff_out.weight",
        "model.layers.0.block_sparse_moe.experts.0.w1.weight",
        "model.layers.0.mlp.experts.0.gate.weight",
        "model.layers.0.mlp.shared_expert.gate_proj.weight",
        "model.layers.0.mlp.shared_experts.down_proj.weight",
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
        "layers.0.attn.wkv.weight",
        "blk.0.ffn_gate.weight",
        "blk.0.attn_output.weight",
        "backbone.layers.7.mixer.q_proj.weight",
        "bert.encoder.layer.0.output.dense.weight",
        "decoder.block.0.layer.1.EncDecAttention.o.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        "single_transformer_blocks.0.proj_out.weight",
        "down_blocks.1.attentions.0.proj_in.weight",
        "transformer_blocks.0.attn.to_add_out.weight",
        "transformer_blocks.0.ff.net.0.proj.weight",
        "double_blocks.0.img_attn.qkv.weight",
        "single_blocks.0.linear1.weight",
        "embedding_model.layers.0.fc1.weight",
        "model.decoder.layers.0.encoder_attn.out_proj.weight",
    ];

    #[test]
    fn names_as_files_have_them_get_their_roles() {
        for (name, expected) in KEPT {
            assert_eq!(role(name).as_deref(), Some(expected), "{name}");
        }
        for name in QUANTIZED {
            assert_eq!(role(name), None, "{name}");
        }
    }

    #[test]
    fn a_gate_with_as_many_rows_as_columns_is_no_router() {
        let name = "blocks.0.mlp.gate.weight";
        let role = |shape| roles(Value::Null, &[]).kept(name, shape).map(|kept| kept.role);
        assert_eq!(role(&[2048, 512]), None);
        assert_eq!(role(&[64, 512]).as_deref(), Some("router"));
    }

    #[test]
    fn layers_past_the_last_predict_further_tokens_where_the_config_says_so() {
        let named = "model.layers.61.self_attn.o_proj.weight";
        let with = |config| roles(config, &[(named, &[64, 64])]).kept(named, &[64, 64]);
        let extra = json!({ "num_hidden_layers": 61, "num_nextn_predict_layers": 1 });
        assert_eq!(with(extra).map(|kept| kept.role).as_deref(), Some("mtp"));
        assert_eq!(with(json!({ "num_hidden_layers": 62, "num_nextn_predict_layers": 1 })), None);
        assert_eq!(with(json!({ "num_hidden_layers": 61 })), None);
        // The projection of such a layer gives it away without a config.
        let list: [(&str, &[usize]); 2] =
            [(named, &[64, 64]), ("model.layers.61.eh_proj.weight", &[64, 128])];
        let roles = roles(Value::Null, &list);
        assert_eq!(roles.kept(named, &[64, 64]).map(|k| k.role).as_deref(), Some("mtp"));
        assert_eq!(roles.kept("model.layers.6.self_attn.o_proj.weight", &[64, 64]), None);
    }

    #[test]
    fn shapes_tell_what_unknown_names_do_not() {
        let config = json!({ "vocab_size": 1000, "num_experts": 8, "hidden_size": 64 });
        let roles = roles(config, &[]);
        let role = |name, shape: &[usize]| roles.kept(name, shape).map(|kept| kept.role);
        assert_eq!(role("words.weight", &[1000, 64]).as_deref(), Some("head"));
        assert_eq!(role("words.weight", &[999, 64]), None);
        assert_eq!(role("layers.0.words.weight", &[1000, 64]), None);
        assert_eq!(role("layers.0.moe.choose.weight", &[8, 64]).as_deref(), Some("router"));
        assert_eq!(role("layers.0.moe.choose.weight", &[8, 32]), None);
        assert_eq!(role("layers.0.attn.k.weight", &[8, 64]), None);
    }

    #[test]
    fn the_mixture_of_jetmoe_has_experts_by_its_own_names() {
        let names = ["input_linear", "output_linear"];
        for (ty, expected) in [("jetmoe", true), ("llama", false)] {
            let roles = roles(json!({ "model_type": ty }), &[]);
            for name in names {
                let name = format!("model.layers.0.mlp.{name}.weight");
                assert_eq!(roles.is_experts(&name), expected, "{ty}: {name}");
            }
            assert!(!roles.is_experts("model.layers.0.mlp.router.layer.weight"));
            // Those of its attention are known to all.
            assert!(roles.is_experts("model.layers.0.self_attn.experts.input_linear.weight"));
        }
        let told = roles(json!({ "model_type": "jetmoe" }), &[]);
        let name = "model.layers.0.mlp.input_linear.weight";
        assert_eq!(told.experts(name, 64, 64), Some(Orientation::OutIn));
    }

    #[test]
    fn what_an_architecture_adds_holds_for_it_alone() {
        let attention = "model.layers.0.self_attn.q_proj.weight";
        let kept = |ty: &str| roles(json!({ "model_type": ty }), &[]).kept(attention, &[64, 64]);
        assert_eq!(kept("gpt_oss").map(|kept| kept.role).as_deref(), Some("attention"));
        assert_eq!(kept("qwen3_moe"), None);
        let tower = "vision_model.encoder.layers.0.mlp.fc1.weight";
        let kept = |ty: &str| roles(json!({ "model_type": ty }), &[]).kept(tower, &[64, 64]);
        assert_eq!(kept("clip_vision_model"), None);
        assert!(kept("llama4").is_some());
    }

    #[test]
    fn gpt2s_layers_are_told_by_the_type_or_by_their_shapes() {
        let name = "h.0.attn.c_proj.weight";
        let of = |config, c_attn: &[usize]| {
            roles(config, &[("h.0.attn.c_attn.weight", c_attn), (name, &[64, 64])]).matrix(name)
        };
        assert_eq!(of(Value::Null, &[64, 192]), Some(Orientation::InOut));
        assert_eq!(of(Value::Null, &[192, 64]), Some(Orientation::OutIn));
        assert_eq!(of(Value::Null, &[64, 64]), None);
        assert_eq!(of(json!({ "model_type": "gpt2" }), &[64, 64]), Some(Orientation::InOut));
        assert_eq!(of(json!({ "model_type": "gpt_bigcode" }), &[64, 64]), Some(Orientation::OutIn));
    }
}
