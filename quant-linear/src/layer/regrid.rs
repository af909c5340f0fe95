//! The global scale of values that are in a format already.
//!
//! What was dequantized is `x = round(v * (s * gs))` for codes v, scales s and one gs, which the
//! values do not tell. A quantizer that picks another gs loses what it need not lose: a third of
//! the weights move. So gs is looked for, group by group:
//!
//! ```text
//! first group     its largest magnitude is 6 or 4 steps (a group of less can be written with twice
//!                 the steps), so gs = amax / (v * s) for the 15 products v * s that differ by more
//!                 than a power of two: 15 candidates, each an interval of f32 by what rounding
//!                 hides
//! every group     a candidate stays if some s writes all of its values exactly; its interval
//!                 shrinks to the gs for which that is so
//! none left       the values are in no such format: nothing more is looked at
//! at the end      gs is the middle of an interval, times the power of two that puts the largest s
//!                 below 448
//! ```
//!
//! Values that are not of the format lose all candidates within a group or two, so that looking
//! costs them nothing. Every step is monotone in gs, which makes an interval of what fits.
//!
//! Worked example, NVFP4: the first group has 0.6 and 0.1 alone. 0.6 = 6 * 0.1, and 0.1 = 1 * 0.1:
//! s * gs = 0.1 stays, in all eight significands of s; 0.6 = 4 * 0.15 does not, 0.1 is no code of
//! 0.15.

use fp4_core::{E2m1, Float, FloatSlice, Format, with_floats};

/// The most candidates that are followed: groups of one magnitude can be read in two ways, whose
/// intervals differ by a rounding.
const MOST: usize = 64;

/// Looks for the global scale of values in a format.
#[derive(Debug, Clone)]
pub(crate) struct Regrid {
    format: Format,
    /// `None` before the first group that is not zero.
    candidates: Option<Vec<Candidate>>,
}

/// Global scales under which all groups so far are exact, up to a power of two.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    /// The bits of the first and the last of them; positive floats order as their bits.
    first: u32,
    last: u32,
    /// The largest scale that a group needed.
    largest: f32,
}

impl Candidate {
    fn middle(&self) -> f32 {
        f32::from_bits(self.first + (self.last - self.first) / 2)
    }

    /// The power of two among them, if there is one.
    fn power_of_two(&self) -> Option<f32> {
        let up = (self.first + 0x007F_FFFF) & !0x007F_FFFF;
        (up <= self.last).then_some(f32::from_bits(up))
    }
}

impl Regrid {
    pub(crate) fn new(format: Format) -> Self {
        Regrid { format, candidates: None }
    }

    /// True if more values cannot change what is found: there is none, or it is what MXFP4 has
    /// without looking, 1.
    pub(crate) fn is_settled(&self) -> bool {
        match &self.candidates {
            None => false,
            Some(left) => {
                let plain = self.format == Format::MxFp4
                    && left.iter().all(|candidate| candidate.power_of_two().is_some());
                left.is_empty() || plain
            }
        }
    }

    /// Looks at more values, whole groups of them.
    pub(crate) fn feed(&mut self, values: FloatSlice<'_>) {
        with_floats!(FloatSlice, values, values => {
            for group in values.chunks_exact(self.format.group().get()) {
                if self.is_settled() {
                    return;
                }
                self.group(group);
            }
        });
    }

    /// The global scale, if all values are exact under one that is not the usual.
    pub(crate) fn found(&self) -> Option<f32> {
        let best = self.candidates.as_ref()?.first()?;
        let mut gs = match self.format {
            Format::MxFp4 => match best.power_of_two() {
                Some(_) => return None,
                None => best.middle(),
            },
            Format::NvFp4 => best.middle(),
        };
        match self.format {
            // In (0.5, 1]: e8m0 has room on both sides.
            Format::MxFp4 => {
                gs = f32::from_bits((gs.to_bits() & 0x007F_FFFF) | 0x3F00_0000);
            }
            Format::NvFp4 => {
                let mut largest = best.largest;
                while largest > 448.0 {
                    (largest, gs) = (largest / 2.0, gs * 2.0);
                }
                while largest * 2.0 <= 448.0 {
                    (largest, gs) = (largest * 2.0, gs / 2.0);
                }
            }
        }
        (gs.is_normal() && (gs * self.format.scale_type().max()).is_finite()).then_some(gs)
    }

