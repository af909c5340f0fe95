//! The operation alone, for its size.

#![no_std]
#![no_main]

firmware::image!(firmware::operations::images::multiplication_wide, may panic);
