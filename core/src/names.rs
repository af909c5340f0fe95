//! Names of settings, as users write them: `Display` and `FromStr` of every vocabulary type.
//!
//! One list for each type: what is printed is what is read. An unknown name is a [`ParseError`]
//! that says which names there are; who reads the name says what was given.

use core::fmt;
use core::str::FromStr;

use crate::e2m1::TieMode;
use crate::error::Error;
use crate::format::{Element, Encoding, FloatType, Format, GroupSize, ScaleType};
use crate::rule::ScaleRule;

/// A name that is none of the names of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseError {
    what: &'static str,
    expected: &'static [&'static str],
}

impl ParseError {
    /// The names that there are.
    pub const fn expected(&self) -> &'static [&'static str] {
        self.expected
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown {}: expected ", self.what)?;
        for (i, name) in self.expected.iter().enumerate() {
            let before = match i {
                0 => "",
                _ if i + 1 == self.expected.len() => " or ",
                _ => ", ",
            };
            write!(f, "{before}{name}")?;
        }
        Ok(())
    }
}

impl core::error::Error for ParseError {}

/// `Display` and `FromStr` by one list of names.
macro_rules! names {
    ($type:ident, $what:literal: $($variant:ident = $name:literal),+) => {
        impl $type {
            /// The name, as users write it: what is printed and what is read.
            pub const fn name(self) -> &'static str {
                match self {
                    $($type::$variant => $name),+
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = ParseError;

            fn from_str(name: &str) -> Result<Self, ParseError> {
                match name {
                    $($name => Ok($type::$variant),)+
                    _ => Err(ParseError { what: $what, expected: &[$($name),+] }),
                }
            }
        }

        #[cfg(feature = "serde")]
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.name())
            }
        }

        #[cfg(feature = "serde")]
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Name;

                impl serde::de::Visitor<'_> for Name {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("the name of a ", $what))
                    }

                    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<$type, E> {
                        name.parse().map_err(E::custom)
                    }
                }

                from.deserialize_str(Name)
            }
        }
    };
}

names!(Format, "format": MxFp4 = "mxfp4", NvFp4 = "nvfp4");
names!(Encoding, "encoding": MxFp4 = "mxfp4", NvFp4 = "nvfp4", MxInt8 = "mxint8");
names!(Element, "element": E2m1 = "e2m1", Int8 = "int8");
names!(ScaleType, "scale type": E8M0 = "e8m0", E4M3 = "e4m3");
names!(FloatType, "float type": F32 = "f32", F16 = "f16", Bf16 = "bf16");
names!(TieMode, "tie mode": Even = "even", Zero = "zero", Down = "down", Up = "up");
names!(ScaleRule, "scale rule":
    Nearest = "nearest", Floor = "floor", Rceil = "rceil", Even = "even", Search = "search",
    FourSixMse = "four-six-mse", FourSixMae = "four-six-mae",
    FourSixMse448 = "four-six-mse-448", FourSixMae448 = "four-six-mae-448",
    ModelOpt = "modelopt", CompressedTensors = "compressed-tensors", Ggml = "ggml", Mlx = "mlx"
);

impl fmt::Display for GroupSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.get(), f)
    }
}

impl FromStr for GroupSize {
    type Err = ParseError;

    fn from_str(name: &str) -> Result<Self, ParseError> {
        let size = name.parse().ok().and_then(|elements| GroupSize::new(elements).ok());
        size.ok_or(ParseError { what: "group size", expected: &["16", "32", "64", "128"] })
    }
}

impl TryFrom<usize> for GroupSize {
    type Error = Error;

    fn try_from(elements: usize) -> Result<Self, Error> {
        GroupSize::new(elements)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for GroupSize {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.get() as u64)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for GroupSize {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let elements = usize::deserialize(from)?;
        GroupSize::new(elements).map_err(serde::de::Error::custom)
    }
}

impl TryFrom<(ScaleType, GroupSize)> for Format {
    type Error = Error;

