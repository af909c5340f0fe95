// One small kernel for each primitive, right as they stand; test.cpp holds what they must give.
#include "../../kernels/device.cuh"

KERNEL void indices(unsigned* out, int width) {
    unsigned x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    out[y * static_cast<unsigned>(width) + x] = threadIdx.y << 24 | threadIdx.x << 16 | blockIdx.y << 8 | blockIdx.x;
}
EXPORT(indices)

// Reverses each block's part through shared memory, twice so that the tile is used again.
KERNEL void reverse(const int* in, int* out) {
    SHARED(int, tile, [256]);
    unsigned base = blockIdx.x * 256;
    for (int round = 0; round < 2; round++) {
        tile[threadIdx.x] = in[base + threadIdx.x] + round;
        __syncthreads();
        out[base + threadIdx.x] = tile[255 - threadIdx.x] + 10 * round;
        __syncthreads();
    }
}
EXPORT(reverse)

KERNEL void neighbours(const int* in, int* out) {
    SHARED(int, tile, [64]);
    tile[threadIdx.x] = in[threadIdx.x];
    __syncwarp();
    unsigned lane = threadIdx.x % 32, first = threadIdx.x - lane;
    out[threadIdx.x] = tile[first + (lane + 1) % 32] + tile[first + (lane + 31) % 32];
}
EXPORT(neighbours)

KERNEL void warp_operations(const int* in, int* out) {
    int lane = static_cast<int>(threadIdx.x), value = in[lane];
    unsigned low = lane < 16 ? 0x0000FFFFu : 0xFFFF0000u;
    int* row = out + lane * 16;
    row[0] = __shfl_sync(~0u, value, 5);
    row[1] = __shfl_xor_sync(~0u, value, 12);
    row[2] = __shfl_down_sync(~0u, value, 3);
    row[3] = __shfl_up_sync(~0u, value, 3);
    row[4] = static_cast<int>(__ballot_sync(~0u, value & 1));
    row[5] = __any_sync(~0u, lane == 7);
    row[6] = __all_sync(~0u, lane < 31);
    row[7] = __reduce_add_sync(~0u, value);
    row[8] = __reduce_max_sync(~0u, value);
    row[9] = __shfl_sync(~0u, value, 2, 8);
    // Both halves of the warp at once, each with its own mask.
    row[10] = __shfl_xor_sync(low, value, 1);
    row[11] = static_cast<int>(__ballot_sync(low, lane % 3 == 0));
    long long wide = (static_cast<long long>(value) << 32) + lane;
    row[12] = static_cast<int>(__shfl_xor_sync(~0u, wide, 16) >> 32);
    float f = __shfl_down_sync(~0u, static_cast<float>(value), 16, 16);
    row[13] = __float_as_int(f);
    row[14] = static_cast<int>(__match_any_sync(~0u, value & 3));
    row[15] = static_cast<int>(__reduce_or_sync(~0u, 1u << (value & 15)));
}
EXPORT(warp_operations)

KERNEL void atomics(unsigned* counters, unsigned long long* wide, int* signed_) {
    SHARED(unsigned, sum, [1]);
    if (threadIdx.x == 0) sum[0] = 0;
    __syncthreads();
    atomicAdd(&sum[0], threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&counters[0], sum[0]);
    atomicOr(&counters[1], 1u << (threadIdx.x % 32));
    atomicMax(&counters[2], threadIdx.x * 7 + blockIdx.x);
    atomicAdd(wide, 1ull << 33);
    atomicMax(signed_, -static_cast<int>(threadIdx.x) - 5);
    reduce_add(signed_ + 1, -static_cast<int>(threadIdx.x));
}
EXPORT(atomics)

// Two halves of the block exchange through named barriers, one of them by arrive alone.
KERNEL void named(const int* in, int* out) {
    SHARED(int, tile, [64]);
    unsigned i = threadIdx.x % 64;
    if (threadIdx.x < 64) {
        tile[i] = in[i] * 3;
        named_barrier_arrive(1, 128);
        named_barrier_sync(2, 128);
        out[i] = tile[63 - i];
    } else {
        named_barrier_sync(1, 128);
        int mine = tile[i], other = tile[63 - i];
        named_barrier_sync(3, 64);
        tile[i] = mine + other;
        named_barrier_sync(2, 128);
    }
}
EXPORT(named)

