//! Scale rules: each by its own table of cases, the searches by a plain search, and what they lose
//! on data that is in the format already.
#![cfg(feature = "std")]
#![allow(missing_docs)]

use fp4_core::{
    E4m3, Element, Error, Format, GroupSize, PackedMatrix, QuantSpec, QuantizeInput, QuantizeQuery,
    ScaleRule, ScaleType, TieMode, Unsupported, reference,
};

/// A spec by a rule, under a global scale.
fn spec(format: Format, rule: ScaleRule, global_scale: f32) -> QuantSpec {
    let usual = QuantSpec::usual(format);
    let spec = QuantSpec::new(usual.scale_type(), usual.group(), global_scale, usual.scale_scale());
    spec.unwrap().with_tie(rule.tie(usual.scale_type())).with_rule(rule).unwrap()
}

/// The byte of a group that holds one magnitude and zeros.
fn byte(format: Format, rule: ScaleRule, global_scale: f32, amax: f32) -> u8 {
    let mut y = vec![0f32; format.group().get()];
    y[5] = -amax;
    reference::group_scale(&y, &spec(format, rule, global_scale))
}

/// A float just below, and just above.
fn around(x: f32) -> [f32; 3] {
    [f32::from_bits(x.to_bits() - 1), x, f32::from_bits(x.to_bits() + 1)]
}

#[test]
fn the_power_of_two_rules_turn_where_they_say() {
    let bytes = |rule, gs, at| around(at).map(|amax| byte(Format::MxFp4, rule, gs, amax));
    for e in [-100i32, -3, 0, 60] {
        let (unit, b) = (2f32.powi(e), (127 + e) as u8);
        for gs in [1.0, 0.25] {
            let shift = if gs == 1.0 { 0 } else { 2 };
            let expect = |rule, at: f32, expected: [u8; 3]| {
                let expected = expected.map(|b| b + shift);
                assert_eq!(bytes(rule, gs, at * unit), expected, "{rule} {at} 2^{e} gs {gs}");
            };
            expect(ScaleRule::Floor, 8.0, [b, b + 1, b + 1]);
            expect(ScaleRule::Floor, 4.0, [b - 1, b, b]);
            expect(ScaleRule::Even, 7.0, [b, b + 1, b + 1]);
            expect(ScaleRule::CompressedTensors, 7.0, [b, b + 1, b + 1]);
            expect(ScaleRule::Even, 4.0, [b, b, b]);
            expect(ScaleRule::Rceil, 6.0, [b, b, b + 1]);
            expect(ScaleRule::Nearest, 6.0, [b, b + 1, b + 1]);
        }
    }
    // The logarithms that are rounded: f32 has no number between 100 and log2 of 2^100 + 1 ulp.
    let (up, down) = (6.0 * 2f32.powi(100), 2f32.powi(100));
    assert_eq!(bytes(ScaleRule::Rceil, 1.0, up), [227, 227, 228]);
    assert_eq!(bytes(ScaleRule::ModelOpt, 1.0, up), [227, 227, 227]);
    assert_eq!(bytes(ScaleRule::ModelOpt, 1.0, 6.0), [127, 127, 128]);
    assert_eq!(bytes(ScaleRule::Floor, 1.0, down), [224, 225, 225]);
    assert_eq!(bytes(ScaleRule::Ggml, 1.0, down), [225, 225, 225]);
    assert_eq!(bytes(ScaleRule::Ggml, 1.0, 1.0), [124, 125, 125]);
    assert_eq!(bytes(ScaleRule::Mlx, 1.0, up), [227, 227, 228]);
}

