//! What differs between the boards: a counter of instructions, and the stack.
//!
//! Under `-icount shift=0` qemu's clock moves by one nanosecond an instruction. The counter of a
//! Cortex-M is SysTick, which counts at the board's frequency: a loop whose instructions are known
//! says how many one tick is. RISC-V has a counter of instructions.
//!
//! This file alone has `unsafe`: for the memory below the stack pointer, which no value is in.

/// Bytes below the stack pointer that are painted, and so can be seen to be used.
const PAINTED: usize = 6 * 1024;
/// Bytes of them that the painting itself may use: the least that is told.
const MARGIN: usize = 64;
const PAINT: u8 = 0xA5;

/// Counts instructions.
#[cfg(target_arch = "arm")]
pub struct Counter {
    timer: cortex_m::peripheral::SYST,
    /// Ticks of twice [`TURNS`] instructions.
    known: u32,
}

/// Turns of the known loop.
#[cfg(target_arch = "arm")]
const TURNS: u32 = 1 << 19;

#[cfg(target_arch = "arm")]
impl Counter {
    /// The board's; there is one.
    pub fn take() -> Option<Self> {
        let timer = cortex_m::Peripherals::take()?.SYST;
        let mut counter = Counter { timer, known: 0 };
        counter.known = counter.ticks(known_loop);
        Some(counter)
    }

    /// Instructions that `f` takes, to one part in a thousand or an instruction.
    pub fn count(&mut self, f: impl FnOnce()) -> u32 {
        let ticks = u64::from(self.ticks(f));
        (ticks * u64::from(2 * TURNS) / u64::from(self.known)) as u32
    }

    fn ticks(&mut self, f: impl FnOnce()) -> u32 {
        use cortex_m::peripheral::SYST;

        self.timer.set_clock_source(cortex_m::peripheral::syst::SystClkSource::Core);
        self.timer.set_reload(0x00FF_FFFF);
        self.timer.clear_current();
        self.timer.enable_counter();
        let from = SYST::get_current();
        f();
        let to = SYST::get_current();
        assert!(!self.timer.has_wrapped(), "longer than SysTick counts");
        self.timer.disable_counter();
        from.wrapping_sub(to) & 0x00FF_FFFF
    }
}

/// Two instructions, [`TURNS`] times: `delay` makes one turn more than it is given.
#[cfg(target_arch = "arm")]
fn known_loop() {
    cortex_m::asm::delay(TURNS - 1);
}

/// Counts instructions: the processor does.
#[cfg(target_arch = "riscv32")]
#[derive(Debug)]
pub struct Counter;

#[cfg(target_arch = "riscv32")]
impl Counter {
    /// The processor's.
    pub fn take() -> Option<Self> {
        Some(Counter)
    }

    /// Instructions that `f` takes.
    pub fn count(&mut self, f: impl FnOnce()) -> u32 {
        let from = riscv::register::minstret::read();
        f();
        riscv::register::minstret::read().wrapping_sub(from) as u32
    }
}

/// Bytes of stack that `f` takes, from the frame of this function down: at least 64, at most 6144.
#[inline(never)]
pub fn stack(f: impl FnOnce()) -> usize {
    let mark = 0u8;
    let top = (&raw const mark) as usize;
    paint(top);
    f();
    let lowest = top - PAINTED;
    let untouched = (lowest..top - MARGIN).take_while(|&address| {
        // SAFETY: the range is RAM below the stack, which nothing else uses; any byte is valid.
        unsafe { core::ptr::read_volatile(address as *const u8) == PAINT }
    });
    PAINTED - untouched.count()
}

#[inline(never)]
fn paint(top: usize) {
    for address in top - PAINTED..top - MARGIN {
        // SAFETY: the range is RAM below the frames of this function and of its caller, which
        // belongs to no value until a function is called.
        unsafe { core::ptr::write_volatile(address as *mut u8, PAINT) };
    }
}
