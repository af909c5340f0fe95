//! The operation alone, for its size, and to show that it cannot panic.

#![no_std]
#![no_main]

firmware::image!(firmware::operations::images::dequantization);
