// A stand-in for libcublas with the functions that peers.py calls, on memory that the host can
// read: the emulator's. A product is queued on the handle's stream as a host function, so that a
// capture records it. It shows that the arguments mean what they should; nothing here says anything
// about cuBLAS.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <dlfcn.h>

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

struct Product {
    bool transpose_a, transpose_b;
    int m, n, k, lda, ldb, ldc;
    float scale, keep;
    const std::uint16_t *left, *right;
    std::uint16_t* out;
};

// C = scale op(A) op(B) + keep C, column-major; bf16 in and out, sums in f32.
void run(void* product) {
    const Product& p = *static_cast<const Product*>(product);
    for (int i = 0; i < p.m; i++)
        for (int j = 0; j < p.n; j++) {
            float sum = 0;
            for (int l = 0; l < p.k; l++)
                sum += widen(p.left[p.transpose_a ? l + i * p.lda : i + l * p.lda]) *
                       widen(p.right[p.transpose_b ? j + l * p.ldb : l + j * p.ldb]);
            std::uint16_t& cell = p.out[i + j * p.ldc];
            cell = narrow(p.scale * sum + (p.keep != 0 ? p.keep * widen(cell) : 0));
        }
}

struct Handle {
    void* stream = nullptr;
    bool workspace = false;
    std::deque<Product> queued; // graphs hold their addresses
} the_handle;

constexpr int not_initialized = 1, invalid = 7, failed = 13;

} // namespace

extern "C" {

int cublasCreate_v2(void** handle) {
    *handle = &the_handle;
    return 0;
}

int cublasDestroy_v2(void*) { return 0; }

// As cuBLAS does, this takes a workspace of the user's away.
int cublasSetStream_v2(void* handle, void* stream) {
    if (handle != &the_handle) return not_initialized;
    the_handle.stream = stream;
    the_handle.workspace = false;
    return 0;
}

int cublasSetWorkspace_v2(void* handle, void* workspace, std::size_t bytes) {
    if (handle != &the_handle) return not_initialized;
    if (!workspace || reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0 || bytes == 0) return invalid;
    the_handle.workspace = true;
    return 0;
}

int cublasGemmEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
                 int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type, int ldc,
                 int compute, int algorithm) {
    constexpr int bf16 = 14, compute_32f = 68, default_algorithm = -1;
    if (handle != &the_handle) return not_initialized;
    if (a_type != bf16 || b_type != bf16 || c_type != bf16 || compute != compute_32f || algorithm != default_algorithm)
        return invalid;
    // The default stream cannot be captured, nor an allocation of cuBLAS's own be recorded.
    if (!the_handle.stream || !the_handle.workspace) return invalid;
    if (lda < (transpose_a ? k : m) || ldb < (transpose_b ? n : k) || ldc < m) return invalid;
    float scale, keep;
    std::memcpy(&scale, alpha, 4);
    std::memcpy(&keep, beta, 4);
    auto *left = static_cast<const std::uint16_t*>(a), *right = static_cast<const std::uint16_t*>(b);
    the_handle.queued.push_back({transpose_a != 0, transpose_b != 0, m, n, k, lda, ldb, ldc, scale, keep, left, right,
                                 static_cast<std::uint16_t*>(c)});
    using Launch = int (*)(void* stream, void (*function)(void*), void* data);
    static void* driver = dlopen("libcuda.so.1", RTLD_NOW);
    static auto launch = driver ? reinterpret_cast<Launch>(dlsym(driver, "cuLaunchHostFunc")) : nullptr;
    return launch && launch(the_handle.stream, run, &the_handle.queued.back()) == 0 ? 0 : failed;
}
}
