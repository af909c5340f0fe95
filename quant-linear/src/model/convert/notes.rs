//! What a conversion does not carry along, in words.

use std::collections::BTreeMap;

use super::plan::{Plan, done, has_input, is_gguf, is_other};
use crate::checkpoint::{Checkpoint, TensorSource};
use crate::layout::{Activations, KvCache, Layers, Layout, Native, outputs};

impl Plan<'_> {
    /// Says what is not carried along.
    pub(super) fn note(&mut self, input: &Checkpoint, layers: &Layers, cache: Option<&KvCache>) {
        let decoded = self.copied.iter().filter(|copied| copied.decoded).count();
        if decoded > 0 {
            self.notes.push(format!(
                "{decoded} tensors in blocks of ggml's that are no FP4 are written in F32"
            ));
        }
        if input.gguf().is_some() && !is_gguf(self.options.target) {
            self.notes.push(
                "the pairs of the GGUF header (tokenizer, hyperparameters) have no place in the \
                 output; tensors keep their GGUF names"
                    .into(),
            );
        }
        if input.gguf().is_none() && is_gguf(self.options.target) {
            self.notes.push(
                "tensors keep their names, and the header has the architecture only: llama.cpp's \
                 own converter renames tensors, permutes some, and adds the tokenizer"
                    .into(),
            );
        }
        let others = self.copied.iter().filter(|copied| is_other(input, &copied.name));
        let others: Vec<_> = others.collect();
        if let (Some(first), false) = (others.first(), self.same) {
            self.notes.push(format!(
                "{} tensors belong to layers that are quantized in another way, `{}` the first: \
                they stay as they are, and the config that is written does not speak of them",
                others.len(),
                first.name
            ));
        }
        let padded = self.weights.iter().filter(|planned| {
            planned.weight.sources.iter().any(|source| source.layer.layout.pads())
        });
        let padded = padded.count();
        if padded > 0 && !self.options.target.pads() {
            self.notes.push(format!(
                "{padded} weights are stored padded, and are written with their padding: a bias \
                shows how many rows are real"
            ));
        }
        let scale = self.weights.iter().filter(|planned| planned.weight.inputs.is_some());
        let scale = scale.flat_map(|planned| &planned.weight.sources);
        let lost = scale.filter(|source| source.layer.inputs.is_some()).count();
        let kept = self.weights.iter().filter(|planned| has_input(planned)).count();
        if lost > kept {
            self.notes.push(format!(
                "{} stores no global scale of activations: those of {lost} layers are left out",
                self.options.target.name()
            ));
        }
        if !self.same {
            self.note_activations(layers);
            self.note_cache(cache);
            self.note_outputs(input);
        }
    }

    /// Says where the config that is written, or the states, say something else of activations than
    /// the source does.
    fn note_activations(&mut self, layers: &Layers) {
        let target = self.options.target;
        let states = target.name() == Native.name();
        let mut notes: BTreeMap<String, (usize, &str)> = BTreeMap::new();
        for planned in &self.weights {
            let (said, meant) = &planned.activations;
            let layer = done(planned);
            let told = if is_gguf(target) { Activations::Unsaid } else { target.told(&layer) };
            // What is only implied by a stored scale is lost with it, and said above.
            let silent = *said == Activations::Unsaid || told == *meant;
            let before = match meant {
                Activations::Dense if told == Activations::Same => "are not quantized".into(),
                Activations::Same if !silent => "are quantized to 4 bits".into(),
                // A state says what its layer does, which is below.
                Activations::Other { what, .. } if told != *meant && !states => {
                    format!("are quantized to {what}")
                }
                _ => continue,
            };
            let after = match told {
                Activations::Unsaid => "says nothing of activations",
                Activations::Dense => "says that they are not quantized",
                Activations::Same => "says that they are quantized to 4 bits",
                Activations::Other { .. } => "says another way",
            };
            let stored = planned.weight.sources.iter().any(|source| source.layer.inputs.is_some());
            let why = match meant {
                Activations::Same if told == Activations::Dense && !layer.input => {
                    ": no global scale of them is stored"
                }
                Activations::Other { .. } if stored && planned.weight.inputs.is_none() => {
                    ": their stored scales, which are none of 4 bits, are left out"
                }
                _ => "",
            };
            let note = format!("{before}, and the config of {} {after}{why}", target.name());
            notes.entry(note).or_insert((0, &planned.weight.module)).0 += 1;
        }
        let notes = notes.into_iter().map(|(note, (layers, first))| {
            format!("the activations of {layers} layers, `{first}` the first, {note}")
        });
        self.notes.extend(notes);
        if states {
            self.notes.extend(layers.notes());
        }
    }

    /// Says that outputs of layers are no longer said to be quantized.
    fn note_outputs(&mut self, input: &Checkpoint) {
        if let Some(key) = outputs(TensorSource::config(input)) {
            self.notes.push(format!(
                "the source's config quantizes outputs of layers ({key}), and the config of {} says \
                 nothing of it",
                self.options.target.name()
            ));
        }
    }

    /// Says that the cache of keys and values is no longer said to be quantized.
    fn note_cache(&mut self, cache: Option<&KvCache>) {
        let target = self.options.target;
        if let Some(cache) = cache.filter(|cache| is_gguf(target) || !target.tells_cache(cache)) {
            self.notes.push(format!(
                "the source's config has a quantized cache of keys and values ({}), and the \
                 config of {} says nothing of it",
                cache.what,
                target.name()
            ));
        }
    }
}
