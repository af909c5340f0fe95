//! Scale rules of other libraries write the bytes that those libraries write, but for edges that
//! are counted here one by one; and the rule that weights have by default leaves what is in the
//! format already as it is.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;

use fp4_core::{
    E2m1, FloatType, FloatVec, Format, PackedMatrix, QuantSpec, QuantizeInput, ScaleRule,
    ScaleType, bf16, reference,
};
use quant_linear::checkpoint::tiles::tiles;
use quant_linear::checkpoint::{Checkpoint, TensorSource};
use quant_linear::layout::Layers;
use quant_linear::safetensors::Dtype;
use quant_linear::{DenseOptions, LoadOptions, QuantLinear};

fn open_in(folder: &str, name: &str) -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder).join(name);
    Checkpoint::open(&path).unwrap()
}

fn open(name: &str) -> Checkpoint {
    open_in("vectors", name)
}

/// What differs from what a library wrote, by why.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Edges {
    /// Groups compared.
    groups: usize,
    /// Scale bytes: of groups that are all zero; that hold NaN or infinities; whose largest
    /// magnitude is 1.75 * 2^127 or more, where compressed-tensors overflows; of bf16 weights,
    /// whose sixth compressed-tensors rounds to bf16.
    zero: usize,
    not_finite: usize,
    huge: usize,
    sixth: usize,
    /// Codes under equal scale bytes, in groups of finite values: zeros of another sign; under the
    /// e8m0 byte 0, where torchao divides by 2^-126; within a rounding of a tie, where
    /// compressed-tensors divides by scale / g and a layer by scale * (1 / g).
    signs: usize,
    tiny: usize,
    divisor: usize,
}

impl Edges {
    fn list(&self) -> [usize; 7] {
        let Edges { zero, not_finite, huge, sixth, signs, tiny, divisor, .. } = *self;
        [zero, not_finite, huge, sixth, signs, tiny, divisor]
    }
}

/// Compares a weight by a rule with what a library wrote. `g` is what it divides by, if it does.
fn compare(
    x: &FloatVec,
    spec: &QuantSpec,
    k: usize,
    (codes, scales): (&[u8], &[u8]),
    g: Option<f32>,
    to: &mut Edges,
) {
    let rows = x.as_slice().len() / k;
    let input = QuantizeInput::new(x.as_slice(), rows, k, spec).unwrap();
    let mut packed = PackedMatrix::zeros(input.shape());
    reference::quantize(&input, &mut packed.view_mut()).unwrap();
    let group = spec.group().get();
    assert_eq!((packed.codes().len(), packed.scales().len()), (codes.len(), scales.len()));
    let theirs = codes.chunks_exact(group / 2).zip(scales);
    let ours = packed.codes().chunks_exact(group / 2).zip(packed.scales());
    for (at, ((our_codes, our_scale), (codes, scale))) in ours.zip(theirs).enumerate() {
        to.groups += 1;
        let values = at * group..(at + 1) * group;
        let values: Vec<f32> = values.map(|i| x.as_slice().get_f32(i).unwrap()).collect();
        let amax = values.iter().fold(0f32, |amax, x| amax.max(x.abs()));
        let finite = values.iter().all(|x| x.is_finite());
        if our_scale != scale {
            let sixth = bf16::from_f32(amax / 6.0).to_f32();
            let in_bf16 = spec.scale_type().encode(g.unwrap_or(0.0) * sixth) == *scale;
            match () {
                () if !finite => to.not_finite += 1,
                () if amax == 0.0 => to.zero += 1,
                () if amax >= 1.75 * 2f32.powi(127) => to.huge += 1,
                () if x.float_type() == FloatType::Bf16 && in_bf16 => to.sixth += 1,
                () => panic!("scale byte {our_scale:#x} of {values:?}, expected {scale:#x}"),
            }
            continue;
        }
        if !finite {
            continue;
        }
        let d = g.map(|g| spec.scale_type().decode(*scale) / g);
        for (i, x) in values.iter().enumerate() {
            let nibble = |codes: &[u8]| codes[i / 2] >> (4 * (i % 2)) & 15;
            let (our, their) = (nibble(our_codes), nibble(codes));
            match () {
                () if our == their => {}
                () if our & 7 == 0 && their & 7 == 0 => to.signs += 1,
                () if *scale == 0 && spec.scale_type() == ScaleType::E8M0 => to.tiny += 1,
                () if d.is_some_and(|d| E2m1::from_f32(x / d).to_bits() == their) => {
                    to.divisor += 1;
                }
                () => panic!("code {our} of {x} in {values:?}, expected {their}"),
            }
        }
    }
}

