//! `fp4-core` on a microcontroller, without an allocator: see the README.
//!
//! | module | holds |
//! |---|---|
//! | [`operations`] | what the core does, each as a device would call it: measured alone |
//! | [`vectors`] | the conformance suite's cases, read where they lie in flash, and judged |
//! | [`int8`] | what FP4 is compared with |
//! | [`board`] | a counter of instructions, and the stack |

#![no_std]

#[cfg(target_os = "none")]
pub mod board;
pub mod int8;
pub mod operations;
pub mod vectors;

/// A program of one operation, for its size. Its panic handler cannot be linked (`panic-never`): if
/// it links, nothing in it can panic.
#[cfg(target_os = "none")]
#[macro_export]
macro_rules! image {
    (@main $operation:expr) => {
        #[cfg(target_arch = "arm")]
        use cortex_m_rt::entry;
        #[cfg(target_arch = "riscv32")]
        use riscv_rt::entry;

        #[entry]
        fn main() -> ! {
            let operation: fn() = $operation;
            loop {
                operation();
            }
        }
    };
    ($operation:expr) => {
        use panic_never as _;
        $crate::image!(@main $operation);
    };
    // The reference's matmul indexes rows that its checks have proved to be there; the compiler
    // does not see that, so its image has a handler.
    ($operation:expr, may panic) => {
        use panic_halt as _;
        $crate::image!(@main $operation);
    };
}
