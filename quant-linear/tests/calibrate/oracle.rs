//! Oracles: plain loops from the definitions, with no factorization in common with the library.

use fp4_core::QuantSpec;
use quant_linear::calibrate::{GroupScales, Method};

/// The inverse by Gauss-Jordan with partial pivoting.
pub(crate) fn inverse(a: &[f64], n: usize) -> Vec<f64> {
    let (mut a, mut b) = (a.to_vec(), vec![0.0; n * n]);
    (0..n).for_each(|i| b[i * n + i] = 1.0);
    for c in 0..n {
        let magnitude = |r: &usize| a[r * n + c].abs();
        let pivot = (c..n).max_by(|x, y| magnitude(x).total_cmp(&magnitude(y))).unwrap();
        for j in 0..n {
            a.swap(c * n + j, pivot * n + j);
            b.swap(c * n + j, pivot * n + j);
        }
        let p = a[c * n + c];
        for j in 0..n {
            a[c * n + j] /= p;
            b[c * n + j] /= p;
        }
        for r in (0..n).filter(|&r| r != c) {
            let f = a[r * n + c];
            if f != 0.0 {
                for j in 0..n {
                    a[r * n + j] -= f * a[c * n + j];
                    b[r * n + j] -= f * b[c * n + j];
                }
            }
        }
    }
    b
}

/// The code of a value: the nearest of the 16, ties to the even one.
pub(crate) fn code(x: f64, unit: f32) -> u8 {
    const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let q = if unit == 0.0 { 0f32.copysign(x as f32) } else { x as f32 / unit };
    let distance = |c: usize| (f64::from(q.abs()) - f64::from(VALUES[c])).abs();
    let best = (0..8).fold(0, |best, c| {
        let closer = distance(c) < distance(best) || (distance(c) == distance(best) && c % 2 == 0);
        if closer { c } else { best }
    });
    best as u8 | u8::from(q.is_sign_negative()) << 3
}

pub(crate) fn value(code: u8, unit: f32) -> f64 {
    const DOUBLED: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];
    let magnitude = DOUBLED[usize::from(code & 7)] / 2.0 * unit;
    f64::from(if code & 8 == 0 { magnitude } else { -magnitude })
}

/// The scale byte of a group by the rule `Nearest`.
pub(crate) fn scale(y: &[f64], spec: &QuantSpec) -> u8 {
    let amax = y.iter().fold(0f32, |a, &y| a.max((y as f32).abs()));
    spec.scale_type().encode(amax / (spec.scale_scale() * spec.global_scale()))
}

/// What a row became: codes and scale bytes, by input.
#[derive(Debug, PartialEq, Clone)]
pub(crate) struct Row {
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Vec<u8>,
}

/// What to do.
pub(crate) struct Task<'a> {
    pub(crate) spec: &'a QuantSpec,
    /// H, damped, (k, k).
    pub(crate) h: &'a [f64],
    pub(crate) inner: Method,
    pub(crate) outer: Method,
    pub(crate) block: usize,
    pub(crate) scales: GroupScales,
}

/// The values that make (w - x) H (w - x)^T least, with x[d] = q[d] for those decided: those of the
/// inputs `rest`, by solving with H of them.
fn best(w: &[f64], q: &[Option<f64>], h: &[f64], rest: &[usize]) -> Vec<f64> {
    let (k, n) = (w.len(), rest.len());
    let sub: Vec<f64> = (0..n * n).map(|i| h[rest[i / n] * k + rest[i % n]]).collect();
    let inverse = inverse(&sub, n);
    let pull = |j: usize| -> f64 {
        (0..k).filter_map(|d| q[d].map(|q| (w[d] - q) * h[d * k + rest[j]])).sum()
    };
    let pulls: Vec<f64> = (0..n).map(pull).collect();
    let moved = |i: usize| (0..n).map(|j| pulls[j] * inverse[j * n + i]).sum::<f64>();
    (0..n).map(|i| w[rest[i]] + moved(i)).collect()
}

/// H of `rest` once everything else but `rest` and `block` may still move freely: the Schur
/// complement that the inputs of `block` decide by.
fn effective(h: &[f64], k: usize, rest: &[usize], block: &[usize]) -> Vec<f64> {
    let n = rest.len();
    let sub: Vec<f64> = (0..n * n).map(|i| h[rest[i / n] * k + rest[i % n]]).collect();
    let inverted = inverse(&sub, n);
    let at: Vec<usize> = block.iter().map(|b| rest.iter().position(|r| r == b).unwrap()).collect();
    let m = block.len();
    let corner: Vec<f64> = (0..m * m).map(|i| inverted[at[i / m] * n + at[i % m]]).collect();
    inverse(&corner, m)
}

