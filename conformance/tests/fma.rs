//! The core's fused multiply-add against the standard library's (C5), which on this machine is an
//! instruction or the C library's own software.
//!
//! Both must agree on random triples, and on triples built to break an f64 emulation: sums whose
//! f64 rounding falls on a tie of f32, normal or subnormal.

mod tally;

use fp4_conformance::random::Random;
use fp4_core::{Transform, fma, reference};
use tally::{Tally, canonical, power};

fn compare(tally: &mut Tally, x: f32, y: f32, z: f32) {
    let std = canonical(f32::mul_add(x, y, z)).to_bits();
    let what = || format!("fma({:#X}, {:#X}, {:#X})", x.to_bits(), y.to_bits(), z.to_bits());
    tally.check(canonical(fma(x, y, z)).to_bits(), std, what);
}

/// x * y is a hair under or over a power of two (1 -+ 2^-46 times it), and that power of two is
/// exactly half of z's last bit: f64 rounds the sum to the tie, the fused operation sees past it.
fn adversarial(random: &mut Random) -> (f32, f32, f32) {
    let step = power(-23) as f32;
    let (over, under) = (1.0 + step, 1.0 - step);
    let (a, b) = random.pick(&[(over, under), (under, over), (over, over), (under, under)]);
    // z from the largest normal octaves down to the deepest subnormals.
    let z = f32::from_bits(random.below(0x7F00_0000) as u32 >> random.below(9));
    let exponent = (z.to_bits() >> 23).max(1) as i32 - 127;
    let half_of_last = exponent - 24;
    let split = half_of_last / 2 + random.below(5) as i32 - 2;
    let clamp = |e: i32| e.clamp(-126, 127);
    let x = a * power(clamp(split)) as f32;
    let y = b * power(clamp(half_of_last - split)) as f32;
    let sign = |v: f32, negative| if negative { -v } else { v };
    (sign(x, random.one_in(2)), y, sign(z, random.one_in(2)))
}

/// x * y is a tie of f32, 25 bits and the last one set; z is what breaks it, however small.
fn tie_in_the_product(random: &mut Random) -> (f32, f32, f32) {
    let odd = |random: &mut Random| (4097 + 2 * random.below(820)) as f32;
    let (x, y) = (odd(random), odd(random));
    let z = power(-(random.below(90) as i32)) as f32;
    let sign = |v: f32, negative| if negative { -v } else { v };
    (sign(x, random.one_in(2)), y, sign(z, random.one_in(2)))
}

/// The f64 sum falls a few steps beside a tie of f32: one that is inexact and odd already is not
/// moved onto the tie.
fn beside_a_tie(random: &mut Random) -> (f32, f32, f32) {
    let z = ((1 << 23) + random.below(1 << 23)) as f32;
    let steps = random.below(9) as f64 - 4.0;
    let x = (0.5 + random.below(1 << 23) as f64 * power(-24)) as f32;
    let y = ((0.5 + steps * power(-29)) / f64::from(x)) as f32;
    let sign = if random.one_in(2) { -1.0 } else { 1.0 };
    (sign * x, y, sign * z)
}

#[test]
fn triples_beside_ties_agree() {
    let mut tally = Tally::default();
    let mut random = Random::seeded(14);
    for _ in 0..300_000 {
        let (x, y, z) = tie_in_the_product(&mut random);
        compare(&mut tally, x, y, z);
        let (x, y, z) = beside_a_tie(&mut random);
        compare(&mut tally, x, y, z);
    }
    tally.finish("fma, beside ties");
}

#[test]
fn random_triples_agree() {
    let mut tally = Tally::default();
    let mut random = Random::seeded(11);
    for _ in 0..1_000_000 {
        compare(&mut tally, random.any_f32(), random.any_f32(), random.any_f32());
        // Closer together, so that the sum matters.
        let (x, y) = (random.gauss(), random.gauss());
        let z = random.gauss() * power(random.below(60) as i32 - 40) as f32;
        compare(&mut tally, x, y, z);
    }
    tally.finish("fma, random");
}

#[test]
fn adversarial_triples_agree() {
    let mut tally = Tally::default();
    let mut random = Random::seeded(12);
    let mut emulation_differs = 0u64;
    for _ in 0..2_000_000 {
        let (x, y, z) = adversarial(&mut random);
        compare(&mut tally, x, y, z);
        let emulated = (f64::from(x) * f64::from(y) + f64::from(z)) as f32;
        emulation_differs += u64::from(emulated.to_bits() != f32::mul_add(x, y, z).to_bits());
    }
    println!("fma, adversarial: naive f64 emulation is wrong on {emulation_differs} triples");
    assert!(emulation_differs > 100_000, "the triples are not adversarial");
    tally.finish("fma, adversarial");
}

#[test]
fn special_values_agree() {
    let specials = [
        0.0,
        1.0,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::from_bits(0x007F_FFFF),
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
        1.0 + f32::EPSILON,
        power(-75) as f32,
        power(64) as f32,
    ];
    let signed: Vec<f32> = specials.into_iter().flat_map(|v| [v, -v]).collect();
    let mut tally = Tally::default();
    for &x in &signed {
        for &y in &signed {
            for &z in &signed {
                compare(&mut tally, x, y, z);
            }
        }
    }
    tally.finish("fma, special values");
}

/// The same through the public API: a block whose first product is z and whose second is x * y.
/// This is the test that counts on targets where nothing above has an FMA instruction.
#[test]
fn the_transform_is_fused_where_emulation_is_not() {
    let mut tally = Tally::default();
    let mut random = Random::seeded(13);
    let mut triples: Vec<(f32, f32, f32)> = (0..20_000).map(|_| adversarial(&mut random)).collect();
    // A subnormal sum that double rounding through f64 gets wrong.
    triples.push((
        f32::from_bits(0x1A00_0001),
        f32::from_bits(0x19FF_FFFE),
        f32::from_bits(0x0040_0001),
    ));
    for (x, y, z) in triples {
        let (mut values, mut t) = ([0f32; 16], [0f32; 256]);
        (values[0], values[1]) = (z, x);
        for row in t.chunks_exact_mut(16) {
            (row[0], row[1]) = (1.0, y);
        }
        let transform = Transform::shared(&t[..], 16).unwrap();
        let mut out = [0f32; 16];
        reference::apply_transform(values[..].into(), 16, &transform, (&mut out[..]).into())
            .unwrap();
        // The chain starts from +0 and ends with products of zeros: they change nothing but the
        // sign of a zero.
        let expected = canonical((2..16).fold(f32::mul_add(x, y, z), |acc, _| acc + 0.0));
        for y in out {
            tally.check(y.to_bits(), expected.to_bits(), || format!("{x:e} * {y:e} + {z:e}"));
        }
    }
    tally.finish("fma through the transform");
}
