//! How checkpoints name and store quantized layers: one [`Layout`] for each way, in a list.
//!
//! A layout says which tensors mark a layer ([`Layout::module`]), whether their types and shapes
//! allow it ([`Layout::could`]), what the header or the config says ([`Layout::says`]), what the
//! layer is like ([`Layout::layer`]), and what another layer becomes in it ([`Layout::write`]). A
//! new one is a file beside the others and a line in [`ALL`]; loading, inspecting, comparing,
//! converting and verifying take it from there.
//!
//! ```text
//! names alone     never decide: `weight` + `weight_scale` is ModelOpt's, ComfyUI's or Quark's
//! types, shapes   rule layouts out
//! header, config  settle what is left
//! two are left    an error that names both, and the way to choose               Error::Ambiguous
//! ```
//!
//! A [`Layer`] is the same for all: where codes and scale bytes are ([`Place`]), how its software
//! computes a value ([`Arithmetic`]), global scales as stored ([`Global`]), 3-D experts as one
//! matrix of stacked rows. Reading a tile gives the contract's order of codes and scale bytes,
//! whose bytes never change.
//!
//! ```
//! use quant_linear::layout;
//!
//! let names: Vec<_> = layout::ALL.iter().map(|layout| layout.name()).collect();
//! assert!(names.contains(&"compressed-tensors") && names.contains(&"gguf"));
//! assert_eq!(layout::named("ct").unwrap().name(), "compressed-tensors");
//! ```

mod activations;
mod at;
mod auto_round;
mod comfy;
mod compressed_tensors;
mod deepseek;
mod find;
mod fp_quant;
mod gguf;
mod gpt_oss;
pub(crate) mod load;
mod mlx;
mod modelopt;
mod modelopt_experts;
pub(crate) mod names;
mod native;
mod options;
pub mod place;
mod quark;
mod torchao;
pub mod value;
pub mod write;

use std::fmt;

use fp4_core::{Format, PackedMatrix, PackedShape, TransformShape};
use safetensors::Dtype;

use crate::checkpoint::TensorSource;
use crate::checkpoint::tiles::Tile;
use crate::error::Error;
use crate::layer::state::Scalars;
use crate::layer::{ActivationEncoding, StoredTransform};

pub(crate) use activations::Extra;
pub use activations::{Activations, KvCache, Said, kv_cache, outputs};
pub use at::At;
pub use find::{Layers, of};
pub use native::{Native, STATE_NAMES};
pub use options::LoadOptions;
pub use place::{Nibbles, Place, ScaleOrder};
pub use value::{Arithmetic, Order, ScaleBytes, Table, Usage, Zero};

/// All layouts.
pub static ALL: [&dyn Layout; 12] = [
    &Native,
    &compressed_tensors::CompressedTensors,
    &auto_round::AutoRound,
    &modelopt::ModelOpt,
    &comfy::Comfy,
    &quark::Quark,
    &gpt_oss::GptOss,
    &deepseek::DeepSeek,
    &fp_quant::FpQuant,
    &torchao::TorchAo,
    &mlx::Mlx,
    &gguf::Gguf,
];

/// The layout of this name, or of this other name for it.
pub fn named(name: &str) -> Option<&'static dyn Layout> {
    let name = name.to_ascii_lowercase();
    ALL.into_iter().find(|layout| layout.name() == name || layout.aliases().contains(&&*name))
}

/// A way to name and store quantized layers.
pub trait Layout: Sync + fmt::Debug {
    /// What commands and reports call it.
    fn name(&self) -> &'static str;