#[test]
fn zeros_infinities_and_nans_have_the_bytes_that_the_rules_say() {
    use ScaleRule::*;
    for rule in ScaleRule::ALL {
        for format in Format::ALL.into_iter().filter(|f| rule.is_for(f.scale_type())) {
            let bytes = [0.0, f32::INFINITY, f32::NAN].map(|amax| byte(format, rule, 1.0, amax));
            let zero = match (rule, format) {
                (Mlx, Format::MxFp4) => 127,
                (ModelOpt, Format::NvFp4) => 0x38,
                (CompressedTensors, Format::NvFp4) => 0x20,
                _ => 0,
            };
            let scale = format.scale_type();
            let largest = scale.nan_byte() - 1;
            assert_eq!(bytes, [zero, largest, scale.nan_byte()], "{rule} {format}");
        }
    }
    // Far below and far above what bytes there are.
    for rule in ScaleRule::ALL.into_iter().filter(|rule| rule.is_for(ScaleType::E8M0)) {
        let bytes = [f32::MIN_POSITIVE, f32::MAX].map(|amax| byte(Format::MxFp4, rule, 1.0, amax));
        assert!(bytes[0] <= 1 && (251..=253).contains(&bytes[1]), "{rule} {bytes:?}");
        let clamped = byte(Format::MxFp4, rule, 1e-3, f32::MAX);
        assert!(clamped >= 253, "{rule} {clamped}");
    }
}

#[test]
fn the_e4m3_rules_of_libraries() {
    let nv = |rule, gs, amax| byte(Format::NvFp4, rule, gs, amax);
    // 17 / 16 is a tie between 1 and 1.125: to even, or up.
    for (rule, expected) in [(ScaleRule::Mlx, 0x38), (ScaleRule::Ggml, 0x39)] {
        assert_eq!(nv(rule, 1.0, 6.0 * 17.0 / 16.0), expected, "{rule}");
    }
    // Subnormal bytes, in units of 2^-9: ggml rounds half up and stops at 7.
    let units = |rule, units: f32| nv(rule, 1.0, 6.0 * units / 512.0);
    assert_eq!([0.5, 1.5, 2.5, 7.75].map(|u| units(ScaleRule::Ggml, u)), [1, 2, 3, 7]);
    assert_eq!([0.5, 1.5, 2.5, 7.75].map(|u| units(ScaleRule::Mlx, u)), [0, 2, 2, 8]);
    assert_eq!([0.4, 8.0, 15.4].map(|u| units(ScaleRule::Ggml, u)), [0, 8, 15]);
    assert_eq!(
        [255.0, 256.0, 300.0].map(|s| nv(ScaleRule::Ggml, 1.0, 6.0 * s)),
        [0x78, 0x7E, 0x7E]
    );
    assert_eq!([256.0, 300.0].map(|s| nv(ScaleRule::Mlx, 1.0, 6.0 * s)), [0x78, 0x79]);
    // No scale of 0 in ModelOpt, nor in compressed-tensors.
    let tiny = 6.0 * 0.1 / 512.0;
    let rules = [ScaleRule::Nearest, ScaleRule::ModelOpt, ScaleRule::CompressedTensors];
    assert_eq!(rules.map(|rule| nv(rule, 1.0, tiny)), [0, 1, 0x20]);
}

#[test]
fn four_over_six_takes_the_lesser_error_and_six_of_equals() {
    use ScaleRule::{FourSixMae, FourSixMse};
    let scale = |rule, y: &[f32]| {
        let mut group = [0f32; 16];
        group[..y.len()].copy_from_slice(y);
        reference::group_scale(&group, &spec(Format::NvFp4, rule, 1.0))
    };
    // Under 4: 4.5 is 3 * 1.5. Under 6: 4.5 is half a unit from 4, the paper's case.
    for rule in [FourSixMse, FourSixMae] {
        assert_eq!(scale(rule, &[6.0, 4.5]), 0x3C);
        assert_eq!(scale(rule, &[6.0, 4.0, 1.0]), 0x38);
        assert_eq!(scale(rule, &[6.0]), 0x38);
    }
    // One error of 1 (5 under 6) against two of 0.5 and less: 5 - 4.5, 4 - 4.5 is 0.5 each.
    assert_eq!(scale(FourSixMse, &[6.0, 5.0, 4.0]), 0x3C);
    assert_eq!(scale(FourSixMae, &[6.0, 5.0, 4.0]), 0x38);
    // The tensor's bound leaves room for the largest group's 4, or does not.
    for (rule, room) in [(FourSixMse, true), (ScaleRule::FourSixMse448, false)] {
        let spec = QuantSpec::by_rule(Format::NvFp4, rule, 6.0).unwrap();
        let mut y = [0f32; 16];
        (y[0], y[1]) = (6.0, 4.5);
        assert_eq!(reference::group_scale(&y, &spec) == 0x7C, room, "{rule}");
    }
}

