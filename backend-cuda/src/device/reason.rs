//! Why this backend cannot do something, with CUDA's numbers read as what they mean.

use std::fmt;

use fp4_core::{Error, Unsupported, Version};

/// A version of CUDA: the driver gives it as 1000 * major + 10 * minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriverVersion(i32);

impl DriverVersion {
    /// From the driver's number.
    pub const fn from_number(number: i32) -> Self {
        DriverVersion(number)
    }

    /// The driver's number.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// The major version: a driver loads machine code of its own major version and of older ones.
    pub const fn major(self) -> i32 {
        self.0 / 1000
    }

    /// The minor version.
    pub const fn minor(self) -> i32 {
        self.0 % 1000 / 10
    }
}

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

/// A reason of this backend's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    DriverTooOld { found: DriverVersion, needed: DriverVersion },
    DeviceTooOld { found: i32, needed: i32 },
    DoesNotStart,
    NeedsHopper,
    DimensionTooLarge,
    GridTooLarge,
    CannotBeCaptured,
    CapturedElsewhere,
    CaptureUnderWay,
}

impl From<Reason> for Unsupported {
    fn from(reason: Reason) -> Self {
        Unsupported::Other(match reason {
            Reason::DriverTooOld { found, needed } => {
                let [found, needed] = [found, needed]
                    .map(|version| Version { major: version.major(), minor: version.minor() });
                return Unsupported::DriverTooOld { found, needed };
            }
            Reason::DeviceTooOld { found, needed } => {
                // The backend counts compute capabilities as 10 * major + minor.
                let [found, needed] = [found, needed]
                    .map(|number| Version { major: number / 10, minor: number % 10 });
                return Unsupported::DeviceTooOld { found, needed };
            }
            Reason::DoesNotStart => "the CUDA device does not start; see the log",
            Reason::NeedsHopper => "wgmma needs a device of compute capability 9.0",
            Reason::DimensionTooLarge => "a dimension of 2^31 - 128 or more; split it",
            Reason::GridTooLarge => "a grid of too many thread blocks; split M",
            Reason::CannotBeCaptured => {
                "allocating, another shape for an operand, loading a kernel, waiting, replaying or \
                 copying to or from the host while a graph is captured; run the same calls once \
                 before the capture, on tensors, and take an operand for each shape"
            }
            Reason::CapturedElsewhere => {
                "another thread captures a graph on this device; try again when it is done"
            }
            Reason::CaptureUnderWay => {
                "a capture is under way on this device; begin the next when it has ended"
            }
        })
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Error::Unsupported(reason.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_s_number_reads_as_its_version() {
        let version = DriverVersion::from_number(12_040);
        assert_eq!((version.major(), version.minor(), version.number()), (12, 4, 12_040));
        assert_eq!(version.to_string(), "12.4");
        assert!(version < DriverVersion::from_number(13_000));
    }
}
