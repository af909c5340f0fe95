//! What the CUDA driver on this machine reports.
//!
//! cudarc panics where it cannot load the driver library, so the library's presence is asked first;
//! after that every call answers with a result.
//!
//! ```text
//! library present? -> cuInit -> cuDriverGetVersion -> cuDeviceGetCount -> name, capability of each
//!       NoDriver      NoDevice     DriverTooOld             NoDevice
//! ```

use cudarc::driver::{result, sys};
use fp4_core::Unsupported;

use super::reason::{DriverVersion, Reason};

/// The oldest driver that can load the kernels: CUDA 12.0.
///
/// It takes the prebuilt PTX, which declares PTX ISA 8.0, and machine code made by an NVRTC of its
/// own major version or an older one. Every driver call that this crate makes exists in 12.0.
pub const MIN_DRIVER_VERSION: DriverVersion = DriverVersion::from_number(12_000);
/// The oldest device with int8 `mma.sync` of the shape that the kernels use, as 10 * major + minor.
pub const MIN_COMPUTE_CAPABILITY: i32 = 80;

/// One CUDA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The device's name, as the driver gives it.
    pub name: String,
    /// Compute capability as 10 * major + minor.
    pub compute_capability: i32,
}

/// The driver's version, once it has started.
///
/// # Errors
/// [`Unsupported::NoDriver`] without a driver library, [`Unsupported::NoDevice`] if the driver does
/// not start, [`Unsupported::DriverTooOld`].
fn version() -> Result<DriverVersion, Unsupported> {
    // SAFETY: only loads and unloads the system's driver library by its well-known name.
    if !unsafe { sys::is_culib_present() } {
        return Err(Unsupported::NoDriver);
    }
    let no_device = |_| Unsupported::NoDevice;
    // Without a device the driver's own start fails; both mean the same to a caller.
    result::init().map_err(no_device)?;
    let mut version = 0;
    // SAFETY: the driver library is present, and the argument points to an int, as the call wants.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(no_device)?;
    let version = DriverVersion::from_number(version);
    if version < MIN_DRIVER_VERSION {
        return Err(Reason::DriverTooOld { found: version, needed: MIN_DRIVER_VERSION }.into());
    }
    Ok(version)
}

/// The devices that the driver reports, in its order.
///
/// # Errors
/// [`Unsupported::NoDriver`] without a driver library, [`Unsupported::NoDevice`] if the driver does
/// not start or reports none, [`Unsupported::DriverTooOld`].
pub fn devices() -> Result<Vec<Device>, Unsupported> {
    version()?;
    let no_device = |_| Unsupported::NoDevice;
    let count = result::device::get_count().map_err(no_device)?;
    (0..count).map(|ordinal| describe(ordinal).map_err(no_device)).collect()
}

/// The driver's version and the device with this index, in its order.
///
/// # Errors
/// As [`devices`]; [`Unsupported::NoDevice`] without a device of that index,
/// [`Unsupported::DeviceTooOld`].
pub fn device(index: usize) -> Result<(DriverVersion, Device), Unsupported> {
    Ok((version()?, check(&devices()?, index)?.clone()))
}

fn describe(ordinal: i32) -> Result<Device, result::DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(ordinal)?;
    // SAFETY: `device` is a valid handle, just returned by the driver.
    let attribute = |a| unsafe { result::device::get_attribute(device, a) };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Device { name: result::device::get_name(device)?, compute_capability: 10 * major + minor })
}

/// Checks that the device with this index exists and is new enough.
fn check(devices: &[Device], index: usize) -> Result<&Device, Unsupported> {
    let device = devices.get(index).ok_or(Unsupported::NoDevice)?;
    if device.compute_capability < MIN_COMPUTE_CAPABILITY {
        let (found, needed) = (device.compute_capability, MIN_COMPUTE_CAPABILITY);
        return Err(Reason::DeviceTooOld { found, needed }.into());
    }
    Ok(device)
}

#[cfg(test)]
mod tests {
    use fp4_core::Version;

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
            Unsupported::DeviceTooOld {
                found: Version { major: 7, minor: 5 },
                needed: Version { major: 8, minor: 0 },
            }
        );
        assert_eq!(check(&two, 1).unwrap().compute_capability, 90);
        assert_eq!(check(&two, 2).unwrap_err(), Unsupported::NoDevice);
    }
}
