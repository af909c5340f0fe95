//! The cases of a profile: each set's axes combined, or as many combinations as it draws.

use std::collections::BTreeSet;
use std::fmt;

use fp4_core::{Encoding, FloatType, Format, GroupSize, QuantSpec, ScaleType};

use super::case::{
    Call, Case, Clause, CoreCase, CoreCheck, Declared, EnvironmentCase, GroupedCase, Kind,
    MatmulCase, Order, PairCase, QuantizeCase, ShardedCase, TransformKind, Way,
};
use super::profile::{
    CoreSet, EnvironmentSet, GroupedSet, MatmulSet, PairSet, Profile, QuantizeSet, ShardedSet, draw,
};

/// The cases of a profile, in order, each id once.
pub(super) fn cases(profile: &Profile, declared: &Declared) -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, set) in profile.core.iter().enumerate() {
        cases.extend(core_cases(set, i));
    }
    for (i, set) in profile.quantize.iter().enumerate() {
        cases.extend(quantize_cases(set, i));
    }
    for (i, set) in profile.matmul.iter().enumerate() {
        cases.extend(matmul_cases(set, i, declared));
    }
    for (i, set) in profile.grouped.iter().enumerate() {
        cases.extend(grouped_cases(set, i));
    }
    for (i, set) in profile.sharded.iter().enumerate() {
        cases.extend(sharded_cases(set, i));
    }
    for (i, set) in profile.pair.iter().enumerate() {
        cases.extend(pair_cases(set, i));
    }
    cases.extend(profile.environment.iter().flat_map(environment_cases));
    let mut seen = BTreeSet::new();
    cases.retain(|case| seen.insert(case.id.clone()));
    cases
}

fn quantize_cases(set: &QuantizeSet, index: usize) -> Vec<Case> {
    let lens = [
        set.scale_types.len(),
        set.groups.len(),
        set.inputs.len(),
        set.ties.len(),
        set.settings.len(),
        set.transforms.len(),
        set.scales.len(),
        set.rows.len(),
        set.ks.len(),
        set.data.len(),
        set.threads.len(),
    ];
    let draws = draw(&format!("quantize{index}"), &lens, set.sample);
    let make = |i: &Vec<usize>| {
        if set.scale_types[i[0]] == Encoding::MxInt8.name() {
            return mxint8_case(set, i);
        }
        let scale_type: ScaleType = set.scale_types[i[0]].parse().ok()?;
        let group = GroupSize::new(set.groups[i[1]]).ok()?;
        let (gs, ss) = setting(&set.settings[i[4]])?;
        let tie = set.ties[i[3]].parse().ok()?;
        let mut spec = QuantSpec::new(scale_type, group, gs, ss).ok()?.with_tie(tie);
        if set.settings[i[4]].starts_with("rows") {
            spec = spec.with_row_scales().ok()?;
        }
        let transform = transform_kind(&set.transforms[i[5]])?;
        let chunk = transform.map_or(group.get(), |t| t.block.max(group.get()));
        let case = QuantizeCase {
            spec,
            input: set.inputs[i[2]].parse().ok()?,
            transform,
            given: set.scales[i[6]] == "given",
            shape: [set.rows[i[7]], set.ks[i[8]].next_multiple_of(chunk)],
            data: set.data[i[9]].clone(),
            threads: set.threads[i[10]],
        };
        let [rows, k] = case.shape;
        let id = format!(
            "quantize/{scale_type}.g{group}/{}/{}/{}/{}/{}/{rows}x{k}/{}{}",
            case.input,
            set.ties[i[3]],
            set.settings[i[4]],
            set.transforms[i[5]],
            set.scales[i[6]],
            case.data,
            Threads(case.threads),
        );
        let mut clauses = vec!["C1", "C2", "C3", "C4"];
        clauses.extend(case.transform.map(|_| "C5"));
        clauses.extend(case.data.contains("nan").then_some("C9"));
        Some(Case { id, clauses, kind: Kind::Quantize(case) })
    };
    draws.iter().filter_map(make).collect()
}

