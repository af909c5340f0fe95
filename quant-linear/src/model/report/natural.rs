//! Names in the order of the model: `layers.2` before `layers.10`.

use std::cmp::Ordering;

/// Compares names with every run of digits as one number; equal numbers of other lengths by text.
pub(super) fn order(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    while let (Some(p), Some(q)) = (x.first(), y.first()) {
        let (m, n) = (digits(x), digits(y));
        let (len, other, ordering) = match m > 0 && n > 0 {
            true => (m, n, number(&x[..m], &y[..n])),
            false => (1, 1, p.cmp(q)),
        };
        if ordering != Ordering::Equal {
            return ordering;
        }
        (x, y) = (&x[len..], &y[other..]);
    }
    x.len().cmp(&y.len()).then_with(|| a.cmp(b))
}

/// How many digits a text begins with.
fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|c| c.is_ascii_digit()).count()
}

/// Compares numbers of any length.
fn number(a: &[u8], b: &[u8]) -> Ordering {
    let [a, b] = [a, b].map(|n| &n[n.iter().take_while(|c| **c == b'0').count()..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_in_order_of_value() {
        let sorted = [
            "a",
            "a.2.b",
            "a.10",
            "a.10.b",
            "a.b",
            "a0b1",
            "a0b01",
            "l.18446744073709551616",
            "l.18446744073709551617",
            "l.x",
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                let expected = if ["a0b1", "a0b01"].contains(a) && ["a0b1", "a0b01"].contains(b) {
                    a.cmp(b)
                } else {
                    i.cmp(&j)
                };
                assert_eq!(order(a, b), expected, "{a} {b}");
            }
        }
    }
}