/// Values by a small generator: uniform 32 bits.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }

    fn unit(&mut self) -> f32 {
        self.bits() as f32 / 4_294_967_296.0
    }

    fn signed(&mut self) -> f32 {
        2.0 * self.unit() - 1.0
    }
}

/// The squared error of each byte of a group, by the reference quantizer and dequantizer.
fn errors(y: &[f32], spec: &QuantSpec, bytes: std::ops::RangeInclusive<u8>) -> Vec<(f64, u8)> {
    let plain = spec.with_rule(ScaleRule::Nearest).unwrap().with_tie(TieMode::Even);
    bytes
        .map(|byte| {
            let input = QuantizeInput::new(y, 1, y.len(), &plain).unwrap();
            let scales = [byte];
            let input = input.with_scales(&scales).unwrap();
            let mut packed = PackedMatrix::zeros(input.shape());
            reference::quantize(&input, &mut packed.view_mut()).unwrap();
            let mut back = vec![0f32; y.len()];
            let out = (&mut back[..]).into();
            reference::dequantize(packed.view(), spec.global_scale(), out).unwrap();
            let mut lanes = [0f64; 4];
            for (i, (y, back)) in y.iter().zip(&back).enumerate() {
                lanes[i % 4] += f64::from(y - back).powi(2);
            }
            ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]), byte)
        })
        .collect()
}

/// The byte of the least error, the least of equals.
fn least(errors: &[(f64, u8)]) -> u8 {
    errors.iter().fold((f64::INFINITY, 0), |best, e| if e.0 < best.0 { *e } else { best }).1
}

/// Groups of every kind that a search could go wrong on.
fn groups(len: usize, random: &mut Random) -> Vec<Vec<f32>> {
    let mut groups = vec![vec![0f32; len], vec![1.0; len], vec![-0.0; len]];
    for kind in 0..800 {
        let scale = 2f32.powi((random.bits() % 40) as i32 - 30);
        let step = E4m3::from_bits((random.bits() % 126) as u8 + 1).to_f32();
        let group = (0..len).map(|i| match kind % 8 {
            // Spread evenly, heavy-tailed, one outlier, few values.
            0 => random.signed() * scale,
            1 => random.signed().powi(9) * scale * 100.0,
            2 => random.signed().powi(63) * scale * 40.0,
            3 => (random.bits() % 4) as f32 * scale,
            // In the format, and next to it.
            4 => [0.0, 0.5, 1.0, 1.5, -2.0, 3.0, -4.0, 6.0][random.bits() as usize % 8] * step,
            // One that is worth clipping, for the sake of the others.
            5 if i == 7 => 4.0 * scale,
            5 => (0.25 + 0.03 * random.signed()) * scale,
            // In the format, but for the largest: half the unit would clip it.
            6 if i == 3 => (3.02 + 0.1 * random.unit()) * step,
            6 => [0.0, 0.5, 1.0, -1.5][random.bits() as usize % 4] * step,
            _ => {
                let tie = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0][random.bits() as usize % 8];
                around(tie * step)[random.bits() as usize % 3]
            }
        });
        groups.push(group.collect());
    }
    groups
}

