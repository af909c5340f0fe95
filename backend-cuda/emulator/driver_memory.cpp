// Allocation, copies, memset and memory pools.

#include "driver.hpp"

#include "memory.hpp"

#include <cstdlib>
#include <cstring>
#include <map>

using namespace emulator;

namespace {

std::mutex pinned_mutex;
std::map<const void*, std::size_t>& pinned() {
    static std::map<const void*, std::size_t> all;
    return all;
}

bool is_pinned(const void* pointer, std::size_t bytes) {
    std::lock_guard lock(pinned_mutex);
    auto after = pinned().upper_bound(pointer);
    if (after == pinned().begin()) return false;
    auto [start, length] = *--after;
    auto offset = static_cast<std::size_t>(static_cast<const char*>(pointer) - static_cast<const char*>(start));
    return offset + bytes <= length;
}

bool on_device(DevicePointer address, std::size_t bytes) { return bytes == 0 || covers(address, bytes); }

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

// Memory of a capture would belong to the graph; the kernels here allocate nothing in steady state.
FP4_API cuMemAllocAsync(DevicePointer* address, std::size_t bytes, Stream* stream) {
    if (int code = forbidden_on(stream)) return code;
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
    if (int code = forbidden_on(stream)) return code;
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
    if (!*pointer) return error::out_of_memory;
    std::lock_guard lock(pinned_mutex);
    pinned()[*pointer] = bytes;
    return error::success;
}
FP4_API cuMemAllocHost_v2(void** pointer, std::size_t bytes) { return cuMemHostAlloc(pointer, bytes, 0); }
FP4_API cuMemFreeHost(void* pointer) {
    std::lock_guard lock(pinned_mutex);
    pinned().erase(pointer);
    std::free(pointer);
    return error::success;
}

FP4_API cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, std::size_t bytes, Stream* stream) {
    if (int code = usable()) return code;
    if (!on_device(to, bytes)) return error::invalid_value;
    if (!is_pinned(from, bytes))
        if (int code = forbidden_on(stream)) return code;
    return move(stream, reinterpret_cast<void*>(to), from, bytes);
}
FP4_API cuMemcpyHtoD_v2(DevicePointer to, const void* from, std::size_t bytes) {
    return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
}

FP4_API cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, std::size_t bytes, Stream* stream) {
    if (int code = usable()) return code;
    if (!on_device(from, bytes)) return error::invalid_value;
    if (!is_pinned(to, bytes))
        if (int code = forbidden_on(stream)) return code;
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
