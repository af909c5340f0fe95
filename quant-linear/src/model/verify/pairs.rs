//! Swapped nibbles: the two columns of a byte exchanged.
//!
//! Within a layer nothing shows it: the codes of a group are the same. But the columns of a weight
//! are the features of its input, which differ in size, and other layers know them too:
//!
//! ```text
//! x -> q, k, v          columns j of q, k and v read the same feature       alike
//! up -> down            row j of up writes what column j of down reads      alike: training with
//! v -> o                                                                    weight decay balances
//! them
//! ```
//!
//! For each byte the logarithm of the ratio of its two columns' mean magnitudes is taken in one
//! layer and in the other (there of two rows, whose order no nibble touches), and the two lists
//! correlated: `fine`. And the ratio of two neighbouring bytes, whole, which no nibble touches
//! either: `coarse`.
//!
//! ```text
//! fine and coarse of one sign     in order (both negative where smoothing, as AWQ's, moved factors
//!                                 from the one to the other)
//! fine and coarse of two signs    the nibbles of one of the two are swapped
//! one of them near zero           nothing is said
//! ```

use crate::layout::{Layer, Place};
use crate::model::verify::Finding;
use crate::model::verify::bytes::Seen;
use crate::model::verify::structure::{fused_sets, split};

/// Writers, and the reader of what they write.
const WRITES: [(&str, &str); 5] = [
    ("up_proj", "down_proj"),
    ("w3", "w2"),
    ("fc1", "fc2"),
    ("c_fc", "c_proj"),
    ("v_proj", "o_proj"),
];

/// The weakest correlation that is judged, and by how many deviations of noise.
const WEAKEST: f64 = 0.15;
const SIGMAS_FINE: f64 = 6.0;
const SIGMAS_COARSE: f64 = 4.0;

/// Logarithms of ratios of the sums of a layer's columns or rows.
#[derive(Debug)]
struct Ratios {
    /// Of the two of each byte.
    fine: Vec<f32>,
    /// Of each two bytes.
    coarse: Vec<f32>,
}

/// The ratios of one layer.
#[derive(Debug)]
struct Profile {
    module: String,
    cols: Ratios,
    rows: Ratios,
}

/// Profiles of the modules whose siblings may still come.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    open: Vec<Profile>,
}

impl Pairs {
    pub(super) fn add(&mut self, layer: &Layer, seen: &Seen, findings: &mut Vec<Finding>) {
        // Modules come sorted: those of a parent end where one is not under it.
        let ended = |profile: &Profile| {
            let (parent, _) = split(&profile.module);
            !layer.module.strip_prefix(parent).is_some_and(|rest| rest.starts_with('.'))
        };
        let (done, open) = std::mem::take(&mut self.open).into_iter().partition(ended);
        self.open = open;
        compare(done, findings);
        let role = split(&layer.module).1;
        let fused = fused_sets().any(|roles| roles.contains(&role));
        let written = WRITES.iter().any(|(from, to)| *from == role || *to == role);
        // Rotated or rescaled columns are no features of the input; experts share rows.
        let plain = layer.transform.is_none() && layer.pre_scale.is_none();
        // A byte of ggml's blocks holds no neighbours.
        let pairs = matches!(layer.place, Place::Apart { .. }) && layer.experts.is_none();
        if (fused || written) && plain && pairs {
            let module = layer.module.clone();
            let (cols, rows) = (Ratios::of(&seen.cols), Ratios::of(&seen.rows));
            self.open.push(Profile { module, cols, rows });
        }
    }

    pub(super) fn finish(self, findings: &mut Vec<Finding>) {
        compare(self.open, findings);
    }
}

impl Ratios {
    fn of(sums: &[f64]) -> Self {
        // 0 where one of them is 0.
        let ratio = |a: f64, b: f64| if a > 0.0 && b > 0.0 { (a / b).ln() as f32 } else { 0.0 };
        let fine = sums.chunks_exact(2).map(|two| ratio(two[0], two[1]));
        let coarse = sums.chunks_exact(4).map(|four| ratio(four[0] + four[1], four[2] + four[3]));
        Ratios { fine: fine.collect(), coarse: coarse.collect() }
    }

