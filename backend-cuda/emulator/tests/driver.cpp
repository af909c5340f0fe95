// The driver functions: what a device would refuse is refused, with the same code.
#include "harness.hpp"

#include "../errors.hpp"

#include <functional>
#include <thread>

namespace {

namespace error = emulator::error;

void modules() {
    Module* module = nullptr;
    Function* f = nullptr;
    auto load = [&](const char* text) { return cuModuleLoadData(&module, text); };
    CHECK(load("no PTX at all") == error::invalid_ptx);
    CHECK(load(".version 9.1\n.target sm_80\n") == error::unsupported_ptx_version);
    CHECK(load(".version 9.0\n.target sm_100a\n") == error::invalid_ptx);
    CHECK(load(".version 9.0\n.target sm_80\n.visible .entry read(\n.param .u64 a\n)\n.maxntid 64, 1, 1\n{\n}\n"
               ".visible .entry unknown_here()\n{\n}\n") == 0);
    CHECK(cuModuleGetFunction(&f, module, "unknown_here") == error::not_found);
    // known, but not in this module
    CHECK(cuModuleGetFunction(&f, module, "write") == error::not_found);
    CHECK(cuModuleGetFunction(&f, module, "read") == 0);
    Buffer<int> a(64), b(1);
    int at = 0;
    void* arguments[] = {&a.address, &b.address, &at};
    auto launch = [&](unsigned grid, unsigned threads, unsigned dynamic) {
        return cuLaunchKernel(f, grid, 1, 1, threads, 1, 1, dynamic, nullptr, arguments, nullptr);
    };
    CHECK(launch(1, 64, 0) == 0);
    CHECK(launch(1, 65, 0) == error::invalid_value); // over .maxntid
    CHECK(launch(0, 64, 0) == error::invalid_value);
    CHECK(launch(1, 64, 48 * 1024) == 0);
    CHECK(launch(1, 64, 48 * 1024 + 1) == error::invalid_value);
    CHECK(cuFuncSetAttribute(f, 8, 227 * 1024 + 1) == error::invalid_value);
    CHECK(cuFuncSetAttribute(f, 8, 227 * 1024) == 0);
    CHECK(launch(1, 64, 227 * 1024) == 0);

    // A kernel's own arrays are part of what a block has, with the attribute and without.
    CHECK(load(".version 9.0\n.target sm_80\n.extern .shared .align 1024 .b8 dynamic[];\n"
               ".visible .entry read(\n.param .u64 a\n)\n{\n.shared .align 4 .b8 one[20];\n"
               ".shared .align 16 .b8 two[992];\nld.shared.u32 %r1, [one];\n}\n"
               ".visible .entry write()\n{\n.shared .align 4 .b8 other[40];\n}\n") == 0);
    CHECK(cuModuleGetFunction(&f, module, "read") == 0);
    int bytes = 0, blocks = 0;
    CHECK(cuFuncGetAttribute(&bytes, 1, f) == 0 && bytes == 1024);
    CHECK(launch(1, 64, 47 * 1024) == 0);
    CHECK(launch(1, 64, 48 * 1024) == error::invalid_value);
    CHECK(cuFuncSetAttribute(f, 8, 226 * 1024 + 1) == error::invalid_value);
    CHECK(cuFuncSetAttribute(f, 8, 226 * 1024) == 0);
    CHECK(launch(1, 64, 48 * 1024) == 0);
    CHECK(launch(1, 64, 226 * 1024) == 0);
    CHECK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, f, 64, 112 * 1024) == 0 && blocks == 2);
    CHECK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, f, 64, 113 * 1024) == 0 && blocks == 1);
}

void memory() {
    std::uintptr_t huge = 0;
    CHECK(cuMemAlloc_v2(&huge, emulator::options().memory + 1) == error::out_of_memory);
    CHECK(cuMemAlloc_v2(&huge, 0) == error::invalid_value);
    Buffer<int> a(10);
    int host[16] = {};
    CHECK(cuMemcpyDtoH_v2(host, a.address, 40) == 0);
    CHECK(cuMemcpyDtoH_v2(host, a.address, 41) == error::invalid_value);
    CHECK(cuMemcpyDtoH_v2(host, a.address + 4, 40) == error::invalid_value);
    CHECK(cuMemcpyHtoD_v2(reinterpret_cast<std::uintptr_t>(host), host, 4) == error::invalid_value);
    CHECK(cuMemsetD8Async(a.address, 1, 41, nullptr) == error::invalid_value);
    CHECK(cuMemFree_v2(a.address + 4) == error::invalid_value);
    CHECK(cuCtxSynchronize() == 0);
}