    /// Other names for it.
    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }

    /// The module that a tensor of this name would mark as a layer of this layout.
    fn module<'n>(&self, tensor: &'n str) -> Option<&'n str>;

    /// Names of the tensors that a layer of a module may have for itself.
    fn tensors(&self, module: &str) -> Vec<String>;

    /// Do types and shapes allow that a module is a layer of this layout?
    fn could(&self, at: &At<'_>) -> bool;

    /// What the header or the config says of a module that could be one; `None` if they are silent.
    fn says(&self, _at: &At<'_>) -> Option<bool> {
        None
    }

    /// The layer of a module, judged by headers and scalars; codes, scales and a transform, which
    /// may be large, are not read.
    ///
    /// # Errors
    /// Missing tensors, wrong types or shapes, illegal scalars.
    fn layer(&self, at: &At<'_>, options: &LoadOptions) -> Result<Layer, Error>;

    /// True if one tensor holds all experts of a 3-D weight.
    fn stacks(&self) -> bool {
        false
    }

    /// True if the header describes every tensor: a layer that stays in the layout then stays as it
    /// is, with its description.
    fn describes(&self) -> bool {
        false
    }

    /// True if layers of both formats may be in one model.
    fn mixes(&self) -> bool {
        true
    }

    /// True if the stored rows may be more than the weight has.
    fn pads(&self) -> bool {
        false
    }

    /// What header and config say of the layers' activations.
    fn activations<'c>(&self, _source: &'c dyn TensorSource) -> Said<'c> {
        Box::new(|_| Activations::Unsaid)
    }

    /// What the config that [`config`](Self::config) writes says of a layer's activations.
    fn told(&self, _layer: &write::DoneLayer) -> Activations {
        Activations::Unsaid
    }

    /// Does that config have a word for this cache of keys and values?
    fn tells_cache(&self, _cache: &KvCache) -> bool {
        false
    }

    /// What a weight becomes in this layout.
    ///
    /// # Errors
    /// Why it cannot be held.
    fn write(&self, held: &write::Held<'_>) -> Result<write::Written, write::Refused>;

    /// Says in `config.json` what the tensors are, as the layout's own loader needs it, and gives
    /// other files of that kind by name.
    fn config(
        &self,
        _config: &mut serde_json::Map<String, serde_json::Value>,
        _done: &write::Done<'_>,
    ) -> Vec<(&'static str, serde_json::Value)> {
        vec![]
    }

    /// What the header says of the tensors.
    fn metadata(&self, _done: &write::Done<'_>) -> Vec<(String, String)> {
        vec![]
    }
}

/// A global scale as a file stores it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Global {
    /// The stored value.
    pub value: f32,
    /// True if it divides.
    pub divides: bool,
}

impl Global {
    /// None at all.
    pub const ONE: Self = Global { value: 1.0, divides: false };

    /// One that multiplies, as the contract's does.
    pub const fn times(value: f32) -> Self {
        Global { value, divides: false }
    }

    /// One that divides.
    pub const fn over(value: f32) -> Self {
        Global { value, divides: true }
    }

    /// As the contract has it: one f32 division where it divides (C4).
    pub fn multiplier(self) -> f32 {
        if self.divides { 1.0 / self.value } else { self.value }
    }

    /// As a layout stores it that divides.
    pub fn divisor(self) -> f32 {
        if self.divides { self.value } else { 1.0 / self.value }
    }

    /// As an order of factors takes it.
    pub fn stored_for(self, order: Order) -> f32 {
        if order.divides() { self.divisor() } else { self.multiplier() }
    }
}

/// One quantized layer of a checkpoint; all experts of a 3-D weight are one.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its layout.
    pub layout: &'static dyn Layout,
    /// The module's name.
    pub module: String,
    /// The name that its dense weight has.
    pub tensor: String,
    /// The number of experts of a 3-D weight.
    pub experts: Option<usize>,
    /// Shape and format of the weight, the rows of all experts below each other.
    pub shape: PackedShape,
    /// Where codes and scale bytes are.
    pub place: Place,
    /// How its software computes a value.
    pub arithmetic: Arithmetic,
    /// Global scale of the weight, one for all or one for each expert.
    pub globals: Vec<Global>,
    /// Global scale of the activations, where one is stored: one for all, or one for each expert.
    pub inputs: Option<Vec<Global>>,
    /// The scalars in the contract's sense, those of the first expert.
    pub scalars: Scalars,
    /// What header and config say of the activations of other software's layer.
    pub said: Activations,
    /// Why its activations are quantized otherwise than they say: what is meant, and what is done.
    pub note: Option<String>,
    /// The transform of activations, by its header.
    pub transform: Option<TransformHeader>,
    /// Name of a vector that multiplies the activations' features first.
    pub pre_scale: Option<(String, Dtype)>,
    /// What config or tensors say of the layer that its weight alone does not: a transform, another
    /// order of features, a low-rank branch. Whoever runs it without that gets wrong outputs.
    pub untold: Option<String>,
    /// Names of the tensors that it is made of.
    pub own: Vec<String>,
}

