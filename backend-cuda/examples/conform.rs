//! The conformance suite on a device and the reference, alone and in pairs.
//!
//! ```text
//! cargo run --release -p fp4-backend-cuda --example conform -- [PROFILE] [KERNEL]
//! ```
//!
//! PROFILE is quick, full or exhaustive; KERNEL is auto, naive, mma, folded, decode or wgmma, and
//! forces it on every product; `auto` is what the backend would take. Exit code 0 if every
//! compared value is equal, 1 if one differs, 2 without a device, 77 if the device does not have
//! the kernel.

use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_conformance::suite::{Profile, Registered, Suite};
use fp4_core::{backend::erased::Backend, reference::Reference};

/// A kernel by its name, and the tile that the suite is told, to place cases on its borders.
fn kernel(name: &str) -> Option<(MatmulKernel, usize)> {
    Some(match name {
        "auto" => (MatmulKernel::Auto, 64),
        "naive" => (MatmulKernel::Naive, 16),
        "mma" => (MatmulKernel::Mma, 64),
        "folded" => (MatmulKernel::MmaFolded { ranges: 0 }, 128),
        "decode" => (MatmulKernel::Decode { ranges: 0 }, 16),
        "wgmma" => (MatmulKernel::Wgmma, 128),
        "wgmma-rs" => (MatmulKernel::WgmmaRs { ranges: 0 }, 128),
        _ => return None,
    })
}

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "quick".into());
    let Some(profile) = Profile::named(&name) else {
        eprintln!("{name} is not a profile: quick, full or exhaustive");
        return 2.into();
    };
    let name = arguments.next().unwrap_or_else(|| "auto".into());
    let Some((kernel, tile)) = kernel(&name) else {
        eprintln!("{name} is not a kernel: auto, naive, mma, folded, decode, wgmma or wgmma-rs");
        return 2.into();
    };
    let cuda = match Cuda::open(0) {
        Ok(cuda) => cuda.with_matmul_kernel(kernel),
        Err(error) => {
            eprintln!("no CUDA device: {error}");
            return 2.into();
        }
    };
    println!("{:?}, {kernel:?}", cuda.device());
    let compute_capability = cuda.device().compute_capability;
    if matches!(kernel, MatmulKernel::Wgmma | MatmulKernel::WgmmaRs { .. })
        && compute_capability != 90
    {
        println!("wgmma needs compute capability 9.0, this is {compute_capability}");
        return 77.into();
    }
    let report = Suite::new(profile)
        .with(Registered::new(Backend::new(Reference)))
        .with(Registered::new(Backend::resident(cuda)).tiles(&[tile], &[tile]).spreads(&[3, 43]))
        .run();
    println!("{report}");
    u8::from(!report.passed()).into()
}