/// The quantization to MXINT8, which has no settings: of the axes only those of the input count.
fn mxint8_case(set: &QuantizeSet, i: &[usize]) -> Option<Case> {
    let spec = QuantSpec::mxint8();
    let transform = transform_kind(&set.transforms[i[5]])?;
    let chunk = transform.map_or(32, |t| t.block.max(32));
    let case = QuantizeCase {
        spec,
        input: set.inputs[i[2]].parse().ok()?,
        transform,
        given: false,
        shape: [set.rows[i[7]], set.ks[i[8]].next_multiple_of(chunk)],
        data: set.data[i[9]].clone(),
        threads: set.threads[i[10]],
    };
    let [rows, k] = case.shape;
    let (input, data, threads) = (case.input, &case.data, Threads(case.threads));
    let id = format!("quantize/mxint8/{input}/{}/{rows}x{k}/{data}{threads}", set.transforms[i[5]]);
    let mut clauses = vec!["C2", "C3", "C10"];
    clauses.extend(case.transform.map(|_| "C5"));
    clauses.extend(case.data.contains("nan").then_some("C9"));
    Some(Case { id, clauses, kind: Kind::Quantize(case) })
}

/// The encodings of a product: a format, or `mxint8-` and B's.
fn product(name: &str) -> Option<(Encoding, Format)> {
    match name.strip_prefix("mxint8-") {
        Some(b) => Some((Encoding::MxInt8, b.parse().ok()?)),
        None => name.parse().ok().map(|format: Format| (format.into(), format)),
    }
}

fn matmul_cases(set: &MatmulSet, index: usize, declared: &Declared) -> Vec<Case> {
    let lens = [
        set.formats.len(),
        set.ms.len(),
        set.ns.len(),
        set.ks.len(),
        set.data.len(),
        set.alphas.len(),
        set.outputs.len(),
        set.ways.len(),
        set.threads.len(),
        set.epilogues.len(),
    ];
    let draws = draw(&format!("matmul{index}"), &lens, set.sample);
    let mut cases = Vec::new();
    for i in &draws {
        // What is drawn are names, so that the draw does not depend on what backends declare.
        let data = families(&set.data[i[4]], &declared.spreads);
        let (ms, ns) = (sizes(&set.ms[i[1]], &declared.m), sizes(&set.ns[i[2]], &declared.n));
        for (data, m, n) in data
            .iter()
            .flat_map(|data| ms.iter().map(move |&m| (data, m)))
            .flat_map(|(data, m)| ns.iter().map(move |&n| (data, m, n)))
        {
            cases.extend(matmul_case(set, i, data, [m, n]));
        }
    }
    cases
}

fn matmul_case(set: &MatmulSet, i: &[usize], data: &str, [m, n]: [usize; 2]) -> Option<Case> {
    let name = &set.formats[i[0]];
    let (a, format) = product(name)?;
    let k = set.ks[i[3]].next_multiple_of(a.group().get());
    let epilogue = set.epilogues[i[9]].as_str();
    let (row_scales, bias) = row_scales_and_bias(epilogue)?;
    let case = MatmulCase {
        a,
        format,
        shape: [m, n, k],
        data: data.to_owned(),
        alpha: alpha(&set.alphas[i[5]])?,
        output: set.outputs[i[6]].parse().ok()?,
        way: way(&set.ways[i[7]])?,
        row_scales,
        bias,
        threads: set.threads[i[8]],
    };
    let id = format!(
        "matmul/{name}/{m}x{n}x{k}/{data}/alpha-{}/{}/{}{}{}",
        set.alphas[i[5]],
        case.output,
        set.ways[i[7]],
        if epilogue == "alpha" { String::new() } else { format!("/{epilogue}") },
        Threads(case.threads),
    );
    let mut clauses = vec!["C2", "C3", "C6"];
    clauses.extend((a == Encoding::MxInt8).then_some("C10"));
    clauses.extend((case.way == Way::Padded).then_some("C8"));
    clauses.extend((case.data.contains("nan") || case.alpha.is_nan()).then_some("C9"));
    Some(Case { id, clauses, kind: Kind::Matmul(case) })
}

/// What there is besides alpha, by name.
fn row_scales_and_bias(epilogue: &str) -> Option<(bool, bool)> {
    Some(match epilogue {
        "alpha" => (false, false),
        "rows" => (true, false),
        "bias" => (false, true),
        "both" => (true, true),
        _ => return None,
    })
}