KERNEL void bytes(const unsigned* in, unsigned* out) {
    unsigned a = in[3 * threadIdx.x], b = in[3 * threadIdx.x + 1], c = in[3 * threadIdx.x + 2];
    unsigned* row = out + 9 * threadIdx.x;
    row[0] = __byte_perm(a, b, c & 0xFFFF);
    row[1] = static_cast<unsigned>(dot_bytes(static_cast<int>(a), static_cast<int>(b), static_cast<int>(c)));
    row[2] = static_cast<unsigned>(dot_bytes(static_cast<int>(a), static_cast<int>(b), 0));
    row[3] = static_cast<unsigned>(__clz(static_cast<int>(a)));
    row[4] = __umulhi(a, b);
    row[5] = __float_as_uint(__fmaf_rn(__uint_as_float(a & 0x3FFFFFFF), __uint_as_float(b & 0x3FFFFFFF), 1.5f));
    row[6] = __funnelshift_r(a, b, c);
    row[7] = __brev(a);
    row[8] = permute_bytes(a, b, c & 0xFFFF);
}
EXPORT(bytes)

// Fragments come from memory in the order lane, register.
KERNEL void mma_k32(const unsigned* a, const unsigned* b, int* d, int a_unsigned) {
    unsigned lane = threadIdx.x;
    unsigned fa[4], fb[2];
    int fd[4];
    for (int i = 0; i < 4; i++) fa[i] = a[lane * 4 + static_cast<unsigned>(i)];
    for (int i = 0; i < 2; i++) fb[i] = b[lane * 2 + static_cast<unsigned>(i)];
    for (int i = 0; i < 4; i++) fd[i] = d[lane * 4 + static_cast<unsigned>(i)];
    if (a_unsigned)
        mma_m16n8k32_u8s8(fd, fa, fb);
    else
        mma_m16n8k32_s8s8(fd, fa, fb);
    for (int i = 0; i < 4; i++) d[lane * 4 + static_cast<unsigned>(i)] = fd[i];
}
EXPORT(mma_k32)

KERNEL void mma_k16(const unsigned* a, const unsigned* b, int* d, int a_unsigned) {
    unsigned lane = threadIdx.x;
    unsigned fa[2] = {a[lane * 2], a[lane * 2 + 1]}, fb[1] = {b[lane]};
    int fd[4];
    for (int i = 0; i < 4; i++) fd[i] = d[lane * 4 + static_cast<unsigned>(i)];
    if (a_unsigned)
        mma_m16n8k16_u8s8(fd, fa, fb);
    else
        mma_m16n8k16_s8s8(fd, fa, fb);
    for (int i = 0; i < 4; i++) d[lane * 4 + static_cast<unsigned>(i)] = fd[i];
}
EXPORT(mma_k16)

// in: 32 rows of 16 bytes; kind 0: x4, 1: x2, 2: x4 transposed. out: lane, register.
KERNEL void matrices(const uint4* in, unsigned* out, int kind) {
    SHARED(uint4, tile, [32]);
    tile[threadIdx.x] = in[threadIdx.x];
    __syncwarp();
    unsigned r[4] = {}, half[2];
    if (kind == 0) ldmatrix_x4(r, &tile[threadIdx.x]);
    if (kind == 2) ldmatrix_x4_trans(r, &tile[threadIdx.x]);
    if (kind == 1) {
        ldmatrix_x2(half, &tile[threadIdx.x % 16]);
        r[0] = half[0];
        r[1] = half[1];
    }
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + static_cast<unsigned>(i)] = r[i];
}
EXPORT(matrices)

// A ring of two stages of cp.async, summed by the next thread's slot; `valid` rows of the last
// stage.
KERNEL void async_ring(const uint4* in, unsigned* out, int stages, int valid) {
    SHARED(uint4, ring, [2][64]);
    unsigned t = threadIdx.x, sum = 0;
    cp_async_16(&ring[0][t], in + t, true);
    cp_async_commit();
    for (int stage = 0; stage < stages; stage++) {
        int next = stage + 1;
        if (next < stages)
            cp_async_16(&ring[next % 2][t], in + next * 64 + static_cast<int>(t),
                        next < stages - 1 || static_cast<int>(t) < valid);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        uint4 v = ring[stage % 2][(t + 1) % 64];
        sum += v.x * 3 + v.y * 5 + v.z * 7 + v.w * 11;
        __syncthreads();
    }
    out[t] = sum;
}
EXPORT(async_ring)

