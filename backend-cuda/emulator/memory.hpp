// Device memory: ranges of the process's own memory, each between red zones and guard pages.
//
//   | guard page | red zone | the allocation, 256-byte aligned | red zone to the page's end | guard
//   page |
//
// A kernel that writes a little past either end changes a red zone, which is found when the memory
// is freed or a stream is synchronized; one that reads or writes further faults at once. Fresh
// memory holds a pattern, so that reading what nobody wrote gives wrong results rather than zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulator {

// 0 when the device has no such room left.
std::uintptr_t allocate(int device, std::size_t bytes);
// A driver error code; `fault` gets a text if a red zone was written to.
int release(std::uintptr_t address, std::string& fault);
// The first damaged red zone of the device's allocations, or an empty text.
std::string check_red_zones(int device);
// Whether the range lies inside of one allocation.
bool covers(std::uintptr_t address, std::size_t bytes);
// The device whose allocation holds the address; -1 if none does.
int device_of(std::uintptr_t address);
std::size_t used(int device);

} // namespace emulator
