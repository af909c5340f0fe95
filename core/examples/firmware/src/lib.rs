//! `fp4-core` on a microcontroller: see the README.

#![no_std]

#[cfg(target_os = "none")]
pub mod board;
