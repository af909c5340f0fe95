// A thin host side for the tests: it goes through the exported driver functions, as cudarc does.
#pragma once

#include "../options.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

struct Module;
struct Function;
struct Stream;
struct Graph;
extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuDevicePrimaryCtxReset_v2(int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(void*);
int cuCtxSynchronize();
int cuMemAlloc_v2(std::uintptr_t*, std::size_t);
int cuMemFree_v2(std::uintptr_t);
int cuMemcpyHtoD_v2(std::uintptr_t, const void*, std::size_t);
int cuMemcpyDtoH_v2(void*, std::uintptr_t, std::size_t);
int cuMemsetD8Async(std::uintptr_t, unsigned char, std::size_t, Stream*);
int cuMemAllocAsync(std::uintptr_t*, std::size_t, Stream*);
int cuMemFreeAsync(std::uintptr_t, Stream*);
int cuMemHostAlloc(void**, std::size_t, unsigned);
int cuMemFreeHost(void*);
int cuMemcpyHtoDAsync_v2(std::uintptr_t, const void*, std::size_t, Stream*);
int cuMemcpyDtoHAsync_v2(void*, std::uintptr_t, std::size_t, Stream*);
int cuModuleLoadData(Module**, const void*);
int cuModuleGetFunction(Function**, Module*, const char*);
int cuFuncSetAttribute(Function*, int, int);
int cuFuncGetAttribute(int*, int, Function*);
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int*, Function*, int, std::size_t);
int cuLaunchKernel(Function*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream*, void**, void**);
int cuStreamCreate(Stream**, unsigned);
int cuStreamSynchronize(Stream*);
int cuStreamDestroy_v2(Stream*);
int cuStreamBeginCapture_v2(Stream*, int);
int cuStreamEndCapture(Stream*, Graph**);
int cuGraphInstantiateWithFlags(Graph**, Graph*, unsigned long long);
int cuGraphLaunch(Graph*, Stream*);
int cuGraphDestroy(Graph*);
int cuGraphExecDestroy(Graph*);
int cuGetErrorName(int, const char**);
const char* fp4_emulator_last_fault();
}

// Counts of this run; a failed check prints and goes on.
struct Counts {
    unsigned long checks = 0, failed = 0;
};
inline Counts counts;
inline std::string context; // what is being tested, printed with a failure

inline bool check(bool ok, const char* what) {
    counts.checks++;
    if (!ok) {
        counts.failed++;
        std::printf("FAILED [%s]: %s\n", context.c_str(), what);
    }
    return ok;
}
#define CHECK(condition) check(condition, #condition)

template <class T>
void check_equal(const std::vector<T>& got, const std::vector<T>& expected, const char* what) {
    for (std::size_t i = 0; i < expected.size() && i < got.size(); i++)
        if (got[i] != expected[i]) {
            std::printf("first difference at %zu: got %lld, expected %lld\n", i, static_cast<long long>(got[i]),
                        static_cast<long long>(expected[i]));
            break;
        }
    check(got == expected, what);
}

// Device memory of a vector.
template <class T>
class Buffer {
public:
    explicit Buffer(const std::vector<T>& data) : count(data.size()) {
        check(cuMemAlloc_v2(&address, count * sizeof(T)) == 0, "allocate");
        check(cuMemcpyHtoD_v2(address, data.data(), count * sizeof(T)) == 0, "copy to the device");
    }
    explicit Buffer(std::size_t n) : Buffer(std::vector<T>(n)) {}
    ~Buffer() { cuMemFree_v2(address); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    std::vector<T> read() const {
        std::vector<T> data(count);
        cuMemcpyDtoH_v2(data.data(), address, count * sizeof(T));
        return data;
    }
    std::uintptr_t address = 0;
    std::size_t count;
};

struct Shape {
    unsigned grid_x = 1, grid_y = 1, block_x = 32, block_y = 1, dynamic = 0;
};

inline Function* function(const char* name) {
    std::string ptx = ".version 9.0\n.target sm_80\n.visible .entry " + std::string(name) + "(\n)\n{ ret; }\n";
    Module* module = nullptr;
    Function* found = nullptr;
    check(cuModuleLoadData(&module, ptx.c_str()) == 0, "load a module");
    check(cuModuleGetFunction(&found, module, name) == 0, name);
    return found;
}

template <class... A>
int launch_on(Stream* stream, const char* name, Shape shape, A... arguments) {
    Function* f = function(name);
    if (!f) return -1;
    if (shape.dynamic > 48 * 1024) cuFuncSetAttribute(f, 8, static_cast<int>(shape.dynamic));
    void* pointers[] = {&arguments..., nullptr};
    return cuLaunchKernel(f, shape.grid_x, shape.grid_y, 1, shape.block_x, shape.block_y, 1, shape.dynamic, stream, pointers,
                          nullptr);
}

// Launches, synchronizes and gives the driver's code.
template <class... A>
int run(const char* name, Shape shape, A... arguments) {
    int code = launch_on(nullptr, name, shape, arguments...);
    int after = cuCtxSynchronize();
    return code ? code : after;
}

// Forgets a fault, for the next test.
inline void reset() { cuDevicePrimaryCtxReset_v2(0); }

void test_primitives();
void test_tensor();
void test_faults();
void test_driver();
