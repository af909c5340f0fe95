// Initialization, devices, contexts, streams, events and error names.

#include "driver.hpp"

#include "memory.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <deque>

namespace emulator {

bool initialized = false;

namespace {

std::mutex mutex;
std::deque<Device>& devices() {
    static std::deque<Device> all = [] {
        std::deque<Device> made(static_cast<std::size_t>(options().devices));
        for (std::size_t i = 0; i < made.size(); i++) made[i].ordinal = static_cast<int>(i);
        return made;
    }();
    return all;
}

// The streams that capture.
std::vector<Stream*>& captures() {
    static std::vector<Stream*> all;
    return all;
}

std::string& last_fault() {
    static std::string text;
    return text;
}

} // namespace

Device* device_at(int ordinal) {
    if (ordinal < 0 || static_cast<std::size_t>(ordinal) >= devices().size()) return nullptr;
    return &devices()[static_cast<std::size_t>(ordinal)];
}

Context*& bound() {
    thread_local Context* context = nullptr;
    return context;
}

int usable() {
    if (!initialized) return error::not_initialized;
    if (!bound()) return error::invalid_context;
    return bound()->fault;
}

void report(Device& device, int code, const std::string& text) {
    std::lock_guard lock(mutex);
    device.fault = code;
    last_fault() = text;
    std::fprintf(stderr, "emulator: %s\n", text.c_str());
}

int enqueue(Stream* stream, Work work) {
    if (int code = usable()) return code;
    if (stream && stream->invalidated) return error::capture_invalidated;
    if (stream && stream->capture) {
        stream->capture->nodes.push_back(std::move(work));
        return error::success;
    }
    return work();
}

int forbidden_on(Stream* stream) {
    if (!stream || !stream->capture) return error::success;
    stream->invalidated = true;
    return error::capture_unsupported;
}

int forbidden_in_capture() {
    std::lock_guard lock(mutex);
    int code = error::success;
    for (Stream* stream : captures()) {
        bool ours = stream->mode == CaptureMode::Global ||
                    (stream->mode == CaptureMode::ThreadLocal && stream->capturer == std::this_thread::get_id());
        if (ours) code = forbidden_on(stream);
    }
    return code;
}

int synchronize(Stream* stream) {
    if (int code = usable()) return code;
    if (int code = stream ? forbidden_on(stream) : forbidden_in_capture()) return code;
    if (must_fail(Call::Sync)) {
        report(*bound(), error::device_unavailable, "FP4_EMULATOR_FAIL: the device is lost at this synchronization");
        return bound()->fault;
    }
    if (auto text = check_red_zones(bound()->ordinal); !text.empty()) report(*bound(), error::illegal_address, text);
    return bound()->fault;
}

bool must_fail(Call call) {
    std::lock_guard lock(mutex);
    Options& o = options();
    unsigned long& left = call == Call::Alloc    ? o.fail_alloc
                          : call == Call::Launch ? o.fail_launch
                          : call == Call::Sync   ? o.fail_sync
                          : call == Call::Module ? o.fail_module
                                                 : o.fail_set;
    return left > 0 && --left == 0;
}

} // namespace emulator

using namespace emulator;

// The text of the last fault, for the emulator's own tests.
extern "C" __attribute__((visibility("default"))) const char* fp4_emulator_last_fault() {
    return last_fault().c_str();
}

// ---- initialization and devices ----

FP4_API cuInit(unsigned) {
    if (options().devices == 0) return error::no_device;
    initialized = true;
    return error::success;
}

FP4_API cuDriverGetVersion(int* version) {
    *version = 13000;
    return error::success;
}

// Private tables of functions, which NVRTC asks for when it meets a driver: there are none.
FP4_API cuGetExportTable(const void** table, const void*) {
    *table = nullptr;
    return error::not_found;
}

FP4_API cuDeviceGetCount(int* count) {
    if (!initialized) return error::not_initialized;
    *count = options().devices;
    return error::success;
}

FP4_API cuDeviceGet(int* device, int ordinal) {
    if (!initialized) return error::not_initialized;
    if (!device_at(ordinal)) return error::invalid_device;
    *device = ordinal;
    return error::success;
}

FP4_API cuDeviceGetName(char* name, int bytes, int device) {
    if (!device_at(device)) return error::invalid_device;
    std::snprintf(name, static_cast<std::size_t>(bytes), "emulated");
    return error::success;
}