fn values(file: &Checkpoint, name: &str) -> (FloatVec, usize) {
    let tensor = &file.tensors()[name];
    let shape = tensor.shape();
    let bytes = file.bytes(name).unwrap();
    let ty = match tensor.info.dtype {
        Dtype::F32 => FloatType::F32,
        Dtype::BF16 => FloatType::Bf16,
        other => panic!("{name} is {other:?}"),
    };
    let x = FloatVec::from_le_bytes(ty, &bytes).unwrap();
    (x, *shape.last().unwrap())
}

fn scalar(file: &Checkpoint, name: &str) -> f32 {
    values(file, name).0.as_slice().get_f32(0).unwrap()
}

fn amax(x: &FloatVec) -> f32 {
    (0..x.as_slice().len()).map(|i| x.as_slice().get_f32(i).unwrap().abs()).fold(0.0, f32::max)
}

/// What differs in family g: format, library, type and input; zero, not finite, huge, sixth, signs,
/// tiny, divisor. All other sets are equal.
const EDGES: [(&str, [usize; 7]); 41] = [
    ("mxfp4 ct bf16.edge", [0, 18, 6, 0, 122, 0, 0]),
    ("mxfp4 ct bf16.edge_finite", [0, 0, 6, 0, 111, 0, 0]),
    ("mxfp4 ct bf16.grid", [0, 0, 0, 0, 75, 0, 0]),
    ("mxfp4 ct bf16.grid_narrow", [0, 0, 0, 0, 79, 0, 0]),
    ("mxfp4 ct f32.edge", [0, 18, 6, 0, 112, 0, 0]),
    ("mxfp4 ct f32.edge_finite", [0, 0, 6, 0, 112, 0, 0]),
    ("mxfp4 ct f32.grid", [0, 0, 0, 0, 64, 0, 0]),
    ("mxfp4 ct f32.grid_narrow", [0, 0, 0, 0, 77, 0, 0]),
    ("mxfp4 modelopt bf16.edge", [0, 18, 0, 0, 127, 0, 0]),
    ("mxfp4 modelopt bf16.edge_finite", [0, 0, 0, 0, 147, 0, 0]),
    ("mxfp4 modelopt bf16.grid", [0, 0, 0, 0, 92, 0, 0]),
    ("mxfp4 modelopt bf16.grid_narrow", [0, 0, 0, 0, 72, 0, 0]),
    ("mxfp4 modelopt f32.edge", [0, 18, 0, 0, 132, 0, 0]),
    ("mxfp4 modelopt f32.edge_finite", [0, 0, 0, 0, 138, 0, 0]),
    ("mxfp4 modelopt f32.grid", [0, 0, 0, 0, 85, 0, 0]),
    ("mxfp4 modelopt f32.grid_narrow", [0, 0, 0, 0, 81, 0, 0]),
    ("mxfp4 torchao_even bf16.edge", [0, 11, 0, 0, 0, 217, 0]),
    ("mxfp4 torchao_even bf16.edge_finite", [0, 0, 0, 0, 0, 201, 0]),
    ("mxfp4 torchao_even f32.edge", [0, 11, 0, 0, 0, 213, 0]),
    ("mxfp4 torchao_even f32.edge_finite", [0, 0, 0, 0, 0, 190, 0]),
    ("mxfp4 torchao_floor bf16.edge", [0, 11, 0, 0, 0, 248, 0]),
    ("mxfp4 torchao_floor bf16.edge_finite", [0, 0, 0, 0, 0, 201, 0]),
    ("mxfp4 torchao_floor f32.edge", [0, 11, 0, 0, 0, 244, 0]),
    ("mxfp4 torchao_floor f32.edge_finite", [0, 0, 0, 0, 0, 218, 0]),
    ("mxfp4 torchao_rceil bf16.edge", [0, 0, 0, 0, 0, 255, 0]),
    ("mxfp4 torchao_rceil bf16.edge_finite", [0, 0, 0, 0, 0, 218, 0]),
    ("mxfp4 torchao_rceil f32.edge", [0, 0, 0, 0, 0, 233, 0]),
    ("mxfp4 torchao_rceil f32.edge_finite", [0, 0, 0, 0, 0, 213, 0]),
    ("nvfp4 ct bf16.edge_finite", [0, 0, 0, 0, 658, 0, 0]),
    ("nvfp4 ct bf16.gauss", [0, 0, 0, 0, 0, 0, 2]),
    ("nvfp4 ct bf16.grid", [0, 0, 0, 0, 75, 0, 0]),
    ("nvfp4 ct bf16.grid_narrow", [0, 0, 0, 0, 79, 0, 0]),
    ("nvfp4 ct f32.edge_finite", [0, 0, 0, 0, 702, 0, 0]),
    ("nvfp4 ct f32.grid", [0, 0, 0, 0, 64, 0, 0]),
    ("nvfp4 ct f32.grid_narrow", [0, 0, 0, 0, 77, 0, 0]),
    ("nvfp4 modelopt bf16.edge_finite", [0, 0, 0, 0, 683, 0, 0]),
    ("nvfp4 modelopt bf16.grid", [0, 0, 0, 0, 75, 0, 0]),
    ("nvfp4 modelopt bf16.grid_narrow", [0, 0, 0, 0, 79, 0, 0]),
    ("nvfp4 modelopt f32.edge_finite", [0, 0, 0, 0, 712, 0, 0]),
    ("nvfp4 modelopt f32.grid", [0, 0, 0, 0, 64, 0, 0]),
    ("nvfp4 modelopt f32.grid_narrow", [0, 0, 0, 0, 77, 0, 0]),
];

