#include "memory.hpp"

#include "errors.hpp"
#include "options.hpp"

#include <cstring>
#include <map>
#include <mutex>
#include <sys/mman.h>

namespace emulator {
namespace {

constexpr std::size_t page = 4096, align = 256;
constexpr unsigned char red_zone = 0x5E, poison = 0xCB;

struct Allocation {
    int device;
    std::size_t bytes;
    unsigned char* mapping;
    std::size_t mapped;
};

std::mutex mutex;
std::map<std::uintptr_t, Allocation> allocations; // by first byte
std::map<int, std::size_t> used_bytes;

const Allocation* find(std::uintptr_t address, std::uintptr_t& first) {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return nullptr;
    --after;
    first = after->first;
    return &after->second;
}

// Offset of the first damaged byte from the allocation's start.
bool damaged(std::uintptr_t first, const Allocation& a, long& at) {
    auto* data = reinterpret_cast<unsigned char*>(first);
    unsigned char* begin = a.mapping + page;
    unsigned char* end = a.mapping + a.mapped - page;
    for (unsigned char* p = begin; p < end; p++) {
        if (p == data) p += a.bytes;
        if (p < end && *p != red_zone) {
            at = static_cast<long>(p - data);
            return true;
        }
    }
    return false;
}

std::string describe(const Allocation& a, long at) {
    return "a kernel wrote outside of device memory: byte " + std::to_string(at) + " of an allocation of " +
           std::to_string(a.bytes) + " bytes";
}

} // namespace

std::uintptr_t allocate(int device, std::size_t bytes) {
    std::lock_guard lock(mutex);
    if (bytes > options().memory - used_bytes[device]) return 0;
    std::size_t body = (bytes + align - 1) / align * align;
    std::size_t mapped = (body + align + page - 1) / page * page + 2 * page;
    void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return 0;
    auto* mapping = static_cast<unsigned char*>(memory);
    unsigned char* data = mapping + mapped - page - body;
    std::memset(mapping + page, red_zone, static_cast<std::size_t>(data - mapping) - page);
    std::memset(data, poison, bytes);
    std::memset(data + bytes, red_zone, body - bytes);
    mprotect(mapping, page, PROT_NONE);
    mprotect(mapping + mapped - page, page, PROT_NONE);
    auto first = reinterpret_cast<std::uintptr_t>(data);
    allocations[first] = {device, bytes, mapping, mapped};
    used_bytes[device] += bytes;
    return first;
}

int release(std::uintptr_t address, std::string& fault) {
    std::lock_guard lock(mutex);
    auto found = allocations.find(address);
    if (found == allocations.end()) return error::invalid_value;
    long at;
    if (damaged(address, found->second, at)) fault = describe(found->second, at);
    used_bytes[found->second.device] -= found->second.bytes;
    munmap(found->second.mapping, found->second.mapped);
    allocations.erase(found);
    return error::success;
}

std::string check_red_zones(int device) {
    std::lock_guard lock(mutex);
    for (const auto& [first, a] : allocations) {
        long at;
        if (a.device == device && damaged(first, a, at)) return describe(a, at);
    }
    return {};
}

bool covers(std::uintptr_t address, std::size_t bytes) {
    std::lock_guard lock(mutex);
    std::uintptr_t first = 0;
    const Allocation* a = find(address, first);
    return a && address - first <= a->bytes && bytes <= a->bytes - (address - first);
}

int device_of(std::uintptr_t address) {
    std::lock_guard lock(mutex);
    std::uintptr_t first = 0;
    const Allocation* a = find(address, first);
    return a && address - first < a->bytes ? a->device : -1;
}

std::size_t used(int device) {
    std::lock_guard lock(mutex);
    return used_bytes[device];
}

} // namespace emulator
