// Each mistake in faults.cu is caught: by a wrong result in one of the modes that it is run in (and
// the kernel without the mistake is right in all of them), or by a fault that says what is wrong.
#include "harness.hpp"

#include "../errors.hpp"

namespace {

using emulator::Order;
namespace error = emulator::error;

struct Mode {
    Order order;
    std::uint64_t seed;
    bool late;
};

std::vector<Mode> modes() {
    std::vector<Mode> all;
    for (bool late : {true, false}) {
        all.push_back({Order::Forward, 0, late});
        all.push_back({Order::Reverse, 0, late});
        for (std::uint64_t seed = 1; seed <= 3; seed++) all.push_back({Order::Shuffle, seed, late});
    }
    return all;
}

void choose(const Mode& mode) {
    emulator::options().order = mode.order;
    emulator::options().seed = mode.seed;
    emulator::options().late = mode.late;
}

// result(right) -> the kernel's output. Caught: some mode differs from the right kernel's.
template <class Result>
void caught_by_a_wrong_result(const char* name, Result result) {
    context = name;
    choose(modes()[0]);
    auto expected = result(true);
    int caught = 0;
    for (const Mode& mode : modes()) {
        choose(mode);
        check(result(true) == expected, "the right kernel gives the same in every mode");
        if (result(false) != expected) caught++;
        reset();
    }
    std::printf("  %-32s wrong result in %d of %zu modes\n", name, caught, modes().size());
    check(caught > 0, "the mistake shows in some mode");
}

constexpr Mode plainly{Order::Forward, 0, true}, at_once{Order::Forward, 0, false};

template <class Run>
void caught_by_a_fault(const char* name, int code, const char* text, Run run_it, Mode mode = plainly) {
    context = name;
    choose(mode);
    std::fflush(stdout);
    int got = run_it();
    check(got == code, "the fault's code");
    std::string fault = fp4_emulator_last_fault();
    if (!check(fault.find(text) != std::string::npos, text)) std::printf("  the text was: %s\n", fault.c_str());
    check(cuCtxSynchronize() == code, "the fault stays");
    reset();
    check(cuCtxSynchronize() == 0, "the fault is gone after a reset");
}

std::vector<int> counting(std::size_t n) {
    std::vector<int> v(n);
    for (std::size_t i = 0; i < n; i++) v[i] = static_cast<int>(i * 37 + 5);
    return v;
}

template <class T>
auto plain(const char* kernel, const std::vector<T>& in, unsigned threads) {
    return [=](bool right) {
        Buffer<T> a(in);
        Buffer<T> b(256);
        run(kernel, {1, 1, threads}, a.address, b.address, right ? 1 : 0);
        return b.read();
    };
}

void wrong_results() {
    auto ints = counting(256);
    caught_by_a_wrong_result("without_first_barrier", plain("without_first_barrier", ints, 256));
    caught_by_a_wrong_result("without_second_barrier", plain("without_second_barrier", ints, 256));
    caught_by_a_wrong_result("without_syncwarp", plain("without_syncwarp", ints, 32));
    caught_by_a_wrong_result("without_async_wait", plain("without_async_wait", counting(256), 64));
    caught_by_a_wrong_result("async_into_a_buffer_in_use", plain("async_into_a_buffer_in_use", counting(768), 64));
    caught_by_a_wrong_result("swapped_fragment", [](bool right) {
        std::vector<unsigned> fa(128), fb(64);
        for (unsigned i = 0; i < 128; i++) fa[i] = i * 0x9E3779B9u;
        for (unsigned i = 0; i < 64; i++) fb[i] = i * 0x85EBCA6Bu;
        Buffer<unsigned> a(fa), b(fb);
        Buffer<int> d(128);
        run("swapped_fragment", {}, a.address, b.address, d.address, right ? 1 : 0);
        return d.read();
    });
    caught_by_a_wrong_result("multicast into a buffer in use", [](bool right) {
        std::vector<unsigned> in(16 * 64);
        for (std::size_t i = 0; i < in.size(); i++) in[i] = static_cast<unsigned>(i * 2654435761u);
        Buffer<unsigned> stages(in), sums(128);
        run("multicast_ring", {2, 1, 96, 1, 512}, stages.address, sums.address, 7, right ? 0 : 2);
        return sums.read();
    });
    for (int mistake : {1, 3})
        caught_by_a_wrong_result(mistake == 1 ? "wgmma without its wait" : "wgmma with B overwritten", [=](bool right) {
            std::vector<unsigned char> tile(64 * 32);
            for (std::size_t i = 0; i < tile.size(); i++) tile[i] = static_cast<unsigned char>(i * 31 + 7);
            Buffer<unsigned char> b(tile);
            Buffer<int> d(128 * 32);
            run("wgmma_mistakes", {1, 1, 128, 1, 4096}, b.address, d.address, right ? 0 : mistake);
            return d.read();
        });
}

void faults() {
    Buffer<int> small(100), out(256);
    Buffer<unsigned> words(64);
    Buffer<unsigned char> bytes(64 * 32);
    auto one = [](const char* kernel, Shape shape, auto... arguments) {
        return [=] { return run(kernel, shape, arguments...); };
    };
    Shape single{1, 1, 1};

    CHECK(run("write", single, small.address, 0, 100) == 0);
    caught_by_a_fault("a write past the end", error::illegal_address, "byte 400 of an allocation of 400 bytes", [&] {
        Buffer<int> victim(100);
        return run("write", single, victim.address, 0, 101);
    });
    caught_by_a_fault("a write before the start", error::illegal_address, "byte -4 of an allocation", [&] {
        Buffer<int> victim(100);
        return run("write", single, victim.address, -1, 1);
    });
    caught_by_a_fault("a read far past the end", error::illegal_address, "illegal access to address", [&] {
        Buffer<int> victim(100);
        return run("read", single, victim.address, out.address, 1 << 10);
    });
    caught_by_a_fault("a null pointer", error::illegal_address, "kernel read, block (0, 0, 0), thread (0, 0, 0)",
                      one("read", single, std::uintptr_t{0}, out.address, 0));
    caught_by_a_fault("use after free", error::illegal_address, "illegal access", [&] {
        std::uintptr_t gone;
        {
            Buffer<int> freed(100);
            gone = freed.address;
        }
        return run("read", single, gone, out.address, 0);
    });
    Shape with_dynamic{1, 1, 1, 1, 32};
    CHECK(run("write_shared", with_dynamic, out.address, 7, 0) == 0);
    CHECK(run("write_shared", with_dynamic, out.address, 7, 1) == 0);
    caught_by_a_fault("past a static array", error::illegal_address, "a write 0 bytes past the end of a static shared array",
                      one("write_shared", with_dynamic, out.address, 8, 0));
    caught_by_a_fault("past dynamic shared memory", error::illegal_address, "past the end of dynamic shared memory",
                      one("write_shared", with_dynamic, out.address, 8, 1));
    caught_by_a_fault("static shared memory over 48 KiB", error::out_of_resources, "52000 bytes of shared memory",
                      one("too_much_shared", single, out.address));

    Shape two_warps{1, 1, 64};
    caught_by_a_fault("half a barrier", error::launch_timeout, "barrier 4: 32 of 64 threads arrived",
                      one("half_a_barrier", two_warps, out.address));
    CHECK(std::string(fp4_emulator_last_fault()).find("kernel half_a_barrier, block (0, 0, 0)") == 0);
    CHECK(std::string(fp4_emulator_last_fault()).find("warp 0 lanes 0xffffffff: named barrier") != std::string::npos);
    caught_by_a_fault("an arrival that is missing", error::launch_timeout, "mbarrier (shared memory + ",
                      one("no_arrival", two_warps, out.address));

    caught_by_a_fault("lanes at different operations", error::launch_failed, "divergent warp",
                      one("divergent", Shape{}, out.address, 0));
    caught_by_a_fault("a mask with an ended lane", error::launch_failed, "lanes that have ended (0x00000008)",
                      one("divergent", Shape{}, out.address, 1));
    caught_by_a_fault("a lane outside of the mask", error::launch_failed, "reads lane 20, which is not in the mask",
                      one("divergent", Shape{}, out.address, 2));
    caught_by_a_fault("a misaligned copy", error::misaligned_address, "is not a multiple of 16",
                      one("misaligned_copy", single, bytes.address, out.address));

    CHECK(run("undefined", single, words.address, out.address, 0, 4) == 0);
    CHECK(run("undefined", single, words.address, out.address, 1, 3) == 0);
    CHECK(run("undefined", single, words.address, out.address, 2, 31) == 0);
    caught_by_a_fault("a misaligned load", error::misaligned_address, "is not a multiple of 16",
                      one("undefined", single, words.address, out.address, 0, 2));
    caught_by_a_fault("an index past an array", error::illegal_address, "index 4 is outside of the array",
                      one("undefined", single, words.address, out.address, 1, 4));
    caught_by_a_fault("a shift by the width", error::launch_failed, "a shift by 32",
                      one("undefined", single, words.address, out.address, 2, 32));

    Shape warpgroup{1, 1, 128, 1, 4096};
    Buffer<int> d(128 * 32);
    caught_by_a_fault("wgmma without a fence", error::launch_failed, "no wgmma_fence()",
                      one("wgmma_mistakes", warpgroup, bytes.address, d.address, 2));
    caught_by_a_fault("wgmma that nobody waits for", error::launch_failed, "ends with a wgmma",
                      one("wgmma_never_waited", warpgroup, d.address));
    caught_by_a_fault("wgmma by half a warpgroup", error::launch_failed, "not in a full warpgroup",
                      one("wgmma_mistakes", Shape{1, 1, 64, 1, 4096}, bytes.address, d.address, 0));
    caught_by_a_fault("a bulk copy that nobody waits for", error::launch_failed, "1 bulk copies that nobody waited for",
                      one("bulk_copy_never_waited", Shape{1, 1, 32, 1, 128}, words.address, out.address));

    Buffer<unsigned> stages(16 * 64), sums(128);
    Shape pair{2, 1, 96, 1, 512};
    auto ring = [&](int mistake) { return one("multicast_ring", pair, stages.address, sums.address, 7, mistake); };
    caught_by_a_fault("a missing remote arrival", error::launch_timeout, "block 1 of the cluster, warp 0 lanes 0x00000001: mbarrier",
                      ring(1));
    caught_by_a_fault("a block that leaves its cluster early", error::illegal_address, "block 0 of the cluster has ended", ring(3));
    caught_by_a_fault("a block that does not wait for the other's start", error::launch_failed, "the mbarrier is not initialized",
                      ring(4), at_once);
    Shape two{2, 1, 64};
    caught_by_a_fault("half a barrier of a cluster", error::launch_timeout, "barrier.cluster (96 of 128 threads arrived)",
                      one("cluster_mistakes", two, out.address, 1));
    caught_by_a_fault("a barrier of a cluster arrived at twice", error::launch_failed, "arrived before, and has not waited",
                      one("cluster_mistakes", two, out.address, 2));
    caught_by_a_fault("a rank outside of the cluster", error::launch_failed, "block 2 of a cluster of 2",
                      one("cluster_mistakes", two, out.address, 3));
}

} // namespace

void test_faults() {
    wrong_results();
    faults();
    choose({Order::Forward, 0, true});
}
