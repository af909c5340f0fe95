//! The weights of a source as a target takes them: experts of a 3-D tensor one by one, or experts
//! that were stored one by one together.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use fp4_core::PackedShape;

use crate::layout::{Global, Layer, Layers};
use crate::model::roles::stacked_name;
use crate::model::select::Orientation;

/// Some rows of a layer.
#[derive(Debug, Clone)]
pub struct Source<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// Which of its rows.
    pub rows: Range<usize>,
}

/// A weight to be written.
#[derive(Debug, Clone)]
pub struct Weight<'a> {
    /// The module's name.
    pub module: String,
    /// The name that the dense weight has.
    pub tensor: String,
    /// The number of experts.
    pub experts: Option<usize>,
    /// Shape, the rows of all experts below each other.
    pub shape: PackedShape,
    /// Where its rows come from, in order.
    pub sources: Vec<Source<'a>>,
    /// Global scales of the weight: one, or one for each expert.
    pub globals: Vec<Global>,
    /// Global scales of the activations.
    pub inputs: Option<Vec<Global>>,
}

/// The weights of layers, for a target that holds 3-D tensors or not, and keeps some as they are.
/// `recorded` names tensors that a header says more of.
pub fn weights<'a>(
    layers: &'a Layers,
    stacks: bool,
    recorded: &BTreeMap<String, Orientation>,
    kept: &dyn Fn(&Layer) -> bool,
) -> Vec<Weight<'a>> {
    let mut all = vec![];
    let mut joined = BTreeMap::new();
    let recorded: BTreeSet<&str> = recorded.keys().map(String::as_str).collect();
    // Under the name that the header has, or as such tensors are named.
    let named = |name: &str| {
        let dense = format!("{name}.weight");
        match (recorded.contains(name), recorded.contains(&*dense)) {
            (true, _) => Some(name.to_string()),
            (false, true) => Some(dense),
            _ => stacked_name(name),
        }
    };
    if stacks {
        joined = experts(layers, &named);
    }
    let members: BTreeSet<_> =
        joined.values().flatten().map(|layer| layer.module.clone()).collect();
    for layer in layers.good.values().filter(|layer| !members.contains(&layer.module)) {
        match layer.experts {
            Some(experts) if !stacks && !kept(layer) => {
                all.extend((0..experts).map(|expert| one(layer, expert)));
            }
            _ => all.push(whole(layer)),
        }
    }
    all.extend(joined.into_iter().map(|(name, layers)| {
        stacked(name, named(name).unwrap_or_else(|| name.to_string()), &layers)
    }));
    all
}

/// Layers that were experts of one 3-D tensor: `NAME.0`, `NAME.1` and so on, all alike, of a NAME
/// that such tensors have.
fn experts<'a>(
    layers: &'a Layers,
    named: &dyn Fn(&str) -> Option<String>,
) -> BTreeMap<&'a str, Vec<&'a Layer>> {
    let mut groups: BTreeMap<&str, BTreeMap<usize, &Layer>> = BTreeMap::new();
    for (module, layer) in &layers.good {
        let Some((name, last)) = module.rsplit_once('.') else { continue };
        let number = last.parse::<usize>().ok().filter(|n| n.to_string() == last);
        if let (Some(expert), None) = (number, layer.experts)
            && named(name).is_some()
        {
            groups.entry(name).or_default().insert(expert, layer);
        }
    }
    groups.retain(|_, experts| {
        let first = experts.values().next().copied();
        let alike = |layer: &&Layer| {
            let plain = layer.transform.is_none() && layer.pre_scale.is_none();
            // What goes with one expert is told, or refused, of that one.
            plain && layer.untold.is_none() && first.is_some_and(|first| first.shape == layer.shape)
        };
        experts.keys().copied().eq(0..experts.len()) && experts.values().all(alike)
    });
    groups.into_iter().map(|(name, experts)| (name, experts.into_values().collect())).collect()
}

fn whole(layer: &Layer) -> Weight<'_> {
    Weight {
        module: layer.module.clone(),
        tensor: layer.tensor.clone(),
        experts: layer.experts,
        shape: layer.shape,
        sources: vec![Source { layer, rows: 0..layer.shape.rows() }],
        globals: layer.globals.clone(),
        inputs: layer.inputs.clone(),
    }
}

fn one(layer: &Layer, expert: usize) -> Weight<'_> {
    let out = layer.out_features();
    let module = format!("{}.{expert}", layer.module);
    let of = |globals: &[Global]| globals.get(expert).or(globals.first()).copied();
    Weight {
        tensor: format!("{module}.weight"),
        module,
        experts: None,
        // A part of a shape that there is.
        shape: layer.shape.resized(out, layer.shape.k()).unwrap_or(layer.shape),
        sources: vec![Source { layer, rows: expert * out..(expert + 1) * out }],
        globals: of(&layer.globals).into_iter().collect(),
        inputs: layer.inputs.as_deref().map(|inputs| of(inputs).into_iter().collect()),
    }
}

fn stacked<'a>(name: &str, tensor: String, layers: &[&'a Layer]) -> Weight<'a> {
    let first = layers[0];
    let rows = first.shape.rows();
    let globals: Vec<_> = layers.iter().map(|layer| layer.globals[0]).collect();
    let inputs: Option<Vec<_>> =
        layers.iter().map(|layer| layer.inputs.as_ref().map(|inputs| inputs[0])).collect();
    Weight {
        module: name.to_string(),
        tensor,
        experts: Some(layers.len()),
        // No larger than the files that hold the parts.
        shape: first.shape.resized(rows * layers.len(), first.shape.k()).unwrap_or(first.shape),
        sources: layers.iter().map(|layer| Source { layer, rows: 0..rows }).collect(),
        globals,
        inputs,
    }
}
