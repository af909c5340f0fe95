// The emulator's face of kernels/device.cuh: CUDA's keywords, built-in variables, intrinsics and
// the project's primitives as host C++. Included by kernels only.
#pragma once

#include "block.hpp"
#include "operations.hpp"
#include "registry.hpp"

#include <cmath>
#include <cstring>

#ifndef FP4_SM
#define FP4_SM 90
#endif

// ---- keywords ----

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __restrict__ __restrict

#define KERNEL extern "C"
#define KERNEL_BOUNDS(threads, min_blocks) extern "C"
#define CLUSTER_KERNEL(threads, blocks) extern "C"
#define EXPORT_CLUSTER(name, blocks) static const emulator::Registration fp4_export_##name(#name, &name, blocks);
#define EXPORT(name) static const emulator::Registration fp4_export_##name(#name, &name);
#define DEVICE static inline __attribute__((always_inline))
// The block's array for this place in the source.
#define SHARED(type, name, count)                                                                     \
    static const char fp4_site_##name = 0;                                                            \
    type(&name) count = *reinterpret_cast<type(*) count>(                                             \
        emulator::block->static_shared(&fp4_site_##name, sizeof(type count), alignof(type) > 16 ? alignof(type) : 16))

DEVICE unsigned char* dynamic_shared() { return emulator::block->shared; }
DEVICE unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(static_cast<const unsigned char*>(pointer) - emulator::block->shared);
}

// ---- built-in types and variables ----

#define FP4_VECTOR(base, name, bytes2, bytes4)                                                        \
    struct name##1 {                                                                                  \
        base x;                                                                                       \
    };                                                                                                \
    struct alignas(bytes2) name##2 {                                                                  \
        base x, y;                                                                                    \
    };                                                                                                \
    struct name##3 {                                                                                  \
        base x, y, z;                                                                                 \
    };                                                                                                \
    struct alignas(bytes4) name##4 {                                                                  \
        base x, y, z, w;                                                                              \
    };                                                                                                \
    inline name##2 make_##name##2(base x, base y) { return {x, y}; }                                  \
    inline name##3 make_##name##3(base x, base y, base z) { return {x, y, z}; }                       \
    inline name##4 make_##name##4(base x, base y, base z, base w) { return {x, y, z, w}; }
FP4_VECTOR(signed char, char, 2, 4)
FP4_VECTOR(unsigned char, uchar, 2, 4)
FP4_VECTOR(short, short, 4, 8)
FP4_VECTOR(unsigned short, ushort, 4, 8)
FP4_VECTOR(int, int, 8, 16)
FP4_VECTOR(unsigned, uint, 8, 16)
FP4_VECTOR(float, float, 8, 16)
FP4_VECTOR(long long, longlong, 16, 16)
FP4_VECTOR(unsigned long long, ulonglong, 16, 16)
FP4_VECTOR(double, double, 16, 16)
#undef FP4_VECTOR

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block->index)
#define blockDim (emulator::block->launch->block)
#define gridDim (emulator::block->launch->grid)
#define warpSize 32

// ---- IEEE arithmetic; the build forbids contraction ----

DEVICE float __fadd_rn(float a, float b) { return a + b; }
DEVICE float __fsub_rn(float a, float b) { return a - b; }
DEVICE float __fmul_rn(float a, float b) { return a * b; }
// Rounded up. The product is exact as a double, or so small that its sign is all that counts.
DEVICE float __fmul_ru(float a, float b) {
    double exact = static_cast<double>(a) * b;
    auto nearest = static_cast<float>(exact);
    return static_cast<double>(nearest) < exact ? __builtin_nextafterf(nearest, __builtin_inff()) : nearest;
}
DEVICE float __fdiv_rn(float a, float b) { return a / b; }
DEVICE float __frcp_rn(float a) { return 1.0f / a; }
DEVICE float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
DEVICE float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE double __dadd_rn(double a, double b) { return a + b; }
DEVICE double __dsub_rn(double a, double b) { return a - b; }
DEVICE double __dmul_rn(double a, double b) { return a * b; }
DEVICE double __ddiv_rn(double a, double b) { return a / b; }
DEVICE double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }

