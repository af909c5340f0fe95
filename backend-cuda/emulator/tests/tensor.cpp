// Fragment layouts and tensor core results. The layouts are written here a second time, per element
// as the PTX ISA states them, and for three lanes as literal tables read off its figures; nothing
// is shared with the emulator.
#include "harness.hpp"

namespace {

struct Position {
    int row, column;
};

// PTX ISA, mma.m16n8k32 with 8-bit elements: element i of a thread's fragment.
Position a_k32(int lane, int i) {
    int group = lane >> 2, in_group = lane % 4;
    int row = i < 4 || (i >= 8 && i < 12) ? group : group + 8;
    int column = in_group * 4 + (i & 3) + (i >= 8 ? 16 : 0);
    return {row, column};
}
Position b_k32(int lane, int i) {
    int group = lane >> 2, in_group = lane % 4;
    return {in_group * 4 + (i & 3) + (i >= 4 ? 16 : 0), group}; // row along k, column along n
}
Position a_k16(int lane, int i) { return {i < 4 ? lane >> 2 : (lane >> 2) + 8, lane % 4 * 4 + (i & 3)}; }
Position b_k16(int lane, int i) { return {lane % 4 * 4 + i, lane >> 2}; }
Position d_16x8(int lane, int i) { return {i < 2 ? lane >> 2 : (lane >> 2) + 8, lane % 4 * 2 + (i & 1)}; }

// Read off the figures: lane, element, row, column.
void literal_tables() {
    const int a[][4] = {{0, 0, 0, 0},   {0, 3, 0, 3},   {0, 4, 8, 0},   {0, 8, 0, 16},  {0, 15, 8, 19},
                        {6, 0, 1, 8},   {6, 7, 9, 11},  {6, 12, 9, 24}, {31, 0, 7, 12}, {31, 11, 7, 31}, {31, 15, 15, 31}};
    const int b[][4] = {{0, 0, 0, 0}, {0, 4, 16, 0}, {6, 3, 11, 1}, {6, 5, 25, 1}, {31, 0, 12, 7}, {31, 7, 31, 7}};
    const int d[][4] = {{0, 0, 0, 0}, {0, 1, 0, 1}, {0, 2, 8, 0}, {6, 1, 1, 5}, {6, 3, 9, 5}, {31, 0, 7, 6}, {31, 3, 15, 7}};
    for (auto& t : a) CHECK(a_k32(t[0], t[1]).row == t[2] && a_k32(t[0], t[1]).column == t[3]);
    for (auto& t : b) CHECK(b_k32(t[0], t[1]).row == t[2] && b_k32(t[0], t[1]).column == t[3]);
    for (auto& t : d) CHECK(d_16x8(t[0], t[1]).row == t[2] && d_16x8(t[0], t[1]).column == t[3]);
}

std::vector<unsigned char> random_bytes(std::size_t n, std::uint64_t seed) {
    emulator::Random random{seed};
    std::vector<unsigned char> bytes(n);
    for (auto& b : bytes) b = static_cast<unsigned char>(random.next() >> 56);
    return bytes;
}

int value(unsigned char byte, bool is_unsigned) { return is_unsigned ? byte : static_cast<signed char>(byte); }

template <class Place>
std::vector<unsigned> fragments(const std::vector<unsigned char>& matrix, int k, bool k_is_row, int elements, Place place) {
    std::vector<unsigned> words(static_cast<std::size_t>(32 * elements / 4));
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < elements; i++) {
            Position p = place(lane, i);
            int at = k_is_row ? p.column * k + p.row : p.row * k + p.column;
            auto byte = static_cast<unsigned>(matrix[static_cast<std::size_t>(at)]);
            words[static_cast<std::size_t>((lane * elements + i) / 4)] |= byte << 8 * (i % 4);
        }
    return words;
}

void mma(int k, bool is_unsigned, bool extremes) {
    auto size = static_cast<std::size_t>(k);
    auto a = random_bytes(16 * size, 11), b = random_bytes(8 * size, 12);
    if (extremes) {
        a.assign(a.size(), is_unsigned ? 0xFF : 0x80);
        b.assign(b.size(), 0x80);
    }
    auto fa = k == 32 ? fragments(a, k, false, 16, a_k32) : fragments(a, k, false, 8, a_k16);
    auto fb = k == 32 ? fragments(b, k, true, 8, b_k32) : fragments(b, k, true, 4, b_k16);
    std::vector<int> d(128), expected(128);
    for (std::size_t i = 0; i < 128; i++) d[i] = static_cast<int>(i) * 1000 - 5;
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            Position p = d_16x8(lane, i);
            auto at = static_cast<std::size_t>(lane * 4 + i);
            expected[at] = d[at];
            for (int j = 0; j < k; j++)
                expected[at] += value(a[static_cast<std::size_t>(p.row * k + j)], is_unsigned) *
                                value(b[static_cast<std::size_t>(p.column * k + j)], false);
        }
    Buffer<unsigned> ga(fa), gb(fb);
    Buffer<int> gd(d);
    CHECK(run(k == 32 ? "mma_k32" : "mma_k16", {}, ga.address, gb.address, gd.address, is_unsigned ? 1 : 0) == 0);
    check_equal(gd.read(), expected, k == 32 ? "mma m16n8k32" : "mma m16n8k16");
}

