//! Whole models: pieces of their weights, and what is done with them.

pub mod tiles;
