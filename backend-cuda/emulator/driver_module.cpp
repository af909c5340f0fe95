// Modules, functions and launches.
//
// A module is PTX text or a cubin. Its code is not run: it only says which kernels there are, for
// which architecture, with how much static shared memory, and (PTX) with which launch bounds; what
// runs is the host build of the same source. So a kernel that the sources and the module do not
// both have is not found.

#include "driver.hpp"

#include "block.hpp"
#include "memory.hpp"
#include "registry.hpp"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace emulator {

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

struct Function {
    const Kernel* kernel;
    unsigned max_threads;
    unsigned static_shared;      // bytes
    unsigned max_dynamic_shared; // beside those
};
struct Module {
    std::map<std::string, Function> functions;
};

namespace {

constexpr unsigned plain_shared_bytes = 48 * 1024;

void add(Module& module, const std::string& name, unsigned max_threads, std::uint64_t static_shared) {
    auto kernel = kernels().find(name);
    auto bytes = static_cast<unsigned>(std::min<std::uint64_t>(static_shared, plain_shared_bytes));
    if (kernel != kernels().end())
        module.functions[name] = {&kernel->second, max_threads, bytes, plain_shared_bytes - bytes};
}

std::string word_after(const std::string& text, std::size_t at) {
    while (at < text.size() && std::isspace(static_cast<unsigned char>(text[at]))) at++;
    std::size_t end = at;
    while (end < text.size() && (std::isalnum(static_cast<unsigned char>(text[end])) || std::strchr("_.$", text[end]))) end++;
    return text.substr(at, end - at);
}

// sm_80 code runs on 80 and later, sm_90a code on 90 alone.
bool runs_here(const std::string& target) {
    int sm = std::atoi(target.c_str() + (target.rfind("sm_", 0) == 0 ? 3 : 0));
    bool one = !target.empty() && target.back() == 'a';
    return one ? options().sm == sm : options().sm >= sm;
}

// The static shared memory that PTX declares: ".shared .align 16 .b8 NAME[BYTES];". What is dynamic
// has no size and is declared outside of a kernel. A compiler aligns each to its alignment, so this
// is the least that it takes.
std::uint64_t shared_bytes(const std::string& body) {
    std::uint64_t bytes = 0;
    for (auto at = body.find(".shared "); at != std::string::npos; at = body.find(".shared ", at + 1)) {
        auto line = body.substr(at, body.find_first_of(";\n", at) - at);
        auto align = line.find(".align"), size = line.find('[');
        // ld.shared and the like have neither.
        if (align == std::string::npos || size == std::string::npos) continue;
        auto each = std::strtoull(line.c_str() + align + 6, nullptr, 10);
        if (each > 1) bytes = (bytes + each - 1) / each * each;
        bytes += std::strtoull(line.c_str() + size + 1, nullptr, 10);
    }
    return bytes;
}

int load_ptx(Module& module, const std::string& text) {
    auto version = text.find(".version"), target = text.find(".target");
    if (version == std::string::npos || target == std::string::npos) return error::invalid_ptx;
    if (std::atof(word_after(text, version + 8).c_str()) > 9.0) return error::unsupported_ptx_version;
    if (!runs_here(word_after(text, target + 7))) return error::invalid_ptx;
    for (auto at = text.find(".entry"); at != std::string::npos; at = text.find(".entry", at + 1)) {
        auto name = word_after(text, at + 6);
        auto head = text.substr(at, text.find('{', at) - at);
        auto bound = head.find(".maxntid");
        unsigned threads = bound == std::string::npos ? 1024 : static_cast<unsigned>(std::atoi(head.c_str() + bound + 8));
        auto body = at + head.size();
        add(module, name, threads, shared_bytes(text.substr(body, text.find(".entry", body) - body)));
    }
    return error::success;
}

template <class T>
T read(const unsigned char* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

// A 64-bit ELF file whose sections .text.NAME are the kernels; .nv.shared.NAME is as large as the
// static shared memory of one.
int load_cubin(Module& module, const unsigned char* image) {
    auto sections = image + read<std::uint64_t>(image + 0x28);
    auto flags = read<std::uint32_t>(image + 0x30);
    auto size = read<std::uint16_t>(image + 0x3A), count = read<std::uint16_t>(image + 0x3C);
    auto names_at = read<std::uint16_t>(image + 0x3E);
    // Since ABI version 8 (CUDA 13) the architecture lies in bits 8..15, before in bits 0..7.
    auto sm = static_cast<int>(image[8] >= 8 ? flags >> 8 & 0xFF : flags & 0xFF);
    if (sm / 10 != options().sm / 10 || sm > options().sm) return error::no_binary_for_gpu;
    auto names = reinterpret_cast<const char*>(image + read<std::uint64_t>(sections + names_at * size + 0x18));
    auto name = [&](int i) { return std::string(names + read<std::uint32_t>(sections + i * size)); };
    const std::string shared = ".nv.shared.";
    std::map<std::string, std::uint64_t> bytes;
    for (int i = 0; i < count; i++)
        if (name(i).rfind(shared, 0) == 0) bytes[name(i).substr(shared.size())] = read<std::uint64_t>(sections + i * size + 0x20);
    for (int i = 0; i < count; i++)
        if (name(i).rfind(".text.", 0) == 0) add(module, name(i).substr(6), 1024, bytes[name(i).substr(6)]);
    return error::success;
}

// The block that a launch asks for must be one that a device would run.
int check_launch(const Function& function, Index grid, Index block, unsigned dynamic) {
    if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z) return error::invalid_value;
    if (grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535) return error::invalid_value;
    if (block.x > 1024 || block.y > 1024 || block.z > 64) return error::invalid_value;
    if (grid.x % function.kernel->cluster != 0) return error::invalid_cluster_size;
    std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
    if (threads > function.max_threads) return error::invalid_value;
    if (dynamic > function.max_dynamic_shared) return error::invalid_value;
    return error::success;
}

// A pointer to another device's memory is an illegal access unless peers are mapped, which they are
// not. Inside a struct every aligned word is looked at: no number that a kernel takes is an address
// of the emulator's.
std::string foreign_pointer(const Kernel& kernel, void* const* arguments, int device) {
    for (std::size_t i = 0; i < kernel.argument_bytes.size(); i++) {
        if (!kernel.argument_may_point[i]) continue;
        for (std::size_t at = 0; at + sizeof(DevicePointer) <= kernel.argument_bytes[i]; at += sizeof(DevicePointer)) {
            DevicePointer value;
            std::memcpy(&value, static_cast<unsigned char*>(arguments[i]) + at, sizeof value);
            int owner = device_of(value);
            if (owner >= 0 && owner != device)
                return "kernel " + kernel.name + ": argument " + std::to_string(i) + " points to memory of device " +
                       std::to_string(owner) + ", the launch is on device " + std::to_string(device);
        }
    }
    return {};
}

} // namespace
} // namespace emulator

