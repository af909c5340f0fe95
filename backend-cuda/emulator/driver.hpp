// What the exported driver functions share: devices, contexts, streams, and what a call reports.
//
// Everything runs when it is enqueued, so a stream is always idle; a stream that captures records
// instead. A fault of a kernel is reported as on a device: the launch itself succeeds, and from
// then on every call on the device returns the fault's code, until its primary context is released
// by its last user or reset. The text goes to standard error and to fp4_emulator_last_fault().
#pragma once

#include "errors.hpp"
#include "options.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

// Everything of the emulator is hidden but the driver's functions.
#define FP4_API extern "C" __attribute__((visibility("default"))) int

namespace emulator {

struct Device {
    int ordinal = 0;
    int users = 0;  // of the primary context
    int fault = 0;  // sticky
};

using Context = Device; // one context a device: its primary one
using DevicePointer = std::uintptr_t;

using Work = std::function<int()>;
struct Graph {
    std::vector<Work> nodes;
};
// Who may not do what a capture forbids (CUstreamCaptureMode).
enum class CaptureMode { Global, ThreadLocal, Relaxed };
struct Stream {
    Context* context = nullptr;
    std::unique_ptr<Graph> capture;
    bool invalidated = false;
    CaptureMode mode = CaptureMode::Global;
    std::thread::id capturer;
};

// The devices; null for an ordinal that does not exist.
Device* device_at(int ordinal);
// The context bound to this OS thread, may be null.
Context*& bound();

// 0, or why a call on the bound context cannot be made: no cuInit, no context, an earlier fault.
int usable();
// Marks the device as faulted and publishes the text.
void report(Device& device, int code, const std::string& text);
// Runs the work now, or records it where the stream captures. A null stream is the default one.
int enqueue(Stream* stream, Work work);
// For calls that a driver refuses while a capture is under way in this thread, or in any under
// CaptureMode::Global, because they act at once and not on a stream: 0, or the driver's code, and
// the capture is invalid. What is done on the stream itself is recorded, allocations and copies
// too.
int forbidden_in_capture();
// The same for a call on this stream.
int forbidden_on(Stream* stream);
// What synchronizing means here: red zones are looked at. Not allowed in a capture.
int synchronize(Stream* stream);

// Counts calls of one kind for FP4_EMULATOR_FAIL: true for the one that is to fail.
enum class Call { Alloc, Launch, Sync, Module, Set };
bool must_fail(Call call);

extern bool initialized;

} // namespace emulator