const INPUTS: [&str; 5] = ["gauss", "heavy", "grid", "grid_narrow", "edge_finite"];

/// Family g: shared inputs, quantized by each library.
#[test]
fn rules_of_libraries_write_their_bytes() {
    let mut seen = BTreeMap::new();
    for (format, name) in [(Format::MxFp4, "mxfp4"), (Format::NvFp4, "nvfp4")] {
        let file = open_in("peers", &format!("g_peers_{name}_subset.safetensors"));
        let columns: &[(&str, ScaleRule)] = match format {
            Format::MxFp4 => &[
                ("torchao_floor", ScaleRule::Floor),
                ("torchao_rceil", ScaleRule::Rceil),
                ("torchao_even", ScaleRule::Even),
                ("modelopt", ScaleRule::ModelOpt),
                ("ct", ScaleRule::CompressedTensors),
            ],
            Format::NvFp4 => {
                &[("modelopt", ScaleRule::ModelOpt), ("ct", ScaleRule::CompressedTensors)]
            }
        };
        for (column, rule) in columns {
            for ty in ["f32", "bf16"] {
                let extra: &[&str] = if format == Format::MxFp4 { &["edge"] } else { &[] };
                for input in INPUTS.iter().chain(extra) {
                    let at = format!("{ty}.{input}");
                    let (x, k) = values(&file, &format!("{at}.x"));
                    let spec = QuantSpec::by_rule(format, *rule, amax(&x)).unwrap();
                    let mut g = None;
                    if format == Format::NvFp4 {
                        let theirs = match rule {
                            ScaleRule::ModelOpt => scalar(&file, &format!("{at}.gs_multiplier")),
                            _ => {
                                let stored = scalar(&file, &format!("{at}.ct_global_divisor"));
                                g = Some(stored);
                                1.0 / stored
                            }
                        };
                        assert_eq!(spec.global_scale().to_bits(), theirs.to_bits(), "{at} {rule}");
                    }
                    let bytes = |what| file.bytes(&format!("{at}.{column}.{what}")).unwrap();
                    let edges: &mut Edges =
                        seen.entry(format!("{name} {column} {at}")).or_default();
                    compare(&x, &spec, k, (&bytes("codes"), &bytes("scales")), g, edges);
                }
            }
        }
    }
    assert_eq!(seen.values().map(|edges| edges.groups).sum::<usize>(), 7_456);
    let differ = seen.iter().filter(|(_, edges)| edges.list() != [0; 7]);
    let differ: Vec<_> = differ.map(|(at, edges)| (at.as_str(), edges.list())).collect();
    assert_eq!(differ, EDGES);
}