using namespace emulator;

FP4_API cuDeviceGetAttribute(int* value, int attribute, int device);

FP4_API cuModuleLoadData(Module** module, const void* image) {
    if (int code = usable()) return code;
    if (int code = forbidden_in_capture()) return code;
    if (must_fail(Call::Module)) return error::out_of_memory;
    auto* bytes = static_cast<const unsigned char*>(image);
    auto made = std::make_unique<Module>();
    int code = std::memcmp(bytes, "\x7f" "ELF", 4) == 0 ? load_cubin(*made, bytes)
               : std::memcmp(bytes, "\x50\xed\x55\xba", 4) == 0
                   ? error::not_supported // a fat binary
                   : load_ptx(*made, static_cast<const char*>(image));
    if (code == error::success) *module = made.release();
    return code;
}

FP4_API cuModuleLoadDataEx(Module** module, const void* image, unsigned, int*, void**) { return cuModuleLoadData(module, image); }

FP4_API cuModuleLoad(Module** module, const char* path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return 301; // file not found
    std::string image((std::istreambuf_iterator<char>(file)), {});
    return cuModuleLoadData(module, image.c_str());
}

FP4_API cuModuleUnload(Module* module) {
    delete module;
    return error::success;
}

FP4_API cuModuleGetFunction(Function** function, Module* module, const char* name) {
    if (int code = usable()) return code;
    auto found = module->functions.find(name);
    if (found == module->functions.end()) return error::not_found;
    *function = &found->second;
    return error::success;
}