void ldmatrix() {
    auto in = random_bytes(512, 13);
    Buffer<unsigned char> a(in);
    Buffer<unsigned> b(128);
    auto half = [&](int row, int column) {
        std::uint16_t h;
        std::memcpy(&h, &in[static_cast<std::size_t>(row * 16 + column * 2)], 2);
        return static_cast<unsigned>(h);
    };
    for (int kind = 0; kind < 3; kind++) {
        CHECK(run("matrices", {}, a.address, b.address, kind) == 0);
        std::vector<unsigned> expected(128);
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < (kind == 1 ? 2 : 4); i++) {
                int g = lane / 4, t = lane % 4;
                unsigned low = kind == 2 ? half(8 * i + 2 * t, g) : half(8 * i + g, 2 * t);
                unsigned high = kind == 2 ? half(8 * i + 2 * t + 1, g) : half(8 * i + g, 2 * t + 1);
                expected[static_cast<std::size_t>(lane * 4 + i)] = high << 16 | low;
            }
        check_equal(b.read(), expected, "ldmatrix");
    }
}

// The image of a (rows x pitch) K-major tile in shared memory. 16-byte chunk c of row r:
//   128-byte swizzle: chunk c ^ (r % 8); 64: c ^ (r / 2 % 4); 32: c ^ (r / 4 % 2).
//   none: 8 x 16-byte pieces, 128 bytes along k and 256 along the rows from one to the next.
std::vector<unsigned char> image(const std::vector<unsigned char>& tile, int rows, int pitch, int swizzle) {
    std::vector<unsigned char> out(tile.size());
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < pitch / 16; c++) {
            int to = 0;
            if (swizzle == 0) to = r / 8 * 256 + c * 128 + r % 8 * 16;
            if (swizzle == 1) to = r * 128 + (c ^ r % 8) * 16;
            if (swizzle == 2) to = r * 64 + (c ^ (r >> 1 & 3)) * 16;
            if (swizzle == 3) to = r * 32 + (c ^ (r >> 2 & 1)) * 16;
            std::memcpy(&out[static_cast<std::size_t>(to)], &tile[static_cast<std::size_t>(r * pitch + c * 16)], 16);
        }
    return out;
}

void wgmma(int n, int swizzle, bool is_unsigned, bool from_registers) {
    int pitch = swizzle == 1 ? 128 : swizzle == 2 ? 64 : 32;
    auto a = random_bytes(static_cast<std::size_t>(64 * pitch), 21), b = random_bytes(static_cast<std::size_t>(n * pitch), 22);
    Buffer<unsigned char> ga(image(a, 64, pitch, swizzle)), gb(image(b, n, pitch, swizzle));
    // Fragments: step, thread, register; warp w holds rows 16w + ... of the m16n8k32 layout.
    std::vector<unsigned> fa(static_cast<std::size_t>(pitch / 32 * 128 * 4));
    for (int step = 0; step < pitch / 32; step++)
        for (int thread = 0; thread < 128; thread++)
            for (int i = 0; i < 16; i++) {
                Position p = a_k32(thread % 32, i);
                int row = thread / 32 * 16 + p.row, k = step * 32 + p.column;
                fa[static_cast<std::size_t>((step * 128 + thread) * 4 + i / 4)] |=
                    static_cast<unsigned>(a[static_cast<std::size_t>(row * pitch + k)]) << 8 * (i % 4);
            }
    Buffer<unsigned> gf(fa);
    auto half = static_cast<std::size_t>(n / 2);
    Buffer<int> gd(128 * half);
    std::uintptr_t registers = from_registers ? gf.address : 0;
    const std::string kernel = "wgmma_n" + std::to_string(n);
    CHECK(run(kernel.c_str(), {1, 1, 128, 1, 64 * 1024}, ga.address, gb.address, registers, gd.address,
              pitch, swizzle, is_unsigned ? 1 : 0) == 0);
    std::vector<int> expected(128 * half);
    for (int thread = 0; thread < 128; thread++)
        for (int i = 0; i < n / 2; i++) {
            // PTX ISA: row 16 * warp + group (+ 8 when i / 2 is odd), column 8 * (i / 4) + 2 *
            // in_group + i % 2.
            int lane = thread % 32;
            int row = thread / 32 * 16 + lane / 4 + (i / 2 % 2 == 1 ? 8 : 0);
            int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            int sum = 0;
            for (int k = 0; k < pitch; k++)
                sum += value(a[static_cast<std::size_t>(row * pitch + k)], is_unsigned) *
                       value(b[static_cast<std::size_t>(column * pitch + k)], false);
            expected[static_cast<std::size_t>(thread) * half + static_cast<std::size_t>(i)] = sum;
        }
    check_equal(gd.read(), expected, "wgmma");
}

} // namespace

void test_tensor() {
    literal_tables();
    for (int k : {16, 32})
        for (bool u : {false, true})
            for (bool extremes : {false, true}) mma(k, u, extremes);
    ldmatrix();
    for (int swizzle = 0; swizzle < 4; swizzle++)
        for (bool u : {false, true})
            for (bool registers : {false, true}) {
                for (int n : {32, 64, 128, 256}) wgmma(n, swizzle, u, registers);
            }
}
