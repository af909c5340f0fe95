// Every primitive that the kernels use, under one set of names with two faces:
//
//   NVRTC         inline PTX for the GPU; the only file of the kernels that holds any
//   FP4_EMULATOR  host versions from ../emulator/, so that g++ builds the same sources as C++17
//
// A kernel file looks like this:
//
//   #include "device.cuh"
//   KERNEL void scale(const float* x, float* y, int n) { ... }
//   EXPORT(scale)
//
// KERNEL_BOUNDS(threads, min_blocks) adds launch bounds. SHARED(float, tile, [32][33]); declares
// static shared memory, dynamic_shared() gives the dynamic part, aligned to 1024 bytes. FP4_SM is
// the architecture (80, 86, 89, 90, 100, 120); the Hopper part at the end exists where it is 90.
//
// Fragment layouts (PTX ISA, "Matrix Fragments for mma.m16n8k32" and "...wgmma"). lane = 4 * g + t,
// so g = lane / 4 is 0..7 and t = lane % 4 is 0..3. A register of an 8-bit operand holds four
// elements that follow each other along k, the lowest k in the lowest byte.
//
//   mma m16n8k32, A (16 x 32, row-major)          B (32 x 8, given as 8 rows of 32)
//     a[0]  row g      k = 4t + 0..3                b[0]  column g   k = 4t + 0..3
//     a[1]  row g + 8  k = 4t + 0..3                b[1]  column g   k = 4t + 16..19
//     a[2]  row g      k = 4t + 16..19
//     a[3]  row g + 8  k = 4t + 16..19
//   D (16 x 8): d[0], d[1]  row g,     columns 2t, 2t + 1
//               d[2], d[3]  row g + 8, columns 2t, 2t + 1
//   mma m16n8k16 (8-bit): a[0] row g, a[1] row g + 8, b[0] column g, all with k = 4t + 0..3.
//
//   Worked example: lane 6 has g = 1, t = 2. Its a[3] holds A[9][24..27] and its d[1] is D[1][5].
//
//   wgmma m64nNk32: a warpgroup is four warps whose first has a rank divisible by 4. Warp w of the
//   four owns rows 16w .. 16w + 15; A in registers is the m16n8k32 fragment of those rows, and
//   d[4j .. 4j + 3] is the m16n8 fragment of columns 8j .. 8j + 7.
//
// ldmatrix x4 reads four 8 x 16-byte matrices: lane 8i + r gives the address of row r of matrix i;
// afterwards r[i] holds, in lane 4g + t, bytes 4t .. 4t + 3 of row g of matrix i. That is the 8-bit
// A fragment when matrices 0..3 are (rows 0-7, k 0-15), (8-15, 0-15), (0-7, 16-31), (8-15, 16-31).
#pragma once

#ifdef FP4_EMULATOR

#include "../emulator/device.hpp"

#else

#ifndef FP4_SM
#error "define FP4_SM as the architecture that is compiled for, e.g. -DFP4_SM=90 for sm_90a"
#endif

#define KERNEL extern "C" __global__
#define KERNEL_BOUNDS(threads, min_blocks) extern "C" __global__ __launch_bounds__(threads, min_blocks)
#define EXPORT(name)
// For clusters of so many blocks along x, of which the grid is a multiple.
#define CLUSTER_KERNEL(threads, blocks) \
    extern "C" __global__ __launch_bounds__(threads, 1) __cluster_dims__(blocks, 1, 1)
#define EXPORT_CLUSTER(name, blocks)
#define SHARED(type, name, count) __shared__ __align__(16) type name count
// A function that kernels call: always inlined, private to the file that includes it.
#define DEVICE static __device__ __forceinline__

// The dynamic shared memory of the block, aligned to 1024 bytes (what the 128-byte swizzle needs).
DEVICE unsigned char* dynamic_shared() {
    extern __shared__ __align__(1024) unsigned char fp4_dynamic_shared[];
    return fp4_dynamic_shared;
}

