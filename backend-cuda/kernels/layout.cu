// Dequantization (C4.4, C10), the 128x4-tile scale layout (C7) and K padding (C8).
//
//     value   = round(value(code) * (decode(scale) * gs)), of an int8 element i * 2^-6 and no gs
//     offset  = tile * 512 + (r % 32) * 16 + (r / 32) * 4 + c   inside a tile of 128 x 4 bytes
//
// One thread an output element (or byte); every kernel moves memory and does next to nothing else.
// Worked example: row 33, column 2 sits at (33 % 32) * 16 + 1 * 4 + 2 = 22 in its tile.
#include "format.cuh"

using namespace fp4;

__device__ __forceinline__ i64 thread_index() {
    return (i64)blockIdx.x * blockDim.x + threadIdx.x;
}

// Two elements a thread, of a (rows, k) matrix stored with rows of k_pad.
KERNEL void dequantize(DequantizeArgs p) {
    i64 pair = thread_index();
    int pairs = p.k / 2;
    if (pair >= p.rows * pairs) return;
    i64 row = pair / pairs;
    int col = (int)(pair % pairs) * 2;
    float first, second;
    if (p.element == INT8) {
        u32 both = *(const u16*)(p.codes + row * p.k_pad + col);
        first = __fmul_rn((float)(int)(signed char)(both & 0xFFu), 0.015625f);
        second = __fmul_rn((float)(int)(signed char)(both >> 8), 0.015625f);
    } else {
        u32 byte = p.codes[row * (p.k_pad / 2) + col / 2];
        first = decode_e2m1(byte & 15u);
        second = decode_e2m1(byte >> 4);
    }
    u32 scale = p.scales[row * (p.k_pad / p.group) + col / p.group];
    float unit = __fmul_rn(decode_scale(p.scale_type, scale), p.global_scale);
    store_dense(p.out, row * p.k + col, p.out_type, __fmul_rn(first, unit));
    store_dense(p.out, row * p.k + col + 1, p.out_type, __fmul_rn(second, unit));
}
EXPORT(dequantize)

// Wider rows are filled up with zero bytes, narrower ones cut. Codes and scale bytes alike: padding
// is zero codes and zero scale bytes.
KERNEL void pad_bytes(PadArgs p) {
    i64 index = thread_index();
    if (index >= p.rows * p.to_cols) return;
    i64 row = index / p.to_cols;
    int col = (int)(index % p.to_cols);
    p.to[index] = col < p.from_cols ? p.from[row * p.from_cols + col] : 0;
}
EXPORT(pad_bytes)

// One thread a byte of the swizzled form, padding included.
KERNEL void swizzle(SwizzleArgs p) {
    i64 offset = thread_index();
    i64 tiles_across = (p.cols + 3) / 4, tiles_down = (p.rows + 127) / 128;
    if (offset >= tiles_across * tiles_down * 512) return;
    i64 tile = offset / 512;
    int inside = (int)(offset % 512);
    i64 row = tile / tiles_across * 128 + inside / 16 + inside % 16 / 4 * 32;
    i64 col = tile % tiles_across * 4 + inside % 4;
    p.to[offset] = row < p.rows && col < p.cols ? p.from[row * p.cols + col] : 0;
}
EXPORT(swizzle)

// One thread a byte of the row-major form; the padding is dropped.
KERNEL void unswizzle(SwizzleArgs p) {
    i64 index = thread_index();
    if (index >= p.rows * p.cols) return;
    i64 row = index / p.cols, col = index % p.cols, tiles_across = (p.cols + 3) / 4;
    i64 tile = row / 128 * tiles_across + col / 4;
    int r = (int)(row % 128);
    p.to[index] = p.from[tile * 512 + r % 32 * 16 + r / 32 * 4 + col % 4];
}
EXPORT(unswizzle)
