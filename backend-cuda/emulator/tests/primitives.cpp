// Threads, barriers, warp operations, integer intrinsics and copies against plain loops.
#include "harness.hpp"

#include <cmath>

namespace {

std::vector<int> numbers(std::size_t n, std::uint64_t seed) {
    emulator::Random random{seed};
    std::vector<int> v(n);
    for (int& x : v) x = static_cast<int>(random.next() >> 40) - (1 << 23);
    return v;
}

void indices_and_blocks() {
    Buffer<unsigned> out(6 * 4 * 5 * 3);
    CHECK(run("indices", {5, 3, 6, 4}, out.address, 30) == 0);
    std::vector<unsigned> expected(out.count);
    for (unsigned y = 0; y < 12; y++)
        for (unsigned x = 0; x < 30; x++) expected[y * 30 + x] = y % 4 << 24 | x % 6 << 16 | y / 4 << 8 | x / 6;
    check_equal(out.read(), expected, "every thread of every block ran with its own indices");
}

void barriers() {
    auto in = numbers(256 * 3, 1);
    Buffer<int> a(in), b(in.size());
    CHECK(run("reverse", {3, 1, 256}, a.address, b.address) == 0);
    std::vector<int> expected(in.size());
    for (std::size_t i = 0; i < in.size(); i++) expected[i] = in[i / 256 * 256 + 255 - i % 256] + 11;
    check_equal(b.read(), expected, "__syncthreads orders writes before reads");

    Buffer<int> c(64);
    CHECK(run("neighbours", {1, 1, 64}, a.address, c.address) == 0);
    std::vector<int> around(64);
    for (std::size_t i = 0; i < 64; i++) around[i] = in[i / 32 * 32 + (i + 1) % 32] + in[i / 32 * 32 + (i + 31) % 32];
    check_equal(c.read(), around, "__syncwarp orders writes before reads");

    CHECK(run("named", {1, 1, 128}, a.address, c.address) == 0);
    std::vector<int> exchanged(64);
    for (std::size_t i = 0; i < 64; i++) exchanged[i] = 3 * in[i] + 3 * in[63 - i];
    check_equal(c.read(), exchanged, "named barriers");
}

void warp_operations() {
    auto in = numbers(32, 2);
    Buffer<int> a(in), b(32 * 16);
    CHECK(run("warp_operations", {}, a.address, b.address) == 0);
    std::vector<int> expected(32 * 16);
    unsigned odd = 0, thirds = 0, any_bits = 0;
    int sum = 0, most = in[0];
    for (int i = 0; i < 32; i++) {
        odd |= static_cast<unsigned>(in[i] & 1) << i;
        thirds |= (i % 3 == 0 ? 1u : 0u) << i;
        any_bits |= 1u << (in[i] & 15);
        sum += in[i];
        most = in[i] > most ? in[i] : most;
    }
    for (int i = 0; i < 32; i++) {
        int* row = &expected[static_cast<std::size_t>(i) * 16];
        row[0] = in[5];
        row[1] = in[i ^ 12];
        row[2] = in[i + 3 < 32 ? i + 3 : i];
        row[3] = in[i >= 3 ? i - 3 : i];
        row[4] = static_cast<int>(odd);
        row[5] = 1;
        row[6] = 0;
        row[7] = sum;
        row[8] = most;
        row[9] = in[i / 8 * 8 + 2];
        row[10] = in[i ^ 1];
        row[11] = static_cast<int>(thirds & (i < 16 ? 0x0000FFFFu : 0xFFFF0000u));
        row[12] = in[i ^ 16];
        float f = static_cast<float>(in[i]); // delta 16 leaves a segment of 16
        std::memcpy(&row[13], &f, 4);
        unsigned same = 0;
        for (int j = 0; j < 32; j++) same |= ((in[j] & 3) == (in[i] & 3) ? 1u : 0u) << j;
        row[14] = static_cast<int>(same);
        row[15] = static_cast<int>(any_bits);
    }
    check_equal(b.read(), expected, "shuffles, votes and reductions");
}

void atomics() {
    Buffer<unsigned> counters(3);
    Buffer<unsigned long long> wide(1);
    Buffer<int> lowest(std::vector<int>{-1000, 7});
    CHECK(run("atomics", {4, 1, 96}, counters.address, wide.address, lowest.address) == 0);
    check_equal(counters.read(), {4u * 95 * 96 / 2, ~0u, 95 * 7 + 3}, "32-bit atomics");
    check_equal(wide.read(), {(1ull << 33) * 4 * 96}, "64-bit atomics");
    check_equal(lowest.read(), {-5, 7 - 4 * 95 * 96 / 2}, "signed maximum and reduction");
}

void intrinsics() {
    std::vector<unsigned> in(3 * 64), expected(9 * 64);
    emulator::Random random{3};
    for (unsigned& x : in) x = static_cast<unsigned>(random.next() >> 32);
    in[0] = 0;
    for (std::size_t i = 0; i < 64; i++) {
        unsigned a = in[3 * i], b = in[3 * i + 1], c = in[3 * i + 2];
        unsigned char bytes[8];
        std::memcpy(bytes, &a, 4);
        std::memcpy(bytes + 4, &b, 4);
        unsigned permuted = 0, signs_spread = 0;
        int dot_s = static_cast<int>(c);
        for (int j = 0; j < 4; j++) {
            unsigned nibble = c >> 4 * j & 15, byte = bytes[nibble & 7];
            permuted |= byte << 8 * j;
            signs_spread |= (nibble < 8 ? byte : byte > 127 ? 255 : 0) << 8 * j;
            dot_s = static_cast<int>(static_cast<unsigned>(dot_s) +
                                     static_cast<unsigned>(static_cast<signed char>(bytes[j]) * static_cast<signed char>(bytes[j + 4])));
        }
        unsigned zeros = 0;
        while (zeros < 32 && !(a >> (31 - zeros) & 1)) zeros++;
        unsigned fa = a & 0x3FFFFFFF, fb = b & 0x3FFFFFFF, reversed = 0;
        float x, y;
        std::memcpy(&x, &fa, 4);
        std::memcpy(&y, &fb, 4);
        float fused = std::fma(x, y, 1.5f);
        for (int j = 0; j < 32; j++) reversed = reversed << 1 | (a >> j & 1);
        unsigned* row = &expected[9 * i];
        row[0] = permuted;
        row[1] = static_cast<unsigned>(dot_s);
        row[2] = static_cast<unsigned>(dot_s) - c;
        row[3] = zeros;
        row[4] = static_cast<unsigned>(std::uint64_t{a} * b >> 32);
        std::memcpy(&row[5], &fused, 4);
        row[6] = c % 32 == 0 ? a : a >> c % 32 | b << (32 - c % 32);
        row[7] = reversed;
        row[8] = signs_spread;
    }
    Buffer<unsigned> a(in), b(expected.size());
    CHECK(run("bytes", {1, 1, 64}, a.address, b.address) == 0);
    check_equal(b.read(), expected, "byte and bit intrinsics");
}

void copies() {
    const unsigned stages = 5, valid = 40;
    std::vector<unsigned> in(stages * 64 * 4);
    for (std::size_t i = 0; i < in.size(); i++) in[i] = static_cast<unsigned>(i * 2654435761u);
    Buffer<unsigned> a(in), b(64);
    CHECK(run("async_ring", {1, 1, 64}, a.address, b.address, static_cast<int>(stages), static_cast<int>(valid)) == 0);
    std::vector<unsigned> expected(64);
    for (unsigned t = 0; t < 64; t++)
        for (unsigned s = 0; s < stages; s++) {
            unsigned from = (t + 1) % 64;
            if (s == stages - 1 && from >= valid) continue; // filled with zeros
            const unsigned* v = &in[(s * 64 + from) * 4];
            expected[t] += v[0] * 3 + v[1] * 5 + v[2] * 7 + v[3] * 11;
        }
    check_equal(b.read(), expected, "cp.async in a ring of two");

    CHECK(run("bulk_ring", {2, 1, 96, 1, 512}, a.address, b.address, 7) == 0);
    for (unsigned t = 0; t < 64; t++) {
        expected[t] = 0;
        for (unsigned s = 0; s < 7; s++) expected[t] = expected[t] * 31 + in[s * 64 + 63 - t];
    }
    check_equal(b.read(), expected, "bulk copies and mbarriers in a ring of two");
}

void clusters() {
    const unsigned blocks = 6;
    const int stages = 7;
    std::vector<unsigned> in((blocks / 2 + stages) * 64);
    for (std::size_t i = 0; i < in.size(); i++) in[i] = static_cast<unsigned>(i * 2654435761u);
    Buffer<unsigned> a(in), b(blocks * 64);
    Shape shape{blocks, 1, 96, 1, 512};
    CHECK(run("multicast_ring", shape, a.address, b.address, stages, 0) == 0);
    std::vector<unsigned> expected(blocks * 64);
    for (unsigned block = 0; block < blocks; block++)
        for (unsigned t = 0; t < 64; t++) {
            unsigned& sum = expected[block * 64 + t];
            sum = block % 2;
            for (unsigned s = 0; s < stages; s++) sum = sum * 31 + in[block / 2 * 64 + s * 64 + 63 - t];
        }
    check_equal(b.read(), expected, "multicast copies and remote arrivals in a ring of two");
    Buffer<int> ones(128);
    CHECK(run("cluster_mistakes", {2, 1, 64}, ones.address, 0) == 0);
    check_equal(ones.read(), std::vector<int>(128, 1), "a barrier of a cluster");
    CHECK(run("multicast_ring", {3, 1, 96, 1, 512}, a.address, b.address, stages, 0) == 912);
}

} // namespace

void test_primitives() {
    indices_and_blocks();
    barriers();
    warp_operations();
    atomics();
    intrinsics();
    copies();
    clusters();
}
