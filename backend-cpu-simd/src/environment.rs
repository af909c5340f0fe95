//! For tests: calls made on a thread whose floating-point environment is not IEEE-754's (C9).
//!
//! Flush-to-zero and rounding modes are per thread, and other libraries change them without telling
//! anyone. [`under`] does what such a library does, for the time of one call, so that a test can
//! demand an error of every entry point.
//!
//! Rust assumes the default environment, so [`under`] is unsafe: it is for calls that check the
//! environment first, and return an error. [`probe`] is its safe form for suites that forbid
//! `unsafe`.

use std::arch::asm;

/// A change of the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FpChange {
    /// Subnormal results are flushed to zero.
    FlushResults,
    /// Subnormal inputs count as zero.
    FlushInputs,
    /// Rounding toward -inf.
    Down,
    /// Rounding toward +inf.
    Up,
    /// Rounding toward zero.
    TowardZero,
}

impl FpChange {
    /// All of them.
    pub const ALL: [FpChange; 5] = [
        FpChange::FlushResults,
        FpChange::FlushInputs,
        FpChange::Down,
        FpChange::Up,
        FpChange::TowardZero,
    ];

    /// `ftz`, `daz`, `down`, `up`, `toward-zero`.
    pub const fn name(self) -> &'static str {
        match self {
            FpChange::FlushResults => "ftz",
            FpChange::FlushInputs => "daz",
            FpChange::Down => "down",
            FpChange::Up => "up",
            FpChange::TowardZero => "toward-zero",
        }
    }

    /// Bits of MXCSR.
    #[cfg(target_arch = "x86_64")]
    const fn bits(self) -> u32 {
        match self {
            FpChange::FlushResults => 0x8000,
            FpChange::FlushInputs => 0x0040,
            FpChange::Down => 0x2000,
            FpChange::Up => 0x4000,
            FpChange::TowardZero => 0x6000,
        }
    }

    /// Bits of FPCR; one bit flushes inputs and results.
    #[cfg(target_arch = "aarch64")]
    const fn bits(self) -> u64 {
        match self {
            FpChange::FlushResults | FpChange::FlushInputs => 1 << 24,
            FpChange::Down => 2 << 22,
            FpChange::Up => 1 << 22,
            FpChange::TowardZero => 3 << 22,
        }
    }
}

/// Calls `call` with this thread's environment changed, and changes it back, also if it panics.
///
/// # Safety
/// `call` does nothing in floating point whose result is used, other than to find out that the
/// environment is changed: it consists of calls of entry points that check it first (C9), and of
/// code that moves, compares and formats no floating-point value.
pub unsafe fn under<R>(change: FpChange, call: impl FnOnce() -> R) -> R {
    struct Restore(Control);
    impl Drop for Restore {
        fn drop(&mut self) {
            write(self.0);
        }
    }
    let before = read();
    let _restore = Restore(before);
    write(before | change.bits());
    call()
}

/// Runs `calls` in an environment changed as `change` says ([`FpChange::name`]), for a suite that
/// forbids `unsafe` and whose calls are of backends. False, without the calls, if there is no such
/// change.
///
/// The calls are opaque to the compiler, so no arithmetic of the caller's is moved into the changed
/// environment. A backend that computes on regardless computes other values: that is what the suite
/// is there to see.
pub fn probe(change: &str, calls: &mut dyn FnMut()) -> bool {
    let Some(change) = FpChange::ALL.into_iter().find(|known| known.name() == change) else {
        return false;
    };
    let calls = std::hint::black_box(calls);
    // SAFETY: calls of backends' entry points, which check the environment first (C9).
    unsafe { under(change, calls) };
    true
}

#[cfg(target_arch = "x86_64")]
type Control = u32;
#[cfg(target_arch = "aarch64")]
type Control = u64;

#[cfg(target_arch = "x86_64")]
fn read() -> Control {
    let mut bits = 0u32;
    // SAFETY: stmxcsr writes four bytes, to a local variable of four bytes.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut bits, options(nostack)) };
    bits
}

#[cfg(target_arch = "x86_64")]
fn write(bits: Control) {
    // SAFETY: ldmxcsr reads four bytes, of a local variable; the bits are those that `read` gave
    // with bits of FpChange set, none of them reserved or an exception's mask, so nothing traps.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const bits, options(nostack)) };
}

#[cfg(target_arch = "aarch64")]
fn read() -> Control {
    let bits: u64;
    // SAFETY: reads a register that every thread may read.
    unsafe { asm!("mrs {}, fpcr", out(reg) bits, options(nostack)) };
    bits
}

#[cfg(target_arch = "aarch64")]
fn write(bits: Control) {
    // SAFETY: FPCR may be written by every thread; the bits are those that `read` gave with bits of
    // FpChange set, none of which enables a trap.
    unsafe { asm!("msr fpcr, {}", in(reg) bits, options(nostack)) };
}