FP4_API cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
    if (!device_at(device)) return error::invalid_device;
    std::memset(uuid, 0, 16);
    std::memcpy(uuid, "fp4 emulator", 12);
    uuid[15] = static_cast<unsigned char>(device);
    return error::success;
}
FP4_API cuDeviceGetUuid(unsigned char* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

FP4_API cuDeviceTotalMem_v2(std::size_t* bytes, int device) {
    if (!device_at(device)) return error::invalid_device;
    *bytes = options().memory;
    return error::success;
}

// Attribute numbers of the driver API; those that are not named here are 0.
FP4_API cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (!device_at(device)) return error::invalid_device;
    int sm = options().sm;
    switch (attribute) {
    case 1: *value = 1024; break;                                  // threads of a block
    case 2: case 3: *value = 1024; break;                          // block x, y
    case 4: *value = 64; break;                                    // block z
    case 5: *value = 0x7FFFFFFF; break;                            // grid x
    case 6: case 7: *value = 65535; break;                         // grid y, z
    case 8: *value = 48 * 1024; break;                             // shared memory of a block
    case 10: *value = 32; break;                                   // lanes of a warp
    // registers of a block, of a multiprocessor
    case 12: case 82: *value = 65536; break;
    case 13: case 36: *value = 1000000; break;                     // clocks, kHz
    // multiprocessors: few, so that kernels meet ragged waves
    case 16: *value = 4; break;
    case 37: *value = 512; break;                                  // memory bus, bits
    case 38: *value = 4 << 20; break;                              // L2 cache
    case 39: *value = 2048; break;                                 // threads of a multiprocessor
    case 41: *value = 1; break;                                    // unified addressing
    case 75: *value = sm / 10; break;                              // compute capability
    case 76: *value = sm % 10; break;
    // shared memory of a multiprocessor
    case 81: *value = static_cast<int>(max_shared_bytes(sm)) + 1024; break;
    // shared memory of a block that asks for it
    case 97: *value = static_cast<int>(max_shared_bytes(sm)); break;
    case 106: *value = 32; break;                                  // blocks of a multiprocessor
    // shared memory that the system takes of each block
    case 111: *value = 1024; break;
    case 115: *value = 1; break;                                   // memory pools
    default: *value = 0; break;
    }
    return error::success;
}

// ---- contexts ----

FP4_API cuDevicePrimaryCtxRetain(Context** context, int device) {
    if (!initialized) return error::not_initialized;
    Device* found = device_at(device);
    if (!found) return error::invalid_device;
    std::lock_guard lock(mutex);
    found->users++;
    *context = found;
    return error::success;
}

FP4_API cuDevicePrimaryCtxRelease_v2(int device) {
    Device* found = device_at(device);
    if (!found) return error::invalid_device;
    std::lock_guard lock(mutex);
    if (found->users == 0) return error::invalid_context;
    if (--found->users == 0) found->fault = error::success;
    return error::success;
}

FP4_API cuDevicePrimaryCtxReset_v2(int device) {
    Device* found = device_at(device);
    if (!found) return error::invalid_device;
    std::lock_guard lock(mutex);
    found->fault = error::success;
    return error::success;
}

FP4_API cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
    Device* found = device_at(device);
    if (!found) return error::invalid_device;
    *flags = 0;
    *active = found->users > 0;
    return error::success;
}

FP4_API cuCtxSetCurrent(Context* context) {
    bound() = context;
    return error::success;
}

FP4_API cuCtxGetCurrent(Context** context) {
    *context = bound();
    return error::success;
}

FP4_API cuCtxGetDevice(int* device) {
    if (!bound()) return error::invalid_context;
    *device = bound()->ordinal;
    return error::success;
}

FP4_API cuCtxSynchronize() { return synchronize(nullptr); }
FP4_API cuCtxSetFlags(unsigned) { return usable(); }
FP4_API cuCtxSetLimit(int, std::size_t) { return usable(); }
FP4_API cuCtxSetCacheConfig(int) { return usable(); }

FP4_API cuCtxGetLimit(std::size_t* value, int) {
    *value = 0;
    return usable();
}

FP4_API cuCtxGetCacheConfig(int* config) {
    *config = 0;
    return usable();
}

FP4_API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = *greatest = 0;
    return usable();
}

// ---- streams and capture ----

FP4_API cuStreamCreate(Stream** stream, unsigned) {
    if (int code = usable()) return code;
    *stream = new Stream;
    (*stream)->context = bound();
    return error::success;
}

FP4_API cuStreamCreateWithPriority(Stream** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }

FP4_API cuStreamDestroy_v2(Stream* stream) {
    delete stream;
    return error::success;
}

FP4_API cuStreamSynchronize(Stream* stream) { return synchronize(stream); }
FP4_API cuStreamQuery(Stream*) { return usable(); }
// All that was enqueued before has already run.
FP4_API cuStreamWaitEvent(Stream*, void*, unsigned) { return usable(); }
FP4_API cuStreamAttachMemAsync(Stream*, DevicePointer, std::size_t, unsigned) { return error::not_supported; }

