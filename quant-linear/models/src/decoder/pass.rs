//! A decoder over many windows of tokens, one block at a time: what a calibration looks at.
//!
//! ```text
//! part i < blocks     block i of every window; the inputs of its layers, in the order of windows
//! the last part       the last norm; the input of the head
//! ```
//!
//! In memory are one row for each token, and what the blocks that run at a time need. A window is
//! computed on one thread, and windows are independent, so what is seen does not depend on the
//! number of threads.

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::rope::Angles;
use super::{Decoder, Step};
use crate::linear::{Observer, alone, show};
use crate::math::rms_norm;

/// Input rows that a window showed: the layers, and the rows.
type Seen = Vec<(Vec<String>, usize, Vec<f32>)>;

/// A run over windows.
pub struct Pass {
    decoder: Decoder,
    windows: Vec<Vec<u32>>,
    /// Of each window, the rows before the next block.
    x: Vec<Vec<f32>>,
    next: usize,
}

impl Pass {
    /// Begins with the embeddings of windows, each of at least one token.
    ///
    /// # Errors
    /// No window, an empty one, one longer than the context, an id outside the vocabulary.
    pub fn new(decoder: Decoder, windows: Vec<Vec<u32>>) -> Result<Self> {
        let context = decoder.config.context;
        ensure!(!windows.is_empty(), "no window of tokens: give at least one");
        for window in &windows {
            ensure!(
                (1..=context).contains(&window.len()),
                "a window of {} tokens, and the model takes 1 to {context}",
                window.len()
            );
        }
        let x = windows.iter().map(|window| decoder.embed(window)).collect::<Result<_>>()?;
        Ok(Self { decoder, windows, x, next: 0 })
    }

    /// Blocks, and the head.
    pub fn parts(&self) -> usize {
        self.decoder.blocks.len() + 1
    }

    /// Rows that every input gets.
    pub fn rows(&self) -> u64 {
        self.windows.iter().map(|window| window.len() as u64).sum()
    }

    /// Runs the next part; `observe` sees its inputs.
    ///
    /// # Errors
    /// A layer that fails, or what `observe` refuses.
    ///
    /// # Panics
    /// If there is no next part.
    pub fn run(&mut self, observe: &mut Observer<'_>) -> Result<()> {
        let Self { decoder, windows, x, next } = self;
        assert!(*next <= decoder.blocks.len(), "every part has been run");
        let index = *next;
        *next += 1;
        if index == decoder.blocks.len() {
            for x in x {
                let normed = rms_norm(x, &decoder.last_norm, decoder.config.epsilon);
                show(observe, [&decoder.head], &normed)?;
            }
            return Ok(());
        }
        // As many at a time as there are threads: what they showed is kept until its turn.
        let at_a_time = rayon::current_num_threads();
        for (windows, x) in windows.chunks(at_a_time).zip(x.chunks_mut(at_a_time)) {
            let seen: Vec<Result<Seen>> = windows
                .par_iter()
                .zip(x)
                .map(|(window, x)| alone(|| block(decoder, index, window, x)))
                .collect();
            for seen in seen {
                for (names, k, rows) in seen? {
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    observe(&names, k, &rows)?;
                }
            }
        }
        Ok(())
    }
}

/// Runs one block on one window; what its layers were given.
fn block(decoder: &Decoder, index: usize, window: &[u32], x: &mut [f32]) -> Result<Seen> {
    let positions: Vec<usize> = (0..window.len()).collect();
    let angles = Angles::new(&decoder.config, &positions);
    let mut sequence = decoder.sequence();
    sequence.layers[index].reserve(decoder.config.heads(), window.len());
    let mut steps = [Step { sequence: &mut sequence, tokens: window }];
    let mut seen = Vec::new();
    let mut keep = |names: &[&str], k: usize, rows: &[f32]| {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        seen.push((names, k, rows.to_vec()));
        Ok(())
    };
    let rows = 0..window.len();
    let given = (std::slice::from_ref(&rows), &positions[..], &angles);
    let ran = decoder.run_block(&decoder.blocks[index], index, x, &mut steps, given, &mut keep);
    ran.with_context(|| format!("in block {index}"))?;
    Ok(seen)
}
