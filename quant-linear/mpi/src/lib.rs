//! FP4 layers over MPI, with the bits of one process ([C6]).
//!
//! The layers are `quant_linear::sharded`'s; here is what they talk through, [`Mpi`], a
//! [`Communicator`](quant_linear::sharded::Communicator) of Open MPI or MPICH. What goes over it are
//! integers, and MPI adds them in whatever order it likes.
//!
//! ```no_run
//! use fp4_core::Format;
//! use fp4_mpi::{Mpi, abort};
//! use mpi::environment::{Threading, initialize_with_threading};
//! use quant_linear::sharded::{Communicator, RowParallel, RowShard, ShardError};
//! use quant_linear::{DenseOptions, QuantLinear};
//!
//! // One thread talks, and layers compute on several.
//! let started = initialize_with_threading(Threading::Funneled);
//! let (universe, level) = started.expect("MPI is started once");
//! assert!(level >= Threading::Funneled, "an MPI without threads");
//! let comm = Mpi::new(&universe.world());
//! if let Err(error) = run(&comm) {
//!     eprintln!("rank {}: {error}", comm.rank());
//!     // The end of main would wait in MPI_Finalize for a rank that is stuck.
//!     abort(&comm, 1);
//! }
//!
//! fn run(comm: &Mpi) -> Result<(), ShardError> {
//! # let weight = vec![0.5f32; 64 * 256];
//! // Every rank has, or makes, its columns of the weight.
//! let layer = QuantLinear::from_dense(&weight[..], 64, 256, &DenseOptions::new(Format::NvFp4))?;
//! let shard = RowShard::even(&layer, comm.rank(), comm.size());
//! let layer = RowParallel::new(comm, shard, None)?;
//!
//! let x = vec![1f32; 3 * layer.columns().len()];
//! let mut y = vec![0f32; 3 * 64];
//! layer.forward_into((&x[..]).into(), 3, (&mut y[..]).into())?;
//! # Ok(())
//! }
//! ```
//!
//! [C6]: fp4_core::contract#c6

#![deny(unsafe_code)]

mod comm;

pub use comm::{Mpi, Sum, abort, control_variable, return_errors};

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
