//! Writes `prebuilt/*.ptx` anew from `kernels/`. Needs NVRTC 13.0 (`pip install
//! nvidia-cuda-nvrtc==13.0.88` and its folder in `LD_LIBRARY_PATH`), and no GPU. Run it after every
//! change of a kernel or header, from the root of the workspace:
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