#if FP4_SM == 90
// One warp fetches by bulk copies, two others consume; full and empty mbarriers for two stages.
KERNEL void bulk_ring(const unsigned* in, unsigned* out, int stages) {
    SHARED(unsigned long long, full, [2]);
    SHARED(unsigned long long, empty, [2]);
    unsigned* ring = reinterpret_cast<unsigned*>(dynamic_shared()); // 2 stages of 64 words
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            mbarrier_init(&full[i], 1);
            mbarrier_init(&empty[i], 64);
        }
        fence_proxy_async();
    }
    __syncthreads();
    if (threadIdx.x >= 64) {
        if (threadIdx.x == 64) {
            for (int stage = 0; stage < stages; stage++) {
                int slot = stage % 2;
                if (stage >= 2) mbarrier_wait(&empty[slot], static_cast<unsigned>((stage / 2 - 1) & 1));
                mbarrier_arrive_expect_tx(&full[slot], 256);
                bulk_copy_g2s(ring + slot * 64, in + stage * 64, 128, &full[slot]);
                bulk_copy_g2s(ring + slot * 64 + 32, in + stage * 64 + 32, 128, &full[slot]);
            }
        }
    } else {
        unsigned sum = 0;
        for (int stage = 0; stage < stages; stage++) {
            int slot = stage % 2;
            while (!mbarrier_try_wait(&full[slot], static_cast<unsigned>(stage / 2 & 1))) {
            }
            sum = sum * 31 + ring[slot * 64 + 63 - static_cast<int>(threadIdx.x)];
            mbarrier_arrive(&empty[slot]);
        }
        out[threadIdx.x] = sum;
    }
}
EXPORT(bulk_ring)

// A (64 x k) and B (N x k) lie in memory as the images that shared memory shall hold; k is the
// pitch of the swizzle, so that the steps along k inside a row are used. With `registers`, A is
// taken as fragments: lane, register, for each step of 32 and warp.
template <int N>
DEVICE void wgmma_tile(const unsigned char* a, const unsigned char* b, const unsigned* fragments, int* d, int pitch,
                       Swizzle swizzle, int a_unsigned) {
    unsigned char* tile_a = dynamic_shared();
    unsigned char* tile_b = tile_a + 64 * 128;
    for (int i = static_cast<int>(threadIdx.x); i < 64 * pitch; i += 128) tile_a[i] = a[i];
    for (int i = static_cast<int>(threadIdx.x); i < N * pitch; i += 128) tile_b[i] = b[i];
    fence_proxy_async();
    __syncthreads();
    int acc[N / 2];
    for (int i = 0; i < N / 2; i++) acc[i] = 1000 + i;
    // Without swizzle: pieces of 128 bytes, along k 128 apart, rows 256 apart (k = 32).
    unsigned lead = swizzle == SWIZZLE_NONE ? 128 : 0;
    unsigned stride = swizzle == SWIZZLE_NONE ? 256 : static_cast<unsigned>(8 * pitch);
    unsigned long long da = smem_descriptor(tile_a, lead, stride, swizzle);
    unsigned long long db = smem_descriptor(tile_b, lead, stride, swizzle);
    wgmma_fence();
    for (int step = 0; step < pitch / 32; step++) {
        if (fragments) {
            unsigned fa[4];
            for (int i = 0; i < 4; i++) fa[i] = fragments[(step * 128 + static_cast<int>(threadIdx.x)) * 4 + i];
            if (a_unsigned)
                wgmma_u8<N>(acc, fa, db + 2 * static_cast<unsigned>(step), step > 0);
            else
                wgmma_s8<N>(acc, fa, db + 2 * static_cast<unsigned>(step), step > 0);
        } else if (a_unsigned) {
            wgmma_u8<N>(acc, da + 2 * static_cast<unsigned>(step), db + 2 * static_cast<unsigned>(step), step > 0);
        } else {
            wgmma_s8<N>(acc, da + 2 * static_cast<unsigned>(step), db + 2 * static_cast<unsigned>(step), step > 0);
        }
    }
    wgmma_commit();
    wgmma_wait<0>(acc);
    for (int i = 0; i < N / 2; i++) d[static_cast<int>(threadIdx.x) * (N / 2) + i] = acc[i];
}