FP4_API cuStreamBeginCapture_v2(Stream* stream, int mode) {
    if (int code = usable()) return code;
    if (!stream) return error::capture_unsupported;
    if (stream->capture) return error::illegal_state;
    if (mode < 0 || mode > 2) return error::invalid_value;
    std::lock_guard lock(mutex);
    stream->capture = std::make_unique<Graph>();
    stream->invalidated = false;
    stream->mode = static_cast<CaptureMode>(mode);
    stream->capturer = std::this_thread::get_id();
    captures().push_back(stream);
    return error::success;
}

FP4_API cuStreamEndCapture(Stream* stream, Graph** graph) {
    *graph = nullptr;
    if (!stream || !stream->capture) return error::illegal_state;
    if (stream->mode != CaptureMode::Relaxed && stream->capturer != std::this_thread::get_id())
        return error::capture_wrong_thread;
    std::lock_guard lock(mutex);
    captures().erase(std::find(captures().begin(), captures().end(), stream));
    auto made = std::move(stream->capture);
    if (stream->invalidated) {
        stream->invalidated = false;
        return error::capture_invalidated;
    }
    *graph = made.release();
    return error::success;
}

FP4_API cuStreamIsCapturing(Stream* stream, int* status) {
    *status = !stream || !stream->capture ? 0 : stream->invalidated ? 2 : 1;
    return error::success;
}

FP4_API cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    *executable = new Graph(*graph);
    return error::success;
}

FP4_API cuGraphLaunch(Graph* executable, Stream* stream) {
    for (const Work& work : executable->nodes)
        if (int code = enqueue(stream, work)) return code;
    return error::success;
}

FP4_API cuGraphUpload(Graph*, Stream*) { return usable(); }
FP4_API cuGraphDestroy(Graph* graph) {
    delete graph;
    return error::success;
}
FP4_API cuGraphExecDestroy(Graph* executable) { return cuGraphDestroy(executable); }

FP4_API cuLaunchHostFunc(Stream* stream, void (*function)(void*), void* data) {
    return enqueue(stream, [=] {
        function(data);
        return error::success;
    });
}

// ---- events ----

namespace {
struct Event {
    std::chrono::steady_clock::time_point at;
    bool recorded = false;
};
} // namespace

FP4_API cuEventCreate(Event** event, unsigned) {
    if (int code = usable()) return code;
    *event = new Event;
    return error::success;
}

FP4_API cuEventDestroy_v2(Event* event) {
    delete event;
    return error::success;
}

FP4_API cuEventRecord(Event* event, Stream* stream) {
    return enqueue(stream, [=] {
        event->at = std::chrono::steady_clock::now();
        event->recorded = true;
        return error::success;
    });
}

FP4_API cuEventQuery(Event*) { return usable(); }
FP4_API cuEventSynchronize(Event*) { return synchronize(nullptr); }

FP4_API cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
    if (!start->recorded || !end->recorded) return error::invalid_handle;
    *milliseconds = std::chrono::duration<float, std::milli>(end->at - start->at).count();
    return usable();
}
FP4_API cuEventElapsedTime(float* milliseconds, Event* start, Event* end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

// ---- error names ----

namespace {
struct Name {
    int code;
    const char *name, *text;
};
constexpr Name names[] = {
    {error::success, "CUDA_SUCCESS", "no error"},
    {error::invalid_value, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {error::out_of_memory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {error::not_initialized, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {error::device_unavailable, "CUDA_ERROR_DEVICE_UNAVAILABLE", "device is busy or unavailable"},
    {error::no_device, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {error::invalid_device, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {error::invalid_image, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {error::invalid_context, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {error::no_binary_for_gpu, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {error::invalid_ptx, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {error::unsupported_ptx_version, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the PTX was compiled with an unsupported toolchain"},
    {error::invalid_handle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {error::illegal_state, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {error::not_found, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {error::not_ready, "CUDA_ERROR_NOT_READY", "device not ready"},
    {error::illegal_address, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {error::out_of_resources, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {error::launch_timeout, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {error::misaligned_address, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {error::launch_failed, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {error::invalid_cluster_size, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "cluster misconfiguration"},
    {error::not_supported, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {error::capture_unsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {error::capture_wrong_thread, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
    {error::capture_invalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
};
} // namespace

FP4_API cuGetErrorName(int code, const char** name) {
    for (const Name& n : names)
        if (n.code == code) {
            *name = n.name;
            return error::success;
        }
    *name = nullptr;
    return error::invalid_value;
}

FP4_API cuGetErrorString(int code, const char** text) {
    for (const Name& n : names)
        if (n.code == code) {
            *text = n.text;
            return error::success;
        }
    *text = nullptr;
    return error::invalid_value;
}