fn grouped_cases(set: &GroupedSet, index: usize) -> Vec<Case> {
    let lens = [
        set.formats.len(),
        set.rows.len(),
        set.ns.len(),
        set.ks.len(),
        set.data.len(),
        set.epilogues.len(),
        set.outputs.len(),
        set.threads.len(),
    ];
    let draws = draw(&format!("grouped{index}"), &lens, set.sample);
    draws.iter().filter_map(|i| grouped_case(set, i)).collect()
}

/// The pairs of encodings that `mixed` takes turns with.
const MIXED: [&str; 4] = ["mxfp4", "nvfp4", "mxint8-nvfp4", "mxint8-mxfp4"];

fn grouped_case(set: &GroupedSet, i: &[usize]) -> Option<Case> {
    let (formats, rows) = (&set.formats[i[0]], &set.rows[i[1]]);
    let (n, k, data) = (set.ns[i[2]], set.ks[i[3]], &set.data[i[4]]);
    let (epilogue, output, threads) = (&set.epilogues[i[5]], &set.outputs[i[6]], set.threads[i[7]]);
    let (one_input, rows_of_each) = match rows.strip_prefix("one-") {
        Some(rows) => (true, vec![rows.parse().ok()?; 3]),
        None => (false, rows.split('+').map(str::parse).collect::<Result<Vec<usize>, _>>().ok()?),
    };
    let (row_scales, bias) = row_scales_and_bias(epilogue)?;
    let product = |(at, &m): (usize, &usize)| {
        let mixed = formats == "mixed";
        // Of one A: in MXINT8, which goes with both formats.
        let from = if one_input { 2 } else { 0 };
        let name = if mixed { MIXED[from + at % (4 - from)] } else { formats };
        let (a, format) = product(name)?;
        Some(MatmulCase {
            a,
            format,
            // Experts have one shape; what is mixed has several, and one input has one K.
            shape: [
                m,
                if mixed || one_input { n + 7 * (at % 3) } else { n },
                if mixed && !one_input { k + 32 * (at % 2) } else { k }.next_multiple_of(32),
            ],
            data: data.clone(),
            // No two alike.
            alpha: 0.37 - 0.21 * at as f32,
            output: match output.as_str() {
                "mixed" => FloatType::ALL[at % 3],
                output => output.parse().ok()?,
            },
            way: Way::Whole,
            row_scales: row_scales && at % 3 != 1,
            bias: bias && at % 3 != 2,
            threads,
        })
    };
    let products = rows_of_each.iter().enumerate().map(product).collect::<Option<Vec<_>>>()?;
    let threaded = Threads(threads);
    let id = format!("grouped/{formats}/{rows}/{n}x{k}/{data}/{epilogue}/{output}{threaded}");
    let mut clauses = vec!["C2", "C3", "C6"];
    clauses.extend(products.iter().any(|p| p.a == Encoding::MxInt8).then_some("C10"));
    clauses.extend(data.contains("nan").then_some("C9"));
    let request = GroupedCase { products, one_input, threads };
    Some(Case { id, clauses, kind: Kind::Grouped(request) })
}

fn sharded_cases(set: &ShardedSet, index: usize) -> Vec<Case> {
    let lens = [
        set.formats.len(),
        set.ms.len(),
        set.ns.len(),
        set.ks.len(),
        set.data.len(),
        set.epilogues.len(),
        set.outputs.len(),
        set.ranks.len(),
        set.orders.len(),
        set.forms.len(),
    ];
    let draws = draw(&format!("sharded{index}"), &lens, set.sample);
    draws.iter().filter_map(|i| sharded_case(set, i)).collect()
}