DEVICE float __int2float_rn(int a) { return static_cast<float>(a); }
DEVICE float __uint2float_rn(unsigned a) { return static_cast<float>(a); }
DEVICE float __ll2float_rn(long long a) { return static_cast<float>(a); }
DEVICE float __ull2float_rn(unsigned long long a) { return static_cast<float>(a); }
DEVICE double __int2double_rn(int a) { return a; }
DEVICE double __ll2double_rn(long long a) { return static_cast<double>(a); }
DEVICE float __double2float_rn(double a) { return static_cast<float>(a); }
// To integers: toward zero, out of range to the nearest end, NaN to 0, as the device does.
DEVICE int __float2int_rz(float a) {
    return a != a ? 0 : a >= 0x1p31f ? 0x7FFFFFFF : a <= -0x1p31f ? -0x7FFFFFFF - 1 : static_cast<int>(a);
}
DEVICE unsigned __float2uint_rz(float a) {
    return !(a > 0.0f) ? 0 : a >= 0x1p32f ? 0xFFFFFFFFu : static_cast<unsigned>(a);
}
DEVICE int __float2int_rn(float a) { return __float2int_rz(__builtin_nearbyintf(a)); }

template <class To, class From>
DEVICE To fp4_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    std::memcpy(&to, &value, sizeof to);
    return to;
}
DEVICE unsigned __float_as_uint(float a) { return fp4_bits<unsigned>(a); }
DEVICE int __float_as_int(float a) { return fp4_bits<int>(a); }
DEVICE float __uint_as_float(unsigned a) { return fp4_bits<float>(a); }
DEVICE float __int_as_float(int a) { return fp4_bits<float>(a); }
DEVICE long long __double_as_longlong(double a) { return fp4_bits<long long>(a); }
DEVICE double __longlong_as_double(long long a) { return fp4_bits<double>(a); }

// ---- integers ----

template <class T>
DEVICE T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
DEVICE T max(T a, T b) {
    return a < b ? b : a;
}
DEVICE int __clz(int a) { return a ? __builtin_clz(static_cast<unsigned>(a)) : 32; }
DEVICE int __clzll(long long a) { return a ? __builtin_clzll(static_cast<unsigned long long>(a)) : 64; }
DEVICE int __ffs(int a) { return __builtin_ffs(a); }
DEVICE int __ffsll(long long a) { return __builtin_ffsll(a); }
DEVICE int __popc(unsigned a) { return __builtin_popcount(a); }
DEVICE int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
DEVICE unsigned __brev(unsigned a) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (a >> i & 1) << (31 - i);
    return r;
}
DEVICE int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
DEVICE unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
DEVICE long long __mul64hi(long long a, long long b) {
    return static_cast<long long>(static_cast<__int128>(a) * b >> 64);
}
DEVICE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
DEVICE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) << (shift & 31) >> 32);
}
DEVICE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31));
}
// A selector nibble picks one of the eight bytes of (high, low); its bit 3 spreads that byte's
// sign.
DEVICE unsigned permute_bytes(unsigned low, unsigned high, unsigned selector) {
    unsigned long long bytes = static_cast<unsigned long long>(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = selector >> 4 * i & 0xF;
        unsigned byte = static_cast<unsigned>(bytes >> 8 * (pick & 7)) & 0xFF;
        if (pick & 8) byte = byte & 0x80 ? 0xFF : 0;
        result |= byte << 8 * i;
    }
    return result;
}
// A selector nibble picks one of the eight bytes of (b, a); unlike in PRMT itself, its bit 3 means
// nothing.
DEVICE unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long long bytes = static_cast<unsigned long long>(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = selector >> 4 * i & 7;
        result |= (static_cast<unsigned>(bytes >> 8 * pick) & 0xFF) << 8 * i;
    }
    return result;
}
DEVICE int dot_bytes(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += static_cast<signed char>(a >> 8 * i) * static_cast<signed char>(b >> 8 * i);
    return c;
}
DEVICE unsigned __vadd4(unsigned a, unsigned b) {
    return ((a & 0x7F7F7F7Fu) + (b & 0x7F7F7F7Fu)) ^ ((a ^ b) & 0x80808080u);
}
DEVICE unsigned __vsub4(unsigned a, unsigned b) {
    return ((a | 0x80808080u) - (b & 0x7F7F7F7Fu)) ^ ((a ^ ~b) & 0x80808080u);
}

