//! The CUDA backend of exact-fp4: for now, finding out what devices there are.
//!
//! It builds with no CUDA installed: the driver library is loaded at run time, if it is there.
//! [`devices`] lists what the driver reports; [`open`] answers with a backend for a device or with
//! the reason why there is none. **There are no kernels yet**, so today `open` always answers with
//! a reason, [`Unsupported::NotImplemented`] where a usable device exists; routing then falls back to
//! a CPU backend with the same bits. Device detection itself has not yet been run on hardware.
//!
//! ```
//! match fp4_backend_cuda::open(0) {
//!     Ok(backend) => println!("using {}", backend.name()),
//!     Err(reason) => println!("no CUDA backend: {reason}"),
//! }
//! ```

mod driver;

use fp4_core::Unsupported;
use fp4_core::backend::erased::Backend;

pub use driver::{Device, MIN_COMPUTE_CAPABILITY, MIN_DRIVER_VERSION, devices};

/// The backend's name in routing and reports.
pub const NAME: &str = "cuda";

/// The backend on the device with this index, in the driver's order.
///
/// # Errors
/// The reason why there is none: no driver library, no device with that index, a driver or a
/// device that is too old, or no kernels yet.
pub fn open(index: usize) -> Result<Backend, Unsupported> {
    check(&devices()?, index)?;
    Err(Unsupported::NotImplemented)
}

/// Checks that the device with this index exists and is new enough.
fn check(devices: &[Device], index: usize) -> Result<&Device, Unsupported> {
    let device = devices.get(index).ok_or(Unsupported::NoDevice)?;
    if device.compute_capability < MIN_COMPUTE_CAPABILITY {
        return Err(Unsupported::DeviceTooOld {
            found: device.compute_capability,
            needed: MIN_COMPUTE_CAPABILITY,
        });
    }
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(compute_capability: i32) -> Device {
        Device { name: "test".into(), compute_capability }
    }

    #[test]
    fn old_and_missing_devices_are_refused_with_the_reason() {
        assert_eq!(check(&[], 0).unwrap_err(), Unsupported::NoDevice);
        let two = [device(75), device(90)];
        assert_eq!(
            check(&two, 0).unwrap_err(),
            Unsupported::DeviceTooOld { found: 75, needed: 80 }
        );
        assert_eq!(check(&two, 1).unwrap().compute_capability, 90);
        assert_eq!(check(&two, 2).unwrap_err(), Unsupported::NoDevice);
    }

    #[test]
    fn opening_never_panics_and_gives_a_reason() {
        // Whatever this machine has: no driver, no device, or a device without kernels.
        let reason = open(0).expect_err("there are no kernels yet");
        match devices() {
            Err(why) => assert_eq!(reason, why),
            Ok(found) if found.is_empty() => assert_eq!(reason, Unsupported::NoDevice),
            Ok(_) => assert!(matches!(
                reason,
                Unsupported::NotImplemented | Unsupported::DeviceTooOld { .. }
            )),
        }
        assert!(!reason.to_string().is_empty());
        assert_eq!(open(usize::MAX).unwrap_err(), devices().err().unwrap_or(Unsupported::NoDevice));
    }
}