#[test]
fn the_search_over_e4m3_bytes_is_the_search_over_all_of_them() {
    let mut random = Random(14);
    for (scale_type, group) in [(16, GroupSize::G16), (32, GroupSize::G32)] {
        for gs in [1.0, 0.1, 1.0 / 2688.0, 3.7e-5, 1e-30, f32::from_bits(900), 1e30] {
            let spec = QuantSpec::new(ScaleType::E4M3, group, gs, 6.0).unwrap();
            let spec = spec.with_rule(ScaleRule::Search).unwrap();
            for y in groups(scale_type, &mut random) {
                // At the scale of the global scale, and as they are.
                for by in [1.0, gs * 100.0] {
                    let y: Vec<f32> = y.iter().map(|y| y * by).collect();
                    let all = errors(&y, &spec, 0..=0x7E);
                    assert_eq!(reference::group_scale(&y, &spec), least(&all), "gs {gs} {y:?}");
                }
            }
        }
    }
}

#[test]
fn the_search_over_exponents_is_of_three_and_all_but_always_of_all() {
    let mut random = Random(15);
    let (mut groups_seen, mut better) = (0, 0);
    for gs in [1.0, 1.0 / 3.0] {
        let spec = spec(Format::MxFp4, ScaleRule::Search, gs);
        let floor = spec.with_rule(ScaleRule::Floor).unwrap();
        for y in groups(32, &mut random) {
            let (byte, middle) =
                (reference::group_scale(&y, &spec), reference::group_scale(&y, &floor));
            let three = errors(&y, &spec, middle.saturating_sub(1)..=middle + 1);
            assert_eq!(byte, least(&three), "{y:?}");
            let all = errors(&y, &spec, 0..=254);
            let error = |byte: u8| all[usize::from(byte)].0;
            groups_seen += 1;
            better += usize::from(error(least(&all)) < error(byte));
        }
    }
    assert_eq!((groups_seen, better), (1606, 0));
}

/// (values, byte) of groups that are exactly in a format.
fn in_format(format: Format, gs: f32, random: &mut Random) -> Vec<f32> {
    let spec = QuantSpec::usual(format);
    let most = 1 + random.bits() % 7;
    let byte = match format {
        Format::MxFp4 => (random.bits() % 40) as u8 + 100,
        Format::NvFp4 => (random.bits() % 126) as u8 + 1,
    };
    let d = spec.scale_type().decode(byte) * gs;
    let code = |random: &mut Random| (random.bits() % (most + 1)) as u8 | (random.bits() as u8 & 8);
    let values = (0..spec.group().get()).map(|_| {
        let code = code(random);
        fp4_core::E2m1::from_bits(code).to_f32() * d
    });
    values.collect()
}

#[test]
fn searches_lose_nothing_of_what_is_in_the_format_already() {
    let mut random = Random(16);
    for (format, rule, gs) in [
        (Format::MxFp4, ScaleRule::Search, 1.0),
        (Format::MxFp4, ScaleRule::Floor, 1.0),
        (Format::MxFp4, ScaleRule::Rceil, 1.0),
        (Format::MxFp4, ScaleRule::Even, 1.0),
        (Format::NvFp4, ScaleRule::Search, 1.37e-4),
        (Format::NvFp4, ScaleRule::Search, 0.1),
    ] {
        let spec = spec(format, rule, gs);
        for _ in 0..2000 {
            let y = in_format(format, gs, &mut random);
            let byte = reference::group_scale(&y, &spec);
            assert_eq!(errors(&y, &spec, byte..=byte)[0].0, 0.0, "{rule} {y:?}");
        }
    }
    // The contract's own loses some there, whatever the global scale.
    for gs in [1.0, 1.0 / 3.0] {
        let spec = spec(Format::MxFp4, ScaleRule::Nearest, gs);
        let lost = (0..2000).filter(|_| {
            let y = in_format(Format::MxFp4, 1.0, &mut random);
            let byte = reference::group_scale(&y, &spec);
            errors(&y, &spec, byte..=byte)[0].0 > 0.0
        });
        let (lost, least) = (lost.count(), if gs == 1.0 { 200 } else { 1300 });
        assert!(lost > least, "gs {gs}: {lost}");
    }
}