// ---- memory ----

template <class T>
DEVICE T __ldg(const T* pointer) {
    return *pointer;
}
template <class T>
DEVICE T __ldcs(const T* pointer) {
    return *pointer;
}
template <class T>
DEVICE void __stcs(T* pointer, T value) {
    *pointer = value;
}
DEVICE void __threadfence() {}
DEVICE void __threadfence_block() {}
DEVICE void __nanosleep(unsigned) {}

#define FP4_ATOMIC(name, expression)                                                                  \
    template <class T>                                                                                \
    DEVICE T name(T* pointer, T value) {                                                              \
        T old = *pointer;                                                                             \
        *pointer = expression;                                                                        \
        return old;                                                                                   \
    }
FP4_ATOMIC(atomicAdd, static_cast<T>(old + value))
FP4_ATOMIC(atomicSub, static_cast<T>(old - value))
FP4_ATOMIC(atomicOr, static_cast<T>(old | value))
FP4_ATOMIC(atomicAnd, static_cast<T>(old & value))
FP4_ATOMIC(atomicXor, static_cast<T>(old ^ value))
FP4_ATOMIC(atomicMin, (value < old ? value : old))
FP4_ATOMIC(atomicMax, (value > old ? value : old))
FP4_ATOMIC(atomicExch, value)
#undef FP4_ATOMIC
// As the device's: literals of another type convert to the pointer's.
DEVICE int atomicAdd(int* p, int v) { return atomicAdd<int>(p, v); }
DEVICE unsigned atomicAdd(unsigned* p, unsigned v) { return atomicAdd<unsigned>(p, v); }
DEVICE unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) {
    return atomicAdd<unsigned long long>(p, v);
}
DEVICE void reduce_add(int* to, int value) { atomicAdd<int>(to, value); }
DEVICE unsigned atomicOr(unsigned* p, unsigned v) { return atomicOr<unsigned>(p, v); }
DEVICE unsigned atomicMax(unsigned* p, unsigned v) { return atomicMax<unsigned>(p, v); }
DEVICE unsigned atomicMin(unsigned* p, unsigned v) { return atomicMin<unsigned>(p, v); }
DEVICE unsigned atomicExch(unsigned* p, unsigned v) { return atomicExch<unsigned>(p, v); }
template <class T>
DEVICE T atomicCAS(T* pointer, T expected, T value) {
    T old = *pointer;
    if (old == expected) *pointer = value;
    return old;
}

// ---- threads ----

DEVICE void __syncthreads() { emulator::barrier_sync(0, 0); }
DEVICE void __syncwarp(unsigned mask = ~0u) { emulator::sync_warp(mask); }
DEVICE void named_barrier_sync(int id, int threads) { emulator::barrier_sync(id, threads); }
DEVICE void named_barrier_arrive(int id, int threads) { emulator::barrier_arrive(id, threads); }
DEVICE unsigned __activemask() { return emulator::current->warp->alive; }

template <class T>
DEVICE T fp4_shuffle(unsigned mask, T value, emulator::Shuffle kind, unsigned argument, int width) {
    static_assert(sizeof(T) <= 8, "a shuffle moves up to eight bytes");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = emulator::shuffle(mask, bits, kind, argument, static_cast<unsigned>(width));
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T>
DEVICE T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return fp4_shuffle(mask, value, emulator::Shuffle::Index, static_cast<unsigned>(lane), width);
}
template <class T>
DEVICE T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    return fp4_shuffle(mask, value, emulator::Shuffle::Xor, static_cast<unsigned>(lanes), width);
}
template <class T>
DEVICE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return fp4_shuffle(mask, value, emulator::Shuffle::Down, delta, width);
}
template <class T>
DEVICE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return fp4_shuffle(mask, value, emulator::Shuffle::Up, delta, width);
}
DEVICE unsigned __ballot_sync(unsigned mask, int predicate) { return emulator::ballot(mask, predicate != 0); }
DEVICE int __any_sync(unsigned mask, int predicate) { return emulator::ballot(mask, predicate != 0) != 0; }
DEVICE int __all_sync(unsigned mask, int predicate) { return emulator::ballot(mask, predicate != 0) == mask; }
template <class T>
DEVICE unsigned __match_any_sync(unsigned mask, T value) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return emulator::match_any(mask, bits);
}
#define FP4_REDUCE(name, type, kind)                                                                  \
    DEVICE type name(unsigned mask, type value) {                                                     \
        return static_cast<type>(emulator::reduce(mask, static_cast<unsigned>(value), emulator::Reduce::kind)); \
    }
