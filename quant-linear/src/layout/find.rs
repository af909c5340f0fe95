//! Which modules of a source are quantized layers, and of which layout.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::{Checkpoint, TensorSource};
use crate::error::Error;
use crate::layout::LoadOptions;
use crate::layout::{ALL, At, Layer, Layout, Native, Said};

/// The layouts that a module may be of: those that something says it is, or else all that types and
/// shapes allow and nothing denies.
fn candidates(at: &At<'_>, marks: &[&'static dyn Layout]) -> Vec<&'static dyn Layout> {
    let could = marks.iter().filter(|layout| layout.could(at));
    let said: Vec<_> = could.map(|layout| (*layout, layout.says(at))).collect();
    let with = |says| said.iter().filter(move |(_, s)| *s == says).map(|(layout, _)| *layout);
    let sure: Vec<_> = with(Some(true)).collect();
    if sure.is_empty() { with(None).collect() } else { sure }
}

/// The one layout of several, or an error that names them.
fn only(
    at: &At<'_>,
    candidates: &[&'static dyn Layout],
) -> Result<Option<&'static dyn Layout>, Error> {
    match candidates {
        [] => Ok(None),
        [layout] => Ok(Some(*layout)),
        several => Err(Error::Ambiguous {
            module: at.module.to_string(),
            layouts: several.iter().map(|layout| layout.name()).collect(),
            config: at.source.config().problem().map(str::to_string),
        }),
    }
}

/// The layout of the layer of a module: that of the options, or the one that its tensors fit.
///
/// # Errors
/// [`Error::Ambiguous`] if they fit several.
pub fn of(
    source: &dyn TensorSource,
    module: &str,
    options: &LoadOptions,
) -> Result<Option<&'static dyn Layout>, Error> {
    if let Some(forced) = options.layout {
        return Ok(Some(forced));
    }
    let at = At { source, module };
    let marks = |layout: &&'static dyn Layout| {
        let names = layout.tensors(module);
        names.iter().any(|name| layout.module(name).is_some() && source.header(name).is_some())
    };
    let marks: Vec<_> = ALL.into_iter().filter(marks).collect();
    only(&at, &candidates(&at, &marks))
}

/// The layer of a module, and which expert of it: `NAME.3` is the fourth of a 3-D weight `NAME`.
///
/// # Errors
/// As [`of`] and [`Layout::layer`]; a 3-D weight without a number, a number that is too large.
pub(super) fn layer(
    source: &dyn TensorSource,
    module: &str,
    options: &LoadOptions,
) -> Result<(Layer, usize), Error> {
    let read = |layout: &'static dyn Layout, module: &str| {
        let at = At { source, module };
        let layer = layout.layer(&at, options)?.with_extras(&at);
        Ok::<_, Error>(layer.with_activations(&layout.activations(source), options))
    };
    let expert = module
        .rsplit_once('.')
        .and_then(|(parent, last)| last.parse::<usize>().ok().map(|expert| (parent, expert)));
    let whole = |layout: &&dyn Layout| {
        layout.tensors(module).iter().any(|name| source.header(name).is_some())
    };
    if let (Some((parent, expert)), None) = (expert, of(source, module, options)?.filter(whole))
        && let Some(layout) = of(source, parent, options)?
    {
        let layer = read(layout, parent)?;
        return match layer.experts {
            Some(experts) if expert < experts => Ok((layer, expert)),
            experts => Err(Error::Expert { module: parent.to_string(), experts, expert }),
        };
    }
    // The native layout says what is missing.
    let layout = of(source, module, options)?.unwrap_or(&Native);
    let layer = read(layout, module)?;
    match layer.experts {
        None => Ok((layer, 0)),
        experts => {
            let expert = usize::MAX;
            Err(Error::Expert { module: module.to_string(), experts, expert })
        }
    }
}

/// All quantized layers of a checkpoint, and what is wrong with those that are not whole.
#[derive(Debug, Default)]
pub struct Layers {
    /// Layers by module.
    pub good: BTreeMap<String, Layer>,
    /// Layers that cannot be read, by module.
    pub bad: BTreeMap<String, Error>,
    /// Names of the tensors that belong to any of them.
    pub tensors: BTreeSet<String>,
    /// Layouts that types and shapes allow and that header or config deny, by module.
    pub denied: BTreeMap<String, Vec<&'static str>>,
}