/// Families f and h: checkpoints that the libraries wrote, whose dense weights are known.
#[test]
fn checkpoints_of_libraries_are_written_again() {
    use ScaleRule::{CompressedTensors, Ggml, Mlx, ModelOpt};
    let mut seen = vec![];
    for (name, rule, part, format) in [
        ("f_ct_mxfp4", CompressedTensors, "", Format::MxFp4),
        ("f_ct_nvfp4", CompressedTensors, "", Format::NvFp4),
        ("f_modelopt_nvfp4", ModelOpt, "", Format::NvFp4),
        ("h_gguf_mxfp4", Ggml, "", Format::MxFp4),
        ("h_gguf_nvfp4", Ggml, "ffn", Format::NvFp4),
        ("h_gguf_nvfp4", ModelOpt, "attn", Format::NvFp4),
        ("h_mlx_mxfp4", Mlx, "", Format::MxFp4),
        ("h_mlx_nvfp4", Mlx, "", Format::NvFp4),
    ] {
        let ext = if name.contains("gguf") { "gguf" } else { "safetensors" };
        let file = open(&format!("{name}.{ext}"));
        let originals = open(&format!("{name}_ref.safetensors"));
        let layers = Layers::find(&file, &LoadOptions::default()).unwrap();
        let mut edges = Edges::default();
        let (mut compared, mut tied) = (0, 0);
        for (layer_name, layer) in &layers.good {
            let original = ["weight_original", "original", "weight.original"]
                .map(|suffix| format!("{layer_name}.{suffix}"))
                .into_iter()
                .find(|name| originals.tensors().contains_key(name));
            let wanted = layer_name.contains(part) && layer.format() == Some(format);
            let Some(original) = original.filter(|_| wanted) else { continue };
            let (x, k) = values(&originals, &original);
            let tile = tiles(layer.shape.rows(), k, 4, usize::MAX).next().unwrap();
            let packed = layer.packed(&file, &tile).unwrap();
            let own = QuantSpec::by_rule(format, rule, amax(&x)).unwrap();
            let gs = layer.globals[0].multiplier();
            tied += usize::from(gs.to_bits() != own.global_scale().to_bits());
            let (scale, group) = (own.scale_type(), own.group());
            let spec = QuantSpec::new(scale, group, gs, own.scale_scale()).unwrap();
            let spec = spec.with_tie(own.tie()).with_rule(rule).unwrap();
            let g = layer.globals[0].divides.then(|| layer.globals[0].value);
            compare(&x, &spec, k, (packed.codes(), packed.scales()), g, &mut edges);
            compared += 1;
        }
        seen.push((name, part, compared, tied, edges.groups, edges.list()));
    }
    // Layers, and those whose global scale is not by the rule alone: compressed-tensors computes it
    // in bf16, ModelOpt shares it between q, k and v. Groups, then what differs: of ggml and mlx no
    // zero has a sign, of ModelOpt none that was -0.0.
    let expected = [
        ("f_ct_mxfp4", "", 7, 0, 960, [0; 7]),
        ("f_ct_nvfp4", "", 7, 7, 1920, [0, 0, 0, 33, 0, 0, 3]),
        ("f_modelopt_nvfp4", "", 7, 3, 1920, [0; 7]),
        ("h_gguf_mxfp4", "", 7, 0, 768, [0, 0, 0, 0, 1267, 0, 0]),
        ("h_gguf_nvfp4", "ffn", 3, 0, 768, [0, 0, 0, 0, 490, 0, 0]),
        ("h_gguf_nvfp4", "attn", 4, 0, 768, [0, 0, 0, 0, 20, 0, 0]),
        ("h_mlx_mxfp4", "", 8, 0, 864, [0, 0, 0, 0, 1888, 0, 0]),
        ("h_mlx_nvfp4", "", 6, 0, 1248, [0, 0, 0, 0, 891, 0, 0]),
    ];
    assert_eq!(seen, expected);
}

