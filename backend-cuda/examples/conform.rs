//! The conformance suite on a device and the reference, alone and in pairs.
//!
//! ```text
//! cargo run --release -p fp4-backend-cuda --example conform -- [quick | full | exhaustive]
//! ```
//!
//! Exit code 0 if every compared value is equal, 1 if one differs, 2 without a device.

use fp4_backend_cuda::Cuda;
use fp4_conformance::suite::{Profile, Registered, Suite};
use fp4_core::{backend::erased::Backend, reference::Reference};

fn main() -> std::process::ExitCode {
    let name = std::env::args().nth(1).unwrap_or_else(|| "quick".into());
    let Some(profile) = Profile::named(&name) else {
        eprintln!("{name} is not a profile: quick, full or exhaustive");
        return 2.into();
    };
    let cuda = match Cuda::open(0) {
        Ok(cuda) => cuda,
        Err(error) => {
            eprintln!("no CUDA device: {error}");
            return 2.into();
        }
    };
    println!("{:?}", cuda.device());
    let report = Suite::new(profile)
        .with(Registered::new(Backend::new(Reference)))
        .with(Registered::new(Backend::resident(cuda)).tiles(&[64], &[64]).spreads(&[3, 43]))
        .run();
    println!("{report}");
    u8::from(!report.passed()).into()
}