/// What the header says of a transform.
#[derive(Debug, Clone)]
pub struct TransformHeader {
    /// Name of the tensor.
    pub name: String,
    /// Its stored shape.
    pub stored: Vec<usize>,
    /// Its blocks and type.
    pub shape: TransformShape,
}

impl TransformHeader {
    /// Bytes of the values.
    pub fn byte_len(&self) -> usize {
        self.stored.iter().product::<usize>() * self.shape.float_type.bytes()
    }
}

/// Tensors of a module by which a layer of other software computes more than the product with its
/// weight: another order of features (compressed-tensors), a low-rank branch (ModelOpt's SVDQuant),
/// a rotation of the activations (Quark), adapters (mlx-lm, PEFT).
const EXTRAS: [&str; 10] = [
    "weight_g_idx",
    "svdquant_lora_a",
    "svdquant_lora_b",
    "input_rotation",
    "lora_a",
    "lora_b",
    "lora_A.weight",
    "lora_B.weight",
    "lora_A.default.weight",
    "lora_B.default.weight",
];

/// What an adapter calls the layer that it is around; it is beside it, not in it.
const ADAPTED: [&str; 3] = ["linear", "base_layer", "embedding"];

/// Bytes of a transform that are read at a time.
const PIECE: usize = 1 << 23;

impl Layer {
    /// The layer of a module with one matrix and no extras, under one global scale.
    pub(crate) fn plain(
        layout: &'static dyn Layout,
        at: &At<'_>,
        shape: PackedShape,
        place: Place,
        arithmetic: Arithmetic,
    ) -> Self {
        Layer {
            layout,
            module: at.module.to_string(),
            tensor: at.name("weight"),
            experts: None,
            shape,
            place,
            arithmetic,
            globals: vec![Global::ONE],
            inputs: None,
            scalars: Scalars {
                weight_global_scale: 1.0,
                activation_global_scale: None,
                activation_scale_scale: None,
                activations: ActivationEncoding::Own,
            },
            said: Activations::Unsaid,
            note: None,
            transform: None,
            pre_scale: None,
            untold: None,
            own: vec![],
        }
    }

    /// The layer with these global scales, checked.
    ///
    /// # Errors
    /// Scales that are not finite and above zero, in the contract's sense.
    pub(crate) fn with_scales(
        mut self,
        globals: Vec<Global>,
        inputs: Option<Vec<Global>>,
    ) -> Result<Self, Error> {
        let first = |scales: &[Global]| scales.first().copied().unwrap_or(Global::ONE);
        // Those of the activations only a layer that runs needs to be legal.
        for global in &globals {
            let scalars = Scalars {
                weight_global_scale: global.multiplier(),
                activation_global_scale: None,
                ..self.scalars
            };
            crate::layer::state::check(self.shape, None, &scalars)?;
        }
        self.scalars.weight_global_scale = first(&globals).multiplier();
        self.scalars.activation_global_scale = inputs.as_deref().map(|i| first(i).multiplier());
        (self.globals, self.inputs) = (globals, inputs);
        Ok(self)
    }

    /// The layer, with what the tensors beside it make of it that no layer here does.
    pub(crate) fn with_extras(mut self, at: &At<'_>) -> Self {
        let around = at.module.rsplit_once('.').filter(|(_, last)| ADAPTED.contains(last));
        let around = around.map(|(module, _)| At { source: at.source, module });
        let found = [Some(At { source: at.source, module: at.module }), around];
        let found = found.iter().flatten().find_map(|at| {
            let beside = |name: &&&str| self.is_foreign() && at.has(name);
            EXTRAS.iter().find(beside).map(|name| at.name(name))
        });
        let found = found.filter(|name| !self.own.contains(name));
        self.untold = self.untold.or(found);
        self
    }

