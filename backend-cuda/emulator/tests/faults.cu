// Kernels with one mistake each, in the manner of the right ones in primitives.cu; test.cpp asserts
// that each is caught. Where the right kernel differs by one line, a switch makes it right.
#include "../../kernels/device.cuh"

KERNEL void without_first_barrier(const int* in, int* out, int right) {
    SHARED(int, tile, [256]);
    tile[threadIdx.x] = in[threadIdx.x];
    if (right) __syncthreads();
    out[threadIdx.x] = tile[255 - threadIdx.x];
}
EXPORT(without_first_barrier)

// The barrier between the last read of a tile and the next write to it.
KERNEL void without_second_barrier(const int* in, int* out, int right) {
    SHARED(int, tile, [256]);
    int sum = 0;
    for (int round = 0; round < 3; round++) {
        tile[threadIdx.x] = in[threadIdx.x] + round;
        __syncthreads();
        sum = sum * 7 + tile[255 - threadIdx.x];
        if (right) __syncthreads();
    }
    out[threadIdx.x] = sum;
}
EXPORT(without_second_barrier)

KERNEL void without_syncwarp(const int* in, int* out, int right) {
    SHARED(int, tile, [32]);
    tile[threadIdx.x] = in[threadIdx.x];
    if (right) __syncwarp();
    out[threadIdx.x] = tile[(threadIdx.x + 1) % 32];
}
EXPORT(without_syncwarp)

// Two registers of A exchanged: the layout of 16-bit operands, a likely slip.
KERNEL void swapped_fragment(const unsigned* a, const unsigned* b, int* d, int right) {
    unsigned fa[4], fb[2] = {b[threadIdx.x * 2], b[threadIdx.x * 2 + 1]};
    for (int i = 0; i < 4; i++) fa[i] = a[threadIdx.x * 4 + static_cast<unsigned>(i)];
    if (!right) {
        unsigned keep = fa[1];
        fa[1] = fa[2];
        fa[2] = keep;
    }
    int fd[4] = {};
    mma_m16n8k32_s8s8(fd, fa, fb);
    for (int i = 0; i < 4; i++) d[threadIdx.x * 4 + static_cast<unsigned>(i)] = fd[i];
}
EXPORT(swapped_fragment)

KERNEL void without_async_wait(const uint4* in, unsigned* out, int right) {
    SHARED(uint4, tile, [64]);
    cp_async_16(&tile[threadIdx.x], in + threadIdx.x, true);
    cp_async_commit();
    if (right) cp_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = tile[63 - threadIdx.x].x;
}
EXPORT(without_async_wait)

// The next copy into a buffer that other threads may still read.
KERNEL void async_into_a_buffer_in_use(const uint4* in, unsigned* out, int right) {
    SHARED(uint4, tile, [64]);
    unsigned sum = 0;
    for (unsigned round = 0; round < 3; round++) {
        cp_async_16(&tile[threadIdx.x], in + round * 64 + threadIdx.x, true);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        sum = sum * 7 + tile[63 - threadIdx.x].x;
        if (right) __syncthreads();
    }
    out[threadIdx.x] = sum;
}
EXPORT(async_into_a_buffer_in_use)

#if FP4_SM == 90
// mistake 1: no wgmma_wait before the use; 2: no fence; 3: B is overwritten before the wait.
KERNEL void wgmma_mistakes(const unsigned char* b, int* d, int mistake) {
    unsigned char* tile = dynamic_shared();
    for (unsigned i = threadIdx.x; i < 64 * 32; i += 128) tile[i] = b[i];
    fence_proxy_async();
    __syncthreads();
    unsigned long long db = smem_descriptor(tile, 0, 256, SWIZZLE_32B);
    unsigned a[4] = {threadIdx.x + 1, 2, 3, 4};
    int acc[32];
    for (int i = 0; i < 32; i++) acc[i] = 0;
    if (mistake != 2) wgmma_fence();
    wgmma_s8<64>(acc, a, db);
    wgmma_commit();
    if (mistake == 3) {
        __syncthreads();
        tile[threadIdx.x] ^= 0x55;
        __syncthreads();
    }
    int early[32];
    for (int i = 0; i < 32; i++) early[i] = acc[i];
    wgmma_wait<0>(acc);
    for (int i = 0; i < 32; i++) d[threadIdx.x * 32 + static_cast<unsigned>(i)] = mistake == 1 ? early[i] : acc[i];
}
EXPORT(wgmma_mistakes)

