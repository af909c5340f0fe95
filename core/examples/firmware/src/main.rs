#![no_std]
#![no_main]

use core::hint::black_box;
use firmware::board;
use fp4_core::*;
use semihosting::println;

#[cfg(target_arch = "arm")]
use cortex_m_rt::entry;
#[cfg(target_arch = "riscv32")]
use riscv_rt::entry;

static CODES: [u8; 128 * 64] = { let mut c = [0u8; 128 * 64]; let mut i = 0; while i < c.len() { c[i] = (i * 37 % 251) as u8; i += 1; } c };
static SCALES: [u8; 128 * 8] = { let mut c = [0u8; 128 * 8]; let mut i = 0; while i < c.len() { c[i] = 0x38 + (i * 37 % 16) as u8; i += 1; } c };
static SCALESM: [u8; 128 * 4] = { let mut c = [0u8; 128 * 4]; let mut i = 0; while i < c.len() { c[i] = 120 + (i * 37 % 4) as u8; i += 1; } c };

#[entry]
fn main() -> ! {
    let mut y = [0f32; 128];
    for (f, s) in [(Format::NvFp4, &SCALES[..]), (Format::MxFp4, &SCALESM[..])] {
    let shape = PackedShape::of(f, 128, 128).unwrap();
    let a = PackedView::new(shape.resized(1, 128).unwrap(), &CODES[..64], &s[..shape.row_groups()]).unwrap();
    let b = PackedView::new(shape, &CODES, s).unwrap();
    let mut p = Paths::default();
    let n = board::instructions(|| { p = narrow::matmul(black_box(a), black_box(b), 1.0, (&mut y[..]).into()).unwrap(); });
    println!("{:?} narrow {} {}.{:02} a MAC {:?}", f, n, n / 16384, n % 16384 * 100 / 16384, p);
    let n = board::instructions(|| { reference::matmul(black_box(a), black_box(b), 1.0, (&mut y[..]).into()).unwrap(); });
    println!("reference {} {}.{:02} a MAC", n, n / 16384, n % 16384 * 100 / 16384);
    let n = board::stack(|| { reference::matmul(black_box(a), black_box(b), 1.0, (&mut y[..]).into()).unwrap(); });
    println!("stack {}", n);
    }
    semihosting::process::exit(0)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{}", info);
    semihosting::process::exit(101)
}