fn sharded_case(set: &ShardedSet, i: &[usize]) -> Option<Case> {
    let (name, data, epilogue) = (&set.formats[i[0]], &set.data[i[4]], &set.epilogues[i[5]]);
    let (ranks, order, form) = (&set.ranks[i[7]], &set.orders[i[8]], &set.forms[i[9]]);
    let (a, format) = product(name)?;
    let [m, n, k] = [set.ms[i[1]], set.ns[i[2]], set.ks[i[3]].next_multiple_of(a.group().get())];
    let (row_scales, bias) = row_scales_and_bias(epilogue)?;
    let product = MatmulCase {
        a,
        format,
        shape: [m, n, k],
        data: data.clone(),
        alpha: 0.37,
        output: set.outputs[i[6]].parse().ok()?,
        way: Way::Whole,
        row_scales,
        bias,
        threads: 0,
    };
    let output = product.output;
    let id =
        format!("sharded/{name}/{m}x{n}x{k}/{data}/{epilogue}/{output}/{ranks}/{order}/{form}");
    let mut clauses = vec!["C2", "C3", "C6"];
    clauses.extend((a == Encoding::MxInt8).then_some("C10"));
    clauses.extend(data.contains("nan").then_some("C9"));
    let request = ShardedCase {
        product,
        ranks: ranks.trim_end_matches("-uneven").parse().ok()?,
        uneven: ranks.ends_with("-uneven"),
        order: match order.as_str() {
            "chain" => Order::Chain,
            "reverse" => Order::Reverse,
            "tree" => Order::Tree,
            "ring" => Order::Ring,
            _ => return None,
        },
        wide: form == "wide",
    };
    Some(Case { id, clauses, kind: Kind::Sharded(request) })
}

/// A family, or for `spread:bounds` each declared spread and one past it.
fn families(name: &str, spreads: &[u32]) -> Vec<String> {
    if name != "spread:bounds" {
        return vec![name.to_owned()];
    }
    spreads.iter().flat_map(|s| [*s, s + 1]).map(|s| format!("spread:{s}")).collect()
}

fn pair_cases(set: &PairSet, index: usize) -> Vec<Case> {
    let lens = [
        set.formats.len(),
        set.inputs.len(),
        set.outputs.len(),
        set.transforms.len(),
        set.ms.len(),
        set.ns.len(),
        set.ks.len(),
        set.data.len(),
    ];
    let draws = draw(&format!("pair{index}"), &lens, set.sample);
    let make = |i: &Vec<usize>| {
        let name = &set.formats[i[0]];
        let (row_scales, pair) = match name.strip_suffix("-rows") {
            Some(pair) => (true, pair),
            None => (false, &name[..]),
        };
        let (a, format) = product(pair)?;
        let transform = transform_kind(&set.transforms[i[3]])?;
        let group = a.group().get();
        let chunk = transform.map_or(group, |t| t.block.max(group));
        let case = PairCase {
            a,
            row_scales,
            format,
            input: set.inputs[i[1]].parse().ok()?,
            output: set.outputs[i[2]].parse().ok()?,
            transform,
            shape: [set.ms[i[4]], set.ns[i[5]], set.ks[i[6]].next_multiple_of(chunk)],
            data: set.data[i[7]].clone(),
        };
        let [m, n, k] = case.shape;
        let id = format!(
            "pair/{name}/{}-{}/{}/{m}x{n}x{k}/{}",
            case.input, case.output, set.transforms[i[3]], case.data
        );
        let mut clauses = vec!["C1", "C2", "C3", "C4", "C6"];
        clauses.extend((a == Encoding::MxInt8).then_some("C10"));
        clauses.extend(case.transform.map(|_| "C5"));
        clauses.extend(case.data.contains("nan").then_some("C9"));
        Some(Case { id, clauses, kind: Kind::Pair(case) })
    };
    draws.iter().filter_map(make).collect()
}

fn core_cases(set: &CoreSet, index: usize) -> Vec<Case> {
    let lens = [set.checks.len(), set.rows.len(), set.cols.len()];
    let make = |i: &Vec<usize>| {
        let name = set.checks[i[0]].as_str();
        let (check, clauses): (_, &[Clause]) = match name {
            "swizzle" => (CoreCheck::Swizzle, &["C7", "C9"]),
            "pad" => (CoreCheck::Pad, &["C8", "C9"]),
            "pack" => (CoreCheck::Pack, &["C3", "C9"]),
            "encode" => (CoreCheck::Encode, &["C1", "C2", "C9"]),
            "decode" => (CoreCheck::Decode, &["C1", "C2", "C9"]),
            "fma" => (CoreCheck::Fma, &["C5"]),
            "dequantize" => (CoreCheck::Dequantize, &["C4", "C9", "C10"]),
            "int8" => (CoreCheck::Int8, &["C10"]),
            _ => return None,
        };
        let shape = [set.rows[i[1]], set.cols[i[2]]];
        let id = format!("core/{name}/{}x{}", shape[0], shape[1]);
        Some(Case { id, clauses: clauses.to_vec(), kind: Kind::Core(CoreCase { check, shape }) })
    };
    draw(&format!("core{index}"), &lens, None).iter().filter_map(make).collect()
}