    fn group<T: Float>(&mut self, group: &[T]) {
        let amax = group.iter().fold(0f32, |amax, x| {
            let x = x.to_f32().abs();
            if x.is_nan() { f32::INFINITY } else { amax.max(x) }
        });
        if amax == 0.0 {
            return;
        }
        // Far from what overflows and from subnormals, where twice a value is not twice its bits.
        if !(1e-25..1e25).contains(&amax) {
            self.candidates = Some(vec![]);
            return;
        }
        let format = self.format;
        let candidates = self.candidates.get_or_insert_with(|| seeds::<T>(format, amax));
        let mut left: Vec<Candidate> = vec![];
        for candidate in &*candidates {
            for steps in [6.0, 4.0] {
                let Some(narrowed) = narrowed(format, *candidate, steps, amax, group) else {
                    continue;
                };
                let same =
                    |c: &&mut Candidate| (c.first, c.last) == (narrowed.first, narrowed.last);
                match left.iter_mut().find(same) {
                    Some(known) => known.largest = known.largest.min(narrowed.largest),
                    None => left.push(narrowed),
                }
            }
        }
        // The widest first.
        left.sort_by_key(|c| (u32::MAX - (c.last - c.first), c.first));
        left.truncate(MOST);
        *candidates = left;
    }
}

/// Significands of a scale, in [1, 2).
fn significands(format: Format) -> &'static [f32] {
    match format {
        Format::MxFp4 => &[1.0],
        Format::NvFp4 => &[1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875],
    }
}

/// How far rounding to a type can move a value, relative, in bits of f32, and some more.
fn blur<T: Float>() -> u32 {
    // The distance from 1 to the next of the type.
    let next = [23, 10, 7].into_iter().find(|bits| {
        let x = 1.0 + 2f32.powi(-bits);
        T::from_f32(x).to_f32() == x
    });
    (1 << (23 - next.unwrap_or(7))) + 8
}

/// The global scales that the largest magnitude of a group allows.
fn seeds<T: Float>(format: Format, amax: f32) -> Vec<Candidate> {
    let mut seeds: Vec<Candidate> = vec![];
    for steps in [6.0, 4.0] {
        for significand in significands(format) {
            let gs = amax / (steps * significand);
            // 4 * 1.5 is 6 * 1.
            if steps == 4.0 && *significand == 1.5 {
                continue;
            }
            let (bits, blur) = (gs.to_bits(), blur::<T>());
            seeds.push(Candidate { first: bits - blur, last: bits + blur, largest: 0.0 });
        }
    }
    seeds
}

/// The global scales of a candidate under which a group is exact, if its largest magnitude is that
/// many steps.
fn narrowed<T: Float>(
    format: Format,
    candidate: Candidate,
    steps: f32,
    amax: f32,
    group: &[T],
) -> Option<Candidate> {
    let Candidate { mut first, mut last, largest } = candidate;
    let scale = nearest_scale(format, amax / (steps * candidate.middle()));
    let step = scale * candidate.middle();
    for x in group {
        let x = x.to_f32().abs();
        if x == 0.0 {
            continue;
        }
        let code = E2m1::from_f32(x / step).to_f32();
        let value = |bits: u32| T::from_f32(code * (scale * f32::from_bits(bits))).to_f32();
        if value(first) == x && value(last) == x {
            continue;
        }
        // The first bits whose value reaches x, and the last whose value does not pass it.
        let from = partition(first, last, |bits| value(bits) < x);
        let to = partition(first, last, |bits| value(bits) <= x);
        if from >= to {
            return None;
        }
        (first, last) = (from, to - 1);
    }
    Some(Candidate { first, last, largest: largest.max(scale) })
}

/// The first of `first..=last` for which `below` is false, or the one past the end.
fn partition(first: u32, last: u32, below: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (first, last + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if below(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// The scale nearest to a number, of any exponent.
fn nearest_scale(format: Format, s: f32) -> f32 {
    // Kept bits of the significand: 3 for e4m3, none for e8m0.
    let dropped = match format {
        Format::MxFp4 => 23,
        Format::NvFp4 => 20,
    };
    let bits = s.to_bits() + (1 << (dropped - 1));
    f32::from_bits(bits >> dropped << dropped)
}
