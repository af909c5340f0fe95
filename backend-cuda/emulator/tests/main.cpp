// emulator_test: runs everything, the primitives in every order and both kinds of asynchrony.
// emulator_test speed: what mma and a plain thread cost.
#include "harness.hpp"

#include <chrono>

namespace {

void speed() {
    const int rounds = 20000;
    Buffer<int> out(128);
    auto start = std::chrono::steady_clock::now();
    CHECK(run("mma_speed", {1, 1, 128}, out.address, rounds) == 0);
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("mma m16n8k32: %.0f MMAC/s\n", 4.0 * rounds * 16 * 8 * 32 / seconds / 1e6);
}

} // namespace

int main(int argc, char** argv) {
    using emulator::Order;
    auto& options = emulator::options();
    options.devices = 2;
    void* primary = nullptr;
    CHECK(cuInit(0) == 0);
    CHECK(cuDevicePrimaryCtxRetain(&primary, 0) == 0);
    CHECK(cuCtxSetCurrent(primary) == 0);
    if (argc > 1 && std::string(argv[1]) == "speed") {
        speed();
        return counts.failed == 0 ? 0 : 1;
    }
    for (bool late : {true, false})
        for (int i = 0; i < 8; i++) {
            options.late = late;
            options.order = i == 0 ? Order::Forward : i == 1 ? Order::Reverse : Order::Shuffle;
            options.seed = static_cast<std::uint64_t>(i);
            const char* order = i == 0 ? "forward" : i == 1 ? "reverse" : "shuffle";
            context = std::string(late ? "late " : "early ") + order + " " + std::to_string(i);
            test_primitives();
            test_tensor();
        }
    test_faults();
    test_driver();
    std::printf("emulator: %lu checks, %lu failed\n", counts.checks, counts.failed);
    return counts.failed == 0 && counts.checks > 0 ? 0 : 1;
}