impl Layers {
    /// Finds the layers of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Ambiguous`].
    pub fn find(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self, Error> {
        let mut marked: BTreeMap<&str, Vec<&'static dyn Layout>> = BTreeMap::new();
        for name in checkpoint.tensors().keys() {
            for layout in ALL {
                if options.layout.is_some_and(|forced| forced.name() != layout.name()) {
                    continue;
                }
                let Some(module) = layout.module(name) else { continue };
                let of_module = marked.entry(module).or_default();
                if !of_module.iter().any(|other| other.name() == layout.name()) {
                    of_module.push(layout);
                }
            }
        }
        let mut layers = Layers::default();
        // A config may list as many modules as there are layers: it is prepared once.
        let mut said: BTreeMap<&str, Said<'_>> = BTreeMap::new();
        for (module, marks) in marked {
            let at = At { source: checkpoint, module };
            let layout = match options.layout {
                Some(forced) if forced.could(&at) => Some(forced),
                Some(_) => None,
                None => only(&at, &candidates(&at, &marks))?,
            };
            let Some(layout) = layout else {
                let denied = marks.iter().filter(|l| l.could(&at) && l.says(&at) == Some(false));
                let denied: Vec<_> = denied.map(|layout| layout.name()).collect();
                if !denied.is_empty() {
                    layers.denied.insert(module.into(), denied);
                }
                continue;
            };
            match layout.layer(&at, options) {
                Ok(layer) => {
                    let said = said.entry(layout.name());
                    let said = said.or_insert_with(|| layout.activations(checkpoint));
                    let layer = layer.with_extras(&at).with_activations(said, options);
                    layers.tensors.extend(layer.own.iter().cloned());
                    match layers.good.get(&layer.module) {
                        None => _ = layers.good.insert(layer.module.clone(), layer),
                        Some(other) => {
                            let tensors = [&other.tensor, &layer.tensor].map(Clone::clone);
                            let error = Error::SameModule { module: layer.module, tensors };
                            layers.bad.insert(module.into(), error);
                        }
                    }
                }
                Err(error) => {
                    let own = layout.tensors(module).into_iter();
                    let there = |name: &String| checkpoint.tensors().contains_key(name);
                    layers.tensors.extend(own.filter(there));
                    layers.bad.insert(module.into(), error);
                }
            }
        }
        Ok(layers)
    }

    /// Where activations are quantized otherwise than header and config mean, by what is alike; and
    /// what layers do beside the product with their weights.
    pub fn notes(&self) -> Vec<String> {
        let mut alike: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for (module, layer) in &self.good {
            let Some(note) = &layer.note else { continue };
            alike.entry(note).or_insert((0, module)).0 += 1;
        }
        let said = alike.into_iter().map(|(note, (layers, first))| {
            format!("the activations of {layers} layers, `{first}` the first, {note}")
        });
        let untold = self.good.iter().filter_map(|(m, layer)| Some((m, layer.untold.as_ref()?)));
        let first = untold.clone().next().map(|(module, what)| {
            format!(
                "{} layers, `{module}` the first, go with what no layer here computes ({what}): they \
                 are not run, and their weights alone are others",
                untold.count()
            )
        });
        said.chain(first).collect()
    }

    /// What the modules are whose layouts are denied, in words, and the first of them.
    pub fn denial(&self, checkpoint: &Checkpoint) -> Option<(&str, String)> {
        let (first, could) = self.denied.iter().next()?;
        let method = TensorSource::config(checkpoint).quant_method();
        let says = method.map_or("the header or a marker".into(), |method| {
            format!("the config, whose quant_method is `{method}`,")
        });
        let message = format!(
            "the tensors of {} modules are those of {}, and {says} says that they are not: no \
             reader that follows it finds the layers; give the config that belongs to the tensors, \
             or the layout by name",
            self.denied.len(),
            could.join(" or ")
        );
        Some((first, message))
    }
}