    /// The layer with activations as the options ask, as its state says, or as is nearest to what
    /// its header and config say.
    pub(crate) fn with_activations(mut self, said: &Said<'_>, options: &LoadOptions) -> Self {
        self.said = said(&self.module);
        if self.is_foreign() {
            let k = self.shape.k();
            (self.scalars.activations, self.note) = match self.inputs {
                Some(_) => self.meant().encoding(k),
                None => self.said.encoding(k),
            };
        }
        if let Some(asked) = options.activations {
            (self.scalars.activations, self.note) = (asked, None);
        }
        self
    }

    /// How its own software quantizes activations: where header and config are silent, to its own
    /// format if a scale of them is stored.
    pub fn meant(&self) -> Activations {
        self.said.clone().or_by_scale(self.inputs.is_some())
    }

    /// MXFP4 or NVFP4.
    pub fn format(&self) -> Option<Format> {
        self.shape.format()
    }

    /// Output features, of one expert.
    pub fn out_features(&self) -> usize {
        self.shape.rows() / self.experts.unwrap_or(1).max(1)
    }

    /// The shape of the dense weight: (out, in), or (experts, out, in).
    pub fn dense_shape(&self) -> Vec<usize> {
        let matrix = [self.out_features(), self.shape.k()];
        self.experts.into_iter().chain(matrix).collect()
    }

    /// The codes and scales of a tile, in the contract's order.
    ///
    /// # Errors
    /// As [`TensorSource::range`].
    pub fn packed(&self, source: &dyn TensorSource, tile: &Tile) -> Result<PackedMatrix, Error> {
        self.place.read(source, self.shape, tile)
    }

    /// What its values are, by the arithmetic of its own software.
    pub fn decoder(&self) -> Decoder {
        let order = self.arithmetic.order;
        let tables = self.globals.iter().map(|g| self.arithmetic.table(g.stored_for(order)));
        Decoder { tables: tables.collect(), rows: self.out_features() }
    }

    /// The transform's values.
    ///
    /// # Errors
    /// As [`TensorSource::range`].
    pub fn stored_transform(
        &self,
        source: &dyn TensorSource,
    ) -> Result<Option<StoredTransform>, Error> {
        use fp4_core::FloatVec;
        let Some(header) = &self.transform else { return Ok(None) };
        let (len, ty) = (header.byte_len(), header.shape.float_type);
        let mut values = FloatVec::zeros(ty, 0);
        values.reserve(len / ty.bytes());
        // In pieces, so that the bytes are not in memory a second time.
        for start in (0..len).step_by(PIECE) {
            let bytes = source.range(&header.name, start..len.min(start + PIECE))?;
            values.append_le_bytes(&bytes);
        }
        Ok(Some(StoredTransform::new(values, header.stored.clone())?))
    }

    /// Bytes of the codes and scales.
    pub fn byte_len(&self) -> u64 {
        self.shape.codes_len() as u64 + self.shape.scales_len() as u64
    }
}

/// The values of a layer's codes under its scale bytes and global scales.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// One for all rows, or one for each expert.
    tables: Vec<Table>,
    /// Rows of an expert.
    rows: usize,
}

impl Decoder {
    /// The table of a row.
    pub fn table(&self, row: usize) -> &[f32] {
        let expert = if self.tables.len() > 1 { row / self.rows.max(1) } else { 0 };
        self.tables.get(expert).map_or(&[], |table| table)
    }

    /// The values of a tile.
    pub fn values(&self, packed: &PackedMatrix, tile: &Tile) -> Vec<f32> {
        let shape = packed.shape();
        let (bytes, groups) = (shape.row_bytes(), shape.row_groups());
        let mut values = Vec::with_capacity(shape.rows() * shape.k());
        for row in 0..shape.rows() {
            let table = self.table(tile.row + row);
            let codes = &packed.codes()[row * bytes..][..bytes];
            let scales = &packed.scales()[row * groups..][..groups];
            let per_group = codes.chunks_exact(shape.group().get() / 2);
            for (codes, &byte) in per_group.zip(scales) {
                let values_of = &table[16 * usize::from(byte)..][..16];
                values.extend(codes.iter().flat_map(|&pair| {
                    [values_of[usize::from(pair & 15)], values_of[usize::from(pair >> 4)]]
                }));
            }
        }
        values
    }
}
