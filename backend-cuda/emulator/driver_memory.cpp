// Allocation, copies, memset and memory pools.

#include "driver.hpp"

#include "memory.hpp"

#include <cstdlib>
#include <cstring>
#include <map>

#include <sys/mman.h>

using namespace emulator;

namespace {

// Memory of graphs: addresses from the recording on, and memory behind them once a launch of the
// graph allocated it.
struct OfGraph {
    std::size_t bytes;
    bool mapped;
};
std::mutex of_graphs_mutex;
std::map<DevicePointer, OfGraph>& of_graphs() {
    static std::map<DevicePointer, OfGraph> all;
    return all;
}

bool is_of_graph(DevicePointer address, std::size_t bytes) {
    std::lock_guard lock(of_graphs_mutex);
    auto after = of_graphs().upper_bound(address);
    if (after == of_graphs().begin()) return false;
    auto [start, memory] = *--after;
    return address - start + bytes <= memory.bytes;
}

int record_allocation(DevicePointer* address, std::size_t bytes, Stream* stream) {
    if (bytes == 0) return error::invalid_value;
    void* made = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) return error::out_of_memory;
    *address = reinterpret_cast<DevicePointer>(made);
    std::lock_guard lock(of_graphs_mutex);
    of_graphs()[*address] = {bytes, false};
    return enqueue(stream, [=, at = *address] {
        std::lock_guard lock(of_graphs_mutex);
        auto& memory = of_graphs()[at];
        // Not freed since the last launch.
        if (memory.mapped || mprotect(made, bytes, PROT_READ | PROT_WRITE) != 0) return error::invalid_value;
        memory.mapped = true;
        return error::success;
    });
}

int record_free(DevicePointer address, Stream* stream) {
    if (!is_of_graph(address, 0)) return error::invalid_value;
    return enqueue(stream, [=] {
        std::lock_guard lock(of_graphs_mutex);
        auto& memory = of_graphs()[address];
        memory.mapped = false;
        mprotect(reinterpret_cast<void*>(address), memory.bytes, PROT_NONE);
        return error::success;
    });
}

bool on_device(DevicePointer address, std::size_t bytes) {
    return bytes == 0 || covers(address, bytes) || is_of_graph(address, bytes);
}

int move(Stream* stream, void* to, const void* from, std::size_t bytes) {
    return enqueue(stream, [=] {
        std::memmove(to, from, bytes);
        return error::success;
    });
}

template <class T>
int fill(Stream* stream, DevicePointer to, T value, std::size_t count) {
    if (int code = usable()) return code;
    if (!on_device(to, count * sizeof(T)) || to % sizeof(T) != 0) return error::invalid_value;
    if (must_fail(Call::Set)) return error::out_of_memory;
    return enqueue(stream, [=] {
        auto* cells = reinterpret_cast<T*>(to);
        for (std::size_t i = 0; i < count; i++) cells[i] = value;
        return error::success;
    });
}

} // namespace

FP4_API cuMemAlloc_v2(DevicePointer* address, std::size_t bytes) {
    if (int code = usable()) return code;
    if (int code = forbidden_in_capture()) return code;
    if (bytes == 0) return error::invalid_value;
    bool too_large = options().fail_large > 0 && bytes >= options().fail_large;
    *address = must_fail(Call::Alloc) || too_large ? 0 : allocate(bound()->ordinal, bytes);
    return *address ? error::success : error::out_of_memory;
}

// On a stream that captures both are recorded: the memory is the graph's, and only its launches
// allocate and free it.
FP4_API cuMemAllocAsync(DevicePointer* address, std::size_t bytes, Stream* stream) {
    if (int code = usable()) return code;
    if (stream && stream->capture) return record_allocation(address, bytes, stream);
    return cuMemAlloc_v2(address, bytes);
}
FP4_API cuMemAllocFromPoolAsync(DevicePointer* address, std::size_t bytes, void*, Stream* stream) {
    return cuMemAllocAsync(address, bytes, stream);
}

// Frees even after a fault, as owners do when they go.
FP4_API cuMemFree_v2(DevicePointer address) {
    if (address == 0) return error::success;
    int device = device_of(address);
    std::string text;
    if (int code = release(address, text)) return code;
    if (!text.empty()) {
        report(*device_at(device < 0 ? 0 : device), error::illegal_address, text);
        return error::illegal_address;
    }
    return error::success;
}
FP4_API cuMemFreeAsync(DevicePointer address, Stream* stream) {
    if (stream && stream->capture) return record_free(address, stream);
    return cuMemFree_v2(address);
}