void capture() {
    Stream* stream = nullptr;
    Graph *graph = nullptr, *ready = nullptr;
    CHECK(cuStreamCreate(&stream, 0) == 0);
    Buffer<int> a(std::vector<int>{0, 0, 0}), b(std::vector<int>{7});
    Function* read = function("read"); // modules are loaded before
    int zero = 0;
    void* arguments[] = {&b.address, &a.address, &zero};
    auto queue = [&] { return cuLaunchKernel(read, 1, 1, 1, 1, 1, 1, 0, stream, arguments, nullptr); };
    CHECK(cuStreamBeginCapture_v2(stream, 0) == 0);
    CHECK(cuStreamBeginCapture_v2(stream, 0) == error::illegal_state);
    CHECK(queue() == 0);
    CHECK(cuStreamEndCapture(stream, &graph) == 0);
    check_equal(a.read(), {0, 0, 0}, "a captured launch does not run");
    CHECK(cuGraphInstantiateWithFlags(&ready, graph, 0) == 0);
    CHECK(cuGraphLaunch(ready, stream) == 0);
    check_equal(a.read(), {7, 0, 0}, "the graph runs it");
    int nine = 9;
    CHECK(cuMemcpyHtoD_v2(b.address, &nine, 4) == 0);
    CHECK(cuGraphLaunch(ready, stream) == 0);
    check_equal(a.read(), {9, 0, 0}, "the graph runs again on new data");
    cuGraphDestroy(graph);
    cuGraphExecDestroy(ready);

    // Every call that must not be made while a stream captures spoils the capture, and what follows
    // is refused.
    std::uintptr_t address = 0;
    void* pinned = nullptr;
    Module* module = nullptr;
    const std::function<int()> calls[] = {
        [&] { return cuStreamSynchronize(stream); },
        [&] { return cuCtxSynchronize(); },
        [&] { return cuMemAlloc_v2(&address, 16); },
        [&] { return cuMemHostAlloc(&pinned, 16, 0); },
        [&] { return cuModuleLoadData(&module, ".version 8.0\n.target sm_80\n"); },
    };
    for (const auto& call : calls) {
        CHECK(cuStreamBeginCapture_v2(stream, 1) == 0);
        CHECK(call() == error::capture_unsupported);
        CHECK(queue() == error::capture_invalidated);
        CHECK(cuStreamEndCapture(stream, &graph) == error::capture_invalidated);
        CHECK(graph == nullptr);
        CHECK(cuStreamSynchronize(stream) == 0);
    }

    // Host memory of either kind may be copied from; each replay copies what is there then.
    CHECK(cuMemHostAlloc(&pinned, 16, 0) == 0);
    int pageable = 0;
    for (int* number : {static_cast<int*>(pinned), &pageable}) {
        *number = 5;
        CHECK(cuStreamBeginCapture_v2(stream, 1) == 0);
        CHECK(cuMemcpyHtoDAsync_v2(b.address, number, 4, stream) == 0);
        CHECK(queue() == 0);
        CHECK(cuStreamEndCapture(stream, &graph) == 0);
        CHECK(cuGraphInstantiateWithFlags(&ready, graph, 0) == 0);
        *number = 21;
        CHECK(cuGraphLaunch(ready, stream) == 0);
        check_equal(a.read(), {21, 0, 0}, "the graph copies at each launch");
        cuGraphDestroy(graph);
        cuGraphExecDestroy(ready);
    }
    cuMemFreeHost(pinned);

    // An allocation is recorded: the address has memory after a launch, and a second one finds it
    // there still.
    CHECK(cuStreamBeginCapture_v2(stream, 1) == 0);
    CHECK(cuMemAllocAsync(&address, 16, stream) == 0);
    CHECK(cuMemsetD8Async(address, 1, 16, stream) == 0);
    CHECK(cuMemFreeAsync(a.address, stream) == error::invalid_value); // not the graph's
    CHECK(cuStreamEndCapture(stream, &graph) == 0);
    CHECK(cuGraphInstantiateWithFlags(&ready, graph, 0) == 0);
    CHECK(cuMemFree_v2(address) == error::invalid_value);
    CHECK(cuGraphLaunch(ready, stream) == 0);
    CHECK(*reinterpret_cast<int*>(address) == 0x01010101);
    CHECK(cuGraphLaunch(ready, stream) == error::invalid_value);
    cuGraphDestroy(graph);
    cuGraphExecDestroy(ready);

    // A thread without a context.
    Module* some = nullptr;
    CHECK(cuModuleLoadData(&some, ".version 9.0\n.target sm_80\n.visible .entry read()\n{\n}\n") == 0);
    std::thread([&] {
        Function* f = nullptr;
        CHECK(cuModuleGetFunction(&f, some, "read") == error::invalid_context);
        CHECK(cuFuncSetAttribute(read, 8, 1024) == error::invalid_context);
    }).join();

    // Another thread may allocate beside a thread-local capture, not beside a global one, and ends
    // neither.
    for (int mode : {0, 1}) {
        CHECK(cuStreamBeginCapture_v2(stream, mode) == 0);
        void* primary = nullptr;
        CHECK(cuDevicePrimaryCtxRetain(&primary, 0) == 0);
        int allocated = -1, ended = -1;
        std::thread([&] {
            cuCtxSetCurrent(primary);
            allocated = cuMemAlloc_v2(&address, 16);
            ended = cuStreamEndCapture(stream, &graph);
        }).join();
        CHECK(allocated == (mode == 0 ? error::capture_unsupported : error::success));
        CHECK(ended == error::capture_wrong_thread);
        CHECK(cuStreamEndCapture(stream, &graph) == (mode == 0 ? error::capture_invalidated : error::success));
        cuGraphDestroy(graph);
        if (mode == 1) cuMemFree_v2(address);
        cuDevicePrimaryCtxRelease_v2(0);
    }
    cuStreamDestroy_v2(stream);
}