/// One row by the definition: at every step all undecided values take their best real values, and
/// the next is rounded.
pub(crate) fn by_definition(w: &[f64], task: &Task<'_>) -> Row {
    let (k, group) = (w.len(), task.spec.group().get());
    let mut row = Row { codes: vec![0; k], scales: vec![0; k / group] };
    if task.scales == GroupScales::Original {
        for g in 0..k / group {
            row.scales[g] = scale(&w[g * group..][..group], task.spec);
        }
    }
    let mut decided: Vec<Option<f64>> = vec![None; k];
    let count = k.div_ceil(task.block);
    let blocks: Vec<usize> = match task.outer {
        Method::Babai => (0..count).rev().collect(),
        _ => (0..count).collect(),
    };
    for b in blocks {
        let inputs: Vec<usize> = (b * task.block..k.min((b + 1) * task.block)).collect();
        let rest: Vec<usize> = (0..k).filter(|&i| decided[i].is_none()).collect();
        let reached: Vec<f64> = match task.outer {
            Method::Rtn => inputs.iter().map(|&i| w[i]).collect(),
            _ => {
                let all = best(w, &decided, task.h, &rest);
                inputs.iter().map(|i| all[rest.iter().position(|r| r == i).unwrap()]).collect()
            }
        };
        if task.scales == GroupScales::Reached {
            for (g, y) in reached.chunks_exact(group).enumerate() {
                row.scales[inputs[0] / group + g] = scale(y, task.spec);
            }
        }
        let h = match task.outer {
            Method::Rtn => effective(task.h, k, &inputs, &inputs),
            _ => effective(task.h, k, &rest, &inputs),
        };
        let m = inputs.len();
        let mut own: Vec<Option<f64>> = vec![None; m];
        let order: Vec<usize> = match task.inner {
            Method::Babai => (0..m).rev().collect(),
            _ => (0..m).collect(),
        };
        for i in order {
            let x = match task.inner {
                Method::Rtn => reached[i],
                _ => {
                    let rest: Vec<usize> = (0..m).filter(|&i| own[i].is_none()).collect();
                    let all = best(&reached, &own, &h, &rest);
                    all[rest.iter().position(|&r| r == i).unwrap()]
                }
            };
            let unit = task.spec.unit(row.scales[inputs[i] / group]);
            row.codes[inputs[i]] = code(x, unit);
            own[i] = Some(value(row.codes[inputs[i]], unit));
        }
        inputs.iter().zip(&own).for_each(|(&i, q)| decided[i] = *q);
    }
    row
}

/// GPTQ as its paper has it, in O(k^3) a row: the inverse is explicit, and after each input its row
/// and column are eliminated from it.
pub(crate) fn textbook_gptq(w: &[f64], task: &Task<'_>) -> Row {
    let (k, group) = (w.len(), task.spec.group().get());
    let mut row = Row { codes: vec![0; k], scales: vec![0; k / group] };
    let (mut x, mut inverse) = (w.to_vec(), inverse(task.h, k));
    for i in 0..k {
        if i % task.block == 0 {
            let end = k.min(i + task.block);
            for (g, y) in x[i..end].chunks_exact(group).enumerate() {
                row.scales[i / group + g] = scale(y, task.spec);
            }
        }
        let unit = task.spec.unit(row.scales[i / group]);
        row.codes[i] = code(x[i], unit);
        let diagonal = inverse[i * k + i];
        let error = (x[i] - value(row.codes[i], unit)) / diagonal;
        for j in i + 1..k {
            x[j] -= error * inverse[i * k + j];
        }
        let eliminated: Vec<f64> = inverse[i * k..(i + 1) * k].to_vec();
        for r in i + 1..k {
            let factor = eliminated[r] / diagonal;
            for c in i + 1..k {
                inverse[r * k + c] -= factor * eliminated[c];
            }
        }
    }
    row
}

/// The lower Cholesky factor by its recurrence.
pub(crate) fn cholesky(h: &[f64], n: usize) -> Vec<f64> {
    let mut l = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|c| l[i * n + c] * l[j * n + c]).sum();
            let left = h[i * n + j] - sum;
            l[i * n + j] = if i == j { left.sqrt() } else { left / l[j * n + j] };
        }
    }
    l
}

/// H = G + damping * mean(diag G).
pub(crate) fn damped(gram: &quant_linear::calibrate::Gram, damping: f64) -> Vec<f64> {
    let k = gram.k();
    let add = damping * gram.mean_diagonal();
    (0..k * k).map(|i| gram.get(i / k, i % k) + if i / k == i % k { add } else { 0.0 }).collect()
}
