// What the environment asks of the emulator; read once, at the first use.
//
//   FP4_EMULATOR_SM=90             compute capability, ten times major plus minor
//   FP4_EMULATOR_DEVICES=1         number of devices
//   FP4_EMULATOR_MEMORY=4294967296 bytes of memory of each
//   FP4_EMULATOR_ORDER=forward | reverse | shuffle:SEED
//                                  which warp (lane, block, late copy) goes first where several may
//   FP4_EMULATOR_ASYNC=late | early
//                                  asynchronous work is done at its wait, or when it is issued
//   FP4_EMULATOR_FAIL=alloc:N,launch:N,sync:N,module:N,set:N,large:BYTES
//                                  the N-th such call fails: out of memory, launch failed, lost
//                                  device, out of memory when a module is loaded or memory is
//                                  set; large: every allocation of so many bytes or more
//
// A word that is not understood stops the process with a message: a test that believes to run in
// reverse must not run forward.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

enum class Order { Forward, Reverse, Shuffle };

struct Options {
    int sm = 90;
    int devices = 1;
    std::size_t memory = std::size_t{4} << 30;
    Order order = Order::Forward;
    std::uint64_t seed = 0;
    bool late = true;
    // Calls until the one that fails; 0: never.
    unsigned long fail_alloc = 0, fail_launch = 0, fail_sync = 0, fail_module = 0, fail_set = 0;
    unsigned long fail_large = 0; // bytes; 0: none
};

// Tests may change it between launches.
Options& options();

// Numbers for Order::Shuffle (splitmix64).
struct Random {
    std::uint64_t state;
    std::uint64_t next() {
        std::uint64_t z = (state += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    unsigned below(unsigned n) { return static_cast<unsigned>((next() >> 32) * n >> 32); }
};

} // namespace emulator