FP4_API cuModuleGetGlobal_v2(DevicePointer*, std::size_t*, Module*, const char*) { return error::not_found; }

FP4_API cuFuncGetAttribute(int* value, int attribute, Function* function) {
    switch (attribute) {
    case 0: *value = static_cast<int>(function->max_threads); break;
    case 1: *value = static_cast<int>(function->static_shared); break;
    case 4: *value = 32; break;                 // registers
    case 5: *value = 90; break;                 // PTX version
    case 6: *value = options().sm; break;       // binary version
    case 8: *value = static_cast<int>(function->max_dynamic_shared); break;
    default: *value = 0; break;
    }
    return error::success;
}

FP4_API cuFuncSetAttribute(Function* function, int attribute, int value) {
    if (int code = usable()) return code;
    if (attribute == 8) {
        auto most = max_shared_bytes(options().sm) - function->static_shared;
        if (value < 0 || static_cast<unsigned>(value) > most) return error::invalid_value;
        function->max_dynamic_shared = static_cast<unsigned>(value);
    }
    return error::success;
}

FP4_API cuFuncSetCacheConfig(Function*, int) { return error::success; }

FP4_API cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned dynamic, Stream* stream, void** arguments, void** extra) {
    if (int code = usable()) return code;
    if (extra) return error::not_supported;
    Index grid{grid_x, grid_y, grid_z}, threads{block_x, block_y, block_z};
    if (int code = check_launch(*function, grid, threads, dynamic)) return code;
    Device& device = *bound();
    if (must_fail(Call::Launch)) {
        report(device, error::launch_failed, "FP4_EMULATOR_FAIL: the device is lost at this launch");
        return device.fault;
    }
    const Kernel& kernel = *function->kernel;
    if (auto text = foreign_pointer(kernel, arguments, device.ordinal); !text.empty()) {
        report(device, error::illegal_address, text);
        return error::success;
    }
    // The caller's arguments last only as long as this call; a captured launch runs later.
    auto values = std::make_shared<std::vector<std::vector<unsigned char>>>();
    for (std::size_t i = 0; i < kernel.argument_bytes.size(); i++) {
        auto* bytes = static_cast<unsigned char*>(arguments[i]);
        values->emplace_back(bytes, bytes + kernel.argument_bytes[i]);
    }
    return enqueue(stream, [=, &kernel, &device] {
        std::vector<void*> pointers;
        for (auto& value : *values) pointers.push_back(value.data());
        Launch launch{kernel.name.c_str(), [&] { kernel.call(kernel.function, pointers.data()); }, grid, threads, dynamic,
                      kernel.cluster};
        Fault fault = machinery().run(launch);
        if (!fault.text.empty()) report(device, fault.code, fault.text);
        return error::success;
    });
}

FP4_API cuLaunchCooperativeKernel(Function*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                  Stream*, void**) {
    return error::not_supported;
}

// By threads and by shared memory, static and dynamic and what the system takes of each block. Of
// registers nothing is known here, so a device may run fewer.
FP4_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function, int block_threads, std::size_t dynamic) {
    int by_threads = 2048 / (block_threads > 0 ? block_threads : 1);
    auto by_shared = static_cast<int>((max_shared_bytes(options().sm) + 1024) / (function->static_shared + dynamic + 1024));
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    if (*blocks > 32) *blocks = 32;
    return error::success;
}
FP4_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Function* function, int block_threads,
                                                             std::size_t dynamic, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, block_threads, dynamic);
}

// Of the CUlaunchConfig only what it begins with matters here: grid, block and dynamic shared
// memory; the size of the kernel's clusters is its own, and attributes are not read. As for blocks,
// registers are not counted, which a device does. The number only sizes a grid: clusters run one
// after the other, so what several at once do to the same memory is not tried.
FP4_API cuOccupancyMaxActiveClusters(int* clusters, Function* function, const unsigned* config) {
    int blocks = 0, processors = 0;
    if (int code = usable()) return code;
    auto threads = static_cast<int>(config[3] * config[4] * config[5]);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, threads, config[6]);
    cuDeviceGetAttribute(&processors, 16, bound()->ordinal);
    *clusters = blocks * processors / static_cast<int>(function->kernel->cluster);
    return error::success;
}
