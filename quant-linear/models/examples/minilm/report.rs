//! How close a variant's embeddings are to those of f32, as numbers, a table and JSON.

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};

/// Cosine similarity of two vectors, in f64 so that 0.99999 and 1 stay apart.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// For each embedding the index of the most similar *other* one: `None` where there is no
/// other one to compare with, or only NaN. The first index wins a tie.
pub(crate) fn nearest_neighbours(embeddings: &[Vec<f32>]) -> Vec<Option<usize>> {
    let nearest_to = |i: usize| {
        let mut best: Option<(usize, f64)> = None;
        for j in (0..embeddings.len()).filter(|&j| j != i) {
            let similarity = cosine(&embeddings[i], &embeddings[j]);
            if similarity > best.map_or(f64::NEG_INFINITY, |(_, s)| s) {
                best = Some((j, similarity));
            }
        }
        best.map(|(j, _)| j)
    };
    (0..embeddings.len()).map(nearest_to).collect()
}

/// One variant of the encoder against f32.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// Number format of the linear layers: `f32`, `mxfp4` or `nvfp4`.
    pub(crate) format: String,
    /// Block transform before quantization: `none` or `hadamard`.
    pub(crate) transform: String,
    /// What activations are quantized to: `f32`, or a name of `ActivationEncoding`.
    pub(crate) activations: String,
    /// Mean over the sentences of the cosine between this embedding and the f32 one.
    pub(crate) cosine_mean: f64,
    /// The worst sentence's cosine.
    pub(crate) cosine_min: f64,
    /// Sentences whose nearest neighbour is the same as under f32.
    pub(crate) neighbours_agreeing: usize,
    /// Number of sentences.
    pub(crate) sentences: usize,
    /// Throughput of the whole encoder, tokenization excluded.
    pub(crate) sentences_per_second: f64,
}

impl Row {
    /// Compares `candidate` with `reference`, sentence by sentence.
    pub(crate) fn compare(
        [format, transform, activations]: [&str; 3],
        reference: &[Vec<f32>],
        candidate: &[Vec<f32>],
        sentences_per_second: f64,
    ) -> Self {
        let cosines: Vec<f64> =
            reference.iter().zip(candidate).map(|(a, b)| cosine(a, b)).collect();
        let wanted = nearest_neighbours(reference);
        let given = nearest_neighbours(candidate);
        let agree = wanted.iter().zip(&given).filter(|(w, g)| w.is_some() && w == g).count();
        // `f64::min` would skip a NaN embedding and praise the broken variant.
        let smaller = |a: f64, b: f64| if b.is_nan() || b < a { b } else { a };
        Self {
            format: format.to_owned(),
            transform: transform.to_owned(),
            activations: activations.to_owned(),
            cosine_mean: cosines.iter().sum::<f64>() / cosines.len() as f64,
            cosine_min: cosines.iter().copied().fold(f64::INFINITY, smaller),
            neighbours_agreeing: agree,
            sentences: reference.len(),
            sentences_per_second,
        }
    }
}

/// The rows as a text table.
pub(crate) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "format",
        "transform",
        "activations",
        "cosine mean",
        "cosine min",
        "same neighbour",
        "sentences/s",
    ]);
    for row in rows {
        table.add_row([
            row.format.clone(),
            row.transform.clone(),
            row.activations.clone(),
            format!("{:.6}", row.cosine_mean),
            format!("{:.6}", row.cosine_min),
            format!("{}/{}", row.neighbours_agreeing, row.sentences),
            format!("{:.1}", row.sentences_per_second),
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The rows as a JSON array. A NaN, which JSON cannot say, becomes `null`.
pub(crate) fn json(rows: &[Row]) -> Value {
    let object = |row: &Row| {
        json!({
            "format": row.format,
            "transform": row.transform,
            "activations": row.activations,
            "cosine_mean": row.cosine_mean,
            "cosine_min": row.cosine_min,
            "neighbours_agreeing": row.neighbours_agreeing,
            "sentences": row.sentences,
            "sentences_per_second": row.sentences_per_second,
        })
    };
    rows.iter().map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(points: &[[f32; 2]]) -> Vec<Vec<f32>> {
        points.iter().map(|p| p.to_vec()).collect()
    }

    #[test]
    fn cosine_is_that_of_the_angle_and_ignores_length() {
        assert_eq!(cosine(&[3.0, 4.0], &[6.0, 8.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 5.0]), 0.0);
        assert_eq!(cosine(&[3.0, 4.0], &[1.0, 0.0]), 0.6);
    }

    #[test]
    fn nearest_neighbours_of_a_hand_set() {
        // Directions of 0, 10, 25 and 90 degrees.
        let points = plane(&[[1.0, 0.0], [0.985, 0.174], [0.906, 0.423], [0.0, 1.0]]);
        assert_eq!(nearest_neighbours(&points), [Some(1), Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn nearest_neighbour_is_another_sentence_and_a_number() {
        assert_eq!(nearest_neighbours(&plane(&[[1.0, 0.0]])), [None]);
        let with_nan = plane(&[[1.0, 0.0], [f32::NAN, 0.0], [0.0, 1.0]]);
        assert_eq!(nearest_neighbours(&with_nan), [Some(2), None, Some(0)]);
        let tie = plane(&[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]);
        assert_eq!(nearest_neighbours(&tie)[0], Some(1));
    }

    #[test]
    fn row_of_a_variant_that_moved_one_sentence() {
        let reference = plane(&[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]);
        let candidate = plane(&[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]);
        let row = Row::compare(["mxfp4", "none", "fp4"], &reference, &candidate, 2.0);
        assert!((row.cosine_min - 0.96).abs() < 1e-6);
        assert!((row.cosine_mean - 2.96 / 3.0).abs() < 1e-6);
        // Sentence 1 was nearest to 0 and is now nearest to 2; the others keep theirs.
        assert_eq!((row.neighbours_agreeing, row.sentences), (2, 3));
    }

    #[test]
    fn broken_variant_is_not_praised() {
        let reference = plane(&[[1.0, 0.0], [0.0, 1.0]]);
        for nan_first in [true, false] {
            let mut candidate = reference.clone();
            candidate[usize::from(!nan_first)][0] = f32::NAN;
            let row = Row::compare(["nvfp4", "none", "fp4"], &reference, &candidate, 1.0);
            assert!(row.cosine_min.is_nan() && row.cosine_mean.is_nan());
            assert_eq!(row.neighbours_agreeing, 0);
            assert_eq!(json(&[row])[0]["cosine_min"], Value::Null);
        }
    }

    #[test]
    fn table_and_json_show_the_same_row() {
        let reference = plane(&[[1.0, 0.0], [0.0, 1.0]]);
        let rows = [Row::compare(["f32", "none", "f32"], &reference, &reference, 12.34)];
        let text = table(&rows).to_string();
        for cell in ["f32", "none", "1.000000", "2/2", "12.3"] {
            assert!(text.contains(cell), "{cell} is not in\n{text}");
        }
        assert_eq!(json(&rows)[0]["activations"], "f32");
        assert_eq!(json(&rows)[0]["neighbours_agreeing"], 2);
        assert_eq!(json(&rows)[0]["sentences_per_second"], 12.34);
    }
}