void failures_on_demand() {
    std::uintptr_t address = 0;
    emulator::options().fail_alloc = 2;
    CHECK(cuMemAlloc_v2(&address, 16) == 0);
    cuMemFree_v2(address);
    CHECK(cuMemAlloc_v2(&address, 16) == error::out_of_memory);
    CHECK(cuMemAlloc_v2(&address, 16) == 0); // memory may come back
    cuMemFree_v2(address);
    emulator::options().fail_large = 1000;
    CHECK(cuMemAlloc_v2(&address, 1000) == error::out_of_memory);
    CHECK(cuMemAlloc_v2(&address, 999) == 0);
    cuMemFree_v2(address);
    emulator::options().fail_large = 0;
    emulator::options().fail_sync = 1;
    CHECK(cuCtxSynchronize() == error::device_unavailable);
    CHECK(cuMemAlloc_v2(&address, 16) == error::device_unavailable); // a lost device stays lost
    reset();
    Buffer<int> a(1);
    emulator::options().fail_launch = 1;
    CHECK(run("read", {1, 1, 1}, a.address, a.address, 0) == error::launch_failed);
    reset();
    CHECK(run("read", {1, 1, 1}, a.address, a.address, 0) == 0);
    Module* module = nullptr;
    emulator::options().fail_module = 1;
    CHECK(cuModuleLoadData(&module, ".version 8.0\n.target sm_80\n") == error::out_of_memory);
    CHECK(cuModuleLoadData(&module, ".version 8.0\n.target sm_80\n") == 0);
}

void two_devices() {
    Buffer<int> a(1);
    void *first = nullptr, *second = nullptr;
    CHECK(cuDevicePrimaryCtxRetain(&first, 0) == 0);
    CHECK(cuDevicePrimaryCtxRetain(&second, 1) == 0);
    CHECK(cuDevicePrimaryCtxRetain(&second, 2) == error::invalid_device);
    cuCtxSetCurrent(second);
    CHECK(run("read", {1, 1, 1}, a.address, a.address, 0) == error::illegal_address);
    CHECK(std::string(fp4_emulator_last_fault()).find("memory of device 0, the launch is on device 1") != std::string::npos);
    cuCtxSetCurrent(first);
    CHECK(cuCtxSynchronize() == 0); // the other device is well
}

} // namespace

void test_driver() {
    context = "driver";
    modules();
    memory();
    capture();
    failures_on_demand();
    two_devices();
}
