//! Writes `prebuilt/*.ptx` anew from `kernels/`. Needs NVRTC 12.0 (`pip install
//! nvidia-cuda-nvrtc-cu12==12.0.140` and its folder, `nvidia/cuda_nvrtc/lib`, in `LD_LIBRARY_PATH`;
//! why so old, `src/build/prebuilt.rs` says), and no GPU. Run it after every change of a kernel or
//! header, from the root of the workspace:
//!
//! ```sh
//! cargo run --release -p fp4-backend-cuda --example prebuild
//! ```

use std::path::Path;

fn main() -> Result<(), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("prebuilt");
    for (name, text) in fp4_backend_cuda::prebuild()? {
        let path = folder.join(&name);
        std::fs::write(&path, &text).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("{name}: {} bytes", text.len());
    }
    Ok(())
}