// PRMT as it is: byte i of the result is the byte of high:low that nibble i of `selector` names in
// its low three bits, or eight times that byte's sign bit if the nibble's top bit is set.
// (__byte_perm masks that bit away.)
DEVICE unsigned permute_bytes(unsigned low, unsigned high, unsigned selector) {
    unsigned d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(low), "r"(high), "r"(selector));
    return d;
}

// c + the dot product of four signed bytes. NVRTC 12.0 to 12.2 leave __dp4a unresolved.
DEVICE int dot_bytes(int a, int b, int c) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// A generic pointer into shared memory as the 32-bit address that PTX wants.
DEVICE unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// ---- Tensor cores, every architecture since sm_80: d += a * b, in int32, no saturation ----

#define FP4_MMA_K32(name, a_type)                                                                        \
    DEVICE void name(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {                      \
        asm("mma.sync.aligned.m16n8k32.row.col.s32." a_type ".s8.s32 "                                   \
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                      \
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                             \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                         \
    }
FP4_MMA_K32(mma_m16n8k32_s8s8, "s8")
FP4_MMA_K32(mma_m16n8k32_u8s8, "u8")
#undef FP4_MMA_K32

#define FP4_MMA_K16(name, a_type)                                                                        \
    DEVICE void name(int (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1]) {                      \
        asm("mma.sync.aligned.m16n8k16.row.col.s32." a_type ".s8.s32 "                                   \
            "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"                                               \
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                             \
            : "r"(a[0]), "r"(a[1]), "r"(b[0]));                                                          \
    }
FP4_MMA_K16(mma_m16n8k16_s8s8, "s8")
FP4_MMA_K16(mma_m16n8k16_u8s8, "u8")
#undef FP4_MMA_K16

// ---- Shared memory to registers ----

// Each lane gives the 16-byte aligned address of one row; see the top for who gets what.
DEVICE void ldmatrix_x4(unsigned (&r)[4], const void* smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(smem_row))
                 : "memory");
}

// As x4 with two matrices: lanes 0..15 give the addresses, the others' are ignored.
DEVICE void ldmatrix_x2(unsigned (&r)[2], const void* smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(smem_row))
                 : "memory");
}

// As x4, each matrix of 8 x 8 16-bit elements transposed on the way.
DEVICE void ldmatrix_x4_trans(unsigned (&r)[4], const void* smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(smem_row))
                 : "memory");
}

// ---- Asynchronous copies, global to shared, per thread ----

// Writes zeros, and reads nothing, where not valid. Both addresses are 16-byte aligned.
DEVICE void cp_async_16(void* smem, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(smem)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}

// The same of 4 or 8 bytes, to which both addresses are aligned.
template <int BYTES>
DEVICE void cp_async_small(void* smem, const void* global, bool valid) {
    static_assert(BYTES == 4 || BYTES == 8, "");
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(shared_address(smem)), "l"(__cvta_generic_to_global(global)), "n"(BYTES), "r"(valid ? BYTES : 0)
                 : "memory");
}

// Closes this thread's group of copies.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// Until at most N of this thread's newest groups are under way. Other threads see the bytes only
// after a barrier that follows.
template <int N>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

// Adds to global memory and returns nothing, relaxed, as atomicAdd without its result: of that
// ptxas makes an ATOMG, which waits for an answer.
DEVICE void reduce_add(int* to, int value) {
    asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" : : "l"(__cvta_generic_to_global(to)), "r"(value) : "memory");
}

// ---- Two f32 as 16-bit floats, each rounded once; a NaN is 0x7FFF ----