/// Codes and scales at random, as values under a global scale, in a type.
fn in_format(format: Format, gs: f32, ty: FloatType, most: u32, seed: u64) -> FloatVec {
    let mut state = seed;
    let mut random = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let mut weight = vec![];
    for _ in 0..ROWS * K / format.group().get() {
        let byte = match format {
            Format::MxFp4 => 110 + random() % 20,
            Format::NvFp4 => 0x18 + random() % (0x7F - 0x18),
        };
        let d = format.scale_type().decode(byte as u8) * gs;
        for _ in 0..format.group().get() {
            let code = random() % (most + 1) + 8 * (random() % 2);
            weight.push(E2m1::from_bits(code as u8).to_f32() * d);
        }
    }
    FloatVec::F32(weight).converted(ty)
}

const ROWS: usize = 48;
const K: usize = 128;

/// Values of a quantized weight in the type of the weight, and those that are not the weight's.
fn moved(weight: &FloatVec, options: &DenseOptions) -> usize {
    let layer = QuantLinear::from_dense(weight.as_slice(), ROWS, K, options).unwrap();
    let mut back = FloatVec::zeros(weight.float_type(), ROWS * K);
    let packed = layer.weight().unwrap();
    let out = back.as_mut_slice();
    reference::dequantize(packed.view(), layer.weight_global_scale(), out).unwrap();
    // By value: the sign of a zero may differ.
    let get = |x: &FloatVec, i| x.as_slice().get_f32(i).unwrap();
    (0..ROWS * K).filter(|i| get(weight, *i) != get(&back, *i)).count()
}

#[test]
fn what_is_in_a_format_stays_as_it_is_whatever_its_global_scale_was() {
    let scales = [1.0, 1.0 / 3.0, 0.1, 3.7e-5, 0.007_812_5, 1.234_567e-3, 2.5e-6];
    for format in Format::ALL {
        for ty in FloatType::ALL {
            for (i, gs) in scales.into_iter().enumerate() {
                // Codes up to 6, up to 4, up to 1: with fewer, more scales fit a group.
                for most in [7, 6, 2] {
                    let weight = in_format(format, gs, ty, most, 10 * i as u64 + u64::from(most));
                    if ty == FloatType::F16 && (format == Format::MxFp4 || gs < 1e-3) {
                        continue; // subnormal and overflowing values have lost their format
                    }
                    let moved = moved(&weight, &DenseOptions::new(format));
                    assert_eq!(moved, 0, "{format} {ty} gs {gs} codes to {most}");
                }
            }
        }
    }
}

#[test]
fn the_contracts_own_rule_moves_weights_that_are_in_mxfp4() {
    let weight = in_format(Format::MxFp4, 1.0, FloatType::F32, 7, 3);
    let nearest =
        DenseOptions { scale_rule: ScaleRule::Nearest, ..DenseOptions::new(Format::MxFp4) };
    // The global scale 1/3 alone: of all weights that are not zero a minority stays.
    assert_eq!(moved(&weight, &nearest), 3_863);
    // And without it the tie of the scale: groups with a 6 get twice the step.
    let one = DenseOptions { weight_global_scale: Some(1.0), ..nearest };
    assert_eq!(moved(&weight, &one), 1_548);
}

#[test]
fn values_of_no_format_take_the_global_scale_of_the_rule() {
    let weight: Vec<f32> = (0..ROWS * K).map(|i| ((i * i) as f32 * 0.37).sin() * 0.3).collect();
    let amax = weight.iter().fold(0f32, |amax, w| amax.max(w.abs()));
    for (format, gs) in [(Format::MxFp4, 1.0), (Format::NvFp4, amax / 2688.0)] {
        let options = DenseOptions::new(format);
        let layer = QuantLinear::from_dense(&weight[..], ROWS, K, &options).unwrap();
        assert_eq!(layer.weight_global_scale(), gs);
        // One value off the grid, in the last group: all of the weight is in no format.
        let FloatVec::F32(mut weight) = in_format(format, 0.3, FloatType::F32, 7, 5) else {
            unreachable!()
        };
        *weight.last_mut().unwrap() *= 1.01;
        weight[ROWS * K - 2] = 1.7 * weight[ROWS * K - 1] + 1e-3;
        let amax = weight.iter().fold(0f32, |amax, w| amax.max(w.abs()));
        let gs = options.weight_spec(amax).unwrap().global_scale();
        let layer = QuantLinear::from_dense(&weight[..], ROWS, K, &options).unwrap();
        assert_eq!(layer.weight_global_scale(), gs, "{format}");
    }
}