KERNEL void wgmma_never_waited(int* d) {
    unsigned char* tile = dynamic_shared();
    unsigned a[4] = {1, 2, 3, 4};
    int acc[32];
    for (int i = 0; i < 32; i++) acc[i] = 0;
    wgmma_fence();
    wgmma_s8<64>(acc, a, smem_descriptor(tile, 0, 256, SWIZZLE_32B));
    wgmma_commit();
    d[threadIdx.x] = 1;
}
EXPORT(wgmma_never_waited)

KERNEL void bulk_copy_never_waited(const unsigned* in, unsigned* out) {
    SHARED(unsigned long long, full, [1]);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_arrive_expect_tx(full, 128);
        bulk_copy_g2s(dynamic_shared(), in, 128, full);
    }
    out[threadIdx.x] = 0;
}
EXPORT(bulk_copy_never_waited)
#endif // FP4_SM == 90

// Writes `count` ints, the last of them possibly past the end.
KERNEL void write(int* out, int first, int count) {
    for (int i = 0; i < count; i++) out[first + i] = i;
}
EXPORT(write)

KERNEL void read(const int* in, int* out, int at) { out[0] = in[at]; }
EXPORT(read)

KERNEL void write_shared(int* out, int at, int dynamic) {
    SHARED(int, tile, [8]);
    int* words = dynamic ? reinterpret_cast<int*>(dynamic_shared()) : tile;
    words[at] = 1;
    out[0] = 1;
}
EXPORT(write_shared)

KERNEL void too_much_shared(int* out) {
    SHARED(int, tile, [13000]);
    tile[0] = 1;
    out[0] = tile[0];
}
EXPORT(too_much_shared)

// Warp 1 never comes to the named barrier.
KERNEL void half_a_barrier(int* out) {
    if (threadIdx.x < 32) named_barrier_sync(4, 64);
    out[threadIdx.x] = 1;
}
EXPORT(half_a_barrier)

#if FP4_SM == 90
KERNEL void no_arrival(int* out) {
    SHARED(unsigned long long, full, [1]);
    if (threadIdx.x == 0) mbarrier_init(full, 2);
    __syncthreads();
    if (threadIdx.x == 0) mbarrier_arrive(full); // one of two
    mbarrier_wait(full, 0);
    out[0] = 1;
}
EXPORT(no_arrival)
#endif

// kind 0: a lane shuffles while the others vote; 1: a mask with an ended lane; 2: reading a lane
// outside of the mask.
KERNEL void divergent(int* out, int kind) {
    int lane = static_cast<int>(threadIdx.x);
    if (kind == 0) {
        if (lane == 3)
            out[lane] = __shfl_sync(~0u, lane, 0);
        else
            out[lane] = static_cast<int>(__ballot_sync(~0u, 1));
    } else if (kind == 1) {
        if (lane == 3) return;
        __syncwarp();
        __syncwarp();
    } else if (lane < 16) {
        out[lane] = __shfl_sync(0xFFFFu, lane, 20);
    }
}
EXPORT(divergent)

KERNEL void misaligned_copy(const unsigned char* in, unsigned char* out) {
    SHARED(unsigned char, tile, [64]);
    cp_async_16(&tile[8], in, true);
    cp_async_commit();
    cp_async_wait<0>();
    out[0] = tile[8];
}
EXPORT(misaligned_copy)

// kind 0: a 16-byte load at 8; 1: an index past a local array; 2: a shift by the width.
KERNEL void undefined(const unsigned* in, unsigned* out, int kind, int at) {
    unsigned local[4] = {1, 2, 3, 4};
    unsigned value = 0;
    if (kind == 0) value = reinterpret_cast<const uint4*>(in + at)->x;
    if (kind == 1) value = local[at];
    if (kind == 2) value = in[0] << at;
    out[0] = value;
}
EXPORT(undefined)
