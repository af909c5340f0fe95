//! `kernels/arguments.cuh`, read when this crate is compiled: constants, and the fields of structs.
//!
//! ```text
//! constexpr int TILE_ROWS = 128;             constant("TILE_ROWS") is 128
//! struct PadArgs { const u8* from; .. };     expect_struct("PadArgs", fields): the same names and
//! static_assert(sizeof(PadArgs) == 32, "");  types in the same order, and the same size
//! ```
//!
//! A number or a field that differs does not compile. The C++ compilers check the asserted sizes,
//! and a test compares them with the parameters in the prebuilt PTX.

const HEADER: &[u8] = include_str!("../../kernels/arguments.cuh").as_bytes();

/// A field of a struct that both sides have.
pub(crate) struct Field {
    /// Its name, the same on both sides.
    pub(crate) name: &'static str,
    /// Its type in C++; `*` is any pointer.
    pub(crate) c_type: &'static str,
    /// Where it is on this side.
    pub(crate) offset: usize,
}

/// A type that both sides have.
pub(crate) trait CType {
    /// Its name in C++; `*` is any pointer.
    const NAME: &'static str;
}

impl CType for i32 {
    const NAME: &'static str = "int";
}

impl CType for u8 {
    const NAME: &'static str = "u8";
}

impl CType for u16 {
    const NAME: &'static str = "u16";
}

impl CType for i64 {
    const NAME: &'static str = "i64";
}

impl CType for f32 {
    const NAME: &'static str = "float";
}

/// The number in `constexpr int NAME = NUMBER;`.
///
/// # Panics
/// When this crate is compiled, if there is none.
pub(crate) const fn constant(name: &str) -> usize {
    let at = find(0, b"constexpr int ", name.as_bytes(), b" = ");
    assert!(at < HEADER.len(), "a constant that kernels/arguments.cuh does not have");
    let (value, end) = number(at);
    assert!(HEADER[end] == b';', "a constant that is not one number");
    value
}

/// Checks the fields of a struct against the header.
///
/// # Panics
/// When this crate is compiled, if a field's name, type or offset differs, or the size.
pub(crate) const fn expect_struct(name: &str, fields: &[Field], size: usize) {
    let mut at = find(0, b"struct ", name.as_bytes(), b" {");
    assert!(at < HEADER.len(), "a struct that kernels/arguments.cuh does not have");
    let mut i = 0;
    while i < fields.len() {
        at = line_after(at);
        let Field { name, c_type, .. } = fields[i];
        // `const` and the stars of a pointer are the same to the host.
        at = skip(at, b"    ");
        at = skip(at, b"const ");
        if c_type.as_bytes()[0] == b'*' {
            while HEADER[at] != b'*' {
                assert!(HEADER[at] != b'\n', "a field that is a pointer on this side alone");
                at += 1;
            }
            at += 1;
        } else {
            let after = skip(at, c_type.as_bytes());
            assert!(after > at, "a field of another type");
            at = after;
        }
        at = skip(at, b" ");
        let after = skip(at, name.as_bytes());
        assert!(after > at && HEADER[after] == b';', "a field of another name");
        at = after;
        i += 1;
    }
    // A blank line and functions may follow, but no field.
    at = line_after(at);
    assert!(HEADER[at] == b'}' || HEADER[at] == b'\n', "a field that this side does not have");
    let at = find(0, b"static_assert(sizeof(", name.as_bytes(), b") == ");
    assert!(at < HEADER.len() && number(at).0 == size, "a struct of another size");
    expect_offsets(fields);
}

/// Fields follow each other as C++ lays them out too, with no padding between them.
const fn expect_offsets(fields: &[Field]) {
    let mut i = 0;
    while i + 1 < fields.len() {
        assert!(fields[i].offset < fields[i + 1].offset, "fields in another order");
        i += 1;
    }
}

/// Where the text of `before`, `name`, `after` ends for the first time, from `at` on; else the
/// length.
const fn find(mut at: usize, before: &[u8], name: &[u8], after: &[u8]) -> usize {
    while at < HEADER.len() {
        let mut end = skip(at, before);
        if end > at {
            let named = skip(end, name);
            if named > end {
                end = skip(named, after);
                if end > named {
                    return end;
                }
            }
        }
        at += 1;
    }
    HEADER.len()
}

/// The place after `text` if it is at this place, else this place.
const fn skip(at: usize, text: &[u8]) -> usize {
    let mut i = 0;
    while i < text.len() {
        if at + i >= HEADER.len() || HEADER[at + i] != text[i] {
            return at;
        }
        i += 1;
    }
    at + text.len()
}

/// The beginning of the next line.
const fn line_after(mut at: usize) -> usize {
    while HEADER[at] != b'\n' {
        at += 1;
    }
    at + 1
}

/// The number at this place, and where it ends.
const fn number(mut at: usize) -> (usize, usize) {
    let (mut value, start) = (0, at);
    while HEADER[at].is_ascii_digit() {
        value = 10 * value + (HEADER[at] - b'0') as usize;
        at += 1;
    }
    assert!(at > start, "not a number");
    (value, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_read_and_missing_ones_refused() {
        assert_eq!((constant("E8M0"), constant("TILE_ROWS")), (0, 128));
        assert!(std::panic::catch_unwind(|| constant("TILE")).is_err());
    }

    #[test]
    fn a_struct_that_differs_is_refused() {
        let field = |name, c_type, offset| Field { name, c_type, offset };
        let pad = |change: usize| {
            let mut fields = [
                field("from", "*", 0),
                field("to", "*", 8),
                field("rows", "i64", 16),
                field("from_cols", "int", 24),
                field("to_cols", "int", 28),
            ];
            let mut size = 32;
            let mut len = fields.len();
            match change {
                0 => {}
                1 => fields[1].name = "into",
                2 => fields[2].c_type = "int",
                3 => fields[0].c_type = "i64",
                4 => fields[3].c_type = "*",
                5 => fields.swap(3, 4),
                6 => len -= 1,
                7 => size = 40,
                8 => fields[4].offset = 20,
                _ => unreachable!(),
            }
            expect_struct("PadArgs", &fields[..len], size);
        };
        for change in 0..9 {
            let outcome = std::panic::catch_unwind(|| pad(change));
            assert_eq!(outcome.is_ok(), change == 0, "change {change}");
        }
        assert!(std::panic::catch_unwind(|| expect_struct("NoArgs", &[], 0)).is_err());
    }
}