fn environment_cases(set: &EnvironmentSet) -> Vec<Case> {
    let lens = [set.changes.len(), set.calls.len(), set.formats.len()];
    let make = |i: &Vec<usize>| {
        let (change, name) = (set.changes[i[0]].clone(), set.calls[i[1]].as_str());
        let call = match name {
            "quantize" => Call::Quantize,
            "matmul" => Call::Matmul,
            "partial" => Call::Partial,
            "forward" => Call::Forward,
            "core" => Call::Core,
            _ => return None,
        };
        let format: Format = set.formats[i[2]].parse().ok()?;
        let id = format!("environment/{change}/{name}/{format}");
        let kind = Kind::Environment(EnvironmentCase { change, call, format });
        Some(Case { id, clauses: vec!["C9"], kind })
    };
    draw("environment", &lens, None).iter().filter_map(make).collect()
}

/// The suffix of an id for a thread count.
struct Threads(usize);

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            threads => write!(f, "/threads-{threads}"),
        }
    }
}

/// A number; or for `tile-1`, `tile`, `tile+1` one size for each declared tile.
fn sizes(name: &str, tiles: &[usize]) -> Vec<usize> {
    match name {
        "tile-1" => tiles.iter().map(|t| t.saturating_sub(1)).collect(),
        "tile" => tiles.to_vec(),
        "tile+1" => tiles.iter().map(|t| t + 1).collect(),
        number => number.parse().into_iter().collect(),
    }
}

/// A named global scale and scale-scale.
fn setting(name: &str) -> Option<(f32, f32)> {
    Some(match name {
        "mxfp4" => (1.0 / 3.0, 4.0),
        // Of "rows", each with its own global scale, the first number takes no part.
        "nvfp4" | "rows" => (0.1, 6.0),
        "rows-5" => (3.0, 5.0),
        "one-4" => (1.0, 4.0),
        "one-6" => (1.0, 6.0),
        "sixth" => (1.0 / 6.0, 6.0),
        "amax" => (3.7 / 2688.0, 6.0),
        // Units of the largest significand, the hardest to have a reciprocal.
        "last" => (f32::from_bits(0x3FFF_FFFF), 6.0),
        // Units as small as the smallest subnormals.
        "tiny" => (1.0 / (1 << 22) as f32, 4.0),
        "smallest" => (f32::from_bits(1), 6.0),
        "large" => (1e30, 5.3),
        _ => return None,
    })
}

/// A named alpha.
fn alpha(name: &str) -> Option<f32> {
    Some(match name {
        "one" => 1.0,
        "usual" => 0.1 * 0.012_345,
        "third" => 1.0 / 3.0,
        "negative" => -2.7,
        "zero" => 0.0,
        "negative-zero" => -0.0,
        "tiny" => 1e-42,
        "huge" => 3e38,
        "inf" => f32::INFINITY,
        "nan" => f32::from_bits(0xFFC0_1234),
        _ => return None,
    })
}

/// `none`, `shared-16`, `blocks-128`, ...; the outer `None` is an unknown name.
fn transform_kind(name: &str) -> Option<Option<TransformKind>> {
    if name == "none" {
        return Some(None);
    }
    let (kind, block) = name.split_once('-')?;
    let per_block = match kind {
        "shared" => false,
        "blocks" => true,
        _ => return None,
    };
    let block = GroupSize::new(block.parse().ok()?).ok()?.get();
    Some(Some(TransformKind { block, per_block }))
}

fn way(name: &str) -> Option<Way> {
    Some(match name.split_once('-') {
        None if name == "whole" => Way::Whole,
        None if name == "pad" => Way::Padded,
        None if name == "rows" => Way::Rows,
        Some(("split", n)) => Way::Split(n.parse().ok()?),
        Some(("into", n)) => Way::Into(n.parse().ok()?),
        _ => return None,
    })
}
