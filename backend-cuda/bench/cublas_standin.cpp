// A stand-in for libcublas with the three functions that peers.py calls, on memory that the host can read: the
// emulator's. It shows that the arguments mean what they should; nothing here says anything about cuBLAS.
#include <cstdint>
#include <cstring>

namespace {

float widen(std::uint16_t bits) {
    std::uint32_t wide = std::uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

std::uint16_t narrow(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

} // namespace

extern "C" {

int cublasCreate_v2(void** handle) {
    static int one;
    *handle = &one;
    return 0;
}

int cublasDestroy_v2(void*) { return 0; }

// C = alpha op(A) op(B) + beta C, column-major; bf16 in and out, sums in f32.
int cublasGemmEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
                 int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type, int ldc,
                 int compute, int algorithm) {
    constexpr int bf16 = 14, compute_32f = 68, default_algorithm = -1, invalid = 7;
    if (!handle || a_type != bf16 || b_type != bf16 || c_type != bf16 || compute != compute_32f || algorithm != default_algorithm)
        return invalid;
    float scale, keep;
    std::memcpy(&scale, alpha, 4);
    std::memcpy(&keep, beta, 4);
    if (lda < (transpose_a ? k : m) || ldb < (transpose_b ? n : k) || ldc < m) return invalid;
    auto *left = static_cast<const std::uint16_t*>(a), *right = static_cast<const std::uint16_t*>(b);
    auto* out = static_cast<std::uint16_t*>(c);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            float sum = 0;
            for (int l = 0; l < k; l++)
                sum += widen(left[transpose_a ? l + i * lda : i + l * lda]) * widen(right[transpose_b ? j + l * ldb : l + j * ldb]);
            std::uint16_t& cell = out[i + j * ldc];
            cell = narrow(scale * sum + (keep != 0 ? keep * widen(cell) : 0));
        }
    return 0;
}
}
