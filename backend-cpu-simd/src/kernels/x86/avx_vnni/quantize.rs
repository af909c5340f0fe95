//! The quantizer: that of AVX2, since no dot product is in it.

use super::AvxVnni;
use crate::kernels::x86::avx2::Avx2Encoder;

impl AvxVnni {
    /// The quantizer, for ties to even.
    pub(crate) fn encoder(self) -> Avx2Encoder {
        self.0.encoder()
    }
}