    fn try_from((scale, group): (ScaleType, GroupSize)) -> Result<Self, Error> {
        Format::from_parts(scale, group).ok_or(Error::NotAMatmulFormat { scale, group })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of rules are written into recipes: they are for good.
    const RULES: [&str; 13] = [
        "nearest",
        "floor",
        "rceil",
        "even",
        "search",
        "four-six-mse",
        "four-six-mae",
        "four-six-mse-448",
        "four-six-mae-448",
        "modelopt",
        "compressed-tensors",
        "ggml",
        "mlx",
    ];

    fn round_trips<T>(all: &[T], names: &[&str])
    where
        T: fmt::Display + FromStr<Err = ParseError> + PartialEq + fmt::Debug + Copy,
    {
        assert_eq!(all.len(), names.len());
        for (value, name) in all.iter().zip(names) {
            assert_eq!((value.to_string().as_str(), name.parse()), (*name, Ok(*value)));
            assert!(name.to_uppercase().parse::<T>().is_err() || name.parse::<u8>().is_ok());
        }
        let error = "fp5".parse::<T>().unwrap_err();
        assert_eq!(error.expected(), names);
    }

    #[test]
    fn what_is_printed_is_what_is_read() {
        round_trips(&Format::ALL, &["mxfp4", "nvfp4"]);
        round_trips(&Encoding::ALL, &["mxfp4", "nvfp4", "mxint8"]);
        round_trips(&Element::ALL, &["e2m1", "int8"]);
        round_trips(&ScaleType::ALL, &["e8m0", "e4m3"]);
        round_trips(&FloatType::ALL, &["f32", "f16", "bf16"]);
        round_trips(&TieMode::ALL, &["even", "zero", "down", "up"]);
        round_trips(&ScaleRule::ALL, &RULES);
        round_trips(&GroupSize::ALL, &["16", "32", "64", "128"]);
        assert_eq!(format!("[{:>6}]", Format::MxFp4), "[ mxfp4]");
    }

    #[test]
    fn an_unknown_name_lists_those_that_there_are() {
        let says = |error: ParseError| error.to_string();
        assert_eq!(
            says("round".parse::<TieMode>().unwrap_err()),
            "unknown tie mode: expected even, zero, down or up"
        );
        assert_eq!(
            says("48".parse::<GroupSize>().unwrap_err()),
            "unknown group size: expected 16, 32, 64 or 128"
        );
        assert_eq!(
            says("x".parse::<ScaleRule>().unwrap_err()),
            format!("unknown scale rule: expected {} or mlx", RULES[..12].join(", "))
        );
    }

    #[test]
    fn numbers_and_parts_convert_or_say_why_not() {
        assert_eq!(GroupSize::try_from(64), Ok(GroupSize::G64));
        assert_eq!(GroupSize::try_from(48), Err(Error::GroupSize { got: 48 }));
        for format in Format::ALL {
            let encoding = Encoding::from(format);
            assert_eq!(Format::try_from((format.scale_type(), format.group())), Ok(format));
            assert_eq!((encoding.format(), encoding.name()), (Some(format), format.name()));
        }
        let (scale, group) = (ScaleType::E8M0, GroupSize::G16);
        let error = Error::NotAMatmulFormat { scale, group };
        assert_eq!(Format::try_from((scale, group)), Err(error));
    }

    #[test]
    #[cfg(feature = "serde")]
    fn serde_speaks_the_same_names() {
        let all = r#"["mxfp4","e4m3","bf16","up","nearest",128]"#;
        type All = (Format, ScaleType, FloatType, TieMode, ScaleRule, GroupSize);
        let values: All = serde_json::from_str(all).unwrap();
        let expected = (
            Format::MxFp4,
            ScaleType::E4M3,
            FloatType::Bf16,
            TieMode::Up,
            ScaleRule::Nearest,
            GroupSize::G128,
        );
        assert_eq!(values, expected);
        assert_eq!(serde_json::to_string(&values).unwrap(), all);
        let error = serde_json::from_str::<Format>("\"fp4\"").unwrap_err().to_string();
        assert!(error.contains("expected mxfp4 or nvfp4"), "{error}");
        let error = serde_json::from_str::<GroupSize>("17").unwrap_err().to_string();
        assert!(error.contains("17"), "{error}");
    }
}