DEVICE unsigned pack_f16x2(float low, float high) {
    unsigned d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
DEVICE unsigned pack_bf16x2(float low, float high) {
    unsigned d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

// ---- Barriers among part of a block ----

// Barrier `id` (1..15; 0 is __syncthreads) for `threads` threads, a multiple of 32.
DEVICE void named_barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

// Counts as one of the `threads` without waiting.
DEVICE void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

// threadIdx.x, read at this place: what follows from it takes no registers before.
DEVICE int thread_here() {
    int x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

#if FP4_SM == 90
// ---- Hopper (sm_90a): mbarriers ----
//
// An mbarrier is an aligned 8-byte word in shared memory that counts arrivals and bytes. A phase
// completes when `count` arrivals and all expected bytes are in; then the next phase begins. The
// first phase has parity 0, so a consumer's first wait is mbarrier_wait(b, 0).

// By one thread, before a fence_proxy_async() and a __syncthreads() that all users pass.
DEVICE void mbarrier_init(void* mbarrier, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(shared_address(mbarrier)), "r"(count) : "memory");
}

DEVICE void mbarrier_arrive(void* mbarrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(shared_address(mbarrier)) : "memory");
}

DEVICE void mbarrier_arrive(void* mbarrier, unsigned count) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;"
                 :
                 : "r"(shared_address(mbarrier)), "r"(count)
                 : "memory");
}

// Arrives, and makes the phase wait for `bytes` more bytes of bulk copies.
DEVICE void mbarrier_arrive_expect_tx(void* mbarrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :
                 : "r"(shared_address(mbarrier)), "r"(bytes)
                 : "memory");
}

// Whether the phase of this parity has completed; may wait a while before it says no.
DEVICE bool mbarrier_try_wait(void* mbarrier, unsigned parity) {
    unsigned done;
    asm volatile(
        "{.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(done)
        : "r"(shared_address(mbarrier)), "r"(parity)
        : "memory");
    return done != 0;
}

DEVICE void mbarrier_wait(void* mbarrier, unsigned parity) {
    while (!mbarrier_try_wait(mbarrier, parity)) {
    }
}

// ---- Hopper: clusters of blocks ----
//
// What follows from the PTX ISA, by its sections:
//   mapa                      the address, in the window shared::cluster, of the same variable in
//                             the block of a rank; shared::cta is a part of that window
//   mbarrier.arrive           on a remote mbarrier, shared::cluster, it returns no state ("_")
//   mbarrier.try_wait         on the block's own mbarriers alone
//   .sem, .scope of both      .release and .acquire, .cta, if not said
//   cp.async.bulk             .multicast::cluster: data and the mbarrier's signal go to the same
//                             CTA-relative offset in each block of the mask. expect_tx and
//                             complete_tx of a phase come in any order ("tx-count")
//   barrier.cluster           all threads of the cluster that have not exited; arrive releases and
//                             wait acquires by default
//   fence.mbarrier_init       .release.cluster: makes mbarrier.init visible to the cluster, by a
//                             barrier.cluster that follows
// A block's shared memory may be reached from outside only while the block is known to run: after a
// barrier.cluster at its start, and until one at its end.
//
// Arrivals and waits stay in the scope .cta, those of other blocks too, as CUTLASS's ClusterBarrier
// has them: they publish no ordinary write to another block, but say that reads of a slot are over.
// Scope .cluster would order all that the thread has stored: ptxas makes MEMBAR.ALL.GPU of such an
// arrival, a round trip to L2, and CCTL.IVALL of such a wait, which empties L1 (`fences.py`).

