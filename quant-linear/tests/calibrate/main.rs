//! Calibration: second moments, block transforms, quantizers and losses, against oracles that share
//! no code with them.

mod data;
mod gram;
mod loss;
mod method;
mod objective;
mod oracle;
mod outliers;
mod transform;