FP4_REDUCE(__reduce_add_sync, unsigned, Add)
FP4_REDUCE(__reduce_add_sync, int, AddSigned)
FP4_REDUCE(__reduce_min_sync, unsigned, Min)
FP4_REDUCE(__reduce_min_sync, int, MinSigned)
FP4_REDUCE(__reduce_max_sync, unsigned, Max)
FP4_REDUCE(__reduce_max_sync, int, MaxSigned)
FP4_REDUCE(__reduce_and_sync, unsigned, And)
FP4_REDUCE(__reduce_or_sync, unsigned, Or)
FP4_REDUCE(__reduce_xor_sync, unsigned, Xor)
#undef FP4_REDUCE
DEVICE int __syncthreads_or(int predicate) = delete; // not emulated
DEVICE int __syncthreads_and(int predicate) = delete;
DEVICE int __syncthreads_count(int predicate) = delete;

// ---- tensor cores and copies ----

DEVICE void mma_m16n8k32_s8s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulator::mma(d, a, b, 32, false);
}
DEVICE void mma_m16n8k32_u8s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulator::mma(d, a, b, 32, true);
}
DEVICE void mma_m16n8k16_s8s8(int (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1]) {
    emulator::mma(d, a, b, 16, false);
}
DEVICE void mma_m16n8k16_u8s8(int (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1]) {
    emulator::mma(d, a, b, 16, true);
}
DEVICE void ldmatrix_x4(unsigned (&r)[4], const void* smem_row) { emulator::ldmatrix(r, smem_row, 4, false); }
DEVICE void ldmatrix_x2(unsigned (&r)[2], const void* smem_row) { emulator::ldmatrix(r, smem_row, 2, false); }
DEVICE void ldmatrix_x4_trans(unsigned (&r)[4], const void* smem_row) { emulator::ldmatrix(r, smem_row, 4, true); }

DEVICE void cp_async_16(void* smem, const void* global, bool valid) { emulator::cp_async(smem, global, 16, valid); }
template <int BYTES>
DEVICE void cp_async_small(void* smem, const void* global, bool valid) {
    static_assert(BYTES == 4 || BYTES == 8, "");
    emulator::cp_async(smem, global, BYTES, valid);
}
DEVICE void cp_async_commit() { emulator::cp_async_commit(); }
template <int N>
DEVICE void cp_async_wait() {
    emulator::cp_async_wait(N);
}