DEVICE unsigned cluster_rank() {
    unsigned rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// By the thread that initialized mbarriers, before cluster_arrive().
DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory"); }

// All threads of a cluster arrive, then wait for each other.
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" : : : "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" : : : "memory"); }

// Arrives on the mbarrier that lies at the same place in the block of this rank, and says so much:
// ordinary writes of this thread are not ordered for that block.
DEVICE void mbarrier_arrive_in(void* mbarrier, unsigned rank) {
    asm volatile(
        "{.reg .b32 a;\n"
        "mapa.shared::cluster.u32 a, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [a];}"
        :
        : "r"(shared_address(mbarrier)), "r"(rank)
        : "memory");
}

// True for one lane of a whole warp. The compiler knows it for one, and needs no loop over lanes
// for instructions that take their operands from the warp.
DEVICE bool elect_lane() {
    unsigned elected;
    asm volatile(
        "{.reg .pred p;\n"
        "elect.sync _|p, 0xFFFFFFFF;\n"
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(elected)
        :
        : "memory");
    return elected != 0;
}

// ---- Hopper: bulk copies by the copy engine, started by one thread ----

// Addresses and size are multiples of 16. The bytes count towards the mbarrier's phase.
DEVICE void bulk_copy_g2s(void* smem, const void* global, unsigned bytes, void* mbarrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :
                 : "r"(shared_address(smem)), "l"(__cvta_generic_to_global(global)), "r"(bytes),
                   "r"(shared_address(mbarrier))
                 : "memory");
}

// As bulk_copy_g2s, to the same place in every block of the cluster whose bit is in `ranks`; the
// bytes count towards the mbarrier at the same place in each.
DEVICE void bulk_copy_multicast(void* smem, const void* global, unsigned bytes, void* mbarrier, unsigned short ranks) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
        :
        : "r"(shared_address(smem)), "l"(__cvta_generic_to_global(global)), "r"(bytes),
          "r"(shared_address(mbarrier)), "h"(ranks)
        : "memory");
}

// Orders this thread's ordinary reads and writes of its block's shared memory before reads and
// writes by wgmma and bulk copies (the asynchronous proxy), another block's too. Every writer runs
// it, then a barrier, then the wgmma.
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" : : : "memory"); }

// ---- Hopper: wgmma ----
//
// Shared-memory operands are K-major: rows of A (of m) or of B (of n), k contiguous. A descriptor
// says where the 8-row x 16-byte pieces of a tile lie. With a swizzle of P = 32, 64 or 128 bytes, a
// row has a pitch of P bytes, eight rows make an atom of 8 * P bytes that starts at a multiple of
// 8 * P, and `stride_bytes` is the distance between atoms along m or n; `lead_bytes` is unused.
// Inside an atom, 16-byte chunk c of row r lies at chunk
//
//     128 bytes: c ^ r        64 bytes: c ^ (r / 2)        32 bytes: c ^ (r / 4)
//
// that is, address bits 4.. are XORed with bits 7.. . The next k = 32 of a wider row starts 32
// bytes further: add 2 (32 >> 4) to the descriptor. Without swizzle every 8 x 16-byte piece is 128
// contiguous bytes, `lead_bytes` is the distance between pieces along k and `stride_bytes` along m
// or n.
//
// Order of a batch: wgmma_fence(); wgmma...; wgmma_commit(); wgmma_wait<N>(d). Until its wait, no
// thread may touch the batch's accumulators or overwrite its shared memory.

enum Swizzle : unsigned { SWIZZLE_NONE = 0, SWIZZLE_128B = 1, SWIZZLE_64B = 2, SWIZZLE_32B = 3 };

DEVICE unsigned long long smem_descriptor(const void* tile, unsigned lead_bytes, unsigned stride_bytes, Swizzle swizzle) {
    unsigned long long address = (shared_address(tile) & 0x3FFFF) >> 4;
    unsigned long long lead = (lead_bytes & 0x3FFFF) >> 4;
    unsigned long long stride = (stride_bytes & 0x3FFFF) >> 4;
    return address | lead << 16 | stride << 32 | static_cast<unsigned long long>(swizzle) << 62;
}

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" : : : "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory"); }

// Until at most N of the newest batches are under way.
template <int N>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(N) : "memory");
}

// Keeps the compiler from moving a use of the accumulators, or of A's registers, across this point.
template <class T, int R>
DEVICE void wgmma_pin(T (&d)[R]) {
#pragma unroll
    for (int i = 0; i < R; i++) asm volatile("" : "+r"(d[i]) : : "memory");
}