#[test]
fn a_rule_is_refused_for_scales_of_another_type() {
    let error = QuantSpec::usual(Format::NvFp4).with_rule(ScaleRule::Floor).unwrap_err();
    let (rule, scale) = (ScaleRule::Floor, ScaleType::E4M3);
    assert_eq!(error, Error::ScaleRule { rule, scale });
    assert_eq!(
        error.to_string(),
        "the scale rule floor is not for e4m3 scales; choose nearest, search, \
         four-six-mse, four-six-mae, four-six-mse-448, four-six-mae-448, modelopt, \
         compressed-tensors, ggml, or mlx"
    );
    let rule = ScaleRule::FourSixMae;
    let error = QuantSpec::by_rule(Format::MxFp4, rule, 1.0).unwrap_err();
    assert_eq!(error, Error::ScaleRule { rule, scale: ScaleType::E8M0 });
    let int8 = QuantSpec::mxint8().with_rule(ScaleRule::Floor).unwrap();
    assert_eq!((int8.rule(), int8.element()), (ScaleRule::Nearest, Element::Int8));
    let spec = QuantSpec::usual(Format::MxFp4).with_rule(ScaleRule::Rceil).unwrap();
    let shape = spec.shape(4, 64).unwrap();
    let query = QuantizeQuery::new(shape, &spec, fp4_core::FloatType::F32);
    assert_eq!(query.expect_plain(), Err(Unsupported::ScaleRule(ScaleRule::Rceil)));
    assert_eq!(query.expect_nearest(), Err(Unsupported::ScaleRule(ScaleRule::Rceil)));
    assert_eq!(query.with_given_scales(true).expect_nearest(), Ok(()));
    let nearest = QuantSpec::usual(Format::MxFp4);
    let query = QuantizeQuery::new(shape, &nearest, fp4_core::FloatType::F32);
    assert_eq!((query.expect_nearest(), query.expect_plain()), (Ok(()), Ok(())));
}

#[test]
fn what_goes_with_a_rule() {
    let by = |format, rule, amax| QuantSpec::by_rule(format, rule, amax).unwrap();
    for format in Format::ALL {
        let nearest = by(format, ScaleRule::Nearest, 2.0);
        assert_eq!(nearest, QuantSpec::for_weight(format, 2.0).unwrap());
    }
    for rule in ScaleRule::ALL {
        let mx = rule.is_for(ScaleType::E8M0);
        if mx && rule != ScaleRule::Nearest {
            assert_eq!(by(Format::MxFp4, rule, f32::NAN).global_scale(), 1.0);
        }
        if !rule.is_for(ScaleType::E4M3) {
            continue;
        }
        let expected = match rule {
            ScaleRule::Ggml | ScaleRule::Mlx => 1.0,
            ScaleRule::FourSixMse | ScaleRule::FourSixMae => 2.1 / 1536.0,
            ScaleRule::CompressedTensors => 1.0 / (2688.0 * (1.0 / 2.1)),
            _ => 2.1 / 2688.0,
        };
        assert_eq!(by(Format::NvFp4, rule, 2.1).global_scale(), expected, "{rule}");
        assert_eq!(by(Format::NvFp4, rule, 0.0).global_scale(), 1.0, "{rule}");
        let none = QuantSpec::by_rule(Format::NvFp4, rule, f32::INFINITY);
        assert_eq!(none.is_err(), rule.needs_amax(Format::NvFp4), "{rule}");
        let least = by(Format::NvFp4, rule, f32::from_bits(1)).global_scale();
        assert!(least > 0.0 && least.is_finite(), "{rule}");
    }
    let ties = |rule: ScaleRule| [rule.tie(ScaleType::E8M0), rule.tie(ScaleType::E4M3)];
    assert_eq!(ties(ScaleRule::Ggml), [TieMode::Zero; 2]);
    assert_eq!(ties(ScaleRule::Mlx), [TieMode::Zero; 2]);
    assert_eq!(ties(ScaleRule::ModelOpt), [TieMode::Zero, TieMode::Even]);
    assert_eq!(ties(ScaleRule::CompressedTensors), [TieMode::Even; 2]);
}
