// Dequantization (C4.4), the 128x4-tile scale layout (C7) and K padding (C8).
//
//     value   = round(value(code) * (decode(scale) * gs))
//     offset  = tile * 512 + (r % 32) * 16 + (r / 32) * 4 + c     inside a tile of 128 x 4 scale bytes
//
// One thread an output element (or byte); every kernel moves memory and does next to nothing else.
// Worked example: row 33, column 2 sits at (33 % 32) * 16 + 1 * 4 + 2 = 22 in its tile.
#include "format.cuh"

using namespace fp4;

__device__ __forceinline__ i64 thread_index() {
    return (i64)blockIdx.x * blockDim.x + threadIdx.x;
}

// Two codes a thread, of a (rows, k) matrix stored with rows of k_pad.
KERNEL void dequantize(const u8* codes, const u8* scales, void* out, i64 rows, int k, int k_pad, int group,
                       int scale_type, float global_scale, int out_type) {
    i64 pair = thread_index();
    int pairs = k / 2;
    if (pair >= rows * pairs) return;
    i64 row = pair / pairs;
    int col = (int)(pair % pairs) * 2;
    u32 byte = codes[row * (k_pad / 2) + col / 2];
    u32 scale = scales[row * (k_pad / group) + col / group];
    float unit = __fmul_rn(decode_scale(scale_type, scale), global_scale);
    store_dense(out, row * k + col, out_type, __fmul_rn(decode_e2m1(byte & 15u), unit));
    store_dense(out, row * k + col + 1, out_type, __fmul_rn(decode_e2m1(byte >> 4), unit));
}
EXPORT(dequantize)

// Copies (rows, from_cols) bytes to (rows, to_cols): wider rows are filled up with zero bytes, narrower ones
// cut. Codes and scale bytes alike: padding is zero codes and zero scale bytes.
KERNEL void pad_bytes(const u8* from, u8* to, i64 rows, int from_cols, int to_cols) {
    i64 index = thread_index();
    if (index >= rows * to_cols) return;
    i64 row = index / to_cols;
    int col = (int)(index % to_cols);
    to[index] = col < from_cols ? from[row * from_cols + col] : 0;
}
EXPORT(pad_bytes)

// One thread a byte of the swizzled form, padding included.
KERNEL void swizzle(const u8* scales, u8* swizzled, i64 rows, int cols) {
    i64 offset = thread_index();
    i64 tiles_across = (cols + 3) / 4, tiles_down = (rows + 127) / 128;
    if (offset >= tiles_across * tiles_down * 512) return;
    i64 tile = offset / 512;
    int inside = (int)(offset % 512);
    i64 row = tile / tiles_across * 128 + inside / 16 + inside % 16 / 4 * 32;
    i64 col = tile % tiles_across * 4 + inside % 4;
    swizzled[offset] = row < rows && col < cols ? scales[row * cols + col] : 0;
}
EXPORT(swizzle)

// One thread a byte of the row-major form; the padding is dropped.
KERNEL void unswizzle(const u8* swizzled, u8* scales, i64 rows, int cols) {
    i64 index = thread_index();
    if (index >= rows * cols) return;
    i64 row = index / cols, col = index % cols, tiles_across = (cols + 3) / 4;
    i64 tile = row / 128 * tiles_across + col / 4;
    int r = (int)(row % 128);
    scales[index] = swizzled[tile * 512 + r % 32 * 16 + r / 32 * 4 + col % 4];
}
EXPORT(unswizzle)