// Two f32 as 16-bit floats, nearest, ties to even; NaN is 0x7FFF.
DEVICE unsigned fp4_narrow_f16(float x) {
    unsigned bits = fp4_bits<unsigned>(x), magnitude = bits & 0x7FFFFFFFu, sign = bits >> 16 & 0x8000u;
    if (magnitude > 0x7F800000u) return 0x7FFFu;
    double units = static_cast<double>(fp4_bits<float>(magnitude));
    if (units >= 65520.0) return sign | 0x7C00u; // the tie of the largest and 2^16 goes up
    if (units == 0.0) return sign;
    int exponent = 0;
    std::frexp(units, &exponent); // units < 2^exponent
    int last = exponent - 11 > -24 ? exponent - 11 : -24;
    double kept = std::nearbyint(std::ldexp(units, -last)); // exact but for the rounding
    unsigned whole = static_cast<unsigned>(kept);
    // The implicit bit moves the exponent field by one, and so does a carry.
    return sign | (static_cast<unsigned>(last + 24) * 1024u + whole);
}
DEVICE unsigned fp4_narrow_bf16(float x) {
    unsigned bits = fp4_bits<unsigned>(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFu;
    unsigned rest = bits & 0xFFFFu, kept = bits >> 16;
    return kept + (rest > 0x8000u || (rest == 0x8000u && (kept & 1u)) ? 1u : 0u);
}
DEVICE unsigned pack_f16x2(float low, float high) { return fp4_narrow_f16(low) | fp4_narrow_f16(high) << 16; }
DEVICE unsigned pack_bf16x2(float low, float high) { return fp4_narrow_bf16(low) | fp4_narrow_bf16(high) << 16; }

DEVICE int thread_here() { return static_cast<int>(threadIdx.x); }
DEVICE bool elect_lane() { return emulator::current->lane == 0; }
DEVICE void mbarrier_init(void* mbarrier, unsigned count) { emulator::mbarrier_init(mbarrier, count); }
DEVICE void mbarrier_arrive(void* mbarrier) { emulator::mbarrier_arrive(mbarrier, 0); }
DEVICE void mbarrier_arrive(void* mbarrier, unsigned count) { emulator::mbarrier_arrive(mbarrier, 0, count); }
DEVICE void mbarrier_arrive_in(void* mbarrier, unsigned rank) { emulator::mbarrier_arrive_in(mbarrier, rank); }
DEVICE unsigned cluster_rank() { return emulator::block->rank(); }
DEVICE void fence_mbarrier_init() {}
DEVICE void cluster_arrive() { emulator::block->cluster_arrive(); }
DEVICE void cluster_wait() { emulator::block->cluster_wait(); }
DEVICE void mbarrier_arrive_expect_tx(void* mbarrier, unsigned bytes) { emulator::mbarrier_arrive(mbarrier, bytes); }
DEVICE bool mbarrier_try_wait(void* mbarrier, unsigned parity) { return emulator::mbarrier_try_wait(mbarrier, parity); }
DEVICE void mbarrier_wait(void* mbarrier, unsigned parity) { emulator::mbarrier_try_wait(mbarrier, parity); }
DEVICE void bulk_copy_g2s(void* smem, const void* global, unsigned bytes, void* mbarrier) {
    emulator::bulk_copy_g2s(smem, global, bytes, mbarrier);
}
DEVICE void bulk_copy_multicast(void* smem, const void* global, unsigned bytes, void* mbarrier, unsigned short ranks) {
    emulator::bulk_copy_multicast(smem, global, bytes, mbarrier, ranks);
}
DEVICE void fence_proxy_async() {}

enum Swizzle : unsigned { SWIZZLE_NONE = 0, SWIZZLE_128B = 1, SWIZZLE_64B = 2, SWIZZLE_32B = 3 };

DEVICE unsigned long long smem_descriptor(const void* tile, unsigned lead_bytes, unsigned stride_bytes, Swizzle swizzle) {
    return emulator::smem_descriptor(tile, lead_bytes, stride_bytes, swizzle);
}
DEVICE void wgmma_fence() { emulator::wgmma_fence(); }
DEVICE void wgmma_commit() { emulator::wgmma_commit(); }
template <int N>
DEVICE void wgmma_wait() {
    emulator::wgmma_wait(N);
}
template <class T, int R>
DEVICE void wgmma_pin(T (&d)[R]) {
    asm volatile("" : : "r"(d) : "memory");
}
template <int N, int R>
DEVICE void wgmma_wait(int (&)[R]) {
    emulator::wgmma_wait(N);
}
template <int N>
DEVICE void wgmma_s8(int (&d)[N / 2], unsigned long long a, unsigned long long b, int add = 1) {
    emulator::wgmma_issue(d, N, false, nullptr, a, b, add != 0);
}
template <int N>
DEVICE void wgmma_s8(int (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, int add = 1) {
    emulator::wgmma_issue(d, N, false, a, 0, b, add != 0);
}
template <int N>
DEVICE void wgmma_u8(int (&d)[N / 2], unsigned long long a, unsigned long long b, int add = 1) {
    emulator::wgmma_issue(d, N, true, nullptr, a, b, add != 0);
}
template <int N>
DEVICE void wgmma_u8(int (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, int add = 1) {
    emulator::wgmma_issue(d, N, true, a, 0, b, add != 0);
}
template <int N>
DEVICE void setmaxnreg_inc() {}
template <int N>
DEVICE void setmaxnreg_dec() {}