FP4_API cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    if (int code = usable()) return code;
    *total = options().memory;
    *free = *total - used(bound()->ordinal);
    return error::success;
}

FP4_API cuMemHostAlloc(void** pointer, std::size_t bytes, unsigned) {
    if (int code = usable()) return code;
    if (int code = forbidden_in_capture()) return code;
    *pointer = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *pointer ? error::success : error::out_of_memory;
}
FP4_API cuMemAllocHost_v2(void** pointer, std::size_t bytes) { return cuMemHostAlloc(pointer, bytes, 0); }
FP4_API cuMemFreeHost(void* pointer) {
    std::free(pointer);
    return error::success;
}

// A recorded copy is made at each launch, from or to host memory of either kind, whatever is there
// by then.
FP4_API cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, std::size_t bytes, Stream* stream) {
    if (int code = usable()) return code;
    if (!on_device(to, bytes)) return error::invalid_value;
    return move(stream, reinterpret_cast<void*>(to), from, bytes);
}
FP4_API cuMemcpyHtoD_v2(DevicePointer to, const void* from, std::size_t bytes) {
    return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
}

FP4_API cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, std::size_t bytes, Stream* stream) {
    if (int code = usable()) return code;
    if (!on_device(from, bytes)) return error::invalid_value;
    return move(stream, to, reinterpret_cast<const void*>(from), bytes);
}
FP4_API cuMemcpyDtoH_v2(void* to, DevicePointer from, std::size_t bytes) {
    return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
}

FP4_API cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, std::size_t bytes, Stream* stream) {
    if (int code = usable()) return code;
    if (!on_device(to, bytes) || !on_device(from, bytes)) return error::invalid_value;
    return move(stream, reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
}
FP4_API cuMemcpyDtoD_v2(DevicePointer to, DevicePointer from, std::size_t bytes) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
}
FP4_API cuMemcpyPeerAsync(DevicePointer to, Context*, DevicePointer from, Context*, std::size_t bytes, Stream* stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}

FP4_API cuMemsetD8Async(DevicePointer to, unsigned char value, std::size_t count, Stream* stream) {
    return fill(stream, to, value, count);
}
FP4_API cuMemsetD8_v2(DevicePointer to, unsigned char value, std::size_t count) { return fill<unsigned char>(nullptr, to, value, count); }
FP4_API cuMemsetD16Async(DevicePointer to, unsigned short value, std::size_t count, Stream* stream) {
    return fill(stream, to, value, count);
}
FP4_API cuMemsetD32Async(DevicePointer to, unsigned value, std::size_t count, Stream* stream) {
    return fill(stream, to, value, count);
}
FP4_API cuMemsetD32_v2(DevicePointer to, unsigned value, std::size_t count) { return fill<unsigned>(nullptr, to, value, count); }

// ---- pools: one a device, its attributes are accepted and read as 0 ----

FP4_API cuDeviceGetDefaultMemPool(void** pool, int device) {
    *pool = device_at(device);
    return *pool ? error::success : error::invalid_device;
}
FP4_API cuDeviceGetMemPool(void** pool, int device) { return cuDeviceGetDefaultMemPool(pool, device); }
FP4_API cuDeviceSetMemPool(int device, void*) { return device_at(device) ? error::success : error::invalid_device; }
FP4_API cuMemPoolSetAttribute(void*, int, void*) { return error::success; }
FP4_API cuMemPoolGetAttribute(void*, int, void* value) {
    *static_cast<std::uint64_t*>(value) = 0;
    return error::success;
}
FP4_API cuMemPoolTrimTo(void*, std::size_t) { return error::success; }

// ---- what no path of ours needs ----

FP4_API cuMemAllocManaged(DevicePointer*, std::size_t, unsigned) { return error::not_supported; }
FP4_API cuMemAdvise_v2(DevicePointer, std::size_t, int, int, int) { return error::not_supported; }
FP4_API cuMemPrefetchAsync_v2(DevicePointer, std::size_t, int, int, unsigned, Stream*) { return error::not_supported; }
FP4_API cuMemPoolCreate(void**, const void*) { return error::not_supported; }
FP4_API cuMemPoolDestroy(void*) { return error::not_supported; }
FP4_API cuImportExternalMemory(void**, const void*) { return error::not_supported; }
FP4_API cuDestroyExternalMemory(void*) { return error::not_supported; }
FP4_API cuExternalMemoryGetMappedBuffer(DevicePointer*, void*, const void*) { return error::not_supported; }