// The usual form: waits, and no use of d moves above the wait.
template <int N, int R>
DEVICE void wgmma_wait(int (&d)[R]) {
    wgmma_wait<N>();
    wgmma_pin(d);
}

#define FP4_L16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define FP4_L32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define FP4_L64 FP4_L32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define FP4_L96 FP4_L64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define FP4_L128 FP4_L96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define FP4_D8(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]), "+r"(d[i + 7])
#define FP4_D16(i) FP4_D8(i), FP4_D8(i + 8)
#define FP4_D32(i) FP4_D8(i), FP4_D8(i + 8), FP4_D8(i + 16), FP4_D8(i + 24)
#define FP4_D64(i) FP4_D32(i), FP4_D32(i + 32)
#define FP4_D96(i) FP4_D64(i), FP4_D32(i + 64)
#define FP4_D128(i) FP4_D64(i), FP4_D64(i + 64)

template <int N>
struct Fp4Wgmma;

// p0 .. p5 name the operands that follow the R = N / 2 accumulators.
#define FP4_WGMMA_ONE(N, R, a_type, function, p0, p1, p2, p3, p4, p5)                                    \
    static __device__ __forceinline__ void function(int (&d)[R], unsigned long long a, unsigned long long b, int add) { \
        asm volatile("{.reg .pred p;\nsetp.ne.b32 p, %" #p2 ", 0;\n"                                     \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32." a_type ".s8 {" FP4_L##R "}, %" #p0 \
                     ", %" #p1 ", p;}"                                                                   \
                     : FP4_D##R(0)                                                                       \
                     : "l"(a), "l"(b), "r"(add));                                                        \
    }                                                                                                    \
    static __device__ __forceinline__ void function(int (&d)[R], const unsigned (&a)[4], unsigned long long b, int add) { \
        asm volatile("{.reg .pred p;\nsetp.ne.b32 p, %" #p5 ", 0;\n"                                     \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32." a_type ".s8 {" FP4_L##R "}, {%" #p0 \
                     ",%" #p1 ",%" #p2 ",%" #p3 "}, %" #p4 ", p;}"                                       \
                     : FP4_D##R(0)                                                                       \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                    \
    }
#define FP4_WGMMA(N, R, p0, p1, p2, p3, p4, p5)                   \
    template <>                                                   \
    struct Fp4Wgmma<N> {                                          \
        FP4_WGMMA_ONE(N, R, "s8", s8, p0, p1, p2, p3, p4, p5)     \
        FP4_WGMMA_ONE(N, R, "u8", u8, p0, p1, p2, p3, p4, p5)     \
    };
FP4_WGMMA(32, 16, 16, 17, 18, 19, 20, 21)
FP4_WGMMA(64, 32, 32, 33, 34, 35, 36, 37)
FP4_WGMMA(128, 64, 64, 65, 66, 67, 68, 69)
FP4_WGMMA(192, 96, 96, 97, 98, 99, 100, 101)
FP4_WGMMA(256, 128, 128, 129, 130, 131, 132, 133)
#undef FP4_WGMMA
#undef FP4_WGMMA_ONE

// d += A * B^T for 64 rows, N columns and k = 32; A is a descriptor or this thread's fragment, s8
// or u8; B is a descriptor, s8. With add = 0, d = A * B^T.
template <int N, class A>
DEVICE void wgmma_s8(int (&d)[N / 2], const A& a, unsigned long long b, int add = 1) {
    Fp4Wgmma<N>::s8(d, a, b, add);
}
template <int N, class A>
DEVICE void wgmma_u8(int (&d)[N / 2], const A& a, unsigned long long b, int add = 1) {
    Fp4Wgmma<N>::u8(d, a, b, add);
}

// ---- Hopper: moving registers between warpgroups (N a multiple of 8 in 24..256) ----

template <int N>
DEVICE void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(N));
}
template <int N>
DEVICE void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(N));
}
#endif // FP4_SM == 90

#endif // FP4_EMULATOR