// Clusters of two: each block copies one half of every stage into both, in a ring of two whose
// `empty` counts the readers of both. mistake 1: a block's readers do not arrive in the other one;
// 2: nobody waits for `empty`; 3: nobody waits for the other block at the end; 4: nor at the start.
CLUSTER_KERNEL(96, 2)
void multicast_ring(const unsigned* in, unsigned* out, int stages, int mistake) {
    SHARED(unsigned long long, full, [2]);
    SHARED(unsigned long long, empty, [2]);
    unsigned* ring = reinterpret_cast<unsigned*>(dynamic_shared()); // [2][64]
    const unsigned thread = threadIdx.x, rank = cluster_rank();
    if (thread == 0) {
        for (int i = 0; i < 2; i++) {
            mbarrier_init(&full[i], 1);
            mbarrier_init(&empty[i], mistake == 2 ? 1000 : 4); // two warps of each block
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (mistake != 4) {
        cluster_arrive();
        cluster_wait();
    }
    const unsigned* from = in + blockIdx.x / 2 * 64;
    if (thread < 32) {
        if (elect_lane()) {
            for (int s = 0; s < stages; s++) {
                if (s >= 2 && mistake != 2) mbarrier_wait(&empty[s % 2], static_cast<unsigned>(s / 2 - 1) & 1);
                mbarrier_arrive_expect_tx(&full[s % 2], 256);
                bulk_copy_multicast(ring + s % 2 * 64 + rank * 32, from + s * 64 + rank * 32, 128, &full[s % 2], 3);
            }
        }
        __syncwarp();
    } else {
        const unsigned reader = thread - 32;
        unsigned sum = rank;
        for (int s = 0; s < stages; s++) {
            mbarrier_wait(&full[s % 2], static_cast<unsigned>(s / 2) & 1);
            sum = sum * 31 + ring[s % 2 * 64 + 63 - reader];
            __syncwarp();
            if (elect_lane()) {
                mbarrier_arrive(&empty[s % 2]);
                if (mistake != 1) mbarrier_arrive_in(&empty[s % 2], 1 - rank);
            }
        }
        out[blockIdx.x * 64 + reader] = sum;
    }
    if (mistake != 3) {
        cluster_arrive();
        cluster_wait();
    }
}
EXPORT_CLUSTER(multicast_ring, 2)

// A barrier of a cluster to which one block does not come but half, and one arrived at twice.
CLUSTER_KERNEL(64, 2)
void cluster_mistakes(int* out, int mistake) {
    if (mistake == 1 && cluster_rank() == 1 && threadIdx.x >= 32) {
        __syncthreads(); // the others of the block are at the cluster's
    }
    cluster_arrive();
    if (mistake == 2) cluster_arrive();
    cluster_wait();
    SHARED(unsigned long long, full, [1]);
    if (mistake == 3 && threadIdx.x == 0) mbarrier_arrive_in(full, 2);
    out[blockIdx.x * 64 + threadIdx.x] = 1;
}
EXPORT_CLUSTER(cluster_mistakes, 2)

KERNEL_BOUNDS(128, 1)
void wgmma_n32(const unsigned char* a, const unsigned char* b, const unsigned* fragments, int* d, int pitch, int swizzle, int u) {
    wgmma_tile<32>(a, b, fragments, d, pitch, static_cast<Swizzle>(swizzle), u);
}
EXPORT(wgmma_n32)
KERNEL_BOUNDS(128, 1)
void wgmma_n64(const unsigned char* a, const unsigned char* b, const unsigned* fragments, int* d, int pitch, int swizzle, int u) {
    wgmma_tile<64>(a, b, fragments, d, pitch, static_cast<Swizzle>(swizzle), u);
}
EXPORT(wgmma_n64)
KERNEL_BOUNDS(128, 1)
void wgmma_n128(const unsigned char* a, const unsigned char* b, const unsigned* fragments, int* d, int pitch, int swizzle, int u) {
    wgmma_tile<128>(a, b, fragments, d, pitch, static_cast<Swizzle>(swizzle), u);
}
EXPORT(wgmma_n128)
KERNEL_BOUNDS(128, 1)
void wgmma_n256(const unsigned char* a, const unsigned char* b, const unsigned* fragments, int* d, int pitch, int swizzle, int u) {
    wgmma_tile<256>(a, b, fragments, d, pitch, static_cast<Swizzle>(swizzle), u);
}
EXPORT(wgmma_n256)
#endif // FP4_SM == 90

// For the speed of mma: `rounds` of it on fragments made here.
KERNEL void mma_speed(int* out, int rounds) {
    unsigned a[4] = {threadIdx.x * 0x01030507u, 0x11223344u, 0x55667788u, threadIdx.x}, b[2] = {0x01020304u, threadIdx.x};
    int d[4] = {};
    for (int i = 0; i < rounds; i++) {
        mma_m16n8k32_s8s8(d, a, b);
        a[0] += 0x01010101u;
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}
EXPORT(mma_speed)