    /// What says that the nibbles of one of the two are swapped.
    fn swapped(&self, other: &Ratios) -> Option<Swapped> {
        let (fine, sigmas) = correlation(&self.fine, &other.fine)?;
        let (coarse, of_coarse) = correlation(&self.coarse, &other.coarse)?;
        let clear = fine.abs() > WEAKEST && sigmas.abs() > SIGMAS_FINE;
        let known = coarse.abs() > WEAKEST && of_coarse.abs() > SIGMAS_COARSE;
        (clear && known && fine * coarse < 0.0).then_some(Swapped { fine, coarse, sigmas })
    }
}

/// The correlations of swapped nibbles.
#[derive(Debug, Clone, Copy)]
struct Swapped {
    fine: f64,
    coarse: f64,
    sigmas: f64,
}

impl Swapped {
    /// The beginning of a message, up to the layer that they are compared to.
    fn evidence(self) -> String {
        let Swapped { fine, coarse, sigmas } = self;
        format!(
            "the sizes of whole bytes' columns correlate by {coarse:+.2} and those of the two \
             columns of a byte by {fine:+.2} ({:.0} deviations of noise) with those of ",
            sigmas.abs()
        )
    }
}

/// The correlation of two lists of ratios, and its significance; `None` if it says nothing.
fn correlation(a: &[f32], b: &[f32]) -> Option<(f64, f64)> {
    if a.len() != b.len() || a.len() < 16 {
        return None;
    }
    // One outlier column must not decide.
    let clipped = |x: &f32| f64::from(x.clamp(-3.0, 3.0));
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| clipped(a) * clipped(b)).sum()
    };
    let r = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    r.is_finite().then(|| (r, r * (a.len() as f64).sqrt()))
}

fn compare(profiles: Vec<Profile>, findings: &mut Vec<Finding>) {
    let find = |parent: &str, role: &str| {
        profiles.iter().find(|profile| split(&profile.module) == (parent, role))
    };
    let mut parents: Vec<_> = profiles.iter().map(|profile| split(&profile.module).0).collect();
    parents.dedup();
    for parent in parents {
        for (from, to) in WRITES {
            let (Some(writer), Some(reader)) = (find(parent, from), find(parent, to)) else {
                continue;
            };
            if let Some(found) = writer.rows.swapped(&reader.cols) {
                let message = format!(
                    "{}the rows of `{from}` that write them: evidence that the nibbles of this \
                     layer are swapped; exchange them, or read the file by the layout that it has",
                    found.evidence()
                );
                findings.push(Finding::warning("suspect-swapped-nibbles", &reader.module, message));
            }
        }
        for roles in fused_sets() {
            let members: Vec<_> = roles.iter().filter_map(|role| find(parent, role)).collect();
            findings.extend(odd_one(&members));
        }
    }
}

/// The member of a fused product whose columns contradict the others'.
fn odd_one(members: &[&Profile]) -> Option<Finding> {
    let against = |a: &&Profile| -> Vec<Swapped> {
        let others = members.iter().filter(|b| b.module != a.module);
        others.filter_map(|b| a.cols.swapped(&b.cols)).collect()
    };
    let (worst, found) = members.iter().map(|a| (a, against(a))).max_by_key(|(_, f)| f.len())?;
    let first = found.first()?;
    let others = members.iter().filter(|b| b.module != worst.module);
    let names: Vec<_> = others.map(|other| format!("`{}`", split(&other.module).1)).collect();
    let which = match found.len() == names.len() && names.len() > 1 {
        true => "this layer".into(),
        false => format!("this layer or of {}", names.join(" or ")),
    };
    let message = format!(
        "{}{}, which read the same input: evidence that the nibbles of {which} are swapped; \
         exchange them, or read the file by the layout that it has",
        first.evidence(),
        names.join(" and ")
    );
    Some(Finding::warning("suspect-swapped-nibbles", &worst.module, message))
}
