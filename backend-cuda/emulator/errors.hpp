// The driver's error codes that the emulator returns (CUDA driver API, CUresult), and limits.
#pragma once

namespace emulator {
namespace error {

constexpr int success = 0;
constexpr int invalid_value = 1;
constexpr int out_of_memory = 2;
constexpr int not_initialized = 3;
constexpr int no_device = 100;
constexpr int invalid_device = 101;
constexpr int invalid_image = 200;
constexpr int invalid_context = 201;
constexpr int no_binary_for_gpu = 209;
constexpr int invalid_ptx = 218;
constexpr int unsupported_ptx_version = 222;
constexpr int invalid_handle = 400;
constexpr int not_found = 500;
constexpr int not_ready = 600;
constexpr int illegal_address = 700;
constexpr int out_of_resources = 701;
constexpr int launch_timeout = 702;
constexpr int misaligned_address = 716;
constexpr int launch_failed = 719;
constexpr int not_supported = 801;
constexpr int capture_unsupported = 900;
constexpr int capture_invalidated = 901;
constexpr int capture_wrong_thread = 908;
constexpr int invalid_cluster_size = 912;
constexpr int illegal_state = 401;
constexpr int device_unavailable = 46;

} // namespace error

// Most shared memory of a block that asks for it.
constexpr unsigned max_shared_bytes(int sm) {
    return sm == 80 || sm == 87 ? 163 * 1024 : sm == 86 || sm == 89 || sm >= 120 ? 99 * 1024 : 227 * 1024;
}

} // namespace emulator
